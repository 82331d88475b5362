"""Theorem 5.1: why a mask that must be an interval is sound, on the linear toy model x -> w^T x.

The model: ||x||_2 = 1, y is +1 or -1, margin gamma = y w^T x > 0. A mask S certifies the label b iff b * sum_{i in S} w_i x_i > 0; a sum
of exactly 0 certifies neither label. The d terms w_i x_i are shuffled once. A mask is an interval of L neighbours that does not wrap
around, so there are d - L + 1 masks of each length. As printed, for any L1 = Omega(log(1/delta) / gamma^2) and
L2 = Omega(log(d/delta) / gamma^2), each with probability 1 - delta: (1) some interval of length L1 certifies y; (2) no interval of length
L2 certifies -y.

The printed theorem leaves open:

* Scale. c * w certifies the same as w but has margin c * gamma, so no length that depends on gamma alone can be right. Here ||w||_2 <= 1,
  hence sum |w_i x_i| <= 1 and gamma <= 1.
* Boundedness. No term may dominate: |w_i x_i| <= B / d with B of order 1 (B = 1 if |x_i| = |w_i| = 1 / sqrt(d) for all i). Then both parts
  hold with explicit constants: `completeness_length`, `soundness_length`. Without the bound they can fail: `concentrated_terms`.
* Which completeness. "Some interval" says little: if L divides d, one of the d / L blocks of the input has a positive sum, whatever the
  terms and the shuffle. Concentration proves more, and this fails for x = e_1: a *given* interval certifies y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, hypergeom

from salkit.checks import check_integer, is_integer, is_number

EVENTS = ("given_certifies_y", "some_certifies_y", "none_certifies_other")
"""The events that `simulate` counts: part 1 for a given interval, part 1 as printed, part 2."""


def interval_sums(terms: ArrayLike, length: int) -> NDArray[np.float64]:
    """Sums of `(..., d)` terms over every interval: `(..., d - length + 1)` float64, by prefix sums in O(d).

    A sum within the rounding error of the prefix sums, `length * eps * max |prefix|`, is set to exactly 0: its sign would be noise, and a
    tie (as many terms +1/d as -1/d) must certify neither label.

    Raises:
        ValueError: no terms, terms that are not finite, or a length outside [1, d].

    Example:
        >>> interval_sums([3, -1, -1, 2], 2)
        array([ 2., -2.,  1.])
    """
    values = _check_terms(terms)
    return _window_sums(_prefix_sums(values), _check_length(length, values.shape[-1]))


def certified_fraction(terms: ArrayLike, length: int, label: int) -> NDArray[np.float64]:
    """Exact share of the d - L + 1 intervals that certify `label` (+1 or -1): `(..., d)` terms -> `(...)` in [0, 1], in O(d) each.

    Raises:
        ValueError: as for `interval_sums`, or another label.

    Example:
        >>> float(certified_fraction([3, -1, -1, 2, 2], 2, -1))  # one interval of four: -1 - 1
        0.25
    """
    sign = _check_label(label)
    return np.asarray((sign * interval_sums(terms, length) > 0).mean(axis=-1))


def certifies(terms: ArrayLike, mask: ArrayLike, label: int) -> NDArray[np.bool_]:
    """The base metric g(x, label, m) for any mask: `(..., d)` terms and booleans -> `(...)`, whether label * sum_i m_i w_i x_i > 0."""
    values, chosen, sign = _check_terms(terms), np.asarray(mask), _check_label(label)
    _check(chosen.dtype == np.bool_ and chosen.shape == values.shape, "mask", f"bool {values.shape}", f"{chosen.dtype} {chosen.shape}")
    return np.asarray(sign * np.where(chosen, values, 0.0).sum(axis=-1) > 0)


def unconstrained_certificate(terms: ArrayLike, label: int) -> NDArray[np.bool_]:
    """The best of all masks for `label`: the coordinates whose terms have its sign; `(..., d)` terms -> `(..., d)` booleans.

    It certifies `label` if one term has that sign, so nearly always -y as well: without the constraint there is no soundness.

    Example:
        >>> unconstrained_certificate([3, -1, -1, 2], -1)
        array([False,  True,  True, False])
    """
    return _check_label(label) * _check_terms(terms) > 0


def term_bound(terms: ArrayLike) -> float:
    """The least B with |w_i x_i| <= B / d for all `(..., d)` terms.

    Example:
        >>> term_bound([0.25, 0.25, -0.25, 0.25]), term_bound([1, 0, 0, 0])
        (1.0, 4.0)
    """
    values = _check_terms(terms)
    return float(values.shape[-1] * np.abs(values).max())


def failure_bound(length: int, margin: float, d: int, *, bound: float, n_intervals: int = 1) -> float:
    """Hoeffding-Serfling bound on the probability that at least one of `n_intervals` given intervals does not certify y.

    After the shuffle an interval of length L is a sample without replacement of the d numbers z_i = y w_i x_i, whose mean is gamma / d and
    whose range is R <= 2 B / d. For the mean of such a sample Serfling (1974, Corollary 1.1) has

        P(mean_L - gamma / d <= -t) <= exp(-2 L t^2 / ((1 - (L - 1) / d) R^2)).

    The interval does not certify y iff mean_L <= 0, so t = gamma / d. Then d cancels, except in the finite-population factor:

        P(sum over the interval <= 0) <= exp(-(gamma / B)^2 / 2 * L / (1 - (L - 1) / d)).

    Args:
        length: L, in [1, d].
        margin: gamma, in (0, bound]: d terms of at most B / d cannot sum to more than B.
        d: number of coordinates.
        bound: B of the assumption |w_i x_i| <= B / d, see `term_bound`.
        n_intervals: factor of the union bound: 1 for a given interval (completeness), d - L + 1 for all of them (soundness).

    Raises:
        ValueError: an argument outside its range.
    """
    _check_model(margin, d, bound)
    check_integer("n_intervals", n_intervals, 1)
    effective = _check_length(length, d) / (1 - (length - 1) / d)
    return min(1.0, n_intervals * math.exp(-effective * (margin / bound) ** 2 / 2))


def completeness_length(margin: float, delta: float, d: int, *, bound: float, finite_population: bool = False) -> int:
    """L1 in [1, d]: a given interval of this length, or of any larger one, certifies y with probability at least 1 - delta.

    `failure_bound` <= delta means L / (1 - (L - 1) / d) >= K with K = 2 (B / gamma)^2 log(1 / delta). So L1 = ceil(K) suffices: the
    theorem's Theta(log(1/delta) / gamma^2), with the constant 2 B^2. With the `finite_population` factor the shorter
    ceil(K (d + 1) / (d + K)) suffices. At most d is needed, because the whole input certifies y.

    Raises:
        ValueError: delta is not in (0, 1), or an argument of `failure_bound` is outside its range.

    Example:
        >>> completeness_length(0.1, 0.05, 10_000, bound=1.0)
        600
    """
    _check_model(margin, d, bound)
    _check_delta(delta)
    needed = 2 * (bound / margin) ** 2 * math.log(1 / delta)
    return min(math.ceil(needed * (d + 1) / (d + needed) if finite_population else needed), d)


def soundness_length(margin: float, delta: float, d: int, *, bound: float, finite_population: bool = False) -> int:
    """L2 in [1, d]: with probability at least 1 - delta no interval of this length certifies -y, since all of them certify y.

    It is `completeness_length` for delta / d, by a union bound over at most d intervals: K = 2 (B / gamma)^2 log(d / delta).

    Example:
        >>> soundness_length(0.1, 0.05, 10_000, bound=1.0)
        2442
    """
    _check_delta(delta)
    check_integer("d", d, 1)
    return completeness_length(margin, delta / d, d, bound=bound, finite_population=finite_population)


def toy_terms(d: int, margin: float, *, n_active: int | None = None, seed: int = 0) -> NDArray[np.float64]:
    """`(d,)` terms y w_i x_i with sum gamma: k = `n_active` (default d) of them are not 0, shuffled.

    They are +1/k and -1/k, the widest spread within the bound, and one term in between makes the margin exact. So B <= d / k, and
    `weights_and_input` has a model with ||x||_2 = 1 and ||w||_2 <= 1. k = d is the dense case B = 1, k = 1 is x = e_i.

    Args:
        d: number of coordinates.
        margin: gamma, in (0, 1].
        n_active: k, in [1, d].
        seed: of the shuffle.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> round(float(toy_terms(1000, 0.25).sum()), 12)
        0.25
    """
    _check_model(margin, d, 1)
    k = d if n_active is None else n_active
    _check(is_integer(k, 1) and k <= d, "n_active", f"1 to d = {d}", k)
    rng = np.random.default_rng([check_integer("seed", seed), 1])  # 2 is the stream of `simulate`
    active = np.clip(k * (1 + margin) - 1 - 2 * np.arange(k), -1, 1)
    return rng.permutation(np.concatenate([active / k, np.zeros(d - k)]))


def concentrated_terms(d: int, margin: float, rest: float = 0.0) -> NDArray[np.float64]:
    """Counterexamples without the bound on terms: `(d,)`, first one term gamma - rest, then d - 1 terms rest / (d - 1).

    The margin is gamma, and B is at least |gamma - rest| d. Everything depends on where the shuffle puts the large term: a given interval
    contains it with probability L / d, and some interval misses it with probability q = min(1, 2 (d - L) / d), which is 1 for L <= d / 2.

    * rest = 0, x = e_1: an interval with the term certifies y; every other sum is 0 and certifies nothing. A given interval certifies y
      with probability L / d, so 1 - delta needs L >= (1 - delta) d. As printed both parts hold, but say nothing: some interval always
      contains the term, and no sum is negative.
    * rest < 0, x near e_1 (the nearer, the closer rest is to 0): an interval with the term certifies y, every other one -y. A given
      interval certifies y with probability L / d as before, but soundness fails with probability q: always, up to L = d / 2.
    * rest > gamma (d - 1) / (d - L): the large term is negative; an interval with it certifies -y, every other one y. Part 1 as printed,
      "some interval", fails with probability 1 - q, which is positive for L > d / 2. Soundness always fails.

    Args:
        d: number of coordinates, at least 2.
        margin: gamma, in (0, 1].
        rest: in [(gamma - 1) / 2, (gamma + 1) / 2]: then sum |w_i x_i| <= 1, and `weights_and_input` gives ||w||_2 <= 1.

    Raises:
        ValueError: an argument outside its range.
    """
    _check_model(margin, d, 1)
    _check(d >= 2, "d", "at least 2", d)
    _check(abs(2 * rest - margin) <= 1 + 1e-12, "rest", f"a number in [{(margin - 1) / 2:g}, {(margin + 1) / 2:g}]", rest)
    return np.concatenate([[margin - rest], np.full(d - 1, rest / (d - 1))])


def weights_and_input(terms: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A model with the `(..., d)` terms z, not all 0: w and x, `(..., d)` each, with w_i x_i = z_i and ||x||_2 = 1.

    x_i = sqrt(|z_i| / Z) and w_i = sign(z_i) sqrt(|z_i| Z) with Z = sum |z_i|. Then ||w||_2 = Z, the least possible by Cauchy-Schwarz.
    """
    values = _check_terms(terms)
    total = np.abs(values).sum(axis=-1, keepdims=True)
    _check(bool(total.all()), "terms", "some that are not 0", "only zeros")
    return np.sign(values) * np.sqrt(np.abs(values) * total), np.sqrt(np.abs(values) / total)


def simulate(terms: ArrayLike, lengths: Sequence[int], *, label: int = 1, n_trials: int = 200, seed: int = 0) -> pd.DataFrame:
    """Shuffle the `(d,)` terms of one input `n_trials` times and count how often each part of the theorem holds, for each length.

    Events, with y = `label`: `"given_certifies_y"`, the first interval certifies y (its probability is also the expected
    `certified_fraction`); `"some_certifies_y"`, part 1 as printed; `"none_certifies_other"`, part 2. All lengths see the same shuffles.

    Returns:
        A row for each length and event: `d, length, event, n_trials, probability, low, high`, the last two a 95 % Wilson interval.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> simulate(toy_terms(1000, 0.5), [1, 101], n_trials=50).shape
        (6, 7)
    """
    values = _check_label(label) * _check_terms(terms)
    _check(values.ndim == 1, "terms", "shape (d,)", values.shape)
    check_integer("n_trials", n_trials, 1)
    chosen = [_check_length(length, values.size) for length in lengths]
    rng = np.random.default_rng([check_integer("seed", seed), 2])
    counts = np.zeros((len(chosen), len(EVENTS)), dtype=np.int64)
    for _ in range(n_trials):
        prefix = _prefix_sums(rng.permutation(values))
        unit = np.finfo(np.float64).eps * np.abs(prefix).max()  # the rule of `_window_sums`, without a pass over all sums
        for row, length in enumerate(chosen):
            sums, noise = prefix[length:] - prefix[:-length], length * unit
            counts[row] += (sums[0] > noise, sums.max() > noise, sums.min() >= -noise)
    rows = [
        (values.size, length, event, n_trials, k / n_trials, *binomtest(k, n_trials).proportion_ci(method="wilson"))
        for length, row_counts in zip(chosen, counts.tolist(), strict=True)
        for event, k in zip(EVENTS, row_counts, strict=True)
    ]
    return pd.DataFrame(rows, columns=["d", "length", "event", "n_trials", "probability", "low", "high"])


def exact_probability(terms: ArrayLike, length: int) -> float:
    """The probability that a given interval certifies y, for `(d,)` terms that are all +c, -c or 0: two hypergeometric laws."""
    values = _check_terms(terms)
    sizes = np.abs(values[values != 0])
    _check(values.ndim == 1 and (sizes <= sizes.min(initial=np.inf) * (1 + 1e-9)).all(), "terms", "(d,), all +c, -c or 0", "others")
    d, plus = values.size, int((values > 0).sum())
    held = np.arange(max(0, _check_length(length, d) - d + plus), min(length, plus) + 1)  # this many +c, and fewer -c
    total = hypergeom.pmf(held, d, plus, length) @ hypergeom.cdf(held - 1, max(d - plus, 1), sizes.size - plus, length - held)
    return min(1.0, float(total))  # on some processors the sum rounds beyond 1


def _prefix_sums(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cumsum(np.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(1, 0)]), axis=-1)


def _window_sums(prefix: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    sums = prefix[..., length:] - prefix[..., :-length]
    # Each of the `length` additions in the window rounds by at most eps / 2 of a prefix sum; the difference keeps its sign.
    noise = length * np.finfo(np.float64).eps * np.maximum(prefix.max(-1, keepdims=True), -prefix.min(-1, keepdims=True))
    sums[np.abs(sums) <= noise] = 0.0
    return sums


def _check(passed: bool, name: str, expected: str, got: object) -> None:
    if not passed:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def _check_model(margin: float, d: int, bound: float) -> None:
    check_integer("d", d, 1)
    _check(is_number(bound) and bound > 0, "bound", "a positive number", bound)
    _check(is_number(margin) and 0 < margin <= bound, "margin", f"a number in (0, {bound:g}]", margin)


def _check_delta(delta: float) -> None:
    _check(is_number(delta) and 0 < delta < 1, "delta", "a number in (0, 1)", delta)


def _check_terms(terms: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(terms, dtype=np.float64)
    _check(values.ndim >= 1 and values.size > 0, "terms", "shape (..., d) with d >= 1", values.shape)
    _check(bool(np.isfinite(values).all()), "terms", "finite numbers", "NaN or infinity")
    return values


def _check_length(length: int, d: int) -> int:
    _check(is_integer(length, 1) and length <= d, "length", f"an integer from 1 to d = {d}", length)
    return int(length)


def _check_label(label: int) -> int:
    _check(label in (1, -1), "label", "+1 or -1", label)
    return int(label)

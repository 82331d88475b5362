"""The simulations of notebook 01 for Theorem 5.1, one tidy table a question. The mathematics is in `salkit.studies.theory`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd

from salkit.studies import theory

GIVEN, SOME, NONE = theory.EVENTS
LENGTH_FOR = {GIVEN: theory.completeness_length, NONE: theory.soundness_length}
"""Event -> the function for its length: L1 and L2."""


def theorem_lengths(ds: Sequence[int], margins: Sequence[float], delta: float) -> pd.DataFrame:
    """Both lengths for B = 1, without and with the finite-population factor: `d, margin, L1, L2, L1_finite, L2_finite`."""
    rows = [[d, g, *_lengths(d, g, delta), *_lengths(d, g, delta, finite_population=True)] for d in ds for g in margins]
    return pd.DataFrame(rows, columns=["d", "margin", "L1", "L2", "L1_finite", "L2_finite"])


def sweep(ds: Sequence[int], margins: Sequence[float], delta: float, *, n_trials: int = 200, seed: int = 0) -> pd.DataFrame:
    """Simulate the dense toy input (B = 1) of every d and margin at L1, L2 and odd lengths around them (even lengths can tie).

    Returns:
        The columns of `theory.simulate` and `margin, L1, L2, exact`; `exact` is for a given interval and NaN for other events.
    """
    parts = []
    for d, margin, *lengths in theorem_lengths(ds, margins, delta).iloc[:, :4].itertuples(index=False):
        terms = theory.toy_terms(d, margin, seed=seed)
        grid = sorted({*lengths, *_odd(0.05 / margin**2, min(2 * lengths[1], d), 24)})
        table = theory.simulate(terms, grid, n_trials=n_trials, seed=seed)
        exact = [theory.exact_probability(terms, r.length) if r.event == GIVEN else math.nan for r in table.itertuples()]
        parts.append(table.assign(margin=margin, L1=lengths[0], L2=lengths[1], exact=exact))
    return pd.concat(parts, ignore_index=True)


def certified_shares(d: int, margin: float, delta: float, *, seed: int = 0) -> pd.DataFrame:
    """The share of all intervals of one shuffle that certify y (label 1) or -y (-1): `length, label, share, expected, L1, L2`.

    `expected` is the mean share over all shuffles, which equals the probability for a given interval.
    """
    terms = theory.toy_terms(d, margin, seed=seed)
    l1, l2 = _lengths(d, margin, delta)
    rows = [
        [n, label, float(theory.certified_fraction(terms, n, label)), theory.exact_probability(label * terms, n), l1, l2]
        for n in sorted({l1, l2, *_odd(1, min(2 * l2, d), 30)})
        for label in (1, -1)
    ]
    return pd.DataFrame(rows, columns=["length", "label", "share", "expected", "L1", "L2"])


def best_for_wrong_label(d: int, margin: float, delta: float, *, seed: int = 0) -> pd.DataFrame:
    """How strongly masks of each size can support -y on one shuffle: `length, any_mask, interval, bound, L2`.

    The strength of a mask is the mean of -y d w_i x_i over it, from -B to B; the mask certifies -y if it is positive. `any_mask` is that of
    the most negative terms, `interval` that of the best interval. With probability 1 - delta no interval exceeds `bound`, which is 0 at L2.
    """
    terms = theory.toy_terms(d, margin, seed=seed)
    largest = np.cumsum(np.sort(-terms)[::-1])
    l2 = theory.soundness_length(margin, delta, d, bound=1.0)
    lengths = np.array(sorted({l2, d, *_odd(1, d, 60)}))
    interval = np.array([-theory.interval_sums(terms, n).min() for n in lengths])
    bound = np.sqrt(2 * math.log(d / delta) / lengths) - margin
    columns = {"length": lengths, "any_mask": d * largest[lengths - 1] / lengths, "interval": d * interval / lengths, "bound": bound}
    return pd.DataFrame(columns | {"L2": l2})


def unconstrained_contrast(ds: Sequence[int], margin: float, delta: float, *, seed: int = 0) -> pd.DataFrame:
    """The masks that certify -y on one shuffle, a row for each d.

    Returns:
        `d`; `mask`, the size of `theory.unconstrained_certificate`, and whether it `certifies` -y; the sizes of the `smallest` and the
        `largest` mask that certify -y; `longest_interval` that does; `L2`, and how many `intervals_at_L2` do.
    """
    rows = []
    for d in ds:
        terms = theory.toy_terms(d, margin, seed=seed)
        mask = theory.unconstrained_certificate(terms, -1)
        sizes = 1 + np.flatnonzero(np.cumsum(np.sort(-terms)[::-1]) > 0.5 / d)  # a sum is a multiple of 1 / d, but for rounding
        l2 = theory.soundness_length(margin, delta, d, bound=1.0)
        at_l2 = int((theory.interval_sums(terms, l2) < 0).sum())
        rows.append([d, int(mask.sum()), bool(theory.certifies(terms, mask, -1)), *sizes[[0, -1]], longest_interval(terms), l2, at_l2])
    return pd.DataFrame(rows, columns=["d", "mask", "certifies", "smallest", "largest", "longest_interval", "L2", "intervals_at_L2"])


def longest_interval(terms: np.ndarray) -> int:
    """Length of the longest interval of `(d,)` terms that certifies -y, 0 if none does, in O(d log d).

    Example:
        >>> longest_interval(np.array([3, -1, -1, 2, -2]))
        4
    """
    prefix = np.cumsum(np.append(0.0, terms))
    # The interval from i to j certifies -y iff prefix[j] < prefix[i]: reach as far left and as far right as each allows.
    highest, lowest = np.maximum.accumulate(prefix), np.minimum.accumulate(prefix[::-1])[::-1]
    noise = len(prefix) * np.finfo(float).eps * np.abs(prefix).max()
    return int(max(0, (np.searchsorted(lowest, highest - noise) - 1 - np.arange(len(prefix))).max()))


def counterexamples(d: int, margin: float, delta: float, *, n_trials: int = 200, seed: int = 0) -> pd.DataFrame:
    """Simulate x = e_1 and an x near it (other terms sum to -0.001), and closed forms: `simulate`'s columns and `case, L1, L2, exact`."""
    lengths = _lengths(d, margin, delta)
    grid = sorted({*lengths, *np.linspace(1, d, 17).astype(int).tolist()})
    parts = []
    for case, rest in (("x = $e_1$", 0.0), ("x near $e_1$", -0.001)):
        table = theory.simulate(theory.concentrated_terms(d, margin, rest), grid, n_trials=n_trials, seed=seed)
        share = table.length / d
        sound = 1.0 if rest == 0 else 1 - np.minimum(1, 2 * (1 - share))
        exact = np.select([table.event == GIVEN, table.event == NONE], [share, sound], 1.0)
        parts.append(table.assign(case=case, L1=lengths[0], L2=lengths[1], exact=exact))
    return pd.concat(parts, ignore_index=True)


def concentration(d: int, margin: float, delta: float, *, n_trials: int = 200, seed: int = 0) -> pd.DataFrame:
    """From x = e_i (k = 1 active coordinate) to the dense input (k = d): both parts at the lengths for B = 1 and for the true B = d / k.

    Returns:
        `theory.simulate`'s columns and `n_active, B, assumed` (`"B = 1"` or `"B = d/k"`, which the length is for) and `exact`, for B = 1.
    """
    step = Fraction((1 + margin) / 2).limit_denominator(1000).denominator  # then k (1 + margin) / 2 is whole, and the law known
    parts = []
    for k in sorted({1, *(step * round(k / step) for k in np.geomspace(step, d, 12))}):
        terms = theory.toy_terms(d, margin, n_active=k, seed=seed)
        lengths = [*_lengths(d, margin, delta), *_lengths(d, margin, delta, bound=d / k)]
        table = theory.simulate(terms, lengths, n_trials=n_trials, seed=seed).iloc[[0, 5, 6, 11]]  # the event of each length
        exact = [theory.exact_probability(terms, lengths[0]), math.nan, math.nan, math.nan]
        parts.append(table.assign(n_active=k, B=d / k, assumed=["B = 1", "B = 1", "B = d/k", "B = d/k"], exact=exact))
    return pd.concat(parts, ignore_index=True)


def claims(by_d: pd.DataFrame, by_margin: pd.DataFrame, contrast: pd.DataFrame, against: pd.DataFrame, delta: float) -> pd.DataFrame:
    """The theorem's claims and their limits, judged by the worst row of each table with its 95 % Wilson interval.

    `by_d` and `by_margin` are from `sweep`, `contrast` from `unconstrained_contrast`, `against` from `counterexamples`, all with one delta.

    Returns:
        `claim, needed, exact, ours, low, high, n, verdict`. The verdict is `"reproduced"` if the whole interval is on the needed side of
        1 - delta, `"not reproduced"` if it is on the other side, else `"inconclusive"`; `exact` is a closed form where there is one.
    """
    e1, near = (against[against.case == case] for case in against.case.unique())
    tests = [
        ("given interval at L1 certifies y: every d", by_d, GIVEN, True),
        ("given interval at L1 certifies y: every margin", by_margin, GIVEN, True),
        ("some interval at L1 certifies y (as printed)", pd.concat([by_d, by_margin], ignore_index=True), SOME, True),
        ("no interval at L2 certifies -y: every d", by_d, NONE, True),
        ("no interval at L2 certifies -y: every margin", by_margin, NONE, True),
        ("x = e_1: given interval at L1 mostly fails", e1, GIVEN, False),
        ("x = e_1: some interval certifies y, emptily", e1, SOME, True),
        ("x = e_1: no interval certifies -y, emptily", e1, NONE, True),
        ("x near e_1: soundness at L2 fails", near, NONE, False),
    ]
    rows = []
    for text, table, event, holds in tests:
        at = table[(table.event == event) & (table.length == (table.L2 if event == NONE else table.L1))]
        worst = at.loc[at.probability.idxmin() if holds else at.probability.idxmax()]
        right, wrong = worst.low >= 1 - delta, worst.high < 1 - delta
        verdict = "inconclusive" if right == wrong else "reproduced" if right == holds else "not reproduced"
        needed = f"{'>=' if holds else '<'} {1 - delta:g}"
        rows.append([text, needed, worst.exact, worst.probability, worst.low, worst.high, worst.n_trials, verdict])
    share, verdict = float(contrast.certifies.mean()), "reproduced" if contrast.certifies.all() else "not reproduced"
    rows.insert(5, ["unconstrained, a mask certifies -y: every d", "= 1", 1.0, share, share, share, len(contrast), verdict])
    return pd.DataFrame(rows, columns=["claim", "needed", "exact", "ours", "low", "high", "n", "verdict"])


def headline(table: pd.DataFrame, shares: pd.DataFrame, contrast: pd.DataFrame) -> dict[str, float]:
    """The values that notebook 01 checks: of `claims`, of `certified_shares` at L1 and L2, and the sizes of `unconstrained_contrast`."""
    values = dict(zip(table.claim, table.ours, strict=True))
    for at in ("L1", "L2"):
        for row in shares[shares.length == shares[at]].itertuples():
            values[f"share certifying {'y' if row.label == 1 else '-y'} at {at}"] = row.share
    for row in contrast.itertuples():
        values |= {f"L2, d = {row.d}": row.L2, f"wrong-signed, d = {row.d}": row.mask, f"largest mask, d = {row.d}": row.largest}
    return values


def _lengths(d: int, margin: float, delta: float, *, bound: float = 1.0, finite_population: bool = False) -> list[int]:
    """L1 and L2."""
    return [length(margin, delta, d, bound=bound, finite_population=finite_population) for length in LENGTH_FOR.values()]


def _odd(start: float, stop: float, n: int) -> list[int]:
    """About n odd numbers in [1, stop], evenly spaced on a logarithmic axis."""
    return sorted({int(v) - 1 | 1 for v in np.geomspace(max(start, 1), max(stop, 1), n) + 1 if int(v) - 1 | 1 <= stop})

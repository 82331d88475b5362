"""Theorem 5.1: interval sums against brute force, constants against exact probabilities, counterexamples against closed forms."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from salkit.studies import theory

# No deadline, because a busy machine is not a fault; the same examples every time.
properties = settings(deadline=None, derandomize=True, max_examples=60)
# Small integers: their sums are exact in float64, so that brute force and prefix sums must agree exactly, ties included.
integer_terms = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


@properties
@given(integer_terms, st.data())
def test_interval_sums_and_fractions_equal_brute_force(terms, data):
    # A sum of 0 certifies neither label.
    length = data.draw(st.integers(1, len(terms)))
    expected = [sum(terms[s : s + length]) for s in range(len(terms) - length + 1)]
    np.testing.assert_array_equal(theory.interval_sums(terms, length), expected)
    for label in (1, -1):
        assert theory.certified_fraction(terms, length, label) == np.mean([label * total > 0 for total in expected])


def test_rounding_noise_is_a_tie():
    assert 0.1 + 0.2 - 0.3 != 0  # what a naive sum would let certify the label +1
    terms = np.tile([0.1, 0.2, -0.3], 1000)
    np.testing.assert_array_equal(theory.interval_sums(terms, 300), 0)
    assert theory.certified_fraction(terms, 300, 1) == theory.certified_fraction(terms, 300, -1) == 0
    assert theory.simulate(terms, [3000], n_trials=20).probability.tolist() == [0, 0, 1]


def test_single_terms_still_count_at_a_million_coordinates():
    d = 1_000_001
    terms = np.append(1.0, np.tile([1e-6, -1e-6], d // 2))  # after the first term every prefix sum is about 1, and rounded
    even, odd = (np.sign(theory.interval_sums(terms, length)) for length in (10_000, 10_001))
    np.testing.assert_array_equal(even, np.append(1, np.zeros(d - 10_000)))  # as many of each sign: ties
    np.testing.assert_array_equal(odd, np.append(1, np.tile([1, -1], (d - 10_001) // 2)))  # one term is left over, and decides


@properties
@given(integer_terms, st.sampled_from([1, -1]))
def test_unconstrained_mask_certifies_whatever_can_be_certified(terms, label):
    mask = theory.unconstrained_certificate(terms, label)
    assert theory.certifies(terms, mask, label) == any(label * term > 0 for term in terms)
    assert not theory.certifies(terms, mask, -label)


def test_unconstrained_masks_certify_the_wrong_label_where_no_interval_does():
    d, margin, delta = 2000, 0.5, 0.05
    terms = theory.toy_terms(d, margin)
    length = theory.soundness_length(margin, delta, d, bound=1)
    assert theory.certified_fraction(terms, length, -1) == 0
    assert theory.certifies(terms, theory.unconstrained_certificate(terms, -1), -1)


def test_lengths_by_hand():
    # 2 (1 / 0.1)^2 log(20) = 599.1..., 2 (1 / 0.1)^2 log(200000) = 2441.2...
    assert theory.completeness_length(0.1, 0.05, 10_000, bound=1) == 600
    assert theory.soundness_length(0.1, 0.05, 10_000, bound=1) == 2442
    assert theory.completeness_length(0.1, 0.05, 500, bound=1) == 500  # the whole input certifies y
    assert theory.completeness_length(0.1, 0.05, 10_000, bound=1, finite_population=True) == math.ceil(599.15 * 10_001 / 10_599.15)


@pytest.mark.parametrize("d", [50, 1000, 100_000])
@pytest.mark.parametrize("bound", [1.0, 3.0])
@pytest.mark.parametrize("delta", [0.01, 0.3])
def test_lengths_solve_the_bound(d, bound, delta):
    for find, n_intervals in ((theory.completeness_length, 1), (theory.soundness_length, d)):
        plain, corrected = (find(0.4, delta, d, bound=bound, finite_population=flag) for flag in (False, True))
        assert corrected <= plain <= d
        fails = [theory.failure_bound(n, 0.4, d, bound=bound, n_intervals=n_intervals) for n in (plain, corrected, corrected - 1)]
        assert plain == d or fails[0] <= delta  # at d the whole input certifies y, whatever the bound says
        assert corrected == d or fails[1] <= delta
        assert fails[2] > delta  # no shorter length satisfies the bound


@properties
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_failure_bound_holds_exactly_for_every_population(terms):
    """Not a simulation: all subsets of size L, so no tolerance for chance; 1e-12 for the rounding of exp where bound and truth are 1."""
    total, d = sum(terms), len(terms)
    assume(total > 0)
    bound = theory.term_bound(terms)
    for length in range(1, d + 1):
        failures = np.mean([sum(chosen) <= 0 for chosen in combinations(terms, length)])
        assert failures <= theory.failure_bound(length, total, d, bound=bound) + 1e-12


@pytest.mark.parametrize("n_active", [None, 1, 7, 100])
@pytest.mark.parametrize("margin", [0.03, 0.5, 1.0])
def test_toy_terms_are_as_promised(n_active, margin):
    terms = theory.toy_terms(301, margin, n_active=n_active, seed=3)
    k = n_active or 301
    assert terms.shape == (301,)
    assert np.count_nonzero(terms) <= k
    assert abs(terms.sum() - margin) < 1e-12
    assert theory.term_bound(terms) <= 301 / k + 1e-9
    w, x = theory.weights_and_input(terms)
    np.testing.assert_allclose(w * x, terms, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(x), 1, atol=1e-12)
    assert np.linalg.norm(w) <= 1 + 1e-12
    again, other = (theory.toy_terms(301, margin, n_active=n_active, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(terms, again)
    assert abs(other.sum() - margin) < 1e-12
    assert (terms != other).any() or (margin, n_active) == (1.0, None)  # the only case in which a shuffle changes nothing


def test_simulation_agrees_with_the_exact_law():
    d, margin, n_trials = 400, 0.2, 1000
    lengths = np.array([1, 10, 41, 120])  # at even lengths sums can tie
    table = theory.simulate(theory.toy_terms(d, margin), lengths.tolist(), n_trials=n_trials)
    exact = hypergeom.sf(lengths // 2, d, d * (1 + margin) / 2, lengths)
    # Four standard errors: a right program fails with probability below 4 * 6e-5 over the choice of seed, and this seed is fixed.
    assert (abs(table.probability[table.event == "given_certifies_y"] - exact) <= 4 * np.sqrt(exact * (1 - exact) / n_trials)).all()


@properties
@given(st.lists(st.sampled_from([-2, 0, 2]), min_size=1, max_size=9))
def test_exact_probability_equals_enumeration(terms):
    for length in range(1, len(terms) + 1):
        share = np.mean([sum(chosen) > 0 for chosen in combinations(terms, length)])
        np.testing.assert_allclose(theory.exact_probability(terms, length), share, atol=1e-12)


def test_simulation_table():
    terms = theory.toy_terms(90, 0.2)
    table = theory.simulate(terms, [5, 90], n_trials=40, seed=7)
    assert list(table.columns) == ["d", "length", "event", "n_trials", "probability", "low", "high"]
    assert list(table["event"]) == 2 * list(theory.EVENTS)
    assert table.probability.between(table.low, table.high).all()
    assert table.equals(theory.simulate(terms, [5, 90], n_trials=40, seed=7))
    assert table.equals(theory.simulate(-terms, [5, 90], n_trials=40, seed=7, label=-1))
    seeds = [theory.simulate(terms, [5], n_trials=40, seed=seed)["probability"][0] for seed in range(8)]
    assert len(set(seeds)) > 1
    whole = table[table["length"] == 90]
    assert (whole["probability"] == 1).all()
    np.testing.assert_allclose(whole["low"], 40 / (40 + 1.959964**2), atol=1e-6)  # Wilson's lower end when all trials succeed


@pytest.mark.parametrize("rest", [-0.25, -1e-6])
@pytest.mark.parametrize("d", [40, 41])
def test_near_e1_soundness_fails(d, rest):
    terms = theory.concentrated_terms(d, 0.5, rest)
    w, x = theory.weights_and_input(terms)
    np.testing.assert_allclose([np.linalg.norm(x), terms.sum()], [1, 0.5], atol=1e-12)
    assert np.linalg.norm(w) <= 1 + 1e-12
    assert x[0] ** 2 == pytest.approx((0.5 - rest) / (0.5 - 2 * rest))  # goes to 1 as the rest goes to 0
    # All shuffles that matter, since the terms but the first are equal: row p has the first term at place p.
    rows = np.where(np.eye(d, dtype=bool), terms[0], terms[1])
    for length in range(1, d + 1):
        wrong = theory.certified_fraction(rows, length, -1)
        np.testing.assert_allclose((wrong > 0).mean(), min(1, 2 * (d - length) / d), atol=1e-12)
        np.testing.assert_allclose(wrong.mean(), 1 - length / d, atol=1e-12)  # the share of intervals that certify -y
        assert length > d // 2 or (wrong > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.interval_sums([], 1), r"terms: expected shape \(\.\.\., d\)"),
        (lambda: theory.interval_sums([1, np.nan], 1), "terms: expected finite numbers"),
        (lambda: theory.interval_sums([1, 2], 0), "length: expected an integer from 1 to d = 2, got 0"),
        (lambda: theory.interval_sums([1, 2], 1.0), "length: expected an integer"),
        (lambda: theory.certified_fraction([1, 2], 1, 0), r"label: expected \+1 or -1, got 0"),
        (lambda: theory.certifies([1, 2], [True], 1), r"mask: expected bool \(2,\), got bool \(1,\)"),
        (lambda: theory.weights_and_input([0, 0]), "terms: expected some that are not 0"),
        (lambda: theory.failure_bound(1, 0.1, 5, bound=1, n_intervals=0), "n_intervals: expected an integer >= 1, got 0"),
        (lambda: theory.completeness_length(0.1, 0.0, 10, bound=1), r"delta: expected a number in \(0, 1\), got 0"),
        (lambda: theory.completeness_length(0.0, 0.1, 10, bound=1), r"margin: expected a number in \(0, 1\], got 0"),
        (lambda: theory.completeness_length(0.5, 0.1, 10, bound=0.4), r"margin: expected a number in \(0, 0.4\], got 0.5"),
        (lambda: theory.completeness_length(0.5, 0.1, 10, bound=-1), "bound: expected a positive number, got -1"),
        (lambda: theory.soundness_length(0.5, 1.5, 10, bound=1), "delta: expected"),
        (lambda: theory.soundness_length(0.5, 0.5, 0, bound=1), "d: expected an integer >= 1, got 0"),
        (lambda: theory.toy_terms(10, 1.5), r"margin: expected a number in \(0, 1\], got 1.5"),
        (lambda: theory.toy_terms(10, 0.5, n_active=11), "n_active: expected 1 to d = 10, got 11"),
        (lambda: theory.concentrated_terms(1, 0.5), "d: expected at least 2, got 1"),
        (lambda: theory.concentrated_terms(10, 0.5, -0.5), r"rest: expected a number in \[-0.25, 0.75\], got -0.5"),
        (lambda: theory.exact_probability([1, 2], 1), r"terms: expected \(d,\), all \+c, -c or 0, got others"),
        (lambda: theory.simulate([[1, 2]], [1]), r"terms: expected shape \(d,\), got \(1, 2\)"),
        (lambda: theory.simulate([1, 2], [3]), "length: expected an integer from 1 to d = 2, got 3"),
    ],
)
def test_wrong_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

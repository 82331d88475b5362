import itertools
import math

import numpy as np
import pytest
from scipy import stats

from salkit.statistics import EXACT, Interval, holm, least_p_value, mean_interval, paired_comparison, sign_flip_p_value


def test_interval_by_hand():
    # Mean 2, standard deviation 1, and 4.303 is the 97.5 % point of Student's t with two degrees of freedom.
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.n) == (2.0, 3)
    assert (interval.low, interval.high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    narrow = mean_interval([1.0, 2.0, 3.0], confidence=0.5)
    assert narrow.high - 2 == pytest.approx(0.8165 / 3**0.5, abs=1e-4)


@pytest.mark.parametrize("n", [3, 5, 10, 12, 20])
@pytest.mark.parametrize(
    ("name", "covered"),
    # What the docstring says of n = 3, 5, 10, 12, 20.
    [
        ("uniform", (0.92, 0.93, 0.95, 0.95, 0.95)),
        ("near 1", (0.90, 0.90, 0.92, 0.92, 0.93)),
        ("skewed", (0.86, 0.88, 0.91, 0.92, 0.93)),
        ("many ties", (0.91, 0.87, 0.88, 0.90, 0.92)),
        ("near a floor", (0.76, 0.78, 0.84, 0.85, 0.88)),
        ("two clusters", (0.67, 0.83, 0.93, 0.92, 0.94)),
    ],
)
def test_intervals_cover_the_true_mean_as_often_as_documented(name, covered, n):
    rng = np.random.default_rng(n)
    size = (3000, n)
    draw, mean = {
        "uniform": (lambda: rng.random(size), 1 / 2),
        "near 1": (lambda: rng.beta(8, 1, size), 8 / 9),
        "skewed": (lambda: rng.beta(0.5, 2, size), 1 / 5),
        "many ties": (lambda: np.where(rng.random(size) < 0.6, 1.0, rng.beta(2, 1, size)), 0.6 + 0.4 * 2 / 3),
        "near a floor": (lambda: rng.beta(0.3, 6, size), 0.3 / 6.3),
        "two clusters": (lambda: np.where(rng.random(size) < 0.3, rng.beta(2, 8, size), rng.beta(19, 1, size)), 0.3 * 0.2 + 0.7 * 0.95),
    }[name]
    intervals = [mean_interval(values, limits=(0, 1)) for values in draw()]
    found = [i.low <= mean <= i.high for i in intervals if not math.isnan(i.low)]
    # Four standard errors of a share of 3000, and the table's rounding.
    assert np.mean(found) == pytest.approx(covered[(3, 5, 10, 12, 20).index(n)], abs=0.035)


def test_an_interval_ends_where_the_quantity_does():
    values = [0.4, 0.5, 0.9]
    free, cut = mean_interval(values), mean_interval(values, limits=(0, 1))
    assert free.low < 0
    assert free.high > 1
    assert (cut.low, cut.mean, cut.high) == (0, free.mean, 1)


def test_nan_is_left_out_and_one_image_has_no_interval():
    assert mean_interval([1.0, float("nan"), 0.0]).n == 2
    single = mean_interval([0.5, float("nan")])
    assert (single.mean, single.n) == (0.5, 1)
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    nothing = mean_interval([])
    assert nothing.n == 0
    assert math.isnan(nothing.mean)


def test_equal_values_have_no_interval():
    interval = mean_interval([1.0] * 3, limits=(0, 1))
    assert interval.mean == 1
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    # 0.3 - 0.2 and 0.4 - 0.3 differ by rounding; 1e-6 of difference does not.
    assert math.isnan(paired_comparison([0.3, 0.4], [0.2, 0.3]).low)
    assert not math.isnan(mean_interval([0.1, 0.1 + 1e-6]).low)


def test_intervals_for_reading():
    shown = [mean_interval(values) for values in ([], [0.5], [1.0] * 3, [0.0, 0.5])]
    assert [str(each) for each in shown] == ["no image counts", "0.50 (1 image)", "1.00 (all 3 equal)", "0.25 [-2.93, 3.43]"]
    assert str(Interval(0.5, 0.25, 0.75, 4)) == "0.50 [0.25, 0.75]"


def test_paired_comparison_sees_what_separate_intervals_cannot():
    rng = np.random.default_rng(4)
    difficulty = rng.random(30)
    better, worse = difficulty + 0.02 + 0.005 * rng.standard_normal(30), difficulty
    comparison = paired_comparison(better, worse)
    assert comparison.p_value < 1e-6
    assert comparison.low > 0
    assert (mean_interval(better).low, mean_interval(worse).low) < (mean_interval(worse).high, mean_interval(better).high)
    back = paired_comparison(worse, better)
    assert (back.mean, back.p_value) == (pytest.approx(-comparison.mean), pytest.approx(comparison.p_value))


def test_paired_comparison_with_another_null():
    # Differences -0.02, -0.01 and 0: less than 0, but all above -0.05.
    a, b = [0.50, 0.60, 0.70], [0.52, 0.61, 0.70]
    assert paired_comparison(a, b).p_value == pytest.approx(4 / 8)
    assert paired_comparison(a, b, null=-0.05).p_value == pytest.approx(2 / 8)
    assert paired_comparison(a, b, null=-0.05).mean == pytest.approx(-0.01)
    limited = paired_comparison([0.9, 0.1, 0.5], [0.1, 0.2, 0.3], limits=(-1, 1))
    assert (limited.low, limited.high) == (pytest.approx(-0.839, abs=1e-3), 1)


def brute_force(differences, alternative):
    """Every sign pattern, one after another."""
    observed, patterns = sum(differences), list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [sum(s * d for s, d in zip(pattern, differences, strict=True)) for pattern in patterns]
    extreme = {
        "two-sided": [abs(s) >= abs(observed) - 1e-9 for s in sums],
        "greater": [s >= observed - 1e-9 for s in sums],
        "less": [s <= observed + 1e-9 for s in sums],
    }[alternative]
    return sum(extreme) / len(patterns)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_sign_flips_against_brute_force(n, alternative):
    rng = np.random.default_rng(n)
    # Tenths give ties among the sums, zeros too; the last is symmetric, so its sum is 0.
    ties = rng.integers(-3, 5, n) / 10
    for differences in (rng.standard_normal(n) + 0.5, ties, np.abs(ties), np.linspace(-1, 1, n)):
        assert sign_flip_p_value(differences, alternative) == pytest.approx(brute_force(differences.tolist(), alternative)), differences


def test_sign_flips_by_hand():
    # Three differences of the same sign: two of the eight sign patterns are as extreme.
    assert sign_flip_p_value([0.3, 0.5, 0.4]) == 2 / 8
    assert sign_flip_p_value([0.3, 0.5, 0.4, float("nan")]) == 2 / 8
    assert sign_flip_p_value([0.0, 0.0]) == 1
    assert math.isnan(sign_flip_p_value([]))
    assert sign_flip_p_value([-0.3, -0.5, -0.4], "greater") == 1
    assert sign_flip_p_value([0.1] * 20) == 2 / 2**20


def test_random_sign_flips_agree_with_the_exact_test(monkeypatch):
    differences = np.random.default_rng(1).standard_normal(18) + 0.3
    exact = [sign_flip_p_value(differences, alternative) for alternative in ("two-sided", "greater", "less")]
    assert 0.01 < exact[0] < 0.2
    monkeypatch.setattr("salkit.statistics.EXACT", 10)
    drawn = [sign_flip_p_value(differences, alternative) for alternative in ("two-sided", "greater", "less")]
    # Standard error sqrt(0.05 * 0.95 / 20,000) = 0.0015, twice that for the two-sided value.
    assert drawn == pytest.approx(exact, abs=0.01)
    assert sign_flip_p_value(differences, seed=1) == sign_flip_p_value(differences, seed=1)
    assert len({sign_flip_p_value(differences, seed=seed) for seed in range(5)}) > 1


def test_sign_flips_of_many_images_agree_with_student():
    differences = np.random.default_rng(0).standard_normal(200) + 0.15
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert 0.01 < expected < 0.2
    assert sign_flip_p_value(differences) == pytest.approx(expected, abs=0.015)


def test_a_true_null_is_rejected_as_often_as_stated():
    rng = np.random.default_rng(5)
    p_values = [sign_flip_p_value(rng.standard_normal(8)) for _ in range(1000)]
    # At n = 8 p-values are multiples of 1/128, and six of these are below 0.05. Four standard errors are 0.027.
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(6 / 128, abs=0.027)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, EXACT, EXACT + 1, 100])
@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_no_outcome_is_below_the_least_p_value(n, alternative):
    # The most extreme outcome: all differences of one sign.
    np.testing.assert_equal(least_p_value(n, alternative), sign_flip_p_value([1.0] * n, alternative))


def test_five_images_can_never_be_significant_and_six_can():
    assert least_p_value(5) > 0.05 > least_p_value(6)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last must not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]).tolist() == [1, 1]
    # What was not tested does not count.
    np.testing.assert_allclose(holm([0.01, math.nan, 0.02]), [0.02, math.nan, 0.02])
    assert holm([]).tolist() == []


def test_holm_keeps_false_rejections_among_all_claims_rare():
    rng = np.random.default_rng(6)
    p_values = rng.random((4000, 10))
    any_rejected = np.mean([holm(row).min() < 0.05 for row in p_values])
    # 1 - (1 - 0.05 / 10)^10 = 0.0489; standard error 0.0034.
    assert any_rejected == pytest.approx(0.0489, abs=0.014)


@pytest.mark.parametrize("wrong", [[[0.1]], [-0.1], [1.1]])
def test_holm_refuses_what_is_no_p_value(wrong):
    with pytest.raises(ValueError, match=r"p_values: expected shape \(M,\) and values in \[0, 1\]"):
        holm(wrong)


def test_unknown_alternatives_are_refused():
    for call in (lambda: sign_flip_p_value([0.1], "larger"), lambda: least_p_value(3, "larger")):
        with pytest.raises(ValueError, match=r"alternative: expected one of .*'greater'.*, got 'larger'"):
            call()

import math

import numpy as np
import pytest

from salkit.statistics import bootstrap_interval, paired_comparison


def test_interval_against_a_bootstrap_written_out():
    values = np.random.default_rng(0).random(40)
    interval = bootstrap_interval(values, n_resamples=20_000)
    rng = np.random.default_rng(1)
    means = [rng.choice(values, 40).mean() for _ in range(20_000)]
    assert interval.mean == pytest.approx(values.mean())
    # Two bootstraps of 20,000 resamples each: their ends scatter by about 0.001.
    assert (interval.low, interval.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=4e-3)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        interval = bootstrap_interval(rng.random(50), n_resamples=400)
        hits += interval.low <= 0.5 <= interval.high
    # 95 % nominal; percentile intervals at n = 50 cover a little less, and 200 trials have a standard error of 1.5 points.
    assert 0.89 <= hits / 200 <= 0.99


def test_nan_is_left_out_and_too_few_images_have_no_interval():
    assert bootstrap_interval([1.0, float("nan"), 0.0]).n == 2
    single = bootstrap_interval([0.5, float("nan")])
    assert (single.mean, single.n) == (0.5, 1)
    assert math.isnan(single.low)
    nothing = bootstrap_interval([])
    assert nothing.n == 0
    assert math.isnan(nothing.mean)


def test_constant_values_have_an_interval_of_width_zero():
    interval = bootstrap_interval([0.25] * 6)
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.25, 0.25)


def test_same_seed_same_interval():
    values = np.random.default_rng(3).random(10)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_paired_comparison_sees_what_separate_intervals_cannot():
    rng = np.random.default_rng(4)
    difficulty = rng.random(30)
    better, worse = difficulty + 0.02 + 0.005 * rng.standard_normal(30), difficulty
    comparison = paired_comparison(better, worse)
    assert comparison.verdict() == "reproduced"
    assert comparison.p_value < 0.001
    assert paired_comparison(worse, better).verdict() == "not reproduced"
    assert paired_comparison(worse, better).verdict(-0.05) == "reproduced"
    apart = [bootstrap_interval(v) for v in (better, worse)]
    assert apart[0].low < apart[1].high


def test_permutation_p_value_by_hand():
    # Three differences of the same sign: two of the eight sign patterns are as extreme.
    assert paired_comparison([0.3, 0.5, 0.4], [0.0, 0.0, 0.0]).p_value == pytest.approx(2 / 8)


def test_verdicts_stay_open_without_evidence():
    assert paired_comparison([0.5, 0.4], [0.4, 0.5]).verdict() == "inconclusive"
    assert paired_comparison([0.9], [0.1]).verdict() == "inconclusive"

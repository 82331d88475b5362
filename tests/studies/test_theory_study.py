"""The theory notebook's tables against closed forms and brute force."""

import math

import numpy as np
import pandas as pd
import pytest

from salkit.studies import theory
from salkit.studies import theory_study as ts

DELTA, MARGIN, DS, MARGINS = 0.05, 0.4, (200, 1000), (0.4, 0.8)


@pytest.fixture(scope="module")
def by_d():
    return ts.sweep(DS, [MARGIN], DELTA, n_trials=100)


@pytest.fixture(scope="module")
def against():
    return ts.counterexamples(1000, MARGIN, DELTA, n_trials=100)


@pytest.fixture(scope="module")
def contrast():
    return ts.unconstrained_contrast(DS, MARGIN, DELTA)


@pytest.fixture(scope="module")
def judge(against):
    by_margin = ts.sweep([1000], MARGINS, DELTA, n_trials=100)
    return lambda by_d, contrast: ts.claims(by_d, by_margin, contrast, against, DELTA)


def test_theorem_lengths_are_those_of_the_theory():
    table = ts.theorem_lengths(DS, MARGINS, DELTA)
    assert list(table.columns) == ["d", "margin", "L1", "L2", "L1_finite", "L2_finite"]
    for row in table.itertuples():
        assert row.L1 == theory.completeness_length(row.margin, DELTA, row.d, bound=1)
        assert row.L2_finite == theory.soundness_length(row.margin, DELTA, row.d, bound=1, finite_population=True)
    assert len(table) == 4


def test_sweep_holds_the_theorem_lengths_and_otherwise_odd_ones(by_d):
    for d, rows in by_d.groupby("d"):
        marked = {rows.L1.iloc[0], rows.L2.iloc[0]}
        assert marked == {theory.completeness_length(MARGIN, DELTA, d, bound=1), theory.soundness_length(MARGIN, DELTA, d, bound=1)}
        assert marked <= set(rows.length)
        assert all(length % 2 == 1 for length in set(rows.length) - marked)
        assert rows.length.max() <= d
        again = theory.simulate(theory.toy_terms(d, MARGIN), [int(rows.L1.iloc[0])], n_trials=100)
        pd.testing.assert_frame_equal(rows[rows.length == rows.L1].reset_index(drop=True)[again.columns], again)
    given = by_d[by_d.event == ts.GIVEN]
    # Four standard errors and one trial; the seed is fixed.
    assert (abs(given.probability - given.exact) <= 4 * np.sqrt(given.exact * (1 - given.exact) / 100) + 0.01).all()
    assert by_d[by_d.event != ts.GIVEN].exact.isna().all()


def test_one_shuffle_has_the_expected_shares():
    table = ts.certified_shares(1000, MARGIN, DELTA)
    first = table[table.length == 1].set_index("label")
    np.testing.assert_allclose(first[["share", "expected"]], [[0.7, 0.7], [0.3, 0.3]])
    assert (table[(table.length == table.L2) & (table.label == -1)].share == 0).all()
    assert abs(table.share - table.expected).max() < 0.1


def test_best_mask_and_best_interval_of_each_size():
    table = ts.best_for_wrong_label(200, MARGIN, DELTA).set_index("length")
    terms = 200 * theory.toy_terms(200, MARGIN)
    for length, row in table.iterrows():
        np.testing.assert_allclose(row.any_mask, np.sort(-terms)[-length:].mean(), atol=1e-12)
        np.testing.assert_allclose(row.interval, max(-terms[s : s + length].mean() for s in range(201 - length)), atol=1e-9)
    np.testing.assert_allclose([table.any_mask[200], table.interval[200]], -MARGIN)
    at = theory.soundness_length(MARGIN, DELTA, 200, bound=1)
    assert table.bound[at] <= 0 < math.sqrt(2 * math.log(200 / DELTA) / (at - 1)) - MARGIN


@pytest.mark.parametrize("seed", range(30))
def test_longest_interval_equals_brute_force(seed):
    terms = np.random.default_rng(seed).integers(-3, 5, size=1 + seed)
    certifying = [n for n in range(1, len(terms) + 1) if theory.certified_fraction(terms, n, -1) > 0]
    assert ts.longest_interval(terms) == max(certifying, default=0)


def test_unconstrained_contrast(contrast):
    assert list(contrast["mask"]) == [60, 300]  # d (1 - margin) / 2 wrong-signed terms
    assert contrast.certifies.all()
    assert (contrast.smallest == 1).all()
    assert list(contrast.largest) == [119, 599]  # one right-signed term fewer than wrong-signed ones
    assert (contrast.longest_interval < contrast.L2).all()
    assert (contrast.intervals_at_L2 == 0).all()


def test_counterexamples_agree_with_their_closed_forms(against):
    spread = np.sqrt(against.exact * (1 - against.exact) / 100)
    assert (abs(against.probability - against.exact) <= 4 * spread + 1e-12).all()
    assert set(against.L1) | set(against.L2) <= set(against.length)


def test_concentration_uses_the_length_of_its_event_and_its_bound():
    table = ts.concentration(1000, MARGIN, DELTA, n_trials=50)
    for row in table.itertuples():
        bound = 1.0 if row.assumed == "B = 1" else 1000 / row.n_active
        assert row.length == ts.LENGTH_FOR[row.event](MARGIN, DELTA, 1000, bound=bound)
    assert (table[table.assumed == "B = d/k"].low > 0.9).all()
    one = table[(table.n_active == 1) & (table.assumed == "B = 1")].set_index("event")
    assert one.exact[ts.GIVEN] == pytest.approx(one.length[ts.GIVEN] / 1000)
    assert one.probability[ts.NONE] == 1


def test_claims_are_reproduced_and_would_notice_if_they_were_not(by_d, contrast, judge):
    table = judge(by_d, contrast)
    assert set(table.verdict) == {"reproduced"}
    e1 = table.set_index("claim").loc["x = e_1: given interval at L1 mostly fails"]
    assert e1.exact == theory.completeness_length(MARGIN, DELTA, 1000, bound=1) / 1000
    worse = by_d.copy()
    at = (worse.event == ts.NONE) & (worse.length == worse.L2) & (worse.d == DS[1])
    worse.loc[at, ["probability", "low", "high"]] = 0.5, 0.4, 0.6
    contrast = contrast.assign(certifies=[True, False])
    changed = judge(worse, contrast)
    differs = changed.verdict != table.verdict
    assert list(changed.claim[differs]) == ["no interval at L2 certifies -y: every d", "unconstrained, a mask certifies -y: every d"]
    assert set(changed.verdict[differs]) == {"not reproduced"}
    worse.loc[at, ["low", "high"]] = 0.4, 0.97
    assert "inconclusive" in set(judge(worse, contrast).verdict)


def test_headline_names_every_claim(by_d, contrast, judge):
    table = judge(by_d, contrast)
    values = ts.headline(table, ts.certified_shares(1000, MARGIN, DELTA), contrast)
    assert {values[claim] == ours for claim, ours in zip(table.claim, table.ours, strict=True)} == {True}
    assert values["L2, d = 1000"] == theory.soundness_length(MARGIN, DELTA, 1000, bound=1)
    assert values["share certifying -y at L2"] == 0
    assert all(math.isfinite(value) for value in values.values())

from itertools import product

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from salkit.scores import Protocol
from salkit.statistics import mean_interval
from salkit.studies import protocol_grid as pg
from salkit.studies.protocol_grid import CELL

KEYS = [(softmax, loss) for softmax in ("all", "labels") for loss in ("nll", "released")]
THRESHOLDS = {"paper": (0.01, 0.001), "released": (0.1, 0.1)}
METHODS = ["Ours", "Random", "Ours (gray)"]
NUMBERS = ("completeness", "soundness")
PLANTED = ("labels", "nll", "released", "trapezoid")
"""The cell that the paper's numbers are made from."""


def dataset(prob, curve, methods=METHODS):
    """An evaluation as the grid needs it; its areas are of the mean rule and only say what the dims are."""
    dims = ("method", "image", "label", "kept")
    data = {"prob": (dims[1:3], prob), "insertion_curve": (dims, curve), "insertion_auc": (dims[:3], curve[..., 1:].mean(-1))}
    names = [list(methods), *([f"{dim[0]}{i}" for i in range(n)] for dim, n in zip(dims[1:3], prob.shape, strict=True))]
    made = xr.Dataset(data, dict(zip(dims, [*names, np.arange(curve.shape[-1])], strict=True)))
    return made.assign(prediction=made.prob.argmax("label"))


@pytest.fixture(scope="module")
def grid():
    """Four evaluations of three methods, six images and four labels whose probabilities straddle all thresholds."""
    rng = np.random.default_rng(0)
    made = {}
    for key in KEYS:
        prob = rng.dirichlet([0.3] * 4, 6)
        curve = rng.dirichlet([0.4] * 4, (3, 6, 5)).transpose(0, 1, 3, 2)
        curve[..., -1] = prob
        made[key] = dataset(prob.astype(np.float32), curve.astype(np.float32))
    return made


def equation_1(result, method, thresholds, rule):
    """Worst cases `(completeness or soundness, image)`, number by number."""
    eps_completeness, eps_soundness = THRESHOLDS[thresholds]
    worst = []
    for curves, probs in zip(result.insertion_curve.sel({"method": method}).values, result.prob.values, strict=True):
        alphas, betas = [], []
        for points, f in zip(curves.tolist(), probs.tolist(), strict=True):
            g = sum(points[1:]) / (len(points) - 1)
            if rule == "trapezoid":
                g -= (points[-1] - points[0]) / 2 / (len(points) - 1)
            alphas.append(min(max(g, eps_completeness) / f, 1))
            betas.append(min(max(f, eps_soundness) / g, 1))
        worst.append([min(alphas), min(betas)])
    return np.transpose(worst)


def cell_of(row):
    return row.softmax, row.loss, row.thresholds, row.rule


def paper_of(numbers):
    """Rows of a paper's table from (method, metric) -> value."""
    return pd.DataFrame([(*key, value) for key, value in numbers.items()], columns=["method", "metric", "value"])


@pytest.fixture(scope="module")
def expected(grid):
    """Cell -> worst cases `(method, metric, image)`."""
    keys = product(grid, THRESHOLDS, ("mean", "trapezoid"))
    return {(*key, *how): np.stack([equation_1(grid[key], method, *how) for method in METHODS]) for key, *how in keys}


@pytest.fixture(scope="module")
def known(expected):
    """The paper's numbers `(method, metric)`."""
    return expected[PLANTED].mean(-1)


@pytest.fixture(scope="module")
def paper(known):
    return paper_of(dict(zip(product(METHODS, NUMBERS), known.ravel(), strict=True)))


@pytest.fixture(scope="module")
def table(grid, paper):
    return pg.grid_table(grid, paper)


@pytest.fixture(scope="module")
def summary(grid, paper):
    return pg.cell_summary(grid, paper)


def test_every_cell_against_equation_1_number_by_number(grid, expected):
    for names, scores in pg.cells(grid):
        assert list(names) == ["softmax", "loss", "thresholds", "rule"]
        found = scores.to_array().transpose("method", "variable", "image")
        # Float32 means of five points.
        np.testing.assert_allclose(found, expected[tuple(names.values())], rtol=1e-5)
    seen = [tuple(names.values()) for names, _ in pg.cells(grid)]
    assert sorted(seen) == sorted(product(("all", "labels"), ("nll", "released"), THRESHOLDS, ("mean", "trapezoid")))
    assert len({tuple(worst.mean(-1).ravel()) for worst in expected.values()}) == 16, "cells that are alike would hide a mix-up"


def test_the_order_of_methods_images_and_keys_does_not_matter(grid, table, paper, summary):
    rng = np.random.default_rng(1)
    # Images keep their order: the bootstrap resamples them by place.
    shuffled = {key: grid[key].isel(method=rng.permutation(3)) for key in KEYS[::-1]}
    assert any(list(result.method.values) != METHODS for result in shuffled.values())
    index = [*CELL, "method", "metric"]
    some, other_paper = KEYS[1], paper.sample(frac=1, random_state=0)
    again = pg.grid_table({some: shuffled[some]}, other_paper).set_index(index).sort_index()
    known = table[(table.softmax == some[0]) & (table.loss == some[1])].set_index(index).sort_index()
    pd.testing.assert_frame_equal(again, known)
    same = pg.cell_summary(shuffled, other_paper, n_resamples=50)
    columns = [*CELL, "distance", "distance_completeness", "distance_soundness", "order_soundness", "excluded"]
    # Means over methods in another order round differently.
    pd.testing.assert_frame_equal(
        same[columns].sort_values(CELL, ignore_index=True), summary[columns].sort_values(CELL, ignore_index=True), atol=1e-6
    )


def test_grid_table_has_a_row_for_every_number(table, expected, known):
    assert list(table.columns) == [*CELL, "method", "metric", "paper", "ours", "low", "high", "n", "difference", "p_value", "excluded"]
    assert len(table) == 16 * 3 * 2
    assert (table.n == 6).all()
    assert table.ours.between(table.low, table.high).all()
    for cell, rows in table.groupby(CELL, sort=False):
        ours = expected[cell].mean(-1).ravel()
        assert list(zip(rows.method, rows.metric, strict=True)) == list(product(METHODS, NUMBERS))
        np.testing.assert_allclose(rows.ours, ours, rtol=1e-5)
        np.testing.assert_array_equal(rows.paper, known.ravel())
        np.testing.assert_allclose(rows.difference, ours - known.ravel(), atol=1e-6)
    row = table.iloc[7]
    interval = mean_interval(expected[cell_of(row)][METHODS.index(row.method), NUMBERS.index(row.metric)])
    # Of float32 scores here, of float64 ones there.
    assert [row.low, row.high] == pytest.approx([interval.low, interval.high], rel=1e-5)


def test_far_values_are_excluded(grid, expected):
    # No score is 1.5; a mean that is hit is not excluded; an unknown number excludes nothing.
    one = {KEYS[0]: grid[KEYS[0]]}
    hit = expected[*KEYS[0], "paper", "mean"][0, 1].mean()
    found = pg.grid_table(one, paper_of({("Ours", "completeness"): 1.5, ("Ours", "soundness"): hit, ("Random", "soundness"): -0.5}))
    rows = found[(found.thresholds == "paper") & (found["rule"] == "mean")].set_index(["method", "metric"])
    assert rows.index[rows.excluded].tolist() == [("Ours", "completeness"), ("Random", "soundness")]
    unknown = rows.drop([("Ours", "completeness"), ("Ours", "soundness"), ("Random", "soundness")])
    assert unknown[["paper", "difference"]].isna().all(axis=None)


def test_exclusion_by_hand():
    # Three images of 0 when the truth is 0.58 + 0.005: (1 - 0.575)^3 twice, whatever else scores may be; rounding is granted.
    assert pg.exclusion_p_value(0.0, 0.58, 3) == pytest.approx(2 * 0.425**3)
    assert pg.exclusion_p_value(1.0, 0.58, 4) == pytest.approx(2 * 0.585**4)
    assert pg.exclusion_p_value(0.58, 0.58, 1000) == pg.exclusion_p_value(0.584, 0.58, 1000) == 1.0
    assert np.isnan(pg.exclusion_p_value(0.5, float("nan"), 3))
    assert pg.exclusion_p_value(0.5, 1.0, 3) == pytest.approx(2 * (0.5 * 0.5 / (0.995 * 0.005)) ** -1.5)


def test_the_more_numbers_are_compared_the_more_it_takes_to_exclude_one():
    # Forty images with soundness 0.1 each: p = 2 exp(-40 KL(0.1 || 0.275)) = 0.02 for a paper's value of 0.28.
    methods = [f"m{i}" for i in range(6)]
    prob = np.tile(np.float32([1.0, 0.0005]), (40, 1))
    curve = np.full((6, 40, 2, 3), 0.01, np.float32)
    one = {("all", "nll"): dataset(prob, curve, methods)}
    rest = {(m, metric): 0.5 for m in methods for metric in NUMBERS}

    def excluded(paper):
        found = pg.grid_table(one, paper).set_index(["thresholds", "rule", "method", "metric"])
        return found.loc[("paper", "mean", "m0", "soundness"), ["p_value", "excluded"]].tolist()

    p_value = 2 * np.exp(-40 * (0.1 * np.log(0.1 / 0.275) + 0.9 * np.log(0.9 / 0.725)))
    assert 0.05 / 12 < p_value < 0.05
    assert excluded(paper_of({("m0", "soundness"): 0.28})) == [pytest.approx(p_value, rel=1e-4), True]
    assert excluded(paper_of({**rest, ("m0", "soundness"): 0.28})) == [pytest.approx(p_value, rel=1e-4), False]


def test_the_planted_cell_comes_first(summary, expected, known):
    assert len(summary) == 16
    best = summary.iloc[0]
    assert tuple(best[CELL]) == PLANTED
    # The scores are float32.
    assert best.distance == pytest.approx(0, abs=1e-6)
    assert best[["order_completeness", "order_soundness"]].tolist() == pytest.approx([1.0, 1.0])
    assert best[["excluded", "compared", "verdict", "n"]].tolist() == [0, 6, "compatible", 6]
    assert (summary.distance.diff().dropna() >= 0).all()
    assert (summary.distance[1:] > 0.01).all()
    for row in summary.itertuples():
        means = expected[cell_of(row)].mean(-1)
        assert [row.distance_completeness, row.distance_soundness] == pytest.approx(abs(means - known).mean(0), abs=1e-6)
        assert row.distance == pytest.approx((row.distance_completeness + row.distance_soundness) / 2)
        ranks = [np.argsort(np.argsort(values[:, 1])) for values in (means, known)]
        assert row.order_soundness == pytest.approx(1 - 6 * np.sum((ranks[0] - ranks[1]) ** 2) / (27 - 3))


def test_verdicts_count_the_excluded_numbers_and_say_how_many_images_it_takes(grid, paper):
    # The six images ten times: enough to exclude what is far.
    many = {key: xr.concat([grid[key]] * 10, "image") for key in (KEYS[0], KEYS[2])}
    table, summary = pg.grid_table(many, paper), pg.cell_summary(many, paper, n_resamples=20)
    few = pg.cell_summary(grid, paper, n_resamples=20).set_index(CELL)
    for row in summary.itertuples():
        inside = table[(table[CELL] == list(cell_of(row))).all(axis=1)]
        assert row.excluded == inside.excluded.sum()
        assert row.verdict == ("excluded" if inside.excluded.any() else "compatible")
        needed = few.loc[cell_of(row), "n_to_exclude"]
        assert row.n_to_exclude == needed, "it depends on the means only"
        if np.isfinite(needed):
            enough, less = (min(map(pg.exclusion_p_value, inside.ours, inside.paper, [n] * 6)) * 6 for n in (needed, needed - 1))
            assert enough <= 0.05 * (1 + 1e-9) < less
        else:
            assert row.excluded == 0
    assert {"compatible", "excluded"} == set(summary.verdict), "the draw has cells of either kind"


def test_distance_intervals_against_resampling_by_hand(summary, expected, known):
    draws = np.random.default_rng(3).integers(6, size=(20_000, 6))
    for row in summary.itertuples():
        # All methods on the same draw of images.
        distances = abs(expected[cell_of(row)][..., draws].mean(-1) - known[..., None]).mean((0, 1))
        # 2000 draws know the 2.5 % quantile of a normal variable to 0.06 deviations, here to about 0.1 (skewed, and few images).
        np.testing.assert_allclose([row.low, row.high], np.quantile(distances, [0.025, 0.975]), rtol=0, atol=0.3 * distances.std())


def test_methods_and_metrics_that_only_one_side_has_do_not_count(grid, paper, expected, known):
    more = pd.concat([paper[paper.method != "Random"], paper_of({("Ours", "deletion"): 0.9, ("Phang et al.", "soundness"): 0.9})])
    one = {KEYS[0]: grid[KEYS[0]]}
    for row in pg.cell_summary(one, more, n_resamples=20).itertuples():
        assert row.distance == pytest.approx(abs(expected[cell_of(row)].mean(-1) - known)[[0, 2]].mean(), abs=1e-6)
        assert row.compared == 4


def test_closest_is_the_planted_cell_as_a_protocol(summary):
    assert pg.closest(summary) == Protocol("labels", 0.1, 0.1, "nll", "trapezoid")
    # Whatever stands first.
    paper_first = summary[summary.thresholds == "paper"].sort_values(CELL)
    assert pg.closest(paper_first) == Protocol("all", 0.01, 0.001, "nll", "mean")


@pytest.fixture
def by_hand():
    """Three images, three labels, flat curves: g is the curve's value."""
    prob = np.float32([[0.90, 0.08, 0.0005], [0.20, 0.50, 0.0002], [0.0004, 0.0001, 0.60]])
    g = np.float32([[0.45, 0.05, 0.001], [0.10, 0.40, 0.02], [0.0010, 0.0011, 0.99]])
    curve = np.stack([np.repeat(g[..., None], 3, -1), np.full((3, 3, 3), 0.5, np.float32)])
    # What is shown first does not count under the rule of Definition 3.5.
    curve[..., 0] = 0.0
    return {("all", "nll"): dataset(prob, curve, ["Ours", "Random"])}


def test_requirements_by_hand(by_hand):
    found = pg.requirements(by_hand).set_index("thresholds")
    assert list(found.columns) == ["softmax", "loss", "g_allowed", "g_false", "images_below", "g_over_f", "n"]
    assert found.loc["paper", ["softmax", "loss", "n"]].tolist() == ["all", "nll", 3]
    assert found.g_allowed.to_dict() == pytest.approx({"paper": 0.001 / 0.84, "released": 0.1 / 0.84})
    # Largest false g: 0.05, 0.10, 0.0011; g / f of the prediction: 0.5, 0.8, 1.65.
    assert found.g_false.tolist() == pytest.approx([0.05, 0.05])
    assert found.g_over_f.tolist() == pytest.approx([0.8, 0.8])
    # Another level and method.
    other = pg.requirements(by_hand, "Random", 0.5).set_index("thresholds")
    assert other.g_allowed.to_dict() == pytest.approx({"paper": 0.002, "released": 0.2})
    assert other.g_false.tolist() == pytest.approx([0.5, 0.5])
    assert other.images_below.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("level", [0.5, 0.84])
def test_images_below_are_those_whose_false_labels_are_all_sound(by_hand, grid, level):
    # By hand with the paper's thresholds: image 0 has 0.05 and 0.001 where 0.08 / 0.84 and 0.001 / 0.84 = 0.0012 are allowed: below.
    # Image 1 has 0.02 where 0.0012 is allowed: not, though its other false label may have up to 0.2 / 0.84. Image 2 is below,
    # though its prediction has 0.99 where a false label may have 0.6 / 0.84.
    assert pg.requirements(by_hand).set_index("thresholds").loc["paper", "images_below"] == pytest.approx(2 / 3)
    for row in pg.requirements(grid, level=level).itertuples():
        result = grid[row.softmax, row.loss]
        f, g = result.prob.values, result.insertion_curve.sel({"method": "Ours"}).values[..., 1:].mean(-1)
        sound = g <= np.maximum(f, THRESHOLDS[row.thresholds][1]) / level
        np.put_along_axis(sound, f.argmax(1)[:, None], True, 1)
        assert row.images_below == pytest.approx(sound.all(1).mean())


def test_the_label_free_bound_by_hand():
    # 0.71 = 0.42 * 1 + 0.58 * 0.5: fewer sure images would not do; each needs 0.009 / (1 - h) > 0.5.
    assert pg.label_free_bound(0.71) == pytest.approx((0.42, 1 - 0.009 / 0.5))
    assert pg.label_free_bound(0.5, 0.8, n_labels=3, thresholds="released") == pytest.approx((0.0, 1 - 0.2 / 0.8))
    # Even all of the probability on the others keeps soundness above that: no requirement.
    assert pg.label_free_bound(0.9, 0.5, thresholds="released")[1] == 0.0


def test_the_conclusion_names_the_closest_cell_and_what_is_compatible(grid):
    paper = pd.DataFrame({"method": ["Ours", "Ours"], "metric": list(NUMBERS), "value": [0.5, 0.5]})
    summary, needs = pg.cell_summary(grid, paper, n_resamples=20), pg.requirements(grid)
    text = pg.conclusion(summary, needs)
    best = summary.iloc[0]
    assert f"Closest cell: softmax over {best.softmax}, loss {best.loss}, {best.thresholds} thresholds" in text
    assert f"{(summary.verdict == 'compatible').sum()} of 16" in text

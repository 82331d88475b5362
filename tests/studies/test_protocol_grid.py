from itertools import product

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from salkit.scores import Protocol
from salkit.statistics import bootstrap_interval
from salkit.studies.protocol_grid import (
    CELL,
    cell_summary,
    cells,
    closest,
    conclusion,
    exclusion_p_value,
    grid_table,
    label_free_bound,
    requirements,
)

KEYS = [(softmax, loss) for softmax in ("all", "labels") for loss in ("nll", "released")]
THRESHOLDS = {"paper": (0.01, 0.001), "released": (0.1, 0.1)}
METHODS = ["Ours", "Random", "Ours (gray)"]
NUMBERS = ("completeness", "soundness")


def dataset(prob, curve, methods=METHODS):
    """An evaluation as the grid needs it; its areas are of the mean rule and only say what the dims are."""
    n, k = prob.shape
    made = xr.Dataset(
        {
            "prob": (("image", "label"), prob),
            "insertion_curve": (("method", "image", "label", "kept"), curve),
            "insertion_auc": (("method", "image", "label"), curve[..., 1:].mean(-1)),
        },
        {
            "method": list(methods),
            "image": [f"i{i}" for i in range(n)],
            "label": [f"l{i}" for i in range(k)],
            "kept": np.arange(curve.shape[-1]),
        },
    )
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
    """Worst cases by image, number by number."""
    eps_completeness, eps_soundness = THRESHOLDS[thresholds]
    worst = {name: [] for name in NUMBERS}
    for curves, probs in zip(result.insertion_curve.sel({"method": method}).values, result.prob.values, strict=True):
        alphas, betas = [], []
        for points, f in zip(curves.tolist(), probs.tolist(), strict=True):
            g = sum(points[1:]) / (len(points) - 1)
            if rule == "trapezoid":
                g -= (points[-1] - points[0]) / 2 / (len(points) - 1)
            alphas.append(min(max(g, eps_completeness) / f, 1))
            betas.append(min(max(f, eps_soundness) / g, 1))
        worst["completeness"].append(min(alphas))
        worst["soundness"].append(min(betas))
    return worst


def brute_force(grid):
    """(softmax, loss, thresholds, rule, method) -> metric -> worst cases by image."""
    return {
        (*key, thresholds, rule, str(method)): equation_1(result, method, thresholds, rule)
        for key, result in grid.items()
        for thresholds, rule in product(THRESHOLDS, ("mean", "trapezoid"))
        for method in result.method.values
    }


def paper_of(numbers):
    """Rows of a paper's table from (method, metric) -> value."""
    return pd.DataFrame([(*key, value) for key, value in numbers.items()], columns=["method", "metric", "value"])


@pytest.fixture(scope="module")
def expected(grid):
    return brute_force(grid)


@pytest.fixture(scope="module")
def planted():
    """The cell that the paper's numbers are made from."""
    return ("labels", "nll", "released", "trapezoid")


@pytest.fixture(scope="module")
def paper(expected, planted):
    return paper_of({(m, metric): np.mean(expected[(*planted, m)][metric]) for m in METHODS for metric in NUMBERS})


@pytest.fixture(scope="module")
def table(grid, paper):
    return grid_table(grid, paper)


@pytest.fixture(scope="module")
def summary(grid, paper):
    return cell_summary(grid, paper)


def test_every_cell_against_equation_1_number_by_number(grid, expected):
    seen = []
    for names, scores in cells(grid):
        assert list(names) == ["softmax", "loss", "thresholds", "rule"]
        seen.append(tuple(names.values()))
        for method, metric in product(METHODS, NUMBERS):
            assert set(scores[metric].dims) == {"method", "image"}
            # Float32 means of five points.
            np.testing.assert_allclose(scores[metric].sel({"method": method}), expected[(*seen[-1], method)][metric], rtol=1e-5)
    assert sorted(seen) == sorted(product(("all", "labels"), ("nll", "released"), THRESHOLDS, ("mean", "trapezoid")))
    worst = [tuple(np.mean(expected[(*cell, m)][metric]) for m in METHODS for metric in NUMBERS) for cell in seen]
    assert len(set(worst)) == 16, "cells that are alike would hide a mix-up"


def test_the_order_of_methods_images_and_keys_does_not_matter(grid, table, paper, summary):
    rng = np.random.default_rng(1)
    # Images keep their order: the bootstrap resamples them by place.
    shuffled = {key: grid[key].isel(method=rng.permutation(3)) for key in KEYS[::-1]}
    assert any(list(result.method.values) != METHODS for result in shuffled.values())
    index = [*CELL, "method", "metric"]
    some, other_paper = KEYS[1], paper.sample(frac=1, random_state=0)
    again = grid_table({some: shuffled[some]}, other_paper).set_index(index).sort_index()
    known = table[(table.softmax == some[0]) & (table.loss == some[1])].set_index(index).sort_index()
    pd.testing.assert_frame_equal(again, known)
    same = cell_summary(shuffled, other_paper, n_resamples=50)
    columns = [*CELL, "distance", "distance_completeness", "distance_soundness", "order_soundness", "excluded"]
    # Means over methods in another order round differently.
    pd.testing.assert_frame_equal(
        same[columns].sort_values(CELL, ignore_index=True), summary[columns].sort_values(CELL, ignore_index=True), atol=1e-6
    )


def test_grid_table_has_a_row_for_every_number(table, expected, paper):
    assert list(table.columns) == [*CELL, "method", "metric", "paper", "ours", "low", "high", "n", "difference", "p_value", "excluded"]
    assert len(table) == 16 * 3 * 2
    known = paper.set_index(["method", "metric"]).value
    for row in table.itertuples():
        ours = np.mean(expected[row.softmax, row.loss, row.thresholds, row.rule, row.method][row.metric])
        assert row.ours == pytest.approx(ours, rel=1e-5)
        assert row.paper == known[row.method, row.metric]
        assert row.difference == pytest.approx(ours - row.paper, abs=1e-6)
        assert row.low <= row.ours <= row.high
        assert row.n == 6
    row = table.iloc[7]
    interval = bootstrap_interval(expected[tuple(row[[*CELL, "method"]])][row.metric])
    # Of float32 scores here, of float64 ones there.
    assert [row.low, row.high] == pytest.approx([interval.low, interval.high], rel=1e-5)


def test_far_values_are_excluded(grid, expected):
    # No score is 1.5; a mean that is hit is not excluded; an unknown number excludes nothing.
    one = {KEYS[0]: grid[KEYS[0]]}
    hit = np.mean(expected[(*KEYS[0], "paper", "mean", "Ours")]["soundness"])
    found = grid_table(one, paper_of({("Ours", "completeness"): 1.5, ("Ours", "soundness"): hit, ("Random", "soundness"): -0.5}))
    rows = found[(found.thresholds == "paper") & (found["rule"] == "mean")].set_index(["method", "metric"])
    assert rows.loc[("Ours", "completeness"), "excluded"]
    assert rows.loc[("Random", "soundness"), "excluded"]
    assert not rows.loc[("Ours", "soundness"), "excluded"]
    unknown = rows.drop([("Ours", "completeness"), ("Ours", "soundness"), ("Random", "soundness")])
    assert unknown.paper.isna().all()
    assert unknown.difference.isna().all()
    assert not unknown.excluded.any()


def test_exclusion_by_hand():
    # Three images of 0 when the truth is 0.58 + 0.005: (1 - 0.575)^3 twice, whatever else scores may be; rounding is granted.
    assert exclusion_p_value(0.0, 0.58, 3) == pytest.approx(2 * 0.425**3)
    assert exclusion_p_value(1.0, 0.58, 4) == pytest.approx(2 * 0.585**4)
    assert exclusion_p_value(0.58, 0.58, 1000) == 1.0
    assert exclusion_p_value(0.584, 0.58, 1000) == 1.0
    assert np.isnan(exclusion_p_value(0.5, float("nan"), 3))
    assert exclusion_p_value(0.5, 1.0, 3) == pytest.approx(2 * (0.5 * 0.5 / (0.995 * 0.005)) ** -1.5)


@pytest.mark.parametrize(("truth", "scale"), [(0.58, 1.0), (0.1, 1.0), (0.84, 0.2)])
def test_a_true_value_is_rarely_excluded(truth, scale):
    # Beta scores of that mean: nearly coins, or spread in between.
    rng = np.random.default_rng(0)
    for n in (2, 5, 40):
        means = rng.beta(truth * scale, (1 - truth) * scale, size=(2_000, n)).mean(1)
        wrong = np.mean([exclusion_p_value(mean, truth, n) < 0.05 for mean in means])
        assert wrong <= 0.05


def test_the_more_numbers_are_compared_the_more_it_takes_to_exclude_one():
    # Forty images with soundness 0.1 each: p = 2 exp(-40 KL(0.1 || 0.275)) = 0.02 for a paper's value of 0.28.
    methods = [f"m{i}" for i in range(6)]
    prob = np.tile(np.float32([1.0, 0.0005]), (40, 1))
    curve = np.full((6, 40, 2, 3), 0.01, np.float32)
    one = {("all", "nll"): dataset(prob, curve, methods)}
    rest = {(m, metric): 0.5 for m in methods for metric in NUMBERS}

    def excluded(paper):
        found = grid_table(one, paper).set_index(["thresholds", "rule", "method", "metric"])
        return found.loc[("paper", "mean", "m0", "soundness"), ["p_value", "excluded"]].tolist()

    p_value = 2 * np.exp(-40 * (0.1 * np.log(0.1 / 0.275) + 0.9 * np.log(0.9 / 0.725)))
    assert 0.05 / 12 < p_value < 0.05
    assert excluded(paper_of({("m0", "soundness"): 0.28})) == [pytest.approx(p_value, rel=1e-4), True]
    assert excluded(paper_of({**rest, ("m0", "soundness"): 0.28})) == [pytest.approx(p_value, rel=1e-4), False]


def test_the_planted_cell_comes_first(summary, planted, expected, paper):
    assert len(summary) == 16
    best = summary.iloc[0]
    assert tuple(best[CELL]) == planted
    # The scores are float32.
    assert best.distance == pytest.approx(0, abs=1e-6)
    assert best[["order_completeness", "order_soundness"]].tolist() == pytest.approx([1.0, 1.0])
    assert best[["excluded", "compared", "verdict", "n"]].tolist() == [0, 6, "compatible", 6]
    assert (summary.distance.diff().dropna() >= 0).all()
    assert (summary.distance[1:] > 0.01).all()
    known = paper.set_index(["method", "metric"]).value
    for row in summary.itertuples():
        cell = (row.softmax, row.loss, row.thresholds, row.rule)
        means = {(m, metric): np.mean(expected[(*cell, m)][metric]) for m in METHODS for metric in NUMBERS}
        for metric, distance in (("completeness", row.distance_completeness), ("soundness", row.distance_soundness)):
            assert distance == pytest.approx(np.mean([abs(means[m, metric] - known[m, metric]) for m in METHODS]), abs=1e-6)
        assert row.distance == pytest.approx((row.distance_completeness + row.distance_soundness) / 2)
        ranks = [np.argsort(np.argsort([values[m, "soundness"] for m in METHODS])) for values in (means, known)]
        assert row.order_soundness == pytest.approx(1 - 6 * np.sum((ranks[0] - ranks[1]) ** 2) / (27 - 3))


def test_verdicts_count_the_excluded_numbers_and_say_how_many_images_it_takes(grid, paper):
    # The six images ten times: enough to exclude what is far.
    many = {key: xr.concat([grid[key]] * 10, "image") for key in (KEYS[0], KEYS[2])}
    table, summary = grid_table(many, paper), cell_summary(many, paper, n_resamples=20)
    few = cell_summary(grid, paper, n_resamples=20).set_index(CELL)
    for row in summary.itertuples():
        inside = table[(table[CELL] == [row.softmax, row.loss, row.thresholds, row.rule]).all(axis=1)]
        assert row.excluded == inside.excluded.sum()
        assert row.verdict == ("excluded" if inside.excluded.any() else "compatible")
        needed = few.loc[(row.softmax, row.loss, row.thresholds, row.rule), "n_to_exclude"]
        assert row.n_to_exclude == needed, "it depends on the means only"
        p_values = [exclusion_p_value(r.ours, r.paper, int(n)) for r in inside.itertuples() for n in [min(needed, 10**6)]]
        if np.isfinite(needed):
            assert min(p_values) * len(inside) <= 0.05 * (1 + 1e-9)
            assert min(exclusion_p_value(r.ours, r.paper, int(needed) - 1) for r in inside.itertuples()) * len(inside) > 0.05
        else:
            assert row.excluded == 0
    assert {"compatible", "excluded"} == set(summary.verdict), "the draw has cells of either kind"


def test_distance_intervals_against_resampling_by_hand(summary, expected, paper):
    known = paper.set_index(["method", "metric"]).value
    draws = np.random.default_rng(3).integers(6, size=(20_000, 6))
    for row in summary.itertuples():
        cell = (row.softmax, row.loss, row.thresholds, row.rule)
        # All methods on the same draw of images.
        off = [np.array(expected[(*cell, m)][s])[draws].mean(1) - known[m, s] for m in METHODS for s in NUMBERS]
        distances = np.abs(off).mean(0)
        # 2000 draws know the 2.5 % quantile of a normal variable to 0.06 deviations, here to about 0.1 (skewed, and few images).
        expected_ends = np.quantile(distances, [0.025, 0.975])
        np.testing.assert_allclose([row.low, row.high], expected_ends, rtol=0, atol=0.3 * distances.std())


def test_methods_and_metrics_that_only_one_side_has_do_not_count(grid, paper, expected):
    more = pd.concat([paper[paper.method != "Random"], paper_of({("Ours", "deletion"): 0.9, ("Phang et al.", "soundness"): 0.9})])
    one = {KEYS[0]: grid[KEYS[0]]}
    known = paper.set_index(["method", "metric"]).value
    for row in cell_summary(one, more, n_resamples=20).itertuples():
        cell = (row.softmax, row.loss, row.thresholds, row.rule)
        both = [np.mean(expected[(*cell, m)][s]) - known[m, s] for m in ("Ours", "Ours (gray)") for s in NUMBERS]
        assert row.distance == pytest.approx(np.mean(np.abs(both)), abs=1e-6)
        assert row.compared == 4


def test_closest_is_the_planted_cell_as_a_protocol(summary):
    assert closest(summary) == Protocol("labels", 0.1, 0.1, "nll", "trapezoid")
    # Whatever stands first.
    paper_first = summary[summary.thresholds == "paper"].sort_values(CELL)
    assert closest(paper_first) == Protocol("all", 0.01, 0.001, "nll", "mean")


@pytest.fixture
def by_hand():
    """Three images, three labels, flat curves: g is the curve's value."""
    prob = np.float32([[0.90, 0.08, 0.0005], [0.20, 0.50, 0.0002], [0.0004, 0.0001, 0.99]])
    g = np.float32([[0.45, 0.05, 0.001], [0.10, 0.40, 0.02], [0.0010, 0.0011, 0.99]])
    curve = np.stack([np.repeat(g[..., None], 3, -1), np.full((3, 3, 3), 0.5, np.float32)])
    # What is shown first does not count under the rule of Definition 3.5.
    curve[..., 0] = 0.0
    return {("all", "nll"): dataset(prob, curve, ["Ours", "Random"])}


def test_requirements_by_hand(by_hand):
    found = requirements(by_hand).set_index("thresholds")
    assert list(found.columns) == ["softmax", "loss", "g_allowed", "g_false", "images_below", "g_over_f", "n"]
    assert found.loc["paper", ["softmax", "loss", "n"]].tolist() == ["all", "nll", 3]
    assert found.g_allowed.to_dict() == pytest.approx({"paper": 0.001 / 0.84, "released": 0.1 / 0.84})
    # Largest false g: 0.05, 0.10, 0.0011; g / f of the prediction: 0.5, 0.8, 1.
    assert found.g_false.tolist() == pytest.approx([0.05, 0.05])
    assert found.g_over_f.tolist() == pytest.approx([0.8, 0.8])
    # Another level and method.
    other = requirements(by_hand, "Random", 0.5).set_index("thresholds")
    assert other.g_allowed.to_dict() == pytest.approx({"paper": 0.002, "released": 0.2})
    assert other.g_false.tolist() == pytest.approx([0.5, 0.5])
    assert other.images_below.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("level", [0.5, 0.84])
def test_images_below_are_those_whose_false_labels_are_all_sound(by_hand, grid, level):
    # By hand with the paper's thresholds: image 0 has 0.05 and 0.001 where 0.08 / 0.84 and 0.001 / 0.84 = 0.0012 are allowed: below.
    # Image 1 has 0.02 where 0.0012 is allowed: not, though its other false label may have up to 0.2 / 0.84. Image 2 is below.
    assert requirements(by_hand).set_index("thresholds").loc["paper", "images_below"] == pytest.approx(2 / 3)
    for row in requirements(grid, level=level).itertuples():
        result = grid[row.softmax, row.loss]
        eps = THRESHOLDS[row.thresholds][1]
        g = result.insertion_curve.sel({"method": "Ours"}).values[..., 1:].mean(-1)
        below = []
        for f_image, g_image in zip(result.prob.values, g, strict=True):
            false = [a for a in range(4) if a != f_image.argmax()]
            below.append(all(g_image[a] <= max(f_image[a], eps) / level for a in false))
        assert row.images_below == pytest.approx(np.mean(below))


def test_the_label_free_bound_by_hand():
    # 0.71 = 0.42 * 1 + 0.58 * 0.5: fewer sure images would not do; each needs 0.009 / (1 - h) > 0.5.
    assert label_free_bound(0.71) == pytest.approx((0.42, 1 - 0.009 / 0.5))
    assert label_free_bound(0.5, 0.8, n_labels=3, thresholds="released") == pytest.approx((0.0, 1 - 0.2 / 0.8))
    # Even all of the probability on the others keeps soundness above that: no requirement.
    assert label_free_bound(0.9, 0.5, thresholds="released")[1] == 0.0


def test_the_label_free_bound_holds_for_means_over_images():
    rng = np.random.default_rng(4)
    eps, n_labels, met = THRESHOLDS["paper"][1], 10, 0
    for _ in range(300):
        g = rng.dirichlet([0.05] * n_labels, size=20)
        g = rng.uniform(size=(20, 1)) ** 8 * g
        g[:, 0] += 1 - g.sum(1)
        soundness = np.minimum(eps / np.maximum(g[:, 1:].max(1), 1e-12), 1)
        at_least = rng.uniform(0.1, 0.9)
        share, h = label_free_bound(soundness.mean(), at_least, n_labels)
        sure = (g[:, 0] >= h - 1e-12).mean()
        assert sure >= share
        met += 0 < share
    assert met > 50, "a bound that is always 0 would hold too"


def test_the_conclusion_names_the_closest_cell_and_what_is_compatible(grid):
    paper = pd.DataFrame({"method": ["Ours", "Ours"], "metric": list(NUMBERS), "value": [0.5, 0.5]})
    summary, needs = cell_summary(grid, paper, n_resamples=20), requirements(grid)
    text = conclusion(summary, needs)
    best = summary.iloc[0]
    assert f"Closest cell: softmax over {best.softmax}, loss {best.loss}, {best.thresholds} thresholds" in text
    assert f"{(summary.verdict == 'compatible').sum()} of 16" in text

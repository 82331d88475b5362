from itertools import product

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from salkit.scores import Protocol
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
    # Images of the recorded study have label lists of their own.
    made = made.assign_coords(label_name=(("image", "label"), np.full(prob.shape, "cat")))
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
    # Images keep their order: they are resampled by place.
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
    for row in table[:12].itertuples():
        scores = expected[cell_of(row)][METHODS.index(row.method), NUMBERS.index(row.metric)]
        ends = stats.ttest_1samp(scores, 0.0).confidence_interval()
        # Of float32 scores here, of float64 ones there.
        assert [row.low, row.high] == pytest.approx([max(ends.low, 0), min(ends.high, 1)], abs=1e-5)
    # Not all ends are cut off.
    assert table.low.gt(0).any()
    assert table.high.lt(1).any()


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
    assert best[["excluded", "compared", "n", "behind", "told_apart"]].tolist() == [0, 6, 6, 0.0, False]
    assert (summary.distance.diff().dropna() >= 0).all()
    assert (summary.distance[1:] > 0.01).all()
    for row in summary.itertuples():
        means = expected[cell_of(row)].mean(-1)
        assert [row.distance_completeness, row.distance_soundness] == pytest.approx(abs(means - known).mean(0), abs=1e-6)
        assert row.distance == pytest.approx((row.distance_completeness + row.distance_soundness) / 2)
        ranks = [np.argsort(np.argsort(values[:, 1])) for values in (means, known)]
        assert row.order_soundness == pytest.approx(1 - 6 * np.sum((ranks[0] - ranks[1]) ** 2) / (27 - 3))


def test_excluded_numbers_are_those_of_the_table(grid, paper):
    # The six images ten times: enough to exclude what is far.
    many = {key: xr.concat([grid[key]] * 10, "image") for key in (KEYS[0], KEYS[2])}
    table, summary = pg.grid_table(many, paper), pg.cell_summary(many, paper, n_resamples=20)
    for row in summary.itertuples():
        assert row.excluded == table[(table[CELL] == list(cell_of(row))).all(axis=1)].excluded.sum()
    assert summary.excluded.min() == 0 < summary.excluded.max(), "the draw has cells of either kind"


@pytest.fixture(scope="module")
def by_hand_draws(expected, known):
    """Cell -> its distance on 20,000 resamples of the images, the same for all cells."""
    draws = np.random.default_rng(3).integers(6, size=(20_000, 6))
    return {cell: abs(worst[..., draws].mean(-1) - known[..., None]).mean((0, 1)) for cell, worst in expected.items()}


def half_width(draws, n, comparisons=1):
    return stats.t.ppf(1 - 0.025 / comparisons, n - 1) * np.std(draws) * np.sqrt(n / (n - 1))


def test_distance_intervals_against_resampling_by_hand(summary, by_hand_draws):
    for row in summary.itertuples():
        half = half_width(by_hand_draws[cell_of(row)], 6)
        # 10,000 draws know a standard error to 1 %.
        assert [row.low, row.high] == pytest.approx([max(row.distance - half, 0), row.distance + half], abs=0.05 * half)


def test_cells_are_compared_on_the_same_images(summary, by_hand_draws):
    others = [draws for cell, draws in by_hand_draws.items() if cell != PLANTED]
    first = np.min(others, axis=0) > by_hand_draws[PLANTED]
    assert summary.closest_in[0] == pytest.approx(first.mean(), abs=0.02)
    assert summary.closest_in.sum() == pytest.approx(1)
    for row in summary[1:].itertuples():
        difference = by_hand_draws[cell_of(row)] - by_hand_draws[PLANTED]
        half = half_width(difference, 6)
        assert row.behind == pytest.approx(row.distance - summary.distance[0])
        assert [row.behind_low, row.behind_high] == pytest.approx([row.behind - half, row.behind + half], abs=0.05 * half)
        margin = row.behind - half_width(difference, 6, comparisons=15) - 0.005
        assert row.told_apart == (margin > 0) or abs(margin) < 0.003
    assert 0 < summary.told_apart.sum() < 15, "the draw has cells of either kind"


def two_cells(easy, hard, method="Ours"):
    """A grid of two losses whose predicted label has g of `easy` and of `hard`, (image,) each, where f is 1; all is sound."""
    grid = {}
    for loss, g in (("nll", easy), ("released", hard)):
        curve = np.zeros((1, len(g), 2, 3), np.float32)
        curve[0, :, 0] = np.asarray(g)[:, None]
        grid["all", loss] = dataset(np.tile(np.float32([1, 0]), (len(g), 1)), curve, [method])
    return grid


def test_a_difference_common_to_all_images_is_told_apart_though_images_vary():
    rng = np.random.default_rng(0)
    g, paper = rng.uniform(0.3, 0.8, 10), paper_of({("Ours", "completeness"): 0.9, ("Ours", "soundness"): 1.0})
    summary = pg.cell_summary(two_cells(g, g - 0.1 + rng.uniform(-0.01, 0.01, 10)), paper)
    closest = summary[summary.loss == "nll"]
    assert (closest.high - closest.low).min() > 0.05, "apart by less than either interval"
    assert not closest.told_apart.any()
    assert summary[summary.loss == "released"].told_apart.all()
    # The paper's rounding cannot be told from a difference of its size, however sure that is.
    tiny = pg.cell_summary(two_cells(g, g - 0.008), paper)
    assert tiny[tiny.loss == "released"].behind.tolist() == pytest.approx([0.004] * 4, abs=1e-5)
    assert (tiny[tiny.loss == "released"].behind_low > 0).all()
    assert not tiny.told_apart.any()


def test_different_images_cannot_be_paired(grid, paper):
    other = dict(grid) | {KEYS[1]: grid[KEYS[1]].isel(image=slice(5, None, -1))}
    with pytest.raises(ValueError, match="grid: expected the same images"):
        pg.cell_summary(other, paper)


def test_one_image_has_no_interval(grid, paper):
    one = pg.cell_summary({key: result.isel(image=[0]) for key, result in grid.items()}, paper, n_resamples=5)
    assert one[["low", "high", "behind_low", "behind_high"]].isna().all(axis=None)
    assert not one.told_apart.any()


def test_intervals_cover_at_ten_images():
    # Eight methods, two metrics, skewed scores with an effect of the image; the distance of the true means is what has to be covered.
    rng, trials, n = np.random.default_rng(0), 400, 10
    paper, hits = rng.uniform(0.3, 0.9, 16), 0
    a = rng.uniform(0.3, 2, (16, 1))
    truth = abs((a / (1 + a)).T - paper).mean()
    for _ in range(trials):
        # Uniform numbers to the power of 1 / a have a mean of a / (1 + a).
        scores = stats.norm.cdf((rng.normal(size=n) + rng.normal(size=(16, n))) / 2**0.5) ** (1 / a)
        drawn = abs(pg._resample(scores, 200, 0) - paper[:, None]).mean(0)
        low, high = pg.t_interval(abs(scores.mean(-1) - paper).mean(), drawn.std(), n)
        hits += low <= truth <= high
    # 96 % in the long run. A percentile interval covers 80 %: resampled distances are too large.
    assert hits / trials > 0.92


@pytest.fixture(scope="module")
def effects(grid, paper):
    return pg.main_effects(grid, paper)


def test_main_effects_against_every_pair_of_cells(effects, expected, known, by_hand_draws):
    assert len(effects) == 4 * 3
    levels = dict(zip(CELL, (("all", "labels"), ("nll", "released"), ("paper", "released"), ("mean", "trapezoid")), strict=True))
    for row in effects.itertuples():
        before, after = levels[row.choice]
        assert (row.before, row.after, row.n) == (before, after, 6)
        at = CELL.index(row.choice)
        pairs = [(cell, (*cell[:at], after, *cell[at + 1 :])) for cell in expected if cell[at] == before]
        assert len(pairs) == 8
        if row.quantity == "distance":
            changes = [abs(expected[b].mean(-1) - known).mean() - abs(expected[a].mean(-1) - known).mean() for a, b in pairs]
            half = half_width(np.mean([by_hand_draws[b] - by_hand_draws[a] for a, b in pairs], axis=0), 6)
        else:
            metric = NUMBERS.index(row.quantity)
            per_image = [(expected[b] - expected[a])[:, metric].mean(0) for a, b in pairs]
            changes = np.mean(per_image, axis=1)
            # Of a mean, it is the ordinary t interval.
            half = stats.t.ppf(0.975, 5) * stats.sem(np.mean(per_image, axis=0))
        assert [row.change, row.least, row.most] == pytest.approx([np.mean(changes), min(changes), max(changes)], abs=1e-6)
        assert [row.low, row.high] == pytest.approx([row.change - half, row.change + half], abs=0.05 * half)


def test_main_effects_need_all_cells(grid, paper):
    with pytest.raises(ValueError, match=r"grid: expected all four pairs of softmax and loss, got \[\('all', 'nll'\)\]"):
        pg.main_effects({KEYS[0]: grid[KEYS[0]]}, paper)


@pytest.mark.parametrize(("points", "apart"), [(8, 0.056), (28, 0.016)])
def test_few_points_invent_a_difference_between_the_rules(points, apart):
    # A label that goes from 0 to 0.9 in one go, at f = 1: completeness is g itself.
    curve = np.zeros((1, 2, 2, points + 1), np.float32)
    curve[..., 0, :] = np.linspace(0, 0.9, points + 1)
    one = {("all", "nll"): dataset(np.tile(np.float32([1, 0]), (2, 1)), curve, ["Ours"])}
    table = pg.grid_table(one, paper_of({("Ours", "completeness"): 0.5})).query("metric == 'completeness' and thresholds == 'paper'")
    ours = table.set_index("rule").ours
    assert ours["mean"] - ours["trapezoid"] == pytest.approx(0.9 / (2 * points), abs=1e-6)
    assert ours["mean"] - ours["trapezoid"] == pytest.approx(apart, abs=5e-4)


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


@pytest.mark.parametrize("planted", [("all", "nll", "paper", "mean"), ("labels", "released", "released", "trapezoid")])
def test_the_conclusion_follows_the_numbers_whichever_cell_wins(grid, expected, planted):
    paper = paper_of(dict(zip(product(METHODS, NUMBERS), (expected[planted].mean(-1) + 0.01).ravel(), strict=True)))
    summary, needs, effects = pg.cell_summary(grid, paper, n_resamples=200), pg.requirements(grid), pg.main_effects(grid, paper, 200)
    text = pg.conclusion(summary, needs, effects)
    best, second = summary.iloc[0], summary.iloc[1]
    assert tuple(best[CELL]) == planted
    names = ["softmax over {}, loss {}, {} thresholds, {} rule".format(*row[CELL]) for _, row in summary.iterrows()]
    assert f"Closest cell: {names[0]}: {best.distance:.3f} [{best.low:.3f}, {best.high:.3f}] away." in text
    assert f"completeness {best.order_completeness:.2f}, soundness {best.order_soundness:.2f}" in text
    assert f"Runner-up: {names[1]}: {second.distance:.3f}" in text
    assert f"{second.behind:.3f} [{second.behind_low:.3f}, {second.behind_high:.3f}] behind the closest" in text
    assert "Chosen after seeing the data" in text
    tied = [name for name, apart in zip(names[1:], summary.told_apart[1:], strict=True) if not apart]
    assert f"rounding allowed for): {len(tied)} of 15 cells" in text
    listed = [line.strip().split(":")[0] for line in text.splitlines() if line.startswith("  softmax over")]
    assert listed == tied
    place = names.index("softmax over all, loss nll, paper thresholds, mean rule") + 1
    assert f"is number {place} of 16" in text
    other = next(i for i, row in summary.iterrows() if tuple(row[CELL[:3]]) != planted[:3])
    assert f"differs in more than the rule: {names[other]}:" in text
    assert "6 images (too few: an answer needs at least ten), 6 of the paper's numbers" in text
    for row in effects.itertuples():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {row.choice}, {row.before} to {row.after}:")]
        assert f"{row.quantity} {row.change:+.3f} [{row.low:+.3f}, {row.high:+.3f}] ({row.least:+.2f} to {row.most:+.2f})" in line


def test_verdicts_on_a_cell_behind_the_closest():
    def said(low, told_apart):
        return pg._farther(pd.Series({"behind": 0.1, "behind_low": low, "behind_high": 0.15, "told_apart": told_apart}))

    assert "(told apart, all cells" in said(0.05, True)
    assert "(farther, but not told apart once" in said(0.05, False)
    assert said(-0.05, False).endswith("(not told apart)")


def test_the_earlier_run_is_shipped():
    earlier = pg.earlier_cells()
    assert sorted(earlier[CELL].itertuples(index=False, name=None)) == sorted(product(*pg.CHOICES.values()))
    # As notebook 06 had it.
    assert earlier.iloc[0][[*CELL, "composites"]].tolist() == ["all", "nll", "released", "mean", 12]
    assert earlier.distance.round(2).tolist()[:4] == [0.22, 0.22, 0.22, 0.24]


def test_then_and_now_says_whether_the_answer_turned_over(summary):
    images, names = "a b c", "softmax over {}, loss {}, {} thresholds, {} rule"
    same = summary[CELL].assign(distance=summary.distance + 0.1, composites=12, points=8, images=images)
    text = pg.then_and_now(same, summary)
    assert "With masks of 12 composites, curves of 8 points and 3 images the closest cell was " + names.format(*PLANTED) in text
    assert "the answer stays." in text
    assert "now number" not in text
    assert "then and now: 1.00" in text
    # The fifth of now was the first of then.
    other = same.assign(distance=same.distance.where(same.index != 4, 0.0)).sort_values("distance", ignore_index=True)
    text = pg.then_and_now(other, summary, same_images=summary.iloc[[2, 0, 1]])
    assert f"it is {names.format(*PLANTED)} (0.000 away): the answer turned over." in text
    assert f"The earlier answer is now number 5 of 16: {summary.distance[4]:.3f} away" in text
    assert f"the earlier images alone (6) the closest is {names.format(*summary.iloc[2][CELL])}" in text

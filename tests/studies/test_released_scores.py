"""Bounds over every f against linear programs, random f, and Equation 1."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.optimize import linprog

from salkit.report.tables import paper_values
from salkit.scores import completeness, soundness
from salkit.studies import released_scores as rs
from salkit.studies.protocol_grid import THRESHOLDS

PAIRS = list(THRESHOLDS.values())


def worst(g, f, eps):
    """Worst cases of one image by Equation 1; `f` may be (..., A)."""
    f = np.asarray(f, np.float64)
    with np.errstate(divide="ignore"):
        return np.minimum(np.maximum(g, eps[0]) / f, 1).min(-1), np.minimum(np.maximum(f, eps[1]) / np.maximum(g, 1e-300), 1).min(-1)


def program(g, eps, c, s, sure, total=1.0):
    """An f whose worst cases are at least c and s, with some label at `sure` or above, by linear programs; None if there is none."""
    needed = [s * one if s * one > eps[1] + 1e-12 else 0.0 for one in g]
    allowed = [min(1.0, max(one, eps[0]) / c) for one in g]
    for predicted in range(len(g) if sure else 1):
        low = [max(one, sure) if a == predicted else one for a, one in enumerate(needed)]
        if all(a <= b + 1e-12 for a, b in zip(low, allowed, strict=True)):
            bounds = [(a, max(a, b)) for a, b in zip(low, allowed, strict=True)]
            found = linprog(np.zeros(len(g)), A_eq=np.ones((1, len(g))), b_eq=[total], bounds=bounds)
            if found.status == 0:
                return found.x
    return None


def largest(possible):
    """The largest number in [0, 1] that is possible, by bisection."""
    low, high = 0.0, 1.0
    if possible(high):
        return high
    while high - low > 2e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return low


def some_areas(n, labels, seed=0):
    """Areas of many shapes: nearly all on one label, spread, and below the thresholds."""
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(n, labels)) ** rng.choice([0.3, 1, 3, 8], size=(n, 1))


@pytest.mark.parametrize("sure", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("eps", PAIRS)
def test_bounds_against_linear_programs(eps, sure):
    areas = np.vstack([some_areas(2, 4), [[0.8, 0.8, 0.0, 0.05], [0.002, 0.0, 0.001, 0.003]]])
    complete, sound = rs.best_possible(areas, *eps, sure)
    for g, c, s in zip(areas, complete, sound, strict=True):
        assert c == pytest.approx(largest(lambda c, g=g: c == 0 or program(g, eps, c, 0.0, sure) is not None), abs=4e-5)
        assert s == pytest.approx(largest(lambda s, g=g: program(g, eps, 1e-9, s, sure) is not None), abs=4e-5)


@pytest.mark.parametrize("sure", [0.0, 0.7, 0.95])
@pytest.mark.parametrize("eps", PAIRS)
def test_both_bounds_are_reached_by_one_f(eps, sure):
    # So the most sound f at a given completeness is as sound as any, up to the largest completeness: the frontier is a corner.
    areas = some_areas(12, 10, seed=1)
    for g, c, s in zip(areas, *rs.best_possible(areas, *eps, sure), strict=True):
        f = program(g, eps, c * (1 - 1e-7), s * (1 - 1e-7), sure)
        assert f is not None
        assert f.sum() == pytest.approx(1)
        assert f.max() >= sure - 1e-9
        reached = completeness(g, f.clip(0, 1), eps[0]).min(), soundness(g, f.clip(0, 1), eps[1]).min()
        assert [float(value) for value in reached] == pytest.approx([c, s], abs=1e-6) or (reached[0] >= c - 1e-6 and reached[1] >= s - 1e-6)


@pytest.mark.parametrize("eps", PAIRS)
def test_no_random_f_does_better(eps):
    rng = np.random.default_rng(0)
    areas = np.vstack([some_areas(6, 3, seed=2), [[0.5, 0.4, 0.3]]])
    f = np.concatenate([rng.dirichlet(np.full(3, spread), 40_000) for spread in (0.1, 0.5, 1.0)])
    for sure in (0.0, 0.8):
        chosen = f[f.max(1) >= sure]
        for g, c, s in zip(areas, *rs.best_possible(areas, *eps, sure), strict=True):
            complete, sound = worst(g, chosen, eps)
            assert complete.max() <= c + 1e-12
            assert sound.max() <= s + 1e-12
            # Enough draws come close to both at once.
            assert np.minimum(complete / c, sound / s).max() > 0.93


def test_a_softmax_over_more_classes_is_no_sounder():
    for g in some_areas(3, 4, seed=3):
        for eps in PAIRS:
            (_, sound) = rs.best_possible(g[None], *eps)
            assert largest(lambda s, g=g, eps=eps: program(g, eps, 1e-9, s, 0.0, 0.7) is not None) <= sound[0] + 4e-5


def test_bounds_by_hand():
    # f = (0.5, 0.5) for two equal labels; with 0.9 for one the other keeps 0.1. Completeness 0.8 / 0.9.
    complete, sound = rs.best_possible(np.array([[0.8, 0.8]]), 0.01, 0.001, 0.9)
    assert [complete[0], sound[0]] == pytest.approx([0.8 / 0.9, 0.1 / 0.8])
    # One label is below the threshold, 0.1 / 0.15: f has to cover the others only, 1 / 1.5 = 0.1 / 0.15.
    assert rs.best_possible(np.array([[0.9, 0.6, 0.15]]), 0.1, 0.1)[1][0] == pytest.approx(1 / 1.5)
    # Areas that sum to less than 1, all above the threshold of completeness: f = g / sum.
    assert rs.best_possible(np.array([[0.3, 0.2]]), 0.01, 0.001)[0][0] == pytest.approx(0.5)
    assert [value.tolist() for value in rs.best_possible(np.zeros((1, 2)), 0.0, 0.0)] == [[0.0], [1.0]]


def test_surer_predictions_allow_less_and_labels_have_no_order():
    areas = some_areas(20, 10, seed=4)
    shuffled = areas[:, np.random.default_rng(0).permutation(10)]
    for eps in PAIRS:
        by_sure = np.array([rs.best_possible(areas, *eps, p) for p in np.linspace(0, 1, 21)])
        assert (np.diff(by_sure, axis=0) <= 1e-12).all()
        np.testing.assert_allclose(by_sure[3], rs.best_possible(shuffled, *eps, 0.15))
        # Some label always has a tenth.
        np.testing.assert_allclose(by_sure[2], by_sure[0])


@pytest.mark.parametrize("areas", [np.zeros(3), np.zeros((0, 2)), np.full((1, 2), 1.1), np.full((1, 2), -0.1), np.full((1, 2), np.nan)])
def test_wrong_areas_are_refused(areas):
    with pytest.raises(ValueError, match=r"areas: expected \(image, label\) in \[0, 1\], got"):
        rs.best_possible(areas, 0.01, 0.001)


def test_wrong_numbers_are_refused():
    for i, name in enumerate(("eps_completeness", "eps_soundness", "sure")):
        numbers = [0.1, 0.1, 0.1]
        numbers[i] = 1.5
        with pytest.raises(ValueError, match=rf"{name}: expected a finite number in \[0, 1\], got 1.5"):
            rs.best_possible(np.zeros((1, 2)), *numbers)


def test_the_shipped_table():
    areas = rs.released_areas()
    assert areas.shape == (10, 10)
    ordered = np.sort(areas, axis=1)
    # As the largest and second-largest areas of an image are known.
    assert [ordered[:, -1].min(), ordered[:, -1].max()] == pytest.approx([0.77, 1.00], abs=0.005)
    assert [ordered[:, -2].min(), ordered[:, -2].max()] == pytest.approx([0.26, 0.76], abs=0.005)
    # The file's line for label 0 and image 7.
    assert areas[7, 0] == 0.958418


def test_the_papers_soundness_cannot_be_attained_with_the_released_areas():
    table = rs.bounds_table({rs.RELEASED: rs.released_areas()}).set_index(["thresholds", "sure"])
    assert (table.n == 10).all()
    for eps, thresholds in zip(PAIRS, THRESHOLDS, strict=True):
        per_image = [largest(lambda s, g=g, eps=eps: program(g, eps, 1e-9, s, 0.0) is not None) for g in rs.released_areas()]
        assert table.soundness[thresholds, 0.0] == pytest.approx(np.mean(per_image), abs=1e-4)
    assert table.soundness.max() < table.high.max() < 0.84 < table.completeness.min()
    assert (table.soundness.between(table.low, table.high)).all()


@pytest.fixture
def grid():
    """One evaluation of two methods, six images and ten labels; images have label lists of their own."""
    rng = np.random.default_rng(0)
    prob = rng.dirichlet(np.full(10, 0.1), 6).astype(np.float32)
    curve = rng.random((2, 10, 6, 5)).astype(np.float32) ** 3
    made = xr.Dataset(
        {"prob": (("image", "label"), prob), "insertion_curve": (("method", "label", "image", "kept"), curve)},
        {"method": ["Random", "Ours"], "image": list("abcdef"), "label": [f"label {i}" for i in range(10)]},
    )
    return {("labels", "released"): made.assign_coords(label_name=(("image", "label"), np.full((6, 10), "cat")))}


def test_ours_in_the_same_cell_by_equation_1(grid):
    ours = rs.same_cell(grid)
    g = grid["labels", "released"].insertion_curve.values[1][..., 1:].mean(-1).T
    f = grid["labels", "released"].prob.values
    np.testing.assert_allclose(ours.g, g, rtol=1e-5)
    np.testing.assert_array_equal(ours.f, f)
    for thresholds, eps in THRESHOLDS.items():
        expected = np.array([worst(*pair, eps) for pair in zip(g, f, strict=True)])
        found = ours.sel({"thresholds": thresholds})
        np.testing.assert_allclose(np.stack([found.completeness, found.soundness], 1), expected, rtol=1e-4)
        # What is measured never exceeds what its own f, and so any f, allows.
        for one, p, measured in zip(g, f.max(1), expected, strict=True):
            assert (measured <= np.ravel(rs.best_possible(one[None], *eps, float(p))) + 1e-5).all()


def test_the_conclusion_follows_the_numbers(grid):
    ours, paper = rs.same_cell(grid), paper_values("table1")
    text = rs.conclusion(rs.released_areas(), ours, paper)
    table = rs.bounds_table({rs.RELEASED: rs.released_areas(), rs.OURS: ours.g.values}, (0.0, 0.9)).set_index(
        ["areas", "thresholds", "sure"]
    )
    for thresholds in THRESHOLDS:
        row = table.loc[(rs.RELEASED, thresholds, 0.0)]
        numbers = f"completeness {row.completeness:.2f}, soundness {row.soundness:.2f} [{row.low:.2f}, {row.high:.2f}]"
        assert f"  {thresholds} thresholds, any f: {numbers}. The paper's 0.84 and 0.84 cannot be attained" in text
        asked = table.loc[(rs.OURS, thresholds, 0.9)]
        assert f"f of at least 0.9 at most {asked.completeness:.2f} and {asked.soundness:.2f}" in text
        assert f"measured completeness {float(ours.completeness.sel({'thresholds': thresholds}).mean()):.2f}" in text
    assert text.count("cannot be attained") == 4
    assert f"at least 0.9 on {(ours.f.max('label') >= 0.9).mean().item():.0%} of the images" in text
    # One label has it all: everything can be attained.
    easy = rs.conclusion(np.eye(10), ours, paper)
    assert "cannot" not in easy
    assert easy.count("can be attained") == 4
    assert "released repository 1.00 and 0.00" in easy
    # Between the two, only without a sure prediction.
    some = pd.DataFrame({"method": ["Ours"] * 2, "metric": ["completeness", "soundness"], "value": [0.84, 0.40]})
    assert [" can be" in line for line in rs.conclusion(rs.released_areas(), ours, some).splitlines()[3:7]] == [True, False, True, False]

"""The figures of notebook 06 draw the numbers they are given."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from salkit.report import protocol_plots as pp
from salkit.studies.protocol_grid import CELL, CHOICES, THRESHOLDS
from salkit.studies.released_scores import best_possible


@pytest.fixture
def summary():
    """16 cells in an order of their own; the first three cannot be told apart."""
    cells = np.random.default_rng(0).permutation(list(product(*CHOICES.values())))
    made = pd.DataFrame(cells, columns=CELL).assign(distance=np.linspace(0.1, 0.6, 16), n=10, told_apart=np.arange(16) > 2)
    made = made.assign(low=made.distance - 0.02, high=made.distance + 0.03, order_completeness=0.5, order_soundness=-0.5)
    return made.assign(distance_completeness=made.distance - 0.05, distance_soundness=made.distance + 0.05)


def bars(container):
    """Middle, low and high of horizontal error bars."""
    (line,) = container.lines[2]
    ends = np.array([segment[:, 0] for segment in line.get_segments()])
    return np.column_stack([container.lines[0].get_xdata(), ends]).astype(float)


def test_distances_in_order_with_intervals_and_the_earlier_run(summary):
    earlier = summary[CELL].assign(distance=summary.distance[::-1].to_numpy(), composites=12, images="a b c")
    figure = pp.protocol_distances(summary, earlier.sample(frac=1, random_state=0, ignore_index=True))
    distance, by_column, order = figure.axes
    assert [text.get_text() for text in distance.get_yticklabels()] == [" | ".join(row) for row in summary[CELL].to_numpy()]
    assert distance.yaxis_inverted()
    drawn = np.vstack([bars(container) for container in distance.containers])
    np.testing.assert_allclose(drawn, summary[["distance", "low", "high"]])
    assert [len(container.lines[0].get_xdata()) for container in distance.containers] == [3, 13]
    (before,) = [line for line in distance.lines if line.get_marker() == "s"]
    np.testing.assert_allclose(before.get_xdata(), summary.distance[::-1])
    drawn = {marker: np.concatenate([line.get_xdata() for line in by_column.lines if line.get_marker() == marker]) for marker in "oD"}
    np.testing.assert_allclose(drawn["o"], summary.distance_completeness)
    np.testing.assert_allclose(drawn["D"], summary.distance_soundness)
    assert {float(x) for line in order.lines if line.get_marker() == "D" for x in line.get_xdata()} == {-0.5}
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "unsettled masks (12 composites, n = 3)" in labels
    assert len(pp.protocol_distances(summary).legends[0].get_texts()) == len(labels) - 1


def test_effects_are_drawn_by_choice_whatever_their_order():
    rng = np.random.default_rng(0)
    names = product(CHOICES, ("distance", "completeness", "soundness"))
    effects = pd.DataFrame(list(names), columns=["choice", "quantity"]).assign(change=rng.normal(size=12), n=10)
    effects = effects.assign(low=effects.change - 0.1, high=effects.change + 0.2, least=effects.change - 1, most=effects.change + 2)
    figure = pp.protocol_effects(effects.sample(frac=1, random_state=0))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][2] == "thresholds:\npaper to released"
    for axis, quantity in zip(figure.axes, ("distance", "completeness", "soundness"), strict=True):
        rows = effects[effects.quantity == quantity]
        np.testing.assert_allclose(bars(axis.containers[0]), rows[["change", "low", "high"]])
        ranges = np.array([segment[:, 0] for segment in axis.collections[0].get_segments()], float)
        np.testing.assert_allclose(ranges, rows[["least", "most"]])


def test_bounds_shade_what_can_be_attained():
    areas = np.array([[0.8, 0.8, 0.1], [0.9, 0.3, 0.0]])
    points = {"ours": {"paper": (0.3, 0.1), "released": (0.4, 0.2)}}
    figure = pp.released_bounds(areas, points=points)
    for axis, (thresholds, eps) in zip(figure.axes, THRESHOLDS.items(), strict=True):
        for patch, sure in zip(axis.patches, (0.0, 0.9), strict=True):
            corner = [bound.mean() for bound in best_possible(areas, *eps, sure)]
            assert [patch.get_width(), patch.get_height()] == pytest.approx(corner)
        lines = {line.get_label(): np.squeeze(line.get_xydata()) for line in axis.lines}
        np.testing.assert_allclose(lines["ours"], points["ours"][thresholds])
        np.testing.assert_allclose(lines["paper, Ours (0.84, 0.84)"], [0.84, 0.84])
        assert f"{eps[1]:g}" in axis.get_title()

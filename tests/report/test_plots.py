"""The figures draw the numbers they are given, with labels, and leave files of both kinds."""

import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib import pyplot as plt

from salkit.report import maps, plots, tables
from salkit.studies.quality import SCORES


@pytest.fixture
def result():
    """An evaluation of two methods on three 8 x 8 images with three labels, numbers drawn at random."""
    rng = np.random.default_rng(0)
    prob = rng.dirichlet(np.ones(3), 3)
    dims = ("method", "image", "label")
    scores = {name: (dims, rng.random((2, 3, 3))) for name in ("insertion_auc", "deletion_auc", "completeness", "soundness")}
    made = xr.Dataset(
        {"prob": (dims[1:], prob)} | scores,
        {"method": ["0", "0.1"], "image": list("abc"), "label": ["cat", "dog", "ship"], "kept": [0, 32, 64]},
    )
    made["prediction"] = made.prob.argmax("label")
    made["insertion_curve"] = ((*dims, "kept"), rng.random((2, 3, 3, 3)))
    made["heatmap"] = ((*dims, "y", "x"), rng.random((2, 3, 3, 8, 8)))
    made["pixels"] = (("image", "y", "x", "channel"), rng.random((3, 8, 8, 3)))
    return made


@pytest.fixture
def table(result):
    return tables.tidy_table(result, pd.DataFrame({"method": ["0", "0"], "metric": ["completeness", "soundness"], "value": [0.3, 0.7]}))


def test_curves_are_the_means_over_images(result):
    figure = plots.probability_curves(result.insertion_curve, result.prob)
    order = np.argsort(result.prob.values, axis=1)
    for axis, place in zip(figure.axes, (-1, -2), strict=True):
        chosen = result.insertion_curve.values[:, np.arange(3), order[:, place]].mean(1)
        for line, expected in zip(axis.lines, chosen, strict=False):
            np.testing.assert_allclose(line.get_ydata(), expected)
            np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 1])
        whole = np.take_along_axis(result.prob.values, order[:, [place]], 1).mean()
        assert axis.lines[2].get_ydata()[0] == pytest.approx(whole)
        assert axis.get_xlabel() == "share of pixels kept"


def test_first_figure_masks_the_image_and_picks_the_label_that_fools_most(result):
    figure = maps.true_and_wrong_label(result, ["0", "0.1"], n_images=1)
    surest = int(result.prob.max("label").argmax("image"))
    one = result.isel(image=surest)
    right = int(one.prediction)
    areas = one.insertion_auc.values[0].copy()
    areas[right] = -1
    wrong = int(areas.argmax())
    assert figure.axes[0].get_xlabel() == f"net: {one.label.values[right]}"
    for axis, (method, label) in zip(figure.axes[1:], [(0, right), (0, wrong), (1, right), (1, wrong)], strict=True):
        mask = one.heatmap.values[method, label][..., None]
        np.testing.assert_allclose(axis.images[0].get_array(), mask * one.pixels.values + (1 - mask) * maps.GRAY)
        assert axis.get_xlabel().startswith(f"{one.label.values[label]}\nf = ")


def test_sweep_draws_every_point_with_its_interval(table):
    figure = plots.sweep({"text": table, "released": table})
    for axis, metric in zip(figure.axes, ("completeness", "soundness"), strict=True):
        rows = table[table.metric == metric]
        np.testing.assert_allclose(np.asarray(axis.containers[0].lines[0].get_ydata(), float), rows.ours)
        assert len(axis.containers) == 2
        assert axis.get_ylabel() == f"worst-case {metric}"
    assert figure.axes[1].get_yscale() == "log"


def test_scatter_has_our_point_and_the_papers(table):
    (axis,) = plots.completeness_soundness(table).axes
    rows = table.set_index(["method", "metric"]).ours
    points = [container.lines[0].get_xydata()[0] for container in axis.containers]
    np.testing.assert_allclose(points, [[rows[m, "completeness"], rows[m, "soundness"]] for m in ("0", "0.1")])
    hollow = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
    assert [0.3, 0.7] in [line.get_xydata()[0].tolist() for line in hollow if len(line.get_xdata())]


def test_best_effort_says_when_no_image_counts(table):
    nothing = table.assign(n=table.n.where(table.metric != "best_effort", 0))
    figure = plots.best_effort({"list": nothing, "own": table})
    assert "no image has" in figure.axes[0].texts[0].get_text()
    assert not figure.axes[1].texts
    assert "n = 0" in figure.axes[0].get_title()
    assert len(figure.axes[1].containers) == 2
    assert len(figure.legends[0].get_texts()) == 2


def test_maps_by_label_and_gallery(result):
    named = result.assign_coords(label_name=(("image", "label"), [["lynx", "tabby", "puma"]] * 3))
    figure = maps.two_labels(named)
    assert [axis.get_title() for axis in figure.axes[1:4]] == ["lynx", "tabby", "puma"]
    shown = figure.axes[1].images[1].get_array()
    heatmap = named.heatmap.values[0, 0, 0]
    low, high = np.percentile(heatmap, [1, 99])
    np.testing.assert_allclose(shown, (heatmap - low) / (high - low))
    figure = maps.label_gallery(result, columns=2)
    assert [axis.get_title() for axis in figure.axes] == ["cat", "dog", "ship", ""]


def test_a_constant_map_can_be_drawn():
    axis = plt.figure().subplots()
    maps.heat(axis, np.ones((4, 4, 3)), np.zeros((4, 4)))
    assert np.isfinite(axis.images[1].get_array()).all()


def test_figures_are_saved_as_png_and_pdf(tmp_path, table):
    plots.use_style()
    plots.save_figure(plots.completeness_soundness(table), tmp_path, "figure4")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["figure4.pdf", "figure4.png"]


def test_learning_curves_draw_the_mask_phase_of_every_masker():
    columns = {"area": [0.5, 0.4, 0.3], "kept": [0.2, 0.3, 0.4], "removed": [0.5, 0.3, 0.1], "whole": [0.6, 0.6, 0.6]}
    rows = pd.DataFrame({"phase": ["embedding", "masks", "masks"], "images": [1000, 2000, 3000], **columns})
    figure = plots.learning_curves(pd.concat([rows.assign(masker="a"), rows.assign(masker="b")]))
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[2, 0.4], [3, 0.3]])
    assert len(figure.axes[1].get_legend().get_texts()) == 4


def test_randomisation_draws_the_means_and_the_maps():
    rng = np.random.default_rng(0)
    coords = {"mode": ["cascading"], "stage": ["fc", "stem"], "method": ["Ours"], "image": ["a", "b"]}
    dims = tuple(coords)
    made = xr.Dataset({name: (dims, rng.random((1, 2, 1, 2))) for name in ("spearman", "spearman_absolute", "ssim", "hog")}, coords)
    figure = plots.randomisation(made)
    assert len(figure.axes) == 4
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), made.spearman.mean("image").values[0, :, 0])
    made["heatmap"] = ((*dims[:3], "y", "x"), rng.random((1, 2, 1, 8, 8)))
    made["original"] = (("method", "y", "x"), rng.random((1, 8, 8)))
    made["pixels"] = (("y", "x", "channel"), rng.random((8, 8, 3)))
    figure = maps.randomised_maps(made)
    assert [axis.get_title() for axis in figure.axes] == ["trained", "to fc", "to stem"]


def test_protocol_distances_writes_every_cell_and_boxes_the_compatible():
    cells = itertools.product(("all", "labels"), ("nll", "released"), ("paper", "released"), ("mean", "trapezoid"))
    summary = pd.DataFrame(list(cells), columns=["softmax", "loss", "thresholds", "rule"])
    summary = summary.assign(distance=np.linspace(0.1, 0.6, 16), distance_completeness=0.2, distance_soundness=0.3, n_to_exclude=7.0)
    figure = plots.protocol_distances(summary.assign(verdict=["compatible"] + ["excluded"] * 15))
    both, images = figure.axes[2], figure.axes[3]
    assert [text.get_text() for text in both.texts][:2] == ["0.10", "0.13"]
    assert [text.get_bbox_patch() is not None for text in both.texts] == [True] + [False] * 15
    assert {text.get_text() for text in images.texts} == {"7"}


def test_label_dependence_stands_what_ignores_the_label_on_the_right(table):
    more = [["0", "label_correlation", np.nan, 1.0, 0.9, 1.0, 5, "", ""], ["0.1", "label_correlation", np.nan, 0.1, 0.0, 0.2, 5, "", ""]]
    figure = plots.label_dependence(pd.concat([table, pd.DataFrame(more, columns=table.columns)]))
    points = [container.lines[0].get_xydata()[0, 0] for container in figure.axes[0].containers]
    assert points == [1.0, 0.1]


def test_passes_to_quality_draws_the_means_over_images():
    rows = [("fast", 0, image, 1, spent, 0.8, g, True) for image, g in (("a", 0.2), ("b", 0.6)) for spent in (10, 20)]
    table = pd.DataFrame(rows, columns=["schedule", "seed", "image", "label", "composites", "f", "g", "predicted"])
    axes = plots.passes_to_quality({"case": table}).axes
    assert [axis.get_title() for axis in axes] == list(SCORES.values())
    np.testing.assert_allclose(axes[2].lines[0].get_xydata(), [[10, 0.4], [20, 0.4]])
    assert axes[0].get_ylabel() == "case"

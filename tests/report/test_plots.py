"""The figures draw the numbers they are given, with labels, and leave files of both kinds."""

import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib import pyplot as plt

from salkit.report import maps, plots, tables
from salkit.statistics import short
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


def test_mosaics_show_both_labels_with_f_g_and_the_share_in_their_half(result):
    labels = [["lynx", "puma"], ["tabby", "goose"], ["yurt", "drum"]]
    named = result.isel(label=[0, 1]).assign_coords(label_name=(("image", "label"), labels))
    named = named.assign({name: xr.full_like(named.completeness, v) for name, v in (("localisation", 0.25), ("localisation_top", 0.75))})
    axes = maps.mosaics(named, [2, 0]).axes
    assert len(axes) == 2 * (1 + 2 * 2)
    titles = [axis.get_title().split("\n")[0] for axis in axes if axis.get_title()]
    assert titles == ["left: yurt", "right: drum", "left: lynx", "right: puma"]
    np.testing.assert_allclose(axes[0].images[0].get_array(), named.pixels[2])
    assert axes[1].get_title() == f"left: yurt\nf = {float(named.prob[2, 0]):.2f}"
    for axis, (label, method) in zip(axes[1:5], itertools.product((0, 1), (0, 1)), strict=True):
        area = float(named.insertion_auc[method, 2, label])
        assert axis.get_xlabel() == f"g = {short(area)}\nin its half: 25%, top tenth 75%"
        assert [axis.patches[0].get_x(), axis.patches[0].get_width()] == [4 * label - 0.5, 4]


def test_a_constant_map_can_be_drawn():
    axis = plt.figure().subplots()
    maps.heat(axis, np.ones((4, 4, 3)), np.zeros((4, 4)))
    assert np.isfinite(axis.images[1].get_array()).all()


def test_a_map_of_tiny_values_is_drawn_like_any_other():
    axes, heatmap = plt.figure().subplots(1, 2), np.random.default_rng(0).random((8, 8)).astype(np.float32)
    for axis, scale in zip(axes, (1, 1e-30), strict=True):
        maps.heat(axis, np.ones((8, 8, 3)), heatmap * np.float32(scale))
    np.testing.assert_allclose(axes[1].images[1].get_array(), axes[0].images[1].get_array(), atol=1e-5)


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
    coords = {"mode": ["cascading"], "stage": ["fc", "stem"], "method": ["Ours", "Flat"], "image": ["a", "b"]}
    dims = tuple(coords)
    names = ("spearman", "spearman_absolute", "ssim", "hog")
    made = xr.Dataset({name: (dims, rng.random((1, 2, 2, 2))) for name in names}, coords)
    made = made.assign({f"{name}_control": (dims[2:], rng.random((2, 2))) for name in names})
    made.spearman[0, 1, 1] = np.nan  # after the stem "Flat" has no maps
    figure = plots.randomisation(made)
    *axes, counts = figure.axes
    assert len(axes) == 4
    for axis, name in zip(axes, names, strict=True):
        expected = [made[f"{name}_control"].mean("image").values[0], *made[name].mean("image").values[0, :, 0]]
        np.testing.assert_allclose(axis.lines[0].get_ydata(), expected)
        band = axis.collections[0].get_paths()[0].vertices
        assert [band[:, 1].min(), band[:, 1].max()] == pytest.approx(
            [f(made[f"{name}_control"][0].values.tolist() + made[name][0, :, 0].values.ravel().tolist()) for f in (min, max)]
        )
    assert np.isnan(axes[0].lines[1].get_ydata()).tolist() == [False, False, True]
    assert [bar.get_height() for bar in counts.patches] == [0, 0, 0, 0, 0, 1]
    assert [tick.get_text() for tick in counts.get_xticklabels()] == ["another seed", "fc", "stem"]

    made["heatmap"] = ((*dims[:3], "y", "x"), rng.random((1, 2, 2, 8, 8)))
    made.heatmap[0, 1, 1] = 0.5
    made = made.assign({name: (("method", "y", "x"), rng.random((2, 8, 8))) for name in ("original", "control")})
    made["pixels"] = (("y", "x", "channel"), rng.random((8, 8, 3)))
    figure = maps.randomised_maps(made)
    assert [axis.get_title() for axis in figure.axes] == ["trained", "trained,\nanother seed", "to fc", "to stem"] + [""] * 4
    numbers = [float(made.spearman_control[0, 0]), *made.spearman.values[0, :, 0, 0]]
    assert [axis.get_xlabel() for axis in figure.axes[:4]] == ["", *(f"{number:.2f}" for number in numbers)]
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes[4:]] == [[], [], [], ["no map"]]


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

"""The figures draw the numbers they are given, with labels, and leave files of both kinds."""

import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.text import Annotation
from scipy import stats

from salkit.report import maps, plots, tables
from salkit.statistics import short


@pytest.fixture
def table(result):
    return tables.tidy_table(result, pd.DataFrame({"method": ["0", "0"], "metric": ["completeness", "soundness"], "value": [0.3, 0.7]}))


def test_curves_are_the_means_over_images_with_bands_and_names(result):
    figure = plots.probability_curves(result.insertion_curve, result.prob)
    order = np.argsort(result.prob.values, axis=1)
    for axis, place in zip(figure.axes, (-1, -2), strict=True):
        chosen = result.insertion_curve.values[:, np.arange(3), order[:, place]]
        for line, values in zip(axis.lines, chosen, strict=False):
            np.testing.assert_allclose(line.get_ydata(), values.mean(0))
            np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 1])
        for band, values in zip(axis.collections, chosen, strict=True):
            interval = stats.t.interval(0.95, 2, values.mean(0), stats.sem(values, axis=0))
            corners = band.get_paths()[0].vertices
            for x, low, high in zip((0, 0.5, 1), *np.clip(interval, 0, 1), strict=True):
                edge = corners[np.isclose(corners[:, 0], x), 1]
                np.testing.assert_allclose([edge.min(), edge.max()], [low, high], atol=1e-6)
        whole = np.take_along_axis(result.prob.values, order[:, [place]], 1).mean()
        assert axis.lines[2].get_ydata()[0] == pytest.approx(whole)
        assert axis.get_xlabel() == "share of pixels kept"
        assert [text.get_text() for text in axis.texts] == [r"$\lambda_{TV}$ = 0", r"$\lambda_{TV}$ = 0.1"]
        for text, line in zip(axis.texts, axis.lines, strict=False):
            assert text.get_position() in [tuple(point) for point in line.get_xydata()]
    assert "n = 3 images" in figure.get_supxlabel()
    one = plots.probability_curves(result.insertion_curve.isel(image=[0]), result.prob.isel(image=[0]))
    assert "95 %" not in one.get_supxlabel()


def test_sweep_draws_every_point_with_its_interval(table):
    figure = plots.sweep({"text": table, "released": table})
    for axis, metric in zip(figure.axes, ("completeness", "soundness"), strict=True):
        rows = table[table.metric == metric]
        np.testing.assert_allclose(np.asarray(axis.containers[0].lines[0].get_ydata(), float), rows.ours)
        assert len(axis.containers) == 2
        assert axis.get_ylabel() == f"worst-case {metric}"
    assert figure.axes[1].get_yscale() == "log"


def points(axis):
    """Our points by name."""
    return {line.get_label(): line.get_xydata()[0].tolist() for line in axis.lines if not line.get_label().startswith("_")}


def test_scatter_has_our_point_the_papers_and_an_arrow_between(table):
    figure = plots.completeness_soundness(table)
    (axis,) = figure.axes
    rows = table.set_index(["method", "metric"]).ours
    assert points(axis) == {m: [rows[m, "completeness"], rows[m, "soundness"]] for m in ("0", "0.1")}
    hollow = [line.get_xydata()[0].tolist() for line in axis.lines if line.get_markerfacecolor() == "white"]
    assert hollow == [[0.3, 0.7]]
    arrows = [text for text in axis.texts if isinstance(text, Annotation)]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [((0.3, 0.7), (rows["0", "completeness"], rows["0", "soundness"]))]
    assert "n = 3 images" in axis.get_title()
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [
        "other methods",
        "hollow: the paper's value, with an arrow to ours",
    ]


def test_names_of_crowded_points_do_not_overlap_and_stay_inside():
    rng = np.random.default_rng(0)
    names = [f"Ours ({i})" if i % 3 else f"Another method {i}" for i in range(18)]
    at = {"completeness": rng.random(18), "soundness": 0.05 * rng.random(18)}
    rows = [[name, metric, np.nan, at[metric][i], at[metric][i], at[metric][i], 10] for i, name in enumerate(names) for metric in at]
    figure = plots.completeness_soundness(pd.DataFrame(rows, columns=["method", "metric", "paper", "ours", "low", "high", "n"]))
    (axis,) = figure.axes
    boxes = [text.get_window_extent() for text in axis.texts]
    assert sorted(text.get_text() for text in axis.texts) == sorted(names)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = axis.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


@pytest.mark.parametrize(("least", "scale"), [(0.2, "linear"), (0.01, "log"), (0.0, "linear")])
def test_low_soundness_is_told_apart_on_a_logarithmic_axis(table, least, scale):
    sound = (table.metric == "soundness") & (table.method == "0.1")
    figure = plots.completeness_soundness(table.assign(ours=table.ours.mask(sound, least), low=table.low.mask(sound, 0.0)))
    assert figure.axes[0].get_yscale() == scale
    assert ("logarithmic" in figure.axes[0].get_ylabel()) == (scale == "log")
    figure.canvas.draw()


def test_names_do_not_move_points():
    at = [(0.0, 1.0), *((0.5 + 0.004 * i, 0.001 * i) for i in range(8))]
    rows = [[f"m{i}", m, np.nan, v, v, v, 10] for i, xy in enumerate(at) for m, v in zip(("completeness", "soundness"), xy, strict=True)]
    (axis,) = plots.completeness_soundness(pd.DataFrame(rows, columns=["method", "metric", "paper", "ours", "low", "high", "n"])).axes
    assert any(line.get_linestyle() == ":" for line in axis.lines), "a name far from its point has a line to it"
    np.testing.assert_allclose([*axis.get_xlim(), *axis.get_ylim()], [-0.07 * 0.528, 1.07 * 0.528, -0.12, 1.12])


def test_titles_say_how_many_images_each_axis_has(table):
    some = table.assign(n=[{"best_effort": 2, "soundness": 3 + i % 2}.get(metric, 3) for i, metric in enumerate(table.metric)])
    sound = some[some.metric == "soundness"].n
    (axis,) = plots.best_effort({"own": some}).axes
    assert axis.get_title() == f"own\nbest effort: n = 2 images; soundness: n = {sound.min()} to {sound.max()}"
    assert sound.min() < sound.max()
    # A method without one of the metrics has no point, and changes no count.
    more = pd.concat([table, table[(table.method == "0") & (table.metric == "soundness")].assign(method="RISE")])
    (axis,) = plots.completeness_soundness(more).axes
    assert axis.get_title() == "n = 3 images"
    assert list(points(axis)) == ["0", "0.1"]


def test_one_image_has_points_without_bars(table):
    one = table.assign(low=np.nan, high=np.nan, n=1)
    assert list(points(plots.completeness_soundness(one).axes[0])) == ["0", "0.1"]
    assert "n = 1 images" in plots.sweep({"a": one}).get_supxlabel()
    assert plots.forest(one, ["soundness"]).axes[0].get_title() == "soundness\nn = 1"


def test_ours_is_drawn_over_the_others_and_larger(table):
    three = pd.concat(
        [table.replace({"method": {"0": "Ours", "0.1": "Phang et al."}}), table[table.method == "0"].assign(method="Ours (s=1)")]
    )
    drawn = [line for line in plots.completeness_soundness(three).axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in drawn] == ["Phang et al.", "Ours (s=1)", "Ours"]
    assert drawn[2].get_markersize() > drawn[1].get_markersize() == drawn[0].get_markersize()


def test_best_effort_has_a_panel_only_where_an_image_counts(table):
    nothing = table.assign(n=table.n.where(table.metric != "best_effort", 0))
    figure = plots.best_effort({"list": nothing, "own": table})
    (axis,) = figure.axes
    assert axis.get_title() == "own\nn = 3 images"
    assert list(points(axis)) == ["0", "0.1"]
    with pytest.raises(ValueError, match="tables: expected an image with a second-best label"):
        plots.best_effort({"list": nothing})


def test_forest_has_ours_the_papers_and_the_ties(table):
    tied = table.assign(ties=["ab"[i % 2] for i in range(len(table))])
    figure = plots.forest(tied, ["completeness", "deletion"])
    for axis, metric in zip(figure.axes, ("completeness", "deletion"), strict=True):
        rows = tied[tied.metric == metric]
        bars = [line for line in axis.lines if len(line.get_xdata()) == 2]
        np.testing.assert_allclose([line.get_xdata() for line in bars], rows[["low", "high"]])
        np.testing.assert_allclose([line.get_xdata()[0] for line in axis.lines if line.get_marker() == "s"], rows.ours)
        diamonds = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "D"]
        np.testing.assert_equal(diamonds, rows.paper.tolist())
        assert [text.get_text() for text in axis.texts] == rows.ties.tolist()
        assert axis.get_title() == f"{metric}\nn = 3"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["0", "0.1"]
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]
    gone = table.assign(n=table.n.where(table.method != "0.1", 0))
    assert (
        plots.forest(pd.concat([table[table.metric == "deletion"], gone[gone.metric == "completeness"]])).axes[0].get_title()
        == "completeness\nn = 3"
    )
    for untied in (table.drop(columns="ties"), table.assign(ties="")):
        assert len(plots.forest(untied, ["completeness"]).legends[0].get_texts()) == 2


@pytest.mark.parametrize(("eps_completeness", "eps_soundness"), [(0.01, 0.001), (0.1, 0.1)])
def test_g_against_f_draws_the_borders_of_equation_1(result, eps_completeness, eps_soundness):
    result = result.assign_attrs(eps_completeness=eps_completeness, eps_soundness=eps_soundness)
    (axis,) = plots.g_against_f(result, ["0.1"]).axes
    sound, complete = (axis.collections[i].get_paths() for i in (1, 3))  # shades are between them
    for level, path in zip((0.1, 0.5, 1), sound, strict=True):
        f, g = path.vertices.T
        np.testing.assert_allclose(g, np.maximum(f, eps_soundness) / level, rtol=0.05)
    for level, path in zip((0.1, 0.5, 1), complete, strict=True):
        f, g = path.vertices.T
        np.testing.assert_allclose(np.maximum(g, eps_completeness) / f, level, rtol=0.05)
    others, predicted = axis.lines
    assert len(others.get_xdata()) == 6
    best = result.prob.values.argmax(1)
    np.testing.assert_allclose(predicted.get_xdata(), result.prob.values.max(1))
    np.testing.assert_allclose(predicted.get_ydata(), result.insertion_auc.values[1, np.arange(3), best])
    assert axis.get_title() == "0.1\n3 images, 9 pairs"


def test_scores_against_composites_marks_the_lengths():
    rows = [[s, c, "soundness", v, v - 0.1, v + 0.2, 8] for s, c, v in (("a", 500, 0.3), ("a", 12, 0.6), ("b", 20_000, 0.2))]
    table = pd.DataFrame(rows, columns=["schedule", "composites", "score", "mean", "low", "high", "n"])
    figure = plots.scores_against_composites(table)
    (axis,) = figure.axes
    lines = [container.lines[0].get_xydata().tolist() for container in axis.containers]
    assert lines == [[[12, 0.6], [500, 0.3]], [[20_000, 0.2]]]
    assert [text.get_text() for text in axis.texts] == ["12\ntoo short", "500\nsettled", "20,000\npublished"]
    assert axis.get_title() == "soundness, n = 8"
    assert not plots.scores_against_composites(table[table.schedule == "a"].drop(columns="schedule"), {50: "x"}).legends


def test_mosaics_show_both_labels_with_f_g_and_the_share_in_their_half(result, images):
    labels = [["lynx", "puma"], ["tabby", "goose"], ["yurt", "drum"]]
    named = result.isel(label=[0, 1]).assign_coords(label_name=(("image", "label"), labels))
    named = named.assign({name: xr.full_like(named.completeness, v) for name, v in (("localisation", 0.25), ("localisation_top", 0.75))})
    axes = maps.mosaics(named.isel(image=[2, 0, 1]), images).axes
    assert len(axes) == 2 * (1 + 2 * 2)
    titles = [axis.get_title().split("\n")[0] for axis in axes if axis.get_title()]
    assert titles == ["left: yurt", "right: drum", "left: lynx", "right: puma"]
    np.testing.assert_allclose(axes[0].images[0].get_array(), images.pixels()[images.ids.index("c")], atol=1e-6)
    assert axes[1].get_title() == f"left: yurt\nf = {float(named.prob[2, 0]):.2f}"
    for axis, (label, method) in zip(axes[1:5], itertools.product((0, 1), (0, 1)), strict=True):
        area = float(named.insertion_auc[method, 2, label])
        assert axis.get_xlabel().startswith(f"g = {short(area)}\nin its half: 25%, top tenth 75%\nTV ")
        assert [axis.patches[0].get_x(), axis.patches[0].get_width()] == [4 * label - 0.5, 4]


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
    more = {"metric": "label_correlation", "low": 0.0, "high": 1.0, "n": 5}
    rows = pd.DataFrame([{"method": "0", "ours": 1.0} | more, {"method": "0.1", "ours": 0.1} | more])
    (axis,) = plots.label_dependence(pd.concat([table, rows])).axes
    assert {name: x for name, (x, _) in points(axis).items()} == {"0": 1.0, "0.1": 0.1}

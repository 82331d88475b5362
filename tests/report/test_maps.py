"""Figures of images show the pixels, maps and numbers they are given, wherever maps were kept."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from torch.nn import functional as F

from salkit.masking import total_variation
from salkit.report import maps
from salkit.scores import soundness
from salkit.studies import recorded as store

KEPT = ("method", "image", "label", "row", "column")


@pytest.fixture
def recorded(result):
    """As a recorded evaluation: method 0 has logits of half the size, method 0.1 small pictures of the first two images."""
    rng = np.random.default_rng(1)
    logits, pictures = rng.normal(size=(2, 3, 3, 4, 4)), rng.integers(0, 128, (2, 3, 3, 4, 4)).astype(float)
    logits[1], pictures[0], pictures[1, 2] = np.nan, np.nan, np.nan
    return result.drop_vars(["heatmap", "pixels"]).assign(map=(KEPT, logits), picture=(KEPT, pictures))


def test_recorded_maps_are_brought_to_the_size_of_the_images(recorded, images):
    shown = maps.with_maps(recorded, images)
    mask = 1 / (1 + np.exp(-recorded["map"].values[0]))
    wide = F.interpolate(torch.tensor(mask, dtype=torch.float32), scale_factor=2, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(shown.heatmap[0], wide, atol=1e-6)
    np.testing.assert_allclose(shown.total_variation[0], total_variation(wide), rtol=1e-4)
    np.testing.assert_allclose(shown.area[0], wide.mean((-2, -1)), rtol=1e-5)
    picture = torch.tensor(recorded.picture.values[1, :2], dtype=torch.float32)
    np.testing.assert_allclose(shown.heatmap[1, :2], F.interpolate(picture, scale_factor=2, mode="bilinear"), atol=1e-4)
    assert shown.heatmap[1, 2].isnull().all()
    assert shown.total_variation[1].isnull().all()
    np.testing.assert_allclose(shown.pixels.sel(image="a"), images.pixels()[4], atol=1e-6)
    assert {"map", "picture"}.isdisjoint(shown)


def test_pictures_of_recorded_files_stay_with_their_images(result, images, tmp_path, monkeypatch):
    monkeypatch.setenv("SALKIT_DATA", str(tmp_path))
    picture = np.arange(2 * 3 * 16, dtype=np.int8).reshape(1, 2, 3, 4, 4)
    one = result.isel(method=[0]).drop_vars(["heatmap", "pixels"])
    store.save("overnight", "table", one.assign(picture=(("method", "pictured", "label", "row", "column"), picture)))
    found = store.load("overnight", "table").isel(image=[2, 1])
    np.testing.assert_array_equal(found.picture.sel({"method": "0", "image": "b"}), picture[0, 1])
    assert found.picture.sel(image="c").isnull().all()
    assert maps.with_maps(found, images).heatmap.sel(image="b").notnull().all()


def test_live_maps_are_taken_as_they_are_and_only_masks_have_a_total_variation(result, images):
    result["heatmap"] = result.heatmap * xr.DataArray([1.0, -2.0], dims="method")
    shown = maps.with_maps(result, images)
    np.testing.assert_array_equal(shown.heatmap, result.heatmap)
    np.testing.assert_allclose(shown.area[0], result.heatmap[0].mean(("y", "x")))
    assert shown.total_variation[0].notnull().all()
    assert shown.total_variation[1].isnull().all()


def test_wrong_images_and_missing_maps_are_named(result, images):
    with pytest.raises(ValueError, match="images: expected all images of the evaluation, got none with the id 'a'"):
        maps.with_maps(result, images.subset([0, 1, 2]))
    with pytest.raises(ValueError, match="result: expected heatmaps or recorded maps"):
        maps.with_maps(result.drop_vars("heatmap"), images)


def test_first_figure_shows_hard_composites_of_the_true_and_the_most_forged_label(result, images):
    result.insertion_auc[:] = np.array([[0.5, 0.4, 0.3], [0.1, 0.2, 0.9]])[:, None]  # the mean's worst label is not that of method 0
    figure = maps.true_and_wrong_label(result, images, ["0", "0.1"], n_images=1)
    true = {"a": 0, "b": 1, "c": 2}  # cat, dog, ship
    surest = max("abc", key=lambda name: float(result.prob.sel(image=name)[true[name]]))
    one, right = result.sel(image=surest), true[surest]
    areas = one.insertion_auc.values.mean(0)
    areas[right] = -1
    wrong = int(areas.argmax())
    pixels = images.pixels()[images.ids.index(surest)].numpy()
    f = [float(one.prob[label]) for label in (right, wrong)]
    names = one.label.values[[right, wrong]]
    assert figure.axes[0].get_xlabel() == f"{names[0]}: f = {f[0]:.2f}\n{names[1]}: f = {f[1]:.2f}"
    for axis, (method, label) in zip(figure.axes[1:], [(0, right), (0, wrong), (1, right), (1, wrong)], strict=True):
        curve = one.insertion_curve.values[method, label]
        k = (0, 32, 64)[next(i for i in range(3) if curve[i] >= curve.max() - 0.01)]
        heatmap = one.heatmap.values[method, label]
        keep = heatmap > np.sort(heatmap.ravel())[::-1][k] if k < 64 else np.ones((8, 8), bool)
        expected = np.where(keep[..., None], pixels, (0.5, 0.4, 0.3))
        np.testing.assert_allclose(axis.images[0].get_array(), expected, atol=1e-6)
        caption = axis.get_xlabel().split("\n")
        assert caption[0].endswith(f"{k / 64:.0%} of pixels")
        assert caption[2].endswith(f"area {heatmap.mean():.0%}")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["image", "true label, $\\lambda_{TV}$ = 0"]


def test_fewest_pixels_takes_the_first_that_is_near_the_largest():
    curve = xr.DataArray([0.2, 0.5, 0.991, 1.0, 0.3], {"kept": [0, 5, 9, 40, 64]}, "kept")
    assert maps.fewest_pixels(curve) == (9, 0.991)
    assert maps.fewest_pixels(curve - xr.zeros_like(curve).where(curve.kept != 9, 0.1)) == (40, 1.0)


def test_two_labels_prints_our_worst_cases_beside_the_papers(result, images):
    few = result.assign_coords(label_name=(("image", "label"), [["lynx", "tabby", "puma"]] * 3))
    paper = pd.DataFrame([["0", "worst case", 0.97, 0.89]], columns=["method", "label", "completeness", "soundness"])
    figure = maps.two_labels(few, images, image=1, paper=paper)
    g, f = few.insertion_auc.values[0, 1], few.prob.values[1]
    worst = min(np.minimum(g / f, 1)), min(np.minimum(f / g, 1))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[1] == f"0\ncompleteness {worst[0]:.2g} (paper: 0.97)\nsoundness {worst[1]:.2g} (paper: 0.89)"
    assert "paper" not in titles[2]
    captions = [axis.get_xlabel() for axis in figure.axes]
    assert any(caption.startswith(f"puma: g = {g[2]:.2f}\nTV ") for caption in captions)


def test_gallery_has_one_scale_and_frames_the_most_forged_label(result, images):
    result["soundness"] = soundness(result.insertion_auc, result.prob).transpose("method", "image", "label")
    result["soundness"][1, 2] = [1.0, 0.2, 0.5]
    figure = maps.label_gallery(result, images, "0.1", image=2, columns=2)
    source, *panels = figure.axes[:4]
    assert "soundness 0.20" in source.get_xlabel()
    assert [axis.get_title() for axis in panels] == ["cat", "dog", "ship"]
    assert [len(axis.patches) for axis in panels] == [0, 1, 0]
    values = result.heatmap.values[1, 2]
    for axis, heatmap in zip(panels, values, strict=True):
        np.testing.assert_allclose(axis.images[1].get_array(), (heatmap - values.min()) / np.ptp(values), atol=1e-6)
    result["soundness"][1, 2] = 1.0
    figure = maps.label_gallery(result, images, "0.1", image=2)
    assert not any(axis.patches for axis in figure.axes[:4])
    assert "frame" not in figure.axes[0].get_xlabel()


def test_contact_sheet_shows_the_maps_of_the_prediction(recorded, images):
    figure = maps.contact_sheet(recorded, images, n_images=3)
    rows = [figure.axes[i : i + 3] for i in range(0, 9, 3)]
    for i, (source, *cells) in enumerate(rows):
        at = int(recorded.prediction[i])
        assert source.get_xlabel() == f"{recorded.label.values[at]}\nf = {float(recorded.prob[i, at]):.2f}"
        for axis, method in zip(cells, (0, 1), strict=True):
            assert axis.get_xlabel().startswith(f"g = {float(recorded.insertion_auc[method, i, at]):.2f}")
        assert "TV" in cells[0].get_xlabel()
        assert ("not kept" in cells[1].get_xlabel()) == (i == 2)
    mask = maps.with_maps(recorded, images).heatmap.values[0, 1, int(recorded.prediction[1])]
    low, high = np.percentile(mask, [1, 99])
    np.testing.assert_allclose(rows[1][1].images[1].get_array(), (mask - low) / (high - low), atol=1e-4)
    assert len(maps.contact_sheet(recorded, images, n_images=1, columns=2).axes) == 4


def test_mosaics_of_a_recorded_evaluation_say_how_smooth_their_masks_are(recorded, images):
    named = recorded.isel(label=[0, 1]).assign_coords(label_name=(("image", "label"), [["lynx", "puma"]] * 3))
    named = named.assign({name: xr.full_like(named.completeness, 0.5) for name in ("localisation", "localisation_top")})
    shown = maps.with_maps(named, images)
    axes = maps.mosaics(named, images, 1).axes
    assert axes[1].get_xlabel().split("\n")[2] == f"TV {float(shown.total_variation[0, 0, 0]):.1f}, area {float(shown.area[0, 0, 0]):.0%}"
    assert len(axes[2].get_xlabel().split("\n")) == 2


def test_a_constant_map_is_drawn_and_called_none():
    axis = plt.figure().subplots()
    maps.heat(axis, np.ones((4, 4, 3)), np.zeros((4, 4)), "g = 0.10")
    assert np.isfinite(axis.images[1].get_array()).all()
    assert axis.get_xlabel() == "g = 0.10\n(constant: no map)"


def test_a_map_of_tiny_values_is_drawn_like_any_other():
    axes, heatmap = plt.figure().subplots(1, 2), np.random.default_rng(0).random((8, 8)).astype(np.float32)
    for axis, scale in zip(axes, (1, 1e-30), strict=True):
        maps.heat(axis, np.ones((8, 8, 3)), heatmap * np.float32(scale))
    np.testing.assert_allclose(axes[1].images[1].get_array(), axes[0].images[1].get_array(), atol=1e-5)

"""Figures that show images: under masks, and under heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from salkit.statistics import short
from salkit.studies.sanity import is_no_map

GRAY = 0.45
"""How dark the hidden pixels are drawn; to the net they are exactly the mean colour."""


def true_and_wrong_label(result: xr.Dataset, methods: Sequence[str], n_images: int = 3) -> Figure:
    """Figure 1: the images the net is surest of, under masks for the predicted label and for the wrong label that fools it most.

    Args:
        result: an evaluation with heatmaps in [0, 1].
        methods: which of its methods to show (names are lTVs); the wrong label is the one with the largest g under the first.
        n_images: rows.
    """
    surest = result.prob.max("label").argsort().values[::-1][:n_images]
    figure, axes = plt.subplots(
        len(surest), 1 + 2 * len(methods), figsize=(2.2 * (1 + 2 * len(methods)), 2.75 * len(surest)), squeeze=False
    )
    for row, i in zip(axes, surest, strict=True):
        one = result.isel(image=int(i))
        right = int(one.prediction)
        wrong = int(one.insertion_auc.sel({"method": methods[0]}).where(np.arange(len(one.label)) != right, -1).argmax("label"))
        image = one.pixels.values
        _show(row[0], image.clip(0, 1), f"net: {one.label.values[right]}")
        cells = [(method, label) for method in methods for label in (right, wrong)]
        for axis, (method, label) in zip(row[1:], cells, strict=True):
            pair = one.sel({"method": method}).isel(label=label)
            mask = pair.heatmap.values[..., None]
            _show(axis, (mask * image + (1 - mask) * GRAY).clip(0, 1), f"{pair.label.item()}\n{_f_and_g(pair)}")
    kinds = [f"{kind} label\n" + r"$\lambda_{TV}$ = " + method for method in methods for kind in ("predicted", "wrong")]
    for axis, title in zip(axes[0], ["image", *kinds], strict=True):
        axis.set_title(title, fontsize=12)
    figure.tight_layout()
    return figure


def two_labels(result: xr.Dataset) -> Figure:
    """Figure 2: the first image of an evaluation; each row a method, each column a label, the map over the image, scores below."""
    one = result.isel(image=0)
    names = one.label_name.values if "label_name" in one.coords else one.label.values
    n, k = len(one.method), len(one.label)
    figure, axes = plt.subplots(n, k + 1, figsize=(1.9 * (k + 1), 2.15 * n), squeeze=False, layout="constrained")
    for row, method in zip(axes, one.method.values, strict=True):
        row[0].set_axis_off()
        for axis, label in zip(row[1:], one.label.values, strict=True):
            pair = one.sel({"method": method, "label": label})
            heat(axis, one.pixels.values, pair.heatmap.values, _f_and_g(pair))
        row[1].set_ylabel(str(method), fontsize=10)
    axes[0, 0].set_axis_on()
    _show(axes[0, 0], one.pixels.values.clip(0, 1), "image")
    for axis, label in zip(axes[0, 1:], names, strict=True):
        axis.set_title(str(label), fontsize=10)
    return figure


def mosaics(result: xr.Dataset, images: Sequence[int] = (0, 1)) -> Figure:
    """Mosaics with two true labels: each row a method, for each mosaic the maps of its left and of its right label.

    A frame marks the half that the label is in. Below a map are g and the shares in that half: of the map's mass, and of the tenth of the
    pixels that is most salient. 50 % is what a map that ignores the label scores on average over the two.

    Args:
        result: an evaluation of mosaics with heatmaps, as `salkit.studies.mosaics.add_localisation` returns it.
        images: places of the mosaics to show.
    """
    names = result.method.values
    figure = plt.figure(figsize=(4.4 * len(images) + 0.3, 2.35 * (len(names) + 1)), layout="constrained")
    grid = figure.add_gridspec(len(names) + 1, 2 * len(images))
    for column, image in enumerate(images):
        one = result.isel(image=image)
        top = figure.add_subplot(grid[0, 2 * column : 2 * column + 2])
        _show(top, one.pixels.values.clip(0, 1), "")
        for label, side in enumerate(("left", "right")):
            title = f"{side}: {one.label_name.values[label]}\nf = {float(one.prob[label]):.2f}"
            for row, method in enumerate(names):
                axis = figure.add_subplot(grid[row + 1, 2 * column + label])
                pair = one.sel({"method": method}).isel(label=label)
                shares = f"in its half: {float(pair.localisation):.0%}, top tenth {float(pair.localisation_top):.0%}"
                heat(axis, one.pixels.values, pair.heatmap.values, f"g = {short(float(pair.insertion_auc))}\n{shares}")
                height, width = pair.heatmap.shape
                axis.add_patch(Rectangle((label * width / 2 - 0.5, -0.5), width / 2, height, fill=False, ec="#56B4E9", lw=3, clip_on=False))
                if row == 0:
                    axis.set_title(title, fontsize=10)
                if column == label == 0:
                    axis.set_ylabel(str(method), fontsize=10)
    return figure


def label_gallery(result: xr.Dataset, columns: int = 5) -> Figure:
    """The first method's maps of the first image for every label."""
    one = result.isel(image=0, method=0)
    rows = -(-len(one.label) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.45 * columns, 1.95 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(one.label) :]:
        axis.set_axis_off()
    for axis, label in zip(axes.flat, range(len(one.label)), strict=False):
        pair = one.isel(label=label)
        heat(axis, one.pixels.values, pair.heatmap.values, _f_and_g(pair))
        axis.set_title(pair.label.item(), fontsize=10, weight="bold" if label == int(one.prediction) else "normal")
    return figure


def randomised_maps(result: xr.Dataset, mode: str = "cascading") -> Figure:
    """The maps of one image, a row a method: the trained net's with two seeds, then with ever more stages randomised.

    The number below a map is its rank correlation with the first of its row. A constant map is no map and is written so.
    """
    stages, methods = result.stage.values, result.method.values
    titles = ["trained", "trained,\nanother seed", *(f"to {stage}" for stage in stages)]
    size = (1.6 * len(titles), 1.95 * len(methods))
    figure, axes = plt.subplots(len(methods), len(titles), figsize=size, squeeze=False, layout="constrained")
    first = result.isel(image=0)
    for row, method in zip(axes, methods, strict=True):
        own = first.sel({"method": method, "mode": mode})
        numbers = [np.nan, own.spearman_control, *own.spearman]
        for axis, heatmap, number in zip(row, [own.original, own.control, *own.heatmap], numbers, strict=True):
            if is_no_map(heatmap.values):
                _show(axis, result.pixels.values.mean(-1), "", cmap="gray", vmin=0, vmax=1, alpha=0.35)
                axis.text(0.5, 0.5, "no map", ha="center", va="center", fontsize=11, transform=axis.transAxes)
            else:
                heat(axis, result.pixels.values, heatmap.values, "" if np.isnan(number) else f"{round(float(number), 2) + 0:.2f}")
        row[0].set_ylabel(method, fontsize=10)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    return figure


def heat(axis: Axes, pixels: np.ndarray, heatmap: np.ndarray, caption: str = "") -> None:
    """A heatmap `(H, W)` over its image `(H, W, 3)` in gray: from dark to bright between the 1st and 99th percentile of its values."""
    low, high = np.percentile(heatmap.astype(np.float64), [1, 99])
    axis.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=1)
    _show(axis, (heatmap.astype(np.float64) - low) / ((high - low) or 1.0), caption, cmap="magma", alpha=0.65, vmin=0, vmax=1)


def _show(axis: Axes, image: np.ndarray, caption: str, **look: Any) -> None:
    axis.imshow(image, **look)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(caption, fontsize=9)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _f_and_g(pair: xr.Dataset) -> str:
    f, g = (f"{v:.2f}" if v >= 0.01 else f"{v:.0e}".replace("e-0", "e-") for v in (float(pair.prob), float(pair.insertion_auc)))
    return f"f = {f}   g = {g}"

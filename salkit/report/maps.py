"""Figures that show images: under masks, and under heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.nn import functional as F

from salkit.data.images import ImageSet
from salkit.masking import rank_pixels, total_variation, upsample
from salkit.report.tables import worked_example
from salkit.statistics import short
from salkit.studies.sanity import is_no_map

FRAME = "#56B4E9"
FORGED = "#D55E00"
NEAR = 0.01
"""A composite is shown at the fewest pixels at which its label's probability is this close to its largest."""


def with_maps(result: xr.Dataset, images: ImageSet) -> xr.Dataset:
    """An evaluation with its images and with maps of their size, however the maps were kept. Select methods and images first.

    Args:
        result: an evaluation with `heatmap`, or a recorded one: with `map (method, image, label, row, column)`, the logits of learned
            masks, or `picture`, a small map, where there are no logits.
        images: a set that has the images of the evaluation; they are found by id.

    Returns:
        With `pixels (image, y, x, channel)` in [0, 1]; `heatmap (method, image, label, y, x)`, NaN where no map was kept; and
        `total_variation` and `area` (mean value) of masks, `(method, image, label)`. These are NaN for maps that are not masks (values
        outside [0, 1]) and for pictures.

    Raises:
        ValueError: an image that is not in the set, or no maps.

    Example:
        >>> shown = with_maps(recorded.load("overnight", "table1_a").sel({"method": ["Ours"]}), images)  # doctest: +SKIP
        >>> shown.area.mean("image")  # doctest: +SKIP
    """
    names = result.image.values.tolist()
    if missing := [name for name in names if name not in images.ids]:
        raise ValueError(f"images: expected all images of the evaluation, got none with the id {missing[0]!r}")
    if not {"heatmap", "map", "picture"} & set(result):
        raise ValueError(f"result: expected heatmaps or recorded maps, got {sorted(map(str, result))}")
    found = images.subset([images.ids.index(name) for name in names])
    dims = ("method", "image", "label")
    if "heatmap" in result:
        heatmap = torch.from_numpy(result.heatmap.transpose(*dims, "y", "x").values)
        inside = (heatmap.amin((1, 2, 3, 4)) >= 0) & (heatmap.amax((1, 2, 3, 4)) <= 1)
        mask = heatmap.where(inside.view(-1, 1, 1, 1, 1), torch.nan)
    else:
        size = found.images.shape[-2:]
        heatmap = mask = torch.full((*(result.sizes[dim] for dim in dims), *size), torch.nan)
        if "picture" in result:
            picture = torch.from_numpy(result.picture.transpose(*dims, "row", "column").values).float()
            heatmap = F.interpolate(picture.flatten(0, 1), tuple(size), mode="bilinear").view(mask.shape)
        if "map" in result:
            logits = torch.from_numpy(result["map"].transpose(*dims, "row", "column").values).float()
            mask = upsample(logits.sigmoid().flatten(0, 1), size[0] // logits.shape[-2]).view(mask.shape)
            heatmap = mask.where(~mask.isnan(), heatmap)
    return result.drop_vars(["map", "picture"], errors="ignore").assign(
        pixels=(("image", "y", "x", "channel"), found.pixels().numpy()),
        heatmap=((*dims, "y", "x"), heatmap.numpy()),
        total_variation=(dims, total_variation(mask).numpy()),
        area=(dims, mask.mean((-2, -1)).numpy()),
    )


def label_names(one: xr.Dataset) -> list[str]:
    """What the labels of one image are called."""
    return [str(name) for name in (one.label_name if "label_name" in one.coords else one.label).values]


def true_and_wrong_label(result: xr.Dataset, images: ImageSet, methods: Sequence[str] = ("0", "0.1"), n_images: int = 3) -> Figure:
    """Figure 1: the most salient pixels for the true label and for a wrong one, on gray.

    A row an image: the ones whose true label is the most probable. The wrong label is the one with the largest g, on average over the
    methods shown. Each composite keeps the fewest pixels at which its label's probability is within `NEAR` of the largest on its
    insertion curve.

    Args:
        result: an evaluation with `insertion_curve` and maps, see `with_maps`.
        images: its images, with their classes.
        methods: which of its methods to show (names are lTVs).
        n_images: rows.

    Raises:
        ValueError: see `with_maps`.
    """
    classes = [images.class_names[images.labels[images.ids.index(name)]] for name in result.image.values.tolist()]
    true = np.array([label_names(result.isel(image=i)).index(name) for i, name in enumerate(classes)])
    surest = result.prob.isel(label=xr.DataArray(true, dims="image")).values.argsort()[::-1][:n_images]
    shown = with_maps(result.sel({"method": list(methods)}).isel(image=surest), images)
    columns = 1 + 2 * len(methods)
    figure = plt.figure(figsize=(2.15 * columns, 2.7 * len(surest) + 0.4), layout="constrained")
    axes = figure.subplots(len(surest), columns, squeeze=False)
    for row, i in zip(axes, range(len(surest)), strict=True):
        one, right = shown.isel(image=i), true[surest[i]]
        wrong = int(one.insertion_auc.mean("method").where(np.arange(len(one.label)) != right, -1).argmax("label"))
        names, pixels = label_names(one), one.pixels.values
        _show(row[0], pixels, "\n".join(f"{names[label]}: f = {_number(float(one.prob[label]))}" for label in (right, wrong)))
        cells = [(method, label) for method in methods for label in (right, wrong)]
        for axis, (method, label) in zip(row[1:], cells, strict=True):
            pair = one.sel({"method": method}).isel(label=label)
            kept, p = fewest_pixels(pair.insertion_curve)
            ranks = rank_pixels(torch.from_numpy(pair.heatmap.values)[None], int(result.attrs.get("seed", 0)))[0].numpy()
            top = ranks[..., None] < kept
            about = f"{names[label]}: p = {_number(p)}, {kept / ranks.size:.0%} of pixels"
            _show(axis, np.where(top, pixels, images.mean), f"{about}\ng = {_number(float(pair.insertion_auc))}\n{_tv_and_area(pair)}")
    kinds = [f"{kind} label, " + r"$\lambda_{TV}$ = " + method for method in methods for kind in ("true", "wrong")]
    for axis, title in zip(axes[0], ["image", *kinds], strict=True):
        axis.set_title(title, fontsize=11)
    return figure


def fewest_pixels(curve: xr.DataArray) -> tuple[int, float]:
    """Of one insertion curve `(kept,)`: the fewest pixels with a probability within `NEAR` of the largest, and that probability.

    Example:
        >>> fewest_pixels(xr.DataArray([0.1, 0.895, 0.9, 0.8], {"kept": [0, 10, 20, 30]}, "kept"))
        (10, 0.895)
    """
    place = int((curve >= curve.max() - NEAR).argmax("kept"))
    return int(curve.kept[place]), float(curve[place])


def two_labels(result: xr.Dataset, images: ImageSet, image: int = 0, paper: pd.DataFrame | None = None) -> Figure:
    """Figure 2: an image with two plausible labels; a column a method, a row a label. Above, the worst cases as in Section 3.3.

    Args:
        result: an evaluation with maps, see `with_maps`.
        images: its images.
        image: place of the image to show.
        paper: the paper's worked example, columns `method, label, completeness, soundness`; its rows `worst case` are printed beside ours.

    Raises:
        ValueError: see `with_maps`.
    """
    one = with_maps(result.isel(image=[image]), images).isel(image=0)
    worst = {"ours": _worst(worked_example(result.isel(image=[image])))} | ({} if paper is None else {"paper": _worst(paper)})
    methods, names = one.method.values.tolist(), label_names(one)
    figure, axes = plt.subplots(
        len(names), len(methods) + 1, figsize=(2.7 * (len(methods) + 1), 3.05 * len(names) + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes[1:, 0]:
        axis.set_axis_off()
    _show(axes[0, 0], one.pixels.values, "\n".join(f"{name}: f = {_number(float(f))}" for name, f in zip(names, one.prob, strict=True)))
    axes[0, 0].set_title("image", fontsize=10)
    for column, method in zip(axes[:, 1:].T, methods, strict=True):
        column[0].set_title(f"{method}\n{_scores_beside(worst, method)}", fontsize=10)
        for label, axis in enumerate(column):
            pair = one.sel({"method": method}).isel(label=label)
            heat(axis, one.pixels.values, pair.heatmap.values, _caption(f"{names[label]}: g = {_number(float(pair.insertion_auc))}", pair))
    return figure


def _worst(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.label == "worst case"].set_index("method")[["completeness", "soundness"]]


def _scores_beside(worst: Mapping[str, pd.DataFrame], method: str) -> str:
    """Worst-case completeness and soundness of a method, and in brackets the paper's where it has them."""
    lines = []
    for score in ("completeness", "soundness"):
        ours = short(worst["ours"].loc[method, score])
        known = method in worst["paper"].index if "paper" in worst else False
        lines.append(f"{score} {ours}" + (f" (paper: {short(worst['paper'].loc[method, score])})" if known else ""))
    return "\n".join(lines)


def mosaics(result: xr.Dataset, images: ImageSet, n_images: int = 2) -> Figure:
    """Mosaics with two true labels: each row a method, for each mosaic the maps of its left and of its right label.

    A frame marks the half that the label is in. Below a map are g and the shares in that half: of the map's mass, and of the tenth of the
    pixels that is most salient. 50 % is what a map that ignores the label scores on average over the two.

    Args:
        result: an evaluation of mosaics with maps, as `salkit.studies.mosaics.add_localisation` returns it.
        images: the mosaics.
        n_images: how many to show.
    """
    result = with_maps(result.isel(image=slice(n_images)), images)
    names = result.method.values
    figure = plt.figure(figsize=(4.4 * result.sizes["image"] + 0.3, 2.5 * (len(names) + 1)), layout="constrained")
    grid = figure.add_gridspec(len(names) + 1, 2 * result.sizes["image"])
    for column in range(result.sizes["image"]):
        one = result.isel(image=column)
        top = figure.add_subplot(grid[0, 2 * column : 2 * column + 2])
        _show(top, one.pixels.values.clip(0, 1), "")
        for label, side in enumerate(("left", "right")):
            title = f"{side}: {one.label_name.values[label]}\nf = {float(one.prob[label]):.2f}"
            for row, method in enumerate(names):
                axis = figure.add_subplot(grid[row + 1, 2 * column + label])
                pair = one.sel({"method": method}).isel(label=label)
                shares = f"in its half: {float(pair.localisation):.0%}, top tenth {float(pair.localisation_top):.0%}"
                caption = _caption(f"g = {short(float(pair.insertion_auc))}\n{shares}", pair)
                heat(axis, one.pixels.values, pair.heatmap.values, caption)
                height, width = pair.heatmap.shape
                axis.add_patch(Rectangle((label * width / 2 - 0.5, -0.5), width / 2, height, fill=False, ec=FRAME, lw=3, clip_on=False))
                if row == 0:
                    axis.set_title(title, fontsize=10)
                if column == label == 0:
                    axis.set_ylabel(str(method), fontsize=10)
    return figure


def label_gallery(result: xr.Dataset, images: ImageSet, method: str = "Ours", image: int = 0, columns: int = 5) -> Figure:
    """One method's maps of one image for every label, all on one colour scale, beside the image.

    A frame marks the label that is forged most: the one with the lowest soundness, where g is the most times larger than
    max(f, eps). Without one below 1 there is no frame. The net's prediction is bold.

    Args:
        result: an evaluation with maps, see `with_maps`.
        images: its images.
        method: whose maps.
        image: place of the image to show.
        columns: labels in a row.

    Raises:
        ValueError: see `with_maps`.
    """
    one = with_maps(result.sel({"method": [method]}).isel(image=[image]), images).isel(method=0, image=0)
    names, least = label_names(one), float(one.soundness.min())
    rows = -(-len(names) // columns)
    figure = plt.figure(figsize=(1.7 * (columns + rows) + 0.6, 2.2 * rows + 0.3), layout="constrained")
    grid = figure.add_gridspec(rows, rows + columns)
    source = figure.add_subplot(grid[:, :rows])
    note = f"{method}\nbold: the net's prediction" + (f"\nframe: forged most, soundness {short(least)}" if least < 1 else "")
    _show(source, one.pixels.values, note, fontsize=10)
    limits = (float(one.heatmap.min()), float(one.heatmap.max()))
    for label, name in enumerate(names):
        axis = figure.add_subplot(grid[label // columns, rows + label % columns])
        pair = one.isel(label=label)
        heat(axis, one.pixels.values, pair.heatmap.values, _caption(_f_and_g(pair), pair), limits)
        axis.set_title(name, fontsize=10, weight="bold" if label == int(one.prediction) else "normal")
        if least < 1 and label == int(one.soundness.argmin("label")):
            height, width = pair.heatmap.shape
            axis.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, ec=FORGED, lw=4, clip_on=False))
    scale = plt.cm.ScalarMappable(plt.Normalize(*limits), "magma")
    figure.colorbar(scale, ax=figure.axes, shrink=0.7, label="value of the map")
    return figure


def contact_sheet(result: xr.Dataset, images: ImageSet, n_images: int = 3, columns: int = 10) -> Figure:
    """All methods on a few images: the image first, then each method's map of the net's prediction, each on its own colour scale.

    Below a map is g of the prediction, and of masks the total variation and the area.

    Args:
        result: an evaluation with maps, see `with_maps`.
        images: its images.
        n_images: how many to show, the first ones.
        columns: the most in a row; an image with more methods than that fills several rows.

    Raises:
        ValueError: see `with_maps`.
    """
    few = result.isel(image=slice(n_images))
    predicted = few.isel(label=few.prediction)
    names = (predicted.label_name if "label_name" in predicted.coords else predicted.label).values.tolist()
    one_label = predicted.drop_vars(["label", "label_name"], errors="ignore").expand_dims("label")
    shown = with_maps(one_label, images).isel(label=0)
    methods = shown.method.values.tolist()
    bands = -(-(len(methods) + 1) // columns)
    columns = -(-(len(methods) + 1) // bands)
    size = (1.25 * columns, 2.05 * bands * len(names) + 0.3)
    figure, axes = plt.subplots(bands * len(names), columns, figsize=size, squeeze=False, layout="constrained")
    for i, name in enumerate(names):
        cells = axes[bands * i : bands * (i + 1)].flatten()
        for axis in cells[len(methods) + 1 :]:
            axis.set_axis_off()
        one = shown.isel(image=i)
        _show(cells[0], one.pixels.values, f"{name}\nf = {_number(float(one.prob))}", fontsize=8)
        for axis, method in zip(cells[1:], methods, strict=False):
            pair = one.sel({"method": method})
            about = _caption(f"g = {_number(float(pair.insertion_auc))}", pair)
            heat(axis, one.pixels.values, pair.heatmap.values, about, fontsize=8)
            axis.set_title(method.replace(" (", "\n(").replace(" and ", "\nand "), fontsize=8)
    figure.supxlabel("maps of the net's prediction, each on its own scale from the 1st to the 99th percentile of its values", fontsize=10)
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


def heat(
    axis: Axes, pixels: np.ndarray, heatmap: np.ndarray, caption: str = "", limits: tuple[float, float] | None = None, fontsize: float = 9
) -> None:
    """A heatmap `(H, W)` over its image `(H, W, 3)` in gray: from dark to bright between the 1st and 99th percentile of its values.

    With `limits` it is drawn between them, and hides the image so that its colours can be read off a scale. A map that was not kept (NaN)
    leaves the image in gray.
    """
    axis.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=1)
    if np.isnan(heatmap).any():
        _show(axis, np.zeros((*pixels.shape[:2], 4)), f"{caption}\n(map not kept)", fontsize=fontsize)
        return
    if is_no_map(heatmap):
        caption = f"{caption}\n(constant: no map)"
    heatmap = heatmap.astype(np.float64)
    low, high = np.percentile(heatmap, [1, 99]) if limits is None else limits
    scaled = (heatmap - low) / ((high - low) or 1.0)
    _show(axis, scaled, caption, fontsize=fontsize, cmap="magma", alpha=0.65 if limits is None else 1, vmin=0, vmax=1)


def _show(axis: Axes, image: np.ndarray, caption: str, *, fontsize: float = 9, **look: Any) -> None:
    axis.imshow(image, **look)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(caption, fontsize=fontsize)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _caption(text: str, pair: xr.Dataset) -> str:
    """A caption, with total variation and area below where the map is a mask."""
    return "\n".join(filter(None, (text, _tv_and_area(pair))))


def _tv_and_area(pair: xr.Dataset) -> str:
    tv = float(pair.total_variation) if "total_variation" in pair else np.nan
    return "" if np.isnan(tv) else f"TV {tv:,.0f}, area {float(pair.area):.0%}" if tv >= 10 else f"TV {tv:.1f}, area {float(pair.area):.0%}"


def _f_and_g(pair: xr.Dataset) -> str:
    return f"f = {_number(float(pair.prob))}, g = {_number(float(pair.insertion_auc))}"


def _number(value: float) -> str:
    """A probability for reading.

    Example:
        >>> _number(0.837), _number(0.00000412)
        ('0.84', '4e-6')
    """
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")

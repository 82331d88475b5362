"""The figures: every function takes results and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

PALETTE = sns.color_palette("colorblind")
MARKERS = "osD^vP*X<"
GRAY = 0.45
"""How dark the hidden pixels are drawn; to the net they are exactly the mean colour."""


def use_style() -> None:
    """The kit's style: figures legible at page width and colour-blind-safe, tables that do not wrap."""
    pd.set_option("display.width", 250, "display.max_columns", 20)
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE)
    plt.rcParams.update({"figure.dpi": 72, "savefig.dpi": 150, "savefig.bbox": "tight"})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})


def save_figure(figure: Figure, output_dir: str | Path, name: str) -> None:
    """Write `output_dir/figures/name.png` and `.pdf`."""
    folder = Path(output_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"{name}.{suffix}")


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
        _show(row[0], image, f"net: {one.label.values[right]}")
        cells = [(method, label) for method in methods for label in (right, wrong)]
        for axis, (method, label) in zip(row[1:], cells, strict=True):
            pair = one.sel({"method": method}).isel(label=label)
            mask = pair.heatmap.values[..., None]
            _show(axis, mask * image + (1 - mask) * GRAY, f"{pair.label.item()}\n{_f_and_g(pair)}")
    kinds = [f"{kind} label\n" + r"$\lambda_{TV}$ = " + method for method in methods for kind in ("predicted", "wrong")]
    for axis, title in zip(axes[0], ["image", *kinds], strict=True):
        axis.set_title(title, fontsize=12)
    figure.tight_layout()
    return figure


def probability_curves(curves: xr.DataArray, prob: xr.DataArray) -> Figure:
    """Figure 3: mean probability of the best and of the second-best label against the share of kept pixels, one line a method.

    Args:
        curves: `insertion_curve` of an evaluation, dims method, image, label, kept.
        prob: probabilities on the whole images, dims image, label.
    """
    order = prob.argsort(axis=prob.get_axis_num("label"))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    share = curves.kept / curves.kept.max()
    for axis, place, title in zip(axes, (-1, -2), ("best label (higher: complete)", "second-best label (lower: sound)"), strict=True):
        label = order.isel(label=place).drop_vars("label", errors="ignore")
        mean = curves.isel(label=label).mean("image")
        for i, method in enumerate(curves.method.values):
            axis.plot(share, mean.sel({"method": method}), color=_ramp(len(curves.method))[i], label=method, lw=2)
        axis.axhline(float(prob.isel(label=label).mean()), color="0.4", ls=":", lw=1.2, label="whole image")
        axis.set(xlabel="share of pixels kept", title=title, xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("mean probability of the label")
    axes[1].legend(title=r"$\lambda_{TV}$", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def sweep(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Worst-case completeness and soundness with intervals against lTV, one line a table (name -> tidy table whose methods are lTVs)."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, metric in zip(axes, ("completeness", "soundness"), strict=True):
        for i, (name, table) in enumerate(tables.items()):
            rows = table[table.metric == metric]
            errors = [rows.ours - rows.low, rows.high - rows.ours]
            places = np.arange(len(rows)) + 0.08 * (i - 0.5)
            axis.errorbar(places, rows.ours, errors, marker=MARKERS[i], color=PALETTE[i], capsize=3, lw=2, label=name)
            axis.set_xticks(np.arange(len(rows)), rows.method)
        axis.set(xlabel=r"$\lambda_{TV}$", ylabel=f"worst-case {metric}")
    axes[0].set_ylim(0, 1)
    axes[1].set_yscale("log")
    axes[1].set_ylim(top=1)
    axes[0].legend(frameon=False, loc="lower left")
    return figure


def completeness_soundness(table: pd.DataFrame) -> Figure:
    """Figure 4, left: worst-case soundness against worst-case completeness, one point a method; hollow, the paper's values."""
    figure, axis = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    _scatter(axis, table, "completeness")
    axis.plot([], [], marker="o", mfc="none", color="0.3", ls="none", label="hollow: the paper's value")
    axis.set(xlabel="worst-case completeness", ylabel="worst-case soundness")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def best_effort(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Figure 4, right: worst-case soundness against best effort, a panel a table (title -> tidy table)."""
    figure, axes = plt.subplots(1, len(tables), figsize=(4.6 * len(tables) + 2, 4.4), squeeze=False, sharey=True, layout="constrained")
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        n = int(table[table.metric == "best_effort"].n.max())
        _scatter(axis, table, "best_effort")
        axis.set(xlabel="best effort", title=f"{title}\n(best effort: n = {n})")
        if n == 0:
            axis.text(0.5, 0.5, "no image has a second-best label\nwith probability 0.01 or more", ha="center", va="center")
    axes[0, 0].set_ylabel("worst-case soundness")
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes[0]), key=lambda found: len(found[1]))
    figure.legend(handles, labels, frameon=False, loc="outside right upper")
    return figure


def _scatter(axis: Axes, table: pd.DataFrame, x: str) -> None:
    """Points with intervals for the methods of a tidy table that have the metric `x`; the paper's points hollow."""
    for i, method in enumerate(table.method.unique()):
        at = table[table.method == method].set_index("metric").loc[[x, "soundness"]]
        if at.n.min() == 0:
            continue
        # Ten colours and nine markers: no two of the first ninety methods look alike.
        color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        (x_error, y_error) = ([[row.ours - row.low], [row.high - row.ours]] for row in at.itertuples())
        axis.errorbar(at.ours.iloc[0], at.ours.iloc[1], y_error, x_error, color=color, marker=marker, ms=9, lw=1, ls="none", label=method)
        axis.plot(at.paper.iloc[0], at.paper.iloc[1], marker=marker, ms=9, mfc="none", color=color, ls="none")
    axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))


def label_dependence(table: pd.DataFrame) -> Figure:
    """Worst-case soundness against how alike a method's maps of two labels are: on the right stands what ignores the label."""
    figure, axis = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    _scatter(axis, table, "label_correlation")
    axis.set(xlim=(-0.24, 1.04), xlabel="rank correlation of the maps of two labels", ylabel="worst-case soundness")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


def learning_curves(curves: pd.DataFrame) -> Figure:
    """Maskers in training, a panel each: area of the masks, and the true label's probability with and without what they keep.

    Args:
        curves: rows of `train_masker` with a column `masker`.
    """
    names = list(dict.fromkeys(curves.masker))
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), sharey=True, squeeze=False, layout="constrained")
    lines = {"area": "area of the mask", "kept": "p(true): mask kept", "removed": "p(true): mask removed", "whole": "p(true): whole image"}
    for axis, name in zip(axes[0], names, strict=True):
        rows = curves[(curves.masker == name) & (curves.phase == "masks")]
        for i, (column, label) in enumerate(lines.items()):
            axis.plot(rows.images / 1000, rows[column], color=PALETTE[i], ls=["-", "-", "-", ":"][i], marker=MARKERS[i], ms=4, label=label)
        axis.set(title=name, xlabel="thousand images seen", ylim=(0, 1))
    axes[0, 0].set_ylabel("on held-out images")
    axes[0, -1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def randomisation(result: xr.Dataset) -> Figure:
    """Similarity of maps before and after layers are randomised: a row a mode, a panel a measure, one line a method (mean of images)."""
    titles = {"spearman": "Spearman", "spearman_absolute": "Spearman of |map|", "ssim": "SSIM", "hog": "HOG"}
    modes = result["mode"].values
    figure, axes = plt.subplots(len(modes), len(titles), figsize=(13, 3.2 * len(modes)), sharey=True, squeeze=False, layout="constrained")
    for row, mode in zip(axes, modes, strict=True):
        for axis, (measure, title) in zip(row, titles.items(), strict=True):
            values = result[measure].sel({"mode": mode}).mean("image")
            for i, method in enumerate(result.method.values):
                axis.plot(values.sel({"method": method}), color=PALETTE[i], marker=MARKERS[i], label=method)
            axis.axhline(0, color="0.6", lw=1, ls=":")
            axis.set(title=title, ylim=(-0.4, 1.05))
            axis.set_xticks(range(values.sizes["stage"]), result.stage.values, rotation=45, ha="right", fontsize=9)
        row[0].set_ylabel(f"{mode}\nsimilarity to the trained net's map")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return figure


def randomised_maps(result: xr.Dataset, mode: str = "cascading") -> Figure:
    """The maps of one image: the trained net's on the left, then with ever more stages randomised; a row a method."""
    stages, methods = result.stage.values, result.method.values
    size = (1.6 * (len(stages) + 1), 1.75 * len(methods))
    figure, axes = plt.subplots(len(methods), len(stages) + 1, figsize=size, squeeze=False, layout="constrained")
    for row, method in zip(axes, methods, strict=True):
        heat(row[0], result.pixels.values, result.original.sel({"method": method}).values)
        row[0].set_ylabel(method, fontsize=10)
        for axis, stage in zip(row[1:], stages, strict=True):
            heat(axis, result.pixels.values, result.heatmap.sel({"method": method, "stage": stage, "mode": mode}).values)
    for axis, title in zip(axes[0], ["trained", *(f"to {stage}" for stage in stages)], strict=True):
        axis.set_title(title, fontsize=10)
    return figure


def protocol_distances(summary: pd.DataFrame) -> Figure:
    """How far every protocol's worst cases are from the paper's columns (darker is closer), and how many images would exclude it.

    A panel a quantity; rows are what maps are learned with, columns what they are scored with; boxed is compatible at this sample size.
    """
    rows = [(softmax, loss) for softmax in ("all", "labels") for loss in ("nll", "released")]
    columns = [(thresholds, rule) for thresholds in ("paper", "released") for rule in ("mean", "trapezoid")]
    table = summary.set_index(["softmax", "loss", "thresholds", "rule"])
    titles = {"distance_completeness": "distance, completeness", "distance_soundness": "distance, soundness", "distance": "distance, both"}
    panels = titles | {"n_to_exclude": "images to exclude it"}
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 3.7), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        values = np.array([[table.loc[(*row, *column), name] for column in columns] for row in rows])
        far = 0.3 - np.log10(values.clip(1, 1000)) / 10 if name == "n_to_exclude" else values
        axis.imshow(far, cmap="viridis", vmin=0, vmax=0.3 if name == "n_to_exclude" else 0.6, aspect="auto")
        for y, x in np.ndindex(values.shape):
            compatible = table.loc[(*rows[y], *columns[x]), "verdict"] == "compatible"
            frame = {"boxstyle": "square,pad=0.35", "fc": "none", "ec": "white", "lw": 1.5} if compatible and name == "distance" else None
            text = f"{values[y, x]:.0f}" if name == "n_to_exclude" else f"{values[y, x]:.2f}"
            light = far[y, x] < (0.2 if name == "n_to_exclude" else 0.4)
            axis.text(x, y, text, ha="center", va="center", color="white" if light else "black", bbox=frame)
        axis.set_xticks(range(len(columns)), [f"{thresholds}\n{rule}" for thresholds, rule in columns], fontsize=9)
        axis.set_yticks(range(len(rows)), [f"softmax: {softmax}\nloss: {loss}" for softmax, loss in rows], fontsize=9)
        axis.set(title=title)
        axis.tick_params(length=0)
    figure.supxlabel("thresholds and AUC rule", fontsize=11)
    return figure


def passes_to_quality(measured: Mapping[str, pd.DataFrame], scores: Mapping[str, str]) -> Figure:
    """Scores against the composites spent on a pair, a row of panels for each case and a line for each schedule.

    Lines are means over images, bands their 95 % intervals; an image counts with its mean over seeds.

    Args:
        measured: title of a case -> columns `schedule, image, composites` and the scores, see `salkit.studies.quality.per_image`.
        scores: columns -> titles of the panels.
    """
    figure, axes = plt.subplots(len(measured), len(scores), figsize=(4.1 * len(scores), 3.4 * len(measured)), squeeze=False, sharex="row")
    for row, (case, table) in zip(axes, measured.items(), strict=True):
        images = table.groupby(["schedule", "image", "composites"], sort=False)[list(scores)].mean().reset_index()
        decades = (1.0,) if images.composites.max() > 100 * images.composites.min() else (1.0, 2.0, 5.0)
        for axis, (score, title) in zip(row, scores.items(), strict=True):
            look = {"hue": "schedule", "style": "schedule", "markers": True, "dashes": False, "errorbar": ("ci", 95), "seed": 0}
            sns.lineplot(images, x="composites", y=score, ax=axis, legend=axis is axes[0][0], **look)
            axis.set(xscale="log", xlabel="composites spent on a pair", ylabel="", title=title)
            axis.xaxis.set(major_locator=LogLocator(subs=decades), major_formatter="{x:,.0f}", minor_formatter=NullFormatter())
        row[0].set_ylabel(case)
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
    _show(axes[0, 0], one.pixels.values, "image")
    for axis, label in zip(axes[0, 1:], names, strict=True):
        axis.set_title(str(label), fontsize=10)
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


def heat(axis: Axes, pixels: np.ndarray, heatmap: np.ndarray, caption: str = "") -> None:
    """A heatmap `(H, W)` over its image `(H, W, 3)` in gray: from dark to bright between the 1st and 99th percentile of its values."""
    low, high = np.percentile(heatmap, [1, 99])
    axis.imshow(pixels.mean(-1), cmap="gray", vmin=0, vmax=1)
    axis.imshow((heatmap - low) / max(high - low, 1e-12), cmap="magma", alpha=0.65, vmin=0, vmax=1)
    _frame(axis, caption)


def _show(axis: Axes, image: np.ndarray, caption: str) -> None:
    axis.imshow(image.clip(0, 1))
    _frame(axis, caption)


def _f_and_g(pair: xr.Dataset) -> str:
    return f"f = {_probability(pair.prob)}   g = {_probability(pair.insertion_auc)}"


def _probability(value: xr.DataArray) -> str:
    return f"{float(value):.2f}" if float(value) >= 0.01 else f"{float(value):.0e}".replace("e-0", "e-")


def _frame(axis: Axes, caption: str) -> None:
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(caption, fontsize=9)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _ramp(n: int) -> list[tuple[float, float, float]]:
    """Ordered colours for an ordered parameter."""
    return sns.color_palette("viridis", n + 1)[:n]

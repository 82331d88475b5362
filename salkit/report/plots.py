"""Plots of numbers: each function takes results and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from salkit.studies.quality import SCORES, per_image

PALETTE = sns.color_palette("colorblind")
MARKERS = "osD^vP*X<"
BESIDE: dict[str, Any] = {"frameon": False, "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
"""A legend to the right of a panel."""


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


def probability_curves(curves: xr.DataArray, prob: xr.DataArray) -> Figure:
    """Figure 3: mean probability of the best and of the second-best label against the share of kept pixels, one line per method.

    Args:
        curves: `insertion_curve` of an evaluation, dims method, image, label, kept.
        prob: probabilities on the whole images, dims image, label.
    """
    order = prob.argsort(axis=prob.get_axis_num("label"))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    share = curves.kept / curves.kept.max()
    ordered = sns.color_palette("viridis", len(curves.method) + 1)
    for axis, place, title in zip(axes, (-1, -2), ("best label (higher: complete)", "second-best label (lower: sound)"), strict=True):
        label = order.isel(label=place).drop_vars("label", errors="ignore")
        mean = curves.isel(label=label).mean("image")
        for color, method in zip(ordered, curves.method.values, strict=False):
            axis.plot(share, mean.sel({"method": method}), color=color, label=method, lw=2)
        axis.axhline(float(prob.isel(label=label).mean()), color="0.4", ls=":", lw=1.2, label="whole image")
        axis.set(xlabel="share of pixels kept", title=title, xlim=(0, 1), ylim=(0, 1))
    axes[0].set_ylabel("mean probability of the label")
    axes[1].legend(title=r"$\lambda_{TV}$", **BESIDE)
    return figure


def sweep(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Worst-case completeness and soundness with intervals against lTV, one line per table (name -> tidy table whose methods are lTVs)."""
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
    axes[1].set(yscale="log", ylim=(None, 1))
    axes[0].legend(frameon=False, loc="lower left")
    return figure


def completeness_soundness(table: pd.DataFrame) -> Figure:
    """Figure 4, left: worst-case soundness against worst-case completeness, one point per method; hollow symbols are the paper's values."""
    figure, axis = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    _scatter(axis, table, "completeness")
    axis.plot([], [], marker="o", mfc="none", color="0.3", ls="none", label="hollow: the paper's value")
    axis.set(xlabel="worst-case completeness", ylabel="worst-case soundness")
    axis.legend(**BESIDE)
    return figure


def best_effort(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Figure 4, right: worst-case soundness against best effort, one panel per table (title -> tidy table)."""
    figure, axes = plt.subplots(1, len(tables), figsize=(4.6 * len(tables) + 2, 4.4), squeeze=False, sharey=True, layout="constrained")
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        n = int(table[table.metric == "best_effort"].n.max())
        _scatter(axis, table, "best_effort")
        axis.set(xlabel="best effort", title=f"{title}\n(best effort: n = {n})")
        if n == 0:
            axis.text(0.5, 0.5, "no image has a second-best label\nwith probability 0.01 or more", ha="center", va="center")
    axes[0, 0].set_ylabel("worst-case soundness")
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes[0]), key=lambda legend: len(legend[1]))
    figure.legend(handles, labels, frameon=False, loc="outside right upper")
    return figure


def _scatter(axis: Axes, table: pd.DataFrame, x: str) -> None:
    """Points with intervals for the methods of a tidy table that have the metric `x`; the paper's points hollow."""
    for i, method in enumerate(table.method.unique()):
        at = table[table.method == method].set_index("metric").loc[[x, "soundness"]]
        if at.n.min() == 0:
            continue
        # With ten colours and nine markers the first ninety methods all look different.
        color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        (x_error, y_error) = ([[row.ours - row.low], [row.high - row.ours]] for row in at.itertuples())
        axis.errorbar(at.ours.iloc[0], at.ours.iloc[1], y_error, x_error, color=color, marker=marker, ms=9, lw=1, ls="none", label=method)
        axis.plot(at.paper.iloc[0], at.paper.iloc[1], marker=marker, ms=9, mfc="none", color=color, ls="none")
    axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))


def label_dependence(table: pd.DataFrame) -> Figure:
    """Worst-case soundness against the rank correlation of a method's maps of two labels; at 1 the map ignores the label."""
    figure, axis = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    _scatter(axis, table, "label_correlation")
    axis.set(xlim=(-0.24, 1.04), xlabel="rank correlation of the maps of two labels", ylabel="worst-case soundness")
    axis.legend(fontsize=9, **BESIDE)
    return figure


def learning_curves(curves: pd.DataFrame) -> Figure:
    """Maskers in training, one panel each: area of the masks, and the true label's probability with and without what they keep.

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
    axes[0, -1].legend(**BESIDE)
    return figure


def randomisation(result: xr.Dataset) -> Figure:
    """Similarity to the trained net's maps after layers are randomised: one row per mode, one panel per measure, one line per method.

    Lines are means over the images that have a map, bands reach from the lowest to the highest image. They start at the control: the
    trained net's maps with another seed. The last panel counts the images on which a map is none.
    """
    titles = {"spearman": "Spearman", "spearman_absolute": "Spearman of |map|", "ssim": "SSIM", "hog": "HOG"}
    modes, methods = result["mode"].values, result.method.values
    ticks = ["another seed", *result.stage.values]
    bottom = min(-0.4, *(float(result[measure].fillna(0).min()) - 0.05 for measure in titles))
    size = (3.1 * (len(titles) + 1), 3.4 * len(modes))
    figure, axes = plt.subplots(len(modes), len(titles) + 1, figsize=size, squeeze=False, layout="constrained")
    for row, mode in zip(axes, modes, strict=True):
        for axis, (measure, title) in zip(row, titles.items(), strict=False):
            for i, method in enumerate(methods):
                values = _from_control(result, measure, mode, method)
                look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "ms": 6, "label": method}
                axis.plot(values.mean("image"), **look)
                # Infinities where no image has a map: NaN would make the minimum warn.
                low, high = values.fillna(np.inf).min("image"), values.fillna(-np.inf).max("image")
                axis.fill_between(range(len(ticks)), low, high, where=np.isfinite(low), color=look["color"], alpha=0.15, lw=0)
            axis.axhline(0, color="0.6", lw=1, ls=":")
            axis.set(title=title, ylim=(bottom, 1.05))
        for i, method in enumerate(methods):
            share = _from_control(result, "spearman", mode, method).isnull().mean("image")
            places = np.arange(len(ticks)) + 0.8 * ((i + 0.5) / len(methods) - 0.5)
            row[-1].bar(places, share, 0.8 / len(methods), color=PALETTE[i % len(PALETTE)])
        row[-1].set(title="share of images\nwithout a map", ylim=(0, 1))
        for axis in row:
            axis.set_xticks(range(len(ticks)), ticks, rotation=45, ha="right", fontsize=9)
        for axis in row[1:-1]:
            axis.tick_params(labelleft=False)
        row[0].set_ylabel(f"{mode}\nsimilarity to the trained net's map")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return figure


def _from_control(result: xr.Dataset, measure: str, mode: str, method: str) -> xr.DataArray:
    """A measure of a method's maps, dims `(stage, image)`, with the control before the first stage."""
    control = result[f"{measure}_control"].expand_dims(stage=["another seed"])
    stages = [control, result[measure].sel({"mode": mode}, drop=True)]
    return xr.concat(stages, "stage").sel({"method": method}).transpose("stage", "image")


def passes_to_quality(measured: Mapping[str, pd.DataFrame]) -> Figure:
    """Scores against the composites spent on a pair: one row of panels per case, one line per schedule.

    Lines are means over images, bands their 95 % intervals; an image counts with its mean over seeds.

    Args:
        measured: title of a case -> table of `salkit.studies.quality.learning_quality`.
    """
    size = (4.1 * len(SCORES), 3.4 * len(measured))
    figure, axes = plt.subplots(len(measured), len(SCORES), figsize=size, squeeze=False, sharex="row")
    for row, (case, table) in zip(axes, measured.items(), strict=True):
        images = per_image(table).groupby(["schedule", "image", "composites"], sort=False)[list(SCORES)].mean().reset_index()
        decades = (1.0,) if images.composites.max() > 100 * images.composites.min() else (1.0, 2.0, 5.0)
        for axis, (score, title) in zip(row, SCORES.items(), strict=True):
            look = {"hue": "schedule", "style": "schedule", "markers": True, "dashes": False, "errorbar": ("ci", 95), "seed": 0}
            sns.lineplot(images, x="composites", y=score, ax=axis, legend=axis is axes[0][0], **look)
            axis.set(xscale="log", xlabel="composites spent on a pair", ylabel="", title=title)
            axis.xaxis.set(major_locator=LogLocator(subs=decades), major_formatter="{x:,.0f}", minor_formatter=NullFormatter())
        row[0].set_ylabel(case)
    figure.tight_layout()
    return figure

"""The figures of notebook 06, from the tables of `salkit.studies.protocol_grid` and `salkit.studies.released_scores`."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from salkit.report.plots import MARKERS, PALETTE
from salkit.studies.protocol_grid import CELL, CHOICES, THRESHOLDS
from salkit.studies.released_scores import best_possible

TIED, APART, EARLIER = PALETTE[0], "0.6", PALETTE[1]


def protocol_distances(summary: pd.DataFrame, earlier: pd.DataFrame | None = None) -> Figure:
    """Distance of every protocol from the paper's columns, the closest on top, with intervals; its parts; and the rank correlation.

    Cells that cannot be told from the closest one are blue, the others gray. Hollow squares are an earlier run's distances.

    Args:
        summary: as `cell_summary` returns it.
        earlier: as `earlier_cells` returns it, or None.
    """
    figure, axes = plt.subplots(
        1, 3, figsize=(14, 0.36 * len(summary) + 1.6), sharey=True, layout="constrained", gridspec_kw={"width_ratios": [2, 1.2, 1.2]}
    )
    places = np.arange(len(summary))
    for apart, color, name in ((False, TIED, "cannot be told from the closest"), (True, APART, "farther (corrected for all cells)")):
        rows = summary[summary.told_apart == apart]
        errors = [rows.distance - rows.low, rows.high - rows.distance]
        axes[0].errorbar(rows.distance, rows.index, xerr=errors, fmt="o", ms=7, color=color, capsize=3, lw=1.8, label=name)
        for axis, kind in ((axes[1], "distance"), (axes[2], "order")):
            axis.plot(rows[f"{kind}_completeness"], rows.index, "o", ms=7, color=color)
            axis.plot(rows[f"{kind}_soundness"], rows.index, "D", ms=7, mfc="white", mew=1.8, color=color)
    if earlier is not None:
        before = summary[CELL].merge(earlier, on=CELL, how="left").distance
        label = f"unsettled masks ({earlier.composites[0]} composites, n = {len(earlier.images[0].split())})"
        axes[0].plot(before, places, "s", ms=7, mfc="none", mew=1.6, color=EARLIER, label=label)
    axes[1].plot([], [], "o", color="0.3", label="completeness")
    axes[1].plot([], [], "D", mfc="white", mew=1.8, color="0.3", label="soundness")
    names = [" | ".join(row) for row in summary[CELL].itertuples(index=False)]
    axes[0].set_yticks(places, names, fontsize=10.5)
    axes[0].set(xlabel="mean |ours - paper| over both columns", title=f"distance, n = {summary.n.iloc[0]} images, 95 % intervals")
    axes[0].set_ylabel(" | ".join(CELL) + "\n(closest on top, chosen after seeing the data)")
    axes[1].set(xlabel="mean |ours - paper|", title="distance, by column")
    axes[2].set(xlabel="Spearman's, no unit", title="rank correlation of methods", xlim=(-1.05, 1.05))
    axes[2].axvline(0, color="0.6", lw=1, ls=":")
    for axis in axes[:2]:
        axis.set_xlim(0, None)
    for axis in axes:
        axis.grid(axis="y", color="0.9", lw=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    handles = [handle for axis in axes[:2] for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=5, fontsize=10.5)
    return figure


def protocol_effects(effects: pd.DataFrame) -> Figure:
    """What each single choice changes: the mean over the other choices with its interval, thin the range over their settings.

    Args:
        effects: as `main_effects` returns it.
    """
    titles = {"distance": "distance from the paper", "completeness": "worst-case completeness", "soundness": "worst-case soundness"}
    figure, axes = plt.subplots(1, len(titles), figsize=(13, 3.4), sharey=True, layout="constrained")
    for i, (axis, (quantity, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        rows = effects[effects.quantity == quantity].set_index("choice").loc[list(CHOICES)].reset_index()
        axis.hlines(rows.index, rows.least, rows.most, color="0.7", lw=5, label="range over the other choices")
        errors = [rows.change - rows.low, rows.high - rows.change]
        label = f"mean change, 95 % interval (n = {rows.n[0]})"
        axis.errorbar(rows.change, rows.index, xerr=errors, fmt="o", ms=7, color=PALETTE[i], capsize=4, lw=2, label=label)
        axis.axvline(0, color="0.3", lw=1, ls=":")
        axis.set(title=title, xlabel="change, no unit", ylim=(len(rows) - 0.5, -0.5))
    names = [f"{choice}:\n{before} to {after}" for choice, (before, after) in CHOICES.items()]
    axes[0].set_yticks(range(len(names)), names, fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2, fontsize=10.5)
    return figure


def released_bounds(
    areas: np.ndarray, paper: tuple[float, float] = (0.84, 0.84), points: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
) -> Figure:
    """Worst cases that areas allow over every f: one panel a pair of thresholds; what lies outside the shading cannot be attained.

    Args:
        areas: g, `(image, label)`.
        paper: the paper's (completeness, soundness).
        points: name -> thresholds -> (completeness, soundness), other points to show.
    """
    figure, axes = plt.subplots(1, len(THRESHOLDS), figsize=(11, 4.9), sharey=True, layout="constrained")
    path = np.append(np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1e-4, 30))
    for axis, (thresholds, eps) in zip(axes, THRESHOLDS.items(), strict=True):
        for p, shade, name in ((0.0, 0.12, "any f"), (0.9, 0.28, "f of the prediction at least 0.9")):
            width, height = _corner(areas, eps, p)
            axis.add_patch(Rectangle((0, 0), width, height, color=PALETTE[0], alpha=shade, lw=0))
            axis.plot(width, height, "o", color=PALETTE[0], ms=7)
            axis.text(0.02, height + 0.012, f"{name}: at most {width:.2f}, {height:.2f}", fontsize=11)
        corners = np.array([_corner(areas, eps, p) for p in path])
        axis.plot(*corners.T, color=PALETTE[0], lw=2, label="best of both as the prediction's f grows to 1")
        for i, (name, by_thresholds) in enumerate((points or {}).items()):
            look = {"color": PALETTE[(i + 2) % len(PALETTE)], "marker": MARKERS[i + 1]}
            axis.plot(*by_thresholds[thresholds], ms=9, ls="none", label=name, clip_on=False, zorder=5, **look)
        axis.plot(*paper, "*", ms=17, color=PALETTE[1], mec="k", ls="none", label=f"paper, Ours ({paper[0]:.2f}, {paper[1]:.2f})")
        title = rf"{thresholds} thresholds: $\epsilon_1$ = {eps[0]:g}, $\epsilon_2$ = {eps[1]:g}"
        axis.set(xlim=(0, 1.06), ylim=(0, 1.02), xlabel="worst-case completeness (mean over images)", title=title)
    axes[0].set_ylabel("worst-case soundness (mean over images)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3, fontsize=10.5)
    return figure


def _corner(areas: np.ndarray, eps: tuple[float, float], sure: float) -> list[float]:
    """Mean bounds on completeness and soundness."""
    return [float(bound.mean()) for bound in best_possible(areas, *eps, float(sure))]

"""The figures of notebook 01, from the tables of `salkit.studies.theory_study`."""

from __future__ import annotations

import math
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from salkit.report.plots import MARKERS, PALETTE
from salkit.studies import theory
from salkit.studies.theory_study import GIVEN, NONE, SOME

NAMES = {GIVEN: "a given interval certifies y", SOME: "some interval certifies y", NONE: "no interval certifies $-$y"}
PARTS = {GIVEN: "(completeness)", SOME: "(completeness as printed)", NONE: "(soundness)"}
LENGTH_AXIS = "interval length L (coordinates)"


def success_against_length(table: pd.DataFrame, delta: float) -> Figure:
    """Each part of the theorem against L: one panel per event, one line per d of `sweep`; dashed, the theorem's length for that d."""
    figure, axes, table = *_panels(3, (11, 4.2)), _odd_rows(table)
    for axis, event in zip(axes, theory.EVENTS, strict=True):
        for i, (d, rows) in enumerate(table[table.event == event].groupby("d")):
            _line(axis, rows.length, rows, i, f"d = {d:,}")
            axis.axvline(rows["L2" if event == NONE else "L1"].iloc[0], color=PALETTE[i], ls="--", lw=1.4)
        if event == GIVEN:
            axis.plot(rows.length, rows.exact, color="k", lw=1, label="exact law, largest d")
        axis.set(xscale="log", xlabel=LENGTH_AXIS, title=f"{NAMES[event]}\n{PARTS[event]}")
    _finish(figure, axes, delta, r"theorem's length for that d: $L_1$, $L_1$, $L_2$")
    return figure


def collapse(table: pd.DataFrame, delta: float) -> Figure:
    """Completeness and soundness against L gamma^2, one line per margin of `sweep` (one d); the lines nearly coincide."""
    figure, axes, table = *_panels(2, (10, 4.2)), _odd_rows(table)
    for axis, event, split in zip(axes, (GIVEN, NONE), (1, table.d.iloc[0]), strict=True):
        for i, (margin, rows) in enumerate(table[table.event == event].groupby("margin")):
            _line(axis, rows.length * margin**2, rows, i, rf"$\gamma$ = {margin:g}")
        axis.axvline(2 * math.log(split / delta), color="0.3", ls="--", lw=1.4)
        axis.set(xscale="log", xlabel=r"$L\,\gamma^2$ (no unit)", title=f"{NAMES[event]}\n{PARTS[event]}")
    start, stop = axes[0].get_xlim()
    scaled = np.geomspace(start, stop, 200)
    axes[0].plot(scaled, norm.cdf(np.sqrt(scaled)), color="k", lw=1, label=r"limit $\Phi(\sqrt{L}\,\gamma)$")
    _finish(figure, axes, delta, r"theorem's $2\log(1/\delta)$, $2\log(d/\delta)$")
    return figure


def shares(table: pd.DataFrame) -> Figure:
    """The share of intervals that certify y and -y on one shuffle, from `certified_shares`; right, the same on a logarithmic axis."""
    figure, axes, table = *_panels(2, (10, 4.2), sharey=False), _odd_rows(table)
    for axis in axes:
        for i, (label, name) in enumerate(((1, "y"), (-1, "$-$y"))):
            rows = table[table.label == label]
            shown = rows.share.where((rows.share > 0) | (axis is axes[0]))
            axis.plot(rows.length, shown, MARKERS[i], ms=5, color=PALETTE[i], label=f"certify {name}")
            axis.plot(rows.length, rows.expected, color=PALETTE[i], lw=1, label=f"certify {name}: mean over all shuffles")
        for name, ls in (("L1", "--"), ("L2", ":")):
            axis.axvline(table[name].iloc[0], color="0.3", ls=ls, lw=1.4, label=f"theorem's $L_{name[1]}$")
        axis.set(xscale="log", xlabel=LENGTH_AXIS)
    axes[0].set(ylabel="share of the $d - L + 1$ intervals", title="linear axis", ylim=(-0.03, 1.03))
    axes[1].set(yscale="log", ylim=(table.share[table.share > 0].min() / 3, 2), title="logarithmic axis (a share of 0 is not drawn)")
    _legend(figure, axes, 3)
    return figure


def wrong_label_support(table: pd.DataFrame, margin: float, delta: float) -> Figure:
    """The best mask and the best interval for -y against their size, from `best_for_wrong_label`: above 0 it certifies -y."""
    figure, (axis,) = _panels(1, (8, 4.6))
    axis.plot(table.length, table.any_mask, color=PALETTE[1], marker=MARKERS[1], ms=4, label="best mask, unconstrained")
    axis.plot(table.length, table.interval, color=PALETTE[0], marker=MARKERS[0], ms=4, label="best interval")
    axis.plot(table.length, table.bound, color="k", lw=1, label=rf"bound on all intervals of one size, probability {1 - delta:g}")
    axis.axhline(0, color="0.3", lw=1)
    axis.axhline(-margin, color="0.3", lw=1, ls="-.", label=r"the whole input, $-\gamma$")
    axis.axvline(table.L2.iloc[0], color="0.3", ls=":", lw=1.6, label="theorem's $L_2$")
    axis.set(xscale="log", ylim=(-1.5 * margin - 0.1, 1.1), xlabel="size of the mask (coordinates)")
    axis.set_ylabel(r"mean of $-y\,d\,w_i x_i$ over the mask (no unit)")
    _legend(figure, [axis], 2)
    return figure


def counterexample_success(table: pd.DataFrame, delta: float) -> Figure:
    """Each part of the theorem against L / d for x = e_1 and near it, from `counterexamples`; lines are the closed forms."""
    figure, axes = _panels(2, (10, 4.6))
    for axis, (case, rows) in zip(axes, table.groupby("case", sort=False), strict=True):
        for i, event in enumerate(theory.EVENTS):
            at = rows[rows.event == event]
            axis.plot(at.length / at.d, at.exact, color=PALETTE[i], lw=1.2)
            axis.plot(at.length / at.d, at.probability, MARKERS[i], color=PALETTE[i], ms=6 - i, label=NAMES[event])
            axis.vlines(at.length / at.d, at.low, at.high, color=PALETTE[i], lw=1.2)
        for name, ls in (("L1", "--"), ("L2", ":")):
            axis.axvline(rows[name].iloc[0] / rows.d.iloc[0], color="0.3", ls=ls, lw=1.4, label=f"$L_{name[1]}$ for B = 1")
        axis.set(xlabel="L / d (share of the coordinates)", title=case)
    axes[0].plot([], [], color="k", lw=1.2, label="lines: closed forms")
    _finish(figure, axes, delta)
    return figure


def concentration_success(table: pd.DataFrame, delta: float) -> Figure:
    """Both parts against the share k / d of active coordinates, at the lengths for B = 1 and for the true B, from `concentration`."""
    figure, axes = _panels(2, (10, 4.4))
    for axis, event, name in zip(axes, (GIVEN, NONE), ("L_1", "L_2"), strict=True):
        for i, (assumed, rows) in enumerate(table[table.event == event].groupby("assumed")):
            _line(axis, rows.n_active / rows.d, rows, i, f"length for {assumed}")
            axis.plot(rows.n_active / rows.d, rows.exact, color="k", lw=1, label="exact law" if rows.exact.notna().any() else None)
        axis.set(xscale="log", xlabel="k / d = 1 / B (share of active coordinates)", title=f"{NAMES[event]}\n{PARTS[event]} at ${name}$")
    _finish(figure, axes, delta)
    return figure


def _panels(n: int, size: tuple[float, float], sharey: bool = True) -> tuple[Figure, np.ndarray]:
    """A row of n panels; at 76 dots per inch a figure fills the width of a notebook's page."""
    figure, axes = plt.subplots(1, n, figsize=size, dpi=76, sharey=sharey, squeeze=False, layout="constrained")
    return figure, axes[0]


def _line(axis: Axes, x: pd.Series, rows: pd.DataFrame, i: int, label: str) -> None:
    """Probabilities with their Wilson interval as a band."""
    axis.plot(x, rows.probability, color=PALETTE[i], marker=MARKERS[i], ms=4.5, lw=1.6, label=label)
    axis.fill_between(x, rows.low, rows.high, color=PALETTE[i], alpha=0.2, lw=0)


def _finish(figure: Figure, axes: np.ndarray, delta: float, note: str | None = None) -> None:
    """Add the line at 1 - delta, the vertical axis and the legend; `note` explains the dashed vertical lines."""
    for axis in axes:
        axis.axhline(1 - delta, color="0.3", ls="-.", lw=1, label=rf"$1 - \delta$ = {1 - delta:g}")
        axis.set_ylim(-0.03, 1.05)
    axes[0].plot([], [], color="0.3", ls="--", label=note)
    axes[0].set_ylabel("probability over shuffles")
    _legend(figure, axes, 3)


def _legend(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    """Add one legend for all panels, below them."""
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), frameon=False, ncols=columns, loc="outside lower center")


def _odd_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with odd lengths: at even lengths sums of the dense toy input can tie, which would put kinks into the lines."""
    return table[table.length % 2 == 1]

"""Plots of numbers: each function takes results and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy import stats

from salkit.scores import completeness, soundness

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


def _count(n: pd.Series) -> str:
    """How many images: `n = 10`, or `n = 8 to 10`; without the rows that have none."""
    some = n[n > 0]
    return f"n = {some.min():.0f}" if some.nunique() == 1 else f"n = {some.min():.0f} to {some.max():.0f}"


def probability_curves(curves: xr.DataArray, prob: xr.DataArray) -> Figure:
    """Figure 3: mean probability of the best and of the second-best label against the share of kept pixels, one line per method.

    Bands are 95 % intervals of the mean over images (Student's t, cut off at 0 and 1); with one image there is none.

    Args:
        curves: `insertion_curve` of an evaluation, dims method, image, label, kept.
        prob: probabilities on the whole images, dims image, label.
    """
    order = prob.argsort(axis=prob.get_axis_num("label"))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    share = (curves.kept / curves.kept.max()).values
    colors = sns.color_palette("viridis", len(curves.method) + 1)
    for axis, place, title in zip(axes, (-1, -2), ("best label (higher: complete)", "second-best label (lower: sound)"), strict=True):
        label = order.isel(label=place).drop_vars("label", errors="ignore")
        values = curves.isel(label=label)
        n = int(values.count("image").min())
        mean = values.mean("image").transpose("method", "kept")
        half = stats.t.ppf(0.975, n - 1) * values.std("image", ddof=1).transpose("method", "kept") / n**0.5 if n > 1 else mean * np.nan
        for color, method in zip(colors, curves.method.values, strict=False):
            middle, width = mean.sel({"method": method}), half.sel({"method": method})
            axis.plot(share, middle, color=color, label=method, lw=2)
            axis.fill_between(share, (middle - width).clip(0, 1), (middle + width).clip(0, 1), color=color, alpha=0.12, lw=0)
        axis.axhline(float(prob.isel(label=label).mean()), color="0.4", ls=":", lw=1.2)
        axis.set(xlabel="share of pixels kept", title=title, xlim=(0, 1), ylim=(0, 1))
        names = [rf"$\lambda_{{TV}}$ = {method}" for method in curves.method.values]
        _label_lines(axis, share, mean.values, names, colors)
    axes[0].set_ylabel("mean probability of the label")
    figure.supxlabel(f"dotted: the whole image; n = {n} images" + ("; bands: 95 % intervals" if n > 1 else ""), fontsize=10)
    return figure


def _label_lines(axis: Axes, x: np.ndarray, lines: np.ndarray, names: Sequence[str], colors: Sequence[Any]) -> None:
    """Names `(M,)` on lines `(M, K)`, each where its line is farthest from the others and from the names already written."""
    inside = np.flatnonzero((x >= 0.1) & (x <= 0.88))
    taken: list[tuple[float, float]] = []
    for i, (line, name, color) in enumerate(zip(lines, names, colors, strict=False)):
        others = np.delete(lines, i, 0)[:, inside]
        gap = np.abs(others - line[inside]).min(0) if len(others) else np.ones(len(inside))
        # A name is about a fifth of the axis wide and a twentieth of it high.
        for at, height in taken:
            gap = np.where((np.abs(x[inside] - at) < 0.22) & (np.abs(line[inside] - height) < 0.06), -1, gap)
        k = inside[gap.argmax()]
        taken.append((x[k], line[k]))
        back = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75}
        axis.text(x[k], line[k], name, color=sns.set_hls_values(color, l=0.3), fontsize=10, ha="center", va="center", bbox=back)


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
    n = pd.concat([table.n[table.metric.isin(["completeness", "soundness"])] for table in tables.values()])
    figure.supxlabel(f"{_count(n)} images; bars: 95 % intervals", fontsize=10)
    return figure


def completeness_soundness(table: pd.DataFrame) -> Figure:
    """Figure 4, left: worst-case soundness against worst-case completeness, one named point per method, an arrow from the paper's point."""
    return _scatter({"": table}, "completeness", "worst-case completeness")


def best_effort(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Figure 4, right: worst-case soundness against best effort, one panel per table (title -> tidy table) in which an image counts.

    Raises:
        ValueError: no image counts in any table.
    """
    some = {title: table for title, table in tables.items() if table[table.metric == "best_effort"].n.max() > 0}
    if not some:
        raise ValueError(f"tables: expected an image with a second-best label of probability 0.01 or more, got none in {list(tables)}")
    return _scatter(some, "best_effort", "best effort")


def label_dependence(table: pd.DataFrame) -> Figure:
    """Worst-case soundness against the rank correlation of a method's maps of two labels; at 1 the map ignores the label."""
    return _scatter({"": table}, "label_correlation", "rank correlation of the maps of two labels (1: the label changes nothing)")


FAMILIES = {"our settings": ("o", PALETTE[3]), "other methods": ("s", PALETTE[0]), "no saliency": ("^", "0.4")}
"""Kind of method -> marker and colour."""


def family(method: str) -> str:
    """The kind of a method, a key of `FAMILIES`.

    Example:
        >>> family("Ours (s=1)"), family("LRP"), family("Random")
        ('our settings', 'other methods', 'no saliency')
    """
    return "our settings" if method.startswith("Ours") else "no saliency" if method in ("Random", "Centered Gaussian") else "other methods"


FLOOR = 0.05
"""Soundness is drawn on a logarithmic axis when some method has less."""


def _scatter(tables: Mapping[str, pd.DataFrame], x: str, xlabel: str) -> Figure:
    """Points with intervals and names for the methods that have the metric `x`, one panel per table; ours are drawn last."""
    figure, axes = plt.subplots(1, len(tables), figsize=(max(8.5, 6.2 * len(tables)), 6), squeeze=False, sharey=True, layout="constrained")
    wide = {title: table.pivot(index="method", columns="metric") for title, table in tables.items()}
    kinds: set[str] = set()
    paper = False
    for axis, (title, rows) in zip(axes[0], wide.items(), strict=True):
        lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
        rows = rows[(rows["n"][[x, "soundness"]] > 0).all(axis=1)]
        for method in sorted(rows.index, key=lambda name: (family(name) == "our settings", name == "Ours")):
            across, up = (rows.loc[method].unstack()[metric] for metric in (x, "soundness"))
            marker, color = FAMILIES[family(method)]
            kinds.add(family(method))
            lines += [((across.low, up.ours), (across.high, up.ours)), ((across.ours, up.low), (across.ours, up.high))]
            for ends in lines[-2:]:
                axis.plot(*zip(*ends, strict=True), color=color, lw=1, alpha=0.3, zorder=1)
            axis.plot(across.ours, up.ours, marker, color=color, ms=12 if method == "Ours" else 8, mec="white", zorder=4, label=method)
            if across.paper == across.paper and up.paper == up.paper:
                paper = True
                axis.plot(across.paper, up.paper, marker, mfc="white", mec=color, ms=6, zorder=2)
                arrow = {"arrowstyle": "->", "color": color, "lw": 1, "alpha": 0.7, "shrinkA": 4, "shrinkB": 6}
                axis.annotate("", (across.ours, up.ours), (across.paper, up.paper), arrowprops=arrow, zorder=2)
                lines.append(((across.paper, up.paper), (across.ours, up.ours)))
        n, n_sound = _count(rows["n"][x]), _count(rows["n"]["soundness"])
        counts = f"{n} images" if n == n_sound else f"{xlabel.split(' (')[0]}: {n} images; soundness: {n_sound}"
        axis.set(xlabel=xlabel, title=f"{title}\n{counts}".strip())
        axis.margins(0.07, 0.12)
        wide[title] = (rows["ours"][[x, "soundness"]], lines)
    least = min(points.soundness.min() for points, _ in wide.values())
    if 0 < least < FLOOR:
        axes[0, 0].set(yscale="log")
        axes[0, 0].yaxis.set(major_formatter=FuncFormatter(lambda value, _: f"{value:g}"), minor_formatter=NullFormatter())
    axes[0, 0].set_ylabel("worst-case soundness" + (" (logarithmic)" if 0 < least < FLOOR else ""))
    _legend(figure, [kind for kind in FAMILIES if kind in kinds], paper)
    figure.draw_without_rendering()
    for axis, (points, lines) in zip(axes[0], wide.values(), strict=True):
        _name_points(axis, points, lines)
    return figure


def _legend(figure: Figure, kinds: Sequence[str], paper: bool) -> None:
    """Below the panels: what the markers are."""
    looks: dict[str, dict[str, Any]] = {kind: {"marker": FAMILIES[kind][0], "color": FAMILIES[kind][1], "mec": "white"} for kind in kinds}
    if paper:
        looks["hollow: the paper's value, with an arrow to ours"] = {"marker": "o", "mfc": "white", "mec": "0.3"}
    handles = [plt.Line2D([], [], ls="none", ms=8, label=name, **look) for name, look in looks.items()]
    bar = plt.Line2D([], [], color="0.3", lw=1, alpha=0.4, label="95 % interval")
    figure.legend(handles=[*handles, bar], frameon=False, loc="outside lower center", ncols=5, fontsize=10)


def _name_points(axis: Axes, points: pd.DataFrame, lines: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    """Write names beside points, where they cover no other name and as few points and lines as can be.

    The axis must have its final size (`figure.draw_without_rendering()`). Each name is tried at 8 distances in 24 directions; crowded
    points come first.

    Args:
        axis: with the points drawn.
        points: names as index, two columns x and y.
        lines: what names had better not cross, each from (x, y) to (x, y).
    """
    axis.autoscale(False)  # what is written must not move what is drawn
    scale, to_data = axis.figure.dpi / 72, axis.transData.inverted()
    at = axis.transData.transform(points.to_numpy(float))
    ends = [axis.transData.transform(line) for line in lines if np.isfinite(line).all()]
    along = np.concatenate([np.empty((0, 2)), *(a + (b - a) * np.linspace(0, 1, 60)[:, None] for a, b in ends)])
    frame = axis.get_window_extent()
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    crowded = [np.sort(np.hypot(*(at - point).T))[:3].sum() for point in at]
    directions = [np.array([np.cos(angle), np.sin(angle)]) for angle in np.arange(0, 2 * np.pi, np.pi / 12)]
    for i in np.argsort(crowded):
        name, color = points.index[i], FAMILIES[family(points.index[i])][1]
        text = axis.text(0, 0, name, color=color, fontsize=10, zorder=5, weight="bold" if name == "Ours" else "normal", va="bottom")
        size = np.array([text.get_window_extent().width, text.get_window_extent().height])
        tried = []
        for distance in (8, 13, 20, 30, 42, 56, 72, 90):
            for direction in directions:
                corner = at[i] + distance * scale * direction - size * (1 - direction) / 2
                low, high = corner - 2, corner + size + 2
                on_names = sum(bool((low < other[1]).all() and (other[0] < high).all()) for other in taken)
                outside = bool((low < frame.min).any() or (high > frame.max).any())
                on_points, on_lines = (int(((p > low) & (p < high)).all(1).sum()) for p in (at, along))
                tried.append((1000 * (on_names + outside) + 60 * on_points + 2 * on_lines + distance / 4, *corner))
        corner = np.array(min(tried)[1:])
        taken.append((corner - 2, corner + size + 2))
        text.set_position(tuple(to_data.transform(corner)))
        nearest = at[i].clip(corner, corner + size)
        if np.hypot(*(nearest - at[i])) > 15 * scale:
            axis.plot(*to_data.transform([nearest, at[i]]).T, color="0.5", lw=0.7, ls=":", zorder=3)


def forest(table: pd.DataFrame, metrics: Sequence[str] = ("completeness", "soundness", "insertion", "deletion")) -> Figure:
    """The paper's value and ours with its interval, a row a method, a panel a metric.

    Where the table has `ties`, the letters stand at the right: methods that share one are not told apart by the images.

    Args:
        table: columns `method, metric, paper, ours, low, high, n`, and perhaps `ties`.
        metrics: the panels.
    """
    methods = [m for m in table.method.unique() if table[(table.method == m) & table.metric.isin(metrics)].n.max() > 0]
    size = (2.6 * len(metrics) + 2.2, 0.33 * len(methods) + 1.4)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, metric in zip(axes[0], metrics, strict=True):
        rows = table[table.metric == metric].set_index("method")
        for y, method in enumerate(methods):
            if y % 2:
                axis.axhspan(y - 0.5, y + 0.5, color="0.95", lw=0, zorder=0)
            if method not in rows.index:
                continue
            row, (marker, color) = rows.loc[method], FAMILIES[family(method)]
            axis.plot([row.low, row.high], [y, y], color=color, lw=2, alpha=0.5)
            axis.plot(row.ours, y, marker, color=color, ms=7, mec="white")
            axis.plot(row.paper, y, "D", mfc="none", mec="0.2", ms=6)
            if "ties" in rows and isinstance(row.ties, str):
                axis.text(1.02, y, row.ties, transform=axis.get_yaxis_transform(), va="center", fontsize=9, color="0.3")
        axis.set(title=f"{metric.replace('_', ' ')}\n{_count(rows.n)}")
        axis.tick_params(left=False)
    axes[0, 0].set_yticks(range(len(methods)), methods, fontsize=10)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    handles = [plt.Line2D([], [], ls="none", marker="D", mfc="none", mec="0.2"), plt.Line2D([], [], color="0.3", lw=2, alpha=0.5)]
    names = ["the paper's value", "ours with its 95 % interval"]
    if "ties" in table and table.ties.fillna("").any():
        handles.append(plt.Line2D([], [], ls="none"))
        names.append("letters: methods that share one are not told apart")
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=3, fontsize=10)
    return figure


LEVELS = (0.1, 0.5, 1.0)
"""Scores whose borders `g_against_f` draws."""


def g_against_f(result: xr.Dataset, methods: Sequence[str]) -> Figure:
    """Equation 1 as a picture: g against f on logarithmic axes, where completeness and soundness are 1, 0.5 and 0.1, a panel a method.

    Above the white band a label is proved beyond what the net believes (soundness falls with each border), below it too little
    (completeness falls). The thresholds bend the borders. Points are (image, label) pairs; f below 1e-8 and g below 1e-5 are drawn there.

    Args:
        result: an evaluation; its thresholds are those of its attributes `eps_completeness` and `eps_soundness` (Section 6's by default).
        methods: the panels.
    """
    eps = {name: float(result.attrs.get(f"eps_{name}", default)) for name, default in (("completeness", 0.01), ("soundness", 0.001))}
    lowest = 10 ** np.floor(np.log10(float(result.prob.where(result.prob > 1e-8).min())))
    f = np.geomspace(min(lowest, 1e-4) / 100, 1, 601)  # room for the words at the left
    g = np.geomspace(1e-5, 1, 501)
    area, whole = (xr.DataArray(values, dims=("g", "f")) for values in np.meshgrid(g, f, indexing="ij"))
    fields = {"soundness": soundness(area, whole, eps["soundness"]), "completeness": completeness(area, whole, eps["completeness"])}
    shades = {"soundness": sns.light_palette(PALETTE[0], 6)[1:4][::-1], "completeness": sns.light_palette(PALETTE[1], 6)[1:4][::-1]}
    figure, axes = plt.subplots(1, len(methods), figsize=(4.6 * len(methods), 4.9), squeeze=False, sharey=True, layout="constrained")
    for axis, method in zip(axes[0], methods, strict=True):
        for name, field in fields.items():
            # Just below 1: a plateau has no border of its own.
            axis.contourf(f, g, field, [0, *LEVELS[:-1], 1 - 1e-6], colors=shades[name], zorder=0)
            axis.contour(f, g, field, [*LEVELS[:-1], 1 - 1e-6], colors="white", linewidths=1, zorder=1)
        auc = result.insertion_auc.sel({"method": method}).transpose("image", "label")
        prob = result.prob.transpose("image", "label")
        x, y = prob.values.clip(1e-8, 1), auc.values.clip(g[0], 1)
        predicted = np.arange(prob.sizes["label"]) == result.prediction.values[:, None]
        counts = ~np.isnan(y)
        look: dict[str, Any] = {"zorder": 3, "clip_on": False, "ls": "none", "mec": "white"}
        axis.plot(x[~predicted & counts], y[~predicted & counts], "o", color="0.15", ms=5, mew=0.5, label="other labels", **look)
        axis.plot(x[predicted & counts], y[predicted & counts], "*", color=PALETTE[3], ms=13, mew=0.7, label="the net's prediction", **look)
        axis.set(xscale="log", yscale="log", xlim=(f[0], 1), ylim=(g[0], 1), xlabel="f: probability on the whole image")
        axis.set_title(f"{method}\n{counts.any(1).sum()} images, {counts.sum()} pairs", fontsize=12)
        say: dict[str, Any] = {"fontsize": 9, "color": "black", "zorder": 2}
        for level in LEVELS:
            axis.text(f[0] * 1.5, eps["soundness"] / level * 1.06, f"soundness {level:g}", va="bottom", **say)
            border = eps["completeness"] / level * 0.97
            axis.text(border, g[0] * 1.3, f"completeness {level:g}", rotation=90, ha="right", va="bottom", **say)
    axes[0, 0].set_ylabel("g: area under the insertion curve")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=10)
    return figure


def scores_against_composites(table: pd.DataFrame, marked: Mapping[float, str] | None = None) -> Figure:
    """Scores against the composites spent on a pair, a panel a score, a line a schedule; bars are 95 % intervals.

    Args:
        table: columns `composites, score, mean, low, high, n`, and `schedule` where there are several.
        marked: composites -> what that number is, marked in every panel; by default 12, 500 and 20,000.
    """
    marked = {12: "too short", 500: "settled", 20_000: "published"} if marked is None else marked
    table = table if "schedule" in table else table.assign(schedule="")
    scores, schedules = list(dict.fromkeys(table.score)), list(dict.fromkeys(table.schedule))
    figure, axes = plt.subplots(1, len(scores), figsize=(4.1 * len(scores), 4.1), squeeze=False, layout="constrained")
    for axis, score in zip(axes[0], scores, strict=True):
        for i, schedule in enumerate(schedules):
            rows = table[(table.score == score) & (table.schedule == schedule)].sort_values("composites")
            errors = [rows["mean"] - rows.low, rows.high - rows["mean"]]
            axis.errorbar(rows.composites, rows["mean"], errors, color=PALETTE[i], marker=MARKERS[i], capsize=3, lw=2, label=schedule)
        for spent, what in marked.items():
            axis.axvline(spent, color="0.5", lw=1, ls=":", zorder=0)
            above = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 9, "color": "0.3"}
            axis.text(spent, 1.01, f"{spent:,.0f}\n{what}", **above)
        axis.set(xscale="log", xlabel="composites spent on a pair")
        axis.xaxis.set(major_formatter=FuncFormatter(lambda value, _: f"{value:,.0f}"), minor_formatter=NullFormatter())
        axis.set_title(f"{score}, {_count(table.n[table.score == score])}", fontsize=12, pad=32)
    if len(schedules) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(schedules))
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

"""Which protocol did Table 1 come from? Every combination of what differs between paper and code, against the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import special, stats

from salkit.curves import AucRule, auc
from salkit.scores import PROTOCOLS, Protocol, completeness, soundness, worst_per_image
from salkit.statistics import mean_interval

Grid = Mapping[tuple[str, str], xr.Dataset]
THRESHOLDS = {name: (p.eps_completeness, p.eps_soundness) for name, p in PROTOCOLS.items()}
CELL = ["softmax", "loss", "thresholds", "rule"]
METRICS = ("completeness", "soundness")
ROUNDING = 0.005
"""The paper prints two decimals, so its numbers are off by up to this much."""


def cells(grid: Grid) -> Iterator[tuple[dict[str, str], xr.Dataset]]:
    """The cells of the grid: their choices by name, and the worst cases `completeness` and `soundness`, `(method, image)` each."""
    for (softmax, loss), result in grid.items():
        for thresholds, (eps_completeness, eps_soundness) in THRESHOLDS.items():
            for rule in get_args(AucRule):
                g = xr.DataArray(auc(torch.from_numpy(result.insertion_curve.values), rule).numpy(), result.insertion_auc.coords)
                g, f = xr.broadcast(g, result.prob)
                scores = {"completeness": completeness(g, f, eps_completeness), "soundness": soundness(g, f, eps_soundness)}
                names = dict(zip(CELL, (softmax, loss, thresholds, rule), strict=True))
                yield names, xr.Dataset({name: worst_per_image(score) for name, score in scores.items()})


def grid_table(grid: Grid, paper: pd.DataFrame) -> pd.DataFrame:
    """One row a (cell, method, metric): the paper's value, ours with its 95 % t interval, the difference, and a test.

    `p_value` is `exclusion_p_value` of our mean. `excluded` says whether it is below 0.05 after Bonferroni's correction for all numbers of
    the cell: then this cell, on this net, does not give the paper's number. The bootstrap interval cannot say that of few images, because
    it never leaves the range of their scores.

    Args:
        grid: (softmax_over, loss) -> evaluation with `insertion_curve`.
        paper: columns `method, metric, value`.
    """
    table = _compared(grid, paper)
    intervals = [mean_interval(scores) for scores in table.pop("scores")]
    for place, end in enumerate(("low", "high"), table.columns.get_loc("ours") + 1):
        table.insert(place, end, [getattr(interval, end) for interval in intervals])
    return table


def _compared(grid: Grid, paper: pd.DataFrame) -> pd.DataFrame:
    """`grid_table` without intervals, and with the scores of each row's images in the column `scores`."""
    known = {(row.method, row.metric): row.value for row in paper.itertuples()}
    rows = []
    for names, worst in cells(grid):
        compared = sum((m, metric) in known for m in worst.method.values for metric in METRICS)
        for method, metric in product(worst.method.values, METRICS):
            scores = worst[metric].sel({"method": method}).values
            scores = scores[~np.isnan(scores)].astype(np.float64)
            target, ours = known.get((method, metric), np.nan), scores.mean() if len(scores) else np.nan
            p_value = exclusion_p_value(ours, target, len(scores))
            numbers = [target, ours, len(scores), ours - target, p_value, p_value * compared < 0.05, scores]
            rows.append([*names.values(), method, metric, *numbers])
    columns = [*CELL, "method", "metric", "paper", "ours", "n", "difference", "p_value", "excluded", "scores"]
    return pd.DataFrame(rows, columns=columns)


def exclusion_p_value(mean: float, paper: float, n: int) -> float:
    """Bound on the probability of a mean as far from the paper's value over n images, if that value were the true mean.

    It holds for any distribution of scores in [0, 1] (Hoeffding 1963): `2 exp(-n KL(mean || paper))`, with the Kullback-Leibler divergence
    of two coins. The paper's value may be off by its rounding. NaN where the paper has no value.

    Example:
        >>> round(exclusion_p_value(0.001, 0.58, 3), 2), exclusion_p_value(0.001, 0.58, 30) < 1e-10
        (0.16, True)
    """
    if paper != paper or not n:
        return float("nan")
    return min(1.0, 2 * float(np.exp(-n * _divergence(mean, paper))))


def _divergence(mean: float, paper: float) -> float:
    """Kullback-Leibler divergence of two coins; the paper's may be off by its rounding."""
    a, b = np.clip(mean, 0, 1), np.clip(np.clip(mean, paper - ROUNDING, paper + ROUNDING), 1e-9, 1 - 1e-9)
    return float(special.rel_entr(a, b) + special.rel_entr(1 - a, 1 - b))


def cell_summary(grid: Grid, paper: pd.DataFrame, n_resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """How far each cell is from the paper, over the paper's methods: one row a cell, the closest first.

    Returns:
        The cell's choices; for each metric the mean absolute distance from the paper's column and the rank correlation with it; `distance`,
        the mean over both metrics, with its interval `low` to `high` from resampling images (the same for all methods); `excluded`, how
        many of the `compared` numbers are excluded (see `grid_table`); `verdict`, `"compatible"` if that is 0; `n` images; and
        `n_to_exclude`, how many images would exclude a number if the means did not change.
    """
    table = _compared(grid, paper)
    values = paper.pivot(index="method", columns="metric", values="value")
    rng = np.random.default_rng(seed)
    rows = []
    for names, scores in cells(grid):
        methods = [m for m in scores.method.values if m in values.index]
        target = values.loc[methods, list(METRICS)].to_numpy()
        ours = np.stack([scores[metric].sel({"method": methods}).transpose("method", "image").values for metric in METRICS], 1)
        draws = rng.integers(ours.shape[-1], size=(n_resamples, ours.shape[-1]))
        resampled = np.abs(ours[..., draws].mean(-1) - target[..., None]).mean((0, 1))
        distance = np.abs(ours.mean(-1) - target).mean(0)
        order = map(_rank_correlation, ours.mean(-1).T, target.T)
        cell = table[(table[CELL] == pd.Series(names)).all(axis=1) & table.paper.notna()]
        excluded, ends = int(cell.excluded.sum()), np.quantile(resampled, [0.025, 0.975])
        farthest = max(map(_divergence, cell.ours, cell.paper))
        needed = float(np.ceil(np.log(2 * len(cell) / 0.05) / farthest)) if farthest else float("inf")
        verdict = "excluded" if excluded else "compatible"
        rows.append([*names.values(), *distance, *order, distance.mean(), *ends, excluded, len(cell), verdict, ours.shape[-1], needed])
    by_metric = [f"{kind}_{metric}" for kind in ("distance", "order") for metric in METRICS]
    columns = [*CELL, *by_metric, "distance", "low", "high", "excluded", "compared", "verdict", "n", "n_to_exclude"]
    return pd.DataFrame(rows, columns=columns).sort_values("distance", ignore_index=True)


def requirements(grid: Grid, method: str = "Ours", level: float = 0.84) -> pd.DataFrame:
    """The areas that worst-case completeness and soundness of `level` require of a method, beside the measured ones.

    A false label with f below the threshold eps has soundness of at least `level` only if its g is at most `eps / level`; the prediction
    is complete to that level only if its g is at least `level * f`.

    Returns:
        One row a (softmax, loss, thresholds): `g_allowed`, the largest g allowed for a false label; `g_false`, the median over images of
        the largest g of a label that is not predicted; `images_below`, the share of images all of whose false labels are sound to that
        level; `g_over_f` of the prediction (median), to compare with `level`; `n` images. Areas follow the rule of Definition 3.5.
    """
    rows = []
    for (softmax, loss), result in grid.items():
        one = result.sel({"method": method})
        g = xr.DataArray(auc(torch.from_numpy(one.insertion_curve.transpose("image", "label", "kept").values)).numpy(), one.prob.coords)
        predicted = one.prob == one.prob.max("label")
        largest = g.where(~predicted).max("label")
        share = (g / one.prob).where(predicted).max("label")
        for thresholds, (_, eps) in THRESHOLDS.items():
            below = float((predicted | (g <= np.maximum(one.prob, eps) / level)).all("label").mean())
            rows.append([softmax, loss, thresholds, eps / level, float(largest.median()), below, float(share.median()), one.sizes["image"]])
    columns = ["softmax", "loss", "thresholds", "g_allowed", "g_false", "images_below", "g_over_f", "n"]
    return pd.DataFrame(rows, columns=columns)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN if a column is constant."""
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def conclusion(summary: pd.DataFrame, needs: pd.DataFrame) -> str:
    """The result of the grid in words, from the numbers of `cell_summary` and `requirements`."""

    def name(row: pd.Series) -> str:
        return f"softmax over {row.softmax}, loss {row.loss}, {row.thresholds} thresholds, {row['rule']} rule"

    def away(row: pd.Series) -> str:
        return (
            f"{row.distance:.2f} [{row.low:.2f}, {row.high:.2f}] away on average, {row.excluded} of {row.compared} numbers excluded; "
            f"if the means stayed, {row.n_to_exclude:.0f} images would exclude it"
        )

    text = summary.set_index(CELL).loc[("all", "nll", "paper", "mean")]
    compatible = summary[summary.verdict == "compatible"]
    lines = [
        f"Sample size: {text.n} images. A number is excluded by a test that assumes nothing but scores in [0, 1]; at few images it can "
        "exclude little.",
        f"Closest cell: {name(summary.iloc[0])}: {away(summary.iloc[0])}.",
        f"The text's cell: {away(text)}.",
        f"Compatible cells (no number excluded): {len(compatible)} of {len(summary)}"
        + (": " + "; ".join(name(row) for _, row in compatible.iterrows()) if 0 < len(compatible) <= 4 else "")
        + ".",
    ]
    for thresholds in THRESHOLDS:
        apart, need = summary[summary.thresholds == thresholds], needs[needs.thresholds == thresholds]
        lines += [
            f"With the {thresholds} thresholds soundness is {_range(apart.distance_soundness)} away, completeness "
            f"{_range(apart.distance_completeness)}.",
            f"  Soundness of 0.84 allows no false label a g beyond {need.g_allowed.iloc[0]:.4f}. The largest false g of Ours (median over "
            f"images) is {_range(need.g_false, '.3f')}; it stays within on {_range(need.images_below, '.0%')} of the images.",
        ]
    return "\n".join(lines)


def _range(values: pd.Series, form: str = ".2f") -> str:
    return f"{values.min():{form}} to {values.max():{form}}"


def label_free_bound(mean_soundness: float, at_least: float = 0.5, n_labels: int = 10, thresholds: str = "paper") -> tuple[float, float]:
    """What the net must be like for maps that ignore the label to reach a mean soundness, under a softmax over the label list.

    The areas of one map sum to 1 over the list, so with h that of the predicted label the largest other is at least
    `(1 - h) / (n_labels - 1)`, and the soundness of an image is at most `eps (n_labels - 1) / (1 - h)` while its false labels have f below
    eps. A mean of s needs a share of `(s - t) / (1 - t)` of the images, or more, to be sounder than t.

    Args:
        mean_soundness: s, for example a value of the paper's column.
        at_least: t.
        n_labels: length of the list.
        thresholds: `"paper"` or `"released"`, to choose eps.

    Returns:
        The least share of images, and the least h that each of them needs, both in [0, 1].

    Example:
        >>> share, h = label_free_bound(0.71)  # Table 1's Centered Gaussian
        >>> round(share, 2), round(h, 3)
        (0.42, 0.982)
    """
    eps = THRESHOLDS[thresholds][1]
    share = max(0.0, (mean_soundness - at_least) / (1 - at_least))
    return share, max(0.0, 1 - eps * (n_labels - 1) / at_least)


def closest(summary: pd.DataFrame) -> Protocol:
    """The cell of `cell_summary` with the smallest distance, as a protocol."""
    best = summary.iloc[0]
    first, second = THRESHOLDS[best.thresholds]
    return Protocol(best.softmax, first, second, best.loss, best.rule)

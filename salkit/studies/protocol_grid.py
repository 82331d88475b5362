"""Which protocol did Table 1 come from? Every combination of what differs between paper and code, against the paper's numbers.

Curves of the grid have 28 points, as released. With n points the mean rule of Definition 3.5 leaves out the start of the curve, so it
exceeds the trapezoid by `(last - first) / (2 n)`. At 8 points that inflates the insertion of a label that goes from 0 to 0.9 by 0.056, and
the two rules look like different protocols. At 28 points the difference is 0.016.
"""

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
from salkit.data.files import data_dir
from salkit.scores import PROTOCOLS, Protocol, completeness, soundness, worst_per_image

Grid = Mapping[tuple[str, str], xr.Dataset]
THRESHOLDS = {name: (p.eps_completeness, p.eps_soundness) for name, p in PROTOCOLS.items()}
CHOICES = {
    "softmax": ("all", "labels"),
    "loss": ("nll", "released"),
    "thresholds": ("paper", "released"),
    "rule": ("mean", "trapezoid"),
}
"""Choice -> the text's level and the other one. The rule of the released code is the text's; the trapezoid is RISE's."""
CELL = list(CHOICES)
METRICS = ("completeness", "soundness")
ROUNDING = 0.005
"""The paper prints two decimals, so its numbers are off by up to this much."""


def cells(grid: Grid) -> Iterator[tuple[dict[str, str], xr.Dataset]]:
    """The cells of the grid: their choices by name, and the worst cases `completeness` and `soundness`, `(method, image)` each."""
    for (softmax, loss), result in grid.items():
        curves = result.insertion_curve.transpose("method", "image", "label", "kept")
        for thresholds, (eps_completeness, eps_soundness) in THRESHOLDS.items():
            for rule in get_args(AucRule):
                g = curves.isel(kept=0, drop=True).copy(data=auc(torch.from_numpy(curves.values), rule).numpy())
                g, f = xr.broadcast(g, result.prob)
                scores = {"completeness": completeness(g, f, eps_completeness), "soundness": soundness(g, f, eps_soundness)}
                names = dict(zip(CELL, (softmax, loss, thresholds, rule), strict=True))
                yield names, xr.Dataset({name: worst_per_image(score) for name, score in scores.items()})


def grid_table(grid: Grid, paper: pd.DataFrame) -> pd.DataFrame:
    """One row a (cell, method, metric): the paper's value, ours with its 95 % t interval over images, the difference, and a test.

    `p_value` is `exclusion_p_value` of our mean. `excluded` says whether it is below 0.05 after Bonferroni's correction for all numbers of
    the cell: then this cell, on this net, does not give the paper's number. The test assumes nothing but scores in [0, 1]; the interval
    assumes means that are roughly normal, which few images with scores near 0 or 1 are not.

    Args:
        grid: (softmax_over, loss) -> evaluation with `insertion_curve`.
        paper: columns `method, metric, value`.
    """
    known = {(row.method, row.metric): row.value for row in paper.itertuples()}
    rows = []
    for names, worst in cells(grid):
        compared = sum((m, metric) in known for m in worst.method.values for metric in METRICS)
        for method, metric in product(worst.method.values, METRICS):
            scores = worst[metric].sel({"method": method}).values
            scores = scores[~np.isnan(scores)].astype(np.float64)
            target, ours = known.get((method, metric), np.nan), scores.mean() if len(scores) else np.nan
            error = scores.std() / len(scores) ** 0.5 if len(scores) else np.nan
            low, high = np.clip(t_interval(ours, error, len(scores)), 0, 1)
            p_value = exclusion_p_value(ours, target, len(scores))
            numbers = [target, ours, low, high, len(scores), ours - target, p_value, p_value * compared < 0.05]
            rows.append([*names.values(), method, metric, *numbers])
    columns = [*CELL, "method", "metric", "paper", "ours", "low", "high", "n", "difference", "p_value", "excluded"]
    return pd.DataFrame(rows, columns=columns)


def t_interval(estimate: float, error: float, n: int, comparisons: int = 1) -> tuple[float, float]:
    """95 % interval `estimate +- t error sqrt(n / (n - 1))` over n images, at 95 % together for so many comparisons (Bonferroni).

    `error` is the standard error without the correction for having estimated the mean too: that of a mean is `std / sqrt(n)` with divisor
    n, and resampling images gives it for any other statistic. The ends are NaN for fewer than two images.

    Example:
        >>> low, high = t_interval(0.5, 0.1, 10)
        >>> round(low, 3), round(high, 3)
        (0.262, 0.738)
    """
    if n < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf(1 - 0.025 / comparisons, n - 1) * error * (n / (n - 1)) ** 0.5)
    return estimate - half, estimate + half


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


def cell_summary(grid: Grid, paper: pd.DataFrame, n_resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How far each cell is from the paper, over the paper's methods: one row a cell, the closest first.

    All cells are compared on the same resampled images, so that differences between cells are paired. The closest cell is chosen after
    seeing the data: that it is the closest is no test of it. `told_apart` and `closest_in` say how firm the choice is.

    Args:
        grid: (softmax_over, loss) -> evaluation with `insertion_curve`, all of the same images.
        paper: columns `method, metric, value`.
        n_resamples: resamples of the images for standard errors.
        seed: of the resampling.

    Returns:
        The cell's choices; for each metric the mean absolute distance from the paper's column and the rank correlation with it; `distance`,
        the mean over both metrics, with its 95 % interval `low` to `high`; `behind`, how much farther than the closest cell it is, with the
        paired interval `behind_low` to `behind_high`; `told_apart`, whether it is farther by more than the paper's rounding, with
        Bonferroni's correction for all cells;
        `closest_in`, the share of the resamples in which it is the closest; `excluded`, how many of the `compared` numbers `grid_table`
        excludes; `n` images.

    Raises:
        ValueError: evaluations of different images.
    """
    names, worst, target = _compared(grid, paper)
    n = worst.shape[-1]
    drawn = np.abs(_resample(worst, n_resamples, seed) - target[..., None]).mean((1, 2))
    mean = worst.mean(-1)
    apart = np.abs(mean - target).mean(1)
    distance = apart.mean(1)
    best = int(distance.argmin())
    closest_in = np.bincount(drawn.argmin(0), minlength=len(names)) / n_resamples
    rows = []
    for i, cell in enumerate(names):
        order = map(_rank_correlation, mean[i].T, target.T)
        low, high = t_interval(distance[i], drawn[i].std(), n)
        behind, error = distance[i] - distance[best], (drawn[i] - drawn[best]).std()
        told_apart = t_interval(behind, error, n, max(len(names) - 1, 1))[0] > ROUNDING
        firm = [behind, *t_interval(behind, error, n), told_apart, closest_in[i]]
        excluded = sum(exclusion_p_value(*pair, n) * target.size < 0.05 for pair in zip(mean[i].flat, target.flat, strict=True))
        numbers = [distance[i], max(low, 0.0) if low == low else low, high, *firm, excluded, target.size, n]
        rows.append([*cell.values(), *apart[i], *order, *numbers])
    by_metric = [f"{kind}_{metric}" for kind in ("distance", "order") for metric in METRICS]
    compared = ["behind", "behind_low", "behind_high", "told_apart", "closest_in", "excluded", "compared", "n"]
    summary = pd.DataFrame(rows, columns=[*CELL, *by_metric, "distance", "low", "high", *compared])
    return summary.sort_values("distance", ignore_index=True, kind="stable")


def main_effects(grid: Grid, paper: pd.DataFrame, n_resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How far each single choice matters: what changes when only it is switched, averaged over the other choices.

    Args:
        grid: all four (softmax_over, loss) -> evaluation with `insertion_curve`, all of the same images.
        paper: columns `method, metric, value`.
        n_resamples: resamples of the images (the same for all cells) for standard errors.
        seed: of the resampling.

    Returns:
        One row a (choice, quantity): the levels `before` and `after`; `change` of the distance from the paper, or of the mean worst-case
        completeness or soundness over the paper's methods, with its 95 % interval `low` to `high`; `least` and `most`, the smallest and
        largest change over the 8 settings of the other choices; `n` images.

    Raises:
        ValueError: a grid without all 16 cells, or evaluations of different images.
    """
    names, worst, target = _compared(grid, paper)
    places = {tuple(cell.values()): i for i, cell in enumerate(names)}
    if set(places) != set(product(*CHOICES.values())):
        raise ValueError(f"grid: expected all four pairs of softmax and loss, got {sorted(grid)}")
    both = np.concatenate([worst.mean(-1, keepdims=True), _resample(worst, n_resamples, seed)], -1)
    quantities = {"distance": np.abs(both - target[..., None]).mean((1, 2))}
    quantities |= {metric: both[:, :, i].mean(1) for i, metric in enumerate(METRICS)}
    rows = []
    for (choice, (before, after)), (quantity, values) in product(CHOICES.items(), quantities.items()):
        pairs = [(i, places[tuple((cell | {choice: after}).values())]) for i, cell in enumerate(names) if cell[choice] == before]
        changes = np.array([values[j] - values[i] for i, j in pairs])
        mean, estimates = changes.mean(0), changes[:, 0]
        ends = t_interval(mean[0], mean[1:].std(), worst.shape[-1])
        rows.append([choice, before, after, quantity, mean[0], *ends, estimates.min(), estimates.max(), worst.shape[-1]])
    return pd.DataFrame(rows, columns=["choice", "before", "after", "quantity", "change", "low", "high", "least", "most", "n"])


def _compared(grid: Grid, paper: pd.DataFrame) -> tuple[list[dict[str, str]], np.ndarray, np.ndarray]:
    """The cells, their worst cases `(cell, method, metric, image)` and the paper's values `(method, metric)`, for the paper's methods."""
    images = [list(result.image.values) for result in grid.values()]
    for other in images[1:]:
        if other != images[0]:
            raise ValueError(f"grid: expected the same images in every evaluation, got {images[0]} and {other}")
    names, scores = zip(*cells(grid), strict=True)
    values = paper[paper.metric.isin(METRICS)].pivot(index="method", columns="metric", values="value").dropna()
    methods = [method for method in scores[0].method.values if method in values.index]
    worst = [[one[metric].sel({"method": methods}).transpose("method", "image").values for metric in METRICS] for one in scores]
    return list(names), np.stack(worst).swapaxes(1, 2).astype(np.float64), values.loc[methods, list(METRICS)].to_numpy()


def _resample(scores: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Means over resampled images: `(..., image)` -> `(..., resample)`, with the same draws for everything."""
    n = scores.shape[-1]
    return scores @ (np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples) / n).T


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


def conclusion(summary: pd.DataFrame, needs: pd.DataFrame, effects: pd.DataFrame) -> str:
    """The result of the grid in words, from the numbers of `cell_summary`, `requirements` and `main_effects`."""

    def away(row: pd.Series) -> str:
        return f"{row.distance:.3f} [{row.low:.3f}, {row.high:.3f}] away"

    best, second = summary.iloc[0], summary.iloc[1]
    text = summary.set_index(CELL, drop=False).loc[tuple(levels[0] for levels in CHOICES.values())]
    other = summary[(summary[CELL[:3]] != best[CELL[:3]]).any(axis=1)]
    tied, free = summary[1:][~summary.told_apart[1:]], summary[summary.excluded == 0]
    lines = [
        f"Sample size: {best.n} images{'' if best.n >= 10 else ' (too few: an answer needs at least ten)'}, {best.compared} of the paper's "
        "numbers. Distances are means over these numbers; square brackets are 95 % intervals over images.",
        "Chosen after seeing the data: all cells were compared with the paper's numbers, then the closest one was named. That it is the "
        "closest does not show that the paper used it.",
        f"Closest cell: {cell_name(best)}: {away(best)}. Rank correlation with the paper's columns: completeness "
        f"{best.order_completeness:.2f}, soundness {best.order_soundness:.2f}.",
        f"Runner-up: {cell_name(second)}: {away(second)}, {_farther(second)}.",
        *[f"Closest one that differs in more than the rule: {cell_name(r)}: {away(r)}, {_farther(r)}." for _, r in other[:1].iterrows()],
        f"In {best.closest_in:.0%} of the resamples of the images the same cell is the closest, in {second.closest_in:.0%} the runner-up.",
        f"Cannot be told from the closest (corrected for {len(summary) - 1} comparisons, the paper's rounding allowed for): {len(tied)} of "
        f"{len(summary) - 1} cells" + "".join(f"\n  {cell_name(row)}: {away(row)}" for _, row in tied.iterrows()),
        f"The text's cell ({cell_name(text)}) is number {_place(summary, text)} of {len(summary)}: {away(text)}"
        + (f", {_farther(text)}." if text.behind else "."),
        f"Cells of which no number is excluded, by a test that assumes nothing but scores in [0, 1]: {len(free)} of {len(summary)}"
        + (": " + "; ".join(cell_name(row) for _, row in free.iterrows()) if 0 < len(free) <= 4 else "")
        + ".",
        "What each choice changes by itself, averaged over the other choices (in round brackets the range over their 8 settings):",
    ]
    strength = effects[effects.quantity == "distance"].set_index("choice").change.abs().sort_values(ascending=False)
    for choice in strength.index:
        rows = effects[effects.choice == choice]
        change = [
            f"{r.quantity} {r.change:+.3f} [{r.low:+.3f}, {r.high:+.3f}] ({r.least:+.2f} to {r.most:+.2f})" for r in rows.itertuples()
        ]
        lines.append(f"  {choice}, {rows.before.iloc[0]} to {rows.after.iloc[0]}: {'; '.join(change)}.")
    for thresholds in THRESHOLDS:
        apart, need = summary[summary.thresholds == thresholds], needs[needs.thresholds == thresholds]
        lines += [
            f"With the {thresholds} thresholds soundness is {_range(apart.distance_soundness)} away, completeness "
            f"{_range(apart.distance_completeness)}.",
            f"  Soundness of 0.84 allows a false label with f below the threshold no g beyond {need.g_allowed.iloc[0]:.4f}. The largest "
            f"false g of Ours (median over images) is {_range(need.g_false, '.3f')}; all false labels stay within their limits on "
            f"{_range(need.images_below, '.0%')} of the images.",
        ]
    return "\n".join(lines)


def cell_name(row: pd.Series) -> str:
    """A cell's four choices in words."""
    return f"softmax over {row.softmax}, loss {row.loss}, {row.thresholds} thresholds, {row['rule']} rule"


def _farther(row: pd.Series) -> str:
    """How far a cell is behind the closest one, and whether that says anything."""
    verdict = "not told apart"
    if row.told_apart:
        verdict = "told apart, all cells and the paper's rounding allowed for"
    elif row.behind_low > 0:
        verdict = "farther, but not told apart once all cells and the paper's rounding are allowed for"
    return f"{row.behind:.3f} [{row.behind_low:.3f}, {row.behind_high:.3f}] behind the closest on the same images ({verdict})"


def _place(summary: pd.DataFrame, cell: pd.Series) -> int:
    """Rank of a cell, from 1."""
    return int((summary[CELL] == cell[CELL]).all(axis=1).argmax()) + 1


def earlier_cells() -> pd.DataFrame:
    """The grid's distances with masks that had not settled: `data/measured/unsettled_protocol_cells.csv`, the closest cell first.

    Columns: the cell's choices, `distance`, and what the run was: `composites` a pair, `points` of a curve, `images` (names).
    """
    return pd.read_csv(data_dir() / "measured" / "unsettled_protocol_cells.csv").sort_values("distance", ignore_index=True)


def then_and_now(earlier: pd.DataFrame, summary: pd.DataFrame, same_images: pd.DataFrame | None = None) -> str:
    """Whether the closest cell changed since an earlier run, in words.

    Args:
        earlier: as `earlier_cells` returns it.
        summary: `cell_summary` with settled masks.
        same_images: the same on the earlier run's images alone, so that only the masks and curves differ.
    """
    first, now = earlier.iloc[0], summary.iloc[0]
    place = _place(summary, first)
    old, both = summary.iloc[place - 1], earlier.merge(summary, on=CELL, suffixes=("_then", "_now"))
    order = _rank_correlation(both.distance_then.to_numpy(), both.distance_now.to_numpy())
    lines = [
        f"With masks of {first.composites} composites, curves of {first.points} points and {len(first.images.split())} images the closest "
        f"cell was {cell_name(first)} ({first.distance:.3f} away), before {cell_name(earlier.iloc[1])} ({earlier.distance[1]:.3f}).",
        f"With settled masks and {now.n} images it is {cell_name(now)} ({now.distance:.3f} away): the answer "
        + ("stays." if place == 1 else "turned over."),
    ]
    if place > 1:
        lines.append(f"The earlier answer is now number {place} of {len(summary)}: {old.distance:.3f} away, {_farther(old)}.")
    lines.append(f"Rank correlation of the cells' distances, then and now: {order:.2f}.")
    if same_images is not None:
        one = same_images.iloc[0]
        lines.append(f"With settled masks on the earlier images alone ({one.n}) the closest is {cell_name(one)} ({one.distance:.3f} away).")
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

"""Tables of scores: the paper's value, ours with its interval, a verdict, and which methods the images do not tell apart."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from salkit.atomic import atomic_write
from salkit.data.files import data_dir
from salkit.scores import best_effort, completeness, soundness, worst_per_image
from salkit.statistics import Interval, holm, least_p_value, mean_interval, sign_flip_p_value

COLUMNS = ["method", "metric", "paper", "ours", "low", "high", "n", "verdict", "ties"]

METRICS: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "deletion": lambda result: result.deletion_auc.isel(label=result.prediction),
    "insertion": lambda result: result.insertion_auc.isel(label=result.prediction),
    "saliency_metric": lambda result: result.saliency_metric.sel(box="threshold", drop=True),
    "completeness": lambda result: worst_per_image(result.completeness),
    "soundness": lambda result: worst_per_image(result.soundness),
    "best_effort": lambda result: best_effort(result.completeness, result.prob),
    "label_correlation": lambda result: result.label_correlation,
    "localisation": lambda result: result.localisation.mean("label"),
    "localisation_top": lambda result: result.localisation_top.mean("label"),
}
"""Metric -> one number per (method, image): the columns of Table 1 in the paper's order, two of the kit's own, and two for mosaics.

Deletion and insertion are for the net's prediction, as in RISE's code.
"""

LOWER_IS_BETTER = ("deletion", "saliency_metric")
RANGES = {"saliency_metric": (math.log(0.05), math.inf), "label_correlation": (-1.0, 1.0)}
"""The least and the greatest value of a metric, where these are not 0 and 1."""
LEVEL = 0.05
"""Holm-corrected p-values below this are significant."""
PAPER_RUN = {"classifier": "resnet50", "data": "imagenette"}
"""What Table 1 was computed with: an evaluation's attributes of these names."""
PAPER_COMPOSITES = 20_000
"""Composites a pair of the published schedule: 2,000 steps of 10."""


def paper_values(table: str) -> pd.DataFrame:
    """The paper's numbers, columns `method, metric, value`; empty for a table that is not in the main text.

    Example:
        >>> paper_values("table1").query("method == 'Ours' and metric == 'soundness'").value.item()
        0.84
    """
    path = data_dir() / "paper" / f"{table}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["method", "metric", "value"])


def tidy_table(result: xr.Dataset, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per (method, metric): the paper's value, ours with its interval over `n` images, a verdict, and a tie group.

    The verdict is `"compatible"` or `"not reproduced"`, as the paper's value lies in our interval or not, but only where the same net, data
    and schedule were run. Elsewhere it is `"not comparable: other net"` (or data, or schedule): then compare the order of the methods
    (`order_table`) and the direction of differences (`claims_table`). It is `"cannot tell at n = 1"` without an interval, `"not measured"`
    when only the paper has a number, and empty when only we have one.

    Args:
        result: as `evaluate` returns it, with the names of the classifier and of the data in the attributes `classifier` and `data`.
        paper: columns `method, metric, value`; None where the paper has no numbers.

    Returns:
        The columns of `COLUMNS`, where `ties` are the letters of `tie_groups`, and `composites` (a pair, that a learned mask saw) where the
        evaluation has this coordinate.
    """
    values = metric_values(result)
    known = {} if paper is None else {(row.method, row.metric): row.value for row in paper.itertuples()}
    ties = {metric: tie_groups(scores, metric in LOWER_IS_BETTER) for metric, scores in values.items()}
    spent = composites(result)
    rows = []
    for method in result.method.values:
        for metric in METRICS:
            target = known.get((method, metric), float("nan"))
            if metric in values:
                interval = mean_interval(values[metric].sel({"method": method}).values, limits=limits(metric))
            elif target == target:
                interval = Interval(float("nan"), float("nan"), float("nan"), 0)
            else:
                continue
            verdict = _verdict(target, interval, _differs_from_paper(result, spent[method]))
            numbers = [target, interval.mean, interval.low, interval.high, interval.n]
            rows.append([method, metric, *numbers, verdict, ties.get(metric, {}).get(method, "")])
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(composites=table.method.map(spent)) if "composites" in result else table


def limits(metric: str) -> tuple[float, float]:
    """The least and the greatest value of a metric.

    Example:
        >>> limits("soundness")
        (0.0, 1.0)
    """
    return RANGES.get(metric, (0.0, 1.0))


def composites(result: xr.Dataset) -> dict[str, float]:
    """Composites a pair that each method's learned mask saw: the coordinate `composites`, NaN for the others and where it is missing."""
    names = result.method.values.tolist()
    return dict(zip(names, result.composites.values.tolist() if "composites" in result else [math.nan] * len(names), strict=True))


def tie_groups(scores: xr.DataArray, lower_is_better: bool = False) -> dict[str, str]:
    """Compact letter display (Piepho 2004): two methods share a letter exactly when the images do not tell them apart.

    Each two methods are compared by `sign_flip_p_value` on the same images, Holm-corrected over all pairs. Letters begin with the best
    mean.

    Args:
        scores: dims `method` and `image`.
        lower_is_better: whether the best mean is the lowest.

    Returns:
        Method -> letters, such as `"ab"`. They are empty for a method without scores, and for all methods when no outcome at this number
        of images could tell any two apart.

    Example:
        >>> values = np.linspace(0, 0.1, 8) + np.array([[0.2], [0.8], [0.8]])
        >>> tie_groups(xr.DataArray(values, {"method": ["Random", "Ours", "RISE"]}, ("method", "image")))
        {'Random': 'b', 'Ours': 'a', 'RISE': 'a'}
    """
    names, each = scores.method.values.tolist(), scores.transpose("method", "image").values.astype(np.float64)
    mean = scores.mean("image").values * (1 if lower_is_better else -1)
    order = [int(i) for i in np.argsort(mean) if mean[i] == mean[i]]  # the best first
    pairs = list(combinations(order, 2))
    differences = [each[i] - each[j] for i, j in pairs]
    if not (holm([least_p_value(int((d == d).sum())) for d in differences]) < LEVEL).any():
        return dict.fromkeys(names, "")
    groups = [set(order)]
    for pair, p_value in zip(pairs, holm([sign_flip_p_value(d) for d in differences]), strict=True):
        if p_value < LEVEL:
            split = [group - {one} if {*pair} <= group else group for group in groups for one in pair]
            groups = [g for i, g in enumerate(split) if not any(g < h or (g == h and j < i) for j, h in enumerate(split))]
    groups.sort(key=lambda group: [place for place, i in enumerate(order) if i in group])
    return {name: "".join(string.ascii_letters[k] for k, group in enumerate(groups) if i in group) for i, name in enumerate(names)}


def order_table(result: xr.Dataset, paper: pd.DataFrame, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Whether the methods come out in the paper's order, whatever the net: one row a metric.

    Args:
        result: as `evaluate` returns it.
        paper: columns `method, metric, value`.
        n_resamples: how often the images are drawn anew, with replacement, for the 95 % percentile interval. With few images it is too
            narrow, and it tends to lower values, since each draw adds noise to the order.
        seed: of these draws.

    Returns:
        Columns `metric, methods` (how many), `correlation` (Spearman's, of our means with the paper's values; 1 for the same order), `low,
        high, n`. The ends are NaN for one image, or if all draws agree. Only metrics that both have for three methods or more.
    """
    rows, rng = [], np.random.default_rng(seed)
    for metric, scores in metric_values(result).items():
        known = paper[paper.metric == metric].set_index("method").value
        methods = [m for m in scores.method.values.tolist() if m in known.index and bool(scores.sel({"method": m}).notnull().any())]
        if len(methods) < 3:
            continue
        each = scores.sel({"method": methods}).transpose("image", "method").values.astype(np.float64)
        each = each[~np.isnan(each).any(1)]
        n, target = len(each), known[methods].to_numpy()
        if n == 0:
            continue
        ours = _rank_correlation(each.mean(0, keepdims=True), target)[0]
        drawn = _rank_correlation(rng.multinomial(n, np.full(n, 1 / n), n_resamples) @ each / n, target)
        low, high = np.nanquantile(drawn, [0.025, 0.975]) if n > 1 and np.ptp(drawn) > 0 else (np.nan, np.nan)
        rows.append([metric, len(methods), ours, low, high, n])
    return pd.DataFrame(rows, columns=["metric", "methods", "correlation", "low", "high", "n"])


def _rank_correlation(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each row `(R, M)` with the target `(M,)`; 0 for a row of equal values."""
    ranks, wanted = stats.rankdata(columns, axis=1), stats.rankdata(target)
    ranks, wanted = ranks - ranks.mean(1, keepdims=True), wanted - wanted.mean()
    norm = np.linalg.norm(ranks, axis=1) * np.linalg.norm(wanted)
    return np.divide(ranks @ wanted, norm, out=np.zeros(len(ranks)), where=norm > 0)


def metric_values(result: xr.Dataset) -> dict[str, xr.DataArray]:
    """The metrics of an evaluation, as far as it has them: name -> values with dims method and image."""
    needs = {"deletion": "deletion_auc", "saliency_metric": "saliency_metric", "label_correlation": "label_correlation"}
    needs |= {name: name for name in ("localisation", "localisation_top")}
    return {name: metric(result) for name, metric in METRICS.items() if needs.get(name, "insertion_auc") in result}


def games_table(result: xr.Dataset) -> pd.DataFrame:
    """Insertion and deletion for the net's prediction, mean over `n` images: columns `method, game, infill, rule, area, n`."""
    table = xr.Dataset({"area": result.games.mean("image"), "n": result.games.count("image")}).to_dataframe().reset_index()
    return table[["method", "game", "infill", "rule", "area", "n"]]


def wide_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """For reading: one row per method, one column per metric, `paper | ours [low, high] tie groups` in each cell.

    The first columns are the composites a pair, if known, and the number of images; a cell with another number says so. Methods that
    share a letter in a column are not told apart there.
    """
    shown = tidy[tidy.n > 0]
    images = shown.groupby("method").n.max()
    other = ["" if row.n == images[row.method] else f"(n = {row.n})" for row in shown.itertuples()]
    paper = ["" if value != value else f"{value:.2f} |" for value in shown.paper]
    cells = [" ".join(filter(None, parts)) for parts in zip(paper, intervals(shown), shown.ties, other, strict=True)]
    methods = shown.method.unique()
    wide = shown.assign(cell=cells).pivot(index="method", columns="metric", values="cell").loc[methods, shown.metric.unique()].fillna("")
    wide.insert(0, "n", images[methods])
    if "composites" in shown:
        spent = shown.groupby("method").composites.first()[methods]
        wide.insert(0, "composites", ["" if value != value else f"{value:,.0f}" for value in spent])
    return wide


def side_by_side(tidies: Mapping[str, pd.DataFrame], metrics: Sequence[str]) -> pd.DataFrame:
    """For reading: the paper's value beside those of several tidy tables (name -> table), for the paper's methods, and the images."""
    columns = {}
    for metric in metrics:
        for name, tidy in tidies.items():
            rows = tidy[(tidy.metric == metric) & tidy.paper.notna()].set_index("method")
            columns[metric, "paper"] = rows.paper.map("{:.2f}".format)
            columns[metric, name] = intervals(rows)
    images = {("n", name): tidy[tidy.paper.notna()].groupby("method", sort=False).n.max() for name, tidy in tidies.items()}
    return pd.concat(columns | images, axis=1)


def intervals(table: pd.DataFrame) -> pd.Series:
    """The columns `ours, low, high, n` of a table as text, `0.58 [0.37, 0.80]`."""
    return pd.Series([str(Interval(row.ours, row.low, row.high, row.n)) for row in table.itertuples()], table.index, str)


def worked_example(result: xr.Dataset) -> pd.DataFrame:
    """Section 3.3 on the first image of an evaluation: f, g and the scores of each label with both thresholds at 0.

    Returns:
        Columns `method, label, f, g, completeness, soundness`; one row `worst case` per method.
    """
    rows, one = [], result.isel(image=0)
    for method in one.method.values:
        g, f = xr.broadcast(one.insertion_auc.sel({"method": method}), one.prob)
        alpha, beta = completeness(g, f, eps=0.0), soundness(g, f, eps=0.0)
        for i, label in enumerate(one.label_name.values if "label_name" in one.coords else one.label.values):
            rows.append([method, label, *(float(v.isel(label=i)) for v in (f, g, alpha, beta))])
        rows.append([method, "worst case", float("nan"), float("nan"), float(alpha.min()), float(beta.min())])
    return pd.DataFrame(rows, columns=["method", "label", "f", "g", "completeness", "soundness"])


def save_table(table: pd.DataFrame, output_dir: str | Path, name: str) -> Path:
    """Write `output_dir/tables/name.csv`, whole or not at all; six significant digits."""
    path = Path(output_dir) / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        table.to_csv(part, index=False, float_format="%.6g")
    return path


def _differs_from_paper(result: xr.Dataset, composites: float) -> str:
    """What was not run as the paper ran it, empty if everything was. What is not recorded counts as another one."""
    for name, what in (("classifier", "net"), ("data", "data")):
        if result.attrs.get(name) != PAPER_RUN[name]:
            return f"other {what}"
    return "other schedule" if composites == composites and composites != PAPER_COMPOSITES else ""


def _verdict(paper: float, interval: Interval, other: str) -> str:
    if paper != paper:
        return ""
    if interval.n == 0:
        return "not measured"
    if other:
        return f"not comparable: {other}"
    if interval.low != interval.low:
        return f"cannot tell at n = {interval.n}"
    return "compatible" if interval.low <= paper <= interval.high else "not reproduced"

"""Tables of scores: the paper's value, ours with its interval, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import xarray as xr

from salkit.atomic import atomic_write
from salkit.data.files import data_dir
from salkit.scores import best_effort, completeness, soundness, worst_per_image
from salkit.statistics import Interval, bootstrap_interval

COLUMNS = ["method", "metric", "paper", "ours", "low", "high", "n", "verdict"]

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


def paper_values(table: str) -> pd.DataFrame:
    """The paper's numbers, columns `method, metric, value`; empty for a table that is not in the main text.

    Example:
        >>> paper_values("table1").query("method == 'Ours' and metric == 'soundness'").value.item()
        0.84
    """
    path = data_dir() / "paper" / f"{table}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["method", "metric", "value"])


def tidy_table(result: xr.Dataset, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per (method, metric): the paper's value, ours with its bootstrap interval over `n` images, and a verdict.

    The verdict is `"compatible"` when the paper's value lies in our interval, else `"not reproduced"`. It is `"not measured"` when
    only the paper has a number, and empty when only we have one.

    Args:
        result: as `evaluate` returns it.
        paper: columns `method, metric, value`; None where the paper has no numbers.

    Returns:
        The columns of `COLUMNS`.
    """
    values = metric_values(result)
    known = {} if paper is None else {(row.method, row.metric): row.value for row in paper.itertuples()}
    rows = []
    for method in result.method.values:
        for metric in METRICS:
            target = known.get((method, metric), float("nan"))
            if metric in values:
                interval = bootstrap_interval(values[metric].sel({"method": method}).values)
            elif target == target:
                interval = Interval(float("nan"), float("nan"), float("nan"), 0)
            else:
                continue
            rows.append([method, metric, target, interval.mean, interval.low, interval.high, interval.n, _verdict(target, interval)])
    return pd.DataFrame(rows, columns=COLUMNS)


def metric_values(result: xr.Dataset) -> dict[str, xr.DataArray]:
    """The metrics of an evaluation, as far as it has them: name -> values with dims method and image."""
    needs = {"deletion": "deletion_auc", "saliency_metric": "saliency_metric", "label_correlation": "label_correlation"}
    needs |= {name: name for name in ("localisation", "localisation_top")}
    return {name: metric(result) for name, metric in METRICS.items() if needs.get(name, "insertion_auc") in result}


def games_table(result: xr.Dataset) -> pd.DataFrame:
    """Insertion and deletion for the net's prediction, mean over images: columns `method, game, infill, rule, area`."""
    return result.games.mean("image").rename("area").to_dataframe().reset_index()[["method", "game", "infill", "rule", "area"]]


def wide_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """For reading: one row per method, one column per metric, `paper | ours [low, high]` in each cell."""
    shown = tidy[tidy.n > 0]
    text = shown.assign(cell=["" if paper != paper else f"{paper:.2f} | " for paper in shown.paper] + intervals(shown))
    return text.pivot(index="method", columns="metric", values="cell").loc[tidy.method.unique(), shown.metric.unique()].fillna("")


def side_by_side(tidies: Mapping[str, pd.DataFrame], metrics: Sequence[str]) -> pd.DataFrame:
    """For reading: the paper's value beside those of several tidy tables (name -> table), for the paper's methods."""
    columns = {}
    for metric in metrics:
        for name, tidy in tidies.items():
            rows = tidy[(tidy.metric == metric) & tidy.paper.notna()].set_index("method")
            columns[metric, "paper"] = rows.paper.map("{:.2f}".format)
            columns[metric, name] = intervals(rows)
    return pd.concat(columns, axis=1)


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


def _verdict(paper: float, interval: Interval) -> str:
    if paper != paper:
        return ""
    if interval.n < 2:
        return "not measured"
    return "compatible" if interval.low <= paper <= interval.high else "not reproduced"

"""Tables people cite: paper value, our value, interval and verdict; and the paper's claims, judged on the same images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import xarray as xr

from salkit.data.files import data_dir
from salkit.scores import best_effort, completeness, soundness, worst_per_image
from salkit.statistics import Interval, bootstrap_interval, paired_comparison

COLUMNS = ["method", "metric", "paper", "ours", "low", "high", "n", "verdict"]

METRICS: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "deletion": lambda result: result.deletion_auc.isel(label=result.prediction),
    "insertion": lambda result: result.insertion_auc.isel(label=result.prediction),
    "completeness": lambda result: worst_per_image(result.completeness),
    "soundness": lambda result: worst_per_image(result.soundness),
    "best_effort": lambda result: best_effort(result.completeness, result.prob),
    "saliency_metric": lambda result: result.saliency_metric.sel(box="threshold", drop=True),
    "label_correlation": lambda result: result.label_correlation,
}
"""Metric -> one number a (method, image). Deletion and insertion are those of the net's prediction, as in RISE's code."""

ORDER = ["deletion", "insertion", "saliency_metric", "completeness", "soundness", "best_effort", "label_correlation"]
"""The columns of Table 1 in the paper's order, and what the kit adds."""

SLIGHT = 0.05
"""What counts as "slightly" less completeness: the paper calls costs of 0.02 and 0.03 slight, so up to 0.05 is granted."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper as a paired comparison: `metric` of `method` minus that of `reference` exceeds `threshold`.

    Attributes:
        text: the claim in words.
        paper: the paper's difference, NaN where it gives none.
    """

    text: str
    metric: str
    method: str
    reference: str
    threshold: float = 0.0
    paper: float = float("nan")


TABLE1_CLAIMS = (
    Claim("TV raises soundness", "soundness", "Ours", "Ours (TV=0.001)", paper=0.19),
    Claim("TV costs little completeness", "completeness", "Ours", "Ours (TV=0.001)", -SLIGHT, -0.03),
    Claim("Upsampling raises soundness", "soundness", "Ours", "Ours (s=1)", paper=0.26),
    Claim("Upsampling costs little completeness", "completeness", "Ours", "Ours (s=1)", -SLIGHT, -0.02),
    Claim("Random images beat gray: completeness", "completeness", "Ours", "Ours (gray)", paper=0.20),
    Claim("Random images beat gray: soundness", "soundness", "Ours", "Ours (gray)", paper=0.08),
    *(
        Claim(f"Ours is more complete than {prior}", "completeness", "Ours", prior, paper=difference)
        for prior, difference in (
            ("Gradient x Input", 0.28),
            ("iGOS++", 0.23),
            ("Dabkowski and Gal", 0.26),
            ("Fong and Vedaldi", 0.27),
            ("Phang et al.", 0.13),
        )
    ),
    Claim("Cheating raises soundness", "soundness", "Ours (cheating)", "Ours"),
    Claim("Cheating costs no completeness", "completeness", "Ours (cheating)", "Ours", -SLIGHT),
    Claim("Cheating shows in best effort", "best_effort", "Ours", "Ours (cheating)"),
)


def table2_claims(tvs: Sequence[str]) -> tuple[Claim, ...]:
    """Section 6.1 for every lTV above 0 against 0 (names as in the sweep)."""
    more = [tv for tv in tvs if float(tv) > 0]
    sound = [Claim(f"TV {tv} raises soundness", "soundness", tv, "0") for tv in more]
    return tuple(sound + [Claim(f"TV {tv} costs little completeness", "completeness", tv, "0", -SLIGHT) for tv in more])


def paper_values(table: str) -> pd.DataFrame:
    """The paper's numbers, columns `method, metric, value`; empty for a table that is not in the main text.

    Example:
        >>> paper_values("table1").query("method == 'Ours' and metric == 'soundness'").value.item()
        0.84
    """
    path = data_dir() / "paper" / f"{table}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["method", "metric", "value"])


def tidy_table(result: xr.Dataset, paper: pd.DataFrame) -> pd.DataFrame:
    """One row a (method, metric): the paper's value, ours with its bootstrap interval over `n` images, and a verdict.

    The verdict is `"compatible"` when the paper's value lies in our interval, else `"not reproduced"`; `"not measured"` when the
    paper has a number and we have none, and empty when the paper's value is not known.

    Args:
        result: as `evaluate` returns it.
        paper: columns `method, metric, value`.
    """
    values = measured(result)
    known = {(row.method, row.metric): row.value for row in paper.itertuples()}
    rows = []
    for method in result.method.values:
        for metric in ORDER:
            target = known.get((method, metric), float("nan"))
            if metric in values:
                interval = bootstrap_interval(values[metric].sel({"method": method}).values)
            elif target == target:
                interval = Interval(float("nan"), float("nan"), float("nan"), 0)
            else:
                continue
            rows.append([method, metric, target, interval.mean, interval.low, interval.high, interval.n, _verdict(target, interval)])
    return pd.DataFrame(rows, columns=COLUMNS)


def measured(result: xr.Dataset) -> dict[str, xr.DataArray]:
    """The metrics that an evaluation holds, dims method and image each."""
    needs = {"deletion": "deletion_auc", "saliency_metric": "saliency_metric", "label_correlation": "label_correlation"}
    return {name: metric(result) for name, metric in METRICS.items() if needs.get(name, "insertion_auc") in result}


def games_table(result: xr.Dataset) -> pd.DataFrame:
    """Mean area of each method in both games by infill and rule: columns `method, game, infill, rule, area`; for the net's prediction."""
    return result.games.mean("image").rename("area").to_dataframe().reset_index()[["method", "game", "infill", "rule", "area"]]


def claims_table(result: xr.Dataset, claims: Sequence[Claim]) -> pd.DataFrame:
    """Judge claims by paired comparisons on the images of an evaluation; claims about methods that did not run are left out.

    Returns:
        Columns `claim, metric, method, reference, threshold, paper, ours, low, high, n, p_value, verdict`; `ours` is the mean
        difference method - reference.
    """
    values = measured(result)
    present = set(result.method.values.tolist())
    rows = []
    for c in claims:
        if {c.method, c.reference} <= present:
            each = values[c.metric]
            d = paired_comparison(each.sel({"method": c.method}).values, each.sel({"method": c.reference}).values)
            numbers = [d.mean, d.low, d.high, d.n, d.p_value, d.verdict(c.threshold)]
            rows.append([c.text, c.metric, c.method, c.reference, c.threshold, c.paper, *numbers])
    columns = ["claim", "metric", "method", "reference", "threshold", "paper", "ours", "low", "high", "n", "p_value", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def wide_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """For reading: one row a method, for each metric `paper | ours [low, high]`."""

    def cell(row: pd.Series) -> str:
        ours = str(Interval(row.ours, row.low, row.high, row.n))
        return ours if row.paper != row.paper else f"{row.paper:.2f} | {ours}"

    shown = tidy[tidy.n > 0]
    text = shown.assign(cell=shown.apply(cell, axis=1))
    return text.pivot(index="method", columns="metric", values="cell").loc[tidy.method.unique(), shown.metric.unique()].fillna("")


def side_by_side(tidies: Mapping[str, pd.DataFrame], metrics: Sequence[str]) -> pd.DataFrame:
    """For reading: the paper's value and that of several tidy tables (name -> table) with intervals, for the paper's methods."""
    columns = {}
    for metric in metrics:
        for name, tidy in tidies.items():
            rows = tidy[(tidy.metric == metric) & tidy.paper.notna()].set_index("method")
            columns[metric, "paper"] = rows.paper.map("{:.2f}".format)
            columns[metric, name] = pd.Series([str(Interval(r.ours, r.low, r.high, r.n)) for r in rows.itertuples()], rows.index)
    return pd.DataFrame(columns).loc[
        list(dict.fromkeys(m for tidy in tidies.values() for m in tidy.method if m in columns[metrics[0], "paper"]))
    ]


def wide_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """For reading: claim, what is compared, the paper's difference, ours with its interval, the verdict."""
    ours = [str(Interval(r.ours, r.low, r.high, r.n)) for r in claims.itertuples()]
    paper = ["" if value != value else f"{value:+.2f}" for value in claims.paper]
    needed = [f"> {value:+.2f}" for value in claims.threshold]
    compared = claims.metric + ": " + claims.method + " - " + claims.reference
    table = pd.DataFrame({"compared": compared, "claimed": needed, "paper": paper, "ours": ours, "n": claims.n, "verdict": claims.verdict})
    table = table if claims.paper.notna().any() else table.drop(columns="paper")
    return table.set_axis(pd.Index(claims.claim, name="claim"))


def headline(tidy: pd.DataFrame, exact: Sequence[str] = ()) -> dict[str, tuple[float, float]]:
    """The measured numbers of a tidy table by `method/metric`, each with its tolerance: what a notebook's checks compare.

    Masks are learned by a process that amplifies rounding, so on another processor they are like another draw, and their scores may
    move by three quarters of the interval's width. Methods named in `exact` learn nothing; they may move by 0.005.
    """
    rows = [row for row in tidy.itertuples() if row.n > 0]
    return {
        # Where a threshold is chosen among near ties, rounding may choose another.
        f"{r.method}/{r.metric}": (
            r.ours,
            0.005 if r.method in exact and r.metric != "saliency_metric" else 0.75 * (r.high - r.low) + 1e-4,
        )
        for r in rows
    }


def worked_example(result: xr.Dataset) -> pd.DataFrame:
    """Section 3.3 on the first image of an evaluation: f, g and the scores of each label with both thresholds at 0.

    Returns:
        Columns `method, label, f, g, completeness, soundness`; a row `worst case` a method.
    """
    rows = []
    one = result.isel(image=0)
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
    table.to_csv(f"{path}.part", index=False, float_format="%.6g")
    os.replace(f"{path}.part", path)
    return path


def _verdict(paper: float, interval: Interval) -> str:
    if paper != paper:
        return ""
    if interval.n < 2:
        return "not measured"
    return "compatible" if interval.low <= paper <= interval.high else "not reproduced"

"""The paper's claims, each judged by a paired comparison on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import pandas as pd
import xarray as xr

from salkit.report.tables import intervals, metric_values
from salkit.statistics import paired_comparison

SLIGHT = 0.05
"""The most that counts as "slightly" less completeness. The paper calls costs of 0.02 and 0.03 slight."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper as a paired comparison: `metric` of `method` minus `metric` of `reference` exceeds `threshold`.

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
    """The claim of Section 6.1 for every lTV above 0, compared with 0 (names as in the sweep)."""
    more = [tv for tv in tvs if float(tv) > 0]
    sound = [Claim(f"TV {tv} raises soundness", "soundness", tv, "0") for tv in more]
    return tuple(sound + [Claim(f"TV {tv} costs little completeness", "completeness", tv, "0", -SLIGHT) for tv in more])


def claims_table(result: xr.Dataset, claims: Sequence[Claim]) -> pd.DataFrame:
    """Judge claims by paired comparisons on the images of an evaluation. Claims about methods that did not run are left out.

    Returns:
        Columns `claim, metric, method, reference, threshold, paper, ours, low, high, n, p_value, verdict`; `ours` is the mean
        difference method - reference.
    """
    values = metric_values(result)
    present = set(result.method.values.tolist())
    rows = []
    for c in claims:
        if {c.method, c.reference} <= present:
            scores = values[c.metric]
            d = paired_comparison(scores.sel({"method": c.method}).values, scores.sel({"method": c.reference}).values)
            rows.append([*astuple(c), d.mean, d.low, d.high, d.n, d.p_value, d.verdict(c.threshold)])
    columns = ["claim", "metric", "method", "reference", "threshold", "paper", "ours", "low", "high", "n", "p_value", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def wide_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """For reading: what a claim compares, the paper's difference, ours with its interval, and the verdict."""
    table = pd.DataFrame({"compared": claims.metric + ": " + claims.method + " - " + claims.reference})
    table["claimed"] = [f"> {value:+.2f}" for value in claims.threshold]
    if claims.paper.notna().any():
        table["paper"] = ["" if value != value else f"{value:+.2f}" for value in claims.paper]
    table = table.assign(ours=intervals(claims), n=claims.n, verdict=claims.verdict)
    return table.set_axis(pd.Index(claims.claim, name="claim"))

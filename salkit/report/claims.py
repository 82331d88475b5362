"""The paper's claims, each judged by an exact paired test on the same images and by the size of the effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from salkit.report.tables import LEVEL, composites, intervals, limits, metric_values, paper_values
from salkit.statistics import holm, least_p_value, paired_comparison, short

SLIGHT = 0.05
"""The most that counts as a slight difference. The paper calls costs of 0.02 and 0.03 slight."""
SLIGHT_SHARE = 0.1
"""A slight difference is also at most this share of the reference's mean: 0.01 is not slight where scores are 0.02."""
NEEDED = 0.5
"""The share of the paper's difference that a claim needs to be called reproduced."""
PRIOR = ("Gradient x Input", "iGOS++", "Dabkowski and Gal", "Fong and Vedaldi", "Phang et al.")
GROUPS = {"prior methods": PRIOR}
"""Names that stand for several methods: the mean over them on each image."""
EPS = {"soundness": "eps_soundness", "completeness": "eps_completeness", "best_effort": "eps_completeness"}
"""Scores that cannot be lower than a threshold of the protocol, which is an attribute of the evaluation."""
FLOOR = 2 / 3
"""Means up to eps to this power are at the floor: the lowest third, on a logarithmic scale, from eps to 1."""
COLUMNS = ["claim", "metric", "method", "reference", "threshold", "paper", "ours", "low", "high", "n"]
COLUMNS += ["p_value", "p_holm", "p_least", "effect", "verdict"]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper as a paired comparison: `metric` of `method` minus `metric` of `reference` exceeds `threshold`.

    A threshold below 0 makes it "not much less": the null hypothesis is then a difference of exactly `threshold`. Method and reference
    may be names of `GROUPS`.
    """

    text: str
    metric: str
    method: str
    reference: str
    threshold: float = 0.0


TABLE1_CLAIMS = (
    Claim("TV raises soundness", "soundness", "Ours", "Ours (TV=0.001)"),
    Claim("TV costs little completeness", "completeness", "Ours", "Ours (TV=0.001)", -SLIGHT),
    Claim("Upsampling raises soundness", "soundness", "Ours", "Ours (s=1)"),
    Claim("Upsampling costs little completeness", "completeness", "Ours", "Ours (s=1)", -SLIGHT),
    Claim("Random images beat gray: completeness", "completeness", "Ours", "Ours (gray)"),
    Claim("Random images beat gray: soundness", "soundness", "Ours", "Ours (gray)"),
    *(Claim(f"Ours is more complete than {prior}", "completeness", "Ours", prior) for prior in PRIOR),
    *(Claim(f"Ours is at least as sound as {prior}", "soundness", "Ours", prior, -SLIGHT) for prior in PRIOR),
    Claim("Random is as good at deletion as the mean prior method", "deletion", "prior methods", "Random", -SLIGHT),
    Claim("Centered Gaussian beats the mean prior method: insertion", "insertion", "Centered Gaussian", "prior methods"),
    Claim("Centered Gaussian beats the mean prior method: saliency metric", "saliency_metric", "prior methods", "Centered Gaussian"),
    Claim("Cheating raises soundness", "soundness", "Ours (cheating)", "Ours"),
    Claim("Cheating costs no completeness", "completeness", "Ours (cheating)", "Ours", -SLIGHT),
    Claim("One map for all labels shows in best effort: Centered Gaussian", "best_effort", "Ours", "Centered Gaussian"),
    Claim("One map for all labels shows in best effort: Phang et al.", "best_effort", "Ours", "Phang et al."),
    Claim("Cheating shows in best effort", "best_effort", "Ours", "Ours (cheating)"),
)
"""Section 6, with Table 1. Of deletion and the saliency metric less is better.

The paper calls its soundness good compared to other methods': at least as high. It says of deletion that Random does quite well, so that
this metric gives little signal: Random is hardly worse than the mean of the prior methods. It says of the Centered Gaussian that it does
well, and stars two columns: it is better there than the mean of the prior methods.
"""

BEST_EFFORT_CLAIMS = tuple(claim for claim in TABLE1_CLAIMS if claim.metric == "best_effort")
"""Those of Figure 4, right. The paper prints no numbers for them."""


def table2_claims(tvs: Sequence[str]) -> tuple[Claim, ...]:
    """The claim of Section 6.1 for every lTV above 0, compared with 0 (names as in the sweep). The paper's numbers are not at hand."""
    more = [tv for tv in tvs if float(tv) > 0]
    sound = [Claim(f"TV {tv} raises soundness", "soundness", tv, "0") for tv in more]
    return tuple(sound + [Claim(f"TV {tv} costs little completeness", "completeness", tv, "0", -SLIGHT) for tv in more])


def claims_table(result: xr.Dataset, claims: Sequence[Claim], paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """Judge claims on the images of an evaluation, all of them together. Claims about methods or metrics that it lacks are left out.

    The test is the two-sided exact sign-flip test of the paired differences against the threshold, corrected by Holm's method for all
    claims of the table. The verdicts:

    * `"reproduced"`: significant in the claimed direction; without a threshold below 0 also at least `NEEDED` (half) of the paper's
      difference, or more than `SLIGHT` where the paper gives none.
    * `"right sign, 6 % of the paper's effect"`, or `"right sign, but slight"`: significant in the claimed direction, but smaller.
    * `"opposite"`: significant in the other direction; with a threshold below 0 the cost is larger than that.
    * `"cannot tell at n = 5"`: not significant. `p_least` above 0.05 says that no outcome at this number of images could have been.
    * `"at the floor"`: both means are in the lowest third, on a logarithmic scale, of what the score can be, from the protocol's eps to 1
      (up to 0.01 for eps = 0.001). There a difference says little: both methods fail.
    * `"holds by construction"`: an identity, which no image could contradict. Completeness is 1 for a label with f < eps. Where that is so
      for all labels but the prediction, and both methods have the same g for the prediction, their worst cases are the same. Images of this
      kind are left out; when all images are, this is the verdict.

    Args:
        result: as `evaluate` returns it.
        claims: which ones.
        paper: columns `method, metric, value`; None takes the paper's Table 1.

    Returns:
        Columns `claim, metric, method, reference, threshold, paper, ours, low, high, n, p_value, p_holm, p_least, effect, verdict`, then
        `composites` if the evaluation has this coordinate: the fewest that a learned mask of either side saw. `ours` is the mean difference
        method - reference and `effect` its share of the paper's. The threshold of "not much less" is at most `SLIGHT_SHARE` of the
        reference's mean. p-values are NaN where nothing is tested.
    """
    known = (paper_values("table1") if paper is None else paper).set_index(["metric", "method"]).value
    values, present = metric_values(result), set(result.method.values.tolist())
    rows = [
        _compared(result, values[c.metric], known, c)
        for c in claims
        if c.metric in values and {*_members(c.method), *_members(c.reference)} <= present
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["p_holm"], table["p_least"] = holm(table.p_value), holm(table.p_least)
    table["verdict"] = [row.verdict or _verdict(row) for row in table.itertuples()]
    if "composites" in result:
        spent = composites(result)
        sides = [[spent[name] for side in (row.method, row.reference) for name in _members(side)] for row in table.itertuples()]
        table["composites"] = pd.DataFrame(sides).min(axis=1)
    return table


def wide_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """For reading: what a claim compares, the paper's difference, ours with its interval and as a share of the paper's, and the verdict."""
    table = pd.DataFrame({"compared": claims.metric + ": " + claims.method + " - " + claims.reference})
    table["claimed"] = [f"> {'+' if value >= 0 else ''}{short(value)}" for value in claims.threshold]
    if claims.paper.notna().any():
        table["paper"] = _shown(claims.paper, "{:+.2f}".format)
    table["ours"] = intervals(claims)
    if claims.effect.notna().any():
        table["of the paper's"] = _shown(claims.effect, _percent)
    table["n"] = claims.n
    if "composites" in claims:
        table["composites"] = _shown(claims.composites, "{:,.0f}".format)
    table["p (Holm)"] = _shown(claims.p_holm, "{:.2g}".format)
    return table.assign(verdict=claims.verdict).set_axis(pd.Index(claims.claim, name="claim"))


def claim_sentences(claims: pd.DataFrame) -> list[str]:
    """One sentence a claim, made from its row: the verdict, the numbers behind it, and what they leave open.

    Example:
        >>> claim_sentences(claims_table(scores, TABLE1_CLAIMS))[0]  # doctest: +SKIP
        "TV raises soundness: right sign, 6 % of the paper's effect (the paper: +0.19); ours 0.012 [0.005, 0.02] over 20 images, p = 0.01."
    """
    sentences = []
    for row, ours in zip(claims.itertuples(), intervals(claims), strict=True):
        sentence = f"{row.claim}: {row.verdict}"
        if row.paper == row.paper:
            sentence += f" (the paper: {row.paper:+.2f})"
        sentence += f"; ours {ours}"
        if row.low == row.low:
            sentence += f" over {row.n} images"
        if row.p_holm == row.p_holm:
            sentence += f", p = {row.p_holm:.2g}"
        if row.verdict == "holds by construction":
            sentence += ", since every other label has f below eps and the prediction's map is the same"
        elif row.verdict.startswith("cannot tell") and not row.p_least < LEVEL:
            sentence += ", and no outcome at this n could have told"
        sentences.append(f"{sentence}.")
    return sentences


def _members(name: str) -> list[str]:
    return list(GROUPS.get(name, (name,)))


def _compared(result: xr.Dataset, values: xr.DataArray, known: pd.Series, claim: Claim) -> dict[str, Any]:
    """A row of `claims_table` before Holm's correction; the verdict is empty where the test decides."""
    sides = [_members(name) for name in (claim.method, claim.reference)]
    a, b = (values.sel({"method": side}).mean("method", skipna=False).values.astype(np.float64) for side in sides)
    paper = float(np.subtract(*(known.reindex([(claim.metric, name) for name in side]).mean(skipna=False) for side in sides)))
    same = _same_by_construction(result, claim)
    counts = ~np.isnan(a - b)
    identity = bool(counts.any() and same[counts].all())
    if not identity:
        counts &= ~same
    a, b = a[counts], b[counts]
    threshold = max(claim.threshold, -SLIGHT_SHARE * b.mean()) if claim.threshold < 0 and len(b) else claim.threshold
    low, high = limits(claim.metric)
    d = paired_comparison(a, b, threshold, limits=(low - high, high - low))
    eps = result.attrs.get(EPS.get(claim.metric, ""))
    floor = eps is not None and len(a) > 0 and max(a.mean(), b.mean()) <= eps**FLOOR
    return {
        **asdict(claim),
        "claim": claim.text,
        "threshold": threshold,
        "paper": paper,
        "ours": d.mean,
        **{name: getattr(d, name) for name in ("low", "high", "n")},
        "p_value": np.nan if identity else d.p_value,
        "p_least": np.nan if identity else least_p_value(d.n),
        "effect": d.mean / paper if paper and claim.threshold >= 0 else np.nan,
        "verdict": "holds by construction" if identity else "at the floor" if floor else "",
    }


def _same_by_construction(result: xr.Dataset, claim: Claim) -> np.ndarray:
    """The images `(N,)` on which both methods have the same worst-case completeness by definition."""
    sides = [_members(name) for name in (claim.method, claim.reference)]
    if claim.metric != "completeness" or max(map(len, sides)) > 1:
        return np.zeros(result.sizes["image"], bool)
    others = xr.DataArray(np.arange(result.sizes["label"]), dims="label") != result.prediction
    trivial = (result.prob < result.attrs.get("eps_completeness", 0.0)).where(others, True).all("label")
    g = result.insertion_auc.isel(label=result.prediction)
    a, b = (g.sel({"method": side[0]}).values for side in sides)
    return np.asarray(trivial.values & np.isclose(a, b, rtol=1e-3))


def _verdict(row: Any) -> str:
    if not row.p_holm < LEVEL:
        return f"cannot tell at n = {row.n}"
    if row.ours < row.threshold:
        return "opposite"
    if row.threshold < 0:
        return "reproduced"
    if row.effect != row.effect:
        return "reproduced" if row.ours > SLIGHT else "right sign, but slight"
    return "reproduced" if row.effect >= NEEDED else f"right sign, {_percent(row.effect)} of the paper's effect"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if abs(share) < 1 else f"{100 * share:.0f} %"


def _shown(values: pd.Series, text: Callable[[float], str]) -> list[str]:
    return ["" if value != value else text(value) for value in values]

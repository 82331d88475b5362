"""What the authors' own areas allow: bounds on completeness and soundness over every f, for the one score table that they published.

The table (`data/paper/released_scores.csv`) has g of ten images and ten labels, but not f, the probabilities on the whole images. Under a
softmax over the label list these are at least 0 and sum to 1. That alone bounds the worst cases of Definition 3.7.

Take one image with areas g and thresholds e1, e2. By Equation 1 its worst-case completeness is at least c if and only if every label has
`f <= max(g, e1) / c`. Its worst-case soundness is at least s if and only if every label has `f >= s g` or `s g <= e2`. So f must lie
between a lower and an upper bound for each label. The lower bound never exceeds the upper one, because `s g <= g / c`. Therefore an f that
sums to 1 exists if and only if the lower bounds sum to at most 1 and the upper bounds to at least 1. The first condition holds only s, the
second only c: the largest c and the largest s are reached by one and the same f, and nothing has to be traded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr

from salkit.checks import check_number
from salkit.curves import auc
from salkit.data.files import data_dir
from salkit.scores import completeness, soundness, worst_per_image
from salkit.studies.protocol_grid import ROUNDING, THRESHOLDS, Grid, t_interval

SURE = (0.0, 0.5, 0.9, 0.99)
"""Least f of the predicted label; 0 asks nothing of it."""
RELEASED, OURS = "released repository", "ours, same cell"


def released_areas() -> np.ndarray:
    """Areas g of the authors' masks, `(image, label)`: ten of each, masks and settings as in the row Ours, on ResNet50.

    Example:
        >>> released_areas().shape
        (10, 10)
    """
    table = pd.read_csv(data_dir() / "paper" / "released_scores.csv")
    return table.pivot(index="image", columns="label", values="insertion_auc").to_numpy()


def best_possible(areas: np.ndarray, eps_completeness: float, eps_soundness: float, sure: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Largest worst-case completeness and soundness over every f; both are reached by the same f (see above).

    With `sure` = p some label must have f of at least p. The label with the largest area allows most of both. With areas sorted from the
    largest, g_1 to g_A, and `G_k` the sum of the first k:

    - completeness `min(1, max(g_1, e1) / p, sum_a max(g_a, e1))`,
    - soundness `min(1, min_k max(e2 / g_k, min(1 / G_k, (1 - p) / (G_k - g_1))))`: for each k either the k-th label stays below the
      threshold, or f has to cover the k largest.

    The bound on soundness also holds for a softmax over more classes than the list, whose f sums to less than 1.

    Args:
        areas: g, `(image, label)`, in [0, 1].
        eps_completeness: e1 of Equation 1, in [0, 1].
        eps_soundness: e2, in [0, 1].
        sure: p, in [0, 1].

    Returns:
        Two arrays `(image,)`, in [0, 1].

    Raises:
        ValueError: areas of another shape or outside [0, 1], or another number outside [0, 1].

    Example:
        Two labels of area 0.8 share f equally, 0.5 / 0.8. If one has 0.9, the other keeps 0.1 / 0.8.

        >>> areas = np.array([[0.8, 0.8]])
        >>> best_possible(areas, 0.01, 0.001)
        (array([1.]), array([0.625]))
        >>> best_possible(areas, 0.01, 0.001, sure=0.9)[1].round(3)
        array([0.125])
    """
    areas = np.asarray(areas, np.float64)
    if areas.ndim != 2 or not areas.size or not (areas.min() >= 0 and areas.max() <= 1 + 1e-5):
        raise ValueError(f"areas: expected (image, label) in [0, 1], got shape {areas.shape} {areas}")
    for name, value in (("eps_completeness", eps_completeness), ("eps_soundness", eps_soundness), ("sure", sure)):
        check_number(name, value, 0, 1)
    g = -np.sort(-areas, axis=1)
    total = g.cumsum(1)
    lifted = np.maximum(g, eps_completeness)
    complete = np.minimum(_ratio(lifted[:, 0], sure), lifted.sum(1))
    covered = np.minimum(_ratio(1.0, total), _ratio(1.0 - sure, total - g[:, :1]))
    sound = np.maximum(_ratio(eps_soundness, g), covered).min(1)
    return np.minimum(complete, 1.0), np.minimum(sound, 1.0)


def _ratio(above: np.ndarray | float, below: np.ndarray | float) -> np.ndarray:
    """Infinity where nothing is asked: a bound of x / 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.inf), where=below > 0)


def bounds_table(areas: Mapping[str, np.ndarray], sure: Sequence[float] = SURE) -> pd.DataFrame:
    """`best_possible`, averaged over images, for each pair of thresholds.

    Args:
        areas: name -> g, `(image, label)`.
        sure: least f of the predicted label, one row each.

    Returns:
        Columns `areas, thresholds, sure`, `completeness` and `soundness` (means of the bounds), `low` and `high` (95 % t interval over
        images of the bound on soundness), `n`.
    """
    rows = []
    for name, g in areas.items():
        for thresholds, eps in THRESHOLDS.items():
            for p in sure:
                complete, sound = best_possible(g, *eps, p)
                ends = np.clip(t_interval(sound.mean(), sound.std() / len(sound) ** 0.5, len(sound)), 0, 1)
                rows.append([name, thresholds, p, complete.mean(), sound.mean(), *ends, len(sound)])
    return pd.DataFrame(rows, columns=["areas", "thresholds", "sure", "completeness", "soundness", "low", "high", "n"])


def same_cell(grid: Grid, method: str = "Ours") -> xr.Dataset:
    """Our areas in the cell of the released table: softmax over the label list, released loss, mean rule.

    Returns:
        `g` and `f`, dims image and label; `completeness` and `soundness`, worst cases, dims thresholds and image.
    """
    one = grid["labels", "released"].sel({"method": method}, drop=True)
    curves = one.insertion_curve.transpose("image", "label", "kept")
    f = one.prob.transpose("image", "label")
    g = f.copy(data=auc(torch.from_numpy(curves.values)).numpy())
    made = xr.Dataset({"g": g, "f": f})
    for i, score in enumerate((completeness, soundness)):
        worst = [worst_per_image(score(g, f, eps[i])) for eps in THRESHOLDS.values()]
        made[score.__name__] = xr.concat(worst, pd.Index(list(THRESHOLDS), name="thresholds"))
    return made


def conclusion(released: np.ndarray, ours: xr.Dataset, paper: pd.DataFrame, sure: float = 0.9) -> str:
    """What the released areas allow, beside the paper's numbers and ours, in words.

    Args:
        released: as `released_areas` returns it.
        ours: as `same_cell` returns it.
        paper: columns `method, metric, value`.
        sure: least f of the predicted label, as on real images.
    """
    areas = {RELEASED: released, OURS: ours.g.values}
    table = bounds_table(areas, (0.0, sure)).set_index(["areas", "thresholds", "sure"])
    known = paper[paper.method == "Ours"].set_index("metric").value
    target = known.loc[["completeness", "soundness"]]
    two = {name: np.median(-np.sort(-g, axis=1)[:, :2], axis=0) for name, g in areas.items()}
    share = float((ours.f.max("label") >= sure).mean())
    lines = [
        f"The authors' repository has areas g of {released.shape[0]} images x {released.shape[1]} labels, but not f. Whether Table 1 comes "
        "from these masks is not known.",
        "Median over images of the largest and of the second-largest area of an image's labels: "
        + "; ".join(f"{name} {first:.2f} and {second:.2f}" for name, (first, second) in two.items())
        + f" (n = {released.shape[0]} and {ours.sizes['image']}).",
        "No f that sums to 1 over the labels gives more than these means (one f reaches both):",
    ]
    for thresholds in THRESHOLDS:
        for p in (0.0, sure):
            row = table.loc[(RELEASED, thresholds, p)]
            asked = f"f of the prediction at least {p:g}" if p else "any f"
            reached = bool((row[target.index] >= target - ROUNDING).all())
            lines.append(
                f"  {thresholds} thresholds, {asked}: completeness {row.completeness:.2f}, soundness {row.soundness:.2f} "
                f"[{row.low:.2f}, {row.high:.2f}]. The paper's {target.completeness:.2f} and {target.soundness:.2f} can"
                f"{'' if reached else 'not'} be attained with these areas."
            )
    lines.append(
        f"Our areas in the same cell (softmax over labels, released loss); our net has f of at least {sure:g} on {share:.0%} of the images:"
    )
    for thresholds in THRESHOLDS:
        measured = ours.sel({"thresholds": thresholds})
        free, asked = (table.loc[(OURS, thresholds, p)] for p in (0.0, sure))
        lines.append(
            f"  {thresholds} thresholds: measured completeness {float(measured.completeness.mean()):.2f}, soundness "
            f"{float(measured.soundness.mean()):.2f}; any f allows at most {free.completeness:.2f} and {free.soundness:.2f}, f of at "
            f"least {sure:g} at most {asked.completeness:.2f} and {asked.soundness:.2f}."
        )
    return "\n".join(lines)

"""Two runs of the same experiments, say on other machines, with other batch sizes or workers: how far apart are their numbers?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from salkit.engine.identity import canonical
from salkit.engine.store import Store

MAPS = 1e-4
"""Largest difference of a learned mask with another batch size or number of workers."""

SCORES = 1e-3
"""Largest difference of a probability, a point of a curve or an area then."""


def compare_stores(a: Store, b: Store) -> pd.DataFrame:
    """The largest difference of every array that both stores hold of the same experiment.

    Where a store holds several versions of one (computed with other libraries or code), the one counts that both hold, or else the latest.
    Maps are compared as they are kept (masks as their logits' sigmoid), all others as numbers; NaN equals NaN. Of maps kept in float16 it
    is the least difference that they can have had before: a step of float16 is up to 2.2e-4 of a mask, and rounding can make one of 1e-9.

    Returns:
        Columns `run` (title), `score` (name of the array), `rows` compared, `mean` and `largest` absolute difference; the largest first.

    Raises:
        ValueError: a store is empty, or they have no experiment in common.
    """
    for name, store in (("run_a", a), ("run_b", b)):
        if not store.keys():
            raise ValueError(f"{name}: expected a folder with results, got {store.folder}, which has none")
    ours, theirs = ({_subject(store, key): key for key in store.keys()} for store in (a, b))
    common = {subject: (ours[subject], theirs[subject]) for subject in ours if subject in theirs}
    common |= {_subject(a, key): (key, key) for key in a.keys() if key in b.keys()}
    if not common:
        raise ValueError(f"run_b: expected experiments that {a.folder} holds, too, got none in {b.folder}")
    rows = []
    for own, other in common.values():
        experiment = a.experiment(own)
        (left, here), (right, there) = (s.read_partly(key, 0, experiment.rows) for s, key in ((a, own), (b, other)))
        both = here & there
        for name in left.keys() & right.keys() if both.any() else ():
            difference = _difference(left[name][both], right[name][both], experiment.what)
            rows.append([experiment.title, name, int(both.sum()), float(difference.mean()), float(difference.max(initial=0.0))])
    table = pd.DataFrame(rows, columns=["run", "score", "rows", "mean", "largest"])
    return table.sort_values("largest", ascending=False, ignore_index=True)


def _subject(store: Store, key: str) -> str:
    """What an experiment is about, without versions: experiments that refer to others by their keys refer to what those are about."""
    experiment = store.experiment(key)
    what = dict(experiment.what)
    if isinstance(what.get("maps"), str) and (store.folder / what["maps"] / "manifest.json").is_file():
        what["maps"] = _subject(store, what["maps"])
    return canonical([experiment.kind, experiment.rows, _without_source(what)])


def _without_source(what: Any) -> Any:
    if isinstance(what, dict):
        return {name: _without_source(value) for name, value in what.items() if name != "source"}
    return [_without_source(value) for value in what] if isinstance(what, list) else what


def _difference(a: np.ndarray, b: np.ndarray, what: Any) -> np.ndarray:
    """How far apart the values are at least: kept in float16, those of neighbours may have been equal before they were rounded."""
    if a.dtype.kind == "U" or b.dtype.kind == "U":
        return (a != b).astype(float)
    as_mask = "LearnedMask" in str(what.get("method", {})) and a.dtype == np.float16
    (low_a, high_a), (low_b, high_b) = (_limits(values, as_mask) for values in (a, b))
    with np.errstate(invalid="ignore"):  # infinities
        apart = np.maximum(0, np.maximum(low_a - high_b, low_b - high_a))
    return np.where(np.isnan(a) & np.isnan(b) | (a == b), 0.0, np.nan_to_num(apart, nan=np.inf))


def _limits(values: np.ndarray, as_mask: bool) -> tuple[np.ndarray, np.ndarray]:
    """Between what the values were before they were rounded to float16; those of other types as they are. Masks from their logits."""
    wide = values.astype(np.float64)
    half = np.abs(np.spacing(values)).astype(np.float64) / 2 if values.dtype == np.float16 else 0.0
    low, high = wide - half, wide + half
    return (expit(low), expit(high)) if as_mask else (low, high)

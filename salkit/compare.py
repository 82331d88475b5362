"""Two runs of the same experiments, say on other machines, with other batch sizes or workers: how far apart are their numbers?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from salkit.experiment import canonical
from salkit.store import Store

MAPS = 1e-4
"""Largest difference of a learned mask with another batch size or number of workers."""

SCORES = 1e-3
"""Largest difference of a probability, a point of a curve or an area then."""


def compare_stores(a: Store, b: Store) -> pd.DataFrame:
    """The largest difference of every array that both stores hold of the same experiment, whatever versions it was computed with.

    Maps are compared as they are kept (masks as their logits' sigmoid), all others as numbers; NaN equals NaN.

    Returns:
        Columns `run` (title), `score` (name of the array), `rows` compared, `mean` and `largest` absolute difference; the largest first.

    Raises:
        ValueError: a store is empty, or they have no experiment in common.
    """
    for name, store in (("run_a", a), ("run_b", b)):
        if not store.keys():
            raise ValueError(f"{name}: expected a folder with results, got {store.folder}, which has none")
    ours, theirs = ({_subject(store, key): key for key in store.keys()} for store in (a, b))
    common = [subject for subject in ours if subject in theirs]
    if not common:
        raise ValueError(f"run_b: expected experiments that {a.folder} holds, too, got none in {b.folder}")
    rows = []
    for subject in common:
        experiment = a.experiment(ours[subject])
        (left, here), (right, there) = (s.read_partly(key, 0, experiment.rows) for s, key in ((a, ours[subject]), (b, theirs[subject])))
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
    if a.dtype.kind == "U" or b.dtype.kind == "U":
        return (a != b).astype(float)
    x, y = a.astype(np.float64), b.astype(np.float64)
    if str(what.get("method", {})).find("LearnedMask") >= 0 and a.dtype == np.float16:
        x, y = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-y))
    return np.where(np.isnan(x) & np.isnan(y), 0.0, np.nan_to_num(np.abs(x - y), nan=np.inf))

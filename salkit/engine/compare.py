"""How far apart are two runs of the same experiments, for example on two machines or with other versions?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from salkit.engine.identity import canonical
from salkit.engine.store import Store

MAPS = 1e-4
"""Two learned masks count as equal up to this difference."""

SCORES = 1e-3
"""Two probabilities, points of a curve or areas count as equal up to this difference."""

IGNORED = ("source", "internal_batch_size")
"""Parts of a description in which two runs of the same experiment may differ."""


def compare_stores(a: Store, b: Store) -> pd.DataFrame:
    """The largest difference of every array of the experiments that are in both stores.

    Experiments are the same if their settings, nets and images are, whatever the versions of libraries and code. If a store has an
    experiment in several versions, the one that both stores have is compared, else the latest. Logits of masks are compared after a
    sigmoid, everything else as it is stored. NaN equals NaN.

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
            logits = experiment.what.get("kept_as") == "logits"
            difference = _difference(left[name][both], right[name][both], logits)
            rows.append([experiment.title, name, int(both.sum()), float(difference.mean()), float(difference.max(initial=0.0))])
    table = pd.DataFrame(rows, columns=["run", "score", "rows", "mean", "largest"])
    return table.sort_values("largest", ascending=False, ignore_index=True)


def _subject(store: Store, key: str) -> str:
    """The description of an experiment without versions. The key of other results in it is replaced by their description."""
    experiment = store.experiment(key)
    what = dict(experiment.what)
    if isinstance(what.get("maps"), str) and (store.folder / what["maps"] / "manifest.json").is_file():
        what["maps"] = _subject(store, what["maps"])
    return canonical([experiment.kind, experiment.rows, without_versions(what)])


def without_versions(what: Any) -> Any:
    """A description without the code of what it describes and without settings that change only rounding."""
    if isinstance(what, dict):
        return {name: without_versions(value) for name, value in what.items() if name not in IGNORED}
    return [without_versions(value) for value in what] if isinstance(what, list) else what


def _difference(a: np.ndarray, b: np.ndarray, logits: bool) -> np.ndarray:
    if a.dtype.kind == "U" or b.dtype.kind == "U":
        return (a != b).astype(float)
    left, right = (expit(x.astype(np.float64)) if logits else x.astype(np.float64) for x in (a, b))
    with np.errstate(invalid="ignore"):  # infinities
        apart = np.abs(left - right)
    return np.where(np.isnan(left) & np.isnan(right) | (left == right), 0.0, np.nan_to_num(apart, nan=np.inf))

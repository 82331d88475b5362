"""The recorded numbers of each profile, and the check of a notebook's numbers against them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from salkit.data.files import data_dir

TOLERANCE = 0.02
"""Allowed relative difference of a number without a tolerance of its own. Such numbers are simulated and differ by rounding only."""

EXACT = ("Gradient x Input", "Random", "Centered Gaussian", "Phang et al.", "Phang et al. (class)", "Dabkowski and Gal", "Grad-CAM")
"""Methods that learn nothing from an image: their scores differ by rounding only."""


def expected_values(profile: str) -> dict[str, dict[str, Any]]:
    """Notebook -> its `seconds` on two CPU cores and its checked `values`; empty for a profile without a recorded run."""
    path = data_dir() / "expected" / f"{profile}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def check(notebook: str, profile: str, values: Mapping[str, float | tuple[float, float]]) -> str:
    """Compare a notebook's numbers with the recorded ones. The last cell of each notebook prints the answer.

    With `SALKIT_RECORD=1` in the environment the numbers are recorded first.

    Args:
        notebook: name without suffix.
        profile: the profile that the notebook ran with.
        values: name -> number, or number and tolerance. The tolerance is only used for recording: a check uses the recorded one.

    Returns:
        How many numbers agree, then one line for each that does not.

    Raises:
        ValueError: the names in `values` are not the recorded names.
    """
    pairs = {k: v if isinstance(v, tuple) else (v, TOLERANCE * abs(v) + 1e-6) for k, v in values.items()}
    if os.environ.get("SALKIT_RECORD") == "1":
        record(profile, {notebook: {"values": {k: [round(float(number), 6) for number in pair] for k, pair in pairs.items()}}})
    recorded = expected_values(profile).get(notebook, {}).get("values")
    if recorded is None:
        return f"no numbers are recorded for profile {profile}: nothing to compare"
    if set(recorded) != set(values):
        raise ValueError(f"values: expected the recorded names, differing in {sorted(set(recorded) ^ set(values))}")
    wrong = []
    for name, (number, tolerance) in recorded.items():
        got = pairs[name][0]
        both_missing = got != got and number != number
        if not (abs(got - number) <= tolerance or both_missing):
            wrong.append(f"{name}: expected {number:.4f} within {tolerance:.4f}, got {got:.4f}")
    return "\n".join([f"{len(recorded) - len(wrong)} of {len(recorded)} checks passed", *wrong])


def headline(tidy: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """The measured numbers of a tidy table as `method/metric` -> number and tolerance, for `check`.

    Learning a mask amplifies rounding: on another processor the mask is like another random draw. Its scores may therefore differ by
    three quarters of their interval's width. Scores of the methods in `EXACT` may differ by 0.005. The saliency metric always has the
    wide tolerance, because it selects the best of several thresholds and rounding can decide between near ties.
    """
    values = {}
    for row in tidy[tidy.n > 0].itertuples():
        narrow = row.method in EXACT and row.metric != "saliency_metric"
        values[f"{row.method}/{row.metric}"] = (
            row.ours,
            0.005 if narrow else 0.75 * (row.high - row.low if row.high == row.high else 0) + 1e-4,
        )
    return values


def record(profile: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Add to the recorded numbers of a profile: notebook -> `seconds` or `values`."""
    expected = expected_values(profile)
    for notebook, entry in entries.items():
        expected.setdefault(notebook, {}).update(entry)
    path = data_dir() / "expected" / f"{profile}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")

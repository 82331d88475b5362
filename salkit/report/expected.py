"""The recorded numbers of each profile, and the check of a notebook's numbers against them.

A recorded number has a tolerance and the reason for it. There are three kinds:

* Numbers read from files or drawn from a seed are the same on every machine: `exact`.
* Scores of methods that learn nothing differ by the rounding of a net's kernels: `ROUNDING`, see `live`.
* A mask learned on another processor is like another draw. Its scores may differ as far as those of two seeds do: `live`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from salkit.atomic import atomic_write
from salkit.data.files import data_dir

FROM_FILES = "read from recorded files"
SEEDED = "seeded draws on float64, counted: the same on every processor"
KERNELS = "computed live: a processor's kernels round differently"
ANOTHER_DRAW = "learned live: on another processor like another draw; the spread between two recorded seeds"

ROUNDING = 0.005
"""Tolerance of a score in [0, 1] that is computed live by a method of `LEARNS_NOTHING`."""

UNBOUNDED = (-math.inf, math.inf)
RANGES = {"label_correlation": (-1.0, 1.0)}
"""Ranges of the metrics that are not in [0, 1]."""

LEARNS_NOTHING = (
    *("Gradient x Input", "Grad-CAM", "SmoothGrad", "Integrated Gradients", "LRP", "RISE", "Random", "Centered Gaussian"),
    *("Phang et al.", "Phang et al. (class)", "Dabkowski and Gal"),
)
"""Methods that learn nothing from the image they explain: their scores differ by rounding only."""


class Value(NamedTuple):
    """A number to check, and how far it may be from the recorded one. A tuple `(number, tolerance, reason)` will do as well.

    Attributes:
        number: NaN for a quantity that is not defined here.
        tolerance: the largest difference that passes.
        reason: why a correct run may differ by that much.
        span: the least and the greatest value that the quantity can have.
    """

    number: float
    tolerance: float
    reason: str
    span: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        passed: how many numbers agree.
        failed: one line for each that does not.
        note: why nothing was compared, else empty.
    """

    passed: int
    failed: tuple[str, ...] = ()
    note: str = ""

    @property
    def summary(self) -> str:
        """One line, such as `2 of 3 checks passed`."""
        return self.note or f"{self.passed} of {self.passed + len(self.failed)} checks passed"

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.failed])


def check(notebook: str, profile: str, values: Mapping[str, Value | tuple[float, float, str]], output_dir: str | Path | None = None) -> str:
    """Compare a notebook's numbers with the recorded ones. The last cell of each notebook prints the answer.

    A number that differs, is missing or is new is a failed check. `salkit reproduce` lists it and ends with an exit code that is not 0.
    With `SALKIT_RECORD=1` in the environment the numbers are recorded first.

    Args:
        notebook: name without suffix.
        profile: the profile that the notebook ran with.
        values: name -> `Value`, or number, tolerance and reason. Only the number is used, except for recording: a check has the recorded
            tolerance.
        output_dir: folder of the run; what the check found is also written to its `checks/NOTEBOOK.json`.

    Returns:
        How many numbers agree, then one line for each that does not.

    Raises:
        ValueError: when recording, a value that is no check: no reason, or a tolerance that covers most of its range.

    Example:
        >>> print(check("01_theory_toy_model", "a profile without records", {"L2": (611, 0, SEEDED, UNBOUNDED)}))
        no numbers are recorded for profile a profile without records: nothing to compare
    """
    if os.environ.get("SALKIT_RECORD") == "1":
        if not values:
            raise ValueError("values: expected at least one number to record, got none")
        record(profile, {notebook: {"values": {name: _recordable(name, Value(*value)) for name, value in values.items()}}})
    outcome = compare(notebook, profile, {name: value[0] for name, value in values.items()})
    if output_dir is not None:
        write_outcome(output_dir, notebook, outcome)
    return str(outcome)


def compare(notebook: str, profile: str, numbers: Mapping[str, float]) -> Outcome:
    """Compare numbers with those recorded for a notebook and profile. Nothing is compared if the profile has no recorded run."""
    expected = expected_values(profile)
    if not expected:
        return Outcome(0, note=f"no numbers are recorded for profile {profile}: nothing to compare")
    recorded, passed, failed = expected.get(notebook, {}).get("values", {}), 0, []
    for name, (number, tolerance, reason) in recorded.items():
        if name not in numbers:
            failed.append(f"{name}: expected {number:.8g}, got no such number")
        elif abs(numbers[name] - number) <= tolerance or (number != number and numbers[name] != numbers[name]):
            passed += 1
        else:
            failed.append(f"{name}: expected {number:.8g} within {tolerance:.2g}, got {numbers[name]:.8g} ({reason})")
    new = [name for name in numbers if name not in recorded]
    failed += [f"{name}: expected no such number, got {numbers[name]:.8g}; `make record` records it" for name in new]
    return Outcome(passed, tuple(failed))


def exact(numbers: Mapping[str, float], reason: str) -> dict[str, Value]:
    """Numbers that are the same on every machine: they may differ by a millionth, since sums are not added in the same order everywhere.

    Args:
        numbers: name -> number, of any range.
        reason: `FROM_FILES` or `SEEDED`.

    Example:
        >>> exact({"mask": 4000}, SEEDED)["mask"].tolerance
        0.004000001
    """
    return {name: Value(number, 1e-6 * abs(number) + 1e-9, reason, UNBOUNDED) for name, number in numbers.items()}


def headline(tidy: pd.DataFrame) -> dict[str, float]:
    """The measured numbers of a tidy table: `method/metric` -> number."""
    return {f"{row.method}/{row.metric}": row.ours for row in tidy[tidy.n > 0].itertuples()}


def live(tidy: pd.DataFrame, spread: float | Mapping[str, float]) -> dict[str, Value]:
    """The measured numbers of a tidy table that is computed live: `live/method/metric` -> `Value`.

    The saliency metric is left out: rounding can decide which threshold it selects, which moves it by any amount.

    Args:
        tidy: as `salkit.report.tables.tidy_table` returns it.
        spread: how far the scores of two recorded seeds of the same images are apart, for the methods that learn a mask: one number, or
            `method/metric` -> number. It is their tolerance; where it is below `ROUNDING`, and for all other methods, that is.

    Raises:
        KeyError: `spread` has no number for a method that learns.
    """
    values = {}
    for row in tidy[(tidy.n > 0) & (tidy.metric != "saliency_metric")].itertuples():
        name, tolerance, reason = f"{row.method}/{row.metric}", ROUNDING, KERNELS
        if row.method not in LEARNS_NOTHING:
            tolerance, reason = max(ROUNDING, spread[name] if isinstance(spread, Mapping) else spread), ANOTHER_DRAW
        values[f"live/{name}"] = Value(row.ours, tolerance, reason, RANGES.get(row.metric, (0.0, 1.0)))
    return values


def agreement(live_part: pd.DataFrame) -> dict[str, Value]:
    """What is computed live of a recorded experiment: `live/method` -> the largest difference of g, which should be 0.

    Args:
        live_part: see `salkit.studies.verify.live_part`.
    """
    kinds = {True: ANOTHER_DRAW, False: KERNELS}
    return {f"live/{row.method}": Value(row.largest, row.allowed, kinds[row.composites > 0]) for row in live_part.itertuples()}


def expected_values(profile: str) -> dict[str, dict[str, Any]]:
    """Notebook -> its `seconds` on two CPU cores and its checked `values`; empty for a profile without a recorded run.

    `values` is name -> number, tolerance and reason.
    """
    path = data_dir() / "expected" / f"{profile}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def record(profile: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Add to the recorded numbers of a profile: notebook -> `seconds` or `values`."""
    expected = expected_values(profile)
    for notebook, entry in entries.items():
        expected.setdefault(notebook, {}).update(entry)
    path = data_dir() / "expected" / f"{profile}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(expected, indent=1, sort_keys=True)
    one_line = re.sub(r"\[\n.*?\n *\]", lambda value: re.sub(r"\n *", "", re.sub(r",\n *", ", ", value[0])), text, flags=re.DOTALL)
    with atomic_write(path) as part:
        part.write_text(one_line + "\n")


def write_outcome(output_dir: str | Path, notebook: str, outcome: Outcome) -> None:
    """Write what a notebook's check found, whole or not at all."""
    path = outcome_path(output_dir, notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(json.dumps(asdict(outcome), indent=1) + "\n")


def read_outcomes(output_dir: str | Path) -> dict[str, Outcome]:
    """Notebook -> what its last check in this folder found."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(outcome_path(output_dir, "").parent.glob("*.json"))}
    return {name: Outcome(each["passed"], tuple(each["failed"]), each["note"]) for name, each in found.items()}


def outcome_path(output_dir: str | Path, notebook: str) -> Path:
    """Where `check` writes what it found."""
    return Path(output_dir) / "checks" / f"{notebook}.json"


def _recordable(name: str, value: Value) -> list[float | str]:
    """Number, tolerance and reason as they are recorded, or a ValueError if they are no check."""
    number, tolerance, reason, (low, high) = value
    if not reason or not 0 <= tolerance < math.inf:
        raise ValueError(f"{name}: expected a tolerance of 0 or more and its reason, got {tolerance} and {reason!r}")
    if number == number:
        if not low - 1e-6 <= number <= high + 1e-6:
            raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], got {number:g}; its range is the fourth entry of `Value`")
        if min(number + tolerance, high) - max(number - tolerance, low) > (high - low) / 2:
            raise ValueError(f"{name}: tolerance {tolerance:g} covers most of [{low:g}, {high:g}]: no check")
    return [float(f"{number:.8g}"), float(f"{tolerance:.3g}"), reason]

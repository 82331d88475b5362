"""Measure contestants round robin, compare them round by round, and say which targets are met."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Contestant:
    """One way to do a piece of work; a run sends `composites` images through a net."""

    name: str
    composites: int
    run: Callable[[], object]


@dataclass(frozen=True)
class Measurement:
    """One value per round: a rate in composites per second, or a ratio of two rates."""

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return median(self.values)

    def over(self, other: Measurement, name: str) -> Measurement:
        """Ratios within each round: a machine that slows down slows both."""
        return Measurement(name, tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def text(self, digits: int = 3) -> str:
        """The median and, in brackets, the extremes."""
        middle, low, high = (_digits(value, digits) for value in (self.median, min(self.values), max(self.values)))
        return f"{middle} [{low}, {high}]" if len(self.values) > 1 else middle


@dataclass(frozen=True)
class Target:
    """A bound that the median has to reach, or to stay below."""

    bound: float
    at_least: bool = True

    def verdict(self, found: Measurement | None) -> str:
        """`met`, `missed by ...` in per cent of the target, or `not measured`."""
        if found is None:
            return "not measured"
        value = found.median
        if value >= self.bound if self.at_least else value < self.bound:
            return "met"
        return f"missed by {100 * abs(value / self.bound - 1):.1f} %"

    def text(self) -> str:
        """For a table."""
        return f"{'>=' if self.at_least else '<'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """A line of the results: a measurement of one net and task, its target, and a note."""

    case: str
    task: str
    name: str
    found: Measurement | None
    target: Target | None = None
    note: str = ""
    unit: str = "ratio"

    def record(self) -> dict[str, object]:
        """For the JSON file."""
        found = {} if self.found is None else {"median": self.found.median, "values": list(self.found.values)}
        target = {} if self.target is None else {"target": self.target.text(), "verdict": self.target.verdict(self.found)}
        return {"case": self.case, "task": self.task, "name": self.name, "unit": self.unit, **found, **target, "note": self.note}

    def cells(self) -> list[str]:
        """For a table: net, task, name, number, target, verdict, note."""
        target, verdict = ("", "") if self.target is None else (self.target.text(), self.target.verdict(self.found))
        return [self.case, self.task, self.name, "-" if self.found is None else self.found.text(), target, verdict, self.note]


def round_robin(contestants: Sequence[Contestant], repeats: int, device: str) -> dict[str, Measurement]:
    """Rates of all contestants: one run each to warm up, then `repeats` rounds in which each runs once.

    Whatever slows the machine for a while hits all alike; each round begins with another contestant.
    """
    threads = torch.get_num_threads()
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(repeats + 1):
        start = number % max(1, len(contestants))
        for contestant in [*contestants[start:], *contestants[:start]]:
            # Threads of other contestants set their own number, which MKL takes for everyone's.
            torch.set_num_threads(threads)
            rate = contestant.composites / seconds(contestant.run, device)
            if number:
                rates[contestant.name].append(rate)
    torch.set_num_threads(threads)
    return {name: Measurement(name, tuple(values)) for name, values in rates.items()}


def seconds(run: Callable[[], object], device: str) -> float:
    """Seconds that a call takes, including its work on the device."""
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; empty columns are left out."""
    filled = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[line[i] for i in filled] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(filled))]
    texts = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def heading(where: Mapping[str, object]) -> str:
    """One line about the machine."""
    place = where["cpu"] if where["device"] == "cpu" else where["device"]
    return (
        f"{place}, {where['cores']} cores, {where['torch_threads']} torch threads, load {where['load_average']}; torch {where['torch']}, "
        f"commit {where['commit']}, {where['date']}"
    )


def _digits(value: float, digits: int) -> str:
    """A number with at least `digits` significant digits and without an exponent."""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)

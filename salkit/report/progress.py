"""The line in the terminal while notebooks run: which notebook and cell, and how long is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text


@dataclass
class Progress:
    """Shows the running notebook and cell, and estimates the time left: recorded seconds, scaled by the pace of this machine.

    Args:
        notebooks: names in order -> recorded seconds, None where there are none.
        console: a terminal shows one line that changes; a file gets one line per cell.
        rows: returns the progress of the evaluation in the current cell as text; may be empty.
        clock: a monotonic clock in seconds.

    Attributes:
        finished: name, seconds and success of each notebook that has ended.
    """

    notebooks: Mapping[str, float | None]
    console: Console
    rows: Callable[[], str] = str
    clock: Callable[[], float] = time.monotonic
    finished: list[tuple[str, float, bool]] = field(default_factory=list)
    _name: str = ""
    _cell: str = ""
    _since: float = 0.0
    _live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._line, console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._name = ""
        if self._live:
            self._live.stop()

    def start(self, name: str) -> None:
        """A notebook starts."""
        self._name, self._cell, self._since = name, "starting", self.clock()

    def cell(self, number: int, total: int) -> None:
        """A cell of the running notebook starts; the first is number 1."""
        self._cell = f"cell {number}/{total}"
        if not self._live:
            self.console.print(self._line())

    def stop(self, ok: bool, note: str = "") -> None:
        """The running notebook has ended; `note` is printed beside its name."""
        seconds = self.clock() - self._since
        self.finished.append((self._name, seconds, ok))
        self.console.print(Text("  ".join([f"{'done  ' if ok else 'failed'} {self._name}", minutes(seconds), note]).rstrip()))
        self._name = ""

    def left(self) -> float | None:
        """Estimated seconds until the last notebook ends; None while a notebook without a recorded time is still to come."""
        done = [name for name, _, _ in self.finished]
        to_come = [seconds for name, seconds in self.notebooks.items() if name not in done]
        recorded = sum(self.notebooks[name] or 0.0 for name in done)
        pace = sum(seconds for _, seconds, _ in self.finished) / recorded if recorded else 1.0
        current = self.notebooks.get(self._name) or 0.0
        rest = max(pace * current - (self.clock() - self._since), 0.0) if self._name else 0.0
        return None if None in to_come else rest + pace * (sum(seconds or 0.0 for seconds in to_come) - current)

    def _line(self) -> Text:
        if not self._name:
            return Text("")
        position, left = list(self.notebooks).index(self._name) + 1, self.left()
        remaining = "time left unknown" if left is None else f"about {minutes(left)} left"
        elapsed = minutes(self.clock() - self._since)
        parts = [f"notebook {position}/{len(self.notebooks)}", self._name, self._cell, self.rows(), elapsed, remaining]
        return Text("  ".join(part for part in parts if part))


def minutes(seconds: float) -> str:
    """Seconds as minutes:seconds.

    Example:
        >>> minutes(75.4)
        '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

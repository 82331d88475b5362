"""One shard: some rows of an experiment, which a task computes from a source and the store keeps."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from salkit.engine.identity import Experiment
from salkit.engine.store import Arrays, MissingRows, Store, StoreError


class Source(Protocol):
    """The data that rows are computed from. It is pickled when Dask workers compute."""

    def about(self) -> dict[str, Any]:
        """Where rows are computed (device, threads, versions), for the shards' headers."""
        ...


class Task(Protocol):
    """Computes rows of an experiment from a source. It is pickled when Dask workers compute."""

    def __call__(self, source: Any, store: Store, start: int, stop: int) -> Arrays:
        """Arrays of the rows `start` to `stop`, along their first axis."""
        ...

    def shard_size(self, source: Any) -> int:
        """How many rows make a shard in the process that computes them."""
        ...

    def row_name(self, source: Any, row: int) -> str:
        """What a row is, for people."""
        ...


@dataclass(frozen=True)
class Job:
    """An experiment, the task that computes its rows, and the index of the source they are computed from."""

    experiment: Experiment
    task: Task
    source: int = 0


@dataclass(frozen=True)
class Failure:
    """One row that could not be computed: what it is, and why."""

    title: str
    row: str
    error: str

    def __str__(self) -> str:
        return f"{self.title}, {self.row}: {self.error}"


class ShardError(RuntimeError):
    """Some rows could not be computed; all others are kept. The message names the rows and their errors."""


class WorkerError(RuntimeError):
    """A Dask worker cannot take part, or none is left. The message says which and why. Finished shards are kept."""


def compute_shard(job: Job, source: Source, store: Store, start: int, stop: int, *, strict: bool = False) -> list[Failure] | None:
    """Compute those of the rows `start` to `stop` that the store does not have, and keep them.

    Rows that fail together are tried again in halves, so that each row that fails is named and all others are kept.

    Args:
        job: what to compute.
        source: what to compute it from.
        store: where the rows go.
        start: first row.
        stop: the row after the last.
        strict: raise the first error instead.

    Returns:
        The rows that failed; None when another process is computing these rows.

    Raises:
        StoreError: the store cannot be written to.
    """
    key = job.experiment.key
    with store.claim(key, start, stop) as ours:
        if not ours:
            return None
        wanted = [(max(a, start), min(b, stop)) for a, b in store.missing(job.experiment) if a < stop and b > start]
        return [failure for a, b in wanted for failure in _attempt(job, source, store, a, b, strict)]


def _attempt(job: Job, source: Source, store: Store, start: int, stop: int, strict: bool) -> list[Failure]:
    try:
        arrays = job.task(source, store, start, stop)
    except Exception as error:
        # Rows of another experiment may be missing for some of these rows only; a store that cannot be written to fails all of them.
        if strict or (isinstance(error, StoreError) and not isinstance(error, MissingRows)):
            raise
        if stop - start == 1:
            where = traceback.extract_tb(error.__traceback__)[-1]
            row = ", ".join([job.task.row_name(source, start), *getattr(error, "__notes__", [])])
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            return [Failure(job.experiment.title, row, text)]
        middle = (start + stop) // 2
        return _attempt(job, source, store, start, middle, strict) + _attempt(job, source, store, middle, stop, strict)
    store.write(job.experiment.key, start, stop, arrays, source.about())
    return []

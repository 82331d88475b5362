"""Where shards are computed: in this process, or by Dask workers on this machine or others."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from salkit.checks import check_integer
from salkit.engine.shards import Failure, Job, ShardError, Source, compute_shard
from salkit.engine.store import Store
from salkit.progress import progress_bar


@dataclass(frozen=True)
class Engine:
    """A store, and the executor that computes what it does not have yet.

    Attributes:
        store: holds the results. Workers on other machines need to see it under the same path.
        executor: `"serial"`, `"dask"` (workers on this machine) or the address of a Dask scheduler, `"tcp://..."`.
        workers: how many with `"dask"`; None for one a GPU, or one a core where there is no GPU.
        strict: raise the first error instead of computing the rest first (serial only).
        show_progress: show a bar over the rows of all jobs.
        stack: ends the workers when it is closed.

    Raises:
        ValueError: unknown executor, fewer than one worker, or Dask is not installed.
    """

    store: Store
    executor: str = "serial"
    workers: int | None = None
    strict: bool = False
    show_progress: bool = True
    stack: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_executor(self.executor, self.workers)

    def run(self, jobs: Sequence[Job], sources: Sequence[Source], desc: str = "") -> list[Failure]:
        """Compute the rows that the store does not have. Processes that share a store share the work.

        Args:
            jobs: what to compute.
            sources: what they are computed from; jobs refer to them by index.
            desc: a word before the bar.

        Returns:
            The rows that could not be computed; all others are in the store.

        Raises:
            StoreError: the store cannot be written to.
            WorkerError: a Dask worker sees another store or runs other code, or there are no workers.
        """
        for job in jobs:
            self.store.open(job.experiment)
        if not (total := sum(b - a for job in jobs for a, b in self.store.missing(job.experiment))):
            return []
        client = self._client
        with progress_bar(None, self.show_progress, total=total, unit="row", desc=desc) as bar:
            if client is None:
                return _serial(jobs, sources, self.store, self.strict, bar)
            from salkit.engine.dask_shards import compute_on_workers

            return compute_on_workers(client, jobs, sources, self.store, bar)

    @cached_property
    def _client(self) -> Any:
        """A Dask client, connected when it is first needed; None for the serial executor."""
        if self.executor == "serial":
            return None
        from salkit.engine.dask_shards import connect

        return self.stack.enter_context(connect(self.executor, self.workers, self.show_progress))


@contextmanager
def open_engine(
    store: str | Path | Store | None, executor: str = "serial", workers: int | None = None, show_progress: bool = True
) -> Iterator[Engine]:
    """An engine over a store. Without a store results go to a temporary folder, and the first error is raised at once."""
    with ExitStack() as stack:
        strict = store is None
        if store is None:
            store = Store(stack.enter_context(tempfile.TemporaryDirectory(prefix="salkit-")), durable=False)
        yield Engine(store if isinstance(store, Store) else Store(store), executor, workers, strict, show_progress, stack)


def raise_failures(failures: Sequence[Failure], store: Store) -> None:
    """Raise an error that names the rows that could not be computed.

    Raises:
        ShardError: if there are any.
    """
    if failures:
        shown = "\n".join(f"  {failure}" for failure in failures[:20])
        more = f"\n  and {len(failures) - 20} more" if len(failures) > 20 else ""
        kept = f"\nEverything else is kept in {store.folder}; the same command tries these again" if store.durable else ""
        raise ShardError(f"{len(failures)} rows could not be computed:\n{shown}{more}{kept}")


def check_executor(executor: str, workers: int | None = None) -> None:
    """Refuse an executor that does not exist or cannot be used here.

    Raises:
        ValueError: unknown, fewer than one worker, or Dask is not installed.
    """
    if not isinstance(executor, str) or (executor not in ("serial", "dask") and "://" not in executor):
        raise ValueError(f"executor: expected 'serial', 'dask' or the address of a Dask scheduler (tcp://host:port), got {executor!r}")
    if workers is not None:
        check_integer("workers", workers, 1)
    if executor != "serial":
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise ValueError(f"executor: {executor!r} needs the extra dist (pip install 'salkit[dist]'), which is not installed") from None


def _serial(jobs: Sequence[Job], sources: Sequence[Source], store: Store, strict: bool, bar: Any) -> list[Failure]:
    failures: list[Failure] = []
    failed: set[tuple[str, int]] = set()
    while shards := [
        (job, start, stop)
        for job in jobs
        for start, stop in store.missing(job.experiment, job.task.shard_size(sources[job.source]))
        if (job.experiment.key, start) not in failed
    ]:
        done = False
        for job, start, stop in shards:
            new = compute_shard(job, sources[job.source], store, start, stop, strict=strict)
            if new is None:
                continue
            done = True
            bar.update(stop - start)
            if new:
                failures += new
                failed |= {(job.experiment.key, row) for row, _ in store.missing(job.experiment, 1) if start <= row < stop}
        if not done:
            time.sleep(0.3)  # other processes are computing all that is left
    return failures

"""Where shards are computed: in this process, or by Dask workers here or elsewhere. The process that computes a shard writes it."""

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
from salkit.engine.shards import Failure, Part, ShardError, Source, compute_shard
from salkit.engine.store import Store
from salkit.progress import progress_bar


@dataclass(frozen=True)
class Engine:
    """A store, and what computes what is missing in it.

    Attributes:
        store: where results are and go. Workers on other machines need to see it under the same path.
        executor: `"serial"`, `"dask"` (local workers, until `stack` is closed) or the address of a Dask scheduler, `"tcp://..."`.
        workers: of a local cluster; None for one a GPU, or one a CPU core where there is none.
        strict: raise the first error as it is instead of computing the rest first (serial only).
        show_progress: one bar over the rows of all parts, whoever computes them.
        stack: closes the workers; `open_engine` does.

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

    def run(self, parts: Sequence[Part], sources: Sequence[Source], desc: str = "") -> list[Failure]:
        """Compute what is missing of some experiments; shards that are there, or that another process is at, are not computed.

        Args:
            parts: what to compute.
            sources: classifiers and images that the parts index.
            desc: before the bar.

        Returns:
            The rows that could not be computed, once all others are.

        Raises:
            StoreError: the store cannot be written to.
            WorkerError: a Dask worker sees another store or runs other code, or none is left.
        """
        for part in parts:
            self.store.open(part.experiment)
        total = sum(b - a for part in parts for a, b in self.store.missing(part.experiment))
        if not total:
            return []
        client = self._client
        with progress_bar(None, self.show_progress, total=total, unit="row", desc=desc) as bar:
            if client is None:
                return _serial(parts, sources, self.store, self.strict, bar)
            from salkit.engine.dask_shards import compute_on_workers

            return compute_on_workers(client, parts, sources, self.store, bar)

    @cached_property
    def _client(self) -> Any:
        """A connected Dask client, from the first time that something is missing; None for the serial executor."""
        if self.executor == "serial":
            return None
        from salkit.engine.dask_shards import connect

        return self.stack.enter_context(connect(self.executor, self.workers, self.show_progress))


@contextmanager
def open_engine(
    store: str | Path | Store | None, executor: str = "serial", workers: int | None = None, show_progress: bool = True
) -> Iterator[Engine]:
    """An engine over a store, or over a folder that is gone afterwards: then the first error is raised, since nothing is kept anyway."""
    with ExitStack() as stack:
        keeps = store is not None
        if store is None:
            store = Store(stack.enter_context(tempfile.TemporaryDirectory(prefix="salkit-")), durable=False)
        yield Engine(store if isinstance(store, Store) else Store(store), executor, workers, not keeps, show_progress, stack)


def raise_failures(failures: Sequence[Failure], store: Store) -> None:
    """Say which rows could not be computed.

    Raises:
        ShardError: if there are any.
    """
    if failures:
        shown = "\n".join(f"  {failure}" for failure in failures[:20])
        more = f"\n  and {len(failures) - 20} more" if len(failures) > 20 else ""
        kept = f"\nEverything else is kept in {store.folder}; the same command tries these again" if store.durable else ""
        raise ShardError(f"{len(failures)} rows could not be computed:\n{shown}{more}{kept}")


def check_executor(executor: str, workers: int | None = None) -> None:
    """Refuse an executor there is none of.

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


def _serial(parts: Sequence[Part], sources: Sequence[Source], store: Store, strict: bool, bar: Any) -> list[Failure]:
    failures: list[Failure] = []
    failed: set[tuple[str, int]] = set()
    while True:
        left = [
            (part, a, b)
            for part in parts
            for a, b in store.missing(part.experiment, part.task.shard_size(sources[part.source]))
            if (part.experiment.key, a) not in failed
        ]
        if not left:
            return failures
        busy = 0
        for part, a, b in left:
            found = compute_shard(part, sources[part.source], store, a, b, strict=strict)
            if found is None:
                busy += 1
                continue
            bar.update(b - a)
            if found:
                failures += found
                failed |= {(part.experiment.key, row) for row, _ in store.missing(part.experiment, 1) if a <= row < b}
        if busy == len(left):
            time.sleep(0.3)  # all that is left is being computed by other processes

"""Where shards are computed: in this process or by Dask workers, here or elsewhere. Whoever computes one writes it to the store."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from salkit.checks import check_integer
from salkit.data import progress_bar
from salkit.models import resolve_device
from salkit.passes import largest_pass
from salkit.store import MissingRows, Store, StoreError
from salkit.tasks import Part, Source

ROUNDS = 3
"""How often shards that were lost with their workers are handed out again."""


class ShardError(RuntimeError):
    """Some pairs could not be computed; the rest is kept. The message names them and their errors."""


@dataclass(frozen=True)
class Failure:
    """One row that could not be computed: what it is, and why."""

    title: str
    row: str
    error: str

    def __str__(self) -> str:
        return f"{self.title}, {self.row}: {self.error}"


@dataclass(frozen=True)
class Engine:
    """A store, and what computes what is missing in it.

    Attributes:
        store: where results are and go. Workers on other machines need to see it under the same path.
        executor: `"serial"`, `"dask"` (local workers, for one call of `run`) or the address of a Dask scheduler, `"tcp://..."`.
        workers: of a local cluster; None for one a GPU, or one a CPU core where there is none.
        strict: raise the first error as it is instead of computing the rest first (serial only).
        show_progress: one bar over the rows of all parts, whoever computes them.

    Raises:
        ValueError: unknown executor, fewer than one worker, or Dask is not installed.
    """

    store: Store
    executor: str = "serial"
    workers: int | None = None
    strict: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        check_executor(self.executor, self.workers)
        largest_pass()

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
        """
        for part in parts:
            self.store.open(part.experiment)
        total = sum(b - a for part in parts for a, b in self.store.missing(part.experiment))
        if not total:
            return []
        bar = progress_bar(None, self.show_progress, total=total, unit="row", desc=desc)
        with _client(self.executor, self.workers, self.show_progress) as client, bar:
            if client is None:
                return _serial(parts, sources, self.store, self.strict, bar)
            return _distributed(client, parts, sources, self.store, bar)


@contextmanager
def open_engine(
    store: str | Path | Store | None, executor: str = "serial", workers: int | None = None, show_progress: bool = True
) -> Iterator[Engine]:
    """An engine over a store, or over a folder that is gone afterwards: then the first error is raised, since nothing is kept anyway."""
    if store is not None:
        yield Engine(store if isinstance(store, Store) else Store(store), executor, workers, False, show_progress)
        return
    with TemporaryDirectory(prefix="salkit-") as folder:
        yield Engine(Store(folder, durable=False), executor, workers, True, show_progress)


def raise_failures(failures: Sequence[Failure], store: Store) -> None:
    """Say which rows could not be computed.

    Raises:
        ShardError: if there are any.
    """
    if failures:
        shown = "\n".join(f"  {failure}" for failure in failures[:20])
        more = f"\n  and {len(failures) - 20} more" if len(failures) > 20 else ""
        raise ShardError(
            f"{len(failures)} rows could not be computed:\n{shown}{more}\nEverything else is kept in {store.folder}; the same command "
            "tries these again"
        )


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


def compute_shard(part: Part, source: Source, store: Store, start: int, stop: int, *, strict: bool = False) -> list[Failure] | None:
    """Compute and keep some rows, unless they are there; None when another process is at them.

    When the rows fail together they are tried in halves, so that what fails is named to the row and all others are kept.
    """
    key = part.experiment.key
    with store.claim(key, start, stop) as ours:
        if not ours:
            return None
        wanted = [(max(a, start), min(b, stop)) for a, b in store.missing(part.experiment) if a < stop and b > start]
        return [failure for a, b in wanted for failure in _attempt(part, source, store, a, b, strict)]


def _attempt(part: Part, source: Source, store: Store, start: int, stop: int, strict: bool) -> list[Failure]:
    try:
        arrays = part.task(source, store, start, stop)
    except Exception as error:
        # The maps of some rows may have failed; a store that cannot be written to fails all of them.
        if strict or (isinstance(error, StoreError) and not isinstance(error, MissingRows)):
            raise
        if stop - start == 1:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            return [Failure(part.experiment.title, part.task.row_name(source, start), text)]
        middle = (start + stop) // 2
        return _attempt(part, source, store, start, middle, strict) + _attempt(part, source, store, middle, stop, strict)
    store.write(part.experiment.key, start, stop, arrays, source.about())
    return []


@contextmanager
def local_cluster(workers: int | None = None) -> Iterator[Any]:
    """A Dask cluster on this machine: one worker a GPU, else workers that share the cores; its `scheduler_address` is an executor."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = torch.cuda.device_count()
    n = workers or gpus or os.cpu_count() or 1
    threads = str(max(1, (os.cpu_count() or 1) // n))

    def options(i: int) -> dict[str, Any]:
        env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": str(i % gpus)} if gpus else {})
        return {"cls": Nanny, "options": {"nthreads": 1, "env": env, "host": "127.0.0.1", "memory_limit": 0}}

    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": ":0", "dashboard": True}}
    with SpecCluster(workers={i: options(i) for i in range(n)}, scheduler=scheduler, silence_logs="error") as cluster:
        yield cluster


@contextmanager
def _client(executor: str, workers: int | None, show_progress: bool) -> Iterator[Any]:
    """A connected Dask client, or None for the serial executor."""
    if executor == "serial":
        yield None
        return
    from distributed import Client

    with local_cluster(workers) if executor == "dask" else nullcontext() as cluster:
        try:
            client = Client(cluster if cluster is not None else executor, timeout=20)
        except OSError as error:
            raise ValueError(f"executor: expected the address of a running Dask scheduler, got {executor!r}, silent") from error
        with client:
            client.wait_for_workers(1, timeout=120)
            if show_progress:
                print(f"{len(client.scheduler_info()['workers'])} Dask workers; dashboard: {client.dashboard_link}")
            yield client


def _distributed(client: Any, parts: Sequence[Part], sources: Sequence[Source], store: Store, bar: Any) -> list[Failure]:
    """Hand the missing shards to the workers, again where workers were lost with the data they had been given."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    device = client.submit(resolve_device, "auto", pure=False).result()
    jobs = [
        (p, a, b)
        for p, part in enumerate(parts)
        for a, b in store.missing(part.experiment, part.task.shard_size(replace(sources[part.source], device=device)))
    ]
    failures: list[Failure] = []
    for left in reversed(range(ROUNDS)):
        # A copy on every worker, so that a killed one does not take the only one with it.
        shared = client.scatter((list(parts), list(sources), str(store.folder.resolve())), broadcast=True, hash=False)
        futures = {client.submit(_on_worker, shared, *job, pure=False): job for job in jobs}
        lost = []
        for future in as_completed(futures):
            p, a, b = futures[future]
            if future.status == "finished":
                failures += future.result()
                bar.update(b - a)
                continue
            error = future.exception() if future.status == "error" else RuntimeError("lost with its worker")
            if isinstance(error, StoreError):
                raise error
            if left and not isinstance(error, KilledWorker):
                lost.append((p, a, b))
                continue
            rows = (parts[p].task.row_name(sources[parts[p].source], row) for row in range(a, b))
            failures += [Failure(parts[p].experiment.title, row, f"{type(error).__name__}: {error}") for row in rows]
        if not (jobs := lost):
            break
    return failures


def _on_worker(shared: tuple[list[Part], list[Source], str], p: int, start: int, stop: int) -> list[Failure]:
    parts, sources, folder = shared
    part, store = parts[p], Store(folder)
    store.experiment(part.experiment.key)  # a worker that does not see the store would compute for nobody
    source = sources[part.source]
    while (found := compute_shard(part, source, store, start, stop)) is None:
        time.sleep(0.3)
    return found

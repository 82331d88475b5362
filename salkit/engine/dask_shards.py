"""Shards on Dask workers. Each worker computes one shard at a time and writes it to the store; no results travel through Dask."""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from distributed import CancelledError, Client, Future, TimeoutError, get_worker, wait
from distributed.scheduler import KilledWorker
from tqdm import tqdm

from salkit.engine.cluster import local_cluster
from salkit.engine.identity import LIBRARIES, canonical, describe, digest
from salkit.engine.shards import Failure, Job, Source, WorkerError, compute_shard
from salkit.engine.store import Store, StoreError

DEATHS = 3
"""A row counts as failed when so many workers have died while they computed it."""

ANSWER = 5
"""Seconds within which a scheduler has to answer."""

PATIENCE = 120
"""Seconds without any Dask worker after which a run gives up."""


@contextmanager
def connect(executor: str, workers: int | None, show_progress: bool) -> Iterator[Client]:
    """A Dask client of the scheduler at this address, or of a cluster on this machine where `executor` is `"dask"`.

    Raises:
        ValueError: no scheduler answers there.
    """
    with ExitStack() as stack:
        address = stack.enter_context(local_cluster(workers)).scheduler_address if executor == "dask" else executor
        try:
            client = stack.enter_context(Client(address, timeout=ANSWER))
        except (OSError, ValueError) as error:
            why = str(error).strip().partition("\n")[0]
            raise ValueError(f"executor: expected the address of a running Dask scheduler, got {address!r} ({why})") from None
        if show_progress:
            print(f"{len(client.nthreads())} Dask workers at {address}; dashboard: {client.dashboard_link}")
        yield client


@dataclass(frozen=True)
class _Shard:
    """Rows of a job, and how many workers have died while they computed them."""

    job: int
    start: int
    stop: int
    deaths: int = 0

    def after(self, deaths: int) -> list[_Shard]:
        """What to try after more workers have died: first the same again, then row by row to find the row that kills, then nothing."""
        shard = replace(self, deaths=self.deaths + deaths)
        if self.stop - self.start > 1 and shard.deaths > 1:
            return [replace(shard, start=row, stop=row + 1) for row in range(self.start, self.stop)]
        return [shard] if shard.deaths < DEATHS else []


def compute_on_workers(client: Client, jobs: Sequence[Job], sources: Sequence[Source], store: Store, bar: Any) -> list[Failure]:
    """Compute the missing shards on the workers of a client.

    A worker gets its next shard when it has finished the one before: Dask blames a worker's death on all tasks that wait there. (Dask's
    `retries` are for tasks that raise, and how often it tries a task whose workers die is up to whoever started the scheduler.)

    Returns:
        The rows that could not be computed.

    Raises:
        StoreError: the store cannot be written to.
        WorkerError: a worker sees another store or runs other code, there are no workers, or the scheduler is gone.
    """
    failures: list[Failure] = []
    running: dict[Future, _Shard] = {}
    with _inputs_file(store, jobs, sources) as inputs:
        sizes = zip(jobs, _sizes(client, inputs), strict=True)
        waiting = deque(_Shard(p, *rows) for p, (job, size) in enumerate(sizes) for rows in store.missing(job.experiment, size))
        for finished, workers in _finished(client, running):
            for future in finished:
                shard = running.pop(future)
                try:
                    failures += _result(future)
                except KilledWorker as error:
                    deaths = error.allowed_failures + 1
                    if again := shard.after(deaths):
                        waiting += again
                        continue
                    job = jobs[shard.job]
                    why = f"it killed the workers that computed it, {shard.deaths + deaths} times"
                    failures.append(Failure(job.experiment.title, job.task.row_name(sources[job.source], shard.start), why))
                bar.update(shard.stop - shard.start)
            while waiting and len(running) < max(1, workers):  # without a worker, one shard waits for the first that comes
                shard = waiting.popleft()
                rows = (shard.job, shard.start, shard.stop)
                running[client.submit(_compute, versions(), *inputs, *rows, pure=False)] = shard
            if not running:
                break
    return failures


def _sizes(client: Client, inputs: tuple[str, str]) -> list[int]:
    """How many rows of each job make a shard on the workers."""
    for _ in range(DEATHS):
        future = client.submit(_shard_sizes, versions(), *inputs, pure=False)
        next(finished for finished, _ in _finished(client, [future]) if finished)
        with suppress(KilledWorker):
            return _result(future)
    raise WorkerError(f"{DEATHS} Dask workers died while they read their inputs. What was finished is kept")


def _finished(client: Client, running: Collection[Future]) -> Iterator[tuple[set[Future], int]]:
    """The futures that have finished and how many workers there are, at least once a second.

    `distributed.as_completed` would wait for ever for workers or a scheduler that never come back.
    """
    seen = time.monotonic()
    while True:
        finished: set[Future] = set()
        try:
            with suppress(TimeoutError):
                finished = wait(list(running), timeout=1, return_when="FIRST_COMPLETED").done if running else finished
            workers = len(client.nthreads())
        except (CancelledError, OSError):
            raise WorkerError("the Dask scheduler is gone. What was finished is kept") from None
        seen = time.monotonic() if workers else seen
        if time.monotonic() - seen > PATIENCE:
            raise WorkerError(f"there has been no Dask worker for {PATIENCE} seconds. What was finished is kept")
        yield finished, workers


def _result(future: Future) -> Any:
    try:
        return future.result()
    except (KilledWorker, StoreError, WorkerError):
        raise
    except Exception as error:
        raise WorkerError(f"a Dask worker cannot read its inputs: {type(error).__name__}: {error}") from error


@contextmanager
def _inputs_file(store: Store, jobs: Sequence[Job], sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    """A file beside the results with what all shards need, and its checksum: Dask would lose scattered data with its worker."""
    sent = cloudpickle.dumps((list(jobs), list(sources), _described(jobs, sources), store.durable))
    with ExitStack() as stack:
        try:
            folder = tempfile.TemporaryDirectory(dir=store.folder.resolve(), prefix="inputs-", ignore_cleanup_errors=True)
            path = Path(stack.enter_context(folder)) / "inputs.pickle"
            path.write_bytes(sent)
        except OSError as error:
            raise StoreError(f"cannot write to {store.folder} ({error.strerror or error}). What was finished before is kept") from error
        yield str(path), digest(sent)


def _described(jobs: Sequence[Job], sources: Sequence[Source]) -> dict[str, dict[str, Any]]:
    """Descriptions of the tasks and sources: their code, their settings and the files that they read."""
    tasks = {job.experiment.title: describe(job.task) for job in jobs}
    return tasks | {f"source {i}": describe(source) for i, source in enumerate(sources)}


@cache
def versions() -> dict[str, str]:
    """Versions of Python and the libraries, and a hash of the kit's code: workers must have the same."""
    folder = Path(__file__).parents[1]
    code = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version(), "salkit": digest(canonical(code))}


_ONE_AT_A_TIME = threading.Lock()
"""For workers with several threads: a shard uses all cores of its worker."""


def _shard_sizes(expected: dict[str, str], inputs: str, checksum: str) -> list[int]:
    """On a worker: how many rows of each job make a shard there."""
    with _ONE_AT_A_TIME:
        jobs, sources, _ = _read_inputs(expected, inputs, checksum)
        return [job.task.shard_size(sources[job.source]) for job in jobs]


def _compute(expected: dict[str, str], inputs: str, checksum: str, p: int, start: int, stop: int) -> list[Failure]:
    """On a worker: compute rows of job p, or wait until another process has."""
    with _ONE_AT_A_TIME:
        jobs, sources, store = _read_inputs(expected, inputs, checksum)
        while (failures := compute_shard(jobs[p], sources[jobs[p].source], store, start, stop)) is None:
            time.sleep(0.3)
    return failures


def _read_inputs(expected: dict[str, str], inputs: str, checksum: str) -> tuple[list[Job], list[Source], Store]:
    here, path = versions(), Path(inputs)
    if differ := [f"{name} {here.get(name)} instead of {wanted}" for name, wanted in expected.items() if here.get(name) != wanted]:
        raise WorkerError(f"{_this_worker()} has {', '.join(differ)}: results of other versions are not mixed")
    if not path.is_file():
        raise WorkerError(f"{_this_worker()} does not see the store {path.parent.parent}: it has to be there under the same path")
    return _unpickle(path, checksum)


@lru_cache(maxsize=1)
def _unpickle(path: Path, checksum: str) -> tuple[list[Job], list[Source], Store]:
    """Read the inputs, and check that tasks and sources use the same code and files here as where they come from."""
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():  # PyTorch may have been imported before Dask set it
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a semaphore, which would outlive a worker that is killed
    received = path.read_bytes()
    if digest(received) != checksum:  # only what the caller wrote is unpickled
        raise WorkerError(f"{_this_worker()}: expected inputs with the checksum {checksum}, got {path} with {digest(received)}")
    jobs, sources, sent, durable = cloudpickle.loads(received)
    for title, description in _described(jobs, sources).items():
        for name, here in description.items():
            # Code that came along in the pickle has no file here to compare.
            if here != sent[title][name] and "unknown-" not in canonical(here):
                raise WorkerError(f"{_this_worker()} has another {name} for {title}: its code, or a file it reads, differs")
    return jobs, sources, Store(path.parent.parent, durable=durable)


def _this_worker() -> str:
    return f"the Dask worker {get_worker().address} on {platform.node()}"

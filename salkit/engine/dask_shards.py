"""Shards on Dask workers: each has one at a time and writes it to the store; Dask itself is trusted with nothing that lasts."""

from __future__ import annotations

import platform
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import salkit
from salkit.engine.executors import Failure, WorkerError, compute_shard
from salkit.engine.identity import LIBRARIES, canonical, describe, digest
from salkit.engine.store import Store, StoreError
from salkit.evaluation.tasks import Part, Source
from salkit.models.classifier import resolve_device
from salkit.models.folding import keep_allocator_pages

DEATHS = 3
"""How many workers may die over a row before it counts as failed."""

ANSWER = 5
"""Seconds in which a scheduler has to answer."""

PATIENCE = 120
"""Seconds without any Dask worker after which a run gives up."""


@contextmanager
def connect(executor: str, workers: int | None, show_progress: bool) -> Iterator[Any]:
    """A connected Dask client; with a cluster of its own where the executor is no address."""
    if executor == "dask":
        from salkit.engine.cluster import local_cluster

        with local_cluster(workers) as cluster, connect(cluster.address, None, False) as client:
            if show_progress:
                print(cluster)
            yield client
        return
    from distributed import Client

    try:
        client = Client(executor, timeout=ANSWER)
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"executor: expected the address of a running Dask scheduler, got {executor!r} ({why})") from None
    with client:
        if show_progress:
            print(f"{len(client.nthreads())} Dask workers at {executor}; dashboard: {client.dashboard_link}")
        yield client


@dataclass(frozen=True)
class _Shard:
    """Rows of a part, and how many workers have died over them."""

    part: int
    start: int
    stop: int
    deaths: int = 0

    def again(self, deaths: int) -> list[_Shard]:
        """What to try after further deaths: the first may be chance; after another row by row, to name the one that kills."""
        shard = replace(self, deaths=self.deaths + deaths)
        if self.stop - self.start > 1 and shard.deaths > 1:
            return [replace(shard, start=row, stop=row + 1) for row in range(self.start, self.stop)]
        return [shard] if shard.deaths < DEATHS else []


def distribute(client: Any, parts: Sequence[Part], sources: Sequence[Source], store: Store, bar: Any) -> list[Failure]:
    """Hand the missing shards to the workers, each of which has one at a time, so that no other is lost with it."""
    from distributed import CancelledError, TimeoutError, wait
    from distributed.scheduler import KilledWorker

    failures: list[Failure] = []
    running: dict[Any, _Shard] = {}
    with _parcel(store, parts, sources) as parcel:
        seen = time.monotonic()
        shards: deque[_Shard] | None = None
        while shards is None or shards or running:
            workers = len(client.nthreads())
            seen = time.monotonic() if workers else seen
            if time.monotonic() - seen > PATIENCE:
                raise WorkerError(f"there has been no Dask worker for {PATIENCE} seconds; what was finished is kept")
            if shards is None:
                if not workers:
                    time.sleep(0.1)
                    continue
                shards = deque(_missing(parts, sources, store, client.submit(resolve_device, "auto", pure=False).result()))
            while shards and len(running) < max(1, workers):
                shard = shards.popleft()
                job = (versions(), *parcel, shard.part, shard.start, shard.stop)
                running[client.submit(_on_worker, *job, pure=False)] = shard
            try:
                done = wait(list(running), timeout=1, return_when="FIRST_COMPLETED").done if running else []
            except TimeoutError:  # see which workers came and went
                continue
            except CancelledError:
                raise WorkerError("the Dask scheduler is gone; what was finished is kept") from None
            for future in done:
                shard = running.pop(future)
                error = future.exception()
                if error is None:
                    failures += future.result()
                elif isinstance(error, KilledWorker):
                    again = shard.again(error.allowed_failures + 1)
                    shards += again
                    if again:
                        continue
                    part, deaths = parts[shard.part], shard.deaths + error.allowed_failures + 1
                    row = part.task.row_name(sources[part.source], shard.start)
                    failures.append(Failure(part.experiment.title, row, f"it killed the workers that computed it, {deaths} times"))
                elif isinstance(error, (StoreError, WorkerError)):
                    raise error
                else:
                    raise WorkerError(f"a Dask worker cannot read what it is sent: {type(error).__name__}: {error}") from error
                bar.update(shard.stop - shard.start)
    return failures


def _missing(parts: Sequence[Part], sources: Sequence[Source], store: Store, device: str) -> Iterator[_Shard]:
    """The shards that are missing, of the sizes that suit the workers' device."""
    for p, part in enumerate(parts):
        source = sources[part.source]
        size = part.task.shard_size(replace(source, device=device) if source.device == "auto" else source)
        yield from (_Shard(p, a, b) for a, b in store.missing(part.experiment, size))


@contextmanager
def _parcel(store: Store, parts: Sequence[Part], sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    """What all shards need, as a file beside the results, and its checksum: every worker reads it once, also one that comes back."""
    import cloudpickle

    try:
        folder = tempfile.TemporaryDirectory(dir=store.folder.resolve(), prefix="parcel-", ignore_cleanup_errors=True)
        with folder as name:
            path = Path(name) / "parcel.pickle"
            path.write_bytes(sent := cloudpickle.dumps((list(parts), list(sources), store.durable)))
            yield str(path), digest(sent)
    except OSError as error:
        raise StoreError(f"cannot write to {store.folder} ({error.strerror or error}). What was finished before is kept") from error


@cache
def versions() -> dict[str, str]:
    """Of Python, the libraries and all of the kit's code: workers must have the same."""
    folder = Path(salkit.__file__).parent
    code = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version(), "salkit": digest(canonical(code))}


_ONE_AT_A_TIME = threading.Lock()
"""Workers that have several threads: the kit's nets, batch sizes and random draws belong to a process."""


def _on_worker(expected: dict[str, str], parcel: str, checksum: str, p: int, start: int, stop: int) -> list[Failure]:
    path = Path(parcel)
    with _ONE_AT_A_TIME:
        here = versions()
        if differ := [f"{name} {here.get(name)} instead of {wanted}" for name, wanted in expected.items() if here.get(name) != wanted]:
            raise WorkerError(f"{_place()} has {', '.join(differ)}: results of other versions are not mixed")
        if not path.is_file():
            raise WorkerError(f"{_place()} does not see the store {path.parent.parent}: it has to be there under the same path")
        parts, sources, durable = _open_parcel(path, checksum)
        part, source, store = parts[p], sources[parts[p].source], Store(path.parent.parent, durable=durable)
        while (found := compute_shard(part, source, store, start, stop)) is None:
            time.sleep(0.3)
    return found


def _place() -> str:
    from distributed import get_worker

    return f"the Dask worker {get_worker().address} on {platform.node()}"


@lru_cache(maxsize=1)
def _open_parcel(path: Path, checksum: str) -> tuple[list[Part], list[Source], bool]:
    """Read it and see that methods and nets are here what they are where it comes from: they may be somebody's own code or files."""
    import cloudpickle

    keep_allocator_pages()
    received = path.read_bytes()
    if digest(received) != checksum:  # only what the caller wrote is ever unpickled
        raise WorkerError(f"{_place()}: expected the parcel {checksum}, got {path} with {digest(received)}")
    parts, sources, durable = cloudpickle.loads(received)
    for part in parts:
        what = part.experiment.what
        here = {"method": getattr(part.task, "method", None), "net": sources[part.source].classifier.net}
        sent = {"method": what.get("method"), "net": what.get("classifier", {}).get("net")}
        for name, value in sent.items():
            # Code that came along in the parcel has no file here to compare.
            if value is not None and "unknown-" not in (found := canonical(describe(here[name]))) and found != canonical(value):
                raise WorkerError(f"{_place()} has another {name} for {part.experiment.title}: its code, or a file it reads, differs")
    return parts, sources, durable

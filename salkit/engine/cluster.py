"""A Dask cluster on this machine: one worker a GPU, or workers that share the cores; deaf to Ctrl-C, quiet, gone when it is closed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import torch
from distributed import Nanny, Scheduler, Worker
from tqdm import tqdm

from salkit.models.folding import ALLOCATOR


@dataclass(frozen=True)
class Cluster:
    """Where its scheduler listens (an executor), where its dashboard is, how many workers it has."""

    address: str
    dashboard: str
    workers: int

    def __str__(self) -> str:
        return f"{self.workers} Dask workers at {self.address}; dashboard: {self.dashboard}"


class QuietWorker(Worker):
    """A worker that computes on its share of the cores and leaves it to the client to report errors."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        _quiet()
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # libraries may have read it before the nanny set it
        tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process would leave behind
        super().__init__(*arguments, **settings)


class Keeper(Nanny):
    """A nanny whose worker never sees the terminal's Ctrl-C, and is killed instead of asked to end: finished shards are on the disk."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.pre_spawn_env: dict[str, str] = {}  # it would stay in our own environment

    async def instantiate(self) -> Any:
        """Start the worker from a thread that blocks the signal: processes inherit that."""
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # its first start would unblock the signal again
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return await super().instantiate()

    async def kill(self, timeout: float = 5, reason: str = "") -> None:
        """End the worker now, whatever it is at."""
        if self.process is not None and self.process.process is not None:
            await self.process.process.kill()
        await super().kill(timeout, reason)


@contextmanager
def local_cluster(workers: int | None = None) -> Iterator[Cluster]:
    """Workers (default: one a GPU, or one a core) and a scheduler that live as long as this."""
    n = workers or torch.cuda.device_count() or os.cpu_count() or 1
    level = _quiet()
    servers: list[Any] = []
    settings: dict[str, Any] = {"worker_class": QuietWorker, "nthreads": 1, "host": "127.0.0.1", "memory_limit": 0}

    async def start() -> Cluster:
        scheduler = Scheduler(host="127.0.0.1", port=0, dashboard=True, dashboard_address="127.0.0.1:0", allowed_failures=0)
        servers.append(await scheduler)
        nannies = [Keeper(scheduler.address, **settings, env=environment(i, n)) for i in range(n)]
        servers.extend(nannies)
        await asyncio.gather(*nannies)
        return Cluster(scheduler.address, f"http://127.0.0.1:{scheduler.services['dashboard'].port}/status", n)

    async def stop() -> None:
        await asyncio.gather(*(server.close() for server in servers[1:]))
        for server in servers[:1]:
            await server.close()

    with _loop() as call:
        try:
            yield call(start)
        finally:
            call(stop)
            _quiet(level)


def environment(i: int, n: int) -> dict[str, str]:
    """What worker i of n is told: its share of the cores, and its GPU where there are any."""
    threads = str(max(1, (os.cpu_count() or 1) // n))
    found = ALLOCATOR | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if gpus := torch.cuda.device_count():
        names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
        found["CUDA_VISIBLE_DEVICES"] = names[i % gpus]
    return found


@contextmanager
def _loop() -> Iterator[Callable[[Callable[[], Awaitable[Any]]], Any]]:
    """An event loop in a thread of its own, since a notebook's is taken, and what runs a coroutine function on it."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # an interrupted start may leave tasks behind
    thread = threading.Thread(target=loop.run_forever, name="salkit cluster", daemon=True)
    thread.start()
    try:
        yield lambda function: asyncio.run_coroutine_threadsafe(function(), loop).result()  # type: ignore[arg-type]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(2)


def _quiet(level: int = logging.CRITICAL) -> int:
    """Set how much Dask logs; returns what it was."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(level)
    return before

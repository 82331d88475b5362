"""A Dask cluster on this machine: a worker for each GPU, or workers that share the cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker

import dask
import torch
from distributed import LocalCluster

CONFIG = {
    # The memory allocator reads this when a process starts. Dask's defaults would limit our own process to one thread, too.
    "distributed.nanny.pre-spawn-environ": {"MALLOC_ARENA_MAX": "1"},
    # A worker that died imports PyTorch again before it comes back. By default the cluster gives it up after 15 seconds.
    "distributed.deploy.lost-worker-timeout": "1 hour",
}


@contextmanager
def local_cluster(workers: int | None = None) -> Iterator[LocalCluster]:
    """A scheduler and workers that live until the context ends. Ctrl-C reaches this process only.

    Args:
        workers: how many; None for one a GPU, or one a core where there is no GPU.
    """
    n = workers or torch.cuda.device_count() or os.cpu_count() or 1
    others = set(multiprocessing.active_children())
    with dask.config.set(CONFIG), ExitStack() as stack:
        with _no_ctrl_c():  # the cluster's thread, and the workers that it starts, inherit this
            cluster = LocalCluster(
                n_workers=0,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                silence_logs=logging.CRITICAL,
                scheduler_kwargs={"allowed_failures": 0},
            )
            stack.enter_context(cluster)
        stack.callback(_kill_workers, cluster, others)
        options = cluster.new_spec["options"]
        cluster.worker_spec = {i: cluster.new_spec | {"options": options | {"env": environment(i, n)}} for i in range(n)}
        cluster.scale(n)
        cluster.wait_for_workers(n)
        yield cluster


def environment(i: int, n: int) -> dict[str, str]:
    """Environment variables of worker i of n: its share of the cores, and its GPU where there are any."""
    threads = str(max(1, (os.cpu_count() or 1) // n))
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if gpus := torch.cuda.device_count():
        names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
        variables["CUDA_VISIBLE_DEVICES"] = names[i % gpus]
    return variables


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Block SIGINT in this thread. Threads and processes that are started meanwhile block it for good."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers(cluster: LocalCluster, others: set[multiprocessing.process.BaseProcess]) -> None:
    """End the workers now: Dask would wait for the shards that they are computing, and for workers that are still starting."""
    for nanny in cluster.workers.values():
        nanny.close_gracefully()  # it must not start its worker again
    for process in set(multiprocessing.active_children()) - others:
        with suppress(ValueError):  # it ended meanwhile
            process.kill()

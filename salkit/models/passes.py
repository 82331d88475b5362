"""How images go through a net: how many at a time, of one size where rounding matters, fewer when memory runs out, on all cores."""

from __future__ import annotations

import itertools
import json
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from salkit.checks import check_integer

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Item = TypeVar("_Item")


class Stopped(RuntimeError):
    """Work in a thread ends here because what it is part of was interrupted or has failed."""


class _Thread(threading.local):
    """Of each thread: which of the workers it is, 0 for others, and what tells it to stop."""

    worker: int = 0
    stop: threading.Event | None = None


_thread = _Thread()


class _Limit:
    """The most composites a pass since memory ran out in this process, what the last answer was, and whether the user knows."""

    cap: int | None = None
    last = 1
    said = False


def largest_pass() -> int | None:
    """The environment's `SALKIT_BATCH_SIZE`, if it has one.

    Raises:
        ValueError: it is no integer >= 1.
    """
    given = os.environ.get("SALKIT_BATCH_SIZE")
    if given and not (given.isdecimal() and int(given)):
        raise ValueError(f"SALKIT_BATCH_SIZE: expected an integer >= 1 in the environment, got {given!r}")
    return int(given) if given else None


def measured_file() -> Path:
    """Where it is remembered what `salkit tune` found on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "salkit" / "passes.json"


def measured_key(device: torch.device, side: int) -> str:
    """The device and the size of images that a measurement is for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.node()
    return f"{name}, {torch.get_num_threads()} threads, {side} pixels: images a pass"


def workers_key() -> str:
    """The processor and its threads that a measurement is for."""
    return f"{platform.node()}, {torch.get_num_threads()} threads: passes at a time"


@cache
def measured() -> dict[str, int]:
    """What was fastest, by `measured_key` and `workers_key`; empty where nothing was measured or the file is damaged."""
    try:
        found = json.loads(measured_file().read_text())
        return {str(key): check_integer(key, size, 1) for key, size in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def batch_size(inputs: Tensor, internal_batch_size: int | None = None, device: str | None = None) -> int:
    """Composites a pass: as given, or as `salkit tune` found best, or a default; capped by `SALKIT_BATCH_SIZE` and by memory that ran out.

    The default on a CPU is 20 at 224 and 80 at 32 pixels, on a GPU 127 and 400 (ResNet-164 keeps about 30 MB each); in bfloat16 twice as
    many.

    Args:
        inputs: their size, type and device count.
        internal_batch_size: as given.
        device: the type of another device.

    Raises:
        ValueError: `SALKIT_BATCH_SIZE` is no number.

    Example:
        >>> batch_size(torch.zeros(1, 3, 224, 224)), batch_size(torch.zeros(1, 3, 224, 224), 4)
        (20, 4)
    """
    place = torch.device(device or inputs.device)
    if internal_batch_size is None:
        budget, most = (1_010_000, 80) if place.type == "cpu" else (6_400_000, 400)
        usual = max(1, min(most, budget // (inputs.shape[-2] * inputs.shape[-1])))
        if found := measured():
            usual = found.get(measured_key(place, inputs.shape[-1]), usual)
        internal_batch_size = 2 * usual if inputs.dtype == torch.bfloat16 else usual
    chosen = check_integer("internal_batch_size", internal_batch_size, 1)
    _Limit.last = min(chosen, _Limit.cap or chosen, largest_pass() or chosen)
    return _Limit.last


def pass_size(inputs: Tensor, composites: int = 1, internal_batch_size: int | None = None, device: str | None = None) -> int:
    """How many pairs of so many composites go into a forward pass: as many as fit the batch size.

    At least two composites: a single small image is computed by other kernels, which round differently.
    """
    least = 2 if composites == 1 else 1
    return max(least, batch_size(inputs, internal_batch_size, device) // composites)


def workers(device: torch.device) -> int:
    """How many passes are computed at the same time: on a CPU one a thread, or a single one where `salkit tune` found that faster."""
    threads = torch.get_num_threads()
    return min(threads, measured().get(workers_key(), threads)) if device.type == "cpu" else 1


def even_size(n: int, size: int, device: torch.device) -> int:
    """At most `size` and at least two, so that passes over n images keep all workers busy to the end and few are filled up.

    Example:
        >>> even_size(20, 8, torch.device("cuda"))  # three passes; on a CPU with two threads 6: four
        8
    """
    at_once = workers(device)
    each = -(-n // (at_once * -(-n // (at_once * size))))
    return min(size, each + each % 2)


def in_parallel(function: Callable[[_Item], _T], items: Sequence[_Item], device: torch.device) -> Iterator[_T]:
    """`map(function, items)`, on a CPU as many at a time as torch has threads, each of them with one thread.

    In learning that is at most a tenth faster than sharing passes of the best size (`make bench`), but small passes need not be shared,
    nor what surrounds them. A `Classifier` has modules of its own in each thread; what registers hooks on its net must not be called
    like this.

    Example:
        >>> list(in_parallel(lambda x: x * x, [1, 2, 3], torch.device("cpu")))
        [1, 4, 9]
    """
    threads, at_once = torch.get_num_threads(), min(workers(device), len(items))
    if at_once <= 1:
        yield from map(function, items)
        return
    stop, grad, inference = threading.Event(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    numbers = itertools.count(1)

    def begin() -> None:
        _thread.worker, _thread.stop = next(numbers), stop
        torch.set_num_threads(1)

    def run(item: _Item) -> _T:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(item)

    pool = ThreadPoolExecutor(at_once, initializer=begin)
    try:
        yield from pool.map(run, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # first, so that nothing is begun only to be stopped
        stop.set()
        pool.shutdown()
        torch.set_num_threads(threads)  # threads that are made later take over what was set last


def pass_by_pass(function: Callable[[Tensor], Tensor], rows: Tensor, size: int, device: torch.device) -> Tensor:
    """`function(rows)` of at most `size` rows at a time, on all cores; as many passes for each of them, where there are two rows a pass."""
    n, at_once = len(rows), workers(device)
    n_passes = max(-(-n // size), min(n // 2, at_once * -(-n // (at_once * size))))
    return torch.cat(list(in_parallel(function, rows.tensor_split(n_passes), device)))


def tiled(n_rows: int, n_columns: int, size: int, device: torch.device) -> list[list[tuple[Tensor, Tensor]]]:
    """A grid cut into rows of tiles of at most `size` cells, evenly, and so that all workers have as many, where the grid is large enough.

    A tile is some of the rows, with all columns or, where a row is too long for one, some of them: indices of both.

    Example:
        >>> [[(len(rows), len(columns)) for rows, columns in row] for row in tiled(2, 29, 16, torch.device("cpu"))]
        [[(1, 15), (1, 14)], [(1, 15), (1, 14)]]
    """
    at_once = workers(device)
    down = min(n_rows, at_once * -(-n_rows // (at_once * max(1, size // n_columns))))
    # No tile of a single cell, which would be rounded by other kernels, unless `size` is 1.
    across = max(-(-n_columns // size), min(n_columns // 2, -(-at_once // down)))
    rows, columns = (torch.arange(n, device=device).tensor_split(parts) for n, parts in ((n_rows, down), (n_columns, across)))
    return [[(some, part) for part in columns] for some in rows]


def this_worker() -> int:
    """Which of the workers of `in_parallel` this thread is, from 1; 0 outside."""
    return _thread.worker


def stop_if_told() -> None:
    """End the work of this thread if what it is part of has ended.

    Raises:
        Stopped: it has.
    """
    if _thread.stop is not None and _thread.stop.is_set():
        raise Stopped


def same_size_chunks(n: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of at most `size` pairs at a time, and the same filled up to `size` with the first of them.

    For methods that amplify rounding: kernels round differently in passes of another size, so theirs are always of one size.

    Example:
        >>> [(chunk.tolist(), full.tolist()) for chunk, full in same_size_chunks(3, 2)]
        [([0, 1], [0, 1]), ([2], [2, 2])]
    """
    for chunk in torch.arange(n).split(size):
        yield chunk, torch.cat([chunk, chunk[:1].expand(size - len(chunk))])


def same_size_passes(function: Callable[[Tensor], Tensor], n: int, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of some of n pairs, and what the function makes of them in a pass of at most `size` pairs, all of one size; on all cores."""
    chunks, filled = zip(*same_size_chunks(n, even_size(n, size, device)), strict=True)
    for chunk, found in zip(chunks, in_parallel(function, filled, device), strict=True):
        yield chunk, found[: len(chunk)]


def smaller_when_out_of_memory(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Run a function that asks `batch_size` again, with passes of half the size for the rest of the process, when memory runs out."""

    @wraps(function)
    def tried(*arguments: _P.args, **settings: _P.kwargs) -> _T:
        while True:
            try:
                return function(*arguments, **settings)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or _Limit.last == 1:
                    raise
            _halve()

    return tried


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _halve() -> None:
    _Limit.cap = _Limit.last = max(1, _Limit.last // 2)
    if not _Limit.said:
        _Limit.said = True
        warnings.warn(f"out of memory: from now on at most {_Limit.cap} images a pass, or fewer if that is too many", stacklevel=3)
    torch.cuda.empty_cache()

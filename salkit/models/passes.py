"""How images go through a net: in passes whose content is fixed, each on one thread, several side by side.

Kernels round differently for other shapes and other numbers of threads, and learned masks amplify rounding. So the rows of a pass depend on
one image (or one pair, or one map) and on nothing else, and every pass runs on one thread. Cores are used by running passes side by side.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import psutil
import torch
from torch import Tensor

from salkit.checks import check_integer

MEMORY_A_PASS = 3 * 2**29
"""Free bytes for each pass that runs side by side: 20 composites of ResNet50 or EfficientNet-Lite0 take 1 GiB with gradients, measured."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Item = TypeVar("_Item")


class Stopped(RuntimeError):
    """Work in a thread ends here because the call it belongs to was interrupted or has failed."""


class _Thread(threading.local):
    """Per thread: its number among the workers of `in_parallel` (0 for others), and the event that stops it."""

    worker: int = 0
    stop: threading.Event | None = None


_thread = _Thread()


class _Limit:
    """The most composites a pass since memory ran out in this process, the size last asked for, and whether the user was warned."""

    cap: int | None = None
    last = 1
    said = False


class Pass(NamedTuple):
    """Rows that go through the net together, and the same rows filled up to the size of the pass."""

    rows: Tensor
    filled: Tensor


def pass_size(inputs: Tensor, composites: int = 1, internal_batch_size: int | None = None, device: torch.device | None = None) -> int:
    """How many rows of so many composites each make a pass, at least one.

    On a CPU a pass has 20 composites at 224 pixels and 50 at 32, on a GPU 127 and 400; twice as many where no gradients are computed.

    Args:
        inputs: images of that size, on that device.
        composites: images that a row needs in the pass.
        internal_batch_size: composites a pass instead of these.
        device: where the pass will run instead.

    Raises:
        ValueError: `internal_batch_size` is not an integer >= 1.

    Example:
        >>> pass_size(torch.zeros(1, 3, 224, 224)), pass_size(torch.zeros(1, 3, 224, 224), composites=10)
        (20, 2)
    """
    if internal_batch_size is None:
        budget, most = (1_010_000, 50) if (device or inputs.device).type == "cpu" else (6_400_000, 400)
        usual = max(1, min(most, budget // (inputs.shape[-2] * inputs.shape[-1])))
        internal_batch_size = usual if torch.is_grad_enabled() else 2 * usual
    chosen = check_integer("internal_batch_size", internal_batch_size, 1)
    _Limit.last = min(chosen, _Limit.cap or chosen)
    return max(1, _Limit.last // composites)


def cut(rows: Tensor, most: int) -> list[Pass]:
    """Rows cut evenly into passes of one size, at most `most`; the last pass is filled up with its first row.

    Example:
        >>> [each.filled.tolist() for each in cut(torch.arange(5), 4)]
        [[0, 1, 2], [3, 4, 3]]
    """
    size = -(-len(rows) // -(-len(rows) // most))
    return [Pass(some, torch.cat([some, some[:1].expand(size - len(some))])) for some in rows.split(size)]


def passes(groups: Sequence[Hashable], most: int, device: torch.device) -> list[Pass]:
    """Passes over rows, of which `groups` names the image (or pair, or map) of each.

    On a CPU a pass has rows of one group only, in their order: what is computed of a group depends on no other. On a GPU, which needs
    large passes, rows of all groups share them.

    Example:
        >>> [each.rows.tolist() for each in passes(["cat", "dog", "cat"], 8, torch.device("cpu"))]
        [[0, 2], [1]]
    """
    if device.type != "cpu":
        return cut(torch.arange(len(groups)), most)
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return [each for some in rows.values() for each in cut(torch.tensor(some), most)]


def pass_by_pass(
    function: Callable[[Tensor], Tensor], groups: Sequence[Hashable], most: int, device: torch.device, parallel: bool = True
) -> Tensor:
    """What `function(rows)` computes for all rows, `(len(groups), ...)`, in the passes of `passes`.

    Args:
        function: takes the indices of a pass, returns one result for each.
        groups: names the image (or pair, or map) of each row.
        most: rows a pass.
        device: where the net is.
        parallel: run passes side by side; False for a function that registers hooks on the net.

    Example:
        >>> pass_by_pass(lambda rows: 2 * rows, ["cat", "dog", "cat"], 1, torch.device("cpu"))
        tensor([0, 2, 4])
    """
    todo = passes(groups, most, device)
    rows = [each.filled for each in todo]
    parts = in_parallel(function, rows, device) if parallel else map(_on_one_thread(function), rows)
    joined = torch.cat([part[: len(each.rows)] for each, part in zip(todo, parts, strict=True)])
    return torch.empty_like(joined).index_copy_(0, torch.cat([each.rows for each in todo]).to(joined.device), joined)


def in_parallel(function: Callable[[_Item], _T], items: Sequence[_Item], device: torch.device) -> Iterator[_T]:
    """`map(function, items)`; on a CPU each call has one thread, and as many run side by side as torch has threads and memory allows.

    A `Classifier` has modules of its own in each thread. What registers hooks on its net must not be called like this.

    Example:
        >>> list(in_parallel(lambda x: x * x, [1, 2, 3], torch.device("cpu")))
        [1, 4, 9]
    """
    threads = torch.get_num_threads()
    at_once = min(threads, len(items), psutil.virtual_memory().available // MEMORY_A_PASS) if device.type == "cpu" else 1
    if at_once <= 1:
        yield from map(_on_one_thread(function), items)
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


def _on_one_thread(function: Callable[[_Item], _T]) -> Callable[[_Item], _T]:
    def run(item: _Item) -> _T:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(item)
        finally:
            torch.set_num_threads(threads)

    return run


def this_worker() -> int:
    """The number of this thread among the workers of `in_parallel`, from 1; 0 outside."""
    return _thread.worker


def stop_if_told() -> None:
    """End the work of this thread if the call it belongs to has ended.

    Raises:
        Stopped: it has.
    """
    if _thread.stop is not None and _thread.stop.is_set():
        raise Stopped


def smaller_when_out_of_memory(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Run a function that asks `pass_size` again, with passes of half the size for the rest of the process, when memory runs out."""

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
        text = f"out of memory: from now on at most {_Limit.cap} images a pass, or fewer if that is too many; results round differently"
        warnings.warn(text, stacklevel=3)
    torch.cuda.empty_cache()

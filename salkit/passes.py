"""How many images go through a net at a time: by image size and device, of one size where rounding matters, halved when memory runs out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from salkit.checks import check_integer

_P = ParamSpec("_P")
_T = TypeVar("_T")


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


def batch_size(inputs: Tensor, internal_batch_size: int | None = None, device: str | None = None) -> int:
    """Composites a pass: as given, or on a CPU 8 at 224 and 64 at 32 pixels, on a GPU 127 and 400 (ResNet-164 keeps about 30 MB each).

    On the device of the inputs, or on one of another type if that is given. Never more than the environment's `SALKIT_BATCH_SIZE`, or
    than memory turned out to hold.

    Raises:
        ValueError: `SALKIT_BATCH_SIZE` is no number.

    Example:
        >>> batch_size(torch.zeros(1, 3, 224, 224)), batch_size(torch.zeros(1, 3, 224, 224), 4)
        (8, 4)
    """
    budget, most = (410_000, 64) if (device or inputs.device.type) == "cpu" else (6_400_000, 400)
    if internal_batch_size is None:
        internal_batch_size = max(1, min(most, budget // (inputs.shape[-2] * inputs.shape[-1])))
    chosen = check_integer("internal_batch_size", internal_batch_size, 1)
    _Limit.last = min(chosen, _Limit.cap or chosen, largest_pass() or chosen)
    return _Limit.last


def pass_size(inputs: Tensor, composites: int = 1, internal_batch_size: int | None = None, device: str | None = None) -> int:
    """How many pairs of so many composites go into a forward pass: the largest power of two that fits the batch size.

    At least two composites: a single small image is computed by other kernels, which round differently.
    """
    least = 2 if composites == 1 else 1
    return max(least, 1 << max(0, (batch_size(inputs, internal_batch_size, device) // composites).bit_length() - 1))


def same_size_chunks(n: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of at most `size` pairs at a time, and the same filled up to `size` with the first of them.

    For methods that amplify rounding: kernels round differently in passes of another size, so theirs are always of one size.

    Example:
        >>> [(chunk.tolist(), full.tolist()) for chunk, full in same_size_chunks(3, 2)]
        [([0, 1], [0, 1]), ([2], [2, 2])]
    """
    for chunk in torch.arange(n).split(size):
        yield chunk, torch.cat([chunk, chunk[:1].expand(size - len(chunk))])


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

"""How a CPU computes: allocated pages that are kept, and kernels that round an image alike in whatever pass."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def round_alike(net: nn.Module) -> None:
    """Make the two layers whose kernels a CPU chooses by threads and batch size choose alike; learned masks amplify the difference.

    PyTorch leaves oneDNN for 1x1 convolutions when one thread gets fewer than 16 images, unless they are dilated, which means nothing for
    a kernel of one pixel. (With one thread EfficientNet-Lite0 also gains 40 % in speed.)
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1) and module.groups == 1:
            module.dilation = (2, 2) if module.weight.device.type == "cpu" else (1, 1)
        elif type(module) is nn.Linear:
            module.__class__ = EvenLinear


class EvenLinear(nn.Linear):
    """A linear layer that fills its rows up to a multiple of four on a CPU: MKL rounds a row by its place and number otherwise."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        missing = -len(input) % 4
        if input.device.type != "cpu" or input.ndim != 2 or not missing:
            return super().forward(input)
        return super().forward(F.pad(input, (0, 0, 0, missing)))[: len(input)]


@contextmanager
def one_thread() -> Iterator[None]:
    """For short work beside the net whose rounding depends on where threads cut it: sums, and bilinear resizing to odd widths."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def keep_allocator_pages() -> None:
    """Tell glibc once to keep freed memory.

    It would give every large buffer back to the system after each pass and fault its pages in again at the next: on two cores
    EfficientNet-Lite0 then runs at a quarter of its speed.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: from how many bytes on it would
            _ = mallopt(option, 2**31 - 1) or mallopt(option, 2**25)

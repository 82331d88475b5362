"""How a net is made fast: batch norms folded into convolutions, activations in place, freed memory kept."""

from __future__ import annotations

import copy
import ctypes
import platform
import sys
from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norms(net: nn.Module, probe: Tensor, widen: bool = False) -> nn.Module:
    """A copy of a net in eval mode whose batch norms and paddings are part of its convolutions: the same function but for rounding.

    Which norm follows which convolution is seen on a forward pass of `probe` `(N, 3, H, W)`, so that it works for nets that cannot be
    traced. Whoever calls this compares the logits: other layers may read a convolution's output, too.

    Args:
        net: in eval mode.
        probe: images.
        widen: also fold paddings that differ between the sides, into larger kernels: faster on a CPU in float32, slower in bfloat16.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        >>> [type(m).__name__ for m in fold_batch_norms(net, torch.zeros(1, 3, 8, 8))]
        ['Conv2d', 'Identity']
    """
    folded = copy.deepcopy(net)
    names = {module: name for name, module in folded.named_modules()}
    calls: Counter[nn.Module] = Counter()
    elsewhere: set[nn.Module] = set()
    made_by: list[tuple[Tensor, nn.Module]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        calls[module] += 1
        before = next((maker for made, maker in made_by if made is arguments[0]), None)
        if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            pairs.append((before, module))
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            made_by.append((output, module))
        elif before is None:
            elsewhere.add(module)

    activations = [m for m in names if getattr(m, "inplace", None) is False]
    handles = [m.register_forward_hook(note) for m in names if isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or m in activations]
    folded(probe)
    for handle in handles:
        handle.remove()
    for conv, norm in pairs:
        if calls[conv] == calls[norm] == 1 and norm.running_mean is not None and norm.running_var is not None:
            moments = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *moments)
            folded.set_submodule(names[norm], nn.Identity())
    for module in names:
        if isinstance(module, nn.Conv2d):
            _pad_within(module, widen)
    for module in activations:
        if module not in elsewhere:  # nor do they write into what the net was given
            module.register_forward_pre_hook(_in_place_without_grad)
    return folded.requires_grad_(False)


def _pad_within(conv: nn.Conv2d, widen: bool) -> None:
    """Let a convolution of EfficientNet-Lite pad its input by itself; `static_padding` copies it first, a tenth of a forward pass."""
    pads = getattr(getattr(conv, "static_padding", None), "padding", ())
    possible = isinstance(pads, tuple) and len(pads) == 4 and conv.padding == (0, 0) and conv.dilation == (1, 1)
    if possible and (widen or len(set(pads)) == 1):
        most = max(pads)  # PyTorch pads both sides alike: what is too much there meets zeros that the kernel is given at its edges
        weight = F.pad(conv.weight, [most - pad for pad in pads]).contiguous(memory_format=torch.channels_last)
        conv.weight, conv.kernel_size = nn.Parameter(weight, False), (weight.shape[2], weight.shape[3])
        conv.padding, conv.static_padding = (most, most), nn.Identity()


def _in_place_without_grad(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Activations write where they read, another tenth; backward passes get no faster by that."""
    del arguments
    module.inplace = not torch.is_grad_enabled()  # type: ignore[assignment]


@cache
def plain_float32() -> None:
    """Tell cuDNN once to compute float32 as such: left to itself it keeps 10 of its 23 bits, and learned masks amplify rounding."""
    torch.backends.cudnn.allow_tf32 = False


ALLOCATOR = {"MALLOC_ARENA_MAX": "1"}
"""Environment of processes that are started; the setting takes effect only before the first thread starts."""


@cache
def keep_allocator_pages() -> None:
    """Tell glibc once to keep freed memory, for all threads together.

    It would give every large buffer back to the system after each pass and fault its pages in again at the next: on two cores
    EfficientNet-Lite0 then runs at a quarter of its speed. What threads have for themselves would be given back even so, unless there is
    only one arena: a pass then takes 15 % longer.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: from how many bytes on it would
            _ = mallopt(option, 2**31 - 1) or mallopt(option, 2**25)
        mallopt(-8, int(ALLOCATOR["MALLOC_ARENA_MAX"]))

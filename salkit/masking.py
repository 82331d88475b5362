"""The input modification process Gamma: what fills the hidden pixels, how a mask is upsampled and penalised, which pixel ranks first."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from salkit.checks import check_integer

Infill = Literal["random_image", "gray", "blur"]
INFILLS: tuple[str, ...] = get_args(Infill)


def composite(inputs: Tensor, masks: Tensor, infill: Tensor | float) -> Tensor:
    """Keep `inputs` where the mask is 1 and show `infill` where it is 0: `M * x + (1 - M) * infill` (Equation 2).

    Args:
        inputs: `(..., 3, H, W)`.
        masks: `(..., 1, H, W)` in [0, 1].
        infill: a gray value or images that broadcast against `inputs`.

    Example:
        >>> composite(torch.ones(1, 3, 2, 2), torch.full((1, 1, 2, 2), 0.25), 0.0).unique().item()
        0.25
    """
    infill = torch.as_tensor(infill, dtype=inputs.dtype, device=inputs.device)
    return torch.lerp(infill, inputs, masks)


def channels_last_composite(inputs: Tensor, masks: Tensor, infill: Tensor) -> Tensor:
    """`composite` for a net that computes channels last, with no copy on the way; rounds alike.

    Args:
        inputs: `(..., H, W, 3)`, contiguous.
        masks: `(..., H, W)` in [0, 1], of the type of the inputs.
        infill: as the inputs, against which it broadcasts.

    Returns:
        `(B, 3, H, W)`, all leading dimensions in one.

    Example:
        >>> channels_last_composite(torch.ones(4, 1, 2, 2, 3), torch.rand(4, 5, 2, 2), torch.zeros(2, 2, 3)).shape
        torch.Size([20, 3, 2, 2])
    """
    weights = masks.unsqueeze(-1).expand(*masks.shape, 3).contiguous()  # the kernel for three equal weights is slow
    return torch.lerp(infill, inputs, weights).flatten(0, -4).permute(0, 3, 1, 2)


def blur(inputs: Tensor, sigma: float | None = None) -> Tensor:
    """Gaussian-blurred inputs, `(N, 3, H, W)`; `sigma` in pixels, default 10 at 224 pixels (Fong and Vedaldi) and in proportion."""
    sigma = inputs.shape[-1] * 10 / 224 if sigma is None else sigma
    return gaussian_blur(inputs, min(int(3 * sigma + 0.5), min(inputs.shape[-2:]) - 1), sigma)


def gaussian_blur(inputs: Tensor, radius: int, sigma: float, padding: Literal["reflect", "constant"] = "reflect") -> Tensor:
    """Gaussian blur of `2 * radius + 1` taps along each axis, reflected or with zeros around the image; `(N, C, H, W)`.

    One axis after the other: torchvision's goes over the whole square, which at these radii takes longer than the net.
    """
    place = torch.arange(-radius, radius + 1, device=inputs.device, dtype=inputs.dtype)
    taps = torch.exp(-place.square() / (2 * sigma**2))
    taps = taps / taps.sum()
    flat = F.pad(inputs.flatten(0, 1).unsqueeze(1), (radius,) * 4, mode=padding)
    return F.conv2d(F.conv2d(flat, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1)).view(inputs.shape)


def rise_blur(inputs: Tensor) -> Tensor:
    """The blur that RISE's insertion game starts from, `(N, 3, H, W)`: 11 x 11 taps, zeros (gray) around the image.

    RISE makes its kernel by filtering an impulse of that size with a Gaussian of deviation 5 and reflecting borders, which leaves
    nearly a box.
    """
    impulse = np.zeros((11, 11), np.float32)
    impulse[5, 5] = 1.0
    kernel = torch.from_numpy(ndimage.gaussian_filter(impulse, 5)).to(inputs)
    return F.conv2d(inputs, kernel.expand(inputs.shape[1], 1, 11, 11), padding=5, groups=inputs.shape[1])


def upsample(masks: Tensor, scale: int) -> Tensor:
    """Bilinear upsampling `(N, 1, h, w)` -> `(N, 1, scale * h, scale * w)`, `align_corners=False` as released."""
    return masks if scale == 1 else F.interpolate(masks, scale_factor=scale, mode="bilinear", align_corners=False)


def total_variation(masks: Tensor) -> Tensor:
    """Total variation as released: squared differences to the lower and right neighbour, summed.

    The last row and column serve as neighbours only, so the sum runs over i < H-1 and j < W-1.

    Args:
        masks: `(..., H, W)`.

    Returns:
        One value a mask, `(...)`, >= 0.

    Example:
        >>> total_variation(torch.tensor([[0.0, 1.0], [2.0, 5.0]])).item()  # (2 - 0)^2 + (1 - 0)^2
        5.0
    """
    anchor = masks[..., :-1, :-1]
    return (masks[..., 1:, :-1] - anchor).square().sum((-2, -1)) + (masks[..., :-1, 1:] - anchor).square().sum((-2, -1))


def l1_norm(masks: Tensor) -> Tensor:
    """Sum of the absolute mask values over pixels, `(..., H, W)` -> `(...)`."""
    return masks.abs().sum((-2, -1))


def rank_pixels(heatmaps: Tensor, seed: int = 0) -> Tensor:
    """Rank of every pixel, 0 = most salient; ties are broken by a permutation of the pixels drawn from `seed`.

    Args:
        heatmaps: `(N, H, W)`, higher = more salient.
        seed: of the permutation, which is the same for every heatmap of that size.

    Returns:
        `(N, H, W)` int32, each map a permutation of 0 ... H*W-1, so that "keep the top k" is `rank < k`.

    Example:
        >>> rank_pixels(torch.tensor([[[0.1, 0.9], [0.5, 0.0]]])).tolist()
        [[[2, 0], [1, 3]]]
    """
    flat = heatmaps.flatten(1)
    shuffle = _permutation(flat.shape[1], check_integer("seed", seed)).to(flat.device)
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1], dtype=torch.int32, device=flat.device).expand(flat.shape)
    return torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(1, order, places).view(heatmaps.shape)


def tie_share(heatmaps: Tensor) -> Tensor:
    """Share of pixels that have the same value as another pixel of their map, `(N, H, W)` -> `(N,)` in [0, 1]."""
    values = heatmaps.flatten(1).sort(1).values
    equal = values[:, 1:] == values[:, :-1]
    none = torch.zeros_like(equal[:, :1])
    return (torch.cat([equal, none], 1) | torch.cat([none, equal], 1)).float().mean(1)


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, n)).permutation(n))

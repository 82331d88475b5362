"""Mask learning and insertion curves as the paper's released code computes them, written from a description of it.

The net stays as loaded: NCHW, float32, batch norms not folded, parameters not frozen, so a backward pass computes their gradients as well.
Passes have the sizes of the released code: all distractors of all images of a batch for learning, up to 50 points of one image for curves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def learn_masks(
    net: nn.Module,
    images: Tensor,
    target: Tensor,
    pool: Tensor,
    draws: Tensor,
    labels: Sequence[int],
    *,
    scale: int = 4,
    tv: float = 0.01,
    l1: float = 2e-5,
    lr: float = 0.05,
) -> Tensor:
    """Masks `(n, 1, H, W)` of a batch of images after as many steps of Adam as there are draws.

    A softmax over the listed labels, its mean over an image's distractors, cross-entropy that takes that mean for logits, and the two
    regularisers as sums over pixels; all divided by the number of images.

    Args:
        net: maps `(N, 3, H, W)` to logits `(N, C)`.
        images: `(n, 3, H, W)`, the batch.
        target: `(n,)` indices into `labels`.
        pool: `(P, 3, H, W)`, the distractors.
        draws: `(n, steps, D)`, which of them each image sees at each step.
        labels: classes whose logits are kept.
        scale: factor of the bilinear upsampling that follows the sigmoid.
        tv: weight of the squared differences between neighbours.
        l1: weight of the mask's area.
        lr: Adam's learning rate.
    """
    n, _, height, width = images.shape
    columns = list(labels)
    logits = torch.zeros(n, 1, height // scale, width // scale, device=images.device, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=lr)
    for drawn in draws.unbind(1):
        masks = _upsampled(logits, scale)
        shown = masks[:, None] * images[:, None] + (1 - masks[:, None]) * pool[drawn]
        probs = net(shown.flatten(0, 1))[:, columns].softmax(1).unflatten(0, drawn.shape).mean(1)
        anchor = masks[..., :-1, :-1]
        variation = ((anchor - masks[..., 1:, :-1]) ** 2 + (anchor - masks[..., :-1, 1:]) ** 2).sum()
        loss = F.cross_entropy(probs, target, reduction="sum") + tv * variation + l1 * masks.abs().sum()
        adam.zero_grad()
        (loss / n).backward()
        adam.step()
    return _upsampled(logits, scale).detach()


@torch.no_grad()
def insertion_curve(net: nn.Module, image: Tensor, label: int, heatmap: Tensor, labels: Sequence[int], n_points: int) -> Tensor:
    """Probability of a label at `n_points` evenly spaced counts of kept pixels, `(n_points,)`; the rest of the image is gray.

    The map is sorted anew for every point and its mask made by NumPy; up to 50 masks of the one image go through the net together.

    Args:
        net: maps `(N, 3, H, W)` to logits `(N, C)`.
        image: `(3, H, W)`.
        label: index into `labels`.
        heatmap: `(H, W)`, higher = kept longer.
        labels: classes whose logits are kept.
        n_points: the last one is the whole image.
    """
    columns, curve = list(labels), []
    for points in torch.arange(1, n_points + 1).split(50):
        masks = torch.stack([_top_pixels(heatmap, point * heatmap.numel() // n_points) for point in points.tolist()]).to(image.device)
        curve.append(net(masks[:, None] * image)[:, columns].softmax(1)[:, label].cpu())
    return torch.cat(curve)


def _top_pixels(heatmap: Tensor, n: int) -> Tensor:
    order = np.argsort(heatmap.cpu().numpy().ravel())
    mask = np.zeros(order.size, np.float32)
    mask[order[order.size - n :]] = 1
    return torch.from_numpy(mask).view(heatmap.shape)


def _upsampled(logits: Tensor, scale: int) -> Tensor:
    return F.interpolate(logits.sigmoid(), scale_factor=scale, mode="bilinear", align_corners=False)

"""The saliency metric of Dabkowski and Gal: how small a crop around the salient pixels still shows the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from salkit.checks import check_choice, check_number
from salkit.curves import check_heatmaps
from salkit.methods.pairs import check_pairs
from salkit.models.classifier import Classifier
from salkit.models.passes import pass_by_pass, pass_size, smaller_when_out_of_memory

BoxRule = Literal["threshold", "largest_component"]
ALPHAS: tuple[float, ...] = (*(i / 20 for i in range(20)), 0.99)
"""Thresholds that are tried on other images: 0 to 0.95 in steps of 0.05, and 0.99."""


def saliency_metric(
    classifier: Classifier,
    inputs: Tensor,
    target: Tensor,
    heatmaps: Tensor,
    alpha: float = 0.5,
    *,
    rule: BoxRule = "threshold",
    internal_batch_size: int | None = None,
) -> Tensor:
    """`s(a, p) = log(max(a, 0.05)) - log(p)`; lower is better, at best log 0.05 = -3.0.

    a is the share of the image that the tightest box around the salient pixels takes, p the probability of the label on that crop,
    resized bilinearly to the input's size (and floored at 1e-8 to stay finite).

    Args:
        classifier: gives p in its softmax scope.
        inputs: `(N, 3, H, W)` normalised images, one a pair.
        target: `(N,)` int64 indices into the label list.
        heatmaps: `(N, H, W)`, higher = more salient; each is scaled to [0, 1].
        alpha: salient are the pixels at or above it; the definition has it chosen on other images (`leave_one_out`).
        rule: `"threshold"` is the definition; `"largest_component"` is what Phang et al.'s code does: the threshold is the map's mean, and
            only the largest connected region counts (its box one pixel short on two sides there; not here). It has no alpha.
        internal_batch_size: crops a forward pass; None chooses by image size.

    Returns:
        `(N,)` float32 in [-3.0, 18.5].

    Raises:
        ValueError: shapes that do not fit, heatmaps that are not finite, an alpha outside [0, 1], or an unknown rule.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> x, target, heatmaps = torch.zeros(1, 3, 4, 4), torch.tensor([0]), torch.eye(4)[None]
        >>> round(saliency_metric(Classifier(net), x, target, heatmaps).item(), 3)  # the whole image: 0 - log(1 / 3)
        1.099
    """
    check_pairs(classifier, inputs, target)
    check_heatmaps(inputs, heatmaps)
    check_number("alpha", alpha, 0, 1)
    check_choice("rule", rule, get_args(BoxRule))
    found = pass_by_pass(lambda row: boxes(heatmaps[row], alpha, rule), range(len(heatmaps)), 1, heatmaps.device)
    return _score(classifier, inputs, target, found[:, None], internal_batch_size).squeeze(1)


def saliency_metric_by_alpha(
    classifier: Classifier, inputs: Tensor, target: Tensor, heatmaps: Tensor, alphas: Sequence[float] = ALPHAS
) -> Tensor:
    """The metric for several thresholds, `(N, len(alphas))`; arguments as for `saliency_metric`."""
    check_pairs(classifier, inputs, target)
    check_heatmaps(inputs, heatmaps)
    return _score(classifier, inputs, target, torch.stack([boxes(heatmaps, alpha) for alpha in alphas], 1))


def leave_one_out(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The metric of each image at the threshold that is best for all the others.

    Args:
        metric: `(N, len(ALPHAS))`, see `saliency_metric_by_alpha`; NaN for images that are not there.

    Returns:
        Metric and threshold of each image, `(N,)`; NaN where there is no other image. Of equally good thresholds the lowest.

    Example:
        >>> value, alpha = leave_one_out(torch.eye(len(ALPHAS))[:3])
        >>> alpha
        tensor([0.0000, 0.0500, 0.1000])
        >>> value
        tensor([1., 1., 1.])
    """
    there = metric.isfinite().all(1)
    others = metric[there].double().sum(0) - metric.double()
    best = others.argmin(1)
    known = there & (there.sum() > 1)
    value, alpha = metric.gather(1, best[:, None]).squeeze(1), torch.tensor(ALPHAS)[best.cpu()].to(metric)
    return value.where(known, torch.nan), alpha.where(known, torch.nan)


def boxes(heatmaps: Tensor, alpha: float = 0.5, rule: BoxRule = "threshold") -> Tensor:
    """Tightest boxes around the salient pixels, `(N, H, W)` -> `(N, 4)` int64: top, bottom, left, right, ends exclusive.

    Example:
        >>> boxes(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.6]]])).tolist()
        [[1, 2, 1, 3]]
    """
    check_choice("rule", rule, get_args(BoxRule))
    flat = heatmaps.flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    if rule == "threshold":
        salient = heatmaps - low >= alpha * (high - low)
    else:
        salient = heatmaps >= flat.mean(1)[:, None, None]
        salient = torch.from_numpy(np.stack([_largest_component(s) for s in salient.cpu().numpy()])).to(heatmaps.device)
    ends = [_first_and_last(salient.any(dim)) for dim in (2, 1)]
    return torch.stack([*ends[0], *ends[1]], 1)


def _first_and_last(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Where the first True of each row `(N, L)` is, and one past the last."""
    marks = lines.to(torch.uint8)
    return marks.argmax(1), lines.shape[1] - marks.flip(1).argmax(1)


def _largest_component(salient: np.ndarray) -> np.ndarray:
    regions, n = ndimage.label(salient)
    return salient if n < 2 else regions == 1 + np.argmax(np.bincount(regions.ravel())[1:])


@smaller_when_out_of_memory
@torch.no_grad()
def _score(classifier: Classifier, inputs: Tensor, target: Tensor, every: Tensor, internal_batch_size: int | None = None) -> Tensor:
    """The metric for k boxes of each pair, `(N, k, 4)` -> `(N, k)`; equal boxes of a pair are evaluated once."""
    n, k = every.shape[:2]
    pair = torch.arange(n, device=inputs.device).repeat_interleave(k)
    rows, back = torch.cat([pair[:, None], every.flatten(0, 1).to(inputs.device)], 1).unique(dim=0, return_inverse=True)
    fast, target = classifier.fast(inputs), target.to(inputs.device)

    def show(some: Tensor) -> Tensor:
        at = rows[some]
        log_probs = fast(crop(inputs[at[:, 0]], at[:, 1:]))
        return log_probs.gather(1, target[at[:, :1]]).squeeze(1).exp()

    found = pass_by_pass(show, rows[:, 0].tolist(), pass_size(inputs, 1, internal_batch_size), inputs.device)
    if not found.isfinite().all():
        raise ValueError("classifier: expected finite logits, got NaN or infinity")
    area = (rows[:, 2] - rows[:, 1]) * (rows[:, 4] - rows[:, 3]) / (inputs.shape[-2] * inputs.shape[-1])
    return (area.clamp_min(0.05).log() - found.clamp_min(1e-8).log())[back].view(n, k)


def crop(inputs: Tensor, box: Tensor) -> Tensor:
    """Cut boxes `(N, 4)` out of images and resize them to the images' size, bilinearly and without antialiasing, in one go.

    Example:
        >>> x = torch.arange(16.0).view(1, 1, 4, 4)
        >>> crop(x, torch.tensor([[0, 2, 0, 2]]))[0, 0, 0]
        tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """
    grids = []
    for side, low, high in ((inputs.shape[-1], box[:, 2:3], box[:, 3:4]), (inputs.shape[-2], box[:, :1], box[:, 1:2])):
        length = (high - low).to(inputs.dtype)
        place = (torch.arange(side, device=inputs.device, dtype=inputs.dtype) + 0.5) * length / side - 0.5
        # Never beyond the crop's outermost pixel centres, as when the crop alone is resized.
        place = low + torch.minimum(place.clamp_min(0), length - 1)
        grids.append(2 * place / max(side - 1, 1) - 1)
    x, y = grids
    shape = (len(inputs), inputs.shape[-2], inputs.shape[-1])
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    return F.grid_sample(inputs, grid, mode="bilinear", padding_mode="border", align_corners=True)

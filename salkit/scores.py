"""Completeness, soundness and their worst cases: Equation 1, Definition 3.7, and the protocols they are computed under.

"Completeness" is the paper's word for "true labels can be proved"; it is not the attribution axiom of the same name (that the
attributions add up to the difference in the logit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, get_args, overload

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from salkit.checks import check_choice, check_number
from salkit.curves import AucRule
from salkit.masking import rank_pixels
from salkit.methods.learned_mask import Loss
from salkit.models.classifier import SoftmaxScope

Scores = TypeVar("Scores", Tensor, xr.DataArray)


@dataclass(frozen=True)
class Protocol:
    """The choices that change a score and that paper and released code make differently.

    Attributes:
        softmax_over: what f is normalised over: the net's own classes (`"all"`) or the label list.
        eps_completeness, eps_soundness: the thresholds of Equation 1.
        loss: the loss masks are learned with.
        auc_rule: how a curve becomes an area.

    Raises:
        ValueError: an unknown choice, or a threshold outside [0, 1].
    """

    softmax_over: SoftmaxScope = "all"
    eps_completeness: float = 0.01
    eps_soundness: float = 0.001
    loss: Loss = "nll"
    auc_rule: AucRule = "mean"

    def __post_init__(self) -> None:
        for name, choices in (("softmax_over", SoftmaxScope), ("loss", Loss), ("auc_rule", AucRule)):
            check_choice(name, getattr(self, name), get_args(choices))
        for name in ("eps_completeness", "eps_soundness"):
            check_number(name, getattr(self, name), 0, 1)


PROTOCOLS = {"paper": Protocol(), "released": Protocol("labels", 0.1, 0.1, "released")}
"""`paper` is what the text says, `released` what the published code does."""


def completeness(auc: Scores, prob: Scores, eps: float = 0.01) -> Scores:
    """Completeness of a map, Equation 1: `min(max(g, eps) / f, 1)`; 1 where f is 0, since `g >= alpha f` then holds for all alpha.

    Args:
        auc: g, area under the insertion curve, any shape, in [0, 1].
        prob: f, probability of the label on the whole image, broadcasts to `auc`.
        eps: labels less probable than this count as proved.

    Raises:
        TypeError: no numbers.
        ValueError: values or an eps outside [0, 1], or shapes that do not go together.

    Example:
        >>> completeness(torch.tensor([0.3, 0.0]), torch.tensor([0.6, 0.0]))
        tensor([0.5000, 1.0000])
    """
    auc, prob = _check_scores(auc, prob)
    return _capped_ratio(auc, prob, eps)


def soundness(auc: Scores, prob: Scores, eps: float = 0.001) -> Scores:
    """Soundness of a map, Equation 1: `min(max(f, eps) / g, 1)`; 1 where g is 0, since `g <= f / beta` then holds for all beta.

    Arguments and errors as for `completeness`.

    Example:
        >>> soundness(torch.tensor([0.5, 0.0]), torch.tensor([0.1, 0.0]))
        tensor([0.2000, 1.0000])
    """
    auc, prob = _check_scores(auc, prob)
    return _capped_ratio(prob, auc, eps)


def worst_case(scores: Scores) -> Scores:
    """Worst case of completeness or soundness, Definition 3.7: the minimum over labels, then the mean over images.

    Args:
        scores: a tensor `(..., N, A)` of N images and A labels, or a DataArray with dims `image` and `label`.

    Raises:
        TypeError: neither.
        ValueError: no such dimensions, or none in them.

    Example:
        >>> worst_case(torch.tensor([[1.0, 0.5], [0.25, 1.0]])).item()
        0.375
    """
    per_image = worst_per_image(scores)
    return per_image.mean("image") if isinstance(per_image, xr.DataArray) else per_image.mean(-1)


def worst_per_image(scores: Scores) -> Scores:
    """The minimum over labels alone: what `worst_case` averages and what intervals over images are made of."""
    if isinstance(scores, xr.DataArray):
        if not {"image", "label"} <= set(scores.dims):
            raise ValueError(f"scores: expected dims image and label, got {scores.dims}")
        return scores.min("label")
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores: expected a tensor or a DataArray, got {type(scores).__name__}")
    if scores.ndim < 2 or 0 in scores.shape:
        raise ValueError(f"scores: expected shape (..., N, A) with at least one of each, got {tuple(scores.shape)}")
    return scores.amin(-1)


def best_effort(completeness: xr.DataArray, prob: xr.DataArray, min_prob: float = 0.01) -> xr.DataArray:
    """Worst completeness over the labels other than the prediction, per image (Figure 4, right).

    Args:
        completeness: dims `image`, `label` and any others.
        prob: f, dims `image`, `label`.
        min_prob: only images whose second-best label is at least this probable count.

    Returns:
        Without the dim `label`; NaN for images that do not count. Its mean over `image` is the best-effort score.
    """
    prediction = prob.argmax("label")
    others = prob["label"] != prob["label"][prediction]
    second = prob.where(others).max("label")
    return completeness.where(others).min("label").where(second >= min_prob)


def label_correlation(heatmaps: Tensor, seed: int = 0) -> Tensor:
    """How little maps change with the label: the mean rank correlation between the maps of two labels of an image.

    Args:
        heatmaps: `(N, A, H, W)`, the maps of A labels.
        seed: of the permutation that breaks ties.

    Returns:
        `(N,)` in [-1, 1]: 1 for a map that ignores the label (or for one label), 0 for unrelated ones. A method near 1 is sound because
        it says the same of every label.

    Example:
        >>> label_correlation(torch.rand(1, 1, 4, 4).expand(2, 3, 4, 4))
        tensor([1., 1.])
    """
    n, k = heatmaps.shape[:2]
    if k == 1:
        return heatmaps.new_ones(n)
    ranks = rank_pixels(heatmaps.flatten(0, 1), seed).flatten(1).double()
    ranks = ranks - ranks.mean(1, keepdim=True)
    unit = (ranks / ranks.norm(dim=1, keepdim=True)).unflatten(0, (n, k))
    # The squared length of the sum holds every pair twice and each map with itself once.
    return ((unit.sum(1).square().sum(1) - k) / (k * (k - 1))).float()


def localisation(heatmaps: Tensor, regions: Tensor, top: float | None = None, seed: int = 0) -> Tensor:
    """Share of each map that lies where its label is: the pointing game on mosaics, where no boxes are needed.

    The share of the map's mass is the energy-based pointing game (Wang et al. 2020, Score-CAM), on mosaics as in Boehle et al. (2021);
    negative values count as 0. An offset pulls it towards the region's area. The share of the most salient pixels looks at ranks alone,
    as completeness and soundness do.

    Args:
        heatmaps: `(N, A, H, W)`, the maps of A labels.
        regions: `(A, H, W)` or `(N, A, H, W)` bool, where the label of each map is.
        top: None for the share of the mass; 0.1 for the share of the 10 % most salient pixels.
        seed: of the permutation that breaks ties.

    Returns:
        `(N, A)` in [0, 1]. A constant map scores the region's share of the image (0.5 for a half), and so does a map with nothing positive;
        with `top` up to the draw of its ties. One map for both labels of a mosaic scores 0.5 in their mean, whatever it shows.

    Raises:
        ValueError: shapes that do not fit, regions that are not bool, or a `top` outside (0, 1].

    Example:
        >>> left = torch.tensor([[[True, False]]])
        >>> localisation(torch.tensor([[[[3.0, 1.0]]]]), left)
        tensor([[0.7500]])
    """
    if heatmaps.ndim != 4 or regions.dtype != torch.bool or regions.shape not in (heatmaps.shape, heatmaps.shape[1:]):
        expected, got = tuple(heatmaps.shape[1:]), f"{regions.dtype} of shape {tuple(regions.shape)}"
        raise ValueError(f"regions: expected bool of shape (A, H, W) = {expected} or (N, *{expected}), got {got}")
    if top is None:
        mass = heatmaps.clamp_min(0).double()
    else:
        if not check_number("top", top, 0, 1):
            raise ValueError(f"top: expected a share above 0, got {top!r}")
        kept = max(1, round(top * heatmaps[0, 0].numel()))
        mass = (rank_pixels(heatmaps.flatten(0, 1), seed) < kept).view(heatmaps.shape).double()
    inside, whole = (mass * regions).sum((-2, -1)), mass.sum((-2, -1))
    area = regions.double().mean((-2, -1)).expand(whole.shape)
    return torch.where(whole > 0, inside / whole.where(whole > 0, 1.0), area).float()


@overload
def _capped_ratio(above: Tensor, below: Tensor, eps: float) -> Tensor: ...
@overload
def _capped_ratio(above: xr.DataArray, below: xr.DataArray, eps: float) -> xr.DataArray: ...
def _capped_ratio(above: Scores, below: Scores, eps: float) -> Scores:
    """`min(max(above, eps) / below, 1)` without ever dividing by 0: where it is capped nothing is divided. NaN stays NaN."""
    check_number("eps", eps, 0, 1)
    if isinstance(above, xr.DataArray):
        lifted = above.clip(min=eps)
        capped = lifted >= below
        return xr.where(capped, 1.0, lifted / below.where(~capped, 1.0)).astype(above.dtype)
    lifted = above.clamp(min=eps)
    capped = lifted >= below
    return torch.where(capped, 1.0, lifted / torch.where(capped, 1.0, below))


def _check_scores(auc: Scores, prob: Scores) -> tuple[Scores, Scores]:
    area, f = _check_unit("auc", auc), _check_unit("prob", prob)
    try:
        np.broadcast_shapes(*(v.shape for v in (area, f) if not isinstance(v, xr.DataArray)))
    except ValueError as error:
        raise ValueError(f"prob: expected a shape that broadcasts to {tuple(area.shape)}, got {tuple(f.shape)}") from error
    return area, f


def _check_unit(name: str, values: Scores) -> Scores:
    """Probabilities, as a DataArray or (numbers and numpy arrays too) as a tensor."""
    try:
        checked = values if isinstance(values, xr.DataArray) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers, got {values!r}") from error
    if "complex" in str(checked.dtype):
        raise TypeError(f"{name}: expected real numbers, got {checked.dtype}")
    # A mean of float32 probabilities may exceed 1 by rounding.
    low, high = (float(checked.min()), float(checked.max())) if np.prod(checked.shape) else (0.0, 0.0)
    if not (low >= 0 and high <= 1 + 1e-5):
        raise ValueError(f"{name}: expected values in [0, 1], got {low} to {high}")
    return checked

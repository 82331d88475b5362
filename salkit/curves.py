"""Insertion and deletion curves (Definition 3.4) and the area under them (Definition 3.5)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from salkit.checks import check_choice, check_images, check_number, check_tensor, is_integer
from salkit.masking import channels_last_composite, rank_pixels
from salkit.methods.pairs import check_classifier, check_pairs, check_precision
from salkit.models.classifier import Classifier
from salkit.models.passes import pass_by_pass, pass_size, smaller_when_out_of_memory

AucRule = Literal["mean", "trapezoid"]
Game = Literal["insertion", "deletion"]


def kept_counts(n_pixels: int, n_steps: int | None = None) -> Tensor:
    """How many pixels are kept at each point: 0, then `n_steps` evenly spaced counts up to all of them; None for every count.

    Example:
        >>> kept_counts(1024, 4).tolist()
        [0, 256, 512, 768, 1024]
    """
    n_steps = n_pixels if n_steps is None else n_steps
    if not is_integer(n_steps, 1) or n_steps > n_pixels:
        raise ValueError(f"n_steps: expected None or an integer from 1 to {n_pixels} pixels, got {n_steps!r}")
    return torch.arange(int(n_steps) + 1) * n_pixels // int(n_steps)


def insertion_curve(
    classifier: Classifier,
    inputs: Tensor,
    target: Tensor,
    heatmaps: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    n_steps: int | None = None,
    internal_batch_size: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Probability of the target label as the most salient pixels are shown, from none to all (Definition 3.4).

    Args:
        classifier: gives f.
        inputs: `(N, 3, H, W)` normalised images, one a pair.
        target: `(N,)` int64 indices into the label list.
        heatmaps: `(N, H, W)`, higher = more salient; only the ranking matters.
        baseline: what hides a pixel: a value in normalised space (0 is gray) or images that broadcast to `inputs`.
        n_steps: None keeps 1, 2, ..., H*W pixels; else so many evenly spaced counts.
        internal_batch_size: composites a forward pass; None chooses by image size.
        seed: of the permutation that breaks ties.

    Returns:
        `(N, n_steps + 1)` float32 in [0, 1]; column 0 is the all-baseline image, the last column the whole image.

    Raises:
        TypeError: no `Classifier`, or tensors of the wrong type.
        ValueError: shapes that do not fit, values that are not finite (also the classifier's), settings out of range.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> x, heatmaps = torch.ones(1, 3, 2, 2), torch.rand(1, 2, 2)
        >>> insertion_curve(Classifier(net), x, torch.tensor([0]), heatmaps).shape
        torch.Size([1, 5])
    """
    check_pairs(classifier, inputs, target)
    curves = insertion_curves_all_labels(
        classifier, inputs, heatmaps, baseline=baseline, n_steps=n_steps, internal_batch_size=internal_batch_size, seed=seed
    )
    return curves.gather(2, target.to(curves.device)[:, None, None].expand(-1, curves.shape[1], 1)).squeeze(2)


def deletion_curve(
    classifier: Classifier,
    inputs: Tensor,
    target: Tensor,
    heatmaps: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    n_steps: int | None = None,
    internal_batch_size: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Probability of the target label when the most salient pixels are the ones hidden.

    Deleting by m is inserting by -m: the points are in the same order as an insertion curve's, from the all-baseline image
    (everything deleted) in column 0 to the whole image (nothing deleted) in the last. Arguments and errors as there.
    """
    check_pairs(classifier, inputs, target)
    check_heatmaps(inputs, heatmaps)
    return insertion_curve(
        classifier,
        inputs,
        target,
        -heatmaps,
        baseline=baseline,
        n_steps=n_steps,
        internal_batch_size=internal_batch_size,
        seed=seed,
    )


@smaller_when_out_of_memory
@torch.no_grad()
def insertion_curves_all_labels(
    classifier: Classifier,
    inputs: Tensor,
    heatmaps: Tensor,
    *,
    baseline: float | Tensor = 0.0,
    n_steps: int | None = None,
    internal_batch_size: int | None = None,
    seed: int = 0,
    maps_per_image: int = 1,
) -> Tensor:
    """Insertion curves of every label from the same passes: `(N, n_steps + 1, A)`; for maps that do not depend on the label.

    With `maps_per_image` k there are k heatmaps in a row for each of the `inputs`, and curves `(k N, n_steps + 1, A)`. On a CPU the passes
    of a map hold nothing but its points, so that its curve does not depend on other maps.
    """
    k = maps_per_image
    check_classifier(classifier)
    check_images("inputs", inputs)
    check_precision("inputs", inputs, classifier)
    check_heatmaps(inputs, heatmaps, k)
    kept = kept_counts(heatmaps[0].numel(), n_steps).to(inputs.device, torch.float32)
    ranks = rank_pixels(heatmaps.to(inputs.device), seed).float()  # exact up to 2 ** 24 pixels
    shown, hidden = (x.permute(0, 2, 3, 1).contiguous() for x in (inputs, _fill(inputs, baseline)))
    fast, n_points = classifier.fast(inputs), len(kept)

    def show(rows: Tensor) -> Tensor:
        maps, points = rows.to(inputs.device) // n_points, rows.to(inputs.device) % n_points
        masks = (kept[points, None, None] - ranks[maps]).clamp_(0, 1).to(inputs.dtype)  # 1 where rank < kept
        infill = hidden[maps // k] if len(hidden) > 1 else hidden
        return fast(channels_last_composite(shown[maps // k], masks, infill)).exp()

    points = torch.arange(len(ranks)).repeat_interleave(n_points).tolist()
    curves = pass_by_pass(show, points, pass_size(inputs, 1, internal_batch_size), inputs.device).unflatten(0, (-1, n_points))
    if not torch.isfinite(curves).all():
        raise ValueError("classifier: expected finite logits, got NaN or infinity")
    return curves


def auc(curve: Tensor, rule: AucRule = "mean", *, game: Game = "insertion") -> Tensor:
    """Area under curves `(..., n_steps + 1)` -> `(...)`, as a mean probability in [0, 1].

    Args:
        curve: as `insertion_curve` and `deletion_curve` return it.
        rule: `"mean"` is Definition 3.5: the mean over every point but the game's start (for insertion column 0, nothing shown;
            for deletion the last column, nothing deleted), as released. `"trapezoid"` is the RISE convention: every point, the
            two ends with half weight.
        game: which curve it is; only `"mean"` asks.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: unknown rule or game, or fewer than two points.

    Example:
        >>> auc(torch.tensor([0.0, 0.5, 1.0])), auc(torch.tensor([0.0, 0.5, 1.0]), "trapezoid")
        (tensor(0.7500), tensor(0.5000))
    """
    check_tensor("curve", curve)
    if not curve.ndim or curve.shape[-1] < 2:
        raise ValueError(f"curve: expected at least 2 points, got shape {tuple(curve.shape)}")
    check_choice("game", game, get_args(Game))
    check_choice("rule", rule, get_args(AucRule))
    if rule == "mean":
        return (curve[..., 1:] if game == "insertion" else curve[..., :-1]).mean(-1)
    return torch.trapezoid(curve, dim=-1) / (curve.shape[-1] - 1)


def check_heatmaps(inputs: Tensor, heatmaps: Tensor, maps_per_image: int = 1) -> None:
    """Refuse heatmaps that do not fit the inputs.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: wrong shape, or values that are not finite (they have no rank).
    """
    check_tensor("heatmaps", heatmaps)
    expected = (len(inputs) * maps_per_image, *inputs.shape[-2:])
    if tuple(heatmaps.shape) != expected:
        raise ValueError(f"heatmaps: expected shape {expected} (N, H, W) for these inputs, got {tuple(heatmaps.shape)}")
    if not torch.isfinite(heatmaps).all():
        raise ValueError("heatmaps: expected finite values, got NaN or infinity")


def _fill(inputs: Tensor, baseline: float | Tensor) -> Tensor:
    """What hides the pixels: one image for each of the inputs, or a single one for all.

    Raises:
        ValueError: a shape that does not broadcast to it, or values that are not finite.
    """
    if not isinstance(baseline, Tensor):
        baseline = torch.tensor(check_number("baseline", baseline))
    if not torch.isfinite(baseline).all():
        raise ValueError("baseline: expected finite values, got NaN or infinity")
    try:
        single = baseline.ndim < 4 or len(baseline) == 1
        return baseline.to(inputs).broadcast_to(inputs[:1].shape if single else inputs.shape)
    except RuntimeError as error:
        raise ValueError(f"baseline: expected a shape that broadcasts to {tuple(inputs.shape)}, got {tuple(baseline.shape)}") from error

"""Fong and Vedaldi 2017, meaningful perturbations: the smallest smooth region whose blurring makes the class improbable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from salkit import masking
from salkit.checks import check_choice, check_settings
from salkit.methods.base import Cost, LearnedMap, mask_side
from salkit.methods.pairs import Pairs
from salkit.models.classifier import Classifier
from salkit.models.passes import pass_by_pass, pass_size
from salkit.progress import progress_bar

Start = Literal["random", "circle"]
Regulariser = Literal["sums", "means"]
Gradient = Literal["released", "consistent"]
RADII = range(0, 171, 5)
"""Radii of the starting circle, in pixels of a side of 224."""


@dataclass(frozen=True)
class FongVedaldi(LearnedMap):
    """Meaningful perturbations: blur as little as possible of the image so that the class disappears.

    Minimise over m in [0, 1]^{s x s}, low = salient (the heatmap is 1 - the blurred upsampled mask),

    `f(tau(x) G(up m) + tau(x_blur) (1 - G(up m)), a) + l1 sum|1 - m| + tv sum_u (dx m(u)^2 + dy m(u)^2)^{beta / 2}`

    with up by nearest neighbour, G a Gaussian blur, tau a random shift of up to 3 pixels of the slightly enlarged image, x_blur the image
    blurred by 10 pixels. Adam, m clipped to [0, 1] after each step. Constants are those of the authors' Caffe code.

    Args:
        mask_size: s; None takes an eighth of the image's side, 28 of 224.
        n_steps, lr: of Adam.
        l1, tv: weights; None takes 1e-4 and 1e-2 for sums, 0.01 and 0.2 for means.
        beta: power of the total variation; 3 (2 in the authors' localisation preset).
        regulariser: `"sums"` over the grid is the authors'; `"means"` is what the popular PyTorch port does (also: differences along each
            axis separately), about 8 times weaker.
        start: `"random"`, uniform in [0, 1), is the authors' command line; `"circle"` is the paper: the smallest blurred central disc that
            hides the class.
        blur_radius: deviation of G in pixels at 224.
        jitter: number of shifts along each axis; 1 for none.
        gradient: `"released"` treats G as the identity in the backward pass, `"consistent"` differentiates it.
        internal_batch_size: composites a forward pass; None chooses by image size.
        show_progress: a bar over the batches of pairs.

    Cost: `n_steps` forward-backward passes a pair, and 36 forward ones for the circle.

    Decided where the source cannot be followed: the blur is applied to the cropped input, not to the original file; PIL's repeated box
    blurs are Gaussians here; the mask's blur is not rounded to 8 bits.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> FongVedaldi(regulariser="means").weights()
        (0.01, 0.2)
    """

    mask_size: int | None = None
    n_steps: int = 300
    lr: float = 0.1
    l1: float | None = None
    tv: float | None = None
    beta: float = 3.0
    regulariser: Regulariser = "sums"
    start: Start = "random"
    blur_radius: float = 5.0
    jitter: int = 4
    gradient: Gradient = "released"
    internal_batch_size: int | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        counts = ("mask_size", "n_steps", "jitter", "internal_batch_size")
        check_settings(self, counts=counts, weights=("l1", "tv", "blur_radius"), rates=("lr", "beta"), flags=("show_progress",))
        check_choice("regulariser", self.regulariser, get_args(Regulariser))
        check_choice("start", self.start, get_args(Start))
        check_choice("gradient", self.gradient, get_args(Gradient))

    def weights(self) -> tuple[float, float]:
        """Weights of area and total variation in force."""
        l1, tv = (1e-4, 1e-2) if self.regulariser == "sums" else (0.01, 0.2)
        return l1 if self.l1 is None else self.l1, tv if self.tv is None else self.tv

    def cost(self) -> Cost:
        """`n_steps` forward-backward passes a pair."""
        return Cost(forward=len(RADII) + 1 if self.start == "circle" else 0, forward_backward=self.n_steps)

    def _learn(self, pairs: Pairs) -> Tensor:
        """One minus the mask, `(N, s, s)` in [0, 1]; see `LearnedMap`.

        Raises:
            ValueError: images smaller than the mask.
        """
        inputs, target = pairs.inputs, pairs.target
        side = mask_side(inputs, self.mask_size)
        draws = pairs.generators("fong_vedaldi")
        shifts = torch.from_numpy(np.array([g.integers(self.jitter, size=(self.n_steps, 2)) for g in draws])).to(inputs.device)
        starts = torch.from_numpy(np.array([g.random((1, side, side), dtype=np.float32) for g in draws])).to(inputs)
        fast = pairs.classifier.fast(inputs)
        with progress_bar(None, self.show_progress, total=len(inputs), unit="pair", desc="Fong and Vedaldi") as bar:

            def descend(rows: Tensor) -> Tensor:
                x, a = inputs[rows], target[rows]
                blurred = masking.blur(x)
                start = self._circle(fast, x, blurred, a, side) if self.start == "circle" else starts[rows]
                masks = self._descend(fast, x, blurred, a, start, shifts[rows])
                bar.update(len(rows))
                return 1 - masks.squeeze(1)

            return pass_by_pass(descend, pairs.names, pass_size(inputs, 1, self.internal_batch_size), inputs.device)

    def heatmaps(self, learned: Tensor, size: Sequence[int]) -> Tensor:
        """Enlarged and blurred as the mask was, `(N, H, W)` in [0, 1]."""
        return self._full_size(learned[:, None], size).squeeze(1)

    def _descend(self, classifier: Classifier, x: Tensor, blurred: Tensor, target: Tensor, masks: Tensor, shifts: Tensor) -> Tensor:
        masks = masks.clone()
        adam = torch.optim.Adam([masks], lr=self.lr)
        larger = [side + self.jitter for side in x.shape[-2:]]
        images = F.interpolate(torch.cat([x, blurred]), larger, mode="bilinear", align_corners=False) if self.jitter > 1 else None
        for step in shifts.unbind(1):
            shown, hidden = (x, blurred) if images is None else _crop(images, step.repeat(2, 1), x.shape[-2:]).chunk(2)
            masks.grad = self.slope(classifier, shown, hidden, target, masks)
            adam.step()
            masks.clamp_(0, 1)
        return masks

    def slope(self, classifier: Classifier, shown: Tensor, hidden: Tensor, target: Tensor, masks: Tensor) -> Tensor:
        """Gradient of the objective by the masks `(N, 1, s, s)`."""
        masks = masks.detach().requires_grad_()
        full = self._full_size(masks, shown.shape[-2:])
        if self.gradient == "released":
            sharp = F.interpolate(masks, shown.shape[-2:])
            full = sharp + (full - sharp).detach()
        prob = classifier(masking.composite(shown, full, hidden)).gather(1, target[:, None]).exp()
        (slope,) = torch.autograd.grad(prob.sum() + self.penalty(masks).sum(), [masks])
        return slope

    def penalty(self, masks: Tensor) -> Tensor:
        """Area and total variation of masks `(N, 1, s, s)`, one value each."""
        l1, tv = self.weights()
        down, right = masks.diff(dim=-2), masks.diff(dim=-1)
        if self.regulariser == "means":
            variation = down.abs().pow(self.beta).mean((1, 2, 3)) + right.abs().pow(self.beta).mean((1, 2, 3))
            return l1 * (1 - masks).abs().mean((1, 2, 3)) + tv * variation
        # Forward differences, 0 at the last row and column; the smallest addend keeps the root differentiable at 0.
        squared = F.pad(down, (0, 0, 0, 1)).square() + F.pad(right, (0, 1)).square()
        return l1 * (1 - masks).abs().sum((1, 2, 3)) + tv * (squared + 1e-12).pow(self.beta / 2).sum((1, 2, 3))

    def _full_size(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        """`G(up m)`, `(N, 1, H, W)`."""
        full = F.interpolate(masks, tuple(size))
        return masking.blur(full, self.blur_radius * size[-1] / 224) if self.blur_radius else full

    @torch.no_grad()
    def _circle(self, classifier: Classifier, x: Tensor, blurred: Tensor, target: Tensor, side: int) -> Tensor:
        """The smallest disc that takes 99 % of what the largest takes from the class, as a mask `(N, 1, s, s)`."""
        height, width = x.shape[-2:]
        y = torch.arange(height, device=x.device)[:, None] - (height - 1) / 2
        distance = (y**2 + (torch.arange(width, device=x.device) - (width - 1) / 2) ** 2).sqrt()
        radii = torch.tensor(RADII, device=x.device) * width / 224
        discs = 1 - masking.blur((distance < radii[:, None, None]).to(x)[:, None])

        def prob(images: Tensor) -> Tensor:
            return classifier(images).gather(1, target[:, None]).exp().squeeze(1)

        whole, masked = prob(x), torch.stack([prob(masking.composite(x, disc, blurred)) for disc in discs])
        # As released: where the largest disc raises the class, both differences are negative and the test still holds.
        hides = (masked - masked[-1]) / (whole - masked[-1]) < 0.01
        hides[-1] = True
        smallest = discs[hides.float().argmax(0)]
        return F.adaptive_avg_pool2d(smallest, side)


def _crop(images: Tensor, offsets: Tensor, size: Sequence[int]) -> Tensor:
    """Windows of `size` at offsets `(N, 2)`, one an image."""
    rows = offsets[:, :1] + torch.arange(size[0], device=images.device)
    columns = offsets[:, 1:] + torch.arange(size[1], device=images.device)
    place = torch.arange(len(images), device=images.device)[:, None, None]
    # The channels go last when indexed like this.
    return images.permute(0, 2, 3, 1)[place, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

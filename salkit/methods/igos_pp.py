"""iGOS++ (Khorram, Lawson, Li 2021): a deletion and an insertion mask, descended along a path of partly masked images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from salkit import masking
from salkit.checks import check_choice, check_settings
from salkit.methods.base import Cost, LearnedMap, mask_side
from salkit.methods.pairs import Pairs
from salkit.models.classifier import Classifier
from salkit.models.passes import cut, in_parallel, pass_size
from salkit.progress import progress_bar

Gradient = Literal["released", "consistent"]
TRIALS = 4
"""Trial steps of the line search to plan with; it takes 1 to 13 (on four of the packaged images 4.5 on average)."""


@dataclass(frozen=True)
class IGOSpp(LearnedMap):
    """iGOS++: hide as little as possible of the image so that the class disappears from it and appears in what was hidden.

    Minimise over two masks in [0, 1]^{s x s}, low = salient (the heatmap is 1 - their upsampled product),

    `L = S(x, b, M_d) - S(b, x, M_i) + S(x, b, P) - S(b, x, P) + l1 mean|1 - M| + tv BTV(M)`, `M = M_d M_i`, P the product of the
    upsampled masks, b the blurred image. `S(u, v, M)` is the mean over k = 1..n of `f(u (k/n) M + v (1 - (k/n) M) + noise, a)`: a path
    from v to the masked image. BTV is half the squared total variation of M on its grid, plus half of that at full size weighted by
    `exp(-(difference of the image)^2 / sigma)`. Projected gradient descent, the step found by backtracking for every pair.

    Args:
        mask_size: s, the side of a mask; None takes an eighth of the image's, 28 of 224.
        n_steps: descent steps. The released command line passes its two counts crosswise: 20 steps and paths of 15 points.
        n_path: points of a path.
        l1, tv: weights of area and bilateral total variation.
        alpha: first step size that is tried.
        shrink, least_alpha: it is multiplied by `shrink` until the loss falls enough (Armijo, 1e-4) or it is below `least_alpha`; the last
            one is taken in any case, as released.
        noise: deviation of the noise, in normalised space, drawn anew for every evaluation, also in the line search.
        sigma: of the bilateral weights.
        gradient: `"released"` halves the score terms in the gradient but not in the loss that the line search looks at; `"consistent"`
            does not.
        internal_batch_size: composites a forward pass; None chooses by image size.
        show_progress: a bar over the pairs.

    Cost: a step takes `4 n_path` forward-backward passes, as many forward passes for the loss and for each of 1 to 13 trials.

    Decided where the source is silent or odd: images keep the kit's crop (the source squeezes them to a square); f is the classifier's
    in its softmax scope; the vertical weight squares after averaging the channels and the horizontal one averages last, as released.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> IGOSpp().cost()
        Cost(forward=6000, forward_backward=1200, per='pair')
    """

    mask_size: int | None = None
    n_steps: int = 20
    n_path: int = 15
    l1: float = 1.0
    tv: float = 20.0
    alpha: float = 1000.0
    shrink: float = 0.2
    least_alpha: float = 1e-5
    noise: float = 0.2
    sigma: float = 0.01
    gradient: Gradient = "released"
    internal_batch_size: int | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("mask_size", "n_steps", "n_path", "internal_batch_size"),
            weights=("l1", "tv", "noise"),
            rates=("alpha", "least_alpha", "sigma"),
            shares=("shrink",),
            flags=("show_progress",),
        )
        check_choice("gradient", self.gradient, get_args(Gradient))

    def cost(self) -> Cost:
        """`4 n_path` passes a step with gradient; without, as many for the loss and for each of `TRIALS` trials."""
        points = 4 * self.n_path * self.n_steps
        return Cost(forward=(1 + TRIALS) * points, forward_backward=points)

    def _learn(self, pairs: Pairs) -> Tensor:
        """One minus the product of both masks, `(N, s, s)` in [0, 1]; see `LearnedMap`.

        Raises:
            ValueError: images smaller than the mask.
        """
        inputs = pairs.inputs
        side = mask_side(inputs, self.mask_size)
        fast, noise = pairs.classifier.fast(inputs), pairs.generators("igos_pp")
        with progress_bar(None, self.show_progress, total=len(inputs), unit="pair", desc="iGOS++") as bar:

            def descend(row: Tensor) -> Tensor:
                pair = _Pair(fast, inputs[row], box_blur(inputs[row]), int(pairs.target[row]), noise[int(row)])
                masks = inputs.new_ones(1, 2, side, side)
                for _ in range(self.n_steps):
                    masks = self._line_search(pair, masks, self._direction(pair, masks))
                bar.update()
                return 1 - masks.prod(1)

            # The line search asks for another number of passes for every pair, so each pair is descended by itself.
            return torch.cat(list(in_parallel(descend, torch.arange(len(inputs)).split(1), inputs.device)))

    def heatmaps(self, learned: Tensor, size: Sequence[int]) -> Tensor:
        """Upsampled, `(N, H, W)` in [0, 1]."""
        return _upsample(learned[:, None], size).squeeze(1)

    def _direction(self, pair: _Pair, masks: Tensor) -> Tensor:
        """The gradient that is stepped along, `(1, 2, s, s)`."""
        masks = masks.detach().requires_grad_()
        paths = _path_masks(masks, pair.image)
        slope = self._scores(pair, paths.detach(), slope=True)
        regular = self._regulariser(pair, masks)
        weight = 0.5 if self.gradient == "released" else 1.0
        (direction,) = torch.autograd.grad([paths, regular], [masks], [weight * slope, torch.ones_like(regular)])
        return direction

    @torch.no_grad()
    def _line_search(self, pair: _Pair, masks: Tensor, direction: Tensor) -> Tensor:
        """A step of the first size that lowers the loss enough, or of one below `least_alpha`."""
        before, squared, alpha = self._loss(pair, masks), direction.square().sum(), self.alpha
        while alpha >= self.least_alpha:
            tried = (masks - alpha * direction).clamp(0, 1)
            if self._loss(pair, tried) <= before - 1e-4 * alpha * squared:
                break
            alpha *= self.shrink
        return (masks - alpha * direction).clamp(0, 1)

    def _loss(self, pair: _Pair, masks: Tensor) -> Tensor:
        """L, a scalar."""
        return self._scores(pair, _path_masks(masks, pair.image)) + self._regulariser(pair, masks)

    def _scores(self, pair: _Pair, paths: Tensor, slope: bool = False) -> Tensor:
        """The four path scores added up with their signs, a scalar; with `slope` their derivative by the path masks, `(1, 4, H, W)`."""
        points = 4 * self.n_path
        noise = pair.noise.standard_normal((points, *pair.image.shape[1:]), dtype=np.float32) if self.noise else None
        share = torch.arange(1, self.n_path + 1, device=paths.device, dtype=paths.dtype) / self.n_path
        total, slopes = paths.new_zeros(()), torch.zeros_like(paths[0])
        for each in cut(torch.arange(points), pass_size(pair.image, 1, self.internal_batch_size)):
            n, term, k = len(each.rows), (each.filled // self.n_path).to(paths.device), (each.filled % self.n_path).to(paths.device)
            shown, hidden = pair.ends(term)
            composites = masking.composite(shown, share[k, None, None, None] * paths[0, term].unsqueeze(1), hidden)
            if noise is not None:
                composites = composites + self.noise * torch.from_numpy(noise[each.filled.numpy()]).to(paths)
            sign = torch.where(term % 2 == 0, 1.0, -1.0) / self.n_path
            with torch.set_grad_enabled(slope):
                composites.requires_grad_(slope)
                scores = pair.classifier(composites)[:, pair.target].exp() * sign
            if slope:
                (by_image,) = torch.autograd.grad(scores.sum(), [composites])
                slopes.index_add_(0, term[:n], ((by_image * (shown - hidden)).sum(1) * share[k, None, None])[:n])
            total += scores.detach()[:n].sum()
        return slopes[None] if slope else total

    def _regulariser(self, pair: _Pair, masks: Tensor) -> Tensor:
        """Area and bilateral total variation of the product of the masks, a scalar."""
        product, x = masks.prod(1, keepdim=True), pair.image
        low = product.diff(dim=-2).square().mean() + product.diff(dim=-1).square().mean()
        full = _upsample(product, x.shape[-2:])
        down = torch.exp(-x.diff(dim=-2).mean(1, keepdim=True).square() / self.sigma)
        right = torch.exp(-x.diff(dim=-1).square() / self.sigma).mean(1, keepdim=True)
        weighted = (down * full.diff(dim=-2).square()).mean() + (right * full.diff(dim=-1).square()).mean()
        return self.l1 * (1 - product).abs().mean() + self.tv * (low + weighted) / 2


class _Pair(NamedTuple):
    """What stays the same over the steps of a pair: image and blurred image `(1, 3, H, W)`, label, and its stream of noise."""

    classifier: Classifier
    image: Tensor
    blurred: Tensor
    target: int
    noise: np.random.Generator

    def ends(self, term: Tensor) -> tuple[Tensor, Tensor]:
        """Image under the mask and image around it for each of the terms (x, b), (b, x), (x, b), (b, x)."""
        deletion = (term % 2 == 0)[:, None, None, None]
        return torch.where(deletion, self.image, self.blurred), torch.where(deletion, self.blurred, self.image)


def box_blur(inputs: Tensor) -> Tensor:
    """The source's blur: a Gaussian of 51 taps and deviation 50 at 224 pixels, which is nearly a box; in proportion at other sizes."""
    side = inputs.shape[-1]
    return masking.gaussian_blur(inputs, max(1, round(25 * side / 224)), 50 * side / 224)


def _path_masks(masks: Tensor, inputs: Tensor) -> Tensor:
    """Full-size masks of the four scores: M_d, M_i, P, P; `(N, 2, s, s)` -> `(N, 4, H, W)`."""
    full = _upsample(masks, inputs.shape[-2:])
    product = full.prod(1, keepdim=True)
    return torch.cat([full, product, product], 1)


def _upsample(masks: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(masks, tuple(size), mode="bilinear", align_corners=True)

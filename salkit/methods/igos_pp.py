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
from salkit.methods.pairs import check_pairs, image_ids, label_names, pair_generator
from salkit.models.classifier import Classifier
from salkit.models.passes import batch_size, even_size, in_parallel, same_size_chunks, smaller_when_out_of_memory
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
        internal_batch_size: composites a forward pass (short passes are filled up to it); None chooses by image size.
        show_progress: a bar over the steps.

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

    @smaller_when_out_of_memory
    def learn(
        self,
        classifier: Classifier,
        inputs: Tensor,
        target: Tensor,
        *,
        distractors: Tensor | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> Tensor:
        """One minus the product of both masks, `(N, s, s)` in [0, 1]; see `LearnedMap`.

        Raises:
            ValueError: images smaller than the mask.
        """
        del distractors
        check_pairs(classifier, inputs, target)
        side = mask_side(inputs, self.mask_size)
        names = zip(image_ids(inputs, ids), label_names(classifier, target), strict=True)
        noise = [pair_generator(seed, i, a, "igos_pp") for i, a in names]
        pairs = _Pairs(classifier.fast(inputs), inputs, box_blur(inputs), target, noise)
        masks = inputs.new_ones(len(inputs), 2, side, side)
        for _ in progress_bar(range(self.n_steps), self.show_progress, desc="iGOS++"):
            direction = self._direction(pairs, masks)
            masks = self._line_search(pairs, masks, direction)
        return 1 - masks.prod(1)

    def heatmaps(self, learned: Tensor, size: Sequence[int]) -> Tensor:
        """Upsampled, `(N, H, W)` in [0, 1]."""
        return _upsample(learned[:, None], size).squeeze(1)

    def _direction(self, pairs: _Pairs, masks: Tensor) -> Tensor:
        """The gradient that is stepped along, `(N, 2, s, s)`."""
        masks = masks.detach().requires_grad_()
        paths = _path_masks(masks, pairs.inputs)
        slope = self._scores(pairs, paths.detach(), slope=True)
        regular = self._regulariser(pairs, masks).sum()
        weight = 0.5 if self.gradient == "released" else 1.0
        (direction,) = torch.autograd.grad([paths, regular], [masks], [weight * slope, torch.ones_like(regular)])
        return direction

    @torch.no_grad()
    def _line_search(self, pairs: _Pairs, masks: Tensor, direction: Tensor) -> Tensor:
        """Each pair's step with a size of its own; pairs that have found theirs are not evaluated again."""
        before = self._loss(pairs, masks)
        squared = direction.square().sum((1, 2, 3))
        alpha = torch.full_like(before, self.alpha)
        searching = torch.arange(len(masks), device=masks.device)
        while len(searching):
            tried = (masks[searching] - alpha[searching, None, None, None] * direction[searching]).clamp(0, 1)
            enough = before[searching] - 1e-4 * alpha[searching] * squared[searching]
            searching = searching[self._loss(pairs.subset(searching), tried) > enough]
            alpha[searching] *= self.shrink
            searching = searching[alpha[searching] >= self.least_alpha]
        return (masks - alpha[:, None, None, None] * direction).clamp(0, 1)

    def _loss(self, pairs: _Pairs, masks: Tensor) -> Tensor:
        """L of every pair, `(N,)`."""
        return self._scores(pairs, _path_masks(masks, pairs.inputs)) + self._regulariser(pairs, masks)

    def _scores(self, pairs: _Pairs, paths: Tensor, slope: bool = False) -> Tensor:
        """The four path scores added up with their signs, `(N,)`; with `slope` their derivative by the path masks, `(N, 4, H, W)`.

        All pairs' composites go through the net in passes of one size, so that rounding does not depend on the batch.
        """
        n, points = len(paths), 4 * self.n_path
        draws = [g.standard_normal((points, *pairs.inputs.shape[1:]), dtype=np.float32) for g in pairs.noise] if self.noise else []
        noise = torch.from_numpy(np.array(draws)).to(paths).mul_(self.noise).flatten(0, 1) if draws else None
        share = torch.arange(1, self.n_path + 1, device=paths.device, dtype=paths.dtype) / self.n_path
        size = batch_size(pairs.inputs, self.internal_batch_size)
        total, slopes = paths.new_zeros(n), torch.zeros_like(paths)

        def score(at: Tensor) -> tuple[Tensor, Tensor]:
            pair, term, k = at // points, at % points // self.n_path, at % self.n_path
            shown, hidden = pairs.ends(pair, term)
            composites = masking.composite(shown, share[k, None, None, None] * paths[pair, term].unsqueeze(1), hidden)
            composites = composites if noise is None else composites + noise[at]
            sign = torch.where(term % 2 == 0, 1.0, -1.0) / self.n_path
            with torch.set_grad_enabled(slope):
                composites.requires_grad_(slope)
                scores = pairs.classifier(composites).gather(1, pairs.target[pair, None]).squeeze(1).exp() * sign
            if not slope:
                return scores, scores
            (by_image,) = torch.autograd.grad(scores.sum(), [composites])
            return scores.detach(), (by_image * (shown - hidden)).sum(1) * share[k, None, None]

        chunks, filled = zip(*same_size_chunks(n * points, even_size(n * points, size, paths.device)), strict=True)
        for chunk, (scores, by_mask) in zip(chunks, in_parallel(score, filled, paths.device), strict=True):
            chunk = chunk.to(paths.device)
            pair, term = chunk // points, chunk % points // self.n_path
            total.index_add_(0, pair, scores[: len(chunk)])
            if slope:
                slopes.flatten(0, 1).index_add_(0, pair * 4 + term, by_mask[: len(chunk)])
        return slopes if slope else total

    def _regulariser(self, pairs: _Pairs, masks: Tensor) -> Tensor:
        """Area and bilateral total variation of the product of the masks, `(N,)`."""
        product = masks.prod(1, keepdim=True)
        low = product.diff(dim=-2).square().mean((1, 2, 3)) + product.diff(dim=-1).square().mean((1, 2, 3))
        x, full = pairs.inputs, _upsample(product, pairs.inputs.shape[-2:])
        down = torch.exp(-x.diff(dim=-2).mean(1, keepdim=True).square() / self.sigma)
        right = torch.exp(-x.diff(dim=-1).square() / self.sigma).mean(1, keepdim=True)
        weighted = (down * full.diff(dim=-2).square()).mean((1, 2, 3)) + (right * full.diff(dim=-1).square()).mean((1, 2, 3))
        return self.l1 * (1 - product).abs().mean((1, 2, 3)) + self.tv * (low + weighted) / 2


class _Pairs(NamedTuple):
    """What stays the same over the steps of a batch: images, blurred images and a stream of noise for each pair."""

    classifier: Classifier
    inputs: Tensor
    blurred: Tensor
    target: Tensor
    noise: list[np.random.Generator]

    def subset(self, index: Tensor) -> _Pairs:
        streams = [self.noise[i] for i in index.tolist()]
        return _Pairs(self.classifier, self.inputs[index], self.blurred[index], self.target[index], streams)

    def ends(self, pair: Tensor, term: Tensor) -> tuple[Tensor, Tensor]:
        """Image under the mask and image around it for each of the terms (x, b), (b, x), (x, b), (b, x)."""
        x, b = self.inputs[pair], self.blurred[pair]
        deletion = (term % 2 == 0)[:, None, None, None]
        return torch.where(deletion, x, b), torch.where(deletion, b, x)


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

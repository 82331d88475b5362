"""RISE (Petsiuk, Das, Saenko 2018): the mean of random masks, weighted by how probable they leave the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from salkit.checks import check_integer, check_settings
from salkit.methods.base import Cost
from salkit.methods.pairs import check_pairs, image_ids
from salkit.models.classifier import Classifier
from salkit.models.folding import one_thread
from salkit.models.passes import batch_size, in_parallel, smaller_when_out_of_memory
from salkit.progress import progress_bar


@dataclass(frozen=True)
class RISE:
    """RISE: `m_a = 1 / (N p) sum_i f_a(x M_i) M_i` over N random masks; hidden pixels are gray (0).

    A mask is a coarse grid of Bernoulli(p) cells, upsampled bilinearly and shifted by a random part of a cell. All images and labels
    share the masks of a seed, and one forward pass an (image, mask) serves all labels.

    Args:
        n_masks: N; 8000 for ResNet50 in the paper.
        grid: cells along a side; 7 in the paper.
        keep: p, the probability of a cell to be shown; 0.5 in the paper.
        internal_batch_size: composites a forward pass; None chooses by image size.
        show_progress: a bar over the images.

    Cost: `n_masks` forward passes an image.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> RISE().cost()
        Cost(forward=8000, forward_backward=0, per='image')
    """

    n_masks: int = 8000
    grid: int = 7
    keep: float = 0.5
    internal_batch_size: int | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        check_settings(self, counts=("n_masks", "grid", "internal_batch_size"), shares=("keep",), flags=("show_progress",))

    def cost(self) -> Cost:
        """`n_masks` forward passes an image."""
        return Cost(forward=self.n_masks, per="image")

    @smaller_when_out_of_memory
    @torch.no_grad()
    def attribute(
        self,
        classifier: Classifier,
        inputs: Tensor,
        target: Tensor,
        *,
        distractors: Tensor | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> Tensor:
        """Heatmaps `(N, H, W)` in [0, about 1]; see `SaliencyMethod.attribute`. Pairs whose image is the same share their passes."""
        del distractors
        check_pairs(classifier, inputs, target)
        names, fast = np.array(image_ids(inputs, ids)), classifier.fast(inputs)
        heatmaps = torch.zeros_like(inputs[:, 0])
        for name in progress_bar(dict.fromkeys(names.tolist()), self.show_progress, desc="RISE"):
            rows = torch.from_numpy(np.flatnonzero(names == name)).to(inputs.device)

            def weighted(masks: Tensor, rows: Tensor = rows) -> Tensor:
                prob = fast(inputs[rows[0]] * masks).exp()[:, target[rows]]
                with one_thread():
                    return torch.einsum("mr,mhw->rhw", prob, masks.squeeze(1))

            for some in in_parallel(weighted, self.masks(inputs[rows[0]], seed), inputs.device):
                heatmaps[rows] += some
        return heatmaps / (self.n_masks * self.keep)

    def masks(self, image: Tensor, seed: int = 0) -> list[Tensor]:
        """The random masks `(n, 1, H, W)` in [0, 1], in batches, for an image `(3, H, W)`; images of a size have the same ones."""
        height, width = image.shape[-2:]
        generator = np.random.default_rng((check_integer("seed", seed), self.n_masks, self.grid))
        cells = torch.from_numpy((generator.random((self.n_masks, 1, self.grid, self.grid)) < self.keep).astype(np.float32))
        cell = -(-height // self.grid), -(-width // self.grid)
        offsets = torch.from_numpy(generator.integers(cell, size=(self.n_masks, 2)))
        large = [(self.grid + 1) * side for side in cell]
        size = batch_size(image[None], self.internal_batch_size)
        batches = []
        for some, shifts in zip(cells.split(size), offsets.split(size), strict=True):
            full = F.interpolate(some, large, mode="bilinear", align_corners=False)
            windows = [m[:, y : y + height, x : x + width] for m, (y, x) in zip(full, shifts.tolist(), strict=True)]
            batches.append(torch.stack(windows).to(image))
        return batches

"""RISE (Petsiuk, Das, Saenko 2018): the mean of random masks, weighted by how probable they leave the class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from salkit.checks import check_integer, check_settings
from salkit.methods.base import Cost, Method
from salkit.methods.pairs import Pairs
from salkit.models.passes import Pass, cut, in_parallel, pass_size
from salkit.progress import progress_bar


@dataclass(frozen=True)
class RISE(Method):
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

    @torch.no_grad()
    def _attribute(self, pairs: Pairs) -> Tensor:
        """Heatmaps `(N, H, W)` in [0, about 1]; the labels of an image share their passes."""
        classifier, inputs, target, names = pairs.classifier, pairs.inputs, pairs.target, np.array(pairs.names)
        fast = classifier.fast(inputs)
        heatmaps = torch.zeros_like(inputs[:, 0])
        batches = cut(torch.arange(self.n_masks), pass_size(inputs, 1, self.internal_batch_size))
        cells, offsets = self._draw(inputs, pairs.seed)
        for name in progress_bar(dict.fromkeys(names.tolist()), self.show_progress, desc="RISE"):
            rows = torch.from_numpy(np.flatnonzero(names == name)).to(inputs.device)

            def weighted(batch: Pass, rows: Tensor = rows) -> Tensor:
                masks = self._enlarge(cells[batch.filled], offsets[batch.filled], inputs)
                prob = fast(inputs[rows[0]] * masks).exp()[:, target[rows]]
                n = len(batch.rows)
                return torch.einsum("mr,mhw->rhw", prob[:n], masks[:n].squeeze(1))

            for some in in_parallel(weighted, batches, inputs.device):
                heatmaps[rows] += some
        return heatmaps / (self.n_masks * self.keep)

    def masks(self, image: Tensor, seed: int = 0) -> Tensor:
        """The random masks `(n_masks, 1, H, W)` in [0, 1] for an image `(3, H, W)`; images of one size share them."""
        return self._enlarge(*self._draw(image, seed), image)

    def _draw(self, image: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Which cells are shown, `(n_masks, 1, grid, grid)`, and by how many pixels each mask is shifted, `(n_masks, 2)`."""
        generator = np.random.default_rng((check_integer("seed", seed), self.n_masks, self.grid))
        cells = torch.from_numpy((generator.random((self.n_masks, 1, self.grid, self.grid)) < self.keep).astype(np.float32))
        return cells, torch.from_numpy(generator.integers(self._cell(image), size=(self.n_masks, 2)))

    def _enlarge(self, cells: Tensor, offsets: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        full = F.interpolate(cells, [(self.grid + 1) * side for side in self._cell(image)], mode="bilinear", align_corners=False)
        windows = [m[:, y : y + height, x : x + width] for m, (y, x) in zip(full, offsets.tolist(), strict=True)]
        return torch.stack(windows).to(image)

    def _cell(self, image: Tensor) -> tuple[int, int]:
        """Height and width of a cell in pixels."""
        return -(-image.shape[-2] // self.grid), -(-image.shape[-1] // self.grid)

"""The two baselines of Table 1 that look at neither the image nor the net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from salkit.checks import check_settings
from salkit.methods.base import Cost
from salkit.methods.pairs import check_pairs, image_ids, label_names, pair_generator
from salkit.models.classifier import Classifier


@dataclass(frozen=True)
class Random:
    """Independent standard-normal values a pixel, drawn anew for every (image, label) pair. Cost: none.

    The paper does not say whether its random map is shared by the labels of an image; here it is not.
    """

    def cost(self) -> Cost:
        """None."""
        return Cost()

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
        """Heatmaps `(N, H, W)`; see `SaliencyMethod.attribute`."""
        del distractors
        check_pairs(classifier, inputs, target)
        pairs = zip(image_ids(inputs, ids), label_names(classifier, target), strict=True)
        draws = [pair_generator(seed, i, a, "random").standard_normal(inputs.shape[-2:], dtype=np.float32) for i, a in pairs]
        return torch.from_numpy(np.array(draws, dtype=np.float32).reshape(-1, *inputs.shape[-2:])).to(inputs.device)


@dataclass(frozen=True)
class CenteredGaussian:
    """An isotropic Gaussian at the image centre: the same map for every image and label. Cost: none.

    Rank-based metrics do not depend on the width; `sigma` is a share of the image side.

    Raises:
        ValueError: `sigma` is not positive.
    """

    sigma: float = 0.5
    depends_on_label = False

    def __post_init__(self) -> None:
        check_settings(self, rates=("sigma",))

    def cost(self) -> Cost:
        """None."""
        return Cost(per="image")

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
        """Heatmaps `(N, H, W)`; see `SaliencyMethod.attribute`."""
        del distractors, seed, ids
        check_pairs(classifier, inputs, target)
        height, width = inputs.shape[-2:]
        y = (torch.arange(height, device=inputs.device) - (height - 1) / 2) / height
        x = (torch.arange(width, device=inputs.device) - (width - 1) / 2) / width
        gaussian = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * self.sigma**2))
        return gaussian.expand(len(inputs), -1, -1).clone()

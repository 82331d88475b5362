"""The two baselines of Table 1 that look at neither the image nor the net."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from salkit.checks import check_settings
from salkit.methods.base import Cost, Method
from salkit.methods.pairs import Pairs


@dataclass(frozen=True)
class Random(Method):
    """Independent standard-normal values a pixel, drawn anew for every (image, label) pair. Cost: none.

    The paper does not say whether its random map is shared by the labels of an image; here it is not.
    """

    def cost(self) -> Cost:
        """None."""
        return Cost()

    def _attribute(self, pairs: Pairs) -> Tensor:
        size = pairs.inputs.shape[-2:]
        draws = [generator.standard_normal(size, dtype=np.float32) for generator in pairs.generators("random")]
        return torch.from_numpy(np.array(draws)).to(pairs.inputs.device)


@dataclass(frozen=True)
class CenteredGaussian(Method):
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

    def _attribute(self, pairs: Pairs) -> Tensor:
        inputs = pairs.inputs
        height, width = inputs.shape[-2:]
        y = (torch.arange(height, device=inputs.device) - (height - 1) / 2) / height
        x = (torch.arange(width, device=inputs.device) - (width - 1) / 2) / width
        gaussian = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * self.sigma**2))
        return gaussian.expand(len(inputs), -1, -1).clone()

"""Methods that Captum already provides: an adapter for any of its attribution classes, and Gradient x Input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from captum.attr import InputXGradient
from torch import Tensor

from salkit.methods.base import check_pairs
from salkit.models import Classifier

Reduction = Literal["sum", "abs_sum"]


@dataclass(frozen=True)
class CaptumMethod:
    """Make a saliency method of a Captum attribution class.

    Args:
        attribution: e.g. `captum.attr.IntegratedGradients`, or a function that makes an attribution from the forward function,
            such as `lambda forward: NoiseTunnel(Saliency(forward))`.
        settings: keyword arguments of its `attribute`; `target` is filled in.
        output: what Captum differentiates: the `"logit"` of the label, its `"log_prob"` or its `"prob"`.
        reduction: how `(N, 3, H, W)` becomes `(N, H, W)`: signed `"sum"` over the channels, or `"abs_sum"`.
        internal_batch_size: pairs at a time.
        forward_backward_passes: what a map costs, for `salkit plan`.

    Raises:
        ValueError: unknown output or reduction, or a batch size below 1.

    Example:
        >>> from captum.attr import Saliency
        >>> CaptumMethod(Saliency, {"abs": False}).output
        'logit'
    """

    attribution: Callable[[Callable[[Tensor], Tensor]], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    output: Literal["logit", "log_prob", "prob"] = "logit"
    reduction: Reduction = "sum"
    internal_batch_size: int = 32
    forward_backward_passes: int = 1

    def __post_init__(self) -> None:
        if self.output not in ("logit", "log_prob", "prob"):
            raise ValueError(f"output: expected 'logit', 'log_prob' or 'prob', got {self.output!r}")
        if self.reduction not in ("sum", "abs_sum"):
            raise ValueError(f"reduction: expected 'sum' or 'abs_sum', got {self.reduction!r}")
        if self.internal_batch_size < 1:
            raise ValueError(f"internal_batch_size: expected at least 1, got {self.internal_batch_size}")

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

        def forward(x: Tensor) -> Tensor:
            if self.output != "logit":
                return classifier(x) if self.output == "log_prob" else classifier(x).exp()
            logits = classifier.logits(x)
            return logits if classifier.labels is None else logits[:, list(classifier.labels)]

        attribution = self.attribution(forward)
        heatmaps = inputs.new_empty(len(inputs), *inputs.shape[-2:])
        for pairs in torch.arange(len(inputs)).split(self.internal_batch_size):
            x = inputs[pairs].detach().requires_grad_()
            channels = attribution.attribute(x, target=target[pairs], **self.settings).detach()
            heatmaps[pairs] = channels.sum(1) if self.reduction == "sum" else channels.abs().sum(1)
        return heatmaps


def gradient_x_input(reduction: Reduction = "sum", internal_batch_size: int = 32) -> CaptumMethod:
    """Gradient x Input: `sum_c x_c * d z_a / d x_c`, one forward-backward pass a pair.

    The paper's footnote 7 speaks of decomposing the logit, so the logit it is; it does not say how the channels are reduced:
    `"sum"` keeps the sign, `"abs_sum"` is the common variant.

    Example:
        >>> gradient_x_input(reduction="abs_sum").reduction
        'abs_sum'
    """
    return CaptumMethod(InputXGradient, reduction=reduction, internal_batch_size=internal_batch_size)

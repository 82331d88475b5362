"""Methods that Captum already provides: an adapter for any of its attribution classes, and the ones the kit's tables use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerAttribution, LayerGradCam, NoiseTunnel, Saliency
from torch import Tensor, nn

from salkit.checks import check_choice, check_integer, check_settings
from salkit.methods.base import Cost, Method
from salkit.methods.pairs import Pairs
from salkit.models.classifier import Classifier
from salkit.models.passes import pass_by_pass, pass_size

Reduction = Literal["sum", "abs_sum"]
Output = Literal["logit", "log_prob", "prob"]


@dataclass(frozen=True)
class CaptumMethod(Method):
    """Make a saliency method of a Captum attribution class.

    Args:
        attribution: e.g. `captum.attr.IntegratedGradients`, or a function that makes an attribution from the forward function,
            such as `lambda forward: NoiseTunnel(Saliency(forward))`.
        settings: keyword arguments of its `attribute`; `target` is filled in.
        output: what Captum differentiates: the `"logit"` of the label, its `"log_prob"` or its `"prob"`.
        reduction: how `(N, 3, H, W)` becomes `(N, H, W)`: signed `"sum"` over the channels, or `"abs_sum"`.
        internal_batch_size: pairs at a time.
        forward_backward: passes a map takes, for `salkit plan`.

    Raises:
        ValueError: unknown output or reduction, or a batch size below 1.

    Example:
        >>> from captum.attr import Saliency
        >>> CaptumMethod(Saliency, {"abs": False}).output
        'logit'
    """

    attribution: Callable[[Callable[[Tensor], Tensor]], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    output: Output = "logit"
    reduction: Reduction = "sum"
    internal_batch_size: int = 32
    forward_backward: int = 1

    def __post_init__(self) -> None:
        check_choice("output", self.output, ("logit", "log_prob", "prob"))
        check_choice("reduction", self.reduction, get_args(Reduction))
        check_settings(self, counts=("internal_batch_size", "forward_backward"))
        if not callable(self.attribution):
            raise TypeError(f"attribution: expected a Captum class or a function that makes one, got {self.attribution!r}")
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings: expected a mapping of names to values, got {self.settings!r}")

    def cost(self) -> Cost:
        """As given."""
        return Cost(forward_backward=self.forward_backward)

    def _attribute(self, pairs: Pairs) -> Tensor:
        inputs, target = pairs.inputs, pairs.target
        outputs = label_outputs(pairs.classifier.fast(inputs), self.output)

        def explain(rows: Tensor) -> Tensor:
            x = inputs[rows].detach().requires_grad_()
            channels = self.attribution(outputs).attribute(x, target=target[rows], **self.settings).detach()
            return reduce_channels(channels, self.reduction)

        return pass_by_pass(explain, pairs.names, pass_size(inputs, 1, self.internal_batch_size), inputs.device)


@dataclass(frozen=True)
class SmoothGrad(Method):
    """SmoothGrad (Smilkov et al. 2017): the gradient of the logit, averaged over noisy copies of the image.

    The noise of a pair is drawn from a stream of its own, so that its map does not depend on the batch (Captum's comes from one global
    generator).

    Args:
        n_samples: noisy copies; 50 in the paper.
        noise_level: deviation of the noise as a share of the image's range; 0.15 in the paper's figures.
        reduction: `"abs_sum"` over the channels (a gradient's sign says what brightening would do, not what counts), or `"sum"`.
        internal_batch_size: copies a pass; None chooses by image size.

    Cost: `n_samples` forward-backward passes a pair.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> SmoothGrad().cost().forward_backward
        50
    """

    n_samples: int = 50
    noise_level: float = 0.15
    reduction: Reduction = "abs_sum"
    internal_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, counts=("n_samples", "internal_batch_size"), weights=("noise_level",))
        check_choice("reduction", self.reduction, get_args(Reduction))

    def cost(self) -> Cost:
        """`n_samples` forward-backward passes a pair."""
        return Cost(forward_backward=self.n_samples)

    def _attribute(self, pairs: Pairs) -> Tensor:
        inputs, target, draws = pairs.inputs, pairs.target, pairs.generators("smooth_grad")
        tunnel = NoiseTunnel(Saliency(label_outputs(pairs.classifier.fast(inputs))))
        settings = {
            "nt_samples": self.n_samples,
            "nt_samples_batch_size": min(self.n_samples, pass_size(inputs, 1, self.internal_batch_size)),
        }

        def explain(row: Tensor) -> Tensor:
            image = inputs[row].detach().clone().requires_grad_()
            spread = float(image.detach().max() - image.detach().min())
            with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
                torch.manual_seed(int(draws[int(row)].integers(2**62)))
                channels = tunnel.attribute(image, target=target[row], abs=False, stdevs=self.noise_level * spread, **settings)
            return reduce_channels(channels.detach(), self.reduction)

        # One after the other: Captum draws from PyTorch's only generator.
        return pass_by_pass(explain, range(len(inputs)), 1, inputs.device, parallel=False)


@dataclass(frozen=True)
class GradCAM(Method):
    """Grad-CAM (Selvaraju et al. 2017): the last feature maps, weighted by their mean gradient, cut off at 0 and upsampled.

    Args:
        layer: name of the module whose output is weighted; None takes the last one whose output still has a height and a width.
        internal_batch_size: pairs a pass.

    Cost: one forward-backward pass a pair.

    Raises:
        ValueError: a batch size below 1. `attribute` raises it for a net without that module, or without spatial outputs.

    Example:
        >>> GradCAM(layer="layer4").cost().forward_backward
        1
    """

    layer: str | None = None
    internal_batch_size: int = 16

    def __post_init__(self) -> None:
        check_settings(self, counts=("internal_batch_size",))

    def cost(self) -> Cost:
        """One forward-backward pass a pair."""
        return Cost(forward_backward=1)

    def _attribute(self, pairs: Pairs) -> Tensor:
        classifier, inputs, target = pairs.classifier, pairs.inputs, pairs.target
        modules = dict(classifier.net.named_modules())
        layer = last_spatial_layer(classifier, inputs[:1]) if self.layer is None else self.layer
        if layer not in modules:
            raise ValueError(f"layer: expected the name of a module of {type(classifier.net).__name__}, got {layer!r}")
        cam = LayerGradCam(label_outputs(classifier), modules[layer])

        def explain(rows: Tensor) -> Tensor:
            x = inputs[rows].detach().requires_grad_()
            coarse = cam.attribute(x, target=target[rows], relu_attributions=True).detach()
            return LayerAttribution.interpolate(coarse, tuple(inputs.shape[-2:]), "bilinear").squeeze(1)

        size = pass_size(inputs, 1, self.internal_batch_size)
        return pass_by_pass(explain, pairs.names, size, inputs.device, parallel=False)


def last_spatial_layer(classifier: Classifier, inputs: Tensor) -> str:
    """Name of the module that last puts out feature maps larger than one pixel.

    Raises:
        ValueError: there is none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> last_spatial_layer(Classifier(net), torch.zeros(1, 3, 8, 8))
        '1'
    """
    last: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[-2:]) > 1:
                last.append(name)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in classifier.net.named_modules() if name]
    with torch.no_grad():
        classifier.logits(inputs)
    for handle in handles:
        handle.remove()
    if not last:
        raise ValueError(f"layer: expected a net with spatial feature maps, got {type(classifier.net).__name__}")
    return last[-1]


def label_outputs(classifier: Classifier, output: Output = "logit") -> Callable[[Tensor], Tensor]:
    """The function of images that Captum differentiates: logits, log-probabilities or probabilities of the label list, `(N, A)`."""

    def forward(x: Tensor) -> Tensor:
        if output != "logit":
            return classifier(x) if output == "log_prob" else classifier(x).exp()
        logits = classifier.logits(x)
        return logits if classifier.labels is None else logits[:, list(classifier.labels)]

    return forward


def reduce_channels(channels: Tensor, reduction: Reduction) -> Tensor:
    """`(N, 3, H, W)` -> `(N, H, W)`."""
    return channels.sum(1) if reduction == "sum" else channels.abs().sum(1)


def gradient_x_input(reduction: Reduction = "sum", internal_batch_size: int = 32) -> CaptumMethod:
    """Gradient x Input: `sum_c x_c * d z_a / d x_c`, one forward-backward pass a pair.

    The paper's footnote 7 speaks of decomposing the logit, so the logit it is; it does not say how the channels are reduced:
    `"sum"` keeps the sign, `"abs_sum"` is the common variant.

    Example:
        >>> gradient_x_input(reduction="abs_sum").reduction
        'abs_sum'
    """
    return CaptumMethod(InputXGradient, reduction=reduction, internal_batch_size=internal_batch_size)


def integrated_gradients(n_steps: int = 50, internal_batch_size: int | None = None) -> CaptumMethod:
    """Integrated gradients (Sundararajan et al. 2017) of the logit from the gray image (0), Captum's Gauss-Legendre rule, signed sum.

    Args:
        n_steps: points of the path; Captum's default is 50.
        internal_batch_size: pairs of an image with all its points at a time; None takes about 8 composites, one pair at least.

    Example:
        >>> integrated_gradients().cost().forward_backward
        50
    """
    n_steps = check_integer("n_steps", n_steps, 1)
    size = max(1, 8 // n_steps) if internal_batch_size is None else internal_batch_size
    return CaptumMethod(IntegratedGradients, {"n_steps": n_steps}, internal_batch_size=size, forward_backward=n_steps)

"""Phang, Park and Geras 2020: a small masker over the classifier's features that ignores the label, and a variant that does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salkit.checks import check_settings
from salkit.methods.base import Cost
from salkit.methods.masker import Masker, MaskerMethod, Phase, bordered_variation, conv_block, resize
from salkit.models.classifier import Classifier


@dataclass(frozen=True)
class Phang(MaskerMethod):
    """Masks of a network trained with the classifier fixed (FIX in the source). As published, all labels of an image share one map.

    Each tapped feature map goes through a 1x1 convolution to 64 channels, is upsampled to a quarter of the image's size and
    concatenated; a 3x3 convolution and a sigmoid make the mask, shown at full size by nearest neighbour. The training objective is at
    `PhangNet.loss`.

    Args:
        masker: name or path of a checkpoint, or a `PhangNet`; None takes the shipped one.
        internal_batch_size: pairs a forward pass.
        class_conditional: whether the mask depends on the class, an optional mode of the source.

    Cost: one forward pass of the classifier an image (a pair if class-conditional); training at the source's size 12 epochs of ImageNet.

    Choices where the source is silent: FIX and not the jointly trained CA, because the paper compares on one fixed classifier. In
    class-conditional mode the 64 numbers of a class are a learned linear map of the classifier's weights for it. A free embedding would
    have no meaning for classes without a training image.

    Example:
        >>> Phang().depends_on_label, Phang(class_conditional=True).depends_on_label
        (False, True)
    """

    masker: str | Path | Masker = ""
    internal_batch_size: int = 32
    class_conditional: bool = False
    kind = "phang"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, flags=("class_conditional",))
        if not isinstance(self.masker, Masker) and not str(self.masker):
            name = "phang-conditional-efficientnet-lite0" if self.class_conditional else "phang-efficientnet-lite0"
            object.__setattr__(self, "masker", name)

    @property
    def depends_on_label(self) -> bool:
        """Whether the labels of an image have maps of their own."""
        return self.class_conditional

    def cost(self) -> Cost:
        """One forward pass an image, or a pair if class-conditional."""
        return Cost(forward=1, per="pair" if self.class_conditional else "image")

    def _masks(self, net: Masker, classifier: Classifier, inputs: Tensor, classes: Tensor) -> Tensor:
        if net.settings["class_conditional"] != self.class_conditional:
            raise ValueError(f"masker: expected one trained with class_conditional={self.class_conditional}, got the other kind")
        return super()._masks(net, classifier, inputs, classes)


class PhangNet(Masker):
    """The masker of the published runs, which read the last two stages only.

    Args:
        taps: the classifier's modules that are read, fine to coarse (ResNet50: layer3 and layer4).
        channels: how many channels each of them has.
        classes: number of classes of the classifier.
        width: channels a tap is reduced to.
        class_conditional: whether the class is an input.
        class_width: length of the classifier's weights for a class; with `class_conditional` only.
    """

    kind = "phang"

    def __init__(
        self,
        taps: Sequence[str],
        channels: Sequence[int],
        classes: int | Sequence[int],
        width: int = 64,
        class_conditional: bool = False,
        class_width: int = 0,
    ) -> None:
        super().__init__()
        self.settings = {"taps": list(taps), "channels": list(channels), "width": width, "class_width": class_width}
        self.settings |= {"classes": classes if isinstance(classes, int) else list(classes), "class_conditional": class_conditional}
        extra = width if class_conditional else 0
        self.code = nn.Linear(class_width, width, bias=False) if class_conditional else None
        self.reduce = nn.ModuleList(conv_block(n + extra, width) for n in channels)
        self.last = nn.Conv2d(width * len(channels), 1, 3, padding=1)
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels
            nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
        nn.init.constant_(self.last.bias, 0.0)  # type: ignore[arg-type]

    def masks(self, classifier: Classifier, inputs: Tensor, classes: Tensor) -> Tensor:
        """Masks `(N, 1, H, W)`, constant on squares of 4 x 4 pixels."""
        _, features = self.features(classifier, inputs)
        if self.code is not None:
            self.row(classes.tolist(), inputs.device)  # refuses classes it does not know
        return self._decode(classifier, features, inputs, classes)

    def _decode(self, classifier: Classifier, features: Sequence[Tensor], inputs: Tensor, classes: Tensor) -> Tensor:
        if self.code is not None:
            weights = classifier.class_weights().float()[classes]
            # To deviation 1, as a free embedding starts with.
            code = self.code(F.layer_norm(weights, weights.shape[1:]))[:, :, None, None]
            features = [torch.cat([f, code.expand(-1, -1, *f.shape[-2:])], 1) for f in features]
        side = [max(1, length // 4) for length in inputs.shape[-2:]]
        reduced = [F.interpolate(r(f), side, mode="bilinear", align_corners=False) for r, f in zip(self.reduce, features, strict=True)]
        return resize(self.last(torch.cat(reduced, 1)).sigmoid(), inputs, "nearest")

    def phases(self) -> list[Phase]:
        """60 epochs of a fifth of ImageNet in batches of 72, the rate a tenth after every 20; the source's sizes."""
        steps = 1_281_167 // 5 // 72
        return [Phase("masks", list(self.parameters()), 72, 60 * steps, 20 * steps)]

    def loss(
        self, phase: str, classifier: Classifier, inputs: Tensor, labels: Tensor, generator: torch.Generator, area: float = 1.0
    ) -> Tensor:
        """The published objective for a fixed classifier; hidden pixels are gray (0).

        With m the mean of M and y the true class it is the sum of

        `L_in = CE(z(x M), y) - relu([argmax z(x M) = y] - m) + 0.001 TV(M)`,
        `L_out = -[argmax z(x) = y] H(f(x (1 - M))) - 10 relu([argmax z(x) = y, argmax z(x (1 - M)) != y] - m) + 0.001 TV(M)`,

        means over the batch, H the entropy. The area is penalised only where the mask already works.
        """
        del phase, generator
        whole, features = self.features(classifier, inputs)
        masks = self._decode(classifier, features, inputs, labels)
        inside, outside = classifier.fast(inputs).logits(torch.cat([inputs * masks, inputs * (1 - masks)])).split(len(inputs))
        known, found, lost = whole.argmax(1) == labels, inside.argmax(1) == labels, outside.argmax(1) != labels
        size = masks.mean((1, 2, 3))
        log_outside = outside.log_softmax(1)
        entropy = -(log_outside.exp() * log_outside).sum(1)
        l_in = F.cross_entropy(inside, labels) - area * F.relu(found.float() - size).mean()
        l_out = -(known.float() * entropy).mean() - 10 * area * F.relu((known & lost).float() - size).mean()
        return l_in + l_out + 2 * 0.001 * bordered_variation(masks)

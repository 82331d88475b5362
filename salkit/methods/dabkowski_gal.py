"""Dabkowski and Gal 2017: a network that draws the mask of a class in one forward pass, trained on the classifier's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salkit import masking
from salkit.checks import check_number
from salkit.methods.masker import Masker, MaskerMethod, Phase, bordered_variation, conv_block, resize
from salkit.models.classifier import Classifier


@dataclass(frozen=True)
class DabkowskiGal(MaskerMethod):
    """Real-time saliency with a masking network: the map of a class in one forward pass.

    The coarsest features u are gated by `sigmoid(<u, E_a> - confidence)` with an embedding E of the classes, then decoded by U-Net
    blocks with skips to the finer features; the mask is `|h0| / (|h0| + |h1|)` of two output channels, upsampled bilinearly.
    The training objective is at `DabkowskiGalNet.loss`.

    Args:
        masker: name or path of a checkpoint, or a `DabkowskiGalNet`.
        confidence: the larger, the less is shown; 6 at inference in the released code, 0 in training.
        internal_batch_size: pairs a forward pass.

    Cost: one forward pass of the classifier a pair; training at the source's size about 1.3 million images.

    Choices where the source is silent or inconsistent: images are normalised as for the classifier, in training and at inference (the
    source scales them by 1 in training and by 2 at inference). The skips are normalised: the outputs of EfficientNet's linear bottlenecks
    are ten times larger than the gated features and would drown the class.

    Example:
        >>> DabkowskiGal().confidence
        6.0
    """

    masker: str | Path | Masker = "dabkowski_gal-efficientnet-lite0"
    confidence: float = 6.0
    kind = "dabkowski_gal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("confidence", self.confidence)

    def _masks(self, net: Masker, classifier: Classifier, inputs: Tensor, classes: Tensor) -> Tensor:
        assert isinstance(net, DabkowskiGalNet)
        return net.masks(classifier, inputs, classes, self.confidence)


class DabkowskiGalNet(Masker):
    """Class gate, U-Net decoder and two-channel head over features of a classifier.

    Args:
        taps: the classifier's modules that are read, fine to coarse (ResNet50: layer1 to layer4).
        channels: how many channels each of them has.
        classes: the classes with an embedding: all of the net (a number), or a list of class indices.
        widths: channels of the decoder's outputs, fine to coarse; the source's are 64, 128, 256.

    Raises:
        ValueError: lengths that do not fit, or fewer than two taps or classes.
    """

    kind = "dabkowski_gal"

    def __init__(
        self, taps: Sequence[str], channels: Sequence[int], classes: int | Sequence[int], widths: Sequence[int] = (64, 128, 256)
    ) -> None:
        super().__init__()
        if len(taps) < 2 or len(channels) != len(taps) or len(widths) < len(taps) - 1:
            raise ValueError(f"taps: expected two or more, a channel count each and widths for the skips, got {taps}, {channels}, {widths}")
        n_classes = classes if isinstance(classes, int) else len(classes)
        if n_classes < 2:
            raise ValueError(f"classes: expected at least two, since training takes false ones, got {classes}")
        used = list(widths)[: len(taps) - 1]
        self.settings = {"taps": list(taps), "channels": list(channels), "widths": used}
        self.settings["classes"] = classes if isinstance(classes, int) else list(classes)
        self.embedding = nn.Embedding(n_classes, channels[-1])
        nn.init.normal_(self.embedding.weight, std=channels[-1] ** -0.5)
        deeper = [*used[1:], channels[-1]]
        self.norms = nn.ModuleList(nn.BatchNorm2d(n, affine=False) for n in channels[:-1])
        self.blocks = nn.ModuleList(UpBlock(*sizes) for sizes in zip(deeper, channels[:-1], used, strict=True))
        self.head = nn.Conv2d(used[0], 2, 1)

    def activation(self, top: Tensor, row: Tensor) -> Tensor:
        """`<u, E_a>` at every place of the coarsest features, `(N, h, w)`."""
        return torch.einsum("nchw,nc->nhw", top, self.embedding(row))

    def masks(self, classifier: Classifier, inputs: Tensor, classes: Tensor, confidence: float = 0.0) -> Tensor:
        """Masks `(N, 1, H, W)` of class indices `(N,)`; the confidence is 0 in training."""
        _, features = self.features(classifier, inputs)
        gate = torch.sigmoid(self.activation(features[-1], self.row(classes.tolist(), inputs.device)) - confidence)
        hidden = features[-1] * gate[:, None]
        skips = [norm(skip) for norm, skip in zip(self.norms, features[:-1], strict=True)]
        for block, skip in zip(reversed(self.blocks), reversed(skips), strict=True):
            hidden = block(hidden, skip)
        kept, dropped = self.head(hidden).abs().split(1, 1)
        # The source divides 0 by 0 where both channels vanish.
        return resize(kept / (kept + dropped).clamp_min(1e-12), inputs)

    def phases(self) -> list[Phase]:
        """First the embedding alone, then the decoder; the source's sizes."""
        return [
            Phase("embedding", list(self.embedding.parameters()), 128, 8_500, 4_000),
            Phase("masks", [*self.blocks.parameters(), *self.head.parameters()], 64, 3_000, 1_000_000),
        ]

    def loss(
        self, phase: str, classifier: Classifier, inputs: Tensor, labels: Tensor, generator: torch.Generator, area: float = 1.0
    ) -> Tensor:
        """The released code's objective: `D + 8 A + 0.005 S + 0.3 P`.

        A is the mean of `(M + 0.0005)^0.3`, S the smoothness with the border. P and D are margins of logits on the preserved image
        and on the destroyed one: with `T(t) = relu(z_o - z_y + t)` and `NT(t) = relu(z_y - z_o + t)` for the true class y and the best
        other class o, a true selector asks `P = T(1)`, `D = NT(5)`, a false one (probability 0.3) `P = NT(1)`, `D = T(1)`. In phase
        `"embedding"` it is the cross-entropy of `(-e/2, e/2)`, e the mean activation, for true and false selectors half and half.
        (The paper prints an objective of log-probabilities; the released code has these margins.)
        """
        n, first = len(inputs), phase == "embedding"
        false = (torch.rand(n, generator=generator) < (0.5 if first else 0.3)).to(inputs.device)
        known = self.settings["classes"]
        listed = torch.arange(known) if isinstance(known, int) else torch.tensor(known)
        shift = torch.randint(1, len(listed), (n,), generator=generator).to(inputs.device)
        other = listed.to(inputs.device)[(self.row(labels.tolist(), inputs.device) + shift) % len(listed)]
        selector = torch.where(false, other, labels)
        if first:
            with torch.no_grad():
                top = classifier.features(inputs, self.taps[-1:])[1][0]
            exists = self.activation(top, self.row(selector.tolist(), inputs.device)).mean((1, 2))
            return F.binary_cross_entropy_with_logits(exists, (~false).float())
        masks = self.masks(classifier, inputs, selector)
        noisy = inputs + 0.03 * UNIT * torch.randn(inputs.shape, generator=generator).to(inputs)
        preserved, destroyed = (masking.composite(noisy, kept, _alternative(noisy, generator)) for kept in (masks, 1 - masks))
        z_preserved, z_destroyed = classifier.fast(inputs).logits(torch.cat([preserved, destroyed])).split(n)
        p = torch.where(false, _margin(z_preserved, labels, 1, -1), _margin(z_preserved, labels, 1, 1))
        d = torch.where(false, _margin(z_destroyed, labels, 1, 1), _margin(z_destroyed, labels, 5, -1))
        size = (masks + 0.0005).pow(0.3).mean()
        return d.mean() + 8 * area * size + 0.005 * bordered_variation(masks) + 0.3 * p.mean()


class UpBlock(nn.Module):
    """Twice the size by pixel shuffle, the skip concatenated, one bottleneck residual block."""

    def __init__(self, n_in: int, n_skip: int, n_out: int) -> None:
        super().__init__()
        both, narrow = n_out + n_skip, max(1, n_out // 4)
        self.up = nn.Sequential(*conv_block(n_in, 4 * n_out, 3), nn.PixelShuffle(2), nn.ReLU())
        last = [nn.Conv2d(narrow, n_out, 1, bias=False), nn.BatchNorm2d(n_out)]
        self.residual = nn.Sequential(*conv_block(both, narrow), *conv_block(narrow, narrow, 3), *last)
        self.shortcut = nn.Conv2d(both, n_out, 1)

    def forward(self, hidden: Tensor, skip: Tensor) -> Tensor:
        """`(N, n_in, h, w)` and `(N, n_skip, 2h, 2w)` -> `(N, n_out, 2h, 2w)`."""
        up = self.up(hidden)
        if up.shape[-2:] != skip.shape[-2:]:  # stages whose size does not double
            up = F.interpolate(up, skip.shape[-2:], mode="bilinear", align_corners=False)
        both = torch.cat([up, skip], 1)
        return F.relu(self.residual(both) + self.shortcut(both))


UNIT = 2.2
"""The source's images are in [-1, 1]; one unit there is about 1 / (2 * 0.226) = 2.2 after normalisation by ImageNet's deviations."""


def _alternative(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Infill of hidden pixels in training: for each image a blur (half of the time), or noise of deviation 0.11 around a random colour."""
    n, side = len(inputs), inputs.shape[-1]
    # 55 taps and sigma 11 at 224 pixels; outside the image there is gray.
    blurred = masking.gaussian_blur(inputs, max(1, round(27 * side / 224)), side * 11 / 224, "constant")
    colour = (torch.rand(n, 3, 1, 1, generator=generator) * 2 - 1) * 0.33 * UNIT
    noise = (0.11 * UNIT * torch.randn(inputs.shape, generator=generator) + colour).to(inputs)
    blurs = (torch.rand(n, 1, 1, 1, generator=generator) < 0.5).to(inputs.device)
    return torch.where(blurs, blurred, noise).detach()


def _margin(logits: Tensor, labels: Tensor, margin: float, sign: int) -> Tensor:
    """`relu(sign * (z_o - z_y) + margin)`, o the best class other than y. Sign 1 asks for y above o, -1 for o above y."""
    at: Any = labels[:, None]
    best_other = logits.scatter(1, at, -torch.inf).amax(1)
    return F.relu(sign * (best_other - logits.gather(1, at).squeeze(1)) + margin)

"""The benchmark's nets with their images, the sizes of its runs, and the targets."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from salkit import masking
from salkit.data.files import IMAGENET_SAMPLE_LABELS
from salkit.data.images import load_images
from salkit.models.classifier import Classifier
from salkit.models.zoo import CLASSIFIERS


@dataclass(frozen=True)
class Case:
    """A net, and the sizes of the runs that measure it.

    Args:
        title: name of the net in tables.
        classifier: name for `salkit.models.CLASSIFIERS`.
        data: name for `load_images`.
        labels: the label list.
        scale: upsampling factor of the masks.
        l1: weight of the masks' area.
        n_points: points of a curve, without the empty image.
        batches: pass sizes that the search for the limit tries.
        short: composites of one try in that search.
        long: composites of one run of the limit in a round.
        finalists: how many ways of the search take part in the rounds.
        repeats: rounds.
        pairs: pairs whose masks the kit learns in a run.
        n_steps: steps of learning. The released way takes half as many, of ten composites for each of `released_images`.
        released_images: batch size of the released way.
        curve_pairs: pairs whose curves the kit computes in a run.
        other_curves: curves of the released way, and images of torch-cam, in a run.
        pretrained: False for random weights.
        learning_target: wanted ratio of learning rates, kit over released way.
        curves_targets: wanted ratios of curve rates in float32 and bfloat16.
    """

    title: str
    classifier: str
    data: str
    labels: tuple[int, ...]
    scale: int
    l1: float
    n_points: int
    batches: tuple[int, ...]
    short: int
    long: int
    finalists: int
    repeats: int
    pairs: int
    n_steps: int
    released_images: int
    curve_pairs: int
    other_curves: int
    pretrained: bool = True
    learning_target: float | None = None
    curves_targets: tuple[float, float] | None = None

    def quick(self) -> Case:
        """The same case with very little work: tests that it runs, not how fast."""
        return replace(
            self,
            batches=self.batches[-2:-1],
            long=self.short,
            finalists=1,
            repeats=2,
            pairs=min(8, self.pairs),
            n_steps=1,
            released_images=2,
            curve_pairs=min(4, self.curve_pairs),
            other_curves=1,
        )

    def on_gpu(self) -> Case:
        """The same case with passes and runs that are large enough for a GPU."""
        return replace(
            self,
            batches=tuple(16 * batch for batch in self.batches),
            short=16 * self.short,
            long=16 * self.long,
            pairs=8 * self.pairs,
            curve_pairs=8 * self.curve_pairs,
        )


CASES = {
    "resnet20": Case(
        title="ResNet-20, 32",
        classifier="cifar10-resnet20",
        data="cifar10-samples",
        labels=tuple(range(10)),
        scale=1,
        l1=1e-3,
        n_points=64,
        batches=(32, 64, 128, 256),
        short=512,
        long=4096,
        finalists=2,
        repeats=5,
        pairs=40,
        n_steps=40,
        released_images=10,
        curve_pairs=32,
        other_curves=20,
        learning_target=4.0,
        curves_targets=(1.4, 2.5),
    ),
    "efficientnet": Case(
        title="EfficientNet-Lite0, 224",
        classifier="efficientnet-lite0",
        data="imagenet-samples",
        labels=IMAGENET_SAMPLE_LABELS,
        scale=4,
        l1=2e-5,
        n_points=28,
        batches=(2, 4, 8, 16),
        short=16,
        long=128,
        finalists=2,
        repeats=4,
        pairs=20,
        n_steps=4,
        released_images=10,
        curve_pairs=8,
        other_curves=4,
        learning_target=2.8,
        curves_targets=(2.0, 3.5),
    ),
    # Ten images a batch of the released way would take 10 GB here, for the same rate.
    "resnet50": Case(
        title="ResNet50 (random weights), 224",
        classifier="resnet50",
        data="imagenet-samples",
        labels=IMAGENET_SAMPLE_LABELS,
        scale=4,
        l1=2e-5,
        n_points=28,
        batches=(4, 8),
        short=16,
        long=32,
        finalists=1,
        repeats=3,
        pairs=10,
        n_steps=1,
        released_images=2,
        curve_pairs=4,
        other_curves=1,
        pretrained=False,
    ),
}


@dataclass(frozen=True)
class Material:
    """A case's net and pairs on a device.

    Attributes:
        net: the net as loaded.
        labels: the label list.
        images: `(P, 3, H, W)`, also the pool of distractors.
        ids: their names.
    """

    net: nn.Module
    labels: tuple[int, ...]
    images: Tensor
    ids: tuple[str, ...]

    @cached_property
    def classifier(self) -> Classifier:
        """The kit's classifier, with a softmax over the label list as in the released code."""
        return Classifier(self.net, self.labels, "labels")

    def pairs(self, n: int) -> tuple[Tensor, Tensor, list[str]]:
        """The first `n` pairs: the first image with every label, its most probable one first, then the next image, ..."""
        k = len(self.labels)
        which = torch.arange(n) // k % len(self.images)
        with torch.no_grad():
            best = torch.cat([self.classifier(x).argmax(1) for x in self.images.split(8)]).cpu()
        target = (best[which] + torch.arange(n)) % k
        return self.images[which.to(self.images.device)], target.to(self.images.device), [self.ids[i] for i in which.tolist()]

    def heatmaps(self, n: int) -> Tensor:
        """`n` smooth random maps `(n, H, W)` without ties, with blobs like those of saliency maps."""
        side = self.images.shape[-1]
        noise = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(0))
        return masking.gaussian_blur(noise, side // 8, side / 16).squeeze(1).to(self.images.device)


def load(case: Case, device: str) -> Material:
    """The net and the images of a case; images whose own label is in the list come first."""
    make_net, load_weights = CLASSIFIERS[case.classifier]
    torch.manual_seed(0)
    net = make_net()
    images = load_images(case.data)
    images = images.subset(sorted(range(len(images)), key=lambda i: int(images.labels[i]) not in case.labels))
    if case.pretrained:
        load_weights(net)
    else:
        settle(net, images.images[:8])
    return Material(net.eval().to(device), case.labels, images.images.to(device), images.ids)


@torch.no_grad()
def settle(net: nn.Module, images: Tensor) -> None:
    """Set the batch norms of a net with random weights to the moments of some images. Its logits would overflow otherwise."""
    momenta = {m: m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    for norm in momenta:
        norm.momentum = 1.0
    net.train()(images)
    for norm, momentum in momenta.items():
        norm.momentum = momentum


def plain_net(material: Material, precision: str) -> nn.Module:
    """A copy of the net without the kit's changes: frozen, channels last, in the given precision."""
    net = copy.deepcopy(material.net).requires_grad_(False).to(memory_format=torch.channels_last)
    return net.to(getattr(torch, precision))

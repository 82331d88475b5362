"""What a shard computes: probabilities, maps, curves and crops of some rows, from a classifier and images that travel to where it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from salkit import masking, saliency_metric
from salkit.curves import check_heatmaps, insertion_curves_all_labels
from salkit.engine.store import Arrays, Store
from salkit.methods.base import LearnedMap, SaliencyMethod, method_cost
from salkit.methods.pairs import label_names
from salkit.models.classifier import Classifier, resolve_device
from salkit.models.folding import keep_allocator_pages
from salkit.models.passes import batch_size, pass_by_pass, pass_size, smaller_when_out_of_memory, workers
from salkit.scores import label_correlation


@dataclass(frozen=True, eq=False)
class Source:
    """A classifier, the images it is explained on, and the pool that random-image infill draws from.

    Attributes:
        inputs: `(N, 3, H, W)`, on the CPU.
        ids: a name an image.
        pool: `(P, 3, H, W)`, on the CPU.
        device: where to compute: None where the classifier is, `"auto"` on the GPU of whoever computes if there is one.
        images_per_shard: images whose curves are computed and kept together.
    """

    classifier: Classifier
    inputs: Tensor
    ids: tuple[str, ...]
    pool: Tensor
    device: str | None = None
    images_per_shard: int = 16

    def place(self) -> torch.device:
        """The device it is computed on here."""
        if self.device is None:
            return next((p.device for p in self.classifier.parameters()), self.inputs.device)
        return torch.device(resolve_device(self.device))

    @cached_property
    def ready(self) -> tuple[Classifier, Tensor]:
        """Classifier and pool on that device; the caller's classifier stays where it is."""
        keep_allocator_pages()  # a classifier that was unpickled by a worker has not done so
        classifier, place = self.classifier, self.place()
        if any(p.device != place for p in classifier.parameters()):
            classifier = copy.deepcopy(classifier).to(place)
        return classifier, self.pool.to(place)

    def about(self) -> dict[str, Any]:
        """Where it is computed, for the shards' headers."""
        return {"device": str(self.place()), "threads": torch.get_num_threads(), "torch": torch.__version__}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "ready"}


class Labels(NamedTuple):
    """Which labels of each image matter.

    `targets (N, k)` are scored, `best (N,)` is the place of the most probable of them, and `explained (N, k)` are explained, `(N, 1)` where
    one map serves all.
    """

    targets: Tensor
    best: Tensor
    explained: Tensor


class _PerImage:
    """Rows are images."""

    def shard_size(self, source: Source) -> int:
        return source.images_per_shard

    def row_name(self, source: Source, row: int) -> str:
        return f"image {source.ids[row]}"


@dataclass(frozen=True)
class Probabilities(_PerImage):
    """`prob (N, A)`: probabilities of the label list on whole images."""

    def shard_size(self, source: Source) -> int:
        """Many images: they take a forward pass each."""
        return 32 * source.images_per_shard

    def __call__(self, source: Source, store: Store, start: int, stop: int) -> Arrays:
        """See `salkit.engine.shards.Task`."""
        classifier, _ = source.ready
        return {"prob": _numpy(_probabilities(classifier, source.inputs[start:stop]))}


@smaller_when_out_of_memory
@torch.no_grad()
def _probabilities(classifier: Classifier, inputs: Tensor) -> Tensor:
    device = next((p.device for p in classifier.parameters()), inputs.device)
    fast = classifier.fast(inputs.to(device))
    prob = pass_by_pass(lambda x: fast(x.to(device)).exp(), inputs, batch_size(inputs, device=device.type), device)
    if not torch.isfinite(prob).all():
        raise ValueError("classifier: expected finite logits, got NaN or infinity")
    return prob


@dataclass(frozen=True, eq=False)
class Maps:
    """`map`: what a method learned `(N k, h, w)` float16, or heatmaps `(N k, H, W)` float32 of one that does not learn; rows are pairs.

    Attributes:
        targets: `(N, k)` labels each image is explained for.
    """

    method: SaliencyMethod
    targets: Tensor
    seed: int

    def shard_size(self, source: Source) -> int:
        """As many pairs as go through the net together; all labels of an image where they share the work."""
        each = self.targets.shape[1]
        composites = getattr(self.method, "composites_per_step", 1)
        size = pass_size(source.inputs, composites, getattr(self.method, "internal_batch_size", None), source.place().type)
        size *= workers(source.place())
        return -(-size // each) * each if method_cost(self.method).per == "image" else size

    def row_name(self, source: Source, row: int) -> str:
        """Image and label."""
        i, place = divmod(row, self.targets.shape[1])
        (label,) = label_names(source.classifier, self.targets[i, place : place + 1])
        return f"image {source.ids[i]}, label {label}"

    def __call__(self, source: Source, store: Store, start: int, stop: int) -> Arrays:
        """See `salkit.engine.shards.Task`."""
        rows = torch.arange(start, stop)
        images, target = rows // self.targets.shape[1], self.targets.flatten()[rows]
        return {"map": _numpy(_explain(self.method, source, images, target, self.seed, kept=True))}


@dataclass(frozen=True, eq=False)
class Curves(_PerImage):
    """Curves `insertion`, `deletion`, `blur_insertion`, `blur_deletion`, and `tie_share`, `label_correlation` of the maps of an image.

    Attributes:
        method: whose maps.
        maps: key of the kept maps; None computes them along the way.
        targets: `(N, k)` labels that are scored.
        best: `(N,)` place of the most probable of them.
        explained: `(N, k)` labels that are explained; `(N, 1)` for a method whose map serves all labels.
        n_steps, baseline, seed: of the curves, see `insertion_curve`.
        deletion: also delete, for the most probable label, for all, or not.
        blur_games: also insert and delete with RISE's blur as infill, for the most probable label.
    """

    method: SaliencyMethod
    maps: str | None
    targets: Tensor
    best: Tensor
    explained: Tensor
    n_steps: int | None
    baseline: float
    seed: int
    deletion: Literal["prediction", "all", "none"]
    blur_games: bool

    def __call__(self, source: Source, store: Store, start: int, stop: int) -> Arrays:
        """See `salkit.engine.shards.Task`."""
        classifier, _ = source.ready
        heatmaps = _heatmaps(self.method, self.maps, self.explained, source, store, start, stop, self.seed)
        inputs, targets = source.inputs[start:stop].to(heatmaps.device), self.targets[start:stop].to(heatmaps.device)
        best = self.best[start:stop, None].to(heatmaps.device)
        row = torch.arange(len(inputs), device=heatmaps.device)
        predicted = heatmaps[row, best[:, 0] if heatmaps.shape[1] > 1 else 0][:, None]
        asked = targets.gather(1, best)
        found = {"insertion": self._curves(classifier, inputs, heatmaps, targets, self.baseline)}
        if self.deletion != "none":
            every = self.deletion == "all"
            found["deletion"] = self._curves(
                classifier, inputs, -heatmaps if every else -predicted, targets if every else asked, self.baseline
            )
        if self.blur_games:
            blurred = masking.rise_blur(inputs)
            for game, sign in (("insertion", 1), ("deletion", -1)):
                found[f"blur_{game}"] = self._curves(classifier, inputs, sign * predicted, asked, blurred)[:, 0]
        found["tie_share"] = masking.tie_share(heatmaps.flatten(0, 1)).view(len(inputs), -1)
        found["label_correlation"] = label_correlation(heatmaps, self.seed)
        return {name: _numpy(values) for name, values in found.items()}

    def _curves(self, classifier: Classifier, inputs: Tensor, heatmaps: Tensor, targets: Tensor, baseline: float | Tensor) -> Tensor:
        """Insertion curves `(m, k, points)` for k labels an image from maps `(m, k, H, W)`, or `(m, 1, H, W)` that serve all labels."""
        each = heatmaps.shape[1]
        settings: dict[str, Any] = {"baseline": baseline, "n_steps": self.n_steps, "seed": self.seed, "maps_per_image": each}
        found = insertion_curves_all_labels(classifier, inputs, heatmaps.flatten(0, 1), **settings)
        image = torch.arange(len(inputs), device=inputs.device)[:, None]
        place = torch.arange(targets.shape[1], device=inputs.device) if each > 1 else torch.zeros_like(targets)
        return found.unflatten(0, (len(inputs), each))[image, place, :, targets]


@dataclass(frozen=True, eq=False)
class Crops(_PerImage):
    """The saliency metric of the most probable label's map: `threshold (N, len(alphas))`, and `largest_component (N,)` if asked for."""

    method: SaliencyMethod
    maps: str | None
    targets: Tensor
    best: Tensor
    explained: Tensor
    seed: int
    alphas: tuple[float, ...]
    largest_component: bool = False

    def __call__(self, source: Source, store: Store, start: int, stop: int) -> Arrays:
        """See `salkit.engine.shards.Task`."""
        classifier, _ = source.ready
        best = self.best[start:stop, None]
        explained = self.explained[start:stop]
        target = self.targets[start:stop].gather(1, best).flatten()
        if self.maps is None:
            heatmaps = _heatmaps(self.method, None, self.targets.gather(1, self.best[:, None]), source, store, start, stop, self.seed)
        else:
            heatmaps = _heatmaps(self.method, self.maps, self.explained, source, store, start, stop, self.seed)
            heatmaps = heatmaps[torch.arange(len(best)), best[:, 0] if explained.shape[1] > 1 else 0][:, None]
        call = (classifier, source.inputs[start:stop].to(heatmaps.device), target.to(heatmaps.device), heatmaps[:, 0])
        found = {"threshold": saliency_metric.saliency_metric_by_alpha(*call, self.alphas)}
        if self.largest_component:
            found["largest_component"] = saliency_metric.saliency_metric(*call, rule="largest_component")
        return {name: _numpy(values) for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a table that a function computes in one go, as the only row of its experiment."""

    function: Callable[..., pd.DataFrame]
    settings: Mapping[str, Any]

    def shard_size(self, source: Source) -> int:
        """One."""
        return 1

    def row_name(self, source: Source, row: int) -> str:
        """Its function."""
        return self.function.__name__

    def __call__(self, source: Source, store: Store, start: int, stop: int) -> Arrays:
        """See `salkit.engine.shards.Task`."""
        table = self.function(**self.settings)
        columns = {name: values.to_numpy() for name, values in table.items()}
        arrays = {name: values.astype(str) if values.dtype.kind not in "biuf" else values for name, values in columns.items()}
        return {name: values[None] for name, values in ({"columns": np.array(list(columns))} | arrays).items()}


def maps_are_kept(method: SaliencyMethod) -> bool:
    """Whether a method's maps are worth their space: learned ones, and those of more passes than it takes to read them back."""
    cost = method_cost(method)
    return isinstance(method, LearnedMap) or cost.forward + cost.forward_backward > 100


def _heatmaps(
    method: SaliencyMethod, maps: str | None, explained: Tensor, source: Source, store: Store, start: int, stop: int, seed: int
) -> Tensor:
    """Heatmaps `(stop - start, k, H, W)` of images for the labels they are explained for, read or computed."""
    each, size = explained.shape[1], source.inputs.shape[-2:]
    if maps is None:
        images = torch.arange(start, stop).repeat_interleave(each)
        heatmaps = _explain(method, source, images, explained[start:stop].flatten(), seed, kept=False)
    else:
        kept = torch.from_numpy(store.read(maps, start * each, stop * each)["map"]).to(source.place())
        heatmaps = as_heatmaps(method, kept, size)
    return heatmaps.unflatten(0, (stop - start, each))


def as_heatmaps(method: SaliencyMethod, kept: Tensor, size: Sequence[int]) -> Tensor:
    """Heatmaps `(N, H, W)` from what is kept of a method's maps."""
    return method.heatmaps(kept.float(), size) if isinstance(method, LearnedMap) else kept


def _explain(method: SaliencyMethod, source: Source, images: Tensor, target: Tensor, seed: int, kept: bool) -> Tensor:
    """What a method makes of some pairs: what is kept of it, or heatmaps."""
    classifier, pool = source.ready
    pairs, names = source.inputs[images].to(pool.device), [source.ids[i] for i in images.tolist()]
    learns = kept and isinstance(method, LearnedMap)
    explain = method.learn if learns else method.attribute  # type: ignore[attr-defined]
    found: Tensor = explain(classifier, pairs, target.to(pool.device), distractors=pool, seed=seed, ids=names)
    if not learns:
        check_heatmaps(pairs, found)
    elif not torch.isfinite(found).all():
        raise ValueError("method: expected finite maps, got NaN or infinity")
    return found.detach().half() if learns else found.detach().float()


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()

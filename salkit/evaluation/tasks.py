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
from salkit.methods.base import LearnedMap, SaliencyMethod, heatmaps_one_by_one, method_cost
from salkit.methods.pairs import label_names
from salkit.models.classifier import Classifier, resolve_device
from salkit.models.folding import keep_allocator_pages
from salkit.models.passes import pass_by_pass, pass_size
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
        return {"prob": _numpy(classifier.probabilities(source.inputs[start:stop]))}


@dataclass(frozen=True, eq=False)
class Maps(_PerImage):
    """`map`: what a method learned, `(N, k, h, w)`, or heatmaps `(N, k, H, W)` of one that does not learn; float32.

    Attributes:
        targets: `(N, k)` labels each image is explained for.
    """

    method: SaliencyMethod
    targets: Tensor
    seed: int

    def shard_size(self, source: Source) -> int:
        """As many images as keep all cores (or a GPU) busy to the end."""
        place, composites = source.place(), getattr(self.method, "composites_per_step", 1)
        if place.type == "cpu":
            return torch.get_num_threads()
        together = pass_size(source.inputs, composites, getattr(self.method, "internal_batch_size", None), place)
        return max(1, together // self.targets.shape[1])

    def __call__(self, source: Source, store: Store, start: int, stop: int) -> Arrays:
        """See `salkit.engine.shards.Task`."""
        try:
            return {"map": _numpy(_explain(self.method, source, self.targets, start, stop, self.seed, kept=True))}
        except Exception as error:
            if stop - start == 1:
                error.add_note(self._failing(source, start))
            raise

    def _failing(self, source: Source, row: int) -> str:
        """Which labels of an image fail by themselves, for the message; all of them where only the image as a whole does."""
        names = label_names(source.classifier, self.targets[row])
        failing = []
        for place, name in enumerate(names):
            try:
                _explain(self.method, source, self.targets[:, place : place + 1], row, row + 1, self.seed, kept=True)
            except Exception:
                failing.append(name)
        shown = ", ".join(map(str, failing or names))
        return f"label{'s' if ',' in shown else ''} {shown}"


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
            blurred = pass_by_pass(lambda row: masking.rise_blur(inputs[row]), range(len(inputs)), 1, inputs.device)
            for game, sign in (("insertion", 1), ("deletion", -1)):
                found[f"blur_{game}"] = self._curves(classifier, inputs, sign * predicted, asked, blurred)[:, 0]
        found["tie_share"] = masking.tie_share(heatmaps.flatten(0, 1)).view(len(inputs), -1)
        alike = pass_by_pass(lambda row: label_correlation(heatmaps[row], self.seed), range(len(inputs)), 1, inputs.device)
        found["label_correlation"] = alike
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
    if maps is None:
        return _explain(method, source, explained, start, stop, seed, kept=False)
    kept = torch.from_numpy(store.read(maps, start, stop)["map"]).to(source.place())
    return as_heatmaps(method, kept, source.inputs.shape[-2:])


def as_heatmaps(method: SaliencyMethod, kept: Tensor, size: Sequence[int]) -> Tensor:
    """Heatmaps `(N, k, H, W)` from what is kept of a method's maps, `(N, k, h, w)`."""
    return heatmaps_one_by_one(method, kept.flatten(0, 1), size).unflatten(0, kept.shape[:2]) if isinstance(method, LearnedMap) else kept


def _explain(method: SaliencyMethod, source: Source, explained: Tensor, start: int, stop: int, seed: int, kept: bool) -> Tensor:
    """A method's maps of some images for the labels `explained (N, k)`: what is kept of them, or heatmaps; `(stop - start, k, ...)`."""
    classifier, pool = source.ready
    k, learns = explained.shape[1], kept and isinstance(method, LearnedMap)
    inputs = source.inputs[start:stop].to(pool.device).repeat_interleave(k, 0)
    names = [name for name in source.ids[start:stop] for _ in range(k)]
    explain = method.learn if learns else method.attribute  # type: ignore[attr-defined]
    found: Tensor = explain(classifier, inputs, explained[start:stop].flatten().to(pool.device), distractors=pool, seed=seed, ids=names)
    if not learns:
        check_heatmaps(inputs, found)
    elif not torch.isfinite(found).all():
        raise ValueError("method: expected finite maps, got NaN or infinity")
    return found.detach().float().unflatten(0, (-1, k))


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()

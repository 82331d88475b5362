"""`evaluate`: run methods over all (image, label) pairs and score them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from salkit.checks import check_choice, check_images, check_integer, check_number
from salkit.curves import kept_counts
from salkit.data.images import ImageSet
from salkit.engine.executors import Engine, open_engine, raise_failures
from salkit.engine.identity import canonical, digest
from salkit.engine.store import Store
from salkit.evaluation.planning import PartMaker, Plan, plan_method
from salkit.evaluation.results import PHASES, assemble, find_protocol
from salkit.evaluation.tasks import Labels, Source, as_heatmaps
from salkit.methods import LearnedMask, SaliencyMethod, get_method, same_map_for_all_labels
from salkit.methods.base import check_method
from salkit.methods.masker import MaskerMethod
from salkit.methods.pairs import check_classifier, check_indices, check_precision, image_ids
from salkit.models.classifier import Classifier, resolve_device
from salkit.saliency_metric import ALPHAS
from salkit.scores import Protocol


def evaluate(
    classifier: Classifier,
    images: ImageSet | Tensor,
    methods: Mapping[str, SaliencyMethod] | Sequence[str],
    *,
    targets: Tensor | None = None,
    distractors: ImageSet | Tensor | None = None,
    protocol: Protocol | str = "paper",
    n_steps: int | None = 28,
    baseline: float = 0.0,
    deletion: Literal["prediction", "all", "none"] = "prediction",
    blur_games: bool = False,
    held_out: ImageSet | Tensor | None = None,
    seed: int = 0,
    keep_heatmaps: bool = False,
    keep_curves: bool = False,
    images_per_batch: int = 16,
    device: str | None = None,
    store: str | Path | Store | None = None,
    name: str = "evaluation",
    executor: str = "serial",
    workers: int | None = None,
    show_progress: bool = True,
) -> xr.Dataset:
    """Score saliency methods on all (image, label) pairs.

    With a `store` every finished shard is kept: a run that was stopped goes on where it was, one that is repeated computes nothing, and
    one with another setting computes what depends on it (other thresholds nothing, another number of points no maps).

    Args:
        classifier: its label list gives the labels.
        images: an `ImageSet`, or normalised images `(N, 3, H, W)`.
        methods: name -> method, or names of the registry with default settings.
        targets: `(N, k)` int64, k labels of each image (indices into the label list) instead of all of them; the paper's footnote 3
            suggests the k most probable.
        distractors: pool for random-image infill; None takes `images` (never the explained image itself).
        protocol: a `Protocol` or its name; the thresholds and the AUC rule are used here.
        n_steps: points of a curve, None for every pixel count.
        baseline: what hides a pixel, in normalised space.
        deletion: compute deletion for the predicted label (the paper's column), for all labels, or not at all.
        blur_games: also play insertion and deletion with RISE's blur as infill, for the predicted label.
        held_out: other images, on which the threshold of the saliency metric is chosen for every method; None leaves that metric out.
        seed: of every random draw.
        keep_heatmaps: also return `heatmap` with dims y and x, and `pixels (image, y, x, channel)` of an `ImageSet`.
        keep_curves: also return `insertion_curve` with dim kept.
        images_per_batch: images (with all their labels) whose curves are computed together; changes no number.
        device: where to compute: None where the classifier is, `"auto"` on a GPU if whoever computes has one, else as named.
        store: a folder (or `Store`) to keep results in and to read them from; None keeps nothing.
        name: of this run in the store, for `salkit runs` and `open_results`.
        executor: `"serial"`, `"dask"` for local workers, or the address of a Dask scheduler (`"tcp://host:port"`).
        workers: how many local workers; None for one a GPU, or one a core.
        show_progress: bars over what is computed.

    Returns:
        `prob (image, label)`; `insertion_auc`, `deletion_auc`, `completeness`, `soundness`, `tie_share` `(method, image, label)`;
        `label_correlation (method, image)`; `games (method, image, game, infill, rule)`, the areas for the predicted label under both
        rules; with `held_out` also `saliency_metric (method, image, box)` and `alpha (method)`;
        `prediction (image)`, an index into the labels. What was not asked for is NaN. With `targets` the labels
        are called `label 1` to `label k`, and the coordinate `label_name (image, label)` says which they are.

    Raises:
        TypeError: wrong types.
        ValueError: wrong values, or a classifier or method that does not follow the protocol; nothing has been computed then. Without a
            store also whatever a method raises, or its maps of the wrong shape or not finite.
        ShardError: with a store: pairs that could not be computed, by name, after all others were computed and kept.
        StoreError: the store cannot be written, or holds a manifest that somebody changed.

    Example:
        >>> scores = evaluate(load_classifier("cifar10-resnet20"), load_images("cifar10-samples"), ["random"])  # doctest: +SKIP
        >>> worst_case(scores.soundness).sel({"method": "random"})  # doctest: +SKIP
    """
    chosen, rules = check_methods(methods), find_protocol(protocol)
    inputs, ids, pool = check_scene(classifier, images, distractors)
    check_protocol(classifier, chosen, rules)
    other = None if held_out is None else check_scene(classifier, held_out, pool, "held_out")
    kept, seed, baseline = kept_counts(inputs[0, 0].numel(), n_steps), check_integer("seed", seed), check_number("baseline", baseline)
    check_choice("deletion", deletion, ("prediction", "all", "none"))
    images_per_batch = check_integer("images_per_batch", images_per_batch, 1)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name: expected letters, digits, '_', '.' and '-' (it names a file), got {name!r}")
    if executor == "serial" and device is not None:
        resolve_device(device)
    curve = {"n_steps": len(kept) - 1, "baseline": baseline, "deletion": deletion, "blur_games": blur_games}
    with open_engine(store, executor, workers, show_progress) as engine:
        targets = _check_targets(targets, classifier, inputs)
        sources = [Source(classifier, inputs, ids, pool, device, images_per_batch)]
        maker = PartMaker(name, sources[0], seed)
        every = _probabilities(maker, sources, engine)
        targets = torch.arange(every.shape[1]).expand(len(ids), -1) if targets is None else targets
        best = every.gather(1, targets).argmax(1)
        plans = [plan_method(maker, title, method, targets, best, every, keep_heatmaps, curve) for title, method in chosen.items()]
        if other is not None:
            sources.append(Source(classifier, *other, device, images_per_batch))
            _plan_held_out(PartMaker(f"{name}_held_out", sources[1], seed, 1), sources, plans, engine)
        run = {
            "coords": {"method": list(chosen), "image": list(ids), "kept": kept.tolist()}
            | _label_coords(classifier, images, targets, every.shape[1]),
            "protocol": asdict(rules),
            "attrs": {"n_steps": len(kept) - 1, "seed": seed, "baseline": baseline},
            "prob": maker.probabilities().experiment.key,
            "targets": targets.tolist(),
        }
        failures = []
        _keep_run(engine, name, run, plans)
        for phase in PHASES:
            if phase == "crops":
                for plan in plans:
                    plan.choose_alpha(maker, engine.store)
                _keep_run(engine, name, run, plans)
            parts = [part for plan in plans for part in plan.parts(phase)]
            failures += engine.run(parts, sources, desc=phase)
        raise_failures(failures, engine.store)
        result = assemble(engine.store, run | {"methods": [plan.keys() for plan in plans]})
        if not keep_curves:
            result = result.drop_vars(["insertion_curve", "kept"])
        if keep_heatmaps:
            result["heatmap"] = (("method", "image", "label", "y", "x"), _heatmaps(engine.store, plans, inputs.shape[-2:]))
            if isinstance(images, ImageSet):
                result["pixels"] = (("image", "y", "x", "channel"), images.pixels().numpy())
    return result


def _plan_held_out(maker: PartMaker, sources: Sequence[Source], plans: Sequence[Plan], engine: Engine) -> None:
    """Maps of the held-out images' predictions and their crops for every threshold."""
    prediction = _probabilities(maker, sources, engine, keep=True).argmax(1, keepdim=True)
    labels = Labels(prediction, torch.zeros(len(prediction), dtype=torch.int64), prediction)
    for plan in plans:
        plan.held_maps = None if plan.maps is None else maker.maps(plan.title, plan.method, prediction)
        plan.held_crops = maker.crops(plan.title, plan.method, plan.held_maps, labels, alphas=ALPHAS)


def _keep_run(engine: Engine, name: str, run: Mapping[str, Any], plans: Sequence[Plan]) -> None:
    """Write the run's manifest, named by the first of its experiments' hashes so that other settings get one of their own."""
    methods = [plan.keys() for plan in plans]
    keys = [run["prob"], *(part.experiment.key for plan in plans for phase in PHASES for part in plan.parts(phase))]
    mark = digest(canonical([run["prob"], [m["curves"] for m in methods], [m["held_crops"] for m in methods]]))[:8]
    engine.store.keep_run(f"{name}-{mark}", {**run, "methods": methods, "experiments": keys})


def _heatmaps(store: Store, plans: Sequence[Plan], size: Sequence[int]) -> np.ndarray:
    """Heatmaps of all methods, `(method, image, label, y, x)`, from their kept maps."""
    every = []
    for plan in plans:
        assert plan.maps is not None
        kept = torch.from_numpy(store.read(plan.maps.experiment.key)["map"])
        heatmaps = as_heatmaps(plan.method, kept, size)
        every.append(heatmaps.expand(-1, plan.labels.targets.shape[1], -1, -1))
    return torch.stack(every).numpy()


def _pixels(name: str, images: ImageSet | Tensor) -> Tensor:
    """Images on the CPU; `name` is the argument's, for errors."""
    if not isinstance(images, (ImageSet, Tensor)):
        raise TypeError(f"{name}: expected an ImageSet or a tensor (N, 3, H, W), got {type(images).__name__}")
    inputs = images.images if isinstance(images, ImageSet) else images.detach()
    check_images(name, inputs)
    return inputs.cpu()


def check_scene(
    classifier: Classifier, images: ImageSet | Tensor, distractors: ImageSet | Tensor | None, name: str = "images"
) -> tuple[Tensor, tuple[str, ...], Tensor]:
    """Images, their names (a hash of the pixels for those without) and the pool of distractors (None: the images), all on the CPU.

    Raises:
        TypeError: wrong types.
        ValueError: wrong shapes, none at all, values that are not finite, or distractors of another size than the images.
    """
    check_classifier(classifier)
    inputs = _pixels(name, images)
    check_precision(name, inputs, classifier)
    pool = inputs if distractors is None else _pixels("distractors", distractors)
    if pool.shape[1:] != inputs.shape[1:]:
        expected, got = tuple(inputs.shape[1:]), tuple(pool.shape)
        raise ValueError(f"distractors: expected shape (P, *{expected}), the size of {name}, got {got}")
    return inputs, images.ids if isinstance(images, ImageSet) else tuple(image_ids(inputs)), pool


def check_methods(methods: Mapping[str, SaliencyMethod] | Sequence[str]) -> dict[str, SaliencyMethod]:
    """Methods by name, those of masker networks with their checkpoints.

    Raises:
        TypeError: neither names nor methods.
        ValueError: none at all, an unknown name, or a checkpoint that does not fit.
        FileNotFoundError: a masker's checkpoint that is not there.
    """
    if isinstance(methods, str) or not isinstance(methods, (Mapping, Sequence)):
        got = f"the string {methods!r}" if isinstance(methods, str) else type(methods).__name__
        raise TypeError(f"methods: expected names or a mapping of name to method, got {got}")
    if not methods:
        raise ValueError("methods: expected at least one, got none")
    chosen = dict(methods) if isinstance(methods, Mapping) else {name: get_method(name) for name in methods}
    for name, method in chosen.items():
        if not isinstance(name, str):
            raise TypeError(f"methods: expected names of type str, got {name!r}")
        check_method(f"methods[{name!r}]", method)
        inner = method.method if isinstance(method, same_map_for_all_labels) else method
        if isinstance(inner, MaskerMethod):
            inner.network()
    return chosen


def check_protocol(classifier: Classifier, methods: Mapping[str, SaliencyMethod], protocol: Protocol) -> None:
    """Refuse a classifier or learned mask that does not follow the protocol which the results would be labelled with.

    Raises:
        ValueError: another softmax scope or loss; says what to write instead.
    """
    ours, wanted = classifier.softmax_over, protocol.softmax_over
    if classifier.labels is not None and ours != wanted:
        raise ValueError(
            f"classifier: expected softmax_over={wanted!r}, as the protocol has it, got {ours!r}. Write Classifier(..., "
            f"softmax_over={wanted!r}) (load_classifier takes it, too), or evaluate(..., protocol=Protocol(softmax_over={ours!r}))"
        )
    for name, method in methods.items():
        inner = method.method if isinstance(method, same_map_for_all_labels) else method
        if isinstance(inner, LearnedMask) and inner.loss != protocol.loss:
            raise ValueError(
                f"methods[{name!r}]: expected loss={protocol.loss!r}, as the protocol has it, got {inner.loss!r}. Write "
                f"LearnedMask(loss={protocol.loss!r}), or evaluate(..., protocol=Protocol(loss={inner.loss!r}))"
            )


def explain(
    classifier: Classifier,
    images: ImageSet,
    methods: Mapping[str, SaliencyMethod],
    targets: Tensor,
    *,
    distractors: Tensor,
    engine: Engine,
    name: str = "maps",
    seed: int = 0,
    device: str | None = None,
    run: list[str] | None = None,
) -> dict[str, Tensor]:
    """Heatmaps `(N, H, W)` of several methods for one label an image, `targets (N,)`, kept in the store; arguments as for `evaluate`.

    With `run` its experiments join those of earlier calls in one run's manifest.

    Raises:
        ShardError: with a store: pairs that could not be computed.
    """
    inputs, ids, pool = check_scene(classifier, images, distractors)
    source = Source(classifier, inputs, ids, pool, device)
    maker = PartMaker(name, source, seed)
    parts = {title: maker.maps(title, method, targets.cpu()[:, None]) for title, method in methods.items()}
    keys = [] if run is None else run
    keys += [part.experiment.key for part in parts.values()]
    engine.store.keep_experiments(name, keys)
    raise_failures(engine.run(list(parts.values()), [source], desc=name), engine.store)
    maps = {title: torch.from_numpy(engine.store.read(part.experiment.key)["map"]) for title, part in parts.items()}
    return {title: as_heatmaps(method, maps[title], inputs.shape[-2:])[:, 0] for title, method in methods.items()}


def _probabilities(maker: PartMaker, sources: Sequence[Source], engine: Engine, keep: bool = False) -> Tensor:
    """Probabilities of the label list on the images of the maker's source, `(N, A)`; `keep` as a run of their own."""
    part = maker.probabilities()
    if keep:
        engine.store.keep_experiments(maker.name, [part.experiment.key])
    raise_failures(engine.run([part], sources, desc="probabilities"), engine.store)
    return torch.from_numpy(engine.store.read(part.experiment.key)["prob"])


def probabilities(classifier: Classifier, images: ImageSet | Tensor, engine: Engine | None = None, device: str | None = None) -> Tensor:
    """Probabilities of the label list on whole images, `(N, A)` on the CPU, kept in the engine's store.

    Example:
        >>> probabilities(load_classifier("cifar10-resnet20"), load_images("cifar10-samples")).shape  # doctest: +SKIP
        torch.Size([20, 10])
    """
    if engine is None:
        with open_engine(None, show_progress=False) as own:
            return probabilities(classifier, images, own, device)
    inputs, ids, _ = check_scene(classifier, images, None)
    source = Source(classifier, inputs, ids, inputs[:0], device)
    return _probabilities(PartMaker("probabilities", source, 0), [source], engine, keep=True)


def _check_targets(targets: Tensor | None, classifier: Classifier, inputs: Tensor) -> Tensor | None:
    if targets is None:
        return None
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: expected a torch.Tensor, got {type(targets).__name__}")
    if targets.dtype != torch.int64 or targets.ndim != 2 or len(targets) != len(inputs) or not targets.shape[1]:
        got = f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise ValueError(f"targets: expected int64 of shape ({len(inputs)}, k), got {got}")
    device = next((p.device for p in classifier.parameters()), inputs.device)
    check_indices("targets", targets, classifier.n_labels(inputs[:1].to(device)))
    return targets.cpu()


def _label_coords(classifier: Classifier, images: ImageSet | Tensor, targets: Tensor, n_labels: int) -> dict[str, object]:
    """Names of the labels; where every image has labels of its own, their names a (image, label)."""
    indices = list(range(n_labels) if classifier.labels is None else classifier.labels)
    known = isinstance(images, ImageSet) and len(images.class_names) > max(indices)
    names = np.array([images.class_names[i] if known and isinstance(images, ImageSet) else str(i) for i in indices])
    if len(set(names)) < len(names):
        names = np.array([f"{name} ({i})" for name, i in zip(names, indices, strict=True)])
    if torch.equal(targets, torch.arange(n_labels).expand(len(targets), -1)):
        return {"label": names.tolist()}
    places = [f"label {i + 1}" for i in range(targets.shape[1])]
    return {"label": places, "label_name": names[targets.numpy()].tolist()}

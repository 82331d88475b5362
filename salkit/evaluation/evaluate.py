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

from salkit.checks import check_choice, check_integer, check_number
from salkit.curves import kept_counts
from salkit.data.images import ImageSet
from salkit.engine.executors import Engine, open_engine, raise_failures
from salkit.engine.identity import canonical, digest
from salkit.engine.store import Store
from salkit.evaluation.arguments import check_methods, check_protocol, check_scene, check_targets, label_coords
from salkit.evaluation.jobs import Jobs, MethodJobs
from salkit.evaluation.results import PHASES, assemble, find_protocol
from salkit.evaluation.tasks import Source, as_heatmaps
from salkit.methods import SaliencyMethod
from salkit.models.classifier import Classifier, resolve_device
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
    saliency_metric: bool = False,
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
        saliency_metric: also crop the images as the saliency metric does, for the predicted label. For every image and method the threshold
            is the one that is best for the other images.
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
        rules; `prediction (image)`, an index into the labels. If asked for, `saliency_metric (method, image, box)`, its threshold
        `alpha (method, image)`, and the metric at every threshold, `saliency_metric_by_alpha (method, image, tried)`. What was not asked
        for is NaN. With `targets` the labels
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
    kept, seed, baseline = kept_counts(inputs[0, 0].numel(), n_steps), check_integer("seed", seed), check_number("baseline", baseline)
    check_choice("deletion", deletion, ("prediction", "all", "none"))
    images_per_batch = check_integer("images_per_batch", images_per_batch, 1)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name: expected letters, digits, '_', '.' and '-' (it names a file), got {name!r}")
    if executor == "serial" and device is not None:
        resolve_device(device)
    targets = check_targets(targets, classifier, inputs)
    if not isinstance(saliency_metric, bool):
        raise TypeError(f"saliency_metric: expected True or False, got {saliency_metric!r}")
    curve: dict[str, Any] = {"n_steps": len(kept) - 1, "baseline": baseline, "deletion": deletion, "blur_games": blur_games}
    with open_engine(store, executor, workers, show_progress) as engine:
        source = Source(classifier, inputs, ids, pool, device, images_per_batch)
        jobs = Jobs(name, source, seed)
        prob = _probabilities(jobs, source, engine)
        targets = torch.arange(prob.shape[1]).expand(len(ids), -1) if targets is None else targets
        settings = (targets, prob, keep_heatmaps, saliency_metric)
        methods_jobs = [jobs.of_method(title, method, *settings, **curve) for title, method in chosen.items()]
        run = {
            "coords": {"method": list(chosen), "image": list(ids), "kept": kept.tolist()}
            | label_coords(classifier, images, targets, prob.shape[1]),
            "protocol": asdict(rules),
            "attrs": {"n_steps": len(kept) - 1, "seed": seed, "baseline": baseline},
            "prob": jobs.probabilities().experiment.key,
            "targets": targets.tolist(),
        }
        _compute(engine, name, run, methods_jobs, source)
        result = assemble(engine.store, run | {"methods": [each.keys() for each in methods_jobs]})
        if not keep_curves:
            result = result.drop_vars(["insertion_curve", "kept"])
        if keep_heatmaps:
            result["heatmap"] = (("method", "image", "label", "y", "x"), _heatmaps(engine.store, methods_jobs, inputs.shape[-2:]))
            if isinstance(images, ImageSet):
                result["pixels"] = (("image", "y", "x", "channel"), images.pixels().numpy())
    return result


def _compute(engine: Engine, name: str, run: Mapping[str, Any], methods_jobs: Sequence[MethodJobs], source: Source) -> None:
    """Compute what is missing: maps, then what is measured of them."""
    failures = []
    _keep_run(engine, name, run, methods_jobs)
    for phase in PHASES:
        failures += engine.run([job for each in methods_jobs for job in each.of_phase(phase)], [source], desc=phase)
    raise_failures(failures, engine.store)


def _keep_run(engine: Engine, name: str, run: Mapping[str, Any], methods_jobs: Sequence[MethodJobs]) -> None:
    """Write the run's manifest, named by the first of its experiments' hashes so that other settings get one of their own."""
    methods = [each.keys() for each in methods_jobs]
    keys = [run["prob"], *(job.experiment.key for each in methods_jobs for phase in PHASES for job in each.of_phase(phase))]
    mark = digest(canonical([run["prob"], [m["curves"] for m in methods], [m["crops"] for m in methods]]))[:8]
    engine.store.keep_run(f"{name}-{mark}", {**run, "methods": methods, "experiments": keys})


def _heatmaps(store: Store, methods_jobs: Sequence[MethodJobs], size: Sequence[int]) -> np.ndarray:
    """Heatmaps of all methods, `(method, image, label, y, x)`, from their kept maps."""
    heatmaps_of = []
    for each in methods_jobs:
        assert each.maps is not None
        kept = torch.from_numpy(store.read(each.maps.experiment.key)["map"])
        heatmaps = as_heatmaps(each.method, kept, size)
        heatmaps_of.append(heatmaps.expand(-1, each.labels.targets.shape[1], -1, -1))
    return torch.stack(heatmaps_of).numpy()


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
    jobs = Jobs(name, source, seed)
    parts = {title: jobs.maps(title, method, targets.cpu()[:, None]) for title, method in methods.items()}
    keys = [] if run is None else run
    keys += [part.experiment.key for part in parts.values()]
    engine.store.keep_experiments(name, keys)
    raise_failures(engine.run(list(parts.values()), [source], desc=name), engine.store)
    maps = {title: torch.from_numpy(engine.store.read(part.experiment.key)["map"]) for title, part in parts.items()}
    return {title: as_heatmaps(method, maps[title], inputs.shape[-2:])[:, 0] for title, method in methods.items()}


def _probabilities(jobs: Jobs, source: Source, engine: Engine, keep: bool = False) -> Tensor:
    """Probabilities of the label list on the images of the jobs' source, `(N, A)`; `keep` as a run of their own."""
    job = jobs.probabilities()
    if keep:
        engine.store.keep_experiments(jobs.name, [job.experiment.key])
    raise_failures(engine.run([job], [source], desc="probabilities"), engine.store)
    return torch.from_numpy(engine.store.read(job.experiment.key)["prob"])


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
    return _probabilities(Jobs("probabilities", source, 0), source, engine, keep=True)

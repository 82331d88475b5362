"""What a profile costs: passes through the net counted from its settings, hours estimated from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch

from salkit.curves import insertion_curve
from salkit.evaluation.tasks import maps_are_kept
from salkit.methods import LearnedMask, SaliencyMethod, same_map_for_all_labels
from salkit.methods.base import method_cost
from salkit.methods.masker_training import make_masker, stages, taps_of
from salkit.models.classifier import resolve_device
from salkit.models.passes import pass_size
from salkit.models.zoo import load_classifier
from salkit.saliency_metric import ALPHAS
from salkit.scores import PROTOCOLS
from salkit.studies import profiles
from salkit.studies.experiments import experiments
from salkit.studies.profiles import Study, get_profile

NOTEBOOKS = {
    "00": "00_train_maskers",
    "01": "01_theory_toy_model",
    "02": "02_cifar10_tv_sweep",
    "03": "03_imagenette_table1",
    "04": "04_figures",
    "05": "05_sanity_checks",
    "06": "06_which_protocol",
    "07": "07_cost_and_quality",
}


@dataclass(frozen=True)
class NotebookCost:
    """Cost of one notebook: passes of single images through the net, and hours at the measured rates."""

    notebook: str
    forward: int
    forward_backward: int
    hours: float


def plan(profile: str, device: str = "auto") -> list[NotebookCost]:
    """Count each notebook's passes and estimate its hours from a few steps on this device, with random weights.

    Notebook 01 makes no passes. Where the results of a larger profile are recorded, only what is computed beside them is counted.

    Raises:
        ValueError: unknown profile.
    """
    chosen, device = get_profile(profile), resolve_device(device)
    passes: dict[str, dict[str, tuple[int, int]]] = {}
    for part in experiments(chosen):
        study, on = part.study, passes.setdefault(part.notebook, {})
        counted = count_passes(study, part.methods, part.n_images, part.labels_per_image(), part.keep)
        on[study.classifier] = _sum([on.get(study.classifier, (0, 0)), counted])
    imagenet = chosen.imagenet
    trained = {"00": {imagenet.classifier: _training_passes(imagenet)}, "01": {}}
    sanity = {name: profiles.table1_methods(imagenet, PROTOCOLS["paper"])[name] for name in profiles.SANITY_ROWS}
    randomised = [count_passes(replace(imagenet, n_points=0), sanity, chosen.images["sanity"], 1)] * 14
    passes |= trained | {"05": {imagenet.classifier: _sum(randomised)}}
    seconds = {study.classifier: _seconds_per_pass(study, device) for study in (chosen.cifar10, imagenet)}
    costs = []
    for notebook, parts in sorted(passes.items()):
        hours = sum(f * seconds[net][0] + b * seconds[net][1] for net, (f, b) in parts.items()) / 3600
        costs.append(NotebookCost(NOTEBOOKS[notebook], *_sum(parts.values()), hours))
    return costs


def _sum(passes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    both = list(passes)
    return sum(f for f, _ in both), sum(b for _, b in both)


def _training_passes(study: Study) -> tuple[int, int]:
    """Notebook 00: one forward pass an image; in phases that learn masks also two forward-backward passes."""
    forward = forward_backward = 0
    classifier = load_classifier(study.classifier, pretrained=False)
    for recipe in profiles.masker_recipes(study).values():
        masker = make_masker(classifier, taps_of(study.classifier), recipe, _side(study.classifier))
        for stage in stages(masker, recipe):
            images = stage.batch_size * stage.n_steps
            forward += images
            forward_backward += 2 * images if stage.name == "masks" else 0
    return forward, forward_backward


def count_passes(
    study: Study, methods: Mapping[str, SaliencyMethod], n_images: int, n_labels: int, keep: Mapping[str, Any] = MappingProxyType({})
) -> tuple[int, int]:
    """Forward and forward-backward passes of an evaluation: predictions, maps, curves of `n_points + 1` passes each, and crops.

    Insertion has a curve a pair, or one an image where the map does not depend on the label. Deletion has one an image, the games with
    blur two more. The saliency metric takes at most a pass for every threshold, and once more the maps that are not kept.
    `study.n_points = 0` counts no curves.
    """
    n_points = _side(study.classifier) ** 2 if study.n_points is None else study.n_points
    per_curve, games = n_points + 1 if n_points else 0, 3 if keep.get("blur_games") else 1
    crops = len(ALPHAS) + 1 if keep.get("saliency_metric") else 0
    forward, forward_backward = n_images, 0
    for method in methods.values():
        if isinstance(method, same_map_for_all_labels):  # the predictions are already counted
            method, maps = method.method, n_images
        else:
            maps = n_images * (n_labels if getattr(method, "depends_on_label", True) else 1)
        cost = method_cost(method)
        computed = n_images if cost.per == "image" else maps
        computed += n_images if crops and not maps_are_kept(method) else 0
        forward += (maps + games * n_images) * per_curve + computed * cost.forward + crops * n_images
        forward_backward += computed * cost.forward_backward
    return forward, forward_backward


def _seconds_per_pass(study: Study, device: str) -> tuple[float, float]:
    """Seconds of a forward and of a forward-backward pass of one image, the best of three short runs."""
    classifier = load_classifier(study.classifier, study.labels, device=device, pretrained=False)
    image = torch.randn(3, _side(study.classifier), _side(study.classifier), generator=torch.Generator().manual_seed(0)).to(device)
    # Full batches: a half-empty one costs more time an image.
    inputs = image.repeat(2 * pass_size(image[None]), 1, 1, 1)
    target = torch.zeros(len(inputs), dtype=torch.int64, device=device)
    method = LearnedMask(scale=1, n_steps=3, n_distractors=1, infill="gray")

    def clock(run: Callable[[], object], passes: int) -> float:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            if inputs.is_cuda:
                torch.cuda.synchronize(inputs.device)
            seconds.append(time.perf_counter() - start)
        return min(seconds) / passes

    forward = clock(lambda: insertion_curve(classifier, inputs, target, inputs[:, 0], n_steps=3), 4 * len(inputs))
    return forward, clock(lambda: method.attribute(classifier, inputs, target), 3 * len(inputs))


def _side(classifier: str) -> int:
    return 32 if classifier.startswith("cifar10") else 224

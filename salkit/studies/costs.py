"""What a profile costs: passes through the net counted from its settings, hours estimated from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from salkit.curves import insertion_curve
from salkit.evaluation.tasks import maps_are_kept
from salkit.methods import LearnedMask, SaliencyMethod, same_map_for_all_labels
from salkit.methods.base import method_cost
from salkit.methods.learned_mask import SCHEDULES
from salkit.methods.masker_training import make_masker, stages, taps_of
from salkit.models.classifier import resolve_device
from salkit.models.passes import pass_size
from salkit.models.zoo import load_classifier
from salkit.saliency_metric import ALPHAS
from salkit.scores import PROTOCOLS
from salkit.studies import profiles
from salkit.studies.profiles import Study, get_profile
from salkit.studies.quality import scored_steps


@dataclass(frozen=True)
class NotebookCost:
    """Cost of one notebook: passes of single images through the net, and hours at the measured rates."""

    notebook: str
    forward: int
    forward_backward: int
    hours: float


def plan(profile: str, device: str = "auto") -> list[NotebookCost]:
    """Count each notebook's passes and estimate its hours from a few steps on this device, with random weights.

    Notebook 01 makes no passes. Notebooks 04 and 06 read the results of 03; only what they add is counted.

    Raises:
        ValueError: unknown profile.
    """
    chosen, protocol, device = get_profile(profile), PROTOCOLS["paper"], resolve_device(device)
    cifar10, imagenette = chosen.cifar10, chosen.imagenette
    sweep, table1 = profiles.tv_sweep_methods(cifar10, chosen.tvs, protocol), profiles.table1_methods(imagenette, protocol)
    n, n_labels = imagenette.n_images, len(imagenette.labels or range(10))
    figure2 = profiles.picture_methods(imagenette, protocol, "Ours", "Ours (TV=0.001)", "Ours (cheating)")
    gallery = profiles.picture_methods(imagenette, protocol, "Ours")
    figures = [(figure2, 1, 2), (table1, imagenette.own_label_images, 2), (gallery, 1, n_labels)]
    # The saliency metric: a map of every held-out image and a crop for each threshold, then two crops of every image.
    held_out = count_passes(replace(imagenette, n_points=0), table1, imagenette.held_out, 1)
    # The crops of the images need their maps; those that are not kept are computed again.
    again = count_passes(replace(imagenette, n_points=0), {k: m for k, m in table1.items() if not maps_are_kept(m)}, n, 1)
    crops = len(table1) * (imagenette.held_out * len(ALPHAS) + 2 * n)
    main = count_passes(imagenette, table1, n, n_labels, blur_games=True)
    ours = profiles.our_methods(imagenette, protocol)
    cheap = {name: table1[name] for name in profiles.CHEAP_ROWS}
    grid = [(ours, imagenette.grid_images, n_labels)] * 3 + [(cheap, imagenette.grid_images, n_labels)]
    sanity = {name: table1[name] for name in profiles.SANITY_ROWS}
    passes = {
        "00_train_maskers": _training_passes(imagenette),
        "01_theory_toy_model": (0, 0),
        "02_cifar10_tv_sweep": count_passes(cifar10, sweep, cifar10.n_images, 10),
        "03_imagenette_table1": (main[0] + held_out[0] + again[0] - n + crops, main[1] + held_out[1] + again[1]),
        "04_figures": _sum(count_passes(imagenette, *what) for what in figures),
        "05_sanity_checks": _sum([count_passes(replace(imagenette, n_points=0), sanity, imagenette.sanity_images, 1)] * 13),
        "06_which_protocol": _sum(count_passes(imagenette, *what) for what in grid),
        "07_cost_and_quality": _followed(imagenette),
    }
    on_cifar10 = {"02_cifar10_tv_sweep": passes.pop("02_cifar10_tv_sweep"), "07_cost_and_quality": _followed(cifar10)}
    seconds = {study: _seconds_per_pass(study, device) for study in (cifar10, imagenette)}
    costs = []
    for name in sorted(passes | on_cifar10):
        parts = [(cifar10, on_cifar10.get(name, (0, 0))), (imagenette, passes.get(name, (0, 0)))]
        hours = sum(f * seconds[study][0] + b * seconds[study][1] for study, (f, b) in parts) / 3600
        costs.append(NotebookCost(name, *_sum(part for _, part in parts), hours))
    return costs


def _followed(study: Study) -> tuple[int, int]:
    """Notebook 07: masks learned with both schedules and scored after some of the steps."""
    n, labels_per_image, most = study.followed
    pairs = n * labels_per_image
    methods = [LearnedMask(schedule=name) for name in SCHEDULES]
    steps = [scored_steps(method, most) for method in methods]
    learned = sum(max(of) * method.composites_per_step for of, method in zip(steps, methods, strict=True))
    return n + pairs * sum(map(len, steps)) * (study.followed_points + 1), pairs * learned


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
    study: Study, methods: Mapping[str, SaliencyMethod], n_images: int, n_labels: int, blur_games: bool = False
) -> tuple[int, int]:
    """Forward and forward-backward passes of an evaluation: predictions, maps, and curves of `n_points + 1` passes each.

    Insertion has a curve a pair, or one an image where the map does not depend on the label. Deletion has one an image, the games with
    blur two more. `study.n_points = 0` counts no curves.
    """
    n_points = _side(study.classifier) ** 2 if study.n_points is None else study.n_points
    per_curve, games = n_points + 1 if n_points else 0, 3 if blur_games else 1
    forward, forward_backward = n_images, 0
    for method in methods.values():
        if isinstance(method, same_map_for_all_labels):  # the predictions are already counted
            method, maps = method.method, n_images
        else:
            maps = n_images * (n_labels if getattr(method, "depends_on_label", True) else 1)
        cost = method_cost(method)
        computed = n_images if cost.per == "image" else maps
        forward += (maps + games * n_images) * per_curve + computed * cost.forward
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

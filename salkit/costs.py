"""How much work a profile is: passes counted from its settings, hours from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from salkit.curves import insertion_curve
from salkit.experiment import Study, get_profile, resolve_device, table1_methods, tv_sweep_methods
from salkit.methods import LearnedMask, SaliencyMethod
from salkit.models import load_classifier
from salkit.scores import PROTOCOLS


@dataclass(frozen=True)
class Cost:
    """Work of one notebook: passes of single images through the net, and hours at the measured rates."""

    notebook: str
    forward: int
    forward_backward: int
    hours: float


def plan(profile: str, device: str = "auto") -> list[Cost]:
    """Count the passes of the two big notebooks and estimate their time from a few steps on this device (random weights).

    Raises:
        ValueError: unknown profile.
    """
    chosen, protocol, device = get_profile(profile), PROTOCOLS["paper"], resolve_device(device)
    runs = {
        "02_cifar10_tv_sweep": (chosen.cifar10, tv_sweep_methods(chosen.cifar10, chosen.tvs, protocol)),
        "03_imagenette_table1": (chosen.imagenette, table1_methods(chosen.imagenette, protocol)),
    }
    costs = []
    for notebook, (study, methods) in runs.items():
        forward, forward_backward = count_passes(study, methods)
        per_forward, per_forward_backward = _seconds_per_pass(study, device)
        seconds = forward * per_forward + forward_backward * per_forward_backward
        costs.append(Cost(notebook, forward, forward_backward, seconds / 3600))
    return costs


def count_passes(study: Study, methods: Mapping[str, SaliencyMethod]) -> tuple[int, int]:
    """Forward and forward-backward passes of an evaluation: mask learning, and curves of `n_points + 1` images.

    Insertion takes a curve a pair (a curve an image where the map does not depend on the label), deletion one an image.
    """
    side = 32 if study.classifier.startswith("cifar10") else 224
    points = (side * side if study.n_points is None else study.n_points) + 1
    n_labels = len(study.labels) if study.labels else 10
    forward = study.n_images
    forward_backward = 0
    for method in methods.values():
        maps = study.n_images * (n_labels if getattr(method, "depends_on_label", True) else 1)
        forward += (maps + study.n_images) * points
        inner = getattr(method, "method", method)
        forward_backward += maps * getattr(inner, "forward_backward_passes", 0)
    return forward, forward_backward


def _seconds_per_pass(study: Study, device: str) -> tuple[float, float]:
    """Seconds a forward and a forward-backward pass of one image, the best of three short runs."""
    classifier = load_classifier(study.classifier, study.labels, device=device, pretrained=False)
    side = 32 if study.classifier.startswith("cifar10") else 224
    # As many pairs as fill a few batches, since a half-empty batch is slower a pass.
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256 if side == 32 else 16, 3, side, side, generator=generator).to(device)
    target = torch.zeros(len(inputs), dtype=torch.int64, device=device)
    method = LearnedMask(scale=1, n_steps=3, n_distractors=1, infill="gray")
    heatmaps = inputs[:, 0]

    def clock(run: Callable[[], object], passes: int) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return best / passes

    forward = clock(lambda: insertion_curve(classifier, inputs, target, heatmaps, n_steps=3), 4 * len(inputs))
    return forward, clock(lambda: method.attribute(classifier, inputs, target), 3 * len(inputs))

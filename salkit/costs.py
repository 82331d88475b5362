"""How much work a profile is: passes counted from its settings, hours from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from salkit.curves import insertion_curve
from salkit.experiment import Study, get_profile, picture_methods, resolve_device, table1_methods, tv_sweep_methods
from salkit.methods import LearnedMask, SaliencyMethod
from salkit.methods.learned_mask import default_batch_size
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
    """Count each notebook's passes and estimate its time from a few steps on this device (with random weights).

    Notebook 01 makes no passes; 04 is counted as after 03, whose results it reads.

    Raises:
        ValueError: unknown profile.
    """
    chosen, protocol, device = get_profile(profile), PROTOCOLS["paper"], resolve_device(device)
    cifar10, imagenette = chosen.cifar10, chosen.imagenette
    sweep, table1 = tv_sweep_methods(cifar10, chosen.tvs, protocol), table1_methods(imagenette, protocol)
    n, n_labels = imagenette.n_images, len(imagenette.labels or range(10))
    figure2 = picture_methods(imagenette, protocol, "Ours", "Ours (TV=0.001)", "Ours (cheating)")
    gallery = picture_methods(imagenette, protocol, "Ours")
    figures = [count_passes(imagenette, *what) for what in ((figure2, 1, 2), (table1, n, 2), (gallery, 1, n_labels))]
    passes = {
        "01_theory_toy_model": (0, 0),
        "02_cifar10_tv_sweep": count_passes(cifar10, sweep, cifar10.n_images, 10),
        "03_imagenette_table1": count_passes(imagenette, table1, n, n_labels),
        "04_figures": (sum(f for f, _ in figures), sum(b for _, b in figures)),
    }
    seconds = {"02": _seconds_per_pass(cifar10, device), "03": _seconds_per_pass(imagenette, device)}
    seconds |= {"01": (0.0, 0.0), "04": seconds["03"]}
    return [Cost(name, f, b, (f * seconds[name[:2]][0] + b * seconds[name[:2]][1]) / 3600) for name, (f, b) in passes.items()]


def count_passes(study: Study, methods: Mapping[str, SaliencyMethod], n_images: int, n_labels: int) -> tuple[int, int]:
    """Forward and forward-backward passes of an evaluation: mask learning, and curves of `n_points + 1` images.

    Insertion takes a curve a pair (a curve an image where the map does not depend on the label), deletion one an image.
    """
    side = _side(study)
    points = (side * side if study.n_points is None else study.n_points) + 1
    forward, forward_backward = n_images, 0
    for method in methods.values():
        maps = n_images * (n_labels if getattr(method, "depends_on_label", True) else 1)
        forward += (maps + n_images) * points
        forward_backward += maps * getattr(getattr(method, "method", method), "forward_backward_passes", 0)
    return forward, forward_backward


def _seconds_per_pass(study: Study, device: str) -> tuple[float, float]:
    """Seconds a forward and a forward-backward pass of one image, the best of three short runs."""
    classifier = load_classifier(study.classifier, study.labels, device=device, pretrained=False)
    image = torch.randn(3, _side(study), _side(study), generator=torch.Generator().manual_seed(0)).to(device)
    # Whole batches, since a half-empty one is slower a pass.
    inputs = image.repeat(2 * default_batch_size(image[None]), 1, 1, 1)
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


def _side(study: Study) -> int:
    return 32 if study.classifier.startswith("cifar10") else 224

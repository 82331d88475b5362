"""Mask learning and curves of a net: the kit, its limit, the released way and torch-cam in one round robin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import released
from benchmarks.cases import Case, Material, load
from benchmarks.harness import Contestant, Measurement, Row, Target, round_robin
from benchmarks.limits import PRECISIONS, Limits
from salkit.curves import auc, insertion_curve
from salkit.engine.machine import installed
from salkit.methods import LearnedMask
from salkit.models.classifier import Classifier, Precision, SoftmaxScope

RATE = "composites/s"
OF_LIMIT = Target(0.95)
TORCHCAM_TARGET = Target(2.0)
AUC_TARGET = Target(1e-3, at_least=False)
ALLOCATOR = "same process, so with allocator pages kept, too"


def run_case(case: Case, device: str) -> list[Row]:
    """All rows of a net."""
    if device.startswith("cuda"):
        case = case.on_gpu()
    material = load(case, device)
    limits = Limits(case, material, device)
    return [*learning_rows(case, material, limits, device), *curve_rows(case, material, limits, device)]


def learning_rows(case: Case, material: Material, limits: Limits, device: str) -> list[Row]:
    """Composites per second of mask learning and their ratios."""
    contestants = [way for precision in PRECISIONS for way in limits.best(precision, backward=True)]
    inputs, target, ids = material.pairs(case.pairs)
    for precision in PRECISIONS:
        method = LearnedMask(scale=case.scale, l1=case.l1, n_steps=case.n_steps, precision=precision)
        work = partial(method.learn, material.classifier, inputs, target, distractors=material.images, ids=ids)
        contestants.append(Contestant(f"salkit {precision}", len(inputs) * method.cost().forward_backward, work))
    images, labels, _ = material.pairs(case.released_images)
    draws = torch.randint(len(material.images), (len(images), max(1, case.n_steps // 2), 10), generator=torch.Generator().manual_seed(0))
    draws = draws.to(device)
    work = partial(released.learn_masks, material.net, images, labels, material.images, draws, case.labels, scale=case.scale, l1=case.l1)
    contestants.append(Contestant("released", draws.numel(), work))
    found = round_robin(contestants, case.repeats, device)
    # Learning may choose its precision, so its better one is held against the released way.
    fastest = max(PRECISIONS, key=lambda p: found[f"salkit {p}"].median)
    rows = [*rate_rows(case, "learning", found, ("released", ALLOCATOR)), *limit_rows(case, "learning", found)]
    for precision in PRECISIONS:
        goal = Target(case.learning_target) if case.learning_target and precision == fastest else None
        rows.append(ratio_row(case, "learning", found, f"salkit {precision}", "released", goal))
    return rows


def curve_rows(case: Case, material: Material, limits: Limits, device: str) -> list[Row]:
    """Composites per second of insertion curves, their ratios, and the effect of bfloat16 on the area."""
    contestants = [way for precision in PRECISIONS for way in limits.best(precision, backward=False)]
    inputs, target, _ = material.pairs(case.curve_pairs)
    heatmaps = material.heatmaps(case.curve_pairs)
    for precision, classifier in in_both_precisions(material, case.labels, "labels").items():
        work: Callable[[], object] = partial(insertion_curve, classifier, inputs, target, heatmaps, n_steps=case.n_points)
        contestants.append(Contestant(f"salkit {precision}", len(inputs) * (case.n_points + 1), work))
    n = case.other_curves
    work = partial(released_curves, material.net, inputs[:n], target[:n], heatmaps[:n], case.labels, case.n_points)
    contestants.append(Contestant("released", n * case.n_points, work))
    missing = ""
    if installed("torchcam"):
        work = partial(torchcam_areas, material.net, inputs[:n], target[:n], heatmaps[:n], case.labels, case.n_points)
        contestants.append(Contestant("torchcam", torchcam_composites(n, inputs.shape[-1] ** 2, case.n_points), work))
    else:
        missing = "torchcam is not installed: pip install torchcam==0.5.0"
    found = round_robin(contestants, case.repeats, device)
    notes = (
        ("released", f"one image at a time, an argsort and a mask a point; {ALLOCATOR}"),
        ("torchcam", "DeletionInsertionMetric, both of its curves counted"),
    )
    rows = [*rate_rows(case, "curves", found, *notes), *limit_rows(case, "curves", found)]
    for precision, bound in zip(PRECISIONS, case.curves_targets or (None, None), strict=True):
        rows.append(ratio_row(case, "curves", found, f"salkit {precision}", "released", Target(bound) if bound else None))
    goal = TORCHCAM_TARGET if case.curves_targets else None
    rows.append(ratio_row(case, "curves", found, "salkit float32", "torchcam", goal, missing))
    return [*rows, *effect_rows(case, material, inputs, target, heatmaps)]


class InBfloat16(Classifier):
    """Computes curves in bfloat16. The kit does not offer this, because it moves areas too far (`effect_rows`)."""

    def fast(self, inputs: Tensor, precision: Precision = "float32") -> Classifier:
        """The twin in bfloat16; `precision` is ignored."""
        return super().fast(inputs, "bfloat16")


def in_both_precisions(material: Material, labels: Sequence[int], scope: SoftmaxScope) -> dict[Precision, Classifier]:
    """The kit's classifier, and one that computes curves in bfloat16."""
    return {"float32": Classifier(material.net, labels, scope), "bfloat16": InBfloat16(material.net, labels, scope)}


def effect_rows(case: Case, material: Material, inputs: Tensor, target: Tensor, heatmaps: Tensor) -> list[Row]:
    """How far bfloat16 moves areas under both softmax scopes; no rows for random weights, whose areas mean nothing."""
    if not case.pretrained:
        return []
    rows = []
    # The ten labels of CIFAR-10 are all of its classes.
    scopes: tuple[SoftmaxScope, ...] = ("labels",) if case.data == "cifar10-samples" else ("labels", "all")
    for scope in scopes:
        both = in_both_precisions(material, case.labels, scope).values()
        areas = [auc(insertion_curve(classifier, inputs, target, heatmaps, n_steps=case.n_points)) for classifier in both]
        apart = areas[1] - areas[0]
        note = f"{len(inputs)} pairs, mean AUC {areas[0].mean():.3f}"
        for name, moved in (
            ("mean over pairs", apart.abs().mean()),
            ("max over pairs", apart.abs().max()),
            ("the mean AUC", apart.mean().abs()),
        ):
            found = Measurement(name, (moved.item(),))
            rows.append(
                Row(case.title, "curves", f"bfloat16 moves the AUC (softmax over {scope}): {name}", found, AUC_TARGET, note, "probability")
            )
    return rows


def rate_rows(case: Case, task: str, found: dict[str, Measurement], *notes: tuple[str, str]) -> list[Row]:
    """One row per contestant."""
    about = dict(notes)
    return [Row(case.title, task, name, rate, note=about.get(name, ""), unit=RATE) for name, rate in found.items()]


def limit_rows(case: Case, task: str, found: dict[str, Measurement]) -> list[Row]:
    """The kit over the best bare net of the same precision."""
    rows = []
    for precision in PRECISIONS:
        ways = [name for name in found if name.startswith(f"limit {precision}")]
        best = max(ways, key=lambda name: found[name].median)
        goal = OF_LIMIT if case.curves_targets else None
        rows.append(ratio_row(case, task, found, f"salkit {precision}", best, goal, best.partition(": ")[2], "limit"))
    return rows


def ratio_row(
    case: Case,
    task: str,
    found: dict[str, Measurement],
    of: str,
    over: str,
    target: Target | None,
    note: str = "",
    title: str | None = None,
) -> Row:
    """A row with the ratio of two contestants, without a number if one of them did not run."""
    name = f"{of} / {title or over}"
    measured = found[of].over(found[over], name) if of in found and over in found else None
    return Row(case.title, task, name, measured, target, note)


def released_curves(net: nn.Module, images: Tensor, target: Tensor, heatmaps: Tensor, labels: Sequence[int], n_points: int) -> Tensor:
    """Curves of several pairs, one after the other, `(n, n_points)`."""
    triples = zip(images, target.tolist(), heatmaps, strict=True)
    return torch.stack([released.insertion_curve(net, image, label, heatmap, labels, n_points) for image, label, heatmap in triples])


class StoredMaps:
    """An extractor for torch-cam's metric that returns given maps.

    Args:
        model: the net.
        heatmaps: `(N, H, W)`, one for each image of the next update.
    """

    def __init__(self, model: nn.Module, heatmaps: Tensor) -> None:
        self.model, self.heatmaps = model, heatmaps

    def __call__(self, *arguments: Any, **settings: Any) -> list[Tensor]:
        """The given maps."""
        return [self.heatmaps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        """The maps of the only layer."""
        return cams[0]

    def _hooks_off(self) -> AbstractContextManager[None]:
        return nullcontext()


def torchcam_areas(
    net: nn.Module, images: Tensor, target: Tensor, heatmaps: Tensor, labels: Sequence[int], n_points: int
) -> dict[str, float]:
    """Mean deletion and insertion areas by torch-cam's metric."""
    from torchcam.metrics import DeletionInsertionMetric

    columns = list(labels)
    metric = DeletionInsertionMetric(StoredMaps(net, heatmaps), lambda logits: logits[:, columns].softmax(1), steps=n_points)
    metric.update(images, target.tolist())
    return metric.summary()


def torchcam_composites(n: int, n_pixels: int, n_points: int) -> int:
    """Images that the metric sends through the net: the whole one, the empty one, and the points between them for both curves."""
    between = len(range(0, n_pixels, -(-n_pixels // n_points))) - 1
    return n * (2 + 2 * between)

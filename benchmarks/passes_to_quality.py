"""Passes to quality: scores of learned masks against the composites spent on them, one CSV row a (pair, number of composites).

    python benchmarks/passes_to_quality.py cifar10 paper --out cifar10-paper.csv

Pairs are computed image by image and written as they come, so that a run that is stopped leaves whole images behind and goes on from them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor

from salkit.curves import auc, insertion_curve
from salkit.data import load_images
from salkit.image_files import IMAGENET_SAMPLE_LABELS
from salkit.methods import LearnedMask
from salkit.models import Classifier, load_classifier
from salkit.passes import pass_size


@dataclass(frozen=True)
class Case:
    """What masks are learned for: a net, its images, labels an image, and the settings of mask and curves."""

    data: str
    classifier: str
    labels: tuple[int, ...] | None
    labels_per_image: int
    n_points: int
    scale: int
    l1: float


CASES = {
    "cifar10": Case("cifar10-samples", "cifar10-resnet20", None, 4, 64, 1, 1e-3),
    "imagenet": Case("imagenet-samples", "efficientnet-lite0", IMAGENET_SAMPLE_LABELS, 2, 28, 4, 2e-5),
}
SHARES = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Of a run's steps, after which masks are scored."""


def targets_of(prob: Tensor, label: int, n: int) -> list[int]:
    """The true label, the most probable other one, and those that follow the true one in the list."""
    other = next(a for a in prob.argsort(descending=True).tolist() if a != label)
    following = [(label + i) % len(prob) for i in range(1, len(prob))]
    return [label, other, *(a for a in following if a != other)][:n]


def learn(
    method: LearnedMask, classifier: Classifier, inputs: Tensor, target: Tensor, pool: Tensor, ids: list[str], seed: int
) -> dict[int, Tensor]:
    """Heatmaps `(n, H, W)` after some of the steps: composites spent a pair -> heatmaps."""
    hides, draws = method._infills(classifier, inputs, target, pool, seed, ids)
    fast = classifier.fast(inputs, "float32")
    wanted = {max(1, round(share * method.n_steps)) for share in SHARES}
    found: dict[int, list[Tensor]] = {}
    for i in torch.arange(len(inputs)).split(pass_size(inputs, method.composites_per_step)):
        for step, logits in enumerate(method._steps(fast, inputs[i], target[i], hides, draws[i]), 1):
            if step in wanted:
                heatmaps = method.heatmaps(logits.detach().squeeze(1).half().float(), inputs.shape[-2:])
                found.setdefault(step * method.composites_per_step, []).append(heatmaps)
    return {spent: torch.cat(heatmaps) for spent, heatmaps in found.items()}


def main(
    case: str,
    name: str,
    out: Annotated[Path, typer.Option()],
    seed: int = 0,
    n: int = 20,
    settings: Annotated[str, typer.Option(help="of LearnedMask, as in a call")] = "",
) -> None:
    """Learn masks with one schedule and append their scores to a CSV file."""
    chosen = CASES[case]
    images = load_images(chosen.data) if chosen.labels is None else load_images(chosen.data).with_labels(chosen.labels)
    classifier = load_classifier(chosen.classifier, chosen.labels, "all")
    pool = load_images(chosen.data).images
    method = LearnedMask(**({"scale": chosen.scale, "l1": chosen.l1} | eval(f"dict({settings})")))
    with torch.no_grad():
        prob = classifier(images.images).exp()
    done = set(pd.read_csv(out).image) if out.exists() else set()
    columns = list(range(prob.shape[1]) if chosen.labels is None else chosen.labels)
    for i in [i for i in range(min(n, len(images.ids))) if images.ids[i] not in done]:
        target = torch.tensor(targets_of(prob[i], columns.index(int(images.labels[i])), chosen.labels_per_image))
        k = len(target)
        inputs, ids = images.images[i].expand(k, -1, -1, -1).contiguous(), [images.ids[i]] * k
        start = time.perf_counter()
        rows = []
        for spent, heatmaps in learn(method, classifier, inputs, target, pool, ids, seed).items():
            g = auc(insertion_curve(classifier, inputs, target, heatmaps, n_steps=chosen.n_points))
            best = prob[i].argmax().expand(1)
            for j in range(k):
                predicted = g[j].item() if target[j] == best else float("nan")
                f = prob[i, target[j]].item()
                rows.append([case, name, seed, images.ids[i], target[j].item(), spent, f, g[j].item(), predicted])
        seconds = time.perf_counter() - start
        table = pd.DataFrame(rows, columns=["case", "schedule", "seed", "image", "label", "composites", "f", "g", "insertion"])
        table.to_csv(out, mode="a", header=not out.exists(), index=False)
        print(f"{images.ids[i]}: {k} pairs in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)

"""Passes to quality at full length: `python -m benchmarks.passes_to_quality cifar10 paper --out paper.csv`.

Each image is written when it is done. A run that was stopped goes on with the next image.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from salkit.commands.options import name_and_value
from salkit.data.files import IMAGENET_SAMPLE_LABELS
from salkit.data.images import load_images
from salkit.methods import LearnedMask
from salkit.models.zoo import load_classifier
from salkit.studies.quality import learning_quality


@dataclass(frozen=True)
class Case:
    """A net with its images, and the settings of masks and curves."""

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


def main(
    case: Annotated[str, typer.Argument(help=f"{' or '.join(CASES)}.")],
    schedule: Annotated[str, typer.Argument(help="paper or settled.")],
    out: Annotated[Path, typer.Option(help="CSV file that rows are appended to.")],
    name: Annotated[str, typer.Option(help="What the schedule is called there; default as it is.")] = "",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    n: Annotated[int | None, typer.Option(help="How many images; default all.")] = None,
    data: Annotated[str, typer.Option(help="folder:PATH, other images than the packaged ones (which stay the distractors).")] = "",
    setting: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, another setting of LearnedMask.")] = None,
    most: Annotated[int | None, typer.Option(help="Composites a pair at which to stop.")] = None,
) -> None:
    """Learn masks with one schedule and append their scores along the way."""
    chosen = CASES[case]
    pool = load_images(chosen.data)
    images = load_images(data, preprocessing=case) if data else pool
    images = images if chosen.labels is None else images.with_labels(chosen.labels)
    classifier = load_classifier(chosen.classifier, chosen.labels, "all")
    settings = {"schedule": schedule, "precision": precision, "scale": chosen.scale, "l1": chosen.l1}
    settings |= dict(name_and_value("set", s) for s in setting or [])
    methods = {name or schedule: LearnedMask(**settings)}  # type: ignore[arg-type]
    done = set()
    if out.exists():
        kept = pd.read_csv(out)
        done = set(kept[(kept.case == case) & (kept.schedule == (name or schedule)) & (kept.seed == seed)].image)
    for i in range(len(images) if n is None else min(n, len(images))):
        if images.ids[i] not in done:
            start = time.perf_counter()
            sizes = (chosen.labels_per_image, chosen.n_points)
            rows = learning_quality(classifier, images.subset([i]), pool, methods, *sizes, seed=seed, most=most)
            rows.insert(0, "case", case)
            rows.to_csv(out, mode="a", header=not out.exists(), index=False)
            typer.echo(f"{images.ids[i]}: {chosen.labels_per_image} pairs in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)

"""How time and peak memory grow with images, labels, image size and points, each measured in a process of its own.

python -m benchmarks.scaling '{"task": "learning", "images": 4}'        # one of them, as JSON
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import released
from benchmarks.cases import CASES, Material, load
from benchmarks.harness import ROOT, seconds
from benchmarks.speed import released_curves
from salkit.curves import insertion_curve
from salkit.kernels import keep_allocator_pages
from salkit.methods import LearnedMask

CASE = CASES["efficientnet"]
N_STEPS, N_DISTRACTORS = 2, 10


@dataclass(frozen=True)
class Work:
    """A piece of work for EfficientNet-Lite0.

    Args:
        task: a name of `TASKS`.
        images: how many.
        labels: how many of each image; pairs are images times labels.
        side: of the images, in pixels.
        n_points: of a curve.
        keep_pages: whether the allocator keeps its pages, as it does wherever the kit is used.
    """

    task: str
    images: int = 2
    labels: int = 2
    side: int = 224
    n_points: int = CASE.n_points
    keep_pages: bool = True

    @property
    def pairs(self) -> int:
        """How many."""
        return self.images * self.labels


@dataclass(frozen=True)
class Growth:
    """What a piece of work took: on one axis from the first, as a table shows it."""

    axis: str
    work: Work
    composites: int
    seconds: float
    megabytes: float

    def cells(self) -> list[str]:
        """For a table."""
        w = self.work
        sizes = [str(value) for value in (w.images, w.labels, w.side, w.n_points if "curves" in w.task else "-")]
        rate = f"{self.composites / self.seconds:.1f}"
        return [w.task, self.axis, *sizes, str(self.composites), f"{self.seconds:.2f}", rate, f"{self.megabytes:.0f}"]

    def record(self) -> dict[str, object]:
        """For the JSON file."""
        return asdict(self)


HEADER = ["task", "grows", "images", "labels", "side", "points", "composites", "seconds", "composites/s", "peak MB"]


def plan(quick: bool) -> list[tuple[str, Work]]:
    """What is measured and which axis it is for; the released way with the allocator both ways."""
    base = [Work("learning"), Work("curves")]
    others = [Work(f"released {work.task}", keep_pages=kept) for work in base for kept in (True, False)]
    works = [("-", work) for work in base]
    if not quick:
        for work in base:
            works += [("images", replace(work, images=n)) for n in (1, 4)]
            works += [("labels", replace(work, labels=n)) for n in (1, 4)]
            works += [("side", replace(work, side=side)) for side in (112, 160)]
        works += [("points", replace(base[1], n_points=n)) for n in (14, 56)]
        works += [("pages kept" if work.keep_pages else "allocator as found", work) for work in others]
    return works


def grow(device: str, quick: bool) -> list[Growth]:
    """Measure the plan; memory is what a process takes beyond one that only loads the net and the images."""
    nothing = {side: _in_process(Work("nothing", side=side), device)[1] for side in {work.side for _, work in plan(quick)}}
    found = []
    for axis, work in plan(quick):
        taken, peak = _in_process(work, device)
        found.append(Growth(axis, work, TASKS[work.task][0](work), taken, (peak - nothing[work.side]) / 2**20))
    return found


def pairs(work: Work, material: Material) -> tuple[Tensor, Tensor, list[str]]:
    """Every image with each of its labels."""
    images = material.images[: work.images].repeat_interleave(work.labels, 0)
    target = torch.arange(work.labels, device=images.device).repeat(work.images)
    return images, target, [name for name in material.ids[: work.images] for _ in range(work.labels)]


def learn(work: Work, material: Material) -> None:
    """Masks of the kit."""
    inputs, target, ids = pairs(work, material)
    method = LearnedMask(scale=CASE.scale, l1=CASE.l1, n_steps=N_STEPS, n_distractors=N_DISTRACTORS)
    method.learn(material.classifier, inputs, target, distractors=material.images, ids=ids)


def evaluate(work: Work, material: Material) -> None:
    """Curves of the kit."""
    inputs, target, _ = pairs(work, material)
    insertion_curve(material.classifier, inputs, target, material.heatmaps(work.pairs), n_steps=work.n_points)


def released_learn(work: Work, material: Material) -> None:
    """Masks the released way, all pairs in one batch."""
    inputs, target, _ = pairs(work, material)
    draws = torch.randint(len(material.images), (work.pairs, N_STEPS, N_DISTRACTORS), device=inputs.device)
    released.learn_masks(material.net, inputs, target, material.images, draws, CASE.labels, scale=CASE.scale, l1=CASE.l1)


def released_evaluate(work: Work, material: Material) -> None:
    """Curves the released way."""
    inputs, target, _ = pairs(work, material)
    released_curves(material.net, inputs, target, material.heatmaps(work.pairs), CASE.labels, work.n_points)


TASKS: dict[str, tuple[Callable[[Work], int], Callable[[Work, Material], None]]] = {
    "nothing": (lambda work: 0, lambda work, material: None),
    "learning": (lambda work: work.pairs * N_STEPS * N_DISTRACTORS, learn),
    "curves": (lambda work: work.pairs * (work.n_points + 1), evaluate),
    "released learning": (lambda work: work.pairs * N_STEPS * N_DISTRACTORS, released_learn),
    "released curves": (lambda work: work.pairs * work.n_points, released_evaluate),
}
"""Name -> how many composites, and how to do it."""


def measure(work: Work, device: str) -> tuple[float, int]:
    """Seconds of the second run, and the most memory that this process (or its GPU) has had, in bytes."""
    material = load(CASE, device)
    if work.keep_pages:
        keep_allocator_pages()
    if work.side != material.images.shape[-1]:
        material = replace(material, images=F.interpolate(material.images, size=work.side, mode="bilinear", antialias=True))
    run = TASKS[work.task][1]
    run(work, material)
    taken = seconds(lambda: run(work, material), device)
    if device.startswith("cuda"):
        return taken, torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return taken, peak if sys.platform == "darwin" else peak * 1024


def _in_process(work: Work, device: str) -> tuple[float, int]:
    command = [sys.executable, "-m", "benchmarks.scaling", json.dumps(asdict(work)), device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    taken, peak = json.loads(done.stdout)
    return taken, peak


if __name__ == "__main__":
    print(json.dumps(measure(Work(**json.loads(sys.argv[1])), *(sys.argv[2:] or ["cpu"]))))

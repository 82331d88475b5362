"""Time and peak memory against images, labels, image size and points, each measured in a separate process.

python -m benchmarks.scaling '{"task": "learning", "images": 4}'        # one measurement, as JSON
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import released
from benchmarks.cases import CASES, Case, Material, load
from benchmarks.harness import ROOT, Measurement, Row, Target, seconds, table
from benchmarks.speed import RATE, released_curves
from salkit.curves import insertion_curve
from salkit.methods import LearnedMask
from salkit.models.folding import keep_allocator_pages

N_STEPS, N_DISTRACTORS = 2, 10


@dataclass(frozen=True)
class Work:
    """The work of one measurement.

    Args:
        task: a name of `TASKS`.
        images: number of images.
        labels: number of labels of each image; pairs are images times labels.
        side: side of the images in pixels.
        n_points: points of a curve.
        keep_pages: whether the allocator keeps its pages, the kit's setting.
        case: a name of `CASES`.
    """

    task: str
    images: int = 2
    labels: int = 2
    side: int = 224
    n_points: int = 28
    keep_pages: bool = True
    case: str = "efficientnet"

    @property
    def of(self) -> Case:
        """Net and settings."""
        return CASES[self.case]

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.images * self.labels


@dataclass(frozen=True)
class Growth:
    """Time and memory of a piece of work; `axis` names the size in which it differs from the first work of its task."""

    axis: str
    work: Work
    composites: int
    seconds: float
    megabytes: float

    def cells(self, first: Growth) -> list[str]:
        """For a table, with ratios to the first work of the task."""
        w = self.work
        sizes = [str(value) for value in (w.images, w.labels, w.side, w.n_points if "curves" in w.task else "-")]
        time = [f"{self.seconds:.2f}", f"{self.seconds / first.seconds:.2f}"]
        memory = [f"{self.megabytes:.0f}", f"{self.megabytes / first.megabytes:.2f}"]
        return [w.task, self.axis, *sizes, str(self.composites), *time, f"{self.composites / self.seconds:.1f}", *memory]

    def record(self) -> dict[str, object]:
        """For the JSON file."""
        return asdict(self)


def growth_table(found: list[Growth]) -> str:
    """In Markdown."""
    sizes = ["images", "labels", "side", "points", "composites"]
    header = ["task", "other", *sizes, "seconds", "x", "composites/s", "peak MB", "x"]
    first: dict[str, Growth] = {}
    return table(header, [g.cells(first.setdefault(g.work.task, g)) for g in found])


def plan(quick: bool) -> list[tuple[str, Work]]:
    """All works with the axis they measure; the released way with and without the kit's allocator settings."""
    works = []
    for work in (Work("learning"), Work("curves")):
        works.append(("", work))
        if not quick:
            works += [("images", replace(work, images=4)), ("labels", replace(work, labels=4)), ("side", replace(work, side=112))]
    if not quick:
        works.append(("points", replace(work, n_points=2 * work.n_points)))
        for task in ("released learning", "released curves"):
            works += [("", Work(task)), ("allocator as found", Work(task, keep_pages=False))]
    return works


def grow(device: str, quick: bool) -> list[Growth]:
    """Measure the plan. Memory is the peak of a process minus that of one that only loads the net and the images."""
    _, nothing = _in_process(Work("nothing"), device)
    found = []
    for axis, work in plan(quick):
        taken, peak = _in_process(work, device)
        found.append(Growth(axis, work, TASKS[work.task][0](work), taken, (peak - nothing) / 2**20))
    return found


def as_found_rows(name: str, rows: Sequence[Row], device: str) -> list[Row]:
    """The kit's rates over those of the released way in a process without the kit's allocator settings, as its users run it."""
    case, found = CASES[name], []
    for task, goals in (("learning", (case.learning_target, case.learning_target)), ("curves", case.curves_targets or (None, None))):
        side = 32 if case.data == "cifar10-samples" else 224
        work = Work(f"released {task}", images=4, side=side, case=name, keep_pages=False)
        rate = TASKS[work.task][0](work) / _in_process(work, device)[0]
        for precision, goal in zip(("float32", "bfloat16"), goals, strict=True):
            ours = next(r.found for r in rows if (r.task, r.name, r.unit) == (task, f"salkit {precision}", RATE))
            ratio = None if ours is None else Measurement("", tuple(value / rate for value in ours.values))
            note = f"{rate:.0f} composites/s in a process of its own"
            title = f"salkit {precision} / released, allocator as found"
            found.append(Row(case.title, task, title, ratio, Target(goal) if goal else None, note))
    return found


def pairs(work: Work, material: Material) -> tuple[Tensor, Tensor, list[str]]:
    """Images, labels and names of all pairs."""
    images = material.images[: work.images].repeat_interleave(work.labels, 0)
    target = torch.arange(work.labels, device=images.device).repeat(work.images)
    return images, target, [name for name in material.ids[: work.images] for _ in range(work.labels)]


def learn(work: Work, material: Material) -> None:
    """Learn the masks of a work with the kit."""
    inputs, target, ids = pairs(work, material)
    method = LearnedMask(scale=work.of.scale, l1=work.of.l1, n_steps=N_STEPS, n_distractors=N_DISTRACTORS)
    method.learn(material.classifier, inputs, target, distractors=material.images, ids=ids)


def evaluate(work: Work, material: Material) -> None:
    """Compute the curves of a work with the kit."""
    inputs, target, _ = pairs(work, material)
    insertion_curve(material.classifier, inputs, target, material.heatmaps(work.pairs), n_steps=work.n_points)


def released_learn(work: Work, material: Material) -> None:
    """Learn the masks of a work the released way, all pairs in one batch."""
    inputs, target, _ = pairs(work, material)
    draws = torch.randint(len(material.images), (work.pairs, N_STEPS, N_DISTRACTORS), device=inputs.device)
    settings = {"scale": work.of.scale, "l1": work.of.l1}
    released.learn_masks(material.net, inputs, target, material.images, draws, work.of.labels, **settings)  # type: ignore[arg-type]


def released_evaluate(work: Work, material: Material) -> None:
    """Compute the curves of a work the released way."""
    inputs, target, _ = pairs(work, material)
    released_curves(material.net, inputs, target, material.heatmaps(work.pairs), work.of.labels, work.n_points)


TASKS: dict[str, tuple[Callable[[Work], int], Callable[[Work, Material], None]]] = {
    "nothing": (lambda work: 0, lambda work, material: None),
    "learning": (lambda work: work.pairs * N_STEPS * N_DISTRACTORS, learn),
    "curves": (lambda work: work.pairs * (work.n_points + 1), evaluate),
    "released learning": (lambda work: work.pairs * N_STEPS * N_DISTRACTORS, released_learn),
    "released curves": (lambda work: work.pairs * work.n_points, released_evaluate),
}
"""Name -> number of composites of a work, and the function that does it."""


def measure(work: Work, device: str) -> tuple[float, int]:
    """Seconds of the second run, and the peak memory of this process (or its GPU) in bytes."""
    material = load(work.of, device)
    if work.keep_pages:
        keep_allocator_pages()
    if work.side != material.images.shape[-1]:
        material = replace(material, images=F.interpolate(material.images, size=work.side, mode="bilinear", antialias=True))
    run = TASKS[work.task][1]
    run(work, material)
    taken = seconds(lambda: run(work, material), device)
    if device.startswith("cuda"):
        return taken, torch.cuda.max_memory_allocated(device)
    return taken, _peak()


def _peak() -> int:
    """Peak memory of this process in bytes.

    On Linux `ru_maxrss` includes memory of the parent process; `VmHWM` does not.
    """
    if sys.platform == "linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _in_process(work: Work, device: str) -> tuple[float, int]:
    command = [sys.executable, "-m", "benchmarks.scaling", json.dumps(asdict(work)), device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    taken, peak = json.loads(done.stdout)
    return taken, peak


if __name__ == "__main__":
    print(json.dumps(measure(Work(**json.loads(sys.argv[1])), *(sys.argv[2:] or ["cpu"]))))

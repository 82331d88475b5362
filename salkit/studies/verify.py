"""Is the recorded study right? Recompute a random sample of its cells, and say what their agreement proves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import astuple, dataclass, replace
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import stats

from salkit.studies import recorded
from salkit.studies.runs import Runs

COMPARED = ("insertion_curve", "deletion_auc", "games", "saliency_metric_by_alpha", "label_correlation")
"""Numbers of a cell that must agree; areas and scores follow from them."""

ROUNDING = 0.005
"""The largest difference of a probability between two processors for a method that learns nothing."""


@dataclass(frozen=True)
class Cell:
    """One image's maps by one method in one experiment, for all labels of the image."""

    experiment: str
    method: str
    image: str


def recorded_cells(runs: Runs) -> dict[Cell, float]:
    """All recorded cells -> seconds that each took.

    Raises:
        ValueError: a method is recorded with other settings than the profile has now.
    """
    cells = {}
    for part in runs.experiments():
        for name, method in part.methods.items():
            path = recorded.path_of(runs.profile, part.name, name)
            if not path.is_file():
                continue
            with xr.open_dataset(path, engine="scipy") as found:
                now, then = recorded.settings_of(method), found.settings.item()
                if now != then:
                    raise ValueError(f"{path}: expected results with the settings {now}, got {then}")
                share = found.seconds.item() / found.sizes["image"]
                cells |= {Cell(part.name, name, image): share for image in found.image.values.tolist()}
    return cells


def sample(cells: Mapping[Cell, float], minutes: float, n: int | None = None, seed: int = 0) -> list[Cell]:
    """A random sample of cells.

    Its size is fixed before anything is drawn: as many cells of average cost as fit the time. So cheap cells are not preferred.

    Raises:
        ValueError: no cells, or more asked for than there are.
    """
    if not cells or (n or 0) > len(cells):
        raise ValueError(f"n: expected 1 to {len(cells)} recorded cells, got {n}")
    n = n or max(1, min(len(cells), int(60 * minutes / np.mean(list(cells.values())))))
    order = np.random.default_rng(seed).permutation(len(cells))
    every = list(cells)
    return [every[i] for i in order[:n]]


def largest_share_wrong(n: int, wrong: int = 0, confidence: float = 0.95) -> float:
    """Upper end of the exact (Clopper-Pearson) interval of the share of wrong cells, when `wrong` of `n` are.

    Example:
        >>> round(largest_share_wrong(23), 3)  # the share that lets 23 right ones happen in 5 of 100 samples
        0.122
    """
    return float(stats.beta.ppf(confidence, wrong + 1, n - wrong)) if wrong < n else 1.0


def recompute(runs: Runs, cells: Sequence[Cell], workers: int | None = None) -> Iterator[pd.DataFrame]:
    """Compute cells anew, without any store, and compare them with what is recorded; a table a cell, as they are finished.

    Each worker is a process with one thread. That changes no number.

    Returns:
        Tables with a row for each number that is compared: `experiment, method, image, variable, largest` (difference; infinite where only
        one is NaN), and of `insertion_curve` also `mean`, the mean signed difference of g over the labels.
    """
    by_cost = sorted(cells, key=lambda cell: -recorded_cells(runs)[cell])
    if workers == 1:
        yield from (_compare(runs, cell) for cell in by_cost)
        return
    with ProcessPoolExecutor(workers or torch.get_num_threads(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for done in as_completed([pool.submit(_compare, runs, cell) for cell in by_cost]):
            yield done.result()


def _compare(runs: Runs, cell: Cell) -> pd.DataFrame:
    part = next(part for part in runs.experiments() if part.name == cell.experiment and cell.method in part.methods)
    one = replace(part, methods={cell.method: part.methods[cell.method]}, only=(cell.image,))
    live = runs.evaluate(one).sel({"method": cell.method, "image": cell.image})
    kept = recorded.load_method(runs.profile, cell.experiment, cell.method).sel({"method": cell.method, "image": cell.image})
    rows = []
    for name in COMPARED:
        if name in kept and name in live:
            a, b = live[name].values.astype(np.float32), kept[name].values.astype(np.float32)
            apart = np.where(np.isnan(a) & np.isnan(b), 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf))
            mean = float(live.insertion_auc.mean() - kept.insertion_auc.mean()) if name == "insertion_curve" else np.nan
            rows.append([*astuple(cell), name, float(apart.max()), mean])
    return pd.DataFrame(rows, columns=["experiment", "method", "image", "variable", "largest", "mean"])


def spread(runs: Runs) -> dict[str, float]:
    """Method -> the largest difference of a point of an insertion curve between two recorded seeds of the same cell.

    A processor that rounds differently gives masks that differ like another draw. So this is how far they may be off there.
    """
    found = {}
    for name in ("second_seed", "second_seed_sweep"):
        other = recorded.load(runs.profile, name)
        first = recorded.load(runs.profile, "sweep" if name.endswith("sweep") else "table1_a")
        for method in other.method.values.tolist():
            a, b = (each.insertion_curve.sel({"method": method, "image": other.image}) for each in (first, other))
            found[method] = float(np.abs(a - b).max())
    return found

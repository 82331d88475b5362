"""Is the recorded study right? Recompute a random sample of its cells, and say what their agreement proves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import astuple, dataclass, replace
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import stats

from salkit.methods import Random
from salkit.statistics import paired_comparison
from salkit.studies import recorded
from salkit.studies.runs import Runs

COMPARED = ("insertion_curve", "insertion_auc", "deletion_auc", "games", "saliency_metric_by_alpha", "label_correlation")
"""Numbers of a cell that must agree; areas and scores follow from them."""

SEEDS = {"second_seed": "table1_a", "second_seed_sweep": "sweep"}
"""Experiments that repeat cells of another one with a second seed."""

ROUNDING = 0.005
"""The largest difference of a probability between two processors for a method that learns nothing."""


@dataclass(frozen=True)
class Cell:
    """One image's maps by one method in one experiment, for all labels of the image."""

    experiment: str
    method: str
    image: str


def recorded_cells(runs: Runs) -> dict[Cell, float]:
    """All recorded cells of the profile's experiments -> seconds that each took on one core.

    Raises:
        ValueError: a method is recorded with other settings than the profile has now.
    """
    cells: dict[Cell, float] = {}
    for part in runs.experiments():
        for name, method in part.methods.items():
            path = recorded.path_of(runs.profile, part.name, name)
            if not path.is_file():
                continue
            with xr.open_dataset(path, engine="scipy") as found:
                now, then = recorded.settings_of(method), found.settings.item()
                if now != then:
                    raise ValueError(f"{path}: expected results with the settings {now}, got {then}")
                share = found.core_seconds.item() / found.sizes["image"]
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
    n = n or max(1, min(len(cells), int(60 * minutes * torch.get_num_threads() / np.mean(list(cells.values())))))
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
    """Compute cells anew, without a store, and compare them with what is recorded.

    Args:
        runs: the profile that was recorded.
        cells: which.
        workers: processes of one thread each, by default one a core. They change no number. 1 computes in this process.

    Yields:
        A table for each cell, as they are finished, with a row for each of `COMPARED`: `experiment, method, image, variable`, and the
        `largest` difference; infinite where only one is NaN. `shift` is the mean signed difference of g over the labels.
    """
    if workers == 1:
        yield from (compare(runs, cell) for cell in cells)
        return
    workers = min(len(cells), workers or torch.get_num_threads())
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for done in as_completed([pool.submit(compare, runs, cell) for cell in cells]):
            yield done.result()


def compare(runs: Runs, cell: Cell) -> pd.DataFrame:
    """One cell computed anew beside what is recorded; see `recompute`."""
    part = next(part for part in runs.experiments() if part.name == cell.experiment and cell.method in part.methods)
    method = part.methods[cell.method]
    live = runs.evaluate(replace(part, methods={cell.method: method}, only=(cell.image,)))
    kept = recorded.load_method(runs.profile, cell.experiment, cell.method).sel(image=[cell.image])
    shift = float((live.insertion_auc - kept.insertion_auc).mean())
    rows = [[*astuple(cell), name, difference(live[name], kept[name]), shift] for name in COMPARED if name in kept]
    return pd.DataFrame(rows, columns=["experiment", "method", "image", "variable", "largest", "shift"])


def difference(a: xr.DataArray, b: xr.DataArray) -> float:
    """The largest absolute difference, both as float32; NaN equals NaN, and is infinitely far from any number."""
    one, other = (values.transpose(*b.dims).values.astype(np.float32) for values in (a, b))
    return float(np.where(np.isnan(one) & np.isnan(other), 0.0, np.nan_to_num(np.abs(one - other), nan=np.inf)).max(initial=0.0))


def tolerances(runs: Runs) -> dict[str, dict[str, float]]:
    """Method -> variable -> the largest difference between two recorded seeds of the same cell, over the cells that have two.

    Another processor rounds differently. A learned mask is then like another draw, and may be off by as much.
    """
    found: dict[str, dict[str, float]] = {}
    profile = runs.chosen.recorded or runs.profile
    for again, first in SEEDS.items():
        if not recorded.folder(profile).joinpath(again).is_dir():
            continue
        other, one = recorded.load(profile, again), recorded.load(profile, first)
        for method in other.method.values.tolist():
            a, b = (each.sel({"method": [method], "image": other.image.values}) for each in (one, other))
            found[method] = {name: difference(a[name], b[name]) for name in COMPARED if name in b and name in a}
    return found


@dataclass(frozen=True)
class Verdict:
    """What a sample of recomputed cells says.

    Attributes:
        n, wrong: cells, and how many of them differ by more than they may.
        exact: whether equality was asked for.
        share: the largest share of wrong cells of the whole study with which so few in the sample are not surprising (95 %).
        shift, p_value: mean difference of g over the cells, and the exact sign-flip test of whether it is 0.
    """

    n: int
    wrong: int
    exact: bool
    share: float
    shift: float
    p_value: float

    def __str__(self) -> str:
        what = "are equal" if self.exact else "agree within the spread of two seeds"
        text = f"{self.n - self.wrong} of {self.n} recomputed cells {what}; "
        text += f"then fewer than {self.share:.1%} of the recorded ones are wrong (95 %)."
        if not self.exact:
            text += f" Mean difference of g: {self.shift:+.4f}, p = {self.p_value:.2g}."
        return text

    @property
    def passed(self) -> bool:
        """No cell is wrong, and the differences do not lean to one side."""
        return not self.wrong and (self.exact or not self.p_value < 0.01)


def judge(found: pd.DataFrame, allowed: Mapping[str, Mapping[str, float]] | None) -> tuple[pd.DataFrame, Verdict]:
    """Which rows of `recompute` differ by more than they may, and what that says.

    Args:
        found: the tables of all cells.
        allowed: `tolerances`; None on the processor of the recording, where numbers are equal. Methods that are not in it learn nothing
            and may differ by `ROUNDING`; other learned masks by the most that any learned mask may.

    Returns:
        The table with the columns `allowed` and `wrong`, and the verdict.
    """
    limits = []
    for row in found.itertuples():
        if allowed is None:
            limits.append(0.0)
        elif row.method in allowed:
            limits.append(allowed[row.method].get(row.variable, 0.0))
        elif row.method.startswith("Ours"):
            limits.append(max((of.get(row.variable, 0.0) for of in allowed.values()), default=0.0))
        else:
            limits.append(ROUNDING)
    table = found.assign(allowed=limits)
    table["wrong"] = ~(table.largest <= table.allowed)
    cells = table.groupby(["experiment", "method", "image"]).agg(wrong=("wrong", "any"), shift=("shift", "first"))
    n, wrong = len(cells), int(cells.wrong.sum())
    test = paired_comparison(cells["shift"], np.zeros(n))
    return table, Verdict(n, wrong, allowed is None, largest_share_wrong(n, wrong), test.mean, test.p_value)


def same_processor(runs: Runs, cells: Iterable[Cell]) -> bool:
    """Whether cells were recorded on a processor and with versions like these, where equal work gives equal numbers."""
    now = {name: values[0] for name, (_, values) in recorded.provenance(Random(), 0).items()}
    kept = [recorded.load_method(runs.profile, cell.experiment, cell.method) for cell in cells]
    return all(each[name].item() == now[name] for each in kept for name in ("processor", "versions"))


def live_part(runs: Runs, name: str) -> pd.DataFrame:
    """What this run computes of an experiment, beside what its tables show of the same images and labels.

    Returns:
        A row for each method: `method, images, composites`; the mean of g over the pairs that both have, `g shown` and `g live`; the
        `largest` difference of g of a pair, and how large it may be, `allowed` (see `tolerances`).
    """
    live, shown, limits = runs.live(name), runs.result(name), tolerances(runs)
    learned = max((of["insertion_auc"] for of in limits.values()), default=0.0)
    rows = []
    for part in runs.experiments():
        for method, how in part.methods.items() if part.name == name else ():
            one = live.insertion_auc.sel({"method": method}).dropna("image")
            kept = shown.insertion_auc.sel({"method": method, "image": one.image})
            spent = recorded.composites(how)
            allowed = limits.get(method, {}).get("insertion_auc", learned if spent == spent else ROUNDING)
            rows.append(
                [method, one.sizes["image"], spent, float(kept.mean()), float(one.mean()), difference(one, kept), max(allowed, ROUNDING)]
            )
    columns = ["method", "images", "composites", "g shown", "g live", "largest", "allowed"]
    return pd.DataFrame(rows, columns=columns)

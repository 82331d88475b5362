"""The recorded study: results that were computed once and are kept with the kit, one netCDF file for each experiment and method."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn import functional as F

from salkit.atomic import atomic_write
from salkit.data.files import data_dir
from salkit.engine.compare import without_versions
from salkit.engine.identity import LIBRARIES, describe
from salkit.engine.machine import installed, machine
from salkit.engine.store import Store
from salkit.methods import LearnedMask, SaliencyMethod, same_map_for_all_labels
from salkit.studies.experiments import Experiment

STEP = 2.0**-10
"""Logits of masks are kept as whole multiples of this."""

LARGEST, PICTURED = 56, 4
"""Side of the largest maps that are kept, and how many images are pictured for methods whose maps are larger."""


def folder(profile: str) -> Path:
    """Where the results of a profile are recorded."""
    return data_dir() / "recorded" / profile


def path_of(profile: str, experiment: str, method: str = "") -> Path:
    """The file of one method's results in one experiment; without a method that of an experiment which is not an evaluation."""
    if not method:
        return folder(profile) / f"{experiment}.nc"
    return folder(profile) / experiment / f"{re.sub(r'[^A-Za-z0-9.]+', '_', method).strip('_')}.nc"


def settings_of(method: SaliencyMethod) -> str:
    """All settings of a method as JSON, without the versions of code. Two methods with equal settings give equal maps."""
    return json.dumps(without_versions(describe(method)), sort_keys=True)


def is_recorded(profile: str, experiment: Experiment, method: str, images: Sequence[str]) -> bool:
    """Whether the results of a method are recorded, with the same data, net and settings, and the images of these names come first."""
    path = path_of(profile, experiment.name, method)
    if not path.is_file():
        return False
    with xr.open_dataset(path, engine="scipy") as found:
        then = (found.attrs["data"], found.attrs["classifier"], found.settings.item())
        now = (experiment.study.data, experiment.study.classifier, settings_of(experiment.methods[method]))
        return then == now and found.image.values[: len(images)].tolist() == list(images)


def save(profile: str, experiment: str, result: xr.Dataset) -> Path:
    """Record an evaluation of one method, whole or not at all.

    `map`, the logits of learned masks, is rounded to multiples of `STEP`.
    """
    (method,) = result.method.values.tolist()
    path = path_of(profile, experiment, method)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding: dict[str, dict[str, Any]] = {str(name): {"dtype": "float32"} for name, values in result.items() if values.dtype == np.float64}
    if "map" in result:
        encoding["map"] = {"dtype": "int16", "scale_factor": STEP, "_FillValue": np.int16(-32768)}
    with atomic_write(path) as part:
        result.to_netcdf(part, engine="scipy", encoding=encoding)
    return path


def load(profile: str, experiment: str) -> xr.Dataset:
    """The recorded results of an experiment, all methods that have been recorded.

    Returns:
        As `evaluate` returns it. See `provenance` for its further coordinates.

    Raises:
        FileNotFoundError: nothing is recorded.
    """
    files = sorted((folder(profile) / experiment).glob("*.nc"))
    if not files:
        raise FileNotFoundError(f"{folder(profile) / experiment}: expected recorded results, got none")
    return joined([_open(file) for file in files])


def load_method(profile: str, experiment: str, method: str) -> xr.Dataset:
    """The recorded results of one method."""
    return _open(path_of(profile, experiment, method))


def save_other(profile: str, experiment: str, result: xr.Dataset) -> Path:
    """Record the results of an experiment that is not an evaluation."""
    path = path_of(profile, experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        result.to_netcdf(part, engine="scipy")
    return path


def load_other(profile: str, experiment: str) -> xr.Dataset:
    """The recorded results of an experiment that is not an evaluation."""
    return _open(path_of(profile, experiment))


def source(result: xr.Dataset) -> str:
    """Where the numbers of an evaluation come from, in words: recorded, with machine, dates and core hours, or computed in this run.

    Example:
        >>> print(source(load("overnight", "sweep")))  # doctest: +SKIP
        Recorded 2026-11-27 on AMD EPYC (family 25, model 17, AVX512), 2 cores, commit b159df7: 20 images, 10 labels each, 0.4 core hours.
    """
    n, k = result.sizes["image"], result.sizes["label"]
    size = f"{n} images, {k} labels each"
    if "recorded_on" not in result.coords:
        return f"Computed in this run: {size}."
    about = {name: sorted({str(value) for value in result[name].values}) for name in ("recorded_on", "processor", "cores", "commit")}
    days = " to ".join(dict.fromkeys([about["recorded_on"][0], about["recorded_on"][-1]]))
    spent = sorted({f"{value:,.0f}" for value in result.composites.values if value == value}, key=len)
    masks = f", learned masks of {' or '.join(spent)} composites a pair" if spent else ""
    hours = float(result.core_seconds.sum()) / 3600
    where = f"{', '.join(about['processor'])}, {'/'.join(about['cores'])} cores, commit {', '.join(about['commit'])}"
    return f"Recorded {days} on {where}: {size}{masks}, {hours:.1f} core hours."


def _open(path: Path) -> xr.Dataset:
    with xr.open_dataset(path, engine="scipy") as opened:
        found = opened.load()
    if "picture" in found:
        # Images have names, so that a picture stays with its image in every selection; NaN for images without one.
        pictured = found.picture.rename(pictured="image").assign_coords(image=found.image[: found.sizes["pictured"]])
        found["picture"] = pictured.reindex(image=found.image)
    return found


def joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """One evaluation from those of different methods; NaN where a method has fewer images than another."""
    largest_first = sorted(parts, key=lambda part: -part.sizes["image"])
    settings: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
    return xr.concat(largest_first, "method", join="left", **settings)


def stacked(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """One evaluation from those of different label lists. Labels go by their places, `label_name (image, label)` says which they are."""
    if len(parts) == 1:
        return parts[0]
    renamed = []
    for part in parts:
        if "label_name" not in part.coords:
            names = np.broadcast_to(part.label.values, (part.sizes["image"], part.sizes["label"]))
            part = part.assign_coords(label=[f"label {i + 1}" for i in range(part.sizes["label"])], label_name=(("image", "label"), names))
        renamed.append(part)
    return xr.concat(renamed, "image", data_vars="all", coords="minimal", compat="override", join="outer", combine_attrs="override")


def pictures(result: xr.Dataset, store: Store) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """What is kept of the maps of one method.

    Returns:
        `map (method, image, label, row, column)`, the logits of a learned mask of at most `LARGEST` a side; and for other methods
        `picture (method, pictured, label, row, column)`, the maps of the first images averaged to `LARGEST` a side and scaled to 0..127.
    """
    (method,) = result.method.values.tolist()
    runs = [run for run in store.runs().values() if [m["method"] for m in run.get("methods", [])] == [method]]
    key = runs[-1]["methods"][0]["maps"]
    kept = store.read(key)["map"]
    if store.experiment(key).what["kept_as"] == "logits" and kept.shape[-1] <= LARGEST:
        shape = (1, *result.heatmap.shape[1:3], *kept.shape[2:])
        return {"map": (("method", "image", "label", "row", "column"), np.broadcast_to(kept, shape))}
    side = min(LARGEST, result.sizes["x"])
    some = torch.from_numpy(result.heatmap.values[0, :PICTURED])
    small = F.adaptive_avg_pool2d(some, side)
    low, high = small.amin((-2, -1), keepdim=True), small.amax((-2, -1), keepdim=True)
    scaled = ((small - low) / (high - low).clamp_min(1e-12) * 127).round().to(torch.int8).numpy()
    return {"picture": (("method", "pictured", "label", "row", "column"), scaled[None])}


def provenance(method: SaliencyMethod, core_seconds: float) -> dict[str, tuple[str, list[Any]]]:
    """Coordinates of a method's results: settings, composites a pair, and where, when and from which commit they come."""
    where = machine()
    about = {
        "settings": settings_of(method),
        "composites": composites(method),
        "recorded_on": str(where["date"])[:10],
        "processor": str(where["cpu"]),
        "cores": os.cpu_count(),
        "versions": ", ".join(f"{name} {installed(name)}" for name in LIBRARIES),
        "commit": str(where["commit"]),
        "core_seconds": round(core_seconds, 1),
    }
    return {name: ("method", [value]) for name, value in about.items()}


def composites(method: SaliencyMethod) -> float:
    """Composites that a learned mask sees, NaN for other methods."""
    learned = method.method if isinstance(method, same_map_for_all_labels) else method
    return float(learned.cost().forward_backward) if isinstance(learned, LearnedMask) else float("nan")

"""Where results live: one file a method and run, named by a hash of everything that changes its numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from salkit.methods import SaliencyMethod, same_map_for_all_labels
from salkit.methods.masker import Masker, MaskerMethod, masker_path


def kept_result(name: str, settings: dict[str, Any], output_dir: str | Path | None, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The result of these settings: read from `output_dir/results` if it is there, else computed and kept (None keeps nothing)."""
    if output_dir is None:
        return compute()
    return cached(Path(output_dir) / "results" / f"{name}-{fingerprint(settings)}.nc", compute)


def describe(method: SaliencyMethod) -> str:
    """A method's settings, and what its masker's checkpoint holds: what a kept result depends on."""
    if isinstance(method, same_map_for_all_labels):
        return f"same_map_for_all_labels({describe(method.method)})"
    if isinstance(method, MaskerMethod) and not isinstance(method.masker, Masker):
        path = masker_path(method.masker)
        held = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() if path.is_file() else "missing"
        return f"{method!r} {held}"
    return repr(method)


def cached(path: Path, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The dataset at `path`, computed and written (whole or not at all) if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        compute().to_netcdf(partial, engine="scipy")
        os.replace(partial, path)
    with xr.open_dataset(path, engine="scipy") as stored:
        return stored.load()


COMPUTING = (
    "data",
    "models",
    "masking",
    "curves",
    "scores",
    "saliency_metric",
    "sanity",
    "evaluation",
    "masker_training",
    "experiment",
    "profiles",
)
"""The modules, besides the methods, that a stored result depends on; what is drawn or printed from it may change."""


def fingerprint(settings: object) -> str:
    """A hash of settings, of the code and of the library versions that change numbers: what a stored result goes by."""
    code = hashlib.blake2b(digest_size=8)
    folder = Path(__file__).parent
    for source in [folder / f"{name}.py" for name in COMPUTING] + sorted((folder / "methods").glob("*.py")):
        code.update(source.read_bytes())
    versions = {package: version(package) for package in ("torch", "torchvision", "numpy", "captum", "zennit", "scikit-image")}
    text = json.dumps([settings, code.hexdigest(), versions], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

"""From shards to datasets: what a store holds of a run, as labelled arrays with areas and scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
import xarray as xr
from torch import Tensor

from salkit.curves import AucRule, auc
from salkit.engine.store import Store, StoreError
from salkit.saliency_metric import ALPHAS, BoxRule, leave_one_out
from salkit.scores import PROTOCOLS, Protocol, completeness, soundness


def find_protocol(protocol: Protocol | str) -> Protocol:
    """A protocol by name, or as given.

    Raises:
        ValueError: unknown name.
    """
    found = PROTOCOLS.get(protocol) if isinstance(protocol, str) else protocol
    if not isinstance(found, Protocol):
        raise ValueError(f"protocol: expected a Protocol or one of {sorted(PROTOCOLS)}, got {protocol!r}")
    return found


def open_results(store: str | Path | Store, name: str = "evaluation") -> xr.Dataset:
    """What a store holds of a run: the variables of `evaluate(keep_curves=True)`, NaN where nothing has been computed yet.

    Args:
        store: the folder (or `Store`).
        name: of the run, or the beginning of its name; of several the latest.

    Returns:
        The dataset; its attribute `missing` says in words what is not there, empty when all is.

    Raises:
        StoreError: no such run.

    Example:
        >>> open_results("runs/demo/store", "table1").attrs["missing"]  # doctest: +SKIP
        'Ours: maps 12 of 50'
    """
    kept = store if isinstance(store, Store) else Store(store)
    runs = {full: run for full, run in kept.runs().items() if full.startswith(name) and "methods" in run}
    if not runs:
        raise StoreError(f"{kept.folder}: expected an evaluation whose name begins with {name!r}, got {sorted(kept.runs())}")
    return assemble(kept, list(runs.values())[-1], partly=True)


PHASES = ("maps", "curves")
GAMES = ("insertion", "deletion")
DIMS = {
    "insertion_auc": ("image", "label"),
    "deletion_auc": ("image", "label"),
    "tie_share": ("image", "label"),
    "label_correlation": ("image",),
    "games": ("image", "game", "infill", "rule"),
    "saliency_metric": ("image", "box"),
    "saliency_metric_by_alpha": ("image", "tried"),
    "alpha": ("image",),
    "insertion_curve": ("image", "label", "kept"),
}
"""Dims of what is measured for every method."""


def assemble(store: Store, run: Mapping[str, Any], partly: bool = False) -> xr.Dataset:
    """The dataset of a run's manifest, from what is in the store."""
    coords, rules, targets = dict(run["coords"]), Protocol(**run["protocol"]), torch.tensor(run["targets"])
    n, k = targets.shape
    prob = torch.from_numpy(store.read(run["prob"])["prob"]).gather(1, targets)
    best = prob.argmax(1)
    blur = any(store.experiment(m["curves"]).what["blur_games"] for m in run["methods"])
    found: dict[str, list[Tensor | None]] = {name: [] for name in DIMS}
    missing = []
    for m in run["methods"]:
        for name in ("maps", "curves", "crops"):
            if m[name] and (left := sum(b - a for a, b in store.missing(store.experiment(m[name])))):
                missing.append(f"{m['method']}: {name} {store.experiment(m[name]).rows - left} of {store.experiment(m[name]).rows}")
        arrays, there = store.read_partly(m["curves"], 0, n)
        measured = _measure({name: torch.from_numpy(a) for name, a in arrays.items()}, best, k, rules.auc_rule, blur) if there.any() else {}
        if m["crops"]:
            if crops := {name: torch.from_numpy(a) for name, a in store.read_partly(m["crops"], 0, n)[0].items()}:
                value, measured["alpha"] = leave_one_out(crops["threshold"])
                measured["saliency_metric"] = torch.stack([value, crops["largest_component"]], 1)
                measured["saliency_metric_by_alpha"] = crops["threshold"]
        for name in DIMS:
            found[name].append(measured.get(name))
    if missing and not partly:
        raise StoreError(f"{store.folder}: expected all results of the run, missing: {'; '.join(missing)}")
    variables = {}
    for name, values in found.items():
        shape = next((v.shape for v in values if v is not None), None)
        if shape is not None:
            filled = [torch.full(shape, torch.nan) if v is None else v for v in values]
            variables[name] = (("method", *DIMS[name]), torch.stack(filled).numpy())
    if "label_name" in coords:
        coords["label_name"] = (("image", "label"), coords["label_name"])
    coords |= {"game": list(GAMES), "infill": ["gray", "blur"] if blur else ["gray"]}
    coords |= {"rule": list(get_args(AucRule)), "box": list(get_args(BoxRule)), "tried": list(ALPHAS)}
    result = xr.Dataset({"prob": (("image", "label"), prob.numpy())} | variables, coords)
    result["prediction"] = result.prob.argmax("label")
    result = rescore(result, rules) if "insertion_auc" in result else result
    return result.assign_attrs(run["protocol"] | run["attrs"] | {"missing": "; ".join(missing)})


def _measure(curves: Mapping[str, Tensor], best: Tensor, k: int, rule: AucRule, blur: bool) -> dict[str, Tensor]:
    """Areas and what else is measured of a method, from its curves `(N, ...)`."""
    n, row = len(best), torch.arange(len(best))
    shown = curves["insertion"]
    deletion_auc = shown.new_full((n, k), torch.nan)
    played = {("insertion", "gray"): shown[row, best]}
    if "deletion" in curves:
        hidden = curves["deletion"]
        places = best[:, None] if hidden.shape[1] == 1 else torch.arange(k).expand(n, k)
        deletion_auc.scatter_(1, places, auc(hidden, rule, game="deletion"))
        played["deletion", "gray"] = hidden[row, best if hidden.shape[1] > 1 else 0]
    played |= {(game, "blur"): curves[f"blur_{game}"] for game in GAMES if blur}
    infills = ("gray", "blur") if blur else ("gray",)
    games = shown.new_full((n, len(GAMES), len(infills), len(get_args(AucRule))), torch.nan)
    for (game, infill), curve in played.items():
        areas = [auc(curve, each, game=game) for each in get_args(AucRule)]  # type: ignore[arg-type]
        games[:, GAMES.index(game), infills.index(infill)] = torch.stack(areas, 1)
    return {
        "insertion_auc": auc(shown, rule),
        "deletion_auc": deletion_auc,
        "tie_share": curves["tie_share"].expand(n, k),
        "label_correlation": curves["label_correlation"],
        "games": games,
        "insertion_curve": shown,
    }


def rescore(result: xr.Dataset, protocol: Protocol | str) -> xr.Dataset:
    """Completeness and soundness of an evaluation under another protocol's thresholds; areas and probabilities stay as they are.

    Example:
        >>> rescore(scores, "released").soundness  # doctest: +SKIP
    """
    rules = find_protocol(protocol)
    g, f = xr.broadcast(result.insertion_auc, result.prob)
    scored = result.assign(completeness=completeness(g, f, rules.eps_completeness), soundness=soundness(g, f, rules.eps_soundness))
    return scored.assign_attrs(eps_completeness=rules.eps_completeness, eps_soundness=rules.eps_soundness)

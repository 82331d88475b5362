"""`evaluate`: run methods over all (image, label) pairs and score them; `open_results`: what a store holds of that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from salkit import masking
from salkit.curves import AucRule, auc, kept_counts
from salkit.data import ImageSet
from salkit.executors import Engine, open_engine, raise_failures
from salkit.experiment import canonical, digest
from salkit.methods import SaliencyMethod, get_method, same_map_for_all_labels
from salkit.models import Classifier
from salkit.saliency_metric import ALPHAS, BoxRule, best_alpha
from salkit.scores import PROTOCOLS, Protocol, completeness, soundness
from salkit.store import Store, StoreError
from salkit.tasks import Labels, Part, PartMaker, Source, as_heatmaps, maps_are_kept


def evaluate(
    classifier: Classifier,
    images: ImageSet | Tensor,
    methods: Mapping[str, SaliencyMethod] | Sequence[str],
    *,
    targets: Tensor | None = None,
    distractors: ImageSet | Tensor | None = None,
    protocol: Protocol | str = "paper",
    n_steps: int | None = 28,
    baseline: float = 0.0,
    deletion: Literal["prediction", "all", "none"] = "prediction",
    blur_games: bool = False,
    held_out: ImageSet | Tensor | None = None,
    seed: int = 0,
    keep_heatmaps: bool = False,
    keep_curves: bool = False,
    images_per_batch: int = 16,
    device: str | None = None,
    store: str | Path | Store | None = None,
    name: str = "evaluation",
    executor: str = "serial",
    workers: int | None = None,
    show_progress: bool = True,
) -> xr.Dataset:
    """Score saliency methods on all (image, label) pairs.

    With a `store` every finished shard is kept: a run that was stopped goes on where it was, one that is repeated computes nothing, and
    one with another setting computes what depends on it (other thresholds nothing, another number of points no maps).

    Args:
        classifier: its softmax scope should be the protocol's; its label list gives the labels.
        images: an `ImageSet`, or normalised images `(N, 3, H, W)`.
        methods: name -> method, or names of the registry with default settings.
        targets: `(N, k)` int64, k labels of each image (indices into the label list) instead of all of them; the paper's footnote 3
            suggests the k most probable.
        distractors: pool for random-image infill; None takes `images` (never the explained image itself).
        protocol: a `Protocol` or its name; the thresholds and the AUC rule are used here.
        n_steps: points of a curve, None for every pixel count.
        baseline: what hides a pixel, in normalised space.
        deletion: compute deletion for the predicted label (the paper's column), for all labels, or not at all.
        blur_games: also play insertion and deletion with RISE's blur as infill, for the predicted label.
        held_out: other images, on which the threshold of the saliency metric is chosen for every method; None leaves that metric out.
        seed: of every random draw.
        keep_heatmaps: also return `heatmap` with dims y and x, and `pixels (image, y, x, channel)` of an `ImageSet`.
        keep_curves: also return `insertion_curve` with dim kept.
        images_per_batch: images (with all their labels) whose curves are computed together; changes no number.
        device: where to compute: None where the classifier is, `"auto"` on a GPU if whoever computes has one, else as named.
        store: a folder (or `Store`) to keep results in and to read them from; None keeps nothing.
        name: of this run in the store, for `salkit runs` and `open_results`.
        executor: `"serial"`, `"dask"` for local workers, or the address of a Dask scheduler (`"tcp://host:port"`).
        workers: how many local workers; None for one a GPU, or one a core.
        show_progress: bars over what is computed.

    Returns:
        `prob (image, label)`; `insertion_auc`, `deletion_auc`, `completeness`, `soundness`, `tie_share` `(method, image, label)`;
        `label_correlation (method, image)`; `games (method, image, game, infill, rule)`, the areas for the predicted label under both
        rules; with `held_out` also `saliency_metric (method, image, box)` and `alpha (method)`;
        `prediction (image)`, an index into the labels. What was not asked for is NaN. With `targets` the labels
        are called `label 1` to `label k`, and the coordinate `label_name (image, label)` says which they are.

    Raises:
        TypeError: wrong types.
        ValueError: wrong values; without a store also whatever a method raises, or its maps of the wrong shape or not finite.
        ShardError: with a store: pairs that could not be computed, by name, after all others were computed and kept.
        StoreError: the store cannot be written, or holds a manifest that somebody changed.

    Example:
        >>> scores = evaluate(load_classifier("cifar10-resnet20"), load_images("cifar10-samples"), ["random"])  # doctest: +SKIP
        >>> worst_case(scores.soundness).sel({"method": "random"})  # doctest: +SKIP
    """
    chosen, rules = _check_evaluate(classifier, images, methods, protocol, deletion)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name: expected letters, digits, '_', '.' and '-' (it names a file), got {name!r}")
    inputs, ids = named(images)
    pool, _ = named(images if distractors is None else distractors)
    kept = kept_counts(inputs[0, 0].numel(), n_steps)
    curve = {"n_steps": len(kept) - 1, "baseline": baseline, "deletion": deletion, "blur_games": blur_games}
    with open_engine(store, executor, workers, show_progress) as engine:
        sources = [Source(classifier, inputs, ids, pool, device, images_per_batch)]
        maker = PartMaker(name, sources[0], seed)
        every = _probabilities(maker, sources, engine)
        targets = _check_targets(targets, every)
        best = every.gather(1, targets).argmax(1)
        plans = [_plan(maker, title, method, targets, best, every, keep_heatmaps, curve) for title, method in chosen.items()]
        if held_out is not None:
            sources.append(Source(classifier, *named(held_out), pool, device, images_per_batch))
            _plan_held_out(PartMaker(f"{name}_held_out", sources[1], seed, 1), sources, plans, engine)
        run = {
            "coords": {"method": list(chosen), "image": list(ids), "kept": kept.tolist()}
            | _label_coords(classifier, images, targets, every.shape[1]),
            "protocol": asdict(rules),
            "attrs": {"n_steps": len(kept) - 1, "seed": seed, "baseline": baseline},
            "prob": maker.probabilities().experiment.key,
            "targets": targets.tolist(),
        }
        failures = []
        _keep_run(engine, name, run, plans)
        for phase in PHASES:
            if phase == "crops":
                for plan in plans:
                    plan.choose_alpha(maker, engine.store)
                _keep_run(engine, name, run, plans)
            parts = [part for plan in plans for part in plan.parts(phase)]
            failures += engine.run(parts, sources, desc=phase)
        raise_failures(failures, engine.store)
        result = _assemble(engine.store, run | {"methods": [plan.keys() for plan in plans]})
        if not keep_curves:
            result = result.drop_vars(["insertion_curve", "kept"])
        if keep_heatmaps:
            result["heatmap"] = (("method", "image", "label", "y", "x"), _heatmaps(engine.store, plans, inputs.shape[-2:]))
            if isinstance(images, ImageSet):
                result["pixels"] = (("image", "y", "x", "channel"), images.pixels().numpy())
    return result


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
    return _assemble(kept, list(runs.values())[-1], partly=True)


@dataclass
class _Plan:
    """The parts that one method's results are made of."""

    title: str
    method: SaliencyMethod
    labels: Labels
    maps: Part | None
    curves: Part
    held_maps: Part | None = None
    held_crops: Part | None = None
    crops: Part | None = None
    alpha: float | None = None

    def parts(self, phase: str) -> list[Part]:
        """Those that are computed together: maps, then what needs them, then what needs a threshold."""
        of = {"maps": (self.maps, self.held_maps), "curves": (self.curves, self.held_crops), "crops": (self.crops,)}
        return [part for part in of[phase] if part is not None]

    def choose_alpha(self, maker: PartMaker, store: Store) -> None:
        """Once the held-out images are measured: the threshold, and the part that uses it."""
        if self.held_crops is not None and not store.missing(self.held_crops.experiment):
            self.alpha = best_alpha(torch.from_numpy(store.read(self.held_crops.experiment.key)["threshold"]))
            settings = {"alphas": (self.alpha,), "largest_component": True}
            self.crops = maker.crops(self.title, self.method, self.maps, self.labels, **settings)

    def keys(self) -> dict[str, Any]:
        """For the run's manifest."""
        named = {"maps": self.maps, "curves": self.curves, "held_maps": self.held_maps, "held_crops": self.held_crops, "crops": self.crops}
        return {name: part and part.experiment.key for name, part in named.items()} | {"method": self.title, "alpha": self.alpha}


def _plan(
    maker: PartMaker,
    title: str,
    method: SaliencyMethod,
    targets: Tensor,
    best: Tensor,
    every: Tensor,
    keep_maps: bool,
    curve: Mapping[str, Any],
) -> _Plan:
    explained = targets
    if isinstance(method, same_map_for_all_labels):
        method, explained = method.method, every.argmax(1, keepdim=True)
    elif not getattr(method, "depends_on_label", True):
        explained = targets.gather(1, best[:, None])
    labels = Labels(targets, best, explained)
    maps = maker.maps(title, method, explained) if keep_maps or maps_are_kept(method) else None
    return _Plan(title, method, labels, maps, maker.curves(title, method, maps, labels, **curve))


def _plan_held_out(maker: PartMaker, sources: Sequence[Source], plans: Sequence[_Plan], engine: Engine) -> None:
    """Maps of the held-out images' predictions and their crops for every threshold."""
    prediction = _probabilities(maker, sources, engine, keep=True).argmax(1, keepdim=True)
    labels = Labels(prediction, torch.zeros(len(prediction), dtype=torch.int64), prediction)
    for plan in plans:
        plan.held_maps = None if plan.maps is None else maker.maps(plan.title, plan.method, prediction)
        plan.held_crops = maker.crops(plan.title, plan.method, plan.held_maps, labels, alphas=ALPHAS)


def _keep_run(engine: Engine, name: str, run: Mapping[str, Any], plans: Sequence[_Plan]) -> None:
    """Write the run's manifest, named by the first of its experiments' hashes so that other settings get one of their own."""
    methods = [plan.keys() for plan in plans]
    keys = [run["prob"], *(part.experiment.key for plan in plans for phase in PHASES for part in plan.parts(phase))]
    mark = digest(canonical([run["prob"], [m["curves"] for m in methods], [m["held_crops"] for m in methods]]))[:8]
    engine.store.keep_run(f"{name}-{mark}", {**run, "methods": methods, "experiments": keys})


PHASES = ("maps", "curves", "crops")
GAMES = ("insertion", "deletion")
DIMS = {
    "insertion_auc": ("image", "label"),
    "deletion_auc": ("image", "label"),
    "tie_share": ("image", "label"),
    "label_correlation": ("image",),
    "games": ("image", "game", "infill", "rule"),
    "saliency_metric": ("image", "box"),
    "alpha": (),
    "insertion_curve": ("image", "label", "kept"),
}
"""Dims of what is measured for every method."""


def _assemble(store: Store, run: Mapping[str, Any], partly: bool = False) -> xr.Dataset:
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
            crops = {name: torch.from_numpy(a) for name, a in store.read_partly(m["crops"], 0, n)[0].items()}
            if crops:
                measured["saliency_metric"] = torch.stack([crops["threshold"][:, 0], crops["largest_component"]], 1)
            measured["alpha"] = torch.tensor(m["alpha"])
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
    coords |= {"rule": list(get_args(AucRule)), "box": list(get_args(BoxRule))}
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


def _heatmaps(store: Store, plans: Sequence[_Plan], size: Sequence[int]) -> np.ndarray:
    """Heatmaps of all methods, `(method, image, label, y, x)`, from their kept maps."""
    every = []
    for plan in plans:
        assert plan.maps is not None
        kept = torch.from_numpy(store.read(plan.maps.experiment.key)["map"])
        heatmaps = as_heatmaps(plan.method, kept, size).unflatten(0, plan.labels.explained.shape)
        every.append(heatmaps.expand(-1, plan.labels.targets.shape[1], -1, -1))
    return torch.stack(every).numpy()


def named(images: ImageSet | Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Images on the CPU and their names; a hash of the pixels names those without."""
    inputs = images.images if isinstance(images, ImageSet) else images.detach()
    return inputs.cpu(), images.ids if isinstance(images, ImageSet) else tuple(masking.image_ids(images))


def explain(
    classifier: Classifier,
    images: ImageSet,
    methods: Mapping[str, SaliencyMethod],
    targets: Tensor,
    *,
    distractors: Tensor,
    engine: Engine,
    name: str = "maps",
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Tensor]:
    """Heatmaps `(N, H, W)` of several methods for one label an image, `targets (N,)`, kept in the store; arguments as for `evaluate`.

    Raises:
        ShardError: with a store: pairs that could not be computed.
    """
    inputs, ids = named(images)
    source = Source(classifier, inputs, ids, distractors.cpu(), device)
    maker = PartMaker(name, source, seed)
    parts = {title: maker.maps(title, method, targets.cpu()[:, None]) for title, method in methods.items()}
    engine.store.keep_experiments(name, [part.experiment.key for part in parts.values()])
    raise_failures(engine.run(list(parts.values()), [source], desc=name), engine.store)
    maps = {title: torch.from_numpy(engine.store.read(part.experiment.key)["map"]) for title, part in parts.items()}
    return {title: as_heatmaps(method, maps[title], inputs.shape[-2:]) for title, method in methods.items()}


def _probabilities(maker: PartMaker, sources: Sequence[Source], engine: Engine, keep: bool = False) -> Tensor:
    """Probabilities of the label list on the images of the maker's source, `(N, A)`; `keep` as a run of their own."""
    part = maker.probabilities()
    if keep:
        engine.store.keep_experiments(maker.name, [part.experiment.key])
    raise_failures(engine.run([part], sources, desc="probabilities"), engine.store)
    return torch.from_numpy(engine.store.read(part.experiment.key)["prob"])


def probabilities(classifier: Classifier, images: ImageSet | Tensor, engine: Engine | None = None, device: str | None = None) -> Tensor:
    """Probabilities of the label list on whole images, `(N, A)` on the CPU, kept in the engine's store.

    Example:
        >>> probabilities(load_classifier("cifar10-resnet20"), load_images("cifar10-samples")).shape  # doctest: +SKIP
        torch.Size([20, 10])
    """
    if engine is None:
        with open_engine(None, show_progress=False) as own:
            return probabilities(classifier, images, own, device)
    inputs, ids = named(images)
    source = Source(classifier, inputs, ids, inputs[:0], device)
    return _probabilities(PartMaker("probabilities", source, 0), [source], engine, keep=True)


def rescore(result: xr.Dataset, protocol: Protocol | str) -> xr.Dataset:
    """Completeness and soundness of an evaluation under another protocol's thresholds; areas and probabilities stay as they are.

    Example:
        >>> rescore(scores, "released").soundness  # doctest: +SKIP
    """
    rules = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    g, f = xr.broadcast(result.insertion_auc, result.prob)
    thresholds = {"eps_completeness": rules.eps_completeness, "eps_soundness": rules.eps_soundness}
    scored = result.assign(completeness=completeness(g, f, rules.eps_completeness), soundness=soundness(g, f, rules.eps_soundness))
    return scored.assign_attrs(thresholds)


def _check_evaluate(
    classifier: Classifier,
    images: ImageSet | Tensor,
    methods: Mapping[str, SaliencyMethod] | Sequence[str],
    protocol: Protocol | str,
    deletion: str,
) -> tuple[dict[str, SaliencyMethod], Protocol]:
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier: expected a salkit.models.Classifier, got {type(classifier).__name__}")
    if not isinstance(images, (ImageSet, Tensor)):
        raise TypeError(f"images: expected an ImageSet or a tensor (N, 3, H, W), got {type(images).__name__}")
    if not len(images):
        raise ValueError("images: expected at least one image, got none")
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected a Protocol or one of {sorted(PROTOCOLS)}, got {protocol!r}")
    if deletion not in ("prediction", "all", "none"):
        raise ValueError(f"deletion: expected 'prediction', 'all' or 'none', got {deletion!r}")
    if isinstance(methods, str):
        raise TypeError(f"methods: expected names or a mapping of name to method, got the string {methods!r}")
    chosen = dict(methods) if isinstance(methods, Mapping) else {name: get_method(name) for name in methods}
    for name, method in chosen.items():
        if not isinstance(method, SaliencyMethod):
            raise TypeError(f"methods: expected objects with an `attribute` method, got {type(method).__name__} for {name!r}")
    if not chosen:
        raise ValueError("methods: expected at least one, got none")
    return chosen, PROTOCOLS[protocol] if isinstance(protocol, str) else protocol


def _check_targets(targets: Tensor | None, prob: Tensor) -> Tensor:
    n, n_labels = prob.shape
    if targets is None:
        return torch.arange(n_labels).expand(n, -1)
    if targets.dtype != torch.int64 or targets.ndim != 2 or len(targets) != n or not targets.shape[1]:
        raise ValueError(f"targets: expected int64 of shape ({n}, k), got {targets.dtype} of shape {tuple(targets.shape)}")
    if targets.min() < 0 or targets.max() >= n_labels:
        raise ValueError(f"targets: expected indices 0 to {n_labels - 1}, got {targets.min()} to {targets.max()}")
    return targets.cpu()


def _label_coords(classifier: Classifier, images: ImageSet | Tensor, targets: Tensor, n_labels: int) -> dict[str, object]:
    """Names of the labels; where every image has labels of its own, their names a (image, label)."""
    indices = list(range(n_labels) if classifier.labels is None else classifier.labels)
    known = isinstance(images, ImageSet) and len(images.class_names) > max(indices)
    names = np.array([images.class_names[i] if known and isinstance(images, ImageSet) else str(i) for i in indices])
    if len(set(names)) < len(names):
        names = np.array([f"{name} ({i})" for name, i in zip(names, indices, strict=True)])
    if torch.equal(targets, torch.arange(n_labels).expand(len(targets), -1)):
        return {"label": names.tolist()}
    places = [f"label {i + 1}" for i in range(targets.shape[1])]
    return {"label": places, "label_name": names[targets.numpy()].tolist()}

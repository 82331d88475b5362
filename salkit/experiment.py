"""The runs behind the notebooks: what is evaluated on what, computed once and kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from salkit.curves import auc
from salkit.data import ImageSet, load_distractors, open_images
from salkit.evaluation import evaluate, probabilities, rescore
from salkit.masker_training import make_masker, taps_of, train_masker
from salkit.methods import SaliencyMethod
from salkit.methods.masker import masker_metadata, save_masker
from salkit.models import load_classifier
from salkit.profiles import (
    CHEAP_ROWS,
    PAPER_ROWS,
    SANITY_ROWS,
    Study,
    get_profile,
    masker_recipes,
    our_methods,
    picture_methods,
    table1_methods,
    tv_sweep_methods,
)
from salkit.sanity import STAGES, layer_randomisation
from salkit.scores import PROTOCOLS, Protocol
from salkit.store import describe, fingerprint, kept_result


def resolve_device(device: str = "auto") -> str:
    """`"auto"` becomes CUDA where there is one, else the CPU; anything else is taken as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def run_tv_sweep(profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None) -> xr.Dataset:
    """Evaluate the CIFAR-10 sweep of a profile (notebook 02), with curves and heatmaps.

    Raises:
        ValueError: unknown profile.
    """
    chosen = get_profile(profile)
    methods = tv_sweep_methods(chosen.cifar10, chosen.tvs, PROTOCOLS["paper"])
    return _run("tv_sweep", chosen.cifar10, methods, seed, device, output_dir, keep_curves=True, keep_heatmaps=True)


def run_table1(profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None) -> xr.Dataset:
    """Evaluate all methods of Table 1 of a profile (notebooks 03, 04 and 06), with curves, games with blur, and the saliency metric.

    Raises:
        ValueError: unknown profile.
        FileNotFoundError: the profile's classifier has no maskers yet; notebook 00 trains them.
    """
    study = get_profile(profile).imagenette
    methods = table1_methods(study, PROTOCOLS["paper"], _checkpoints(output_dir))
    return _run("table1", study, methods, seed, device, output_dir, keep_curves=True, blur_games=True)


def run_protocol_grid(
    profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None
) -> dict[tuple[str, str], xr.Dataset]:
    """Evaluate our four settings and the cheap rows for each softmax scope and loss (notebook 06), with curves.

    Maps are learned once a (scope, loss), on the first images of Table 1's; the maps of the cheap rows depend on neither, their scores
    on the scope. What Table 1 has computed is taken from there.

    Returns:
        (softmax_over, loss) -> evaluation of the same methods and images.

    Raises:
        ValueError: unknown profile.
    """
    study = get_profile(profile).imagenette
    every = table1_methods(study, PROTOCOLS["paper"], _checkpoints(output_dir))
    cheap = {name: every[name] for name in CHEAP_ROWS}
    names = [*our_methods(study, PROTOCOLS["paper"]), *cheap]
    table1 = run_table1(profile, seed=seed, device=device, output_dir=output_dir)
    grid = {("all", "nll"): table1.isel(image=slice(study.grid_images)).sel({"method": names})}

    for protocol in (Protocol("all", loss="released"), Protocol("labels", loss="nll"), Protocol("labels", loss="released")):
        ours = our_methods(study, protocol)
        learned = _run("grid", study, ours, seed, device, output_dir, _first(study, seed), protocol=protocol, keep_curves=True)
        if protocol.softmax_over == "all":
            rest = grid["all", "nll"].sel({"method": list(cheap)})
        else:
            plain = replace(protocol, loss="nll")
            rest = _run("grid", study, cheap, seed, device, output_dir, _first(study, seed), protocol=plain, keep_curves=True)
        shared = ["prob", "prediction", "insertion_auc", "insertion_curve"]
        grid[protocol.softmax_over, protocol.loss] = _joined([learned[shared], rest[shared]])
    return grid


def run_table1_under(
    protocol: Protocol, profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None
) -> xr.Dataset:
    """The paper's eleven rows of Table 1 under another protocol; on the grid's images where maps or probabilities depend on it.

    Raises:
        ValueError: unknown profile.
    """
    table1 = run_table1(profile, seed=seed, device=device, output_dir=output_dir)
    scope, rule = (protocol.softmax_over, protocol.loss), protocol.auc_rule
    if scope == ("all", "nll"):
        result = table1
    else:
        study = get_profile(profile).imagenette
        grid = run_protocol_grid(profile, seed=seed, device=device, output_dir=output_dir)[scope]
        rest = {
            name: method
            for name, method in table1_methods(study, protocol, _checkpoints(output_dir)).items()
            if name in ("iGOS++", "Fong and Vedaldi")
        }
        plain = replace(protocol, loss="nll")
        more = _run("grid", study, rest, seed, device, output_dir, _first(study, seed), protocol=plain, keep_curves=True)
        result = _joined([grid, more[list(grid.data_vars)]])
    curves = torch.from_numpy(result.insertion_curve.transpose("method", "image", "label", "kept").values)
    areas = result.insertion_auc.transpose("method", "image", "label").copy(data=auc(curves, rule).numpy())
    rows = [name for name in table1.method.values if name in result.method.values and name in PAPER_ROWS]
    return rescore(result.assign(insertion_auc=areas), protocol).sel({"method": rows})


def run_train_maskers(profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None) -> pd.DataFrame:
    """Train the maskers of a profile's ImageNet classifier (notebook 00) and keep them under `output_dir/checkpoints`.

    A training that was stopped goes on where it was; one that is done is not repeated. `paper` trains on Imagenette's training images,
    the other profiles show the training on the packaged images outside the label list (the maskers they use are shipped).

    Returns:
        The learning curves: column `masker`, and those of `train_masker`.

    Raises:
        ValueError: unknown profile.
    """
    study, device = get_profile(profile).imagenette, resolve_device(device)
    folder = _checkpoints(output_dir or tempfile.mkdtemp())
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    files = open_images(study.data, split="train")
    if study.preset == "fast":
        files = files.subset([i for i, label in enumerate(files.labels) if label not in (study.labels or ())])
    curves = []
    for name, recipe in masker_recipes(study).items():
        recipe = replace(recipe, seed=seed)
        settings = {"recipe": asdict(recipe), "classifier": study.classifier, "data": study.data}
        path = folder / f"{name}-{study.classifier}.safetensors"
        if not path.is_file() or masker_metadata(path).get("settings_key") != fingerprint(settings):
            classifier = load_classifier(study.classifier, device=device)
            held_out = study.images()
            held_out = held_out.sample(min(200, len(held_out)), seed)
            masker = make_masker(classifier, taps_of(study.classifier), recipe, held_out.images.shape[-1])
            state = folder / f"{name}-{fingerprint(settings)}.state"
            log = train_masker(masker, classifier, files, held_out, recipe, state_path=state)
            trained = {"classifier": study.classifier, "recipe": asdict(recipe), "n_train": len(files.ids), "n_val": len(held_out)}
            save_masker(masker, path, trained | {"log": log, "settings_key": fingerprint(settings)})
        curves.append(pd.DataFrame(masker_metadata(path)["log"]).assign(masker=name))
    return pd.concat(curves, ignore_index=True)


def run_two_labels(
    profile: str,
    *,
    picture: bool = False,
    seed: int = 0,
    device: str = "auto",
    output_dir: str | Path | None = None,
) -> xr.Dataset:
    """Evaluate methods on the images with the most probable second-best class, for their two best classes each.

    Many images and all methods of Table 1 measure best effort (Figure 4, right) where no label of the list but the true one is
    plausible; with `picture` it is the first image, three methods and their heatmaps (Figure 2).

    Raises:
        ValueError: unknown profile.
    """
    study = replace(get_profile(profile).imagenette, labels=None)
    methods = table1_methods(study, PROTOCOLS["paper"], _checkpoints(output_dir))
    if picture:
        methods = picture_methods(study, PROTOCOLS["paper"], "Ours", "Ours (TV=0.001)", "Ours (cheating)")

    def pick(images: ImageSet, prob: Tensor) -> tuple[ImageSet, Tensor]:
        top = prob.topk(2)
        second = top.values[:, 1].argsort(descending=True)[: 1 if picture else study.own_label_images]
        return images.subset(second), top.indices[second]

    study = replace(study, held_out=0)
    return _run("two_labels", study, methods, seed, device, output_dir, pick, keep_heatmaps=picture)


def run_gallery(profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None) -> xr.Dataset:
    """Evaluate the paper's method for every label of the image with the most confident prediction.

    Raises:
        ValueError: unknown profile.
    """
    study = replace(get_profile(profile).imagenette, held_out=0)
    ours = picture_methods(study, PROTOCOLS["paper"], "Ours")

    def pick(images: ImageSet, prob: Tensor) -> tuple[ImageSet, None]:
        return images.subset([int(prob.amax(1).argmax())]), None

    return _run("gallery", study, ours, seed, device, output_dir, pick, keep_heatmaps=True)


def run_sanity(profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None) -> xr.Dataset:
    """Layer randomisation of a profile (notebook 05): ours and two cheap methods, both ways, on a few images.

    Raises:
        ValueError: unknown profile.
    """
    study, protocol, device = get_profile(profile).imagenette, PROTOCOLS["paper"], resolve_device(device)
    # Passes no larger than the few pairs there are.
    every = table1_methods(study, protocol, _checkpoints(output_dir), internal_batch_size=study.sanity_images * study.n_distractors)
    methods = {name: every[name] for name in SANITY_ROWS}

    def compute() -> xr.Dataset:
        classifier = load_classifier(study.classifier, study.labels, protocol.softmax_over, device)
        images = study.images()
        images = images.sample(min(study.sanity_images, len(images)), seed)
        pool = load_distractors(study.data, n=study.pool, seed=seed)
        return layer_randomisation(classifier, STAGES[study.classifier], images, methods, distractors=pool, seed=seed)

    described = {name: describe(method) for name, method in methods.items()}
    return kept_result("sanity", {"study": asdict(study), "methods": described, "seed": seed, "device": device}, output_dir, compute)


def _first(study: Study, seed: int) -> Callable[[ImageSet, Tensor], tuple[ImageSet, None]]:
    """The first images of Table 1's sample, as many as the grid of protocols takes."""

    def pick(images: ImageSet, prob: Tensor) -> tuple[ImageSet, None]:
        del prob
        return images.sample(min(study.n_images, len(images)), seed).subset(range(min(study.grid_images, len(images)))), None

    return pick


def _run(
    name: str,
    study: Study,
    methods: dict[str, SaliencyMethod],
    seed: int,
    device: str,
    output_dir: str | Path | None,
    pick: Callable[[ImageSet, Tensor], tuple[ImageSet, Tensor | None]] | None = None,
    protocol: Protocol = PROTOCOLS["paper"],
    **kept: bool,
) -> xr.Dataset:
    """Evaluate methods at a study's size, each method computed once and kept.

    `pick` chooses images and their labels from all images and their probabilities; the default is a sample with all labels.
    """
    device = resolve_device(device)

    @cache
    def load() -> tuple[Any, ...]:
        classifier = load_classifier(study.classifier, study.labels, protocol.softmax_over, device)
        images, targets, held_out = study.images(), None, None
        if pick is None:
            images, rest = images.split(min(study.n_images, len(images)), seed)
            held_out = rest.sample(min(study.held_out, len(rest)), seed) if study.held_out and len(rest) else None
        else:
            images, targets = pick(images, probabilities(classifier, images.images))
        return classifier, images, targets, held_out, load_distractors(study.data, n=study.pool, seed=seed)

    def compute(method: str) -> xr.Dataset:
        classifier, images, targets, held_out, pool = load()
        result = evaluate(
            classifier,
            images,
            {method: methods[method]},
            targets=targets,
            distractors=pool,
            protocol=protocol,
            n_steps=study.n_points,
            held_out=held_out,
            seed=seed,
            images_per_batch=study.images_per_batch,
            **kept,  # type: ignore[arg-type]
        )
        return result.assign_attrs(data=study.data, classifier=study.classifier, device=device)

    base = {"study": asdict(study), "protocol": asdict(protocol), "seed": seed, "device": device, "kept": kept}
    parts = [
        kept_result(f"{name}-{i:02d}", base | {"method": [m, describe(method)]}, output_dir, lambda m=m: compute(m))  # type: ignore[misc]
        for i, (m, method) in enumerate(methods.items())
    ]
    return _joined(parts)


def _joined(parts: list[xr.Dataset]) -> xr.Dataset:
    """Evaluations of different methods on the same images as one."""
    return xr.concat(parts, "method", data_vars="minimal", coords="minimal", compat="override", join="override", combine_attrs="override")


def _checkpoints(output_dir: str | Path | None) -> Path | None:
    return None if output_dir is None else Path(output_dir) / "checkpoints"

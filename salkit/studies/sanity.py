"""Layer randomisation (Adebayo et al. 2018): does a map change when the net's weights are replaced by random ones?

Two things look like change and are none: a map that shows nothing, and a map so noisy that it does not even agree with itself. So a
constant map counts as no map, and there is a control: the trained net's map with another seed. The randomised nets' maps have that seed,
too. They differ from the control in the weights alone, so a method that ignores the weights comes out equal to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import stats
from skimage.feature import hog
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from salkit.checks import check_choice, check_integer, check_number
from salkit.data.images import ImageSet
from salkit.engine.executors import Engine, open_engine
from salkit.evaluation.arguments import check_methods, check_scene
from salkit.evaluation.evaluate import explain as heatmaps_of
from salkit.evaluation.evaluate import probabilities
from salkit.methods import SaliencyMethod
from salkit.models.classifier import Classifier
from salkit.progress import progress_bar
from salkit.statistics import paired_comparison

Mode = Literal["cascading", "independent"]
Explain = Literal["original", "randomised"]

_CIFAR_STAGES: dict[str, tuple[str, ...]] = {f"stage{i}": (f"features.stage{i}",) for i in (3, 2, 1)}
_CIFAR_RESNET: dict[str, tuple[str, ...]] = {"output": ("output",)} | _CIFAR_STAGES | {"init": ("features.init_block",)}

STAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10-resnet20": _CIFAR_RESNET,
    "cifar10-resnet164": _CIFAR_RESNET,
    "efficientnet-lite0": {
        "fc": ("_fc",),
        "head": ("_conv_head", "_bn1"),
        "blocks 11-15": tuple(f"_blocks.{i}" for i in range(11, 16)),
        "blocks 5-10": tuple(f"_blocks.{i}" for i in range(5, 11)),
        "blocks 1-4": tuple(f"_blocks.{i}" for i in range(1, 5)),
        "stem": ("_blocks.0", "_conv_stem", "_bn0"),
    },
    "resnet50": {**{name: (name,) for name in ("fc", "layer4", "layer3", "layer2", "layer1")}, "conv1": ("conv1", "bn1")},
}
"""Classifier -> its stages from the output to the input -> names of the modules of each."""


def randomise(net: nn.Module, modules: Sequence[str], seed: int = 0) -> nn.Module:
    """A copy of a net in which the modules of these names have new random parameters.

    PyTorch's initialiser of each layer (`reset_parameters`) draws them; the net's authors may have used others. Batch norms get weight 1
    and bias 0 and keep their running statistics, which are not parameters (as in the TensorFlow code of Adebayo et al.).

    Raises:
        ValueError: the net has no module of such a name.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> bool((randomise(net, ["0"])[0].weight == net[0].weight).all())
        False
    """
    _check_modules(net, modules)
    changed = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in modules:
            for module in changed.get_submodule(name).modules():
                kept = {k: v.clone() for k, v in module.named_buffers(recurse=False)}
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
                for k, v in kept.items():
                    module.get_buffer(k).copy_(v)
    return changed


def _check_modules(net: nn.Module, names: Sequence[str]) -> None:
    known = dict(net.named_modules())
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"modules: expected names of modules of {type(net).__name__}, got {missing}")


def layer_randomisation(
    classifier: Classifier,
    stages: Mapping[str, Sequence[str]],
    images: ImageSet,
    methods: Mapping[str, SaliencyMethod],
    *,
    modes: Sequence[Mode] = get_args(Mode),
    explain: Explain = "original",
    distractors: ImageSet | None = None,
    seed: int = 0,
    device: str | None = None,
    engine: Engine | None = None,
    show_progress: bool = True,
) -> xr.Dataset:
    """Similarity of maps before and after randomising a net's stages, and of two maps of the trained net that differ in the seed alone.

    Args:
        classifier: the trained net; the methods explain its predictions.
        stages: name -> names of modules, from the output to the input, such as `STAGES["resnet50"]`.
        images: the images to explain.
        methods: name -> method.
        modes: `"cascading"` randomises all stages from the output down to this one, `"independent"` this one alone.
        explain: explain the `"original"` prediction, or that of the `"randomised"` net as the authors' notebooks do.
        distractors: for methods that need them; None takes `images`.
        seed: of the weights, and of the draws of the trained net's maps; all others are drawn with `seed + 1`.
        device: where to compute, see `evaluate`.
        engine: keeps the maps of every net in its store; None keeps none.
        show_progress: whether to show a bar over the nets.

    Returns:
        Variables `spearman`, `spearman_absolute`, `ssim`, `hog` with dims `(mode, stage, method, image)`, see `similarity`. The same with
        `_control` at the end, `(method, image)`, between the trained net's maps of both seeds: 1 for a method without random draws. NaN
        where one of two maps is no map. For the first image `heatmap (mode, stage, method, y, x)`, `original` and `control
        (method, y, x)`, and `pixels (y, x, channel)`.

    Raises:
        ValueError: unknown modules, modes or `explain`, or no modes or stages.
        TypeError: `images` is not an `ImageSet`.
    """
    check_choice("explain", explain, get_args(Explain))
    for mode in modes:
        check_choice("modes", mode, get_args(Mode))
    if not (modes and stages):
        raise ValueError(f"modes, stages: expected at least one of each, got {list(modes)} and {list(stages)}")
    if not isinstance(images, ImageSet):
        raise TypeError(f"images: expected an ImageSet, got {type(images).__name__}")
    _, _, pool = check_scene(classifier, images, distractors)
    check_methods(methods)
    check_integer("seed", seed)
    _check_modules(classifier.net, [name for stage in stages.values() for name in stage])
    run: list[str] = []
    with open_engine(None, show_progress=False) if engine is None else nullcontext(engine) as shared:
        quiet = replace(shared, show_progress=False)

        def predict(net: Classifier) -> Tensor:
            return probabilities(net, images, quiet, device).argmax(1)

        def maps(net: Classifier, target: Tensor, seed: int = seed) -> np.ndarray:
            where: Any = {"distractors": pool, "engine": quiet, "name": "layer_randomisation", "seed": seed, "device": device, "run": run}
            return np.stack([heatmaps.numpy() for heatmaps in heatmaps_of(net, images, methods, target, **where).values()])

        prediction = predict(classifier)
        original, control, parts = maps(classifier, prediction), maps(classifier, prediction, seed + 1), []
        for mode, last in progress_bar(list(product(modes, range(len(stages)))), show_progress, desc="randomised nets"):
            together = list(stages.values())[0 if mode == "cascading" else last : last + 1]
            net = randomise(classifier.net, [name for stage in together for name in stage], seed)
            changed = Classifier(net, classifier.labels, classifier.softmax_over)
            heatmaps = maps(changed, prediction if explain == "original" else predict(changed), seed + 1)
            parts.append(_similarities(original, heatmaps) | {"heatmap": heatmaps[:, 0]})
    arrays = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    arrays = {name: values.reshape(len(modes), len(stages), *values.shape[1:]) for name, values in arrays.items()}
    dims = ("mode", "stage", "method")
    coords = {"mode": list(modes), "stage": list(stages), "method": list(methods), "image": list(images.ids)}
    result = xr.Dataset({name: ((*dims, "image"), arrays[name]) for name in SIMILARITIES}, coords)
    result = result.assign({f"{name}_control": (("method", "image"), v) for name, v in _similarities(original, control).items()})
    result["heatmap"] = ((*dims, "y", "x"), arrays["heatmap"])
    result = result.assign({name: (("method", "y", "x"), m[:, 0]) for name, m in (("original", original), ("control", control))})
    return result.assign(pixels=(("y", "x", "channel"), images.subset([0]).pixels()[0].numpy()))


def _similarities(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure of `similarity` for maps `(method, image, H, W)`: name -> `(method, image)` float32."""
    scores = [[similarity(a, b) for a, b in zip(*maps, strict=True)] for maps in zip(before, after, strict=True)]
    return {name: np.array([[values[name] for values in row] for row in scores], np.float32) for name in SIMILARITIES}


SIMILARITIES = ("spearman", "spearman_absolute", "ssim", "hog")
EMPTY = 0.99
"""A map of which more than this share of the pixels has one value is no map."""
SELF_AGREEMENT = 0.3
"""The least correlation of a method's maps of two seeds for which a change of the weights can show: less than a tenth (0.3 squared) of the
variance of a noisier map comes again by itself."""


def similarity(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """How alike two maps `(H, W)` are; 1 for equal ones, about 0 for unrelated ones (but SSIM, which depends on what they look like).

    Returns:
        `spearman` rank correlation, `spearman_absolute` the same of absolute values clipped at their 99th percentile, `ssim` with
        Gaussian weights of the maps scaled to [0, 1], and `hog`, the Pearson correlation of histograms of oriented gradients in cells
        of a fourteenth of the side (16 pixels of 224). All are NaN where one of the two is no map (`is_no_map`), and one is NaN where
        what it computes from a map is constant.

    Example:
        >>> ramp = np.arange(1024.0).reshape(32, 32)
        >>> round(similarity(ramp, -ramp)["spearman"], 6)
        -1.0
    """
    if is_no_map(a) or is_no_map(b):
        return dict.fromkeys(SIMILARITIES, np.nan)

    def correlation(measure: Callable[..., Any], pair: Sequence[np.ndarray]) -> float:
        return float(measure(*pair).statistic) if all(np.ptp(values) for values in pair) else np.nan

    magnitudes = [np.minimum(np.abs(m), np.percentile(np.abs(m), 99)).ravel() for m in (a, b)]
    scaled = [(m - m.min()) / np.ptp(m) for m in (a.astype(np.float64), b.astype(np.float64))]
    cell = max(2, round(a.shape[0] / 14))
    histograms = [hog(m, pixels_per_cell=(cell, cell), cells_per_block=(2, 2)) for m in scaled]
    return {
        "spearman": correlation(stats.spearmanr, (a.ravel(), b.ravel())),
        "spearman_absolute": correlation(stats.spearmanr, magnitudes),
        "ssim": float(structural_similarity(*scaled, gaussian_weights=True, data_range=1.0)),
        "hog": correlation(stats.pearsonr, histograms),
    }


def is_no_map(heatmap: np.ndarray) -> bool:
    """Whether a map `(H, W)` says nothing: more than 99 % of its pixels have one and the same value.

    Example:
        >>> is_no_map(np.zeros((8, 8))), is_no_map(np.eye(8))
        (True, False)
    """
    return bool(np.unique(heatmap, return_counts=True)[1].max() > EMPTY * heatmap.size)


def verdicts(result: xr.Dataset, measure: str = "spearman", alpha: float = 0.05) -> pd.DataFrame:
    """For every stage and method: do the maps change with the weights?

    Compared are the similarity to the trained net's map and the control, that map's similarity to another seed's, paired over the images
    that have maps:

    - `"no map"`: on more than half of the images one of the maps is constant.
    - `"cannot tell: the map does not agree with itself"`: the mean control is below 0.3 (`SELF_AGREEMENT`).
    - `"changes with the weights"`: the similarity is clearly below half the control.
    - `"changes in part"`: clearly below the control, not clearly below half of it.
    - `"does not change"`: not clearly below the control, clearly above half of it.
    - `"cannot tell at n = 4"`: none of these; below six images the test can say nothing.

    Clearly: the two-sided sign-flip test has p <= `alpha`, by itself (correct it where many verdicts are read together).

    Args:
        result: of `layer_randomisation`.
        measure: `"spearman"`, `"spearman_absolute"` or `"hog"`, which are about 0 for unrelated maps.
        alpha: of the tests.

    Returns:
        One row a (mode, stage, method): `no_map`, the share of the images; `n`, the others; the means `similarity` and `control`, and
        `difference` of the two with its interval `low`, `high` and `p_value`; `verdict`.

    Raises:
        ValueError: another measure, or an alpha outside [0, 1].

    Example:
        >>> verdicts(result).query("mode == 'cascading' and stage == 'stem'")[["method", "verdict"]]  # doctest: +SKIP
    """
    check_choice("measure", measure, ("spearman", "spearman_absolute", "hog"))
    check_number("alpha", alpha, 0, 1)
    rows = []
    for mode, stage, method in product(*(result[dim].values for dim in ("mode", "stage", "method"))):
        after = result[measure].sel({"mode": mode, "stage": stage, "method": method}).values.astype(np.float64)
        control = result[f"{measure}_control"].sel({"method": method}).values.astype(np.float64)
        there = ~np.isnan(after + control)
        after, control = after[there], control[there]
        row = {"mode": mode, "stage": stage, "method": method, "no_map": 1 - there.mean(), "n": int(there.sum())}
        if row["n"]:
            change, rest = paired_comparison(after, control), paired_comparison(after, control / 2)
            row |= {"similarity": after.mean(), "control": control.mean()}
            row |= {"difference": change.mean, "low": change.low, "high": change.high, "p_value": change.p_value}
        if row["no_map"] > 0.5:
            row["verdict"] = "no map"
        elif row["control"] < SELF_AGREEMENT:
            row["verdict"] = "cannot tell: the map does not agree with itself"
        elif change.mean < 0 and change.p_value <= alpha:
            most_is_gone = rest.mean < 0 and rest.p_value <= alpha
            row["verdict"] = "changes with the weights" if most_is_gone else "changes in part"
        elif rest.mean > 0 and rest.p_value <= alpha:
            row["verdict"] = "does not change"
        else:
            row["verdict"] = f"cannot tell at n = {row['n']}"
        rows.append(row)
    return pd.DataFrame(rows)

"""Layer randomisation (Adebayo et al. 2018): does a map change when the net forgets what it learned?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from scipy import stats
from skimage.feature import hog
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from salkit.checks import check_choice, check_integer
from salkit.data.images import ImageSet
from salkit.engine.executors import Engine, open_engine
from salkit.evaluation.arguments import check_methods, check_scene
from salkit.evaluation.evaluate import explain as heatmaps_of
from salkit.evaluation.evaluate import probabilities
from salkit.methods import SaliencyMethod
from salkit.models.classifier import Classifier
from salkit.progress import progress_bar

Mode = Literal["cascading", "independent"]
Explain = Literal["original", "randomised"]

STAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10-resnet20": {
        "output": ("output",),
        "stage3": ("features.stage3",),
        "stage2": ("features.stage2",),
        "stage1": ("features.stage1",),
        "init": ("features.init_block",),
    },
    "cifar10-resnet164": {
        "output": ("output",),
        "stage3": ("features.stage3",),
        "stage2": ("features.stage2",),
        "stage1": ("features.stage1",),
        "init": ("features.init_block",),
    },
    "efficientnet-lite0": {
        "fc": ("_fc",),
        "head": ("_conv_head", "_bn1"),
        "blocks 11-15": tuple(f"_blocks.{i}" for i in range(11, 16)),
        "blocks 5-10": tuple(f"_blocks.{i}" for i in range(5, 11)),
        "blocks 1-4": tuple(f"_blocks.{i}" for i in range(1, 5)),
        "stem": ("_blocks.0", "_conv_stem", "_bn0"),
    },
    "resnet50": {
        "fc": ("fc",),
        "layer4": ("layer4",),
        "layer3": ("layer3",),
        "layer2": ("layer2",),
        "layer1": ("layer1",),
        "conv1": ("conv1", "bn1"),
    },
}
"""Stages of the kit's classifiers from the output to the input, each with the modules it is made of."""


def randomise(net: nn.Module, modules: Sequence[str], seed: int = 0) -> nn.Module:
    """A copy of a net in which the modules of these names have new random parameters.

    They are drawn by PyTorch's own initialisers of the layers (`reset_parameters`), which may differ from those of the net's authors.
    Batch norms get weight 1 and bias 0 but keep their running statistics, which are no parameters (as in the authors' TensorFlow code).

    Raises:
        ValueError: the net has no module of that name.

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
    """Similarity of maps before and after randomising a net's stages.

    Args:
        classifier: the trained net; its predictions are what is explained.
        stages: name -> names of modules, from the output to the input, such as `STAGES["resnet50"]`.
        images: what is explained.
        methods: name -> method.
        modes: `"cascading"` randomises all stages from the output down to this one, `"independent"` this one alone.
        explain: keep explaining the `"original"` prediction, or that of the `"randomised"` net, as the authors' notebooks do.
        distractors: for methods that need them; None takes `images`.
        seed: of weights and draws.
        device: where to compute, see `evaluate`.
        engine: keeps the maps of every net in its store; None keeps nothing.
        show_progress: a bar over the nets.

    Returns:
        Variables `spearman`, `spearman_absolute`, `ssim`, `hog` with dims `(mode, stage, method, image)`, see `similarity`; and for the
        first image `heatmap (mode, stage, method, y, x)`, `original (method, y, x)` and `pixels (y, x, channel)`.

    Raises:
        ValueError: unknown modules, modes or `explain`.
    """
    check_choice("explain", explain, get_args(Explain))
    for mode in modes:
        check_choice("modes", mode, get_args(Mode))
    if not isinstance(images, ImageSet):
        raise TypeError(f"images: expected an ImageSet, got {type(images).__name__}")
    check_scene(classifier, images, distractors)
    check_methods(methods)
    check_integer("seed", seed)
    _check_modules(classifier.net, [name for stage in stages.values() for name in stage])
    if engine is None:
        with open_engine(None, show_progress=False) as own:
            settings = {"modes": modes, "explain": explain, "distractors": distractors, "seed": seed, "device": device}
            return layer_randomisation(classifier, stages, images, methods, **settings, engine=own, show_progress=show_progress)  # type: ignore[arg-type]
    names, quiet = list(stages), replace(engine, show_progress=False)
    pool = (images if distractors is None else distractors).images
    prediction = probabilities(classifier, images, quiet, device).argmax(1)

    run: list[str] = []

    def maps(net: Classifier, target: Tensor) -> dict[str, np.ndarray]:
        where = {"distractors": pool, "engine": quiet, "name": "layer_randomisation", "seed": seed, "device": device, "run": run}
        return {name: heatmaps.numpy() for name, heatmaps in heatmaps_of(net, images, methods, target, **where).items()}  # type: ignore[arg-type]

    original = maps(classifier, prediction)
    shape = (len(modes), len(names), len(methods), len(images))
    found = {name: np.empty(shape, np.float32) for name in SIMILARITIES}
    shown = np.empty((*shape[:3], *images.images.shape[-2:]), np.float32)
    for at in progress_bar(list(np.ndindex(*shape[:2])), show_progress, desc="randomised nets"):
        mode, last = modes[at[0]], at[1]
        which = names[: last + 1] if mode == "cascading" else names[last : last + 1]
        net = randomise(classifier.net, [module for stage in which for module in stages[stage]], seed)
        changed = Classifier(net, classifier.labels, classifier.softmax_over)
        target = prediction if explain == "original" else probabilities(changed, images, quiet, device).argmax(1)
        for m, (name, heatmaps) in enumerate(maps(changed, target).items()):
            shown[(*at, m)] = heatmaps[0]
            for i, pair in enumerate(zip(original[name], heatmaps, strict=True)):
                for measure, value in similarity(*pair).items():
                    found[measure][(*at, m, i)] = value
    dims = ("mode", "stage", "method", "image")
    coords = {"mode": list(modes), "stage": names, "method": list(methods), "image": list(images.ids)}
    result = xr.Dataset({name: (dims, values) for name, values in found.items()}, coords)
    result["heatmap"] = ((*dims[:3], "y", "x"), shown)
    result["original"] = (("method", "y", "x"), np.stack([heatmaps[0] for heatmaps in original.values()]))
    return result.assign(pixels=(("y", "x", "channel"), images.subset([0]).pixels()[0].numpy()))


SIMILARITIES = ("spearman", "spearman_absolute", "ssim", "hog")


def similarity(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """How alike two maps `(H, W)` are; 1 for equal ones, about 0 for unrelated ones.

    Returns:
        `spearman` rank correlation, `spearman_absolute` the same of absolute values clipped at their 99th percentile, `ssim` with
        Gaussian weights of the maps scaled to [0, 1], and `hog`, the Pearson correlation of histograms of oriented gradients in cells
        of a fourteenth of the side (16 pixels of 224). Where a map, or what a measure makes of it, is constant, it is like nothing: 0.

    Example:
        >>> ramp = np.arange(1024.0).reshape(32, 32)
        >>> round(similarity(ramp, -ramp)["spearman"], 6)
        -1.0
    """
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return dict.fromkeys(SIMILARITIES, 0.0)

    def correlation(measure: Callable[..., Any], pair: Sequence[np.ndarray]) -> float:
        return float(measure(*pair).statistic) if all(np.ptp(values) for values in pair) else 0.0

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

"""What to run: profiles, the runs behind the notebooks, and how much work they are.

A profile changes sizes (and which data and classifier those sizes are for), never the code path.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from salkit.data import IMAGENET_SAMPLE_LABELS, IMAGENETTE_LABELS, ImageSet, load_distractors, load_images
from salkit.evaluation import evaluate, probabilities
from salkit.methods import CenteredGaussian, LearnedMask, Random, SaliencyMethod, gradient_x_input, same_map_for_all_labels
from salkit.models import load_classifier
from salkit.scores import PROTOCOLS, Protocol


@dataclass(frozen=True)
class Study:
    """One data set with its classifier, and the sizes it is run at.

    Attributes:
        data: name for `load_images`; only images of `labels` are used.
        classifier: name for `load_classifier`.
        labels: the label list; None for all classes of the net.
        n_images: how many images are drawn from the data set.
        pool: how many training images the distractors are drawn from.
        n_steps, n_distractors, lr: of mask learning; fewer steps take a higher rate.
        l1: weight of the mask's area, about one over the number of pixels.
        n_points: points of a curve, None for every pixel count.
        picture_steps: steps of the few masks that are shown as pictures.
        images_per_batch: images handed to a method at a time.
    """

    data: str
    classifier: str
    labels: tuple[int, ...] | None
    n_images: int
    pool: int
    n_steps: int
    n_distractors: int
    lr: float
    l1: float
    n_points: int | None
    picture_steps: int
    images_per_batch: int = 20

    def images(self) -> ImageSet:
        """All images of the data set whose label is in the list."""
        images = load_images(self.data)
        return images if self.labels is None else images.with_labels(self.labels)

    def learned_mask(self, protocol: Protocol, **settings: object) -> LearnedMask:
        """The paper's method at this study's size."""
        sizes = {"n_steps": self.n_steps, "n_distractors": self.n_distractors, "lr": self.lr, "l1": self.l1, "loss": protocol.loss}
        return LearnedMask(**(sizes | settings))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Profile:
    """Sizes of all notebooks.

    Attributes:
        cifar10, imagenette: the two studies.
        tvs: the values of lTV in the CIFAR-10 sweep.
        theory: of the toy model: `n_trials`, dimension `d`, and `ds` and `margins` to sweep.
    """

    name: str
    cifar10: Study
    imagenette: Study
    tvs: tuple[float, ...]
    theory: Mapping[str, Any] = field(default_factory=dict)


TVS = (0.0, 0.001, 0.01, 0.1, 1.0)

PROFILES = {
    "smoke": Profile(
        "smoke",
        Study("cifar10-samples", "cifar10-resnet20", None, 4, 20, 20, 1, 0.2, 1e-3, 16, 20),
        Study("imagenet-samples", "efficientnet-lite0", IMAGENET_SAMPLE_LABELS, 2, 20, 4, 1, 0.2, 2e-5, 7, 8),
        (0.0, 0.01, 0.1),
        {"d": 1_000, "n_trials": 200, "ds": (1_000, 10_000), "margins": (0.2, 0.4)},
    ),
    "demo": Profile(
        "demo",
        Study("cifar10-samples", "cifar10-resnet20", None, 20, 20, 60, 1, 0.2, 1e-3, 32, 60),
        Study("imagenet-samples", "efficientnet-lite0", IMAGENET_SAMPLE_LABELS, 7, 20, 20, 1, 0.2, 2e-5, 10, 80),
        TVS,
        {"d": 10_000, "n_trials": 500, "ds": (1_000, 10_000, 100_000), "margins": (0.1, 0.2, 0.4)},
    ),
    "paper": Profile(
        "paper",
        Study("cifar10", "cifar10-resnet164", None, 1000, 1000, 2000, 10, 0.05, 1e-3, None, 2000, 100),
        Study("imagenette", "resnet50", IMAGENETTE_LABELS, 1000, 1000, 2000, 10, 0.05, 2e-5, 28, 2000),
        TVS,
        {"d": 1_000_000, "n_trials": 1000, "ds": (1_000, 10_000, 100_000, 1_000_000), "margins": (0.05, 0.1, 0.2, 0.4)},
    ),
}
"""`smoke` shows that everything runs, `demo` fits a laptop, `paper` has the paper's sizes and wants a GPU."""


def get_profile(name: str) -> Profile:
    """A profile by name.

    Raises:
        ValueError: unknown name.

    Example:
        >>> get_profile("paper").imagenette.n_images
        1000
    """
    if name not in PROFILES:
        raise ValueError(f"profile: expected one of {list(PROFILES)}, got {name!r}")
    return PROFILES[name]


def resolve_device(device: str = "auto") -> str:
    """`"auto"` becomes CUDA where there is one, else the CPU; anything else is taken as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def tv_sweep_methods(study: Study, tvs: tuple[float, ...], protocol: Protocol) -> dict[str, SaliencyMethod]:
    """Section 6.1 on CIFAR-10: masks at full resolution (s = 1), one lTV each; the name of a method is its lTV."""
    return {f"{tv:g}": study.learned_mask(protocol, scale=1, tv=tv) for tv in tvs}


def table1_methods(study: Study, protocol: Protocol, **settings: object) -> dict[str, SaliencyMethod]:
    """The rows of Table 1 that need no other net: the paper's four settings, "cheating", and three cheap methods.

    `settings` go to every learned mask.
    """
    ours = study.learned_mask(protocol, **settings)
    return {
        "Gradient x Input": gradient_x_input(),
        "Ours": ours,
        "Ours (s=1)": study.learned_mask(protocol, scale=1, **settings),
        "Ours (TV=0.001)": study.learned_mask(protocol, tv=0.001, **settings),
        "Ours (gray)": study.learned_mask(protocol, infill="gray", **settings),
        "Ours (cheating)": same_map_for_all_labels(ours),
        "Random": Random(),
        "Centered Gaussian": CenteredGaussian(),
    }


def picture_methods(study: Study, protocol: Protocol, *names: str) -> dict[str, SaliencyMethod]:
    """Methods of Table 1 for the few masks that are looked at: more steps, and small passes since there are few pairs."""
    methods = table1_methods(study, protocol, n_steps=study.picture_steps, internal_batch_size=2 * study.n_distractors)
    return {name: methods[name] for name in names}


def run_tv_sweep(profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None) -> xr.Dataset:
    """Evaluate the CIFAR-10 sweep of a profile (notebook 02), with curves and heatmaps.

    Raises:
        ValueError: unknown profile.
    """
    chosen = get_profile(profile)
    methods = tv_sweep_methods(chosen.cifar10, chosen.tvs, PROTOCOLS["paper"])
    return _run("tv_sweep", chosen.cifar10, methods, seed, device, output_dir, True)


def run_table1(profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None) -> xr.Dataset:
    """Evaluate the methods of Table 1 of a profile (notebooks 03 and 04).

    Raises:
        ValueError: unknown profile.
    """
    study = get_profile(profile).imagenette
    return _run("table1", study, table1_methods(study, PROTOCOLS["paper"]), seed, device, output_dir)


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
    methods = table1_methods(study, PROTOCOLS["paper"])
    if picture:
        methods = picture_methods(study, PROTOCOLS["paper"], "Ours", "Ours (TV=0.001)", "Ours (cheating)")

    def pick(images: ImageSet, prob: Tensor) -> tuple[ImageSet, Tensor]:
        top = prob.topk(2)
        second = top.values[:, 1].argsort(descending=True)[: 1 if picture else study.n_images]
        return images.subset(second), top.indices[second]

    return _run("two_labels", study, methods, seed, device, output_dir, picture, pick)


def run_gallery(profile: str, *, seed: int = 0, device: str = "auto", output_dir: str | Path | None = None) -> xr.Dataset:
    """Evaluate the paper's method for every label of the image with the most confident prediction.

    Raises:
        ValueError: unknown profile.
    """
    study = get_profile(profile).imagenette
    ours = picture_methods(study, PROTOCOLS["paper"], "Ours")

    def pick(images: ImageSet, prob: Tensor) -> tuple[ImageSet, None]:
        return images.subset([int(prob.amax(1).argmax())]), None

    return _run("gallery", study, ours, seed, device, output_dir, True, pick)


def _run(
    name: str,
    study: Study,
    methods: dict[str, SaliencyMethod],
    seed: int,
    device: str,
    output_dir: str | Path | None,
    keep: bool = False,
    pick: Callable[[ImageSet, Tensor], tuple[ImageSet, Tensor | None]] | None = None,
) -> xr.Dataset:
    """Evaluate methods at a study's size, or read the result of the same run.

    `pick` chooses images and their labels from all images and their probabilities; the default is a sample with all labels.
    """
    device, protocol = resolve_device(device), PROTOCOLS["paper"]

    def compute() -> xr.Dataset:
        classifier = load_classifier(study.classifier, study.labels, protocol.softmax_over, device)
        images, targets = study.images(), None
        if pick is None:
            images = images.sample(min(study.n_images, len(images)), seed)
        else:
            images, targets = pick(images, probabilities(classifier, images.images))
        result = evaluate(
            classifier,
            images,
            methods,
            targets=targets,
            distractors=load_distractors(study.data, n=study.pool, seed=seed),
            protocol=protocol,
            n_steps=study.n_points,
            seed=seed,
            images_per_batch=study.images_per_batch,
            keep_curves=keep,
            keep_heatmaps=keep,
        )
        return result.assign_attrs(data=study.data, classifier=study.classifier, device=device)

    if output_dir is None:
        return compute()
    settings = {"study": asdict(study), "methods": {k: repr(m) for k, m in methods.items()}, "protocol": asdict(protocol)}
    key = fingerprint(settings | {"seed": seed, "device": device})
    return cached(Path(output_dir) / "results" / f"{name}-{key}.nc", compute)


def cached(path: Path, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The dataset at `path`, computed and written (whole or not at all) if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        compute().to_netcdf(partial, engine="scipy")
        os.replace(partial, path)
    with xr.open_dataset(path, engine="scipy") as stored:
        return stored.load()


COMPUTING = ("data", "models", "masking", "curves", "scores", "evaluation", "experiment")
"""The modules, besides the methods, that a stored result depends on; what is drawn or printed from it may change."""


def fingerprint(settings: object) -> str:
    """A hash of settings, of the code and of the library versions that change numbers: what a stored result goes by."""
    code = hashlib.blake2b(digest_size=8)
    folder = Path(__file__).parent
    for source in [folder / f"{name}.py" for name in COMPUTING] + sorted((folder / "methods").glob("*.py")):
        code.update(source.read_bytes())
    versions = {package: version(package) for package in ("torch", "torchvision", "numpy", "captum")}
    text = json.dumps([settings, code.hexdigest(), versions], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

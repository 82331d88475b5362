"""Profiles: how large every notebook's runs are, and the methods they compare.

A profile changes sizes (and which data and classifier those sizes are for), never the code path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from salkit.data.files import IMAGENET_SAMPLE_LABELS, IMAGENETTE_LABELS
from salkit.data.images import ImageSet, load_images
from salkit.methods import CenteredGaussian, LearnedMask, Random, SaliencyMethod, get_method, same_map_for_all_labels
from salkit.methods.masker import masker_path
from salkit.methods.masker_training import MaskerRecipe
from salkit.models.classifier import PrecisionChoice
from salkit.scores import Protocol


@dataclass(frozen=True, kw_only=True)
class Study:
    """One data set with its classifier, and the sizes of its runs.

    Attributes:
        data: name for `load_images`; only images of `labels` are used.
        classifier: name for `load_classifier`.
        labels: the label list; None for all classes of the net.
        n_images: how many images are drawn from the data set.
        pool: how many training images the distractors are drawn from.
        n_steps, n_distractors, lr: of mask learning; None for those of the schedule. Fewer steps need a higher rate.
        l1: weight of the mask's area, about one over the number of pixels.
        n_points: points of a curve; None for every pixel count.
        picture_steps: steps of the few masks that are shown as pictures; None for those of the schedule.
        images_per_batch: images handed to a method at a time.
        held_out: how many other images choose the thresholds of the saliency metric.
        own_label_images: how many images notebook 04 explains for their own two best labels.
        grid_images: how many of the images the grid of protocols is evaluated on.
        masker_images: how many training images notebook 00 shows to Dabkowski and Gal's masker in each of two phases, and to Phang's.
        sanity_images: how many images are explained before and after layers are randomised.
        followed: images, labels of each, and composites a pair (None for all) for which notebook 07 follows both schedules.
        schedule, precision: of mask learning, see `LearnedMask`.
        preset: of the other methods, see `salkit.methods.get_method`.
    """

    data: str
    classifier: str
    labels: tuple[int, ...] | None = None
    n_images: int
    pool: int
    n_steps: int | None = None
    n_distractors: int | None = None
    lr: float | None = None
    l1: float
    n_points: int | None = None
    picture_steps: int | None = None
    images_per_batch: int = 20
    held_out: int = 0
    own_label_images: int = 2
    grid_images: int = 0
    masker_images: tuple[int, int, int] = (120, 360, 360)
    sanity_images: int = 2
    followed: tuple[int, int, int | None] = (1, 2, 40)
    schedule: Literal["paper", "fast"] = "fast"
    precision: PrecisionChoice = "float32"
    preset: Literal["source", "fast"] = "fast"

    def images(self) -> ImageSet:
        """All images of the data set whose label is in the list."""
        images = load_images(self.data)
        return images if self.labels is None else images.with_labels(self.labels)

    @property
    def followed_points(self) -> int:
        """Points of the curves that notebook 07 measures during learning."""
        return self.n_points or 64

    def learned_mask(self, protocol: Protocol, **settings: object) -> LearnedMask:
        """The paper's method at this study's size."""
        names = ("schedule", "precision", "n_steps", "n_distractors", "lr", "l1")
        sizes = {name: getattr(self, name) for name in names} | {"loss": protocol.loss}
        return LearnedMask(**(sizes | settings))


@dataclass(frozen=True, kw_only=True)
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

_SMALL: dict[str, Any] = {"pool": 20, "n_distractors": 1, "lr": 0.2}
_LARGE: dict[str, Any] = {"n_images": 1000, "pool": 1000, "schedule": "paper"}
_CIFAR10: dict[str, Any] = {"data": "cifar10-samples", "classifier": "cifar10-resnet20", "l1": 1e-3}
_IMAGENET: dict[str, Any] = {"data": "imagenet-samples", "classifier": "efficientnet-lite0", "labels": IMAGENET_SAMPLE_LABELS, "l1": 2e-5}
_CIFAR10_FULL = _CIFAR10 | {"data": "cifar10", "classifier": "cifar10-resnet164"}
_IMAGENETTE = _IMAGENET | {"data": "imagenette", "classifier": "resnet50", "labels": IMAGENETTE_LABELS}
# Of what goes beyond Table 1. `paper` has the second phase of Dabkowski and Gal's masker as published, and the 12 epochs of Phang's over
# the 9,469 training images of Imagenette.
_MORE: dict[str, dict[str, Any]] = {
    "smoke": {"held_out": 2, "grid_images": 2, "sanity_images": 1, "masker_images": (24, 24, 24)},
    "demo": {"held_out": 5, "grid_images": 3, "own_label_images": 4, "followed": (1, 2, 50)},
    "paper": {"held_out": 200, "grid_images": 1000, "own_label_images": 1000, "sanity_images": 20, "followed": (100, 2, None)}
    | {"masker_images": (192_000, 192_000, 12 * 9_469), "preset": "source"},
}

_SMOKE = Profile(
    name="smoke",
    cifar10=Study(**_CIFAR10, **_SMALL, n_images=4, n_steps=20, n_points=16, picture_steps=20),
    imagenette=Study(**_IMAGENET, **_SMALL, **_MORE["smoke"], n_images=2, n_steps=4, n_points=7, picture_steps=8),
    tvs=(0.0, 0.01, 0.1),
    theory={"d": 1_000, "n_trials": 200, "ds": (1_000, 10_000), "margins": (0.2, 0.4)},
)
_DEMO = Profile(
    name="demo",
    cifar10=replace(_SMOKE.cifar10, n_images=12, n_steps=40, n_points=32, picture_steps=60, followed=(4, 4, 200)),
    imagenette=Study(**_IMAGENET, **_SMALL | {"lr": 0.3}, **_MORE["demo"], n_images=5, n_steps=12, n_points=8, picture_steps=48),
    tvs=TVS,
    theory={"d": 10_000, "n_trials": 500, "ds": (1_000, 10_000, 100_000), "margins": (0.1, 0.2, 0.4)},
)
_PAPER = Profile(
    name="paper",
    cifar10=Study(**_CIFAR10_FULL, **_LARGE, images_per_batch=100, followed=(100, 4, None)),
    imagenette=Study(**_IMAGENETTE, **_LARGE, **_MORE["paper"], n_points=28),
    tvs=TVS,
    theory={"d": 1_000_000, "n_trials": 1000, "ds": (1_000, 10_000, 100_000, 1_000_000), "margins": (0.05, 0.1, 0.2, 0.4)},
)
PROFILES = {profile.name: profile for profile in (_SMOKE, _DEMO, _PAPER)}
"""`smoke` shows that everything runs, `demo` fits a laptop, `paper` has the paper's sizes and wants a GPU."""


def get_profile(name: str, schedule: str = "", precision: str = "") -> Profile:
    """A profile by name. A schedule or precision of mask learning replaces the profile's own.

    Raises:
        ValueError: unknown name, schedule or precision.

    Example:
        >>> get_profile("paper").imagenette.n_images
        1000
    """
    if name not in list(PROFILES):
        raise ValueError(f"profile: expected one of {list(PROFILES)}, got {name!r}")
    profile = PROFILES[name]
    changes: Any = {name: value for name, value in (("schedule", schedule), ("precision", precision)) if value}
    LearnedMask(**changes)  # raises for unknown values
    return replace(profile, cifar10=replace(profile.cifar10, **changes), imagenette=replace(profile.imagenette, **changes))


def tv_sweep_methods(study: Study, tvs: tuple[float, ...], protocol: Protocol) -> dict[str, SaliencyMethod]:
    """Section 6.1 on CIFAR-10: masks at full resolution (s = 1), one lTV each; the name of a method is its lTV."""
    return {f"{tv:g}": study.learned_mask(protocol, scale=1, tv=tv) for tv in tvs}


def table1_methods(
    study: Study, protocol: Protocol, checkpoints: str | Path | None = None, **settings: object
) -> dict[str, SaliencyMethod]:
    """The rows of Table 1 in the paper's order, then "cheating" and six rows that the paper does not have.

    Args:
        study: sizes.
        protocol: its loss is the one that masks are learned with.
        checkpoints: folder with the trained maskers of a classifier for which the kit ships none.
        settings: of every learned mask.
    """
    prior = {
        "Gradient x Input": get_method("gradient_x_input"),
        "iGOS++": get_method("igos_pp", study.preset),
        "Dabkowski and Gal": get_method("dabkowski_gal", masker=masker_of("dabkowski_gal", study.classifier, checkpoints)),
        "Fong and Vedaldi": get_method("fong_vedaldi", study.preset),
        "Phang et al.": get_method("phang", masker=masker_of("phang", study.classifier, checkpoints)),
    }
    conditional = masker_of("phang-conditional", study.classifier, checkpoints)
    extra = {
        "Phang et al. (class)": get_method("phang", masker=conditional, class_conditional=True),
        "RISE": get_method("rise", study.preset),
        "Grad-CAM": get_method("grad_cam"),
        "SmoothGrad": get_method("smooth_grad", study.preset),
        "Integrated Gradients": get_method("integrated_gradients", study.preset),
        "LRP": get_method("lrp"),
    }
    ours = our_methods(study, protocol, **settings)
    cheating = {"Ours (cheating)": same_map_for_all_labels(ours["Ours"])}
    return prior | ours | {"Random": Random(), "Centered Gaussian": CenteredGaussian()} | cheating | extra


def our_methods(study: Study, protocol: Protocol, **settings: object) -> dict[str, SaliencyMethod]:
    """The paper's four settings of its method; `settings` apply to all of them."""
    return {
        "Ours": study.learned_mask(protocol, **settings),
        "Ours (s=1)": study.learned_mask(protocol, scale=1, **settings),
        "Ours (TV=0.001)": study.learned_mask(protocol, tv=0.001, **settings),
        "Ours (gray)": study.learned_mask(protocol, infill="gray", **settings),
    }


PAPER_ROWS = (
    *("Gradient x Input", "iGOS++", "Dabkowski and Gal", "Fong and Vedaldi", "Phang et al."),
    *("Ours", "Ours (s=1)", "Ours (TV=0.001)", "Ours (gray)", "Random", "Centered Gaussian"),
)
"""The eleven rows of the paper's Table 1."""

CHEAP_ROWS = ("Gradient x Input", "Dabkowski and Gal", "Phang et al.", "Random", "Centered Gaussian")
"""Rows of Table 1 whose maps do not depend on the protocol's loss."""

SANITY_ROWS = ("Ours", "Gradient x Input", "Grad-CAM")
"""Rows of Table 1 whose maps are compared before and after layers are randomised."""


def masker_recipes(study: Study) -> dict[str, MaskerRecipe]:
    """How notebook 00 trains the maskers of a study: name of the checkpoint -> recipe.

    The preset `fast` has small batches and crops, a narrow decoder, and a class embedding that starts from the classifier's weights.
    """
    first, second, third = study.masker_images
    sizes: dict[str, Any] = {"batch_size": 12, "size": 128, "eval_every": 10} if study.preset == "fast" else {"classes": study.labels}
    narrow: dict[str, Any] = {"widths": (8, 8, 16), "embedding": "classifier", "area_ramp": 0.7} if study.preset == "fast" else {}
    return {
        "dabkowski_gal": MaskerRecipe("dabkowski_gal", images=(first, second), **sizes, **narrow),
        "phang": MaskerRecipe("phang", images=(third,), **sizes),
        "phang-conditional": MaskerRecipe("phang", class_conditional=True, images=(third,), **sizes),
    }


def masker_of(kind: str, classifier: str, checkpoints: str | Path | None = None) -> str | Path:
    """The masker of a classifier: the shipped one if there is one, else the path where notebook 00 saves the one it trains."""
    name = f"{kind}-{classifier}"
    return name if checkpoints is None or masker_path(name).is_file() else Path(checkpoints) / f"{name}.safetensors"


def picture_methods(study: Study, protocol: Protocol, *names: str) -> dict[str, SaliencyMethod]:
    """Methods of Table 1 with more steps, for the few masks that are shown as pictures."""
    methods: dict[str, SaliencyMethod] = our_methods(study, protocol, n_steps=study.picture_steps)
    methods["Ours (cheating)"] = same_map_for_all_labels(methods["Ours"])
    return {name: methods[name] for name in names}

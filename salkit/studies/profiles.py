"""Profiles: the experiments of the notebooks on fewer or more images, and the methods that they compare.

`smoke`, `demo` and `overnight` nest. They have the same nets, methods and settings, and the smaller ones take the first images of the
larger ones' lists. `overnight` has been computed once, and its results are recorded. `smoke` and `demo` show them and compute a part again.
`paper` has the paper's own data, nets and schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from salkit.data.files import IMAGENET_SAMPLE_LABELS, IMAGENETTE_LABELS, OTHER_IMAGENET_SAMPLE_LABELS
from salkit.data.images import ImageSet, load_images
from salkit.methods import CenteredGaussian, LearnedMask, Random, SaliencyMethod, get_method, same_map_for_all_labels
from salkit.methods.learned_mask import Name
from salkit.methods.masker import masker_path
from salkit.methods.masker_training import MaskerRecipe
from salkit.models.classifier import PrecisionChoice
from salkit.scores import Protocol


@dataclass(frozen=True, kw_only=True)
class Study:
    """A data set with its classifier, and the settings that all its experiments share.

    Attributes:
        data: name for `load_images`.
        classifier: name for `load_classifier`.
        lists: the label lists by name; images are explained for the labels of the list that has their own. `None` for all classes.
        pool: how many training images the distractors are drawn from.
        l1: weight of the mask's area, about one over the number of pixels.
        n_points: points of a curve; None for every pixel count.
        schedule, precision: of mask learning, see `LearnedMask`.
        n_steps: None for those of the schedule.
        maskers: how many training images notebook 00 shows to Dabkowski and Gal's masker in each of two phases, and to Phang's.
        small_maskers: whether maskers are trained in small batches and crops, with a narrow decoder and a class embedding that starts from
            the classifier's weights.
        images_per_batch: images handed to a method at a time.
    """

    data: str
    classifier: str
    lists: Mapping[str, tuple[int, ...] | None] = field(default_factory=lambda: {"a": None})
    pool: int = 20
    l1: float
    n_points: int | None = None
    schedule: Name = "settled"
    precision: PrecisionChoice = "float32"
    n_steps: int | None = None
    maskers: tuple[int, int, int] = (120, 360, 360)
    small_maskers: bool = True
    images_per_batch: int = 20

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The first label list."""
        return next(iter(self.lists.values()))

    def images(self, name: str = "a") -> ImageSet:
        """All images of the data set whose label is in the list of this name."""
        images, labels = load_images(self.data), self.lists[name]
        return images if labels is None else images.with_labels(labels)

    def learned_mask(self, protocol: Protocol, **settings: object) -> LearnedMask:
        """The paper's method with this study's settings."""
        names = ("schedule", "precision", "n_steps", "l1")
        return LearnedMask(**({name: getattr(self, name) for name in names} | {"loss": protocol.loss} | settings))


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Which studies, and how many images of each experiment.

    Attributes:
        cifar10, imagenet: the two studies.
        tvs: the values of lTV in the CIFAR-10 sweep.
        images: images by experiment; of Table 1, of each label list and by group of rows (`ROWS`). 0 where nothing is computed.
        theory: of the toy model: `n_trials`, dimension `d`, and `ds` and `margins` to sweep.
        recorded: the profile whose recorded results are shown; empty where the profile's own are.
    """

    name: str
    cifar10: Study
    imagenet: Study
    tvs: tuple[float, ...]
    images: Mapping[str, int]
    theory: Mapping[str, Any] = field(default_factory=dict)
    recorded: str = ""


TVS = (0.0, 0.001, 0.01, 0.1, 1.0)

_CIFAR10: dict[str, Any] = {"l1": 1e-3}
_IMAGENET: dict[str, Any] = {"l1": 2e-5, "n_points": 28}
_LISTS = {"a": IMAGENET_SAMPLE_LABELS, "b": OTHER_IMAGENET_SAMPLE_LABELS}

# fmt: off
IMAGES = {
    #                 smoke demo overnight paper
    "sweep":         (1,    2,   20,       1000),
    "ours":          (0,    2,   10,       1000),
    "variants":      (0,    0,   10,       1000),
    "cheap":         (1,    2,   10,       1000),
    "prior":         (0,    0,   10,       1000),
    "igos":          (0,    0,   5,        1000),
    "protocols":     (0,    0,   10,       1000),
    "second seed":   (0,    0,   3,        0),
    "mosaics":       (0,    0,   12,       100),
    "two labels":    (0,    0,   10,       1000),
    "settled":       (0,    0,   8,        0),
    "lengths":       (0,    0,   8,        0),
    "sanity":        (0,    0,   8,        20),
}
"""Experiment or group of rows -> how many images of a list, by profile."""
# fmt: on


def _images(place: int) -> dict[str, int]:
    return {name: counts[place] for name, counts in IMAGES.items()}


_OVERNIGHT = Profile(
    name="overnight",
    cifar10=Study(data="cifar10-samples", classifier="cifar10-resnet20", **_CIFAR10),
    imagenet=Study(data="imagenet-samples", classifier="efficientnet-lite0", lists=_LISTS, **_IMAGENET),
    tvs=TVS,
    images=_images(2),
    theory={"d": 10_000, "n_trials": 500, "ds": (1_000, 10_000, 100_000), "margins": (0.1, 0.2, 0.4)},
)
_DEMO = replace(_OVERNIGHT, name="demo", images=_images(1), recorded="overnight")
_SMOKE = replace(
    _DEMO,
    name="smoke",
    images=_images(0),
    theory={"d": 1_000, "n_trials": 200, "ds": (1_000, 10_000), "margins": (0.2, 0.4)},
)
_LARGE: dict[str, Any] = {"pool": 1000, "schedule": "paper"}
_PAPER = Profile(
    name="paper",
    cifar10=Study(data="cifar10", classifier="cifar10-resnet164", images_per_batch=100, **_CIFAR10 | _LARGE),
    imagenet=Study(
        data="imagenette",
        classifier="resnet50",
        lists={"a": IMAGENETTE_LABELS},
        # The second phase of Dabkowski and Gal as published, and Phang's 12 epochs over the 9,469 training images.
        maskers=(192_000, 192_000, 12 * 9_469),
        small_maskers=False,
        **_IMAGENET | _LARGE,
    ),
    tvs=TVS,
    images=_images(3),
    theory={"d": 1_000_000, "n_trials": 1000, "ds": (1_000, 10_000, 100_000, 1_000_000), "margins": (0.05, 0.1, 0.2, 0.4)},
)
PROFILES = {profile.name: profile for profile in (_SMOKE, _DEMO, _OVERNIGHT, _PAPER)}
"""`smoke` shows in a minute that everything runs, `demo` fits a laptop, `overnight` is the recorded study, `paper` wants a GPU."""


def get_profile(name: str, schedule: str = "", precision: str = "") -> Profile:
    """A profile by name. A schedule or precision of mask learning replaces the profile's own.

    Raises:
        ValueError: unknown name, schedule or precision.

    Example:
        >>> get_profile("paper").images["ours"]
        1000
    """
    if name not in list(PROFILES):
        raise ValueError(f"profile: expected one of {list(PROFILES)}, got {name!r}")
    profile = PROFILES[name]
    changes: Any = {name: value for name, value in (("schedule", schedule), ("precision", precision)) if value}
    LearnedMask(**changes)  # raises for unknown values
    return replace(profile, cifar10=replace(profile.cifar10, **changes), imagenet=replace(profile.imagenet, **changes))


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
        "iGOS++": get_method("igos_pp"),
        "Dabkowski and Gal": get_method("dabkowski_gal", masker=masker_of("dabkowski_gal", study.classifier, checkpoints)),
        "Fong and Vedaldi": get_method("fong_vedaldi"),
        "Phang et al.": get_method("phang", masker=masker_of("phang", study.classifier, checkpoints)),
    }
    conditional = masker_of("phang-conditional", study.classifier, checkpoints)
    extra = {
        "Phang et al. (class)": get_method("phang", masker=conditional, class_conditional=True),
        "RISE": get_method("rise"),
        "Grad-CAM": get_method("grad_cam"),
        "SmoothGrad": get_method("smooth_grad"),
        "Integrated Gradients": get_method("integrated_gradients"),
        "LRP": get_method("lrp"),
    }
    ours = our_methods(study, protocol, **settings)
    cheating = {"Ours (cheating)": same_map_for_all_labels(ours["Ours"])}
    return prior | ours | {"Random": Random(), "Centered Gaussian": CenteredGaussian()} | cheating | extra


def our_methods(study: Study, protocol: Protocol, **settings: object) -> dict[str, LearnedMask]:
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

ROWS = {
    "ours": ("Ours",),
    "variants": ("Ours (s=1)", "Ours (TV=0.001)", "Ours (gray)", "Ours (cheating)"),
    "cheap": (
        *("Gradient x Input", "Dabkowski and Gal", "Phang et al.", "Random", "Centered Gaussian"),
        *("Phang et al. (class)", "Grad-CAM", "SmoothGrad", "Integrated Gradients", "LRP"),
    ),
    "prior": ("Fong and Vedaldi", "RISE"),
    "igos": ("iGOS++",),
}
"""The rows of Table 1 in groups: the paper's method; its variants; at most 50 passes a pair; hundreds; and thousands."""

LABEL_FREE_LOSS = ("Gradient x Input", "Dabkowski and Gal", "Phang et al.", "Random", "Centered Gaussian")
"""Cheap rows of Table 1 in the paper whose maps do not depend on the protocol's loss."""

SANITY_ROWS = ("Ours", "Gradient x Input", "Grad-CAM")
"""Rows of Table 1 whose maps are compared before and after layers are randomised."""


def masker_recipes(study: Study) -> dict[str, MaskerRecipe]:
    """How notebook 00 trains the maskers of a study: name of the checkpoint -> recipe."""
    first, second, third = study.maskers
    sizes: dict[str, Any] = {"batch_size": 12, "size": 128, "eval_every": 10} if study.small_maskers else {"classes": study.labels}
    narrow: dict[str, Any] = {"widths": (8, 8, 16), "embedding": "classifier", "area_ramp": 0.7} if study.small_maskers else {}
    return {
        "dabkowski_gal": MaskerRecipe("dabkowski_gal", images=(first, second), **sizes, **narrow),
        "phang": MaskerRecipe("phang", images=(third,), **sizes),
        "phang-conditional": MaskerRecipe("phang", class_conditional=True, images=(third,), **sizes),
    }


def masker_of(kind: str, classifier: str, checkpoints: str | Path | None = None) -> str | Path:
    """The masker of a classifier: the shipped one if there is one, else the path where notebook 00 saves the one it trains."""
    name = f"{kind}-{classifier}"
    return name if checkpoints is None or masker_path(name).is_file() else Path(checkpoints) / f"{name}.safetensors"

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


@dataclass(frozen=True)
class Study:
    """One data set with its classifier, and the sizes it is run at.

    Attributes:
        data: name for `load_images`; only images of `labels` are used.
        classifier: name for `load_classifier`.
        labels: the label list; None for all classes of the net.
        n_images: how many images are drawn from the data set.
        pool: how many training images the distractors are drawn from.
        n_steps, n_distractors, lr: of mask learning, None for the schedule's; fewer steps take a higher rate.
        l1: weight of the mask's area, about one over the number of pixels.
        n_points: points of a curve, None for every pixel count.
        picture_steps: steps of the few masks that are shown as pictures; None for the schedule's.
        held_out: how many other images the thresholds of the saliency metric are chosen on.
        masker_images: how many images notebook 00 shows in training: two phases of Dabkowski and Gal, and Phang et al.
        sanity_images: how many images the layers are randomised for.
        own_label_images: how many images best effort on their own two best classes is measured on.
        grid_images: how many of the images the grid of protocols is learned on.
        followed: for how many images, labels of each, and composites a pair (None for all) notebook 07 follows both schedules.
        schedule, precision: of mask learning, see `LearnedMask`.
        preset: of the other methods, see `salkit.methods.get_method`.
        images_per_batch: images handed to a method at a time.
    """

    data: str
    classifier: str
    labels: tuple[int, ...] | None
    n_images: int
    pool: int
    n_steps: int | None
    n_distractors: int | None
    lr: float | None
    l1: float
    n_points: int | None
    picture_steps: int | None
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
        """Points of the curves on the way of a schedule."""
        return self.n_points or 64

    def learned_mask(self, protocol: Protocol, **settings: object) -> LearnedMask:
        """The paper's method at this study's size."""
        names = ("schedule", "precision", "n_steps", "n_distractors", "lr", "l1")
        sizes = {name: getattr(self, name) for name in names} | {"loss": protocol.loss}
        return LearnedMask(**(sizes | settings))


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
        Study(
            *("imagenet-samples", "efficientnet-lite0", IMAGENET_SAMPLE_LABELS, 2, 20, 4, 1, 0.2, 2e-5, 7, 8),
            held_out=2,
            grid_images=2,
            sanity_images=1,
            masker_images=(24, 24, 24),
        ),
        (0.0, 0.01, 0.1),
        {"d": 1_000, "n_trials": 200, "ds": (1_000, 10_000), "margins": (0.2, 0.4)},
    ),
    "demo": Profile(
        "demo",
        Study("cifar10-samples", "cifar10-resnet20", None, 12, 20, 40, 1, 0.2, 1e-3, 32, 60, followed=(4, 4, 200)),
        Study(
            *("imagenet-samples", "efficientnet-lite0", IMAGENET_SAMPLE_LABELS, 5, 20, 12, 1, 0.3, 2e-5, 8, 48),
            held_out=5,
            own_label_images=4,
            grid_images=3,
            followed=(1, 2, 50),
        ),
        TVS,
        {"d": 10_000, "n_trials": 500, "ds": (1_000, 10_000, 100_000), "margins": (0.1, 0.2, 0.4)},
    ),
    "paper": Profile(
        "paper",
        Study(
            *("cifar10", "cifar10-resnet164", None, 1000, 1000, None, None, None, 1e-3, None, None, 100),
            followed=(100, 4, None),
            schedule="paper",
        ),
        Study(
            *("imagenette", "resnet50", IMAGENETTE_LABELS, 1000, 1000, None, None, None, 2e-5, 28, None),
            schedule="paper",
            followed=(100, 2, None),
            held_out=200,
            own_label_images=1000,
            grid_images=1000,
            sanity_images=20,
            # Dabkowski and Gal's second phase as published; Phang's 12 epochs over Imagenette's 9,469 training images.
            masker_images=(192_000, 192_000, 12 * 9_469),
            preset="source",
        ),
        TVS,
        {"d": 1_000_000, "n_trials": 1000, "ds": (1_000, 10_000, 100_000, 1_000_000), "margins": (0.05, 0.1, 0.2, 0.4)},
    ),
}
"""`smoke` shows that everything runs, `demo` fits a laptop, `paper` has the paper's sizes and wants a GPU."""


def get_profile(name: str, schedule: str = "", precision: str = "") -> Profile:
    """A profile by name, with another schedule or precision of mask learning than its own if one is named.

    Raises:
        ValueError: unknown name, schedule or precision.

    Example:
        >>> get_profile("paper").imagenette.n_images
        1000
    """
    if name not in list(PROFILES):
        raise ValueError(f"profile: expected one of {list(PROFILES)}, got {name!r}")
    profile = PROFILES[name]
    told = {name: value for name, value in (("schedule", schedule), ("precision", precision)) if value}
    LearnedMask(**told)  # type: ignore[arg-type]  # refuses what it does not know
    return replace(profile, **{of: replace(getattr(profile, of), **told) for of in ("cifar10", "imagenette")})


def tv_sweep_methods(study: Study, tvs: tuple[float, ...], protocol: Protocol) -> dict[str, SaliencyMethod]:
    """Section 6.1 on CIFAR-10: masks at full resolution (s = 1), one lTV each; the name of a method is its lTV."""
    return {f"{tv:g}": study.learned_mask(protocol, scale=1, tv=tv) for tv in tvs}


def table1_methods(
    study: Study, protocol: Protocol, checkpoints: str | Path | None = None, **settings: object
) -> dict[str, SaliencyMethod]:
    """The rows of Table 1 in the paper's order, "cheating", and six rows that the paper does not have.

    Args:
        study: sizes.
        protocol: whose loss the masks are learned with.
        checkpoints: a folder with maskers for classifiers that none are shipped for.
        settings: go to every learned mask.
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
    """The paper's four settings; `settings` go to each of them."""
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

    With the preset `fast` batches and crops are small, the decoder narrow, and the class embedding starts from the classifier's weights.
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
    """The masker for a classifier: the shipped one if there is one, else where notebook 00 leaves its own."""
    name = f"{kind}-{classifier}"
    return name if checkpoints is None or masker_path(name).is_file() else Path(checkpoints) / f"{name}.safetensors"


def picture_methods(study: Study, protocol: Protocol, *names: str) -> dict[str, SaliencyMethod]:
    """Methods of Table 1 for the few masks that are looked at: more steps."""
    methods: dict[str, SaliencyMethod] = our_methods(study, protocol, n_steps=study.picture_steps)
    methods["Ours (cheating)"] = same_map_for_all_labels(methods["Ours"])
    return {name: methods[name] for name in names}

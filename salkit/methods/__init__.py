"""Saliency methods behind one protocol, and the registry of their names."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from salkit.checks import check_choice
from salkit.methods.base import Cost, SaliencyMethod, same_map_for_all_labels
from salkit.methods.baselines import CenteredGaussian, Random
from salkit.methods.captum_methods import CaptumMethod, GradCAM, SmoothGrad, gradient_x_input, integrated_gradients
from salkit.methods.dabkowski_gal import DabkowskiGal
from salkit.methods.fong_vedaldi import FongVedaldi
from salkit.methods.igos_pp import IGOSpp
from salkit.methods.learned_mask import LearnedMask
from salkit.methods.lrp import LRP
from salkit.methods.phang import Phang
from salkit.methods.rise import RISE

METHODS: dict[str, Any] = {
    "learned_mask": LearnedMask,
    "gradient_x_input": gradient_x_input,
    "igos_pp": IGOSpp,
    "fong_vedaldi": FongVedaldi,
    "dabkowski_gal": DabkowskiGal,
    "phang": Phang,
    "random": Random,
    "centered_gaussian": CenteredGaussian,
    "rise": RISE,
    "grad_cam": GradCAM,
    "smooth_grad": SmoothGrad,
    "integrated_gradients": integrated_gradients,
    "lrp": LRP,
}
"""Name -> a callable that makes the method from its settings; the defaults are its source's."""

FAST: dict[str, dict[str, Any]] = {
    "learned_mask": {"schedule": "settled"},
    "igos_pp": {"n_steps": 3, "n_path": 1, "alpha": 8.0},
    "fong_vedaldi": {"n_steps": 15, "lr": 0.3},
    "rise": {"n_masks": 80},
    "smooth_grad": {"n_samples": 6},
    "integrated_gradients": {"n_steps": 6},
}
"""Settings of the preset `fast`, for a laptop: fewer steps at a higher rate, fewer samples. Methods that are not listed need no other."""


def get_method(name: str, preset: Literal["source", "fast"] = "source", **settings: Any) -> SaliencyMethod:
    """A method by name, with its settings.

    Args:
        name: a key of `METHODS`.
        preset: `"source"` for the defaults of the method's source, `"fast"` for those of `FAST`.
        settings: on top of the preset's.

    Raises:
        ValueError: unknown name or preset, or a setting out of range.
        TypeError: a setting the method does not have.

    Example:
        >>> get_method("learned_mask", tv=0.001).tv
        0.001
        >>> get_method("rise", "fast").n_masks
        80
    """
    check_choice("name", name, sorted(METHODS))
    check_choice("preset", preset, ("source", "fast"))
    known = list(inspect.signature(METHODS[name]).parameters)
    if unknown := sorted(set(settings) - set(known)):
        raise TypeError(f"settings: expected some of {known} for {name!r}, got {unknown}")
    return METHODS[name](**(FAST.get(name, {}) if preset == "fast" else {}) | settings)


__all__ = [
    "FAST",
    "LRP",
    "METHODS",
    "RISE",
    "CaptumMethod",
    "CenteredGaussian",
    "Cost",
    "DabkowskiGal",
    "FongVedaldi",
    "GradCAM",
    "IGOSpp",
    "LearnedMask",
    "Phang",
    "Random",
    "SaliencyMethod",
    "SmoothGrad",
    "get_method",
    "gradient_x_input",
    "integrated_gradients",
    "same_map_for_all_labels",
]

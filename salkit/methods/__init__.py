"""Saliency methods behind one protocol, and the registry of their names."""

from __future__ import annotations

from typing import Any

from salkit.methods.base import SaliencyMethod, same_map_for_all_labels
from salkit.methods.baselines import CenteredGaussian, Random
from salkit.methods.captum_methods import CaptumMethod, gradient_x_input
from salkit.methods.learned_mask import LearnedMask

METHODS: dict[str, Any] = {
    "learned_mask": LearnedMask,
    "gradient_x_input": gradient_x_input,
    "random": Random,
    "centered_gaussian": CenteredGaussian,
}
"""Name -> a callable that makes the method from its settings."""


def get_method(name: str, **settings: Any) -> SaliencyMethod:
    """A method by name, with its settings.

    Raises:
        ValueError: unknown name, or a setting out of range.
        TypeError: a setting the method does not have.

    Example:
        >>> get_method("learned_mask", tv=0.001).tv
        0.001
    """
    if name not in METHODS:
        raise ValueError(f"name: expected one of {sorted(METHODS)}, got {name!r}")
    return METHODS[name](**settings)


__all__ = [
    "METHODS",
    "CaptumMethod",
    "CenteredGaussian",
    "LearnedMask",
    "Random",
    "SaliencyMethod",
    "get_method",
    "gradient_x_input",
    "same_map_for_all_labels",
]

"""Checks of arguments. Each error names the argument, what was expected and what was got."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor

Names = Sequence[str]


def is_integer(value: object, least: int = 0) -> bool:
    """Whether it is an integer (Python's or NumPy's) and at least `least`. True and 1.0 are not integers."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a finite number in `[low, high]`. True is not a number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and low <= float(value) <= high


def check_integer(name: str, value: object, least: int = 0) -> int:
    """The value as a Python int.

    Raises:
        ValueError: not an integer, or below `least`.
    """
    if not is_integer(value, least):
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    return int(value)  # type: ignore[call-overload]


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """The value as a Python float.

    Raises:
        ValueError: not a finite number, or outside `[low, high]`.
    """
    if not is_number(value, low, high):
        where = f" in [{low:g}, {high:g}]" if low > -math.inf else ""
        raise ValueError(f"{name}: expected a finite number{where}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that a value is one of the choices.

    Raises:
        ValueError: names the argument and the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {tuple(choices)}, got {value!r}")


def check_settings(
    settings: object, *, counts: Names = (), weights: Names = (), rates: Names = (), shares: Names = (), flags: Names = ()
) -> None:
    """Check the range of a dataclass's fields. None is accepted where it is the default.

    Args:
        settings: the dataclass.
        counts: fields that must be integers >= 1.
        weights: fields that must be finite and >= 0.
        rates: fields that must be finite and > 0.
        shares: fields that must lie strictly between 0 and 1.
        flags: fields that must be True or False.

    Raises:
        ValueError: names the field, what was expected and what was got.
    """
    kinds = (
        (counts, lambda v: is_integer(v, 1), "an integer >= 1"),
        (weights, lambda v: is_number(v, 0), "a finite weight >= 0"),
        (rates, lambda v: is_number(v, 0) and v > 0, "a positive, finite number"),
        (shares, lambda v: is_number(v, 0, 1) and 0 < v < 1, "a number between 0 and 1"),
        (flags, lambda v: isinstance(v, bool), "True or False"),
    )
    for names, fits, expected in kinds:
        for name in names:
            value = getattr(settings, name)
            if not fits(value) and not (value is None and getattr(type(settings), name, ...) is None):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")


def check_labels(labels: Sequence[int] | Tensor) -> list[int]:
    """A label list as Python ints.

    Raises:
        TypeError: not a sequence of integers.
        ValueError: empty, or with negative or repeated labels.
    """
    listed = labels.tolist() if isinstance(labels, Tensor) else list(labels) if isinstance(labels, Iterable) else None
    if not isinstance(listed, list) or not all(is_integer(a, -(2**63)) for a in listed):
        raise TypeError(f"labels: expected integers, got {labels!r}")
    if not listed or min(listed) < 0 or len(set(listed)) != len(listed):
        raise ValueError(f"labels: expected distinct class indices >= 0, at least one, got {listed!r}")
    return [int(a) for a in listed]


def check_tensor(name: str, value: object) -> None:
    """Check that a value is a tensor of floating-point numbers.

    Raises:
        TypeError: names the argument and its type.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")


def check_images(name: str, images: Tensor) -> None:
    """Check that a value is a batch of images.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: a shape other than `(N, 3, H, W)`, an empty batch, or values that are not finite.
    """
    check_tensor(name, images)
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < 1:
        raise ValueError(f"{name}: expected shape (N, 3, H, W), got {tuple(images.shape)}")
    if not len(images):
        raise ValueError(f"{name}: expected at least one image, got none")
    # Minimum and maximum are NaN if any value is, and need no memory of the images' size.
    if not torch.stack(images.detach().aminmax()).isfinite().all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")


def check_out(name: str, path: Path | None, suffix: str) -> None:
    """Check that an output file can be written and has the right suffix. None is accepted.

    Raises:
        ValueError: a wrong suffix, a folder of that name, or a file in the place of its folder.
    """
    if path is None:
        return
    if path.suffix != suffix or path.is_dir():
        raise ValueError(f"{name}: expected a file name that ends in {suffix}, got {path}{', a folder' if path.is_dir() else ''}")
    if wrong := [p for p in path.parents if p.exists() and not p.is_dir()]:
        raise ValueError(f"{name}: expected a file in a folder, got {path}, where {wrong[0]} is a file")

"""Bootstrap intervals over images and paired comparisons."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from salkit.checks import check_integer, is_number


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval over `n` images; the ends are NaN for fewer than two images."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{short(self.mean)} [{short(self.low)}, {short(self.high)}]" if self.n else "no image counts"


@dataclass(frozen=True)
class Comparison(Interval):
    """Mean paired difference a - b with its interval, and the two-sided p-value of a sign-flip permutation test."""

    p_value: float

    def verdict(self, threshold: float = 0.0) -> str:
        """Judge the claim that a - b exceeds `threshold`.

        `"reproduced"` when the whole interval lies above it, `"not reproduced"` when the whole interval lies below it, and
        `"inconclusive"` when it contains the threshold or there are too few images for an interval.
        """
        return "reproduced" if self.low > threshold else "not reproduced" if self.high < threshold else "inconclusive"


def bootstrap_interval(values: Any, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean over images; NaN values (images that do not count) are left out.

    Args:
        values: `(N,)`, one number an image.
        confidence: between 0 and 1.
        n_resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: not one-dimensional, or a confidence outside (0, 1).

    Example:
        >>> print(bootstrap_interval([0.0, 1.0] * 50))
        0.50 [0.40, 0.60]
    """
    array = _finite("values", values)
    if not (is_number(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    n_resamples, seed = check_integer("n_resamples", n_resamples, 1), check_integer("seed", seed)
    if len(array) < 2:
        return Interval(float(array.mean()) if len(array) else np.nan, np.nan, np.nan, len(array))
    settings = {"confidence_level": confidence, "n_resamples": n_resamples, "method": "percentile", "rng": np.random.default_rng(seed)}
    ends = stats.bootstrap((array,), np.mean, **settings).confidence_interval
    return Interval(float(array.mean()), float(ends.low), float(ends.high), len(array))


def paired_comparison(a: Any, b: Any, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two methods on the same images: mean of a - b, its interval, and a permutation test that flips signs.

    Args:
        a: `(N,)`, one number an image.
        b: the same for the other method, in the same order; an image that is NaN in either is left out.
        confidence: of the interval.
        n_resamples: bootstrap samples, and permutations where all sign flips are too many.
        seed: of the resampling.

    Raises:
        ValueError: different shapes.

    Example:
        >>> paired_comparison([0.9, 0.8, 0.7, 0.9], [0.1, 0.2, 0.1, 0.3]).verdict()
        'reproduced'
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"b: expected the shape of a, {a.shape}, got {b.shape}")
    difference = _finite("a", a - b)
    interval = bootstrap_interval(difference, confidence, n_resamples, seed)
    p_value = np.nan
    if len(difference) >= 2:
        settings = {"permutation_type": "samples", "n_resamples": n_resamples, "vectorized": True, "rng": np.random.default_rng(seed)}
        p_value = float(stats.permutation_test((difference,), np.mean, **settings).pvalue)
    return Comparison(**asdict(interval), p_value=p_value)


def short(value: float) -> str:
    """A score for reading: two decimals, or two significant digits where two decimals would hide it.

    Example:
        >>> short(0.837), short(0.0013)
        ('0.84', '0.0013')
    """
    return f"{value:.2g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"


def _finite(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected shape (N,), one number an image, got {array.shape}")
    return array[~np.isnan(array)]

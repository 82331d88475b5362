"""The progress bar of long loops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None, show: bool, **settings: Any) -> Any:
    """A tqdm bar, shown if `show` is true and `TQDM_DISABLE` is not set."""
    # Without `disable`, as `disable=False` would override TQDM_DISABLE.
    return tqdm(iterable, **settings) if show else tqdm(iterable, disable=True)

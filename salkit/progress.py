"""The progress bar that long loops share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None, show: bool, **settings: Any) -> Any:
    """A tqdm bar, or its silent twin; left to itself a bar heeds `TQDM_DISABLE`, which an explicit `disable=False` would override."""
    return tqdm(iterable, **settings) if show else tqdm(iterable, disable=True)

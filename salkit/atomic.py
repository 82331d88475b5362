"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary file name beside `path`, which is renamed to `path` when the block ends without an error.

    Readers see the old file or the complete new one, even if the process is killed. After an error the temporary file is removed.

    Example:
        >>> with atomic_write("scores.csv") as part:  # doctest: +SKIP
        ...     table.to_csv(part)
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

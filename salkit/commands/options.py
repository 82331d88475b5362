"""Shared by the commands: options, reading of values, printing of errors."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from salkit.engine.shards import ShardError, WorkerError
from salkit.engine.store import StoreError
from salkit.report.runner import NotebookError

console = Console()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str], total: bool = False) -> None:
    """Print rows under a title: columns in `left` are left-aligned, the others right-aligned. With `total` the last row is set apart."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=column not in left)
    for i, row in enumerate(rows):
        table.add_row(*row, end_section=total and i == len(rows) - 2)
    console.print(table)


Store = Annotated[Path | None, typer.Option(help="Folder that keeps results; a stopped run continues from it.")]
Executor = Annotated[str, typer.Option(help="serial, dask (local workers) or the address of a Dask scheduler, tcp://host:port.")]
Workers = Annotated[int | None, typer.Option(help="Local Dask workers; default one per GPU, or one per core.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]


def name_and_value(option: str, text: str) -> tuple[str, int | float | str | bool | None]:
    """Split NAME=VALUE; the value becomes a number, True, False or None if it reads like one."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{option}: expected NAME=VALUE, got {text!r}")
    if value.lower() in WORDS:
        return name, WORDS[value.lower()]
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, value


WORDS = {"true": True, "false": False, "none": None}


def label_list(text: str) -> list[int]:
    """Class indices from comma-separated text."""
    try:
        return [int(a) for a in text.split(",")]
    except ValueError:
        raise ValueError(f"labels: expected class indices, comma-separated, got {text!r}") from None


class errors:
    """A wrong input prints one line instead of a traceback and exits with code 1. Ctrl-C prints how to continue and exits with code 130."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            Console(stderr=True).print("stopped. Finished shards are in the store; the same command goes on where it was.", style="yellow")
            gc.freeze()  # otherwise the interpreter spends two seconds collecting a million objects
            raise typer.Exit(130)
        if isinstance(error, (ValueError, TypeError, OSError, ShardError, StoreError, WorkerError, NotebookError)):
            Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1)

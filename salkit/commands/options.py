"""What the commands share: options, how values are read, how errors end."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from salkit.engine.shards import ShardError, WorkerError
from salkit.engine.store import StoreError
from salkit.report import reproduce

console = Console()

Store = Annotated[Path | None, typer.Option(help="Folder that keeps results; a run that was stopped goes on from it.")]
Executor = Annotated[str, typer.Option(help="serial, dask (local workers) or the address of a Dask scheduler, tcp://host:port.")]
Workers = Annotated[int | None, typer.Option(help="Local Dask workers; default one a GPU, or one a core.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]


def name_and_value(option: str, text: str) -> tuple[str, int | float | str | bool | None]:
    """The parts of NAME=VALUE; the value as a number, true, false or none where it is one."""
    name, found, value = text.partition("=")
    if not found:
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
    """A wrong input ends in one clear line and exit code 1, not in a traceback; Ctrl-C in a line that says how to go on and code 130."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            Console(stderr=True).print("stopped. Finished shards are in the store; the same command goes on where it was.", style="yellow")
            gc.freeze()  # the interpreter would look through a million objects for two seconds
            raise typer.Exit(130)
        if isinstance(error, (ValueError, TypeError, OSError, ShardError, StoreError, WorkerError, reproduce.NotebookError)):
            Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1)

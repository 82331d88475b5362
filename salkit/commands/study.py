"""Commands on the recorded study: compute and record it, verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salkit.commands.options import Executor, Store, Workers, console, errors
from salkit.studies import recorded
from salkit.studies.runs import Runs

Profile = Annotated[str, typer.Option(help="Whose results.")]


def record_command(
    profile: Profile = "overnight",
    output: Annotated[Path | None, typer.Option(help="Where runs go; default runs/PROFILE.")] = None,
    store: Store = None,
    executor: Executor = "serial",
    workers: Workers = None,
) -> None:
    """Compute a profile's experiments, the most worth first, and record their results in data/recorded. Goes on where it was stopped."""
    with errors():
        runs = Runs(profile, output_dir=output or Path("runs") / profile, store=store, executor=executor, workers=workers)
        for experiment, method, done in runs.record():
            console.print(f"{'recorded ' if done else 'computing'} {experiment}: {method}", highlight=False)
        console.print(f"all experiments are recorded in {recorded.folder(profile)}")

"""Commands on the recorded study: compute and record it, verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from salkit.commands.options import Executor, Seed, Store, Workers, console, errors, print_table
from salkit.studies import recorded, verify
from salkit.studies.runs import Runs

Profile = Annotated[str, typer.Option(help="Whose results.")]


def study_command(
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


def verify_command(
    profile: Profile = "overnight",
    minutes: Annotated[float, typer.Option(help="About how long; decides how many cells are drawn.")] = 10,
    n: Annotated[int | None, typer.Option(help="How many cells, instead.")] = None,
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Compute a random sample of the recorded study again and compare; exit code 1 where a number is wrong.

    A cell is what one method says about one image and all its labels, in one experiment.
    """
    with errors():
        runs = Runs(profile, device="cpu")
        every = verify.recorded_cells(runs)
        cells = verify.sample(every, minutes, n, seed)
        exact = verify.same_processor(runs, cells)
        where = (
            "this processor and these versions: equal" if exact else "another processor or other versions: within the spread of two seeds"
        )
        console.print(f"{len(cells)} of {len(every)} recorded cells, drawn with seed {seed}. Recorded on {where}.", highlight=False)
        tables = []
        for table in verify.recompute(runs, cells, workers):
            worst = table.largest.max()
            console.print(f"  {table.experiment[0]}, {table.method[0]}, {table.image[0]}: largest difference {worst:.2g}", highlight=False)
            tables.append(table)
        table, verdict = verify.judge(pd.concat(tables), None if exact else verify.tolerances(runs))
        wrong = table[table.wrong]
        if len(wrong):
            rows = [[r.experiment, r.method, r.image, r.variable, f"{r.largest:.2g}", f"{r.allowed:.2g}"] for r in wrong.itertuples()]
            print_table("wrong", ["experiment", "method", "image", "number", "differs by", "allowed"], rows, left=["experiment", "method"])
        console.print(str(verdict), highlight=False)
        if not verdict.passed:
            raise typer.Exit(1)

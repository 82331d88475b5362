"""Commands on stored results: list, prune and export runs, compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from salkit.checks import check_out
from salkit.commands.options import console, errors, print_table
from salkit.engine import compare
from salkit.engine.store import Store
from salkit.evaluation.results import open_results

runs = typer.Typer(no_args_is_help=False, invoke_without_command=True, help="Stored runs: list them (the default), prune, export.")
StoreFolder = Annotated[Path, typer.Option("--store", help="The store's folder.")]


@runs.callback()
def runs_command(context: typer.Context, store: StoreFolder = Path("runs/demo/store")) -> None:
    """List the runs of a store with their progress, size and age."""
    if context.invoked_subcommand:
        return
    with errors():
        kept = _existing(store)
        states = kept.overview()
    rows = [[run.name or "(no run)", str(run.done), str(run.rows), decimal(run.size), run.age()] for run in states]
    print_table(str(store), ["run", "rows", "of", "size", "changed"], rows, left=["run"])
    for run in states:
        if run.missing:
            console.print(f"missing of {run.name or 'no run'}: {', '.join(run.missing)}", highlight=False)


@runs.command("prune")
def prune_command(
    store: StoreFolder = Path("runs/demo/store"),
    drop: Annotated[list[str] | None, typer.Option(help="First forget this run (name or its beginning).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
) -> None:
    """Remove experiments that no run needs, and files left by crashes or damage."""
    with errors():
        kept = _existing(store)
        gone = kept.prune(drop=drop or (), dry_run=dry_run)
        for path in gone:
            console.print(f"{'would remove' if dry_run else 'removed'} {path}", soft_wrap=True)
        console.print(f"{len(gone)} {'to remove' if dry_run else 'removed'}")


@runs.command("export")
def export_command(
    out: Annotated[Path, typer.Argument(help="A .nc file (netCDF) to write.")],
    run: Annotated[str, typer.Option(help="Name of the run, or its beginning; the latest if several match.")] = "table1",
    store: StoreFolder = Path("runs/demo/store"),
) -> None:
    """Write the finished part of a run as one netCDF file, for publication."""
    with errors():
        check_out("out", out, ".nc")
        results = open_results(_existing(store), run)
        out.parent.mkdir(parents=True, exist_ok=True)
        results.to_netcdf(f"{out}.part", engine="scipy")
        Path(f"{out}.part").replace(out)
    console.print(f"{out}: {dict(results.sizes)}; missing: {results.attrs['missing'] or 'nothing'}")


def compare_command(
    run_a: Annotated[Path, typer.Argument(help="A run's output folder, or its store.")],
    run_b: Annotated[Path, typer.Argument(help="Another one.")],
    maps: Annotated[float, typer.Option(help="Largest difference of a learned mask that passes.")] = compare.MAPS,
    scores: Annotated[float, typer.Option(help="Largest difference of a probability, curve or score that passes.")] = compare.SCORES,
) -> None:
    """Print the largest differences between two runs; exit code 1 above the tolerances."""
    with errors():
        table = compare.compare_stores(*(_existing(path / "store" if (path / "store").is_dir() else path) for path in (run_a, run_b)))
    rows = [[f"{v:.2g}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    print_table(f"{run_a} and {run_b}", list(table.columns), rows, left=["run", "method", "score", "where"])
    worst = {kind: table[(table.score == "map") == (kind == "maps")].largest.max() for kind in ("maps", "scores")}
    limits = {"maps": maps, "scores": scores}
    beyond = [f"{kind}: {worst[kind]:.2g} > {limits[kind]:g}" for kind in worst if worst[kind] > limits[kind]]
    console.print("; ".join(beyond) if beyond else f"equal within {maps:g} (maps) and {scores:g} (scores)")
    if beyond:
        raise typer.Exit(1)


def _existing(folder: Path) -> Store:
    if not folder.is_dir():
        raise FileNotFoundError(f"store: expected a folder with results, got {folder}, which is not one")
    return Store(folder)

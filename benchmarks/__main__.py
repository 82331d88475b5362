"""`python -m benchmarks`: measure, print tables with targets and verdicts, and write them as JSON and Markdown."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.cases import CASES
from benchmarks.harness import Row, heading, table
from benchmarks.scaling import Growth, as_found_rows, grow, growth_table
from benchmarks.speed import RATE, run_case
from salkit.checks import check_choice
from salkit.commands.options import errors
from salkit.engine.machine import machine
from salkit.models.classifier import resolve_device

READING = """\
Composites per second and ratios: the median over rounds [least, most]; a ratio is taken within each round. *limit*: the bare net's best
forward (learning: and input-gradient) rate at the same precision over nets, batch sizes and ways to use the cores. *released*: a plain
loop that does what the paper's released code does. Memory: the peak of a separate process, less
that of one that only loads net and images."""


def main(
    quick: Annotated[bool, typer.Option(help="A smoke test in under a minute; its numbers say nothing.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.md.")] = Path("runs/bench"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    case: Annotated[list[str] | None, typer.Option(help=f"Only these nets of {', '.join(CASES)}; may be repeated.")] = None,
    scaling: Annotated[bool, typer.Option(help="Measure peak memory and growth, too.")] = True,
) -> None:
    """Time mask learning and insertion curves of the kit, the bare net, the released way and torch-cam."""
    names = case or [name for name in CASES if CASES[name].pretrained or not quick]
    with errors():
        place = resolve_device(device)
        for name in names:
            check_choice("case", name, sorted(CASES))
    where = machine(place)
    began = time.perf_counter()
    rows: list[Row] = []
    for name in names:
        typer.echo(f"measuring {CASES[name].title} ...", err=True)
        found = run_case(CASES[name].quick() if quick else CASES[name], place)
        rows += [*found, *as_found_rows(name, found, place)]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    growth: list[Growth] = []
    if scaling:
        typer.echo("measuring memory and growth ...", err=True)
        growth = grow(place, quick)
    where["minutes"] = round((time.perf_counter() - began) / 60, 1)
    text = report(where, rows, growth)
    out.mkdir(parents=True, exist_ok=True)
    kept = {"machine": where, "quick": quick, "rows": [row.record() for row in rows], "growth": [g.record() for g in growth]}
    (out / "bench.json").write_text(json.dumps(kept, indent=1) + "\n")
    (out / "bench.md").write_text(text)
    typer.echo(text)
    typer.echo(f"written: {out / 'bench.json'}, {out / 'bench.md'}", err=True)


def report(where: dict[str, object], rows: list[Row], growth: list[Growth]) -> str:
    """All tables in Markdown: rates, ratios, growth."""
    rates = [row.cells() for row in rows if row.unit == RATE]
    ratios = [row.cells() for row in rows if row.unit != RATE]
    parts = [heading(where), READING]
    parts.append(table(["net", "task", "way", RATE, "", "", "note"], rates))
    parts.append(table(["net", "task", "ratio", "found", "target", "verdict", "note"], ratios))
    if growth:
        parts.append(growth_table(growth))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    typer.run(main)

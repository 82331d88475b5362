"""Results that take too long for a notebook: measured once for this version and shipped in `data/measured` (see its README)."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from salkit.data.files import data_dir
from salkit.statistics import short


def schedules() -> dict[str, pd.DataFrame]:
    """Scores along the full length of both schedules: case -> table of `salkit.studies.quality.learning_quality`."""
    table = pd.read_csv(data_dir() / "measured" / "passes_to_quality.csv")
    return {str(case): rows.drop(columns="case").reset_index(drop=True) for case, rows in table.groupby("case", sort=False)}


def recorded_benchmark() -> dict[str, Any]:
    """What `make bench` wrote on a CPU: `machine`, `rows` and `growth`."""
    return json.loads((data_dir() / "measured" / "bench_cpu.json").read_text())


def benchmark() -> pd.DataFrame:
    """What `make bench` measured on a CPU: one row per ratio, one column per net; `attrs["machine"]` names the machine.

    A cell holds the median over rounds, the smallest and largest round in brackets, then the target and whether it was met.
    """
    bench = recorded_benchmark()
    rows = [row for row in bench["rows"] if row["unit"] != "composites/s" and "values" in row]
    cells = pd.DataFrame({"net": [r["case"] for r in rows], "task": [r["task"] for r in rows], "ratio": [r["name"] for r in rows]})
    cells["text"] = [_cell(**row) for row in rows]
    table = cells.pivot(index=["task", "ratio"], columns="net", values="text").fillna("")
    table = table.loc[list(dict.fromkeys(zip(cells.task, cells.ratio, strict=True))), list(dict.fromkeys(cells.net))]
    machine = bench["machine"]
    facts = [f"{machine['cores']} cores", f"torch {machine['torch']}", f"commit {machine['commit']}", machine["date"][:10]]
    table.attrs["machine"] = ", ".join([machine["cpu"], *facts])
    return table


def _cell(median: float, values: list[float], target: str = "", verdict: str = "", **_: object) -> str:
    extremes = f" [{short(min(values))}, {short(max(values))}]" if len(values) > 1 else ""
    return short(median) + extremes + (f"; {target}: {verdict}" if target else "")

"""`make readme`: numbers in README.md and docs/ are copied from recorded files, never typed.

A page marks a block with `<!-- begin: NAME -->` and `<!-- end -->`. The function of that name in `BLOCKS` writes what stands
between them. The first figure is a recorded output of notebook 02.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from bs4 import BeautifulSoup

from salkit.methods import LearnedMask
from salkit.report import measured
from salkit.report.claims import BEST_EFFORT_CLAIMS, PRIOR, TABLE1_CLAIMS, claims_table, table2_claims
from salkit.report.expected import expected_values
from salkit.report.tables import paper_values, tidy_table
from salkit.scores import PROTOCOLS
from salkit.statistics import Interval, short
from salkit.studies import protocol_grid, released_scores
from salkit.studies.profiles import PROFILES, Profile
from salkit.studies.quality import settled_sentence
from salkit.studies.recorded import source
from salkit.studies.runs import Runs

ROOT = Path(__file__).parents[2]
FIGURE1 = ROOT / "docs" / "figure1.png"
RECORDED = "demo"
"""The profile that the notebooks are recorded with."""
TABLE1_VERDICTS = ("03_imagenette_table1", "TV raises soundness", "paper", "ours", "verdict")
THEORY_CLAIMS = ("01_theory_toy_model", "no interval at L2 certifies -y: every d", "needed", "verdict")
"""Where `recorded_table` finds the claims; the second row is Theorem 5.1's soundness."""
FULL = LearnedMask().cost().forward_backward
"""Composites of the published schedule."""


def pages() -> list[Path]:
    """The pages that may have blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rendered(text: str) -> str:
    """The text of a page with its blocks written anew.

    Raises:
        ValueError: a block of an unknown name.
    """

    def block(marked: re.Match[str]) -> str:
        if marked[1] not in BLOCKS:
            raise ValueError(f"block: expected one of {sorted(BLOCKS)}, got {marked[1]!r}")
        return f"<!-- begin: {marked[1]} -->\n{BLOCKS[marked[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- begin: (\S+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def figure1() -> bytes:
    """The PNG of Figure 1 as notebook 02 recorded it: masks that make the net see a wrong label.

    Raises:
        ValueError: the notebook has no such output.
    """
    for cell, data in _outputs("02_cifar10_tv_sweep"):
        if "figure1_masks" in cell and "image/png" in data:
            return base64.b64decode("".join(data["image/png"]))
    raise ValueError("02_cifar10_tv_sweep: expected a recorded image from the cell that saves figure1_masks, got none")


def recorded_table(notebook: str, row: str, *columns: str) -> pd.DataFrame:
    """The first table in a notebook's recorded outputs that has this row and these columns; all cells are text.

    Args:
        notebook: name without suffix.
        row: a cell of the first column, which becomes the index.
        columns: some of the header.

    Raises:
        ValueError: there is no such table.
    """
    for _, data in _outputs(notebook):
        html = BeautifulSoup("".join(data.get("text/html", "")), "html.parser")
        lines = [[cell.get_text(strip=True) for cell in line.find_all(["th", "td"])] for line in html.find_all("tr")]
        if lines and set(columns) <= set(lines[0]):
            rows = [line for line in lines[1:] if any(line[1:])]  # pandas writes the name of the index into a line of its own
            table = pd.DataFrame(rows, columns=lines[0]).set_index(lines[0][0])
            if row in table.index:
                return table
    raise ValueError(f"{notebook}: expected a recorded table with a row {row!r} and columns {list(columns)}, got none")


def findings() -> str:
    """What the paper says beside what was found, each with the number of images and the composites of its masks."""
    runs = Runs(RECORDED)
    evaluation, sweep, paper = runs.table1(), runs.result("sweep"), paper_values("table1")
    table1 = tidy_table(evaluation, paper).set_index(["method", "metric"])
    judged = claims_table(evaluation, TABLE1_CLAIMS).set_index("claim")
    mosaics = claims_table(runs.result("mosaics"), BEST_EFFORT_CLAIMS).set_index("claim")
    on_cifar10 = claims_table(sweep, table2_claims(sweep.method.values.tolist())).set_index("claim")
    proved = recorded_table(*THEORY_CLAIMS).loc[THEORY_CLAIMS[1]]
    dominated = short(_values("01_theory_toy_model")["x near e_1: soundness at L2 fails"])
    nearest = protocol_grid.cell_summary(runs.protocol_grid(), paper)
    text = nearest.set_index(protocol_grid.CELL).loc[("all", "nll", "paper", "mean")]
    released = released_scores.bounds_table({released_scores.RELEASED: released_scores.released_areas()})

    def number(metric: str) -> list[str]:
        row = table1.loc[("Ours", metric)]
        return [short(row.paper), str(Interval(row.ours, row.low, row.high, row.n)), str(row.n), f"{row.composites:,.0f}", row.verdict]

    def claim(text: str, name: str, table: pd.DataFrame = judged) -> list[str]:
        row = table.loc[name]
        said = "" if row.paper != row.paper else f"{row.paper:+.2f}"
        spent = "" if row.composites != row.composites else f"{row.composites:,.0f}"
        return [text, said, str(Interval(row.ours, row.low, row.high, row.n)), str(row.n), spent, row.verdict]

    def several(text: str, names: Iterable[str]) -> list[str]:
        rows = judged.loc[list(names)]
        counts = ", ".join(f"{n} {verdict}" for verdict, n in rows.verdict.value_counts().items())
        said = "" if rows.paper.isna().all() else f"{rows.paper.min():+.2f} to {rows.paper.max():+.2f}"
        n = "/".join(sorted({str(n) for n in rows.n}, key=int))
        return [text, said, f"{short(rows.ours.min())} to {short(rows.ours.max())}", n, f"{rows.composites.max():,.0f}", counts]

    best = nearest.iloc[0]
    protocol = f"{short(text.distance)} away from it; nearest: {short(best.distance)} [{short(best.low)}, {short(best.high)}]"
    bound = released[released.sure == 0].iloc[0]
    theory = f"{short(_values('01_theory_toy_model')[THEORY_CLAIMS[1]])}; {dominated} if one coordinate dominates"
    spent = f"{float(evaluation.composites.max()):,.0f}"
    rows = [
        ["Its masks: completeness", *number("completeness")],
        ["Its masks: soundness", *number("soundness")],
        claim("Total variation (TV) raises soundness", "TV raises soundness"),
        claim("TV raises soundness, CIFAR-10, lTV 0.1 against 0", "TV 0.1 raises soundness", on_cifar10),
        claim("Upsampling raises soundness", "Upsampling raises soundness"),
        claim("Upsampling costs little completeness", "Upsampling costs little completeness"),
        claim("Random images instead of gray raise completeness", "Random images beat gray: completeness"),
        several("Its masks are more complete than five prior methods", [f"Ours is more complete than {prior}" for prior in PRIOR]),
        several("Its masks are at least as sound as they", [f"Ours is at least as sound as {prior}" for prior in PRIOR]),
        claim('One map for all labels ("cheating") raises soundness', "Cheating raises soundness"),
        claim("Cheating shows in best effort (mosaics)", "Cheating shows in best effort", mosaics),
        ["Short intervals are sound (Theorem 5.1)", f"probability {proved.needed}", theory, "", "", proved.verdict],
        ["Table 1 follows the text's protocol", "", protocol, str(best.n), spent, ""],
        ["The authors' released areas allow its soundness", "0.84", f"at most {short(bound.soundness)}", str(bound.n), "20,000", ""],
    ]
    note = (
        f"{source(evaluation)} Worst case over labels, differences with 95 % intervals; verdicts from exact paired tests, Holm-corrected."
    )
    columns = ["the paper says", "paper", "found here", "images", "composites a pair", "verdict"]
    return f"{_markdown(pd.DataFrame(rows, columns=columns))}\n\n{note}"


def commands() -> str:
    """The two commands, with the recorded minutes."""
    minutes = f"{_minutes(RECORDED)} minutes on the two CPU cores that recorded them; no GPU, no download beyond pip"
    return f"```sh\nmake lab          # open the notebooks\nmake reproduce    # tables and figures: {minutes}\n```"


def table1() -> str:
    """Table 1: the paper's value, then ours."""
    table = recorded_table("03_imagenette_table1", "Ours (cheating)", "completeness", "label_correlation")
    return _markdown(table.replace(r" \| ", " → ", regex=True).rename_axis("method").reset_index())


def claims() -> str:
    """The claims of notebooks 03, 04 and 02."""
    two_labels = recorded_table("04_figures", "Cheating shows in best effort", "verdict")
    cifar10 = recorded_table("02_cifar10_tv_sweep", "TV 1 raises soundness", "verdict")
    parts = [recorded_table(*TABLE1_VERDICTS), two_labels.rename("Mosaics: {}".format), cifar10.rename("CIFAR-10: {}".format)]
    return _markdown(pd.concat(parts).fillna("").rename_axis("claim").reset_index())


def protocols() -> str:
    """The protocols of notebook 06, the nearest to the paper's columns first."""
    distances = sorted(_values("06_which_protocol").items(), key=lambda item: item[1])
    rows = [[*name.split("/"), short(value)] for name, value in distances]
    return _markdown(pd.DataFrame(rows, columns=["softmax over", "loss", "thresholds", "area rule", "distance"]))


def theory() -> str:
    """The claims of notebook 01."""
    return _markdown(recorded_table(*THEORY_CLAIMS).rename_axis("claim").reset_index())


def profiles() -> str:
    """What each profile shows and computes."""

    def sizes(profile: Profile) -> list[str]:
        n, study = profile.images, profile.imagenet
        lists = f"{len(study.lists)} x " if len(study.lists) > 1 else ""
        return [
            f"`{profile.name}`",
            f"the recorded `{profile.recorded}`" if profile.recorded else "what it computes",
            f"{n['sweep']:,} images of `{profile.cifar10.data}`, `{profile.cifar10.classifier}`",
            f"{lists}{n['ours']:,} images of `{study.data}`, `{study.classifier}` ({lists}{n['cheap']:,} for rows that cost little)",
            f"{study.learned_mask(PROTOCOLS['paper']).cost().forward_backward:,}",
            f"{_minutes(profile.name)} minutes" if expected_values(profile.name) else "see `make plan`",
        ]

    columns = ["profile", "shows", "computes: CIFAR-10", "computes: ImageNet", "composites a pair", "recorded time, two cores"]
    return _markdown(pd.DataFrame([sizes(profile) for profile in PROFILES.values()], columns=columns))


def mask_minutes() -> str:
    """How long the mask of one pair takes at the rates of the benchmark."""
    rows = pd.DataFrame(measured.recorded_benchmark()["rows"]).query("task == 'learning' and name == 'salkit float32'")
    table = pd.DataFrame({"net, pixels": rows.case, "composites a second": rows["median"].map("{:,.0f}".format)})
    for n in (FULL, LearnedMask(schedule="settled").cost().forward_backward):
        table[f"minutes a pair, {n:,} composites"] = (n / rows["median"] / 60).map(short)
    return f"{_markdown(table)}\n\nMeasured on {measured.benchmark().attrs['machine']}."


def schedules() -> str:
    """Twice the composites, and the published schedule, beside the settled one."""
    runs = Runs(RECORDED)
    table = runs.settled()
    shown = table[["choice", "method", "score", "n"]].rename(columns={"n": "images"})
    shown["500 composites"], shown["1,000"] = table.at_c.map(short), table.at_2c.map(short)
    shown["difference [95 %]"] = [f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in table.itertuples()]
    return f"{_markdown(shown)}\n\n{settled_sentence(table)}"


def bench() -> str:
    """The ratios of the benchmark."""
    rows, table = pd.DataFrame(measured.recorded_benchmark()["rows"]), measured.benchmark()
    ratios = rows[rows.name == "salkit float32 / released"].groupby("task", sort=False)["median"]
    summary = " and ".join(f"{task} {short(each.min())} to {short(each.max())} times" for task, each in ratios)
    where = f"Measured on {table.attrs['machine']}. In float32, over these nets: {summary} as fast as the released way."
    return f"{where}\n\n{_markdown(table.reset_index())}"


def memory() -> str:
    """How time and peak memory grow."""
    table = pd.json_normalize(measured.recorded_benchmark()["growth"])
    table["seconds"], table["peak MB"] = table.seconds.map(short), table.megabytes.round().astype(int)
    table = table.rename(columns={"work.task": "task", "axis": "changed"} | {f"work.{size}": size for size in ("images", "labels", "side")})
    return _markdown(table[["task", "changed", "images", "labels", "side", "composites", "seconds", "peak MB"]])


BLOCKS: dict[str, Callable[[], str]] = {
    block.__name__.replace("_", "-"): block
    for block in (findings, commands, table1, claims, protocols, theory, profiles, mask_minutes, schedules, bench, memory)
}
"""Name in a page -> the function that writes the block."""


def _outputs(notebook: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each recorded output of a notebook the source of its cell, and its data by MIME type."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    return (("".join(cell["source"]), output["data"]) for cell in cells for output in cell.get("outputs", []) if "data" in output)


def _minutes(profile: str) -> int:
    return round(sum(entry["seconds"] for entry in expected_values(profile).values()) / 60)


def _values(notebook: str) -> dict[str, float]:
    return {name: number for name, (number, *_) in expected_values(RECORDED)[notebook]["values"].items()}


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in [table.columns, *table.itertuples(index=False)]]
    return "\n".join([lines[0], "|" + "---|" * table.shape[1], *lines[1:]])


if __name__ == "__main__":
    for page in pages():
        page.write_text(rendered(page.read_text()))
    FIGURE1.write_bytes(figure1())

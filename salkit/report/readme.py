"""`make readme`: numbers in README.md and docs/ are copied from recorded files, never typed.

A page marks a block with `<!-- begin: NAME -->` and `<!-- end -->`. The function of that name in `BLOCKS` writes what stands
between them. The first figure is a recorded output of notebook 02.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from bs4 import BeautifulSoup

from salkit.methods import LearnedMask
from salkit.report import measured
from salkit.report.expected import expected_values
from salkit.report.tables import paper_values
from salkit.scores import PROTOCOLS
from salkit.statistics import short
from salkit.studies.profiles import PROFILES, Study
from salkit.studies.quality import compare_schedules, per_image

ROOT = Path(__file__).parents[2]
FIGURE1 = ROOT / "docs" / "figure1.png"
RECORDED = "demo"
"""The profile that the notebooks are recorded with."""
TABLE1_CLAIMS = ("03_imagenette_table1", "TV raises soundness", "paper", "ours", "verdict")
THEORY_CLAIMS = ("01_theory_toy_model", "no interval at L2 certifies -y: every d", "needed", "verdict")
"""Where `recorded_table` finds the claims; the second row is Theorem 5.1's soundness."""
TEXT_PROTOCOL = "all/nll/paper/mean"
"""What notebook 06 calls the protocol of the paper's text."""
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
    for source, data in _outputs("02_cifar10_tv_sweep"):
        if "figure1_masks" in source and "image/png" in data:
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
    """What the paper says beside what was found."""
    ours, theory, distances = (_values(name) for name in ("03_imagenette_table1", "01_theory_toy_model", "06_which_protocol"))
    judged, proved = recorded_table(*TABLE1_CLAIMS), recorded_table(*THEORY_CLAIMS).loc[THEORY_CLAIMS[1]]
    study, paper = PROFILES[RECORDED].imagenette, paper_values("table1").query("method == 'Ours'").set_index("metric").value
    cifar10, imagenet = (_ends(case) for case in ("cifar10", "imagenet"))
    prior = judged[judged.index.str.startswith("Ours is more complete than")]
    counts = ", ".join(f"{n} {verdict}" for verdict, n in prior.verdict.value_counts().items())
    nearest = ", ".join(short(distance) for distance in sorted(distances.values())[:3])

    def scores(of: Callable[[str], str]) -> str:
        return f"{of('completeness')} and {of('soundness')}"

    def judged_as(text: str, claim: str) -> list[str]:
        return [text, *judged.loc[claim, ["paper", "ours", "verdict"]]]

    wrong = f"soundness {short(cifar10.soundness.mean())} (1 is best) at {FULL:,} composites, {len(cifar10)} CIFAR-10 images"
    short_masks = scores(lambda score: short(ours[f"Ours/{score}"]))
    full_masks = f"{scores(lambda score: short(imagenet[score].mean()))} at {FULL:,} composites, two labels an image"
    dominated = short(theory["x near e_1: soundness at L2 fails"])
    proof = f"{short(theory[THEORY_CLAIMS[1]])}; {dominated} if one coordinate dominates"
    protocol = f"{short(distances[TEXT_PROTOCOL])} away from it; the nearest of {len(distances)} protocols: {nearest}"
    rows = [
        ["Masks can prove wrong labels", "", wrong, ""],
        ["Its masks: completeness and soundness", scores(lambda score: short(paper[score])), f"{short_masks}; {full_masks}", ""],
        judged_as("Total variation (TV) raises soundness", "TV raises soundness"),
        judged_as("Upsampling raises soundness", "Upsampling raises soundness"),
        judged_as("Upsampling costs little completeness", "Upsampling costs little completeness"),
        judged_as("Random images instead of gray raise completeness", "Random images beat gray: completeness"),
        judged_as('One map for all labels ("cheating") raises soundness', "Cheating raises soundness"),
        ["Its masks are more complete than five prior methods", f"{min(prior.paper)} to {max(prior.paper)}", "", counts],
        ["Short intervals are sound (Theorem 5.1)", f"probability {proved.needed}", proof, proved.verdict],
        ["Table 1 follows the text's protocol", "", protocol, ""],
    ]
    figure = _composites(PROFILES[RECORDED].cifar10)
    note = (
        f"Masks without a number of composites: profile `{RECORDED}`, {study.n_images} ImageNet images, {len(study.labels or ())} labels, "
        f"{study.classifier}; worst case over labels, differences with 95 % intervals. **These masks are short**: {_composites(study)} "
        f"composites (masked images) a pair of image and label ({figure} in the figure above), where the paper's schedule has {FULL:,}. So "
        "these rows measure short masks on a smaller net, not the paper's digits. A verdict looks at the sign of a difference; compare its "
        "size, too."
    )
    return f"{_markdown(pd.DataFrame(rows, columns=['the paper says', 'paper', 'found here', 'verdict']))}\n\n{note}"


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
    own_labels = recorded_table("04_figures", "Cheating shows in best effort", "verdict")
    cifar10 = recorded_table("02_cifar10_tv_sweep", "TV 1 raises soundness", "verdict")
    parts = [recorded_table(*TABLE1_CLAIMS), own_labels.rename("{} (own two best classes)".format), cifar10.rename("CIFAR-10: {}".format)]
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
    """What each profile runs."""

    def sizes(study: Study) -> str:
        return f"{study.n_images:,} images of `{study.data}`, `{study.classifier}`, {_composites(study):,} composites a pair"

    times = [f"{_minutes(name)} minutes" if expected_values(name) else "see `make plan`" for name in PROFILES]
    rows = [[f"`{p.name}`", sizes(p.cifar10), sizes(p.imagenette), time] for p, time in zip(PROFILES.values(), times, strict=True)]
    return _markdown(pd.DataFrame(rows, columns=["profile", "CIFAR-10", "ImageNet", "recorded time, two cores"]))


def mask_minutes() -> str:
    """How long the mask of one pair takes at the rates of the benchmark."""
    rows = pd.DataFrame(measured.recorded_benchmark()["rows"]).query("task == 'learning' and name == 'salkit float32'")
    table = pd.DataFrame({"net, pixels": rows.case, "composites a second": rows["median"].map("{:,.0f}".format)})
    for n in (FULL, LearnedMask(schedule="fast").cost().forward_backward):
        table[f"minutes a pair, {n:,} composites"] = (n / rows["median"] / 60).map(short)
    return f"{_markdown(table)}\n\nMeasured on {measured.benchmark().attrs['machine']}."


def schedules() -> str:
    """All measured schedules against the published one."""
    cases = measured.schedules()
    others = sorted(set(cases["cifar10"].schedule) - {"fast", "paper"})
    pairs = [("cifar10", "fast"), ("imagenet", "fast"), *(("cifar10", name) for name in others)]
    rows = pd.concat([compare_schedules(cases[case], [(name, "paper")]).assign(case=case) for case, name in pairs])
    table = rows[["case", "schedule", "score", "n"]].rename(columns={"n": "images"})
    table["published"], table["this schedule"] = rows.reference_value.map(short), rows.value.map(short)
    table["difference [95 %]"] = [f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in rows.itertuples()]
    fast = rows[rows.schedule == "fast"]
    contain = int(((fast.low <= 0) & (fast.high >= 0)).sum())
    return f"{_markdown(table)}\n\n`fast`: {contain} of {len(fast)} intervals contain 0, which means no detectable difference."


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


def _composites(study: Study) -> int:
    """Composites that a study spends on the mask of a pair."""
    return study.learned_mask(PROTOCOLS["paper"]).cost().forward_backward


def _ends(case: str) -> pd.DataFrame:
    """Scores of each image at the end of the published schedule."""
    scores = per_image(measured.schedules()[case].query("schedule == 'paper'"))
    return scores[scores.composites == scores.composites.max()]


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in [table.columns, *table.itertuples(index=False)]]
    return "\n".join([lines[0], "|" + "---|" * table.shape[1], *lines[1:]])


if __name__ == "__main__":
    for page in pages():
        page.write_text(rendered(page.read_text()))
    FIGURE1.write_bytes(figure1())

"""The pages of a run: one for each executed notebook, and one that links everything. A browser shows them without a network."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import torch

from salkit.models.classifier import resolve_device
from salkit.report.expected import read_outcomes
from salkit.report.progress import minutes
from salkit.statistics import short

MAIN_TABLES = ("table1", "table1_claims", "protocol_cells", "table2", "table2_claims")
"""These come first and open; the others are a click away."""

CAPTIONS = {
    "figure1_masks": "Figure 1. The few pixels that make a label most probable, for the net's label and a wrong one, without and with TV.",
    "figure2_two_labels": "Figure 2. One image, its two best classes, three methods. Does a map that ignores the label prove both?",
    "figure3_curves": "Figure 3. Probability of the best and of the second-best label as pixels are shown, for each weight of TV.",
    "table1_maps": "The maps of the net's prediction, a row for each method.",
    "table1_forest": "Table 1 as a picture: the paper's value, ours with its interval; methods with a common letter are not told apart.",
    "g_against_f": "The definitions as a picture: g against f of every pair of image and label, with the bands of Equation 1.",
    "figure4_left": "Figure 4, left. Upper right is best; an arrow leads from the paper's value to ours.",
    "mosaics": "Two true labels: a map should lie in the framed half that its label is in.",
    "figure4_right": "Figure 4, right. Best effort: does a method also explain labels other than the predicted one?",
    "figure4_label_dependence": "Soundness against label dependence. Near 1: the same map for every label, so high soundness means little.",
    "masker_learning_curves": "Maskers in training: good masks are small, keep the true label's probability and take it away when removed.",
    "masker_shipped_curves": "The same for the maskers that are shipped, on 80 held-out images.",
    "sanity_similarity": "Layer randomisation: a map that explains the net changes when the net's weights are randomised.",
    "sanity_maps": "The maps of one image as more and more stages, from the output on, are randomised.",
    "protocol_distances": "How far each protocol's worst cases are from the paper's columns; blue ones cannot be told from the closest.",
    "protocol_effects": "What each choice changes by itself: thresholds, softmax, loss and rule.",
    "released_bounds": "What the authors' released areas allow over every f: beyond the shaded area nothing can be attained.",
    "scores_against_composites": "Scores against the composites that a mask has seen, each mark the end of a schedule of that length.",
    "gallery_labels": "The map of every label of one image; the net's label in bold. A sound method has little to show for the others.",
    "table2_sweep": "Table 2 as a picture: completeness and soundness against the weight of TV. Soundness has a logarithmic axis.",
    "theory_success": "Theorem 5.1. Share of shuffles in which each part holds, against length, for several d; dashed, the theorem.",
    "theory_collapse": "The same against length times squared margin, for several margins. Do the lines coincide?",
    "theory_shares": "Share of the intervals of one shuffle that certify the label and the wrong label; dashed, dotted: the theorem.",
    "theory_contrast": "How strongly the best mask and the best interval of each size support the wrong label; above 0 they certify it.",
    "theory_counterexamples": "Inputs whose terms are not bounded: each part against the interval's length; lines are closed forms.",
    "theory_concentration": "From one active coordinate to all of them: each part at the lengths for B = 1 and at those for the true B.",
}
"""What each figure draws. A caption states no result: the numbers of a run decide that."""

TEXT = {"method": str, "reference": str}
"""Columns whose values may look like numbers."""

TEMPLATES = Path(__file__).parent


def write_index(
    output: Path, profile: str, finished: Sequence[tuple[str, float, bool]] = (), settings: Mapping[str, Any] | None = None
) -> Path:
    """Write `output/index.html`: the failed checks, then every notebook, table and figure under `output`.

    Args:
        output: the run's folder.
        profile: named in the title.
        finished: name, seconds and success of the notebooks that ran now; the others ran earlier.
        settings: those that are not the profile's, for which no numbers are recorded.
    """
    device = resolve_device()
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    versions = [f"{package} {version(package)}" for package in ("salkit", "torch", "torchvision")]
    rank = {name: i for i, name in enumerate(MAIN_TABLES)}
    names = sorted((path.stem for path in (output / "tables").glob("*.csv")), key=lambda name: (rank.get(name, len(rank)), name))
    html = {"index": False, "float_format": short, "na_rep": "", "border": 0}
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = output / "index.html"
    page.write_text(
        templates.get_template("index.html.j2").render(
            profile=profile,
            facts=[f"{datetime.now():%Y-%m-%d %H:%M} on {machine}", *versions, f"Python {platform.python_version()}"],
            notebooks=sorted(path.stem for path in (output / "notebooks").glob("*.ipynb")),
            pages={path.stem for path in (output / "html").glob("*.html")},
            finished={name: (minutes(seconds), ok) for name, seconds, ok in finished},
            checks=read_outcomes(output),
            settings=", ".join(f"{name} = {value}" for name, value in (settings or {}).items()),
            tables={name: pd.read_csv(output / "tables" / f"{name}.csv", dtype=TEXT).to_html(**html) for name in names},
            main_tables=MAIN_TABLES,
            figures={path.stem: CAPTIONS.get(path.stem, path.stem) for path in sorted((output / "figures").glob("*.png"))},
        )
    )
    return page


def write_page(notebook: Path, page: Path) -> None:
    """Write an executed notebook as one HTML file that loads nothing: formulas are MathML, figures are embedded."""
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str, display: str = "block") -> str:
            # HTML needs no namespace. With one, nbconvert writes <ns0:math> in headings, which browsers do not know.
            return convert(body, xmlns="", display=display).replace(' xmlns=""', "")

        def inline_math(self, body: str) -> str:
            return self.block_math(body, "inline")

    exporter = HTMLExporter(template_file=str(TEMPLATES / "notebook.html.j2"))
    exporter.register_filter("markdown2html", lambda source: MarkdownWithMath(Renderer(escape=False)).render(source))
    exporter.log.setLevel("ERROR")  # it would remark on figures without alternative text
    body, _ = exporter.from_filename(str(notebook))
    page.write_text(body)

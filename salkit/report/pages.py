"""The pages of a run: one for each executed notebook, and one that links everything. A browser shows them without a network."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
import torch

from salkit.models.classifier import resolve_device
from salkit.report.progress import minutes
from salkit.statistics import short

MAIN_TABLES = ("table1", "table1_claims", "protocol_cells", "table2", "table2_claims")
"""These come first and open; the others are a click away."""

CAPTIONS = {
    "figure1_masks": "Figure 1. Masks for a wrong label (f near 0) reach a large g: the net can be made to see what is not there.",
    "figure2_two_labels": "Figure 2. One image, its two best classes, three methods. One map for both labels leaves the second unproved.",
    "figure3_curves": "Figure 3. Probability of the best and of the second-best label as pixels are shown, for each weight of TV.",
    "figure4_left": "Figure 4, left. Upper right is best; hollow symbols are the paper's values.",
    "figure4_right": "Figure 4, right. A method with one map for all labels explains only the predicted label: little best effort.",
    "figure4_label_dependence": "Soundness against label dependence. Near 1: the same map for every label, so high soundness means little.",
    "masker_learning_curves": "Maskers in training: good masks are small, keep the true label's probability and take it away when removed.",
    "masker_shipped_curves": "The same for the maskers that are shipped, on 80 held-out images.",
    "sanity_similarity": "Layer randomisation: a map that explains the net changes when the net's weights are randomised.",
    "sanity_maps": "The maps of one image as more and more stages, from the output on, are randomised.",
    "protocol_distances": "How far each protocol's worst cases are from the paper's columns; blue ones cannot be told from the closest.",
    "protocol_effects": "What each choice changes by itself: thresholds, softmax, loss and rule.",
    "released_bounds": "What the authors' released areas allow over every f: beyond the shaded area nothing can be attained.",
    "passes_to_quality": "Scores against the composites spent on a pair, for the published and the fast schedule.",
    "passes_to_quality_live": "The same for this run, at its profile's size.",
    "gallery_labels": "The map of every label of one image; the net's label in bold. A sound method has little to show for the others.",
    "table2_sweep": "Table 2 as a picture: completeness and soundness against the weight of TV. Soundness has a logarithmic axis.",
    "theory_success": "Theorem 5.1. Completeness does not depend on d, soundness needs longer intervals as d grows; dashed, the theorem.",
    "theory_collapse": "Success depends on length times squared margin.",
    "theory_shares": "Share of certifying intervals on one shuffle: none certifies the wrong label at the theorem's length.",
    "theory_contrast": "Unconstrained masks certify the wrong label at almost any size, intervals only up to a length below the theorem's.",
    "theory_counterexamples": "Without bounded terms the theorem's lengths do not suffice; lines are closed forms.",
    "theory_concentration": "From one active coordinate to all of them: lengths for B = 1 hold only where the terms are spread out.",
}
"""What to see in each figure."""

TEXT = {"method": str, "reference": str}
"""Columns whose values may look like numbers."""

TEMPLATES = Path(__file__).parent


def write_index(output: Path, profile: str, finished: Sequence[tuple[str, float, bool]] = ()) -> Path:
    """Write `output/index.html`, with every notebook, table and figure under `output`.

    Args:
        output: the run's folder.
        profile: named in the title.
        finished: name, seconds and success of the notebooks that ran now; the others ran earlier.
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

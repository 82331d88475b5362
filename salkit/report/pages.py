"""The page that links everything a run left behind."""

from __future__ import annotations

import html
import platform
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from salkit.models.classifier import resolve_device
from salkit.statistics import short


def write_index(output: Path, profile: str, finished: Sequence[tuple[str, float, bool]] = ()) -> Path:
    """Write `index.html`: the notebooks that ran, every table and every figure under `output`."""
    parts = [f"<h1>Saliency methods, complete and sound: profile {html.escape(profile)}</h1>"]
    torch_device = resolve_device()
    where = torch.cuda.get_device_name() if torch_device == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    versions = ", ".join(f"{p} {version(p)}" for p in ("salkit", "torch", "torchvision"))
    parts.append(f"<p>{datetime.now():%Y-%m-%d %H:%M} on {html.escape(where)}; {versions}; Python {platform.python_version()}.</p>")
    parts.append("<h2>Notebooks</h2><table><tr><th>notebook</th><th>page</th><th>executed</th><th>last run</th></tr>")
    took = {name: f"{clock(seconds)}{'' if ok else ', <b>failed</b>'}" for name, seconds, ok in finished}
    for path in sorted((output / "notebooks").glob("*.ipynb")):
        read = f"html/{path.stem}.html"
        link = f'<a href="{read}">read</a>' if (output / read).exists() else ""
        cells = [path.stem, link, f'<a href="notebooks/{path.name}">ipynb</a>', took.get(path.stem, "earlier")]
        parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    parts.append("</table><h2>Tables</h2>")
    parts.append(
        "<p>Ours with 95 % bootstrap intervals over n images. <i>compatible</i>: the paper's value lies in our interval; at a small n "
        "that is weak evidence, and the profile may use another classifier and other images than the paper. Claims are paired "
        "comparisons on the same images.</p>"
    )
    for path in sorted((output / "tables").glob("*.csv"), key=lambda p: (_rank(p.stem), p.stem)):
        body = pd.read_csv(path, dtype={"method": str, "reference": str}).to_html(index=False, float_format=short, na_rep="", border=0)
        shown = " open" if path.stem in MAIN_TABLES else ""
        parts.append(
            f'<details{shown}><summary><a href="tables/{path.name}">{path.name}</a></summary><div class="wide">{body}</div></details>'
        )
    parts.append("<h2>Figures</h2>")
    for path in sorted((output / "figures").glob("*.png")):
        pdf = f"figures/{path.stem}.pdf"
        parts.append(
            f'<figure><a href="figures/{path.name}"><img src="figures/{path.name}" alt="{path.stem}"></a>'
            f'<figcaption>{CAPTIONS.get(path.stem, path.stem)} (<a href="{pdf}">PDF</a>)</figcaption></figure>'
        )
    page = output / "index.html"
    page.write_text(PAGE.format(title=f"salkit, profile {html.escape(profile)}", body="\n".join(parts)))
    return page


def _rank(name: str) -> int:
    return MAIN_TABLES.index(name) if name in MAIN_TABLES else len(MAIN_TABLES)


MAIN_TABLES = ("table1", "table1_claims", "protocol_cells", "table2", "table2_claims")
"""Shown first and open; the others are a click away."""

CAPTIONS = {
    "figure1_masks": "Figure 1. Masks for a wrong label (f near 0) reach a large g: the net can be made to see what is not there.",
    "figure2_two_labels": "Figure 2. One image, its two best classes, three methods. One map for both labels leaves the second unproved.",
    "figure3_curves": "Figure 3. TV lowers the curve of the second-best label much more than that of the best.",
    "figure4_left": "Figure 4, left. Upper right is best; hollow symbols are the paper's values.",
    "figure4_right": "Figure 4, right. Methods with one map for all labels make little effort for labels other than the prediction.",
    "figure4_label_dependence": "Soundness against label dependence. What ignores the label (right) is sound for free.",
    "masker_learning_curves": "Maskers in training: good masks are small, keep the true label's probability and take it away when removed.",
    "masker_shipped_curves": "The same for the maskers that are shipped, on 80 held-out images.",
    "sanity_similarity": "Layer randomisation: a map that explains the net loses its likeness as the net forgets.",
    "sanity_maps": "The maps of one image as ever more stages, from the output on, are randomised.",
    "protocol_distances": "Mean distance of each protocol's worst cases from the paper's columns; boxed, no number is excluded.",
    "gallery_labels": "The map of every label of one image; the net's label in bold. A sound method has little to show for the others.",
    "table2_sweep": "Table 2 as a picture: completeness falls and soundness rises with TV. Note the logarithmic axis.",
    "theory_success": "Theorem 5.1. Completeness does not depend on d, soundness needs longer intervals as d grows; dashed, the theorem.",
    "theory_collapse": "Success depends on length times squared margin.",
    "theory_shares": "Share of certifying intervals on one shuffle: none certifies the wrong label at the theorem's length.",
    "theory_contrast": "Unconstrained masks certify the wrong label at almost any size, intervals only up to a length below the theorem's.",
    "theory_counterexamples": "Without bounded terms the theorem's lengths do not suffice; lines are closed forms.",
    "theory_concentration": "From one active coordinate to all of them: lengths for B = 1 hold only where the terms are spread out.",
}
"""What to see in each figure."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: 0.2rem 0.8rem; text-align: left; border-bottom: 1px solid #ddd }}
summary {{ margin: 1rem 0 0.3rem; font-weight: 600 }} .wide {{ overflow-x: auto }}
figure {{ margin: 2rem 0 }} img {{ max-width: 100% }} figcaption {{ color: #555 }}
</style></head><body>
{body}
</body></html>
"""


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

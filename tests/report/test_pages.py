"""Pages show everything without a network: a browser that opens them asks no other machine for anything."""

import re

import nbformat
import pandas as pd
import pytest

from salkit.report.expected import Outcome, write_outcome
from salkit.report.pages import write_index, write_page
from salkit.report.runner import notebooks_dir

ELSEWHERE = r"""["']?(?:https?:)?//"""
LOADED = re.compile(
    rf"<(?!a\b)[^<>]*\b(?:src|href|srcset|data)\s*=\s*{ELSEWHERE}|@import|\bimport\s*\(|\bfrom\s*{ELSEWHERE}|url\(\s*{ELSEWHERE}"
)
"""What makes a browser load something: attributes of any element but a link, and imports of scripts and styles."""

# Pairs of an address and whether a browser loads it by itself.
EXAMPLES = {
    '<script src="https://cdnjs.cloudflare.com/x.js">': True,
    "<link rel=stylesheet href=//fonts.example.org/a.css>": True,
    "style='background: url(http://example.org/a.png)'": True,
    'await import("https://example.org/m.mjs")': True,
    'import m from "https://example.org/m.mjs"': True,
    '<a href="https://arxiv.org">paper</a>': False,
    '<img src="data:image/png;base64,aGk=">': False,
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_pattern_finds_what_a_browser_loads(text):
    assert bool(LOADED.search(text)) == EXAMPLES[text]


@pytest.mark.parametrize("path", sorted(notebooks_dir().glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebooks_page_loads_nothing_and_shows_its_formulas(path, tmp_path):
    page = tmp_path / "page.html"
    write_page(path, page)
    html = page.read_text()
    assert not [match[0][:100] for match in LOADED.finditer(html)]
    markdown = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    formulas = len(re.findall(r"\$\$.+?\$\$|\$.+?\$", "\n".join(markdown), re.DOTALL))
    assert html.count("<math ") == formulas
    assert html.count("<img ") == sum("image/png" in str(cell.get("outputs")) for cell in nbformat.read(path, as_version=4).cells)


def test_formulas_become_mathml(tmp_path):
    source = "# Title $x_1$\n\nInline $\\frac{1}{\\gamma^2}$ and\n\n$$L_1 \\le d$$\n\nfor `$5` and \\$6."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    write_page(tmp_path / "n.ipynb", tmp_path / "n.html")
    html = (tmp_path / "n.html").read_text()
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><msup>" in html
    assert html.count('display="block"') == 1
    assert html.count("<math ") == 3
    assert "$5" in html
    assert "$6" in html


def test_the_index_links_and_escapes_what_it_shows(tmp_path):
    for folder in ("notebooks", "html", "tables", "figures"):
        (tmp_path / folder).mkdir()
    for file in ("notebooks/01_a.ipynb", "notebooks/02_b.ipynb", "html/01_a.html", "figures/gallery_labels.png", "figures/new.png"):
        (tmp_path / file).touch()
    pd.DataFrame({"method": ["0.10", "<b>"], "ours": [0.0123, float("nan")]}).to_csv(tmp_path / "tables" / "other.csv", index=False)
    pd.DataFrame({"claim": ["x"]}).to_csv(tmp_path / "tables" / "table1_claims.csv", index=False)
    write_outcome(tmp_path, "01_a", Outcome(3, ("x: got <b>", "y: got 2")))
    html = write_index(tmp_path, "smoke", [("01_a", 75.0, True), ("02_b", 5.0, False)]).read_text()
    assert not LOADED.search(html)
    assert "profile smoke</h1>" in html
    assert "<td>1:15</td>" in html
    assert "<td>0:05, <b>failed</b></td>" in html
    assert html.index("2 of 5 checks failed") < html.index("<li>01_a: x: got &lt;b&gt;</li>") < html.index("<h2>Notebooks</h2>")
    assert '<td><span class="failed">3 of 5 checks passed</span>' in html
    assert html.count("<td>none</td>") == 1
    assert 'href="html/01_a.html"' in html
    assert 'href="html/02_b.html"' not in html
    assert html.index("table1_claims.csv") < html.index("other.csv")
    assert html.count("<details open>") == 1
    assert "<td>0.10</td>" in html
    assert "<td>&lt;b&gt;</td>" in html
    assert "<td>0.012</td>" in html
    assert "The map of every label of one image" in html
    assert "<figcaption>new (" in html


def test_an_index_without_failed_checks_lists_none(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name, outcome in {"01_a": Outcome(3), "02_b": Outcome(0, (), "nothing to compare")}.items():
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
        write_outcome(tmp_path, name, outcome)
    html = write_index(tmp_path, "smoke").read_text()
    assert "<td>3 of 3 checks passed</td>" in html
    assert "<td>nothing to compare</td>" in html
    assert "checks failed" not in html
    assert 'class="failed"' not in html
    assert "This run has" not in html

"""`make test-notebooks` compares every digit and word of a notebook's outputs, except in cells that say why not."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from salkit.report.runner import notebooks_dir

CONFIGURATION = Path(__file__).parents[1] / "nbval.cfg"
LIVE = ["nbval-ignore-output"]


def printed(*lines):
    return [new_output("stream", name="stdout", text="".join(f"{line}\n" for line in lines))]


def shown(**data):
    return [new_output("display_data", {mime.replace("_", "/"): value for mime, value in data.items()})]


HTML = "from IPython.display import HTML, Image, display\ndisplay(HTML('<td>0.25</td>'))"
PLAIN = "<IPython.core.display.HTML object>"
IMAGE = "display(Image(data=b'one image', format='png'))"
# Source, committed output, tags, and whether nbval lets the cell pass.
CELLS = {
    "same": ("print('reproduced 0.5814')", printed("reproduced 0.5814"), [], True),
    "last digit": ("print('reproduced 0.5814')", printed("reproduced 0.5815"), [], False),
    "verdict": ("print('reproduced 0.5814')", printed("inconclusive 0.5814"), [], False),
    "rows": ("print('a')\nprint('b')", printed("a"), [], False),
    "spaces": ("print('a   0.5')", printed("a  0.5"), [], False),
    "table": (HTML, shown(text_html="<td>0.25</td>", text_plain=PLAIN), [], True),
    "digit of a table": (HTML, shown(text_html="<td>0.26</td>", text_plain=PLAIN), [], False),
    "size of a figure": ("display('<Figure size 836x319.2>')", shown(text_plain="'<Figure size 800x319.2>'"), [], False),
    "pixels": (IMAGE, shown(image_png="b3RoZXI=", text_plain=PLAIN.replace("HTML", "Image")), [], True),
    "warning": ("import sys\nprint('careful', file=sys.stderr)", [], [], False),
    "live": ("print(0.5814)", printed("0.5777"), LIVE, True),
    "live, broken": ("1 / 0", printed("0.5777"), LIVE, False),
}


def test_nbval_compares_all_but_live_cells(tmp_path):
    cells = [
        new_code_cell(source, id=f"c{i}", execution_count=1, outputs=outputs, metadata={"tags": tags})
        for i, (source, outputs, tags, _) in enumerate(CELLS.values())
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "made.ipynb")
    options = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-rA", "--tb=no", "-q"]
    command = [sys.executable, "-m", "pytest", *options, "--nbval", "--nbval-current-env", "--nbval-sanitize-with", CONFIGURATION]
    done = subprocess.run([*command, tmp_path / "made.ipynb"], cwd=tmp_path, capture_output=True, text=True)
    results = {int(cell): result == "PASSED" for result, cell in re.findall(r"(?m)^(PASSED|FAILED) .*::Cell (\d+)", done.stdout)}
    assert {name: results[i] for i, name in enumerate(CELLS)} == {name: cell[-1] for name, cell in CELLS.items()}


@pytest.mark.parametrize("path", sorted(notebooks_dir().glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_cell_that_is_not_compared_says_why(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            ignored = cell.metadata.get("tags") == LIVE
            assert ignored == bool(re.search(r"(?m)^# Not compared: \w+ \w+", cell.source)), cell.source
            assert "NBVAL" not in cell.source, "tags are used, since the marker must stand alone in its comment"


def test_the_last_cell_is_always_compared():
    for path in notebooks_dir().glob("*.ipynb"):
        assert "nbval-ignore-output" not in nbformat.read(path, as_version=4).cells[-1].metadata.get("tags", []), path.name

import io

import nbformat
import pandas as pd
import pytest
from rich.console import Console

from salkit.report.progress import Progress
from salkit.report.runner import NotebookError, reproduce

PARAMETERS = 'profile, output_dir, settings = "demo", ".", {}'


def write_notebook(path, *cells):
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    notebook.cells = [nbformat.v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate([PARAMETERS, *cells])]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)


SAVE_TABLE = """
from pathlib import Path
(Path(output_dir) / "tables" / "made.csv").write_text(f"profile,seed\\n{profile},{settings['seed']}\\n")
"""


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def test_notebooks_run_in_order_with_their_parameters(tmp_path, console):
    write_notebook(tmp_path / "01_first.ipynb", SAVE_TABLE)
    write_notebook(tmp_path / "02_second.ipynb", 'print(open(output_dir + "/tables/made.csv").read())')
    out = tmp_path / "out"
    index = reproduce("smoke", output_dir=out, parameters={"seed": 7}, console=console, source=tmp_path)
    assert pd.read_csv(out / "tables" / "made.csv").to_dict("records") == [{"profile": "smoke", "seed": 7}]
    executed = nbformat.read(out / "notebooks" / "02_second.ipynb", as_version=4)
    assert "smoke,7" in executed.cells[-1].outputs[0].text
    assert "<td>smoke</td>" in index.read_text()
    assert "smoke,7" in (out / "html" / "02_second.html").read_text()
    shown = console.file.getvalue()
    assert "notebook 1/2  01_first  cell 1/" in shown
    assert "done   02_second" in shown


def test_the_first_failure_stops_the_run_and_names_the_cell(tmp_path, console):
    write_notebook(tmp_path / "01_good.ipynb", "1 + 1")
    write_notebook(tmp_path / "02_bad.ipynb", "x = 1", "raise KeyError('lost')")
    write_notebook(tmp_path / "03_never.ipynb", "1 + 1")
    out = tmp_path / "out"
    with pytest.raises(NotebookError, match=r"02_bad\.ipynb, cell \d+ \(In \[\d+\]\): KeyError: 'lost'"):
        reproduce("smoke", output_dir=out, console=console, source=tmp_path)
    page = (out / "index.html").read_text()
    assert "failed" in page
    assert "03_never" not in page


def test_time_left_follows_the_pace_of_this_machine(console):
    now = [0.0]
    progress = Progress({"a": 10.0, "b": 20.0, "c": 30.0}, console, clock=lambda: now[0])
    assert progress.left() == 60
    progress.start("a")
    now[0] = 4
    assert progress.left() == 56
    now[0] = 20  # twice as slow as recorded
    progress.stop(ok=True)
    assert progress.left() == 100
    progress.start("b")
    now[0] = 30
    assert progress.left() == 90
    assert Progress({"a": None}, console).left() is None

import io
import re

import nbformat
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from salkit.commands.app import app
from salkit.report.expected import expected_values, record
from salkit.report.progress import Progress
from salkit.report.runner import FailedChecks, NotebookError, reproduce

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


CHECK = """
from salkit.report import expected
numbers = {"a": 0.5, "b": 0.25}
print(expected.check("02_wrong", profile, expected.exact(numbers, expected.FROM_FILES), output_dir))
"""
# What such a cell leaves for the runner, without the seconds that its import takes.
FOUND = """
from pathlib import Path
Path(output_dir, "checks").mkdir(exist_ok=True)
Path(output_dir, "checks", "01_made.json").write_text('{"passed": 2, "failed": LINES, "note": ""}')
"""


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A made-up kit: folders of notebooks and of recorded numbers."""
    monkeypatch.setenv("SALKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    for folder in ("data", "notebooks"):
        (tmp_path / folder).mkdir()
    return tmp_path


def test_a_failed_check_stops_no_notebook_and_fails_the_command(kit):
    write_notebook(kit / "notebooks" / "01_made.ipynb", FOUND.replace("LINES", "[]"))
    write_notebook(kit / "notebooks" / "02_wrong.ipynb", CHECK)
    for name in ("03_silent", "04_none"):
        write_notebook(kit / "notebooks" / f"{name}.ipynb", "1 + 1")
    recorded = {"a": [0.6, 0.01, "two [seeds]"], "c": [0.1, 0.1, "r"]}
    record("smoke", {name: {"values": recorded} for name in ("02_wrong", "03_silent")})
    result = CliRunner().invoke(app, ["reproduce", "--profile", "smoke", "--output", str(kit / "out")])
    assert result.exit_code == 1
    ran, _, listed = result.output.partition("2 checks passed, 5 failed\n")
    assert re.search(r"done   01_made  \d:\d\d  2 of 2 checks passed\n", ran)
    assert re.search(r"done   04_none  \d:\d\d  no checks\n", ran)
    assert "  02_wrong  a: expected 0.6 within 0.01, got 0.5 (two [seeds])\n" in listed
    assert "  02_wrong  c: expected 0.1, got no such number\n" in listed
    assert "  02_wrong  b: expected no such number, got 0.25" in listed
    assert "  03_silent  a: expected 0.6, got no such number\n" in listed
    assert "01_made" not in listed
    assert "error: checks failed in 02_wrong, 03_silent; see" in listed
    page = (kit / "out" / "index.html").read_text()
    assert "5 of 7 checks failed" in page
    assert "<td>2 of 2 checks passed</td>" in page.replace("\n", "")
    assert page.count("<td>none</td>") == 1


def test_failed_checks_are_red_and_only_the_default_settings_are_recorded(kit):
    write_notebook(kit / "notebooks" / "01_made.ipynb", FOUND.replace("LINES", '["a: got 0.5"]'))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    with pytest.raises(FailedChecks, match=r"checks failed in 01_made; see .*index\.html"):
        reproduce("smoke", output_dir=kit / "out", console=console, parameters={"device": "cpu"})
    shown = console.file.getvalue()
    assert "\x1b[1;31m2 checks passed, 1 failed\x1b[0m" in shown
    assert "\x1b[31m  01_made  a: got 0.5\x1b[0m" in shown
    console = Console(file=io.StringIO(), width=200)
    reproduce("smoke", output_dir=kit / "out", console=console, parameters={"seed": 7})
    assert "2 checks passed, 1 failed" in console.file.getvalue()
    assert "{'seed': 7}" in console.file.getvalue()
    assert "This run has seed = 7." in (kit / "out" / "index.html").read_text()


def test_a_run_whose_checks_pass_succeeds_and_does_not_pass_for_a_later_one(kit, console):
    write_notebook(kit / "notebooks" / "01_made.ipynb", FOUND.replace("LINES", "[]"))
    command = ["reproduce", "--profile", "smoke", "--output", str(kit / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "2 checks passed, 0 failed\nOpen" in result.output
    write_notebook(kit / "notebooks" / "01_made.ipynb", "raise KeyError('lost')")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "0 checks passed, 0 failed" in result.output
    assert "<td>none</td>" in (kit / "out" / "index.html").read_text()


def test_a_recorded_run_has_its_seconds(kit, console, monkeypatch):
    monkeypatch.setenv("SALKIT_RECORD", "1")
    record("smoke", {"01_made": {"values": {"a": [0.5, 1e-6, "r"]}}})
    write_notebook(kit / "notebooks" / "01_made.ipynb", FOUND.replace("LINES", "[]"))
    reproduce("smoke", output_dir=kit / "out", console=console)
    found = expected_values("smoke")["01_made"]
    assert found["seconds"] >= 0
    assert found["values"] == {"a": [0.5, 1e-6, "r"]}


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

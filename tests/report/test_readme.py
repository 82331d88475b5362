"""README and docs/ say what the recorded files say, their links resolve, and their examples and commands work."""

import ast
import base64
import json
import re

import pytest
import typer

from salkit.commands.app import app
from salkit.methods import METHODS
from salkit.report import readme

ROOT = readme.ROOT
PAGES = [*readme.pages(), ROOT / "CONTRIBUTING.md", *sorted((ROOT / "data").rglob("README.md"))]
TEXT = {page: page.read_text() for page in PAGES}


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", TEXT[ROOT / page], re.DOTALL)


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_blocks_hold_the_recorded_numbers(page):
    assert readme.rendered(TEXT[page]) == TEXT[page], "run `make readme`"


def test_every_block_is_shown_once_and_a_typed_number_is_noticed():
    assert sorted(name for page in readme.pages() for name in re.findall(r"<!-- begin: (\S+) -->", TEXT[page])) == sorted(readme.BLOCKS)
    text = TEXT[ROOT / "README.md"]
    typed = re.sub(r"(?<=tables and figures: )\d+", "99999", text)
    assert typed != text
    assert readme.rendered(typed) == text
    with pytest.raises(ValueError, match=r"block: expected one of .*'findings'.*, got 'nonsense'"):
        readme.rendered("<!-- begin: nonsense -->\n<!-- end -->")


def test_the_first_figure_is_the_recorded_one():
    assert readme.figure1().startswith(b"\x89PNG")
    assert readme.FIGURE1.read_bytes() == readme.figure1(), "run `make readme`"


def test_recorded_outputs_are_found_by_what_they_show(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    html = "<table><tr><th></th><th>ours</th></tr><tr><th>claim</th><th></th></tr><tr><th>{}</th><td>0 &lt; 1</td></tr></table>"
    image = base64.b64encode(b"image").decode()

    def record(*outputs):
        cells = [{"source": ["# figure1_masks"], "outputs": [{"data": data}]} for data in outputs]
        (tmp_path / "notebooks" / "02_cifar10_tv_sweep.ipynb").write_text(json.dumps({"cells": cells}))

    record({"text/html": html.format("a")}, {"text/html": html.format("b")}, {"image/png": image})
    assert readme.recorded_table("02_cifar10_tv_sweep", "b", "ours").to_dict("index") == {"b": {"ours": "0 < 1"}}
    assert readme.figure1() == b"image"
    for row, column in (("c", "ours"), ("a", "theirs")):
        with pytest.raises(
            ValueError, match=rf"02_cifar10_tv_sweep: expected a recorded table with a row '{row}' and columns \['{column}'\]"
        ):
            readme.recorded_table("02_cifar10_tv_sweep", row, column)
    record({"text/plain": "no image"})
    with pytest.raises(ValueError, match="02_cifar10_tv_sweep: expected a recorded image"):
        readme.figure1()


def test_the_first_page_is_short_and_every_other_page_says_for_whom_it_is():
    assert len(TEXT[ROOT / "README.md"].splitlines()) <= 120
    for page in [*readme.pages()[1:], ROOT / "CONTRIBUTING.md"]:
        assert re.match(r"# .+\n\n\*For [^\n]+\.\*\n\n", TEXT[page]), page


def test_links_resolve():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!https://)([^)\s]+)\)", TEXT[page])]
    assert len(links) > 30
    for page, link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), (page, link)
        titles = re.findall(r"^#+ (.+)$", target.read_text() if anchor else "", re.MULTILINE)
        # GitHub's names of the headings.
        assert anchor in {"", *(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)}, (page, link)


def test_commands_and_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    every = "\n".join(TEXT.values())
    targets = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", every, re.MULTILINE))
    assert {"reproduce", "readme", "test"} <= targets
    assert targets <= set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    commands = typer.main.get_command(app).commands
    named = re.findall(r"python -m salkit ([a-z-]+)([^`\n]*)", every)
    assert len(named) > 5
    for name, arguments in named:
        both = [commands[name], *getattr(commands[name], "commands", {}).values()]
        options = {option for command in both for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r" (--[a-z-]+)", arguments.partition("#")[0])) <= options, (name, arguments)


def test_every_method_has_its_row():
    rows = re.findall(r"^\| `(\w+)` \|", TEXT[ROOT / "docs" / "methods.md"], re.MULTILINE)
    assert rows == list(METHODS)


def test_the_readme_scores_a_method_in_ten_lines(capsys):
    (code,) = python_blocks("README.md")
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(code.replace("n=4", "n=1"), {})
    scores = [float(number) for number in capsys.readouterr().out.split()]
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize("page", ["docs/your-own-method.md", "docs/long-runs.md"])
def test_other_examples_are_python(page):
    assert [ast.parse(code) for code in python_blocks(page)]

"""The committed notebooks are readable as they are: outputs, no errors, small, short cells. nbval runs them (make test-notebooks)."""

import nbformat
import pytest

from salkit.report.runner import notebooks_dir

NOTEBOOKS = sorted(notebooks_dir().glob("*.ipynb"))
PARAMETERS = """profile = "demo"  # or "smoke", "overnight", "paper"
output_dir = "../runs/notebook"
settings = {}  # for Runs, such as {"seed": 1, "device": "cuda", "executor": "dask"}"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_follow_the_house_rules(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert path.stat().st_size < 1_000_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert [cell.source for cell in code if cell.metadata.get("tags") == ["parameters"]] == [PARAMETERS]
    assert all(len(cell.source.splitlines()) <= 15 for cell in code)
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    passed, _, total, *_ = outputs[-1].text.split()
    assert passed == total, outputs[-1].text


def test_there_are_eight_notebooks():
    theory, table1 = ["00_train_maskers", "01_theory_toy_model"], ["02_cifar10_tv_sweep", "03_imagenette_table1", "04_figures"]
    assert [path.stem for path in NOTEBOOKS] == [*theory, *table1, "05_sanity_checks", "06_which_protocol", "07_cost_and_quality"]

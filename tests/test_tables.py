import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from salkit import tables
from salkit.tables import Claim


@pytest.fixture
def result():
    """Two methods, four images, two labels, with scores that can be averaged by eye."""
    shape = (2, 4, 2)
    soundness = np.stack([np.full((4, 2), 0.9), np.full((4, 2), 0.5)])
    soundness[0, :, 1] = [0.8, 0.6, 0.8, 0.6]
    data = {
        "prob": (("image", "label"), np.tile([0.7, 0.3], (4, 1))),
        "insertion_auc": (("method", "image", "label"), np.tile([0.6, 0.2], (2, 4, 1))),
        "deletion_auc": (("method", "image", "label"), np.tile([0.4, np.nan], (2, 4, 1))),
        "completeness": (("method", "image", "label"), np.full(shape, 0.75)),
        "soundness": (("method", "image", "label"), soundness),
    }
    made = xr.Dataset(data, {"method": ["Ours", "Random"], "image": list("abcd"), "label": ["cat", "dog"]})
    return made.assign(prediction=made.prob.argmax("label"))


def test_tidy_table_by_hand(result):
    table = tables.tidy_table(result, tables.paper_values("table1"))
    assert list(table.columns) == ["method", "metric", "paper", "ours", "low", "high", "n", "verdict"]
    rows = table.set_index(["method", "metric"])
    ours = rows.loc["Ours"]
    assert ours.loc["soundness", "ours"] == pytest.approx(0.7)
    assert ours.loc["soundness", ["paper", "n", "verdict"]].tolist() == [0.84, 4, "not reproduced"]
    assert ours.loc["insertion", "ours"] == pytest.approx(0.6)
    assert ours.loc["deletion", "ours"] == pytest.approx(0.4)
    assert ours.loc["saliency_metric", ["n", "verdict"]].tolist() == [0, "not measured"]
    assert ours.loc["best_effort", "verdict"] == ""
    assert math.isnan(ours.loc["best_effort", "paper"])
    assert 0.6 <= ours.loc["soundness", "low"] <= 0.7 <= ours.loc["soundness", "high"] <= 0.8


def test_a_paper_value_inside_the_interval_is_compatible(result):
    paper = pd.DataFrame({"method": ["Ours"], "metric": ["soundness"], "value": [0.7]})
    table = tables.tidy_table(result, paper).set_index(["method", "metric"])
    assert table.loc[("Ours", "soundness"), "verdict"] == "compatible"
    assert table.loc[("Random", "soundness"), "verdict"] == ""


def test_claims_can_fail(result):
    claims = (
        Claim("sounder", "soundness", "Ours", "Random", paper=0.15),
        Claim("less sound", "soundness", "Random", "Ours"),
        Claim("as complete", "completeness", "Ours", "Random", -0.05),
        Claim("more complete", "completeness", "Ours", "Random"),
        Claim("did not run", "soundness", "Ours", "Phang"),
    )
    table = tables.claims_table(result, claims)
    assert table.verdict.tolist() == ["reproduced", "not reproduced", "reproduced", "inconclusive"]
    assert table.ours.tolist() == pytest.approx([0.2, -0.2, 0.0, 0.0])
    assert tables.wide_claims(table).loc["sounder", "paper"] == "+0.15"


def test_wide_table_shows_paper_ours_and_interval(result):
    wide = tables.wide_table(tables.tidy_table(result, tables.paper_values("table1")))
    assert wide.index.tolist() == ["Ours", "Random"]
    assert "saliency_metric" not in wide.columns
    assert wide.loc["Ours", "completeness"] == "0.84 | 0.75 [0.75, 0.75]"
    assert wide.loc["Ours", "best_effort"] == "0.75 [0.75, 0.75]"


def test_worked_example_by_hand(result):
    rows = tables.worked_example(result.isel(method=[0])).set_index("label")
    assert rows.loc["cat", ["f", "g", "completeness", "soundness"]].tolist() == pytest.approx([0.7, 0.6, 0.6 / 0.7, 1.0])
    assert rows.loc["worst case", ["completeness", "soundness"]].tolist() == pytest.approx([0.2 / 0.3, 1.0])


def test_paper_table_is_the_papers():
    paper = tables.paper_values("table1")
    assert len(paper) == 11 * 5
    assert paper.groupby("metric").value.max().round(2).to_dict() == {
        "completeness": 0.87, "deletion": 0.66, "insertion": 0.80, "saliency_metric": -0.27, "soundness": 0.84
    }  # fmt: skip
    assert tables.paper_values("table2").empty


def test_saved_tables_are_whole_csv(result, tmp_path):
    table = tables.tidy_table(result, tables.paper_values("table1"))
    path = tables.save_table(table, tmp_path, "table1")
    assert path == tmp_path / "tables" / "table1.csv"
    again = pd.read_csv(path)
    assert again.ours.tolist() == pytest.approx(table.ours.tolist(), abs=1e-4, nan_ok=True)
    assert [p.name for p in path.parent.iterdir()] == ["table1.csv"]


def test_headline_numbers_leave_out_what_was_not_measured(result):
    numbers = tables.headline(tables.tidy_table(result, tables.paper_values("table1")), exact=["Random"])
    assert numbers["Ours/soundness"][0] == pytest.approx(0.7)
    assert 0.05 < numbers["Ours/soundness"][1] < 0.2
    assert numbers["Random/soundness"] == (pytest.approx(0.5), 0.005)
    assert "Ours/saliency_metric" not in numbers

import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from salkit.report import tables
from salkit.report.claims import Claim, claims_table, wide_claims


@pytest.fixture
def result():
    """Two methods, four images, two labels, with scores that can be averaged by eye."""
    dims = ("method", "image", "label")
    soundness = np.stack([np.full((4, 2), 0.9), np.full((4, 2), 0.5)])
    soundness[0, :, 1] = [0.8, 0.6, 0.8, 0.6]
    areas = {name: np.tile(pair, (2, 4, 1)) for name, pair in (("insertion_auc", [0.6, 0.2]), ("deletion_auc", [0.4, np.nan]))}
    scores = areas | {"completeness": np.full((2, 4, 2), 0.75), "soundness": soundness}
    data = {"prob": (dims[1:], np.tile([0.7, 0.3], (4, 1)))} | {name: (dims, values) for name, values in scores.items()}
    made = xr.Dataset(data, {"method": ["Ours", "Random"], "image": list("abcd"), "label": ["cat", "dog"]})
    return made.assign(prediction=made.prob.argmax("label"))


def test_tidy_table_by_hand(table):
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


def test_claims_can_fail(result):
    claims = (
        Claim("sounder", "soundness", "Ours", "Random", paper=0.15),
        Claim("less sound", "soundness", "Random", "Ours"),
        Claim("as complete", "completeness", "Ours", "Random", -0.05),
        Claim("more complete", "completeness", "Ours", "Random"),
        Claim("did not run", "soundness", "Ours", "Phang"),
    )
    table = claims_table(result, claims)
    assert table.verdict.tolist() == ["reproduced", "not reproduced", "reproduced", "inconclusive"]
    assert table.ours.tolist() == pytest.approx([0.2, -0.2, 0.0, 0.0])
    assert wide_claims(table).loc["sounder", "paper"] == "+0.15"


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


def test_saved_tables_are_whole_csv(table, tmp_path):
    path = tables.save_table(table, tmp_path, "table1")
    assert path == tmp_path / "tables" / "table1.csv"
    again = pd.read_csv(path)
    assert again.ours.tolist() == pytest.approx(table.ours.tolist(), abs=1e-4, nan_ok=True)
    assert [p.name for p in path.parent.iterdir()] == ["table1.csv"]


@pytest.fixture
def table(result):
    return tables.tidy_table(result, tables.paper_values("table1"))


@pytest.fixture
def more(result):
    """The same with the saliency metric, label correlation and both games."""
    shape = (2, 4, 2, 2, 2)
    games = np.arange(np.prod(shape), dtype=float).reshape(shape) / 64
    games[1, :, 1] = np.nan
    metric = np.stack([np.tile([-0.9, -0.5], (4, 1)), np.tile([0.1, 0.3], (4, 1))])
    metric[0, :, 0] = [-1.2, -0.8, -1.0, -0.6]
    added = {
        "games": (("method", "image", "game", "infill", "rule"), games),
        "saliency_metric": (("method", "image", "box"), metric),
        "label_correlation": (("method", "image"), np.array([[0.1, 0.2, 0.3, 0.4], [1.0] * 4])),
        "alpha": ("method", [0.25, 0.5]),
    }
    coords = {"game": ["insertion", "deletion"], "infill": ["gray", "blur"], "rule": ["mean", "trapezoid"]}
    return result.assign(added).assign_coords(coords | {"box": ["threshold", "largest_component"]})


def test_only_what_an_evaluation_holds_is_measured(result, more):
    always = {"deletion", "insertion", "completeness", "soundness", "best_effort"}
    assert set(tables.metric_values(result)) == always
    assert set(tables.metric_values(more)) == always | {"saliency_metric", "label_correlation"}
    assert set(tables.metric_values(more.drop_vars("saliency_metric"))) == always | {"label_correlation"}
    mosaics = more.assign(dict.fromkeys(("localisation", "localisation_top"), more.completeness))
    assert list(tables.metric_values(mosaics)) == list(tables.METRICS)
    for name, values in tables.metric_values(mosaics).items():
        assert set(values.dims) == {"method", "image"}, name


def test_the_saliency_metric_of_the_table_is_that_of_its_definition(more):
    table = tables.tidy_table(more, tables.paper_values("table1")).set_index(["method", "metric"])
    ours = table.loc[("Ours", "saliency_metric")]
    # Boxes around all salient pixels, not the largest region's, which would be -0.5.
    assert ours[["paper", "ours", "n", "verdict"]].tolist() == [-0.90, pytest.approx(-0.9), 4, "compatible"]
    assert -1.2 <= ours.low < -0.9 < ours.high <= -0.6
    assert table.loc[("Random", "saliency_metric"), ["ours", "verdict"]].tolist() == [pytest.approx(0.1), "not reproduced"]
    assert table.loc[("Ours", "label_correlation"), "ours"] == pytest.approx(0.25)
    # A metric of the kit's own: the paper has no number.
    assert table.loc[("Ours", "label_correlation"), "verdict"] == ""
    assert table.loc["Ours"].index.tolist() == [name for name in tables.METRICS if "localisation" not in name]


def test_games_table_by_hand(more):
    table = tables.games_table(more)
    assert list(table.columns) == ["method", "game", "infill", "rule", "area"]
    assert len(table) == 2 * 2 * 2 * 2
    rows = table.set_index(["method", "game", "infill", "rule"]).area
    # Images are 8 numbers apart: the mean of four is 12 above the first, whose place is 4 game + 2 infill + rule.
    assert rows["Ours", "insertion", "gray", "mean"] == pytest.approx(12 / 64)
    assert rows["Ours", "deletion", "blur", "trapezoid"] == pytest.approx((4 + 2 + 1 + 12) / 64)
    assert rows["Ours", "deletion", "gray", "trapezoid"] == pytest.approx((4 + 1 + 12) / 64)
    assert rows["Random", "insertion", "blur", "mean"] == pytest.approx((32 + 2 + 12) / 64)


def test_tables_for_reading_show_paper_ours_and_interval(table):
    wide = tables.wide_table(table)
    assert wide.index.tolist() == ["Ours", "Random"]
    assert "saliency_metric" not in wide.columns
    assert wide.loc["Ours", ["completeness", "best_effort"]].tolist() == ["0.84 | 0.75 [0.75, 0.75]", "0.75 [0.75, 0.75]"]
    both = tables.side_by_side({"first": table}, ["completeness", "soundness"])
    assert both.index.tolist() == ["Ours", "Random"]
    assert both.loc["Ours", ("soundness", "paper")] == "0.84"
    assert both.loc["Ours", ("soundness", "first")].startswith("0.70 [")

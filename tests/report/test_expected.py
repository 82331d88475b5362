import json

import pytest

from salkit.report import expected
from salkit.report.expected import check

RECORDED = {"a": (0.5, 0.05), "b": float("nan"), "c": 10.0}


@pytest.fixture(autouse=True)
def recorded(monkeypatch, tmp_path):
    monkeypatch.setattr(expected, "data_dir", lambda: tmp_path)
    monkeypatch.delenv("SALKIT_RECORD", raising=False)
    assert "nothing to compare" in check("01", "demo", {"a": 1.0})
    monkeypatch.setenv("SALKIT_RECORD", "1")
    assert check("01", "demo", RECORDED) == "3 of 3 checks passed"
    monkeypatch.delenv("SALKIT_RECORD")
    return json.loads((tmp_path / "expected" / "demo.json").read_text())["01"]["values"]


def test_recorded_are_numbers_and_tolerances(recorded):
    assert recorded["a"] == [0.5, 0.05]
    assert recorded["c"] == [10.0, 0.200001]


@pytest.mark.parametrize("values", [RECORDED, {"a": (0.54, 9.0), "b": float("nan"), "c": 10.1}])
def test_numbers_within_the_recorded_tolerance_pass(values):
    assert check("01", "demo", values) == "3 of 3 checks passed"


def test_numbers_outside_are_named():
    lines = check("01", "demo", {"a": (0.56, 9.0), "b": 0.0, "c": 10.3}).splitlines()
    assert lines[0] == "0 of 3 checks passed"
    assert lines[1] == "a: expected 0.5000 within 0.0500, got 0.5600"
    assert len(lines) == 4


def test_other_names_than_the_recorded_are_refused():
    with pytest.raises(ValueError, match=r"values: expected the recorded names, differing in \['b', 'c'\]"):
        check("01", "demo", {"a": 0.5})

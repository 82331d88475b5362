import pytest

from salkit.report import expected
from salkit.report.expected import check, expected_values


def test_numbers_are_compared_with_the_recorded_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(expected, "data_dir", lambda: tmp_path)
    monkeypatch.delenv("SALKIT_RECORD", raising=False)
    assert "nothing to compare" in check("01", "demo", {"a": 1.0})
    monkeypatch.setenv("SALKIT_RECORD", "1")
    recorded = {"a": (0.5, 0.05), "b": float("nan"), "c": 10.0}
    assert check("01", "demo", recorded) == "3 of 3 checks passed"
    monkeypatch.delenv("SALKIT_RECORD")
    assert check("01", "demo", {"a": (0.54, 9.0), "b": float("nan"), "c": 10.1}) == "3 of 3 checks passed"
    lines = check("01", "demo", {"a": (0.56, 9.0), "b": 0.0, "c": 10.3}).splitlines()
    assert lines[:2] == ["0 of 3 checks passed", "a: expected 0.5000 within 0.0500, got 0.5600"]
    with pytest.raises(ValueError, match=r"values: expected the recorded names, differing in \['b', 'c'\]"):
        check("01", "demo", {"a": 0.5})
    assert expected_values("demo")["01"]["values"]["c"] == [10.0, 0.200001]

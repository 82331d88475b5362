import json
import math

import numpy as np
import pandas as pd
import pytest

from salkit.methods.base import LearnedMap
from salkit.report import expected
from salkit.report.expected import FROM_FILES, KERNELS, SEEDED, UNBOUNDED, Outcome, Value, check, compare, exact, expected_values, record
from salkit.scores import PROTOCOLS
from salkit.studies.profiles import PROFILES, table1_methods


@pytest.fixture
def data(monkeypatch, tmp_path):
    """An empty folder of recorded numbers, compared with and not recorded."""
    monkeypatch.setenv("SALKIT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("SALKIT_RECORD", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def recorded(data, values):
    record("demo", {"01": {"values": values}})
    assert json.loads((data / "expected" / "demo.json").read_text())["01"]["values"].keys() == values.keys()


def test_numbers_are_recorded_with_their_tolerance_and_reason_and_then_compared(data, monkeypatch):
    assert "nothing to compare" in check("01", "demo", {"a": (1.0, 0.1, "why")})
    monkeypatch.setenv("SALKIT_RECORD", "1")
    values = {"a": (0.5, 0.05, "two seeds"), "b": Value(float("nan"), 0.0, "missing"), "c": Value(611, 0.2, SEEDED, UNBOUNDED)}
    assert check("01", "demo", values) == "3 of 3 checks passed"
    assert expected_values("demo")["01"]["values"]["a"] == [0.5, 0.05, "two seeds"]
    assert expected_values("demo")["01"]["values"]["c"] == [611.0, 0.2, SEEDED]
    monkeypatch.delenv("SALKIT_RECORD")
    again = {"a": (0.549, 9.0, ""), "b": (float("nan"), 0.0, ""), "c": (610.9, 0.0, "")}
    assert check("01", "demo", again) == "3 of 3 checks passed"
    lines = check("01", "demo", {"a": (0.551, 9.0, "other"), "b": (0.0, 9.0, ""), "c": (610.7, 9.0, "")}).splitlines()
    assert lines[:2] == ["0 of 3 checks passed", "a: expected 0.5 within 0.05, got 0.551 (two seeds)"]
    assert len(lines) == 4


@pytest.mark.parametrize("got", [float("nan"), float("inf"), 0.5 + 2e-6, 0.5 - 2e-6])
def test_what_is_not_the_number_is_a_failure(data, got):
    recorded(data, {"a": [0.5, 1e-6, "r"]})
    assert compare("01", "demo", {"a": got}).failed
    assert not compare("01", "demo", {"a": 0.5 + 5e-7}).failed


def test_missing_and_new_names_are_failures_and_no_crash(data):
    recorded(data, {"a": [0.5, 0.1, "r"], "b": [0.5, 0.1, "r"]})
    found = compare("01", "demo", {"a": 0.5, "c": 0.25})
    assert (found.passed, found.summary) == (1, "1 of 3 checks passed")
    assert found.failed[0] == "b: expected 0.5, got no such number"
    assert found.failed[1].startswith("c: expected no such number, got 0.25")
    assert len(compare("02", "demo", {"a": 0.5}).failed) == 1, "a notebook that was never recorded"
    assert len(compare("01", "demo", {}).failed) == 2


def test_the_outcome_is_written_for_the_runner(data, tmp_path):
    recorded(data, {"a": [0.5, 0.1, "r"]})
    check("01", "demo", {"a": (0.9, 0.1, "r")}, tmp_path / "out")
    check("02", "paper", {"a": (0.9, 0.1, "r")}, str(tmp_path / "out"))
    assert expected.read_outcomes(tmp_path / "out") == {
        "01": Outcome(0, ("a: expected 0.5 within 0.1, got 0.9 (r)",)),
        "02": Outcome(0, (), "no numbers are recorded for profile paper: nothing to compare"),
    }
    assert [path.name for path in (tmp_path / "out" / "checks").iterdir() if path.suffix != ".json"] == []
    check("01", "demo", {"a": (0.5, 0.1, "r")}, tmp_path / "out")
    assert expected.read_outcomes(tmp_path / "out")["01"] == Outcome(1)
    assert expected.read_outcomes(tmp_path / "nothing") == {}


REFUSED = {
    "covers the range": (Value(0.5, 0.6, "r"), r"x: tolerance 0.6 covers most of \[0, 1\]: no check"),
    "covers more than half": (Value(0.5, 0.26, "r"), "x: tolerance 0.26 covers most"),
    "covers half from its end": (Value(0.0, 0.51, "r"), "x: tolerance 0.51 covers most"),
    "infinite": (Value(0.5, math.inf, "r", UNBOUNDED), "x: expected a tolerance of 0 or more and its reason, got inf"),
    "of another range": (Value(0.0, 0.6, "r", (-1.0, 1.0)), r"x: tolerance 0.6 covers most of \[-1, 1\]: no check"),
    "not in the range": (Value(611.0, 0.1, "r"), r"x: expected a number in \[0, 1\], got 611; its range"),
    "no reason": (Value(0.5, 0.1, ""), "x: expected a tolerance of 0 or more and its reason, got 0.1 and ''"),
    "negative": (Value(0.5, -0.1, "r"), "x: expected a tolerance of 0 or more"),
    "no number": (Value(0.5, float("nan"), "r"), "x: expected a tolerance of 0 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_check_is_recorded(case, data, monkeypatch):
    monkeypatch.setenv("SALKIT_RECORD", "1")
    value, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        check("01", "demo", {"good": Value(0.5, 0.1, "r"), "x": value})
    assert not expected_values("demo"), "nothing is recorded then"
    with pytest.raises(ValueError, match="values: expected at least one number"):
        check("01", "demo", {})
    monkeypatch.delenv("SALKIT_RECORD")
    assert "nothing to compare" in check("01", "demo", {"x": value}), "a run that only compares is not stopped"


@pytest.mark.parametrize(
    "value", [Value(0.5, 0.25, "r"), Value(0.0, 0.5, "r"), Value(0.0, 0.5, "r", (-1, 1)), Value(3.0, 40.0, "r", UNBOUNDED)]
)
def test_what_can_fail_is_recorded(value, data, monkeypatch):
    monkeypatch.setenv("SALKIT_RECORD", "1")
    assert check("01", "demo", {"x": value}) == "1 of 1 checks passed"


def test_exact_numbers_agree_to_a_millionth(data, monkeypatch):
    monkeypatch.setenv("SALKIT_RECORD", "1")
    rng = np.random.default_rng(0)
    numbers = dict(zip("abcdef", [0.0, 1.0, 1 / 3, 79_999.0, -2.5e-5, rng.random()], strict=True))
    assert check("01", "demo", exact(numbers, FROM_FILES)) == "6 of 6 checks passed"
    monkeypatch.delenv("SALKIT_RECORD")
    near = {name: (number * (1 + 1e-8) + 1e-12, 0.0, "") for name, number in numbers.items()}
    assert check("01", "demo", near) == "6 of 6 checks passed", "the rounding of the file does not count"
    far = {name: (number * (1 + 2e-4) + 2e-9, 0.0, "") for name, number in numbers.items()}
    assert check("01", "demo", far).startswith("0 of 6 checks passed")


def test_a_file_of_recorded_numbers_has_a_line_a_value(data):
    tricky = 'a, "quoted" [0, 1],  two  spaces'
    recorded(data, {"a": [0.5, 0.1, tricky], "b": [float("nan"), 1e-9, "r"]})
    record("demo", {"01": {"seconds": 12}, "02": {"values": {"c": [1, 0, "r"]}}})
    text = (data / "expected" / "demo.json").read_text()
    assert f'   "a": [0.5, 0.1, {json.dumps(tricky)}],\n   "b": [NaN, 1e-09, "r"]\n' in text
    found = expected_values("demo")
    assert found["01"]["seconds"] == 12
    assert found["01"]["values"]["a"] == [0.5, 0.1, tricky]
    assert found["02"] == {"values": {"c": [1, 0, "r"]}}


@pytest.fixture
def tidy():
    rows = [
        ["Ours", "soundness", 0.7, 4],
        ["Ours", "label_correlation", -0.2, 4],
        ["Ours", "saliency_metric", -0.9, 4],
        ["LRP", "soundness", 0.5, 4],
        ["LRP", "best_effort", float("nan"), 0],
    ]
    return pd.DataFrame(rows, columns=["method", "metric", "ours", "n"])


def test_headline_numbers_leave_out_what_was_not_measured(tidy):
    assert expected.headline(tidy) == {
        "Ours/soundness": 0.7,
        "Ours/label_correlation": -0.2,
        "Ours/saliency_metric": -0.9,
        "LRP/soundness": 0.5,
    }


def test_live_tolerances_are_the_spread_for_what_learns_and_rounding_for_the_rest(tidy):
    values = expected.live(tidy, 0.03)
    assert set(values) == {"live/Ours/soundness", "live/Ours/label_correlation", "live/LRP/soundness"}
    assert values["live/Ours/soundness"][:2] == (0.7, 0.03)
    assert values["live/Ours/label_correlation"].span == (-1, 1)
    assert values["live/LRP/soundness"] == (0.5, 0.005, KERNELS, (0, 1))
    by_name = expected.live(tidy, {"Ours/soundness": 0.04, "Ours/label_correlation": 0.0})
    assert by_name["live/Ours/soundness"].tolerance == 0.04
    assert by_name["live/Ours/label_correlation"].tolerance == 0.005, "two seeds that agree do not make rounding smaller"
    with pytest.raises(KeyError, match="Ours/label_correlation"):
        expected.live(tidy, {"Ours/soundness": 0.04})


def test_a_tolerance_does_not_let_one_row_pass_for_another(data, monkeypatch):
    """LRP used to pass with SmoothGrad's scores, and a mask without TV with those of a mask with it."""
    monkeypatch.setenv("SALKIT_RECORD", "1")
    rows = pd.DataFrame({"method": ["LRP", "SmoothGrad"], "metric": "completeness", "ours": [0.41, 0.43], "n": 2})
    check("03", "demo", expected.live(rows, 0.05))
    monkeypatch.delenv("SALKIT_RECORD")
    swapped = rows.assign(ours=rows.ours.values[::-1])
    assert check("03", "demo", expected.live(swapped, 0.05)).startswith("0 of 2 checks passed")


def test_the_methods_that_learn_nothing_are_those_of_the_kit():
    methods = table1_methods(PROFILES["demo"].imagenet, PROTOCOLS["paper"])
    learn = {name for name, method in methods.items() if isinstance(method, LearnedMap)} | {"Ours (cheating)"}
    assert set(expected.LEARNS_NOTHING) == set(methods) - learn

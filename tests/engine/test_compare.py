import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from salkit.__main__ import app
from salkit.engine.compare import compare_stores
from salkit.engine.identity import Experiment
from salkit.engine.store import Store

VERSIONS = {"torch": "1"}
CURVES = Experiment("curves", "run, ours: curves", 4, {"method": {"class": "x.Gradient"}}, VERSIONS)
MASKS = Experiment("maps", "run, ours: maps", 4, {"method": {"class": "x.LearnedMask", "source": ["a"]}, "kept_as": "logits"}, VERSIONS)


def fill(folder, experiment, **arrays):
    store = Store(folder)
    store.open(experiment)
    store.write(experiment.key, 0, len(next(iter(arrays.values()))), arrays)
    return store


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def test_the_score_that_differs_most_comes_first_with_its_run(tmp_path, values):
    nudged = values.copy()
    nudged[2, 3] += 0.01
    a, b = (fill(tmp_path / name, CURVES, insertion=v, deletion=values) for name, v in (("a", values), ("b", nudged)))
    table = compare_stores(a, b)
    assert table.iloc[0].tolist()[:3] == ["run, ours: curves", "insertion", 4]
    assert table.largest.tolist() == pytest.approx([0.01, 0], abs=1e-6)


OTHER = [
    {"versions": {"torch": "2"}},
    {"what": {"method": {"class": "x.Gradient", "internal_batch_size": 8}}},
    {"what": {"method": {"class": "x.Gradient", "source": ["b"]}}},
]


@pytest.mark.parametrize("change", OTHER)
def test_results_of_other_versions_code_and_internal_batches_are_compared(tmp_path, values, change):
    a = fill(tmp_path / "a", CURVES, insertion=values)
    b = fill(tmp_path / "b", replace(CURVES, **change), insertion=values)
    assert compare_stores(a, b).largest.tolist() == [0]


@pytest.mark.parametrize("shared_first", [True, False])
def test_of_several_versions_the_one_that_both_hold_counts(tmp_path, values, shared_first):
    old = replace(CURVES, versions={"torch": "0"})
    order = [(CURVES, values), (old, values + 1)]
    for experiment, numbers in order if shared_first else order[::-1]:
        a = fill(tmp_path / "a", experiment, insertion=numbers)
    b = fill(tmp_path / "b", CURVES, insertion=values)
    assert compare_stores(a, b).largest.tolist() == [0]


def test_curves_of_maps_of_other_versions_are_compared(tmp_path, values):
    stores = []
    for name, versions in (("a", {"torch": "1"}), ("b", {"torch": "2"})):
        maps = replace(MASKS, versions=versions)
        fill(tmp_path / name, maps, map=values)
        stores.append(fill(tmp_path / name, replace(CURVES, what={"maps": maps.key}, versions=versions), insertion=values))
    assert set(compare_stores(*stores).score) == {"map", "insertion"}


def test_stores_without_a_common_experiment_are_an_error(tmp_path, values):
    a = fill(tmp_path / "a", CURVES, insertion=values)
    b = fill(tmp_path / "b", replace(CURVES, what={"method": "another"}), insertion=values)
    with pytest.raises(ValueError, match=r"run_b: expected experiments that .* holds, too, got none"):
        compare_stores(a, b)


def test_nan_equals_nan_and_nothing_else(tmp_path):
    numbers, other = np.array([[np.nan, 1, np.inf]] * 4), np.array([[np.nan, 1, np.inf]] * 4)
    assert compare_stores(*(fill(tmp_path / n, CURVES, x=v) for n, v in (("a", numbers), ("b", other)))).largest.tolist() == [0]
    other[3, 1] = np.nan
    assert compare_stores(Store(tmp_path / "a"), fill(tmp_path / "c", CURVES, x=other)).largest.tolist() == [np.inf]


def test_logits_are_compared_as_masks(tmp_path):
    logits = np.array([[0.0, 0.7], [20.0, np.inf]] * 2, np.float32)
    other = np.array([[0.0, 0.7], [np.inf, np.inf]] * 2, np.float32)
    a, b = (fill(tmp_path / n, MASKS, map=v) for n, v in (("a", logits), ("b", other)))
    assert compare_stores(a, b).largest.item() == pytest.approx(np.exp(-20), rel=1e-6)
    nudged = logits + np.array([[0.01, 0], [0, 0]] * 2, np.float32)
    table = compare_stores(a, fill(tmp_path / "c", MASKS, map=nudged))
    assert table.largest.item() == pytest.approx(0.01 / 4, rel=1e-3)  # the sigmoid's slope


def test_only_rows_that_both_have_count(tmp_path, values):
    a, b = fill(tmp_path / "a", CURVES, insertion=values), fill(tmp_path / "b", CURVES, insertion=values[:3])
    assert compare_stores(a, b)[["rows", "largest"]].to_numpy().tolist() == [[3, 0]]


def test_the_command_exits_with_1_beyond_its_tolerances(tmp_path, values, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "run").mkdir()
    fill(tmp_path / "run" / "store", CURVES, insertion=values)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    fill(tmp_path / "other", CURVES, insertion=values + 0.002)

    def compare(*arguments):
        return CliRunner().invoke(app, ["compare", str(tmp_path / "run"), *map(str, arguments)])

    same, far = compare(tmp_path / "copy"), compare(tmp_path / "other")
    assert (same.exit_code, far.exit_code) == (0, 1)
    assert "equal within 0.0001 (maps) and 0.001 (scores)" in same.output
    assert "run, ours: curves" in far.output
    assert "scores: 0.002 > 0.001" in far.output
    assert compare(tmp_path / "other", "--scores", "0.01").exit_code == 0
    assert compare(tmp_path / "nowhere").exit_code == 1
    assert json.loads(next((tmp_path / "run" / "store").glob("*/manifest.json")).read_text())["rows"] == 4

import json
import os
import re
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors import safe_open
from safetensors.numpy import load

from salkit.engine.identity import Experiment, digest
from salkit.engine.store import SHARD, RunState, Store, StoreError

TEN = Experiment("table", "toy, Ours: maps", 10, {"a": 1})
KEY = TEN.key


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    made.open(TEN)
    return made


def numbers(start, stop):
    return {"x": np.arange(start, stop, dtype=np.float32) ** 2}


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


ARRAYS = st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_, "<U1", "<U5"]).flatmap(
    lambda dtype: arrays_of.arrays(
        dtype,
        arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
        elements=st.text(st.characters(exclude_characters="\0"), max_size=int(dtype[2:])) if isinstance(dtype, str) else None,
    )
)


@settings(max_examples=50)
@given(ARRAYS)
@example(np.zeros((1, 0)))
@example(np.zeros((1, 0), "<U3"))
@example(np.array([["a", "öä\U0001f600"]]))
@example(np.arange(20.0).reshape(2, 10).T)  # not contiguous
def test_arrays_are_read_as_they_were_written(array):
    experiment = replace(TEN, rows=len(array))
    with TemporaryDirectory() as folder:
        store = Store(folder, durable=False)
        store.open(experiment)
        store.write(experiment.key, 0, len(array), {"x": array, "y": array[::-1]})
        found, there = store.read_partly(experiment.key, 0, len(array))
        assert there.all()
        if len(array):
            assert found["x"].dtype == array.dtype
            np.testing.assert_array_equal(found["x"], array)
            np.testing.assert_array_equal(store.read(experiment.key)["y"], array[::-1])


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((1, 2)), np.zeros(()), np.zeros((3, 2))])
def test_arrays_with_another_number_of_rows_are_refused(store, array):
    with pytest.raises(ValueError, match=r"x: expected 2 rows, got an array of shape"):
        store.write(KEY, 0, 2, {"x": array})
    assert files(store.folder / KEY) == ["manifest.json"]


def test_a_shard_holds_arrays_and_a_header_and_nothing_else(store):
    path = store.write(KEY, 2, 4, numbers(2, 4) | {"name": np.array(["a", "bc"])}, {"device": "cpu", "threads": 1})
    assert SHARD.fullmatch(path.name).groups() == ("00000002", "00000004", digest(path.read_bytes()))
    with safe_open(path, "numpy") as opened:
        assert set(opened.keys()) == {"x", "name"}
        header = json.loads(opened.metadata()["salkit"])
    assert header == store.about(store.shards(KEY)[0])
    assert (header["key"], header["rows"], header["device"]) == (KEY, [2, 4], "cpu")
    with pytest.raises(Exception):  # noqa: B017, PT011 -- safetensors' own; what matters is that nothing is pickled
        store.write(KEY, 0, 1, {"x": np.array([object()])})
    assert len(store.shards(KEY)) == 1


SHARDS = st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)).map(lambda p: (p[0], min(30, sum(p)))), max_size=5)


@settings(max_examples=50)
@given(SHARDS, st.integers(1, 40) | st.none(), st.integers(0, 30), st.integers(0, 30))
def test_shards_against_counting_rows_one_by_one(shards, size, one, other):
    start, stop = sorted((one, other))
    experiment = replace(TEN, rows=30)
    with TemporaryDirectory() as folder:
        store = Store(folder, durable=False)
        store.open(experiment)
        for a, b in shards:
            store.write(experiment.key, a, b, numbers(a, b) | {"count": np.arange(a, b)})
        found = store.missing(experiment, size)
        arrays, there = store.read_partly(experiment.key, start, stop)
        with nullcontext() if there.all() else pytest.raises(StoreError, match=rf"expected rows {start} to {stop}, got {there.sum()}"):
            assert all(len(a) == stop - start for a in store.read(experiment.key, start, stop).values())
    expected = np.array([any(a <= row < b for a, b in shards) for row in range(30)])
    assert [row for a, b in found for row in range(a, b)] == np.flatnonzero(~expected).tolist()
    # As few pieces as the cuts allow: a piece ends where a shard begins, at a multiple of the size, or with the last row.
    for a, b in found:
        assert all(row % (size or 30) for row in range(a + 1, b))
        assert b == 30 or expected[b] or b % (size or 30) == 0
    np.testing.assert_array_equal(there, expected[start:stop])
    assert bool(arrays) == bool(there.any())
    if arrays:
        np.testing.assert_array_equal(arrays["x"], np.where(there, np.arange(start, stop) ** 2, np.nan))
        np.testing.assert_array_equal(arrays["count"], np.where(there, np.arange(start, stop), 0))


def test_a_shard_that_adds_nothing_is_not_loaded(store, monkeypatch):
    for a, b in ((0, 10), (2, 4), (5, 10)):
        store.write(KEY, a, b, numbers(a, b))
    loaded = []
    monkeypatch.setattr("salkit.engine.store.load", lambda data: loaded.append(data) or load(data))
    np.testing.assert_array_equal(store.read(KEY)["x"], numbers(0, 10)["x"])
    assert len(loaded) == 1


def test_a_store_is_read_again_only_where_it_changed(store, monkeypatch):
    path = store.write(KEY, 0, 10, numbers(0, 10))
    read = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or read_bytes(self))
    for _ in range(3):
        assert not store.missing(TEN)
    assert read == [path]
    os.utime(path, (1, 1))
    store.missing(TEN)
    assert read == [path, path]


def test_a_manifest_is_written_once_and_checked(store):
    manifest = store.folder / KEY / "manifest.json"
    before = manifest.stat().st_mtime_ns
    store.open(TEN)
    store.open(replace(TEN, title="for people"))
    assert manifest.stat().st_mtime_ns == before
    assert store.experiment(KEY) == TEN
    with pytest.raises(StoreError, match=r"nothing.manifest.json is not what it should be .*delete .*nothing to compute"):
        store.experiment("nothing")
    other = Experiment("table", "other", 1, {})
    store.open(other)
    manifest.write_bytes((store.folder / other.key / "manifest.json").read_bytes())
    with pytest.raises(StoreError, match=f"expected that of {KEY}, got that of {other.key}"):
        store.open(TEN)


def test_what_is_published_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    happened = []
    fsync, replace_ = os.fsync, os.replace

    def kind(handle):
        return "folder" if Path(f"/proc/self/fd/{handle}").resolve().is_dir() else "file"

    monkeypatch.setattr(os, "fsync", lambda handle: happened.append(f"flush {kind(handle)}") or fsync(handle))
    monkeypatch.setattr(Path, "replace", lambda self, target: happened.append("rename") or replace_(self, target))
    (tmp_path / KEY).mkdir()
    Store(tmp_path).write(KEY, 0, 1, numbers(0, 1))
    assert happened == ["flush file", "rename", "flush folder"]
    happened.clear()
    Store(tmp_path, durable=False).write(KEY, 1, 2, numbers(1, 2))
    assert happened == ["rename"]


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(("where", "error"), [((os, "fsync"), FULL), ((Path, "replace"), FULL), ((Path, "replace"), KeyboardInterrupt())])
def test_a_write_that_fails_or_is_stopped_leaves_nothing_behind(store, monkeypatch, where, error):
    def fail(*arguments):
        raise error

    message = r"cannot write .*No space left on device.*make room, or name another folder"
    with monkeypatch.context() as patched:
        patched.setattr(*where, fail)
        with pytest.raises(StoreError, match=message) if error is FULL else pytest.raises(KeyboardInterrupt):
            store.write(KEY, 0, 1, numbers(0, 1))
        assert files(store.folder / KEY) == ["manifest.json"]
    store.write(KEY, 0, 1, numbers(0, 1))
    assert store.missing(TEN) == [(1, 10)]


def test_rows_are_claimed_by_one_at_a_time(store):
    other = Store(store.folder)
    with store.claim(KEY, 0, 2) as ours:
        assert ours
        with other.claim(KEY, 0, 2) as theirs:
            assert not theirs
        with other.claim(KEY, 2, 4) as theirs:
            assert theirs
        assert files(store.folder / KEY) == ["00000000-00000002.lock", "manifest.json"]
    with other.claim(KEY, 0, 2) as theirs:
        assert theirs
    with pytest.raises(ZeroDivisionError), other.claim(KEY, 0, 2):
        _ = 1 / 0
    assert files(store.folder / KEY) == ["manifest.json"]


@pytest.mark.parametrize("error", [OSError("no locks here"), NotImplementedError("no locks at all")])
def test_without_locks_everybody_computes(store, monkeypatch, error):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr("salkit.engine.store.FileLock.acquire", fail)
    with store.claim(KEY, 0, 2) as ours, store.claim(KEY, 0, 2) as theirs:
        assert [ours, theirs] == [True, True]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda p: p.write_bytes(b""), "truncated or damaged"),
        (lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]), "truncated or damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 128])), "truncated or damaged"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "truncated or damaged"),
        (lambda p: p.rename(p.with_name(p.name.replace("00000004", "00000005"))), r"it holds rows \[0, 4\] of table-"),
        (lambda p: p.rename(p.with_name(f"00000000-00000004.{digest(b'text')}.safetensors")).write_bytes(b"text"), "it holds rows None"),
    ],
)
def test_damaged_shards_are_set_aside_with_a_warning(store, change, fault):
    change(store.write(KEY, 0, 4, numbers(0, 4)))
    with pytest.warns(UserWarning, match=f"is not used: .*{fault}.*set aside as .*damaged, and its rows are computed again"):
        assert store.missing(TEN) == [(0, 10)]
    assert [Path(f).suffix for f in files(store.folder / KEY)] == [".damaged", ".json"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert store.missing(TEN) == [(0, 10)]
    store.write(KEY, 0, 10, numbers(0, 10))
    assert not store.missing(TEN)


def test_files_with_other_names_are_left_alone(store):
    for name in ("notes.txt", "0-1.safetensors", "00000000-00000001.0123.safetensors", "x.part", "y.lock"):
        (store.folder / KEY / name).write_text("mine")
    assert store.missing(TEN) == [(0, 10)]
    assert len(files(store.folder / KEY)) == 6


def test_a_shard_that_vanishes_while_it_is_looked_for_is_missing(store, monkeypatch):
    path = store.write(KEY, 0, 4, numbers(0, 4))
    listed = sorted((store.folder / KEY).glob("*.safetensors"))
    path.unlink()
    monkeypatch.setattr(Path, "glob", lambda self, pattern: listed)
    assert store.missing(TEN) == [(0, 10)]


def test_ages_in_words(monkeypatch):
    hour = 3600
    ages = {0: "0 min", -1e9: "0 min", 29: "0 min", 180: "3 min", 89 * 60: "89 min", 90 * 60: "2 h", 35 * hour: "35 h", 36 * hour: "2 d"}
    for seconds, words in ages.items():
        monkeypatch.setattr(time, "time", lambda seconds=seconds: 1e9 + seconds)
        assert RunState("a", 1, 1, [], 0, changed=1e9).age() == words


@pytest.fixture
def two_runs(store):
    """Run a needs TEN (4 of 10 rows there) and a whole one, run b only the whole one; one more belongs to nobody."""
    whole, orphan = Experiment("table", "toy: curves", 2, {}), Experiment("table", "orphan", 3, {})
    for experiment in (whole, orphan):
        store.open(experiment)
    store.write(KEY, 0, 4, numbers(0, 4))
    store.write(whole.key, 0, 2, numbers(0, 2))
    for i, (name, keys) in enumerate({"b-1": [whole.key], "a-2": [KEY, whole.key]}.items()):
        store.keep_run(name, {"experiments": keys, "more": "ä"})
        os.utime(store.folder / "runs" / f"{name}.json", (i, i))
    return store, whole, orphan


def test_runs_say_what_they_are_made_of_the_latest_last(two_runs):
    store, whole, orphan = two_runs
    assert list(store.runs()) == ["b-1", "a-2"]
    assert store.runs()["a-2"] == {"experiments": [KEY, whole.key], "more": "ä"}
    assert sorted(store.keys()) == sorted([KEY, whole.key, orphan.key])
    os.utime(store.folder / "runs" / "b-1.json", (9, 9))
    assert list(store.runs()) == ["a-2", "b-1"]


def test_an_overview_counts_rows_and_bytes(two_runs):
    store, whole, _ = two_runs
    for p in (store.folder / whole.key).iterdir():
        os.utime(p, (50, 50))
    b, a, rest = store.overview()
    assert (b.name, b.rows, b.done, b.missing, b.changed) == ("b-1", 2, 2, [], 50)
    assert (a.name, a.rows, a.done, a.missing) == ("a-2", 12, 6, ["Ours: maps 6"])
    assert (rest.name, rest.rows, rest.done, rest.missing) == ("", 3, 0, ["orphan 3"])
    assert b.size == sum(p.stat().st_size for p in (store.folder / whole.key).iterdir())
    assert a.size == b.size + sum(p.stat().st_size for p in (store.folder / KEY).iterdir())
    assert a.changed == max(p.stat().st_mtime for p in (store.folder / KEY).iterdir())


def test_an_overview_while_a_run_renames_its_files(two_runs, monkeypatch):
    store, *_ = two_runs
    sizes = [state.size for state in store.overview()]
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: [*iterdir(self), self / "just-renamed.part"])
    assert [state.size for state in store.overview()] == sizes


def test_pruning_removes_what_no_run_needs(two_runs):
    store, whole, orphan = two_runs
    left = ["x.part", f"00000000-00000004.{'0' * 16}.damaged", "00000000-00000002.lock"]
    for name in left:
        (store.folder / KEY / name).touch()
    (store.folder / "runs" / "a.1-2.part").touch()
    before = files(store.folder)
    expected = sorted([store.folder / orphan.key, store.folder / "runs" / "a.1-2.part", *(store.folder / KEY / name for name in left)])
    assert store.prune(dry_run=True) == expected
    assert files(store.folder) == before
    assert store.prune() == expected
    assert not any(p.exists() for p in expected)
    assert sorted(store.keys()) == sorted([KEY, whole.key])
    assert store.missing(TEN) == [(4, 10)]
    assert store.prune() == []


def test_pruning_forgets_runs_by_their_beginning(two_runs):
    store, whole, orphan = two_runs
    with pytest.raises(ValueError, match=r"drop: expected the beginning of one of \['b-1', 'a-2'\], got 'c'"):
        store.prune(drop=["c"])
    assert store.prune(drop=["a"], dry_run=True) == sorted(store.folder / p for p in (KEY, orphan.key, "runs/a-2.json"))
    store.prune(drop=["a"])
    assert (list(store.runs()), store.keys()) == (["b-1"], [whole.key])
    store.prune(drop=["b-1"])
    assert (store.runs(), store.keys(), store.overview()) == ({}, [], [])


@pytest.mark.parametrize("text", ['{"experiments": ["ma', "", "[]", "{}", '{"experiments": "maps"}', "3"])
def test_a_damaged_manifest_of_a_run_is_named_and_nothing_is_pruned(two_runs, text):
    store, *_ = two_runs
    (store.folder / "runs" / "a-2.json").write_text(text)
    before = files(store.folder)
    for act in (store.runs, store.overview, store.prune):
        with pytest.raises(StoreError, match=r"a-2.json: expected a run's manifest.*delete it, and run the same command again"):
            act()
    assert files(store.folder) == before


def test_the_run_at_hand_is_told_for_displays_even_when_its_manifest_is_damaged(two_runs):
    store, *_ = two_runs
    assert re.fullmatch(r"|[ab] \d+/\d+", store.unfinished())
    for text in ("{", "3", "{}"):
        (store.folder / "runs" / "c-3.json").write_text(text)
        assert store.unfinished() == ""
    assert Store(store.folder / "nothing").unfinished() == ""

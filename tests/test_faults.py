"""Runs that survive: what kills, full disks, damaged files, clocks and other runs do to real runs in processes of their own.

A short form of everything runs with the other tests, the long one (marked `faults`) by `make test-faults`, which prints the figures.
"""

import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import xarray as xr
from filelock import FileLock
from tqdm import tqdm

from salkit.__main__ import app
from salkit.data import load_images
from salkit.engine.identity import Experiment, digest
from salkit.engine.store import SHARD, Store
from salkit.evaluation.evaluate import evaluate
from salkit.evaluation.results import open_results
from salkit.methods import get_method
from salkit.models import load_classifier

# One process imports everything once; every run is a fork of it, so that kills fall on work and not on imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["salkit.__main__", "pytest", "pytorchcv.models.resnet_cifar", "dask.array"])
COMMAND = "evaluate learned_mask --n 2 --points 4 --device cpu --labels 0,3,5,7 --set scale=1".split()
COMMAND += "--set n_steps=2 --set n_distractors=2 --set internal_batch_size=4".split()
LIMIT = 120
figures: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _table():
    yield
    print("", *figures, sep="\n")


def long(*values):
    return pytest.param(*values, marks=pytest.mark.faults)


def methods_run(store: Path, n: int, n_steps: int) -> None:
    """All three phases: maps of a method that learns, curves of three methods, crops."""
    images = load_images("cifar10-samples", n=6)
    ours = get_method("learned_mask", n_steps=n_steps, n_distractors=2, internal_batch_size=8)
    methods = {"ours": ours, "gradient": get_method("gradient_x_input"), "random": get_method("random")}
    settings = {"distractors": images, "held_out": images.images[4:], "n_steps": 7, "images_per_batch": 1, "show_progress": False}
    evaluate(load_classifier("cifar10-resnet20", labels=(0, 3, 5)), images.sample(n), methods, store=store, **settings)


def command(store: Path, *more: str) -> None:
    app([*COMMAND, "--store", str(store), *more])


def _in_a_process(log, line, waits, prepare, function, *arguments) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ |= {"TQDM_DISABLE": "1", "COLUMNS": "1000"}
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process would leave behind
    warnings.simplefilter("always")
    write = Store.write

    def logged(self, *given):
        path = write(self, *given)
        os.write(1, f"\nkept {path.parent.name}/{path.name}\n".encode())
        return path

    claim = Store.claim

    def claimed(self, *given):
        os.write(1, b"\nat a shard\n")
        return claim(self, *given)

    Store.write, Store.claim = logged, claimed
    for act in prepare:
        act[0](*act[1:])
    line.send("started")
    if waits:
        line.recv()
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()
        os._exit(70)


def start(store, function=command, *arguments, prepare=(), log=None, waiting=None):
    """A run in a process of its own that has begun; what it says goes to a file beside the store.

    Where there is a list `waiting`, it waits for a word over the connection that is put there.
    """
    ours, theirs = FORKS.Pipe()
    given = (log or log_of(store), theirs, waiting is not None, prepare, function, store, *arguments)
    process = FORKS.Process(target=_in_a_process, args=given, daemon=True)
    process.start()
    assert ours.poll(LIMIT)
    assert ours.recv() == "started"
    if waiting is not None:
        waiting.append(ours)
    return process


def finish(process):
    process.join(LIMIT)
    code = process.exitcode
    process.kill()
    process.join()
    process.close()
    return code


def run(store, function=command, *arguments, prepare=()):
    """Exit code and what a run said."""
    log_of(store).unlink(missing_ok=True)
    code = finish(start(store, function, *arguments, prepare=prepare))
    return code, log_of(store).read_text()


def log_of(store):
    return store.with_name(f"{store.name}.log")


def shards(store):
    """Path -> what tells whether a shard was written again."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in store.glob("*/*.safetensors")}


def left_over(store):
    return [p.name for p in store.rglob("*") if p.suffix in (".part", ".lock")]


def contents(folder):
    store = Store(folder)
    return {key: {n: (a.dtype, a.shape, a.tobytes()) for n, a in store.read(key).items()} for key in store.keys()}


def assert_as(store, whole):
    """The arrays of a run are those of the undisturbed one, to the last bit."""
    assert contents(store) == contents(whole)
    xr.testing.assert_identical(open_results(store, ""), open_results(whole, ""))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of the command."""
    store = tmp_path_factory.mktemp("whole") / "store"
    code, said = run(store)
    assert code == 0, said
    assert not left_over(store)
    return store


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def half_done(whole, store):
    """A store with every second shard of another."""
    shutil.copytree(whole, store)
    for path in sorted(shards(store))[::2]:
        path.unlink()


def faulty_file(path):
    """What is wrong with a file that has its final name, or None."""
    try:
        data = path.read_bytes()
        if path.suffix == ".json":
            found = json.loads(data)
            return None if path.parent.name == "runs" or Experiment.from_manifest(found).key == path.parent.name else f"{path}: of another"
        match = SHARD.fullmatch(path.name)
        return None if match and digest(data) == match[3] else f"{path}: {len(data)} bytes do not fit the checksum"
    except FileNotFoundError:
        return None
    except ValueError as error:
        return f"{path}: {error}"


@contextmanager
def watched(folder):
    """Read again and again, while the block runs, every file below that has a final name; what does not fit fails the test."""
    found, stop = {"checked": 0, "faults": []}, threading.Event()

    def watch():
        while not stop.wait(0.02):
            for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.json")]:
                found["checked"] += 1
                if fault := faulty_file(path):
                    found["faults"].append(fault)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
    assert found["checked"]
    assert not found["faults"]


def resume(store, function, *arguments, after=None, prepare=()):
    """Start a run and kill it after so many seconds (None waits); nothing that was finished may vanish or be computed again."""
    before = shards(store)
    process = start(store, function, *arguments, prepare=prepare)
    process.join(LIMIT if after is None else after)
    process.kill()
    process.join()
    code = process.exitcode
    process.close()
    assert before.items() <= shards(store).items()
    return code


def computed(store):
    """The shards that runs said they kept, each only once."""
    kept = re.findall(r"^kept (\S+)\.\w+\.safetensors$", log_of(store).read_text(), re.MULTILINE)
    assert len(set(kept)) == len(kept)
    return kept


@pytest.mark.parametrize(("kills", "size", "window"), [(3, (1, 2), 0.4), long(50, (4, 10), 1.5)])
def test_killed_runs_go_on_where_they_were(tmp_path, kills, size, window):
    chance = random.Random(0)
    code, said = run(tmp_path / "whole", methods_run, *size)
    assert code == 0, said
    assert "kept" not in run(tmp_path / "whole", methods_run, *size)[1]
    count = Counter()
    with watched(tmp_path) as watcher:
        while count["kills"] < kills:
            store, code = tmp_path / f"run{count['runs']}", None
            while code != 0:
                code = resume(store, methods_run, *size, after=chance.uniform(0, window) if count["kills"] < kills else None)
                assert code in (0, -signal.SIGKILL), log_of(store).read_text()
                count["kills"] += code != 0
                count["in a shard"] += code != 0 and log_of(store).read_text().split("\n")[-2:] == ["at a shard", ""]
            assert_as(store, tmp_path / "whole")
            count["runs"] += 1
            count["shards"] += len(computed(store))
            Store(store).prune()
            assert not left_over(store)
            assert_as(store, tmp_path / "whole")
    figures.append(
        f"kills {count['kills']} ({count['in a shard']} within a shard) in {count['runs']} runs, shards computed {count['shards']}, "
        f"none twice, files checked by the watcher {watcher['checked']}, differences 0"
    )


def kill_at(folder, number) -> None:
    """Kill this process just before it opens, renames or removes a file of the store for that time."""
    count = itertools.count(1)

    def hook(event, given):
        changes = event in ("os.rename", "os.remove", "os.mkdir") or (event == "open" and given[2] & os.O_CREAT)
        if changes and str(given[0]).startswith(str(folder)) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.parametrize("moments", [(9, 16), long(range(1, 1000))])
def test_killed_before_any_change_of_a_file(whole, store, moments):
    tried = 0
    for moment in moments:
        shutil.rmtree(store, ignore_errors=True)
        log_of(store).unlink(missing_ok=True)
        code = resume(store, command, prepare=[(kill_at, store, moment)])
        if code == 0:  # there are no more changes than that
            break
        tried += 1
        assert code == -signal.SIGKILL, log_of(store).read_text()
        began = time.monotonic()
        assert resume(store, command) == 0, log_of(store).read_text()
        assert time.monotonic() - began < LIMIT / 2
        computed(store)
        assert_as(store, whole)
        Store(store).prune()
        assert not left_over(store)
    assert tried == len(moments) or tried > 12
    figures.append(f"killed before every change of a file: {tried} places")


def limit_files(size, action) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, action)


def largest(store):
    return max(p.stat().st_size for p in shards(store))


def test_killed_in_the_middle_of_a_file(whole, store):
    # The kernel itself kills a process at the byte that is too much.
    assert resume(store, command, prepare=[(limit_files, largest(whole) - 1, signal.SIG_DFL)]) == -signal.SIGXFSZ
    assert any(name.endswith(".part") for name in left_over(store))
    assert resume(store, command) == 0
    assert_as(store, whole)
    Store(store).prune()
    assert not left_over(store)


def assert_refused(code, said, *parts):
    """Exit code 1 and one line that says what is wrong."""
    assert code == 1, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert re.search(part, line), line


def assert_recovers(store, whole):
    before = shards(store)
    code, said = run(store)
    assert code == 0, said
    assert before.items() <= shards(store).items()
    assert_as(store, whole)
    return said


def test_files_that_may_not_grow(whole, store):
    code, said = run(store, prepare=[(limit_files, largest(whole) - 1, signal.SIG_IGN)])
    assert_refused(code, said, r"cannot write .*safetensors \(File too large\)", "make room, or name another folder")
    assert not left_over(store)
    assert_recovers(store, whole)


@contextmanager
def small_disk(folder, pages):
    """A file system in memory with so many pages."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "salkit-test", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    try:
        yield lambda how: subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("sizes", [(5,), long(range(1, 100))])
def test_a_full_disk(whole, tmp_path, sizes):
    tried = 0
    for pages in sizes:
        with small_disk(tmp_path / f"disk{pages}", pages) as remount:
            store = tmp_path / f"disk{pages}" / "store"
            code, said = run_beside(tmp_path, store)
            if code == 0:
                break
            tried += 1
            assert_refused(code, said, r"cannot write .* \(No space left on device\)", "make room, or name another folder")
            assert not [name for name in left_over(store) if name.endswith(".part")]
            remount("size=10m")
            before = shards(store)
            code, said = run_beside(tmp_path, store)
            assert code == 0, said
            assert before.items() <= shards(store).items()
            assert not left_over(store)
            assert_as(store, whole)
    assert tried >= min(len(sizes), 5)
    figures.append(f"disks that were too small: {tried}")


def run_beside(folder, store):
    """A run whose words go elsewhere than to the disk that is full."""
    log = folder / "said.log"
    log.unlink(missing_ok=True)
    return finish(start(store, log=log)), log.read_text()


def test_a_disk_that_turns_read_only(whole, tmp_path):
    with small_disk(tmp_path / "disk", 1000) as remount:
        store = tmp_path / "disk" / "store"
        half_done(whole, store)
        remount("ro")
        code, said = run_beside(tmp_path, store)
        assert_refused(code, said, r"cannot write .* \(Read-only file system\)")
        assert open_results(store, "").attrs["missing"]
        remount("rw")
        code, said = run_beside(tmp_path, store)
        assert code == 0, said
        assert_as(store, whole)


def test_a_store_below_a_file(whole, tmp_path):
    (tmp_path / "file").touch()
    code, said = run_beside(tmp_path, tmp_path / "file" / "store")
    assert_refused(code, said, r"cannot write .*file/store/.* \(Not a directory\)", "name another folder")
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    assert_recovers(tmp_path / "file" / "store", whole)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    path.write_bytes(data)


def overwrite(path, other):
    path.write_bytes(other.read_bytes())


def other_rows(path):
    """Under the name of other rows."""
    wrong = path.with_name(f"{int(path.name[:8]) + 1:08d}{path.name[8:]}")
    path.rename(wrong)
    return wrong


def damages(store, chance):
    """Name -> a damage to a shard; it returns the path of the damaged file, and what the warning says of it."""
    torn, wrong = "its bytes have the checksum", "it holds rows"
    own = sorted(shards(store))
    foreign = next(p for p in own if p.parent != own[-1].parent)

    def put(path):
        """A sound shard of another experiment."""
        path.unlink()
        return Path(shutil.copy(foreign, path.parent / foreign.name))

    return {
        "truncated": lambda p: (os.truncate(p, chance.randrange(p.stat().st_size)) or p, torn),
        "empty": lambda p: (os.truncate(p, 0) or p, torn),
        "longer": lambda p: (p.write_bytes(p.read_bytes() + b"\0") and p, torn),
        "a byte of the header": lambda p: (flip(p, chance.randrange(64)) or p, torn),
        "a byte of the arrays": lambda p: (flip(p, -1 - chance.randrange(32)) or p, torn),
        "any byte": lambda p: (flip(p, chance.randrange(p.stat().st_size)) or p, torn),
        "another's bytes": lambda p: (overwrite(p, foreign) or p, torn),
        "another's shard": lambda p: (put(p), wrong),
        "other rows": lambda p: (other_rows(p), wrong),
    }


@pytest.mark.parametrize("rounds", [1, long(5)])
def test_damaged_shards_are_named_and_computed_again(whole, tmp_path, rounds):
    chance = random.Random(1)
    for each, name in itertools.product(range(rounds), damages(whole, chance)):
        if rounds == 1 and name not in ("truncated", "any byte", "another's shard", "other rows"):
            continue
        store = tmp_path / f"{each} {name}"
        shutil.copytree(whole, store)
        own = sorted(shards(store))
        path = own[-1] if name.startswith("another") else chance.choice(own)
        damaged, fault = damages(store, chance)[name](path)
        sound = {p: v for p, v in shards(store).items() if p != damaged}
        code, said = run(store)
        assert code == 0, said
        assert f"{damaged} is not used: {fault}" in said
        assert damaged.with_suffix(".damaged").exists()
        assert len(computed(store)) == 1
        assert sound.items() <= shards(store).items()
        assert_as(store, whole)
        assert damaged.with_suffix(".damaged") in Store(store).prune()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path):
    path.write_text(re.sub(r'"seed": 0', '"seed": 1', path.read_text()))


@pytest.mark.parametrize("kind", ["maps", long("curves"), long("probabilities")])
@pytest.mark.parametrize("damage", [cut, long(change)])
def test_damaged_manifests_are_refused_until_they_are_deleted(whole, store, kind, damage):
    shutil.copytree(whole, store)
    (manifest,) = store.glob(f"{kind}-*/manifest.json")
    text = manifest.read_text()
    damage(manifest)
    if manifest.read_text() == text:
        pytest.skip(f"{kind} do not depend on the seed")
    before = shards(store)
    code, said = run(store)
    assert_refused(code, said, f"{re.escape(str(manifest))} is not what it should be", f"delete {re.escape(str(manifest.parent))} to")
    assert shards(store) == before
    shutil.rmtree(manifest.parent)
    assert_recovers(store, whole)


def test_a_damaged_manifest_of_a_run_is_named_and_written_again(whole, store):
    shutil.copytree(whole, store)
    (manifest,) = store.glob("runs/*.json")
    cut(manifest)
    code, said = run_beside(store.parent, store)
    assert code == 0, said
    cut(manifest)
    log_of(store).unlink(missing_ok=True)
    code = finish(start(store, runs_command))
    assert_refused(code, log_of(store).read_text(), f"{re.escape(str(manifest))}: expected a run")
    assert_recovers(store, whole)


def runs_command(store: Path) -> None:
    app(["runs", "--store", str(store)])


def jump(seconds) -> None:
    """A clock that jumps at every look."""
    now, count = time.time, itertools.count()
    time.time = lambda: now() + seconds * next(count)


YEAR = 365 * 86400.0


@pytest.mark.parametrize("years", [-20, long(20), long(-50), long(50)])
def test_clocks_that_jump(whole, store, years):
    half_done(whole, store)
    for i, path in enumerate(sorted(p for p in store.rglob("*") if p.is_file())):
        moment = time.time() + years * YEAR * (-1) ** i
        os.utime(path, (moment, moment))
    missing = len(shards(whole)) - len(shards(store))
    before = shards(store)
    code, said = run(store, prepare=[(jump, years * 86400.0)])
    assert code == 0, said
    assert len(computed(store)) == missing
    assert before.items() <= shards(store).items()
    assert_as(store, whole)
    assert all(re.fullmatch(r"\d+ (min|h|d)", state.age()) for state in Store(store).overview())


@pytest.mark.parametrize(("rounds", "runs"), [(1, 2), long(5, 2), long(2, 4)])
def test_runs_that_race_share_the_work(whole, tmp_path, rounds, runs):
    for each in range(rounds):
        store = tmp_path / f"store{each}"
        waiting = []
        with watched(tmp_path):
            racing = [start(store, waiting=waiting) for _ in range(runs)]
            for line in waiting:
                line.send("go")
            codes = [finish(process) for process in racing]
        assert codes == [0] * runs, log_of(store).read_text()
        assert len(computed(store)) == len(shards(whole))
        assert not left_over(store)
        assert_as(store, whole)
    figures.append(f"{rounds} races of {runs} runs, no shard computed twice")


def test_a_run_waits_for_what_another_is_at_and_takes_over_when_it_dies(whole, store):
    shutil.copytree(whole, store)
    path = max(shards(store))
    path.unlink()
    lock = FileLock(path.with_name(f"{path.name[:17]}.lock"))
    with lock:
        process = start(store)
        process.join(0.8)
        assert process.is_alive()
        assert path not in shards(store)
    assert finish(process) == 0
    assert_as(store, whole)
    assert not left_over(store)

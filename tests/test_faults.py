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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
logs: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _table(tmp_path_factory):
    logs.append(tmp_path_factory.mktemp("logs"))
    yield
    print("", *figures, sep="\n")


def long(*values):
    return pytest.param(*values, marks=pytest.mark.faults)


def methods_run(store: Path, n: int, n_steps: int) -> None:
    """Maps of a method that learns, curves and crops of three methods."""
    images = load_images("cifar10-samples", n=6)
    ours = get_method("learned_mask", n_steps=n_steps, n_distractors=2, internal_batch_size=8)
    methods = {"ours": ours, "gradient": get_method("gradient_x_input"), "random": get_method("random")}
    settings = {"distractors": images, "saliency_metric": True, "n_steps": 7, "images_per_batch": 1, "show_progress": False}
    evaluate(load_classifier("cifar10-resnet20", labels=(0, 3, 5)), images.sample(n), methods, store=store, **settings)


def command(store: Path) -> None:
    app([*COMMAND, "--store", str(store)])


def runs_command(store: Path) -> None:
    app(["runs", "--store", str(store)])


def _in_a_process(log, line, prepare, function, *arguments) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ |= {"TQDM_DISABLE": "1", "COLUMNS": "1000"}
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process would leave behind
    warnings.simplefilter("always")
    write, claim = Store.write, Store.claim

    def logged(self, *given):
        path = write(self, *given)
        os.write(1, f"\nkept {path.parent.name}/{path.name}\n".encode())
        return path

    def claimed(self, *given):
        os.write(1, b"\nat a shard\n")
        return claim(self, *given)

    Store.write, Store.claim = logged, claimed
    for act, *given in prepare:
        act(*given)
    line.send("ready")
    line.recv()
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()
        os._exit(70)


def ready(store, function=command, *arguments, prepare=()):
    """A run in a process of its own that begins when something is sent over the connection."""
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=_in_a_process, args=(log_of(store), theirs, prepare, function, store, *arguments), daemon=True)
    process.start()
    assert ours.poll(LIMIT)
    assert ours.recv() == "ready"
    return process, ours


def finish(process, after=LIMIT):
    """The exit code of a run, which is killed after so many seconds."""
    process.join(after)
    process.kill()
    process.join()
    code = process.exitcode
    process.close()
    return code


def run(store, *what, after=LIMIT, prepare=()):
    """Exit code and what a run said. What was finished before may not vanish or be written again, unless it was damaged."""
    before, began = shards(store), log_of(store).stat().st_size if log_of(store).exists() else 0
    process, line = ready(store, *what, prepare=prepare)
    line.send("go")
    code = finish(process, after)
    aside = {path.with_suffix(".safetensors") for path in store.glob("*/*.damaged")}
    assert dict(shards(store).items() & before.items()).keys() | aside >= before.keys()
    return code, log_of(store).read_text()[began:]


def log_of(store):
    """What all runs over a store said; on another disk than the store."""
    return logs[0] / f"{digest(str(store))}.log"


def shards(store):
    """Path -> what tells whether a shard was written again."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in store.glob("*/*.safetensors")}


def left_over(store):
    return [p.name for p in store.rglob("*") if p.suffix in (".part", ".lock")]


def contents(folder):
    store = Store(folder)
    return {key: {n: (a.dtype, a.shape, a.tobytes()) for n, a in store.read(key).items()} for key in store.keys()}


def assert_as(store, whole):
    """The arrays of a run are those of the undisturbed one, to the last bit; pruning leaves them as they are and nothing else."""
    for _ in range(2):
        assert contents(store) == contents(whole)
        xr.testing.assert_identical(open_results(store, ""), open_results(whole, ""))
        Store(store).prune()
    assert not left_over(store)


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


@pytest.fixture
def copied(whole, store):
    return shutil.copytree(whole, store)


def fits(path):
    """Whether a file that has its final name is complete."""
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            return SHARD.fullmatch(path.name)[3] == digest(data)
        found = json.loads(data)
        return path.parent.name == "runs" or Experiment.from_manifest(found).key == path.parent.name
    return True


@contextmanager
def watched(folder):
    """Read again and again, while the block runs, every file below that has a final name; one that is not complete fails the test."""
    count, stop = Counter(), threading.Event()

    def watch():
        while not stop.wait(0.02):
            for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.json")]:
                count["checked"] += 1
                assert fits(path), path

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            yield count
        finally:
            stop.set()
        watcher.result()
    assert count["checked"]


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
    with watched(tmp_path) as count:
        while count["kills"] < kills:
            store, code = tmp_path / f"run{count['runs']}", None
            while code != 0:
                code, said = run(store, methods_run, *size, after=chance.uniform(0, window) if count["kills"] < kills else LIMIT)
                assert code in (0, -signal.SIGKILL), said
                count["kills"] += code != 0
                count["in a shard"] += code != 0 and said.endswith("\nat a shard\n")
            count["runs"] += 1
            count["shards"] += len(computed(store))
            assert_as(store, tmp_path / "whole")
    figures.append(
        f"kills {count['kills']} ({count['in a shard']} within a shard) in {count['runs']} runs, shards computed {count['shards']}, "
        f"none twice, files checked by the watcher {count['checked']}, differences 0"
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
def test_killed_before_any_change_of_a_file(whole, tmp_path, moments):
    tried = 0
    for moment in moments:
        store = tmp_path / f"store{moment}"
        code, said = run(store, prepare=[(kill_at, store, moment)])
        if code == 0:  # there are no more changes than that
            break
        tried += 1
        assert code == -signal.SIGKILL, said
        assert_recovers(store, whole, LIMIT / 2)
        computed(store)
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
    assert run(store, prepare=[(limit_files, largest(whole) - 1, signal.SIG_DFL)])[0] == -signal.SIGXFSZ
    assert {Path(name).suffix for name in left_over(store)} == {".part", ".lock"}
    assert_recovers(store, whole)


def assert_refused(ended, *parts):
    """Exit code 1 and one line that says what is wrong."""
    code, said = ended
    assert code == 1, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert re.search(part, line), line


def assert_recovers(store, whole, after=LIMIT):
    code, said = run(store, after=after)
    assert code == 0, said
    assert_as(store, whole)


def test_files_that_may_not_grow(whole, store):
    ended = run(store, prepare=[(limit_files, largest(whole) - 1, signal.SIG_IGN)])
    assert_refused(ended, r"cannot write .*safetensors \(File too large\)", "make room, or name another folder")
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
            ended = run(store)
            if ended[0] == 0:
                break
            tried += 1
            assert_refused(ended, r"cannot write .* \(No space left on device\)", "make room, or name another folder")
            assert not [name for name in left_over(store) if name.endswith(".part")]
            remount("size=10m")
            assert_recovers(store, whole)
    assert tried >= min(len(sizes), 5)
    figures.append(f"disks that were too small: {tried}")


def every_second(store):
    """Remove every second shard."""
    for path in sorted(shards(store))[::2]:
        path.unlink()


def test_a_disk_that_turns_read_only(whole, tmp_path):
    with small_disk(tmp_path / "disk", 1000) as remount:
        store = shutil.copytree(whole, tmp_path / "disk" / "store")
        every_second(store)
        remount("ro")
        assert_refused(run(store), r"cannot write .* \(Read-only file system\)")
        assert open_results(store, "").attrs["missing"]
        remount("rw")
        assert_recovers(store, whole)


def test_a_store_below_a_file(whole, tmp_path):
    (tmp_path / "file").touch()
    ended = run(tmp_path / "file" / "store")
    assert_refused(ended, r"cannot write .*file/store/.* \(Not a directory\)", "name another folder")
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    assert_recovers(tmp_path / "file" / "store", whole)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << place % 8
    path.write_bytes(data)


# Path of a sound shard, one of another experiment, a random number from 0 to 1 -> path of what is damaged then; None for the same.
DAMAGES = {
    "truncated": lambda path, other, chance: os.truncate(path, int(chance * path.stat().st_size)),
    "any byte": lambda path, other, chance: flip(path, int(chance * path.stat().st_size)),
    "another's bytes": lambda path, other, chance: shutil.copyfile(other, path) and None,
    "another's shard": lambda path, other, chance: path.unlink() or Path(shutil.copy(other, path.parent)),
    "other rows": lambda path, other, chance: path.rename(path.with_name(f"{int(path.name[:8]) + 1:08d}{path.name[8:]}")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", [1, long(2), long(3), long(4), long(5)])
def test_damaged_shards_are_named_and_computed_again(whole, copied, damage, seed):
    chance, own = random.Random(seed), sorted(shards(copied))
    path = own[-1] if damage.startswith("another") else chance.choice(own)
    damaged = DAMAGES[damage](path, own[0], chance.random()) or path
    code, said = run(copied)
    assert code == 0, said
    fault = "its bytes have the checksum" if damaged == path else "it holds rows"
    assert f"{damaged} is not used: {fault}" in said
    assert len(computed(copied)) == 1
    assert damaged.with_suffix(".damaged") in Store(copied).prune(dry_run=True)
    assert_as(copied, whole)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path):
    path.write_text(re.sub(r'"seed": 0', '"seed": 1', path.read_text()))


MANIFESTS = [(cut, "maps"), long(cut, "curves"), long(cut, "probabilities"), long(change, "maps"), long(change, "curves")]


@pytest.mark.parametrize(("damage", "kind"), MANIFESTS)
def test_damaged_manifests_are_refused_until_they_are_deleted(whole, copied, damage, kind):
    (manifest,) = copied.glob(f"{kind}-*/manifest.json")
    damage(manifest)
    before = shards(copied)
    text = rf"{re.escape(str(manifest))} is not what it should be.*delete {re.escape(str(manifest.parent))} to"
    assert_refused(run(copied), text)
    assert shards(copied) == before
    shutil.rmtree(manifest.parent)
    assert_recovers(copied, whole)


def test_a_damaged_manifest_of_a_run_is_named_and_written_again(whole, copied):
    (manifest,) = copied.glob("runs/*.json")
    cut(manifest)
    assert_refused(run(copied, runs_command), f"{re.escape(str(manifest))}: expected a run")
    assert_recovers(copied, whole)


def jump(seconds) -> None:
    """A clock that jumps at every look."""
    now, count = time.time, itertools.count()
    time.time = lambda: now() + seconds * next(count)


YEAR = 365 * 86400.0


@pytest.mark.parametrize("years", [-20, long(20), long(-50), long(50)])
def test_clocks_that_jump(whole, copied, years):
    every_second(copied)
    for i, path in enumerate(sorted(p for p in copied.rglob("*") if p.is_file())):
        moment = time.time() + years * YEAR * (-1) ** i
        os.utime(path, (moment, moment))
    missing = len(shards(whole)) - len(shards(copied))
    code, said = run(copied, prepare=[(jump, years * 86400.0)])
    assert code == 0, said
    assert len(computed(copied)) == missing
    assert_as(copied, whole)
    assert all(re.fullmatch(r"\d+ (min|h|d)", state.age()) for state in Store(copied).overview())


@pytest.mark.parametrize(("rounds", "runs"), [(1, 2), long(5, 2), long(2, 4)])
def test_runs_that_race_share_the_work(whole, tmp_path, rounds, runs):
    for each in range(rounds):
        store = tmp_path / f"store{each}"
        with watched(tmp_path):
            racing = [ready(store) for _ in range(runs)]
            for _, line in racing:
                line.send("go")
            assert [finish(process) for process, _ in racing] == [0] * runs, log_of(store).read_text()
        assert len(computed(store)) == len(shards(whole))
        assert not left_over(store)
        assert_as(store, whole)
    figures.append(f"{rounds} races of {runs} runs, no shard computed twice")


def test_a_run_waits_for_what_another_is_at_and_takes_over_when_it_dies(whole, copied):
    path = max(shards(copied))
    path.unlink()
    with FileLock(path.with_name(f"{path.name[:17]}.lock")):
        process, line = ready(copied)
        line.send("go")
        process.join(0.8)
        assert process.is_alive()
        assert path not in shards(copied)
    assert finish(process) == 0
    assert not left_over(copied)
    assert_as(copied, whole)

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from salkit.data import load_images
from salkit.engine import cluster, dask_shards
from salkit.engine.compare import MAPS, SCORES, compare_stores
from salkit.engine.dask_shards import _Shard
from salkit.engine.executors import ShardError, WorkerError, check_executor
from salkit.engine.store import Store
from salkit.evaluation.evaluate import evaluate
from salkit.methods import get_method
from salkit.models import load_classifier

IMAGES = load_images("cifar10-samples").sample(3)
OURS = {"ours": get_method("learned_mask", n_steps=4, n_distractors=2), "gradient": get_method("gradient_x_input")}
COMMAND = [sys.executable, "-m", "salkit"]
LONG = ["evaluate", "learned_mask", "--n", "4", "--points", "4", "--set", "n_steps=60", "--device", "cpu"]


class Picky:
    """Zeros, but for one label of one image that it raises for, or kills its worker; kept a pair a shard's row, like expensive maps."""

    def __init__(self, label=3, kill=False, nap=0.0):
        self.label, self.kill, self.nap = label, kill, nap

    def attribute(self, classifier, inputs, target, *, distractors=None, seed=0, ids=None):
        time.sleep(self.nap)
        if any(name == IMAGES.ids[1] and label == self.label for name, label in zip(ids, target.tolist(), strict=True)):
            if self.kill:
                os._exit(1)
            raise ArithmeticError("cannot explain this")
        return torch.zeros(len(inputs), *inputs.shape[-2:])


@pytest.fixture(scope="module")
def workers():
    """Two workers with a thread each, which think that they have a GPU each, and take passes of different sizes."""
    plain = cluster.environment

    def environment(i, n):
        return plain(i, n) | {"SALKIT_BATCH_SIZE": str(4 + 12 * i)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(cluster, "environment", environment)
        with cluster.local_cluster() as found:
            patch.undo()
            yield found


def score(methods, store, executor="serial", **settings):
    settings = {"n_steps": 4, "show_progress": False, "name": "run"} | settings
    return evaluate(load_classifier("cifar10-resnet20"), IMAGES, methods, store=store, executor=executor, device="cpu", **settings)


def test_two_workers_of_different_batch_sizes_give_the_serial_results(workers, tmp_path):
    torch.set_num_threads(2)
    try:
        serial = score(OURS, tmp_path / "serial")
    finally:
        torch.set_num_threads(1)
    distributed = score(OURS, tmp_path / "dask", workers.address)
    table = compare_stores(Store(tmp_path / "serial"), Store(tmp_path / "dask"))
    assert {"map", "prob", "insertion"} <= set(table.score)
    assert table[table.score == "map"].largest.max() <= MAPS
    assert table[table.score != "map"].largest.max() <= SCORES
    np.testing.assert_allclose(serial.soundness, distributed.soundness, atol=SCORES)
    assert not list((tmp_path / "dask").glob("parcel-*"))
    about = [Store(tmp_path / "dask").about(s) for key in Store(tmp_path / "dask").keys() for s in Store(tmp_path / "dask").shards(key)]
    assert {a["threads"] for a in about} == {1}


def test_the_same_seed_gives_the_same_bits_and_other_batch_sizes_stay_within_the_tolerances(tmp_path, monkeypatch):
    method = {"ours": get_method("learned_mask", n_steps=4, n_distractors=2)}
    for name in ("first", "second"):
        score(method, tmp_path / name)
    assert (compare_stores(Store(tmp_path / "first"), Store(tmp_path / "second")).largest == 0).all()
    monkeypatch.setenv("SALKIT_BATCH_SIZE", "8")
    score(method, tmp_path / "third")
    table = compare_stores(Store(tmp_path / "first"), Store(tmp_path / "third"))
    assert table[table.score == "map"].largest.max() <= MAPS
    assert table[table.score != "map"].largest.max() <= SCORES


def test_each_worker_has_a_gpu_of_its_own_and_its_share_of_the_cores(workers):
    from distributed import Client

    with Client(workers.address) as client:
        seen = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["SALKIT_BATCH_SIZE"], torch.get_num_threads()))
    threads = max(1, os.cpu_count() // 2)
    assert sorted(seen.values()) == [("0", "4", threads), ("1", "16", threads)]


def test_gpus_that_the_environment_names_are_shared_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [cluster.environment(i, 3)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["5", "7", "5"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" not in cluster.environment(0, 1)


def test_the_dashboard_answers(workers):
    assert workers.dashboard in str(workers)
    with urllib.request.urlopen(workers.dashboard, timeout=10) as page:
        assert page.status == 200


@pytest.mark.parametrize("executor", ["serial", "workers"])
def test_a_pair_that_raises_is_named_and_the_rest_is_kept(request, tmp_path, executor):
    address = executor if executor == "serial" else request.getfixturevalue("workers").address
    with pytest.raises(ShardError, match=r"2 rows could not be computed") as error:
        score({"picky": Picky()}, tmp_path, address, keep_heatmaps=True)
    assert f"run, picky: maps, image {IMAGES.ids[1]}, label 3: ArithmeticError: cannot explain this" in str(error.value)
    assert f"run, picky: curves, image {IMAGES.ids[1]}: MissingRows: " in str(error.value)  # they need all maps of the image
    (state,) = Store(tmp_path).overview()
    assert sorted(state.missing) == ["picky: curves 1", "picky: maps 1"]


def test_workers_with_other_versions_are_refused(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_shards, "versions", lambda: {"torch": "1.0", "salkit": "0"})
    with pytest.raises(WorkerError, match=r"the Dask worker tcp://.* has torch .* instead of 1\.0, salkit .*: results of other"):
        score({"picky": Picky()}, tmp_path, workers.address)


def test_workers_that_do_not_see_the_store_are_refused(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_shards.Path, "resolve", lambda self: self)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkerError, match="does not see the store store: it has to be there under the same path"):
        score({"picky": Picky()}, "store", workers.address)


def test_a_method_whose_files_differ_on_the_worker_is_refused(workers, tmp_path, monkeypatch):
    plain = dask_shards._parcel

    def parcel(store, parts, sources):
        for part in parts:
            if "method" in part.experiment.what:
                part.experiment.what["method"]["label"] = 8
        return plain(store, parts, sources)

    monkeypatch.setattr(dask_shards, "_parcel", parcel)
    with pytest.raises(WorkerError, match="has another method for run, picky: curves: its code, or a file it reads, differs"):
        score({"picky": Picky()}, tmp_path, workers.address)


def test_without_a_store_errors_do_not_speak_of_one(workers):
    with pytest.raises(ShardError) as error:
        score({"picky": Picky()}, None, workers.address)
    assert "1 rows" in str(error.value)
    assert "is kept" not in str(error.value)


def test_a_shard_that_kills_is_tried_again_whole_and_then_row_by_row():
    shard = _Shard(0, 4, 8)
    assert shard.again(1) == [_Shard(0, 4, 8, 1)]
    assert shard.again(1)[0].again(1) == shard.again(2) == [_Shard(0, row, row + 1, 2) for row in range(4, 8)]
    assert _Shard(0, 4, 5, 2).again(1) == []
    assert _Shard(0, 4, 5).again(1) == [_Shard(0, 4, 5, 1)]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://nobody.invalid:8786", "carrier://pigeon:1"])
def test_an_address_where_no_scheduler_is_is_named_quickly(address, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_shards, "ANSWER", 0.5)
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"executor: expected the address of a running Dask scheduler, got '{address}' \(.+\)$"):
        score({"picky": Picky()}, tmp_path, address)
    assert time.monotonic() - start < 5


def test_executors_there_are_none_of_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="executor: expected 'serial', 'dask' or the address"):
        check_executor("slurm")
    with pytest.raises(ValueError, match="workers: expected an integer >= 1, got 0"):
        check_executor("dask", 0)
    monkeypatch.setitem(sys.modules, "distributed", None)
    check_executor("serial")
    with pytest.raises(ValueError, match=r"'dask' needs the extra dist \(pip install 'salkit\[dist\]'\), which is not installed"):
        check_executor("dask")


def test_a_slurm_job_starts_a_worker_as_the_docs_say():
    from dask_jobqueue import SLURMCluster

    text = (Path(__file__).parents[2] / "docs" / "long-runs.md").read_text()
    code = text.split("from dask_jobqueue import SLURMCluster")[1].split("cluster.scale")[0]
    scope = {"SLURMCluster": SLURMCluster}
    exec(code, scope)
    try:
        script = scope["cluster"].job_script()
    finally:
        scope["cluster"].close()
    for part in ("#SBATCH --gres=gpu:1", "#SBATCH -t 24:00:00", "--nthreads 1", "distributed.cli.dask_worker tcp://", "--nanny"):
        assert part in script


def processes(group):
    """Process ids and commands of a session."""
    lines = subprocess.run(["ps", "-ww", "-eo", "sid,pid,stat,args"], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(maxsplit=3) for line in lines]
    return [(int(pid), name) for sid, pid, state, name in rows if sid == str(group) and "Z" not in state]


@pytest.fixture
def start(tmp_path):
    """Starts a command in a session of its own and waits until its output holds some text."""
    started = []

    def call(*arguments, until):
        out = tmp_path / "out"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
        with out.open("w") as file:
            process = subprocess.Popen([*COMMAND, *arguments], stdout=file, stderr=file, start_new_session=True, env=environment)
        started.append(process)
        deadline = time.monotonic() + 120
        while until not in out.read_text():
            assert process.poll() is None, out.read_text()
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.05)
        return process, out

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def interrupt(process, out, seconds):
    before = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130, out.read_text()
    took = time.monotonic() - before
    print(f"ended {took:.2f} s after Ctrl-C")
    time.sleep(0.2)
    text = out.read_text()
    assert "stopped. Finished shards are in the store; the same command goes on where it was." in text
    for noise in ("Traceback", "Warning", "distributed.", "leaked"):
        assert noise not in text, text
    assert not processes(process.pid)
    assert took < seconds


@pytest.mark.faults
@pytest.mark.parametrize("executor", ["serial", "dask"])
def test_ctrl_c_ends_a_run_at_once_and_keeps_what_is_finished(start, tmp_path, executor):
    where = ["--store", str(tmp_path / "store"), "--executor", executor, "--workers", "2"]
    process, out = start(*LONG, *where, until="/40 [00:0")
    store = Store(tmp_path / "store")
    while not (done := [s.path for key in store.keys() if key.startswith("maps") for s in store.shards(key)]):
        assert process.poll() is None, out.read_text()
        time.sleep(0.1)
    interrupt(process, out, 4)  # about a second on an idle machine
    assert all(path.is_file() for path in done)


@pytest.mark.faults
def test_ctrl_c_while_workers_start_leaves_nothing_behind(start, tmp_path):
    process, out = start(*LONG, "--store", str(tmp_path / "store"), "--executor", "dask", "--workers", "2", until="")
    deadline = time.monotonic() + 60
    while len(processes(process.pid)) < 4:  # the run, multiprocessing's tracker, two workers
        assert time.monotonic() < deadline
        time.sleep(0.05)
    interrupt(process, out, 4)


@pytest.mark.faults
@pytest.mark.parametrize("executor", ["serial", "dask"])
def test_ctrl_c_ends_the_notebooks_and_their_kernel(start, tmp_path, executor):
    arguments = ["--profile", "smoke", "--notebook", "02", "--output", str(tmp_path / "run"), "--executor", executor, "--workers", "2"]
    process, out = start("reproduce", *arguments, until="cell 6")
    before = kernels(process.pid)
    assert before
    time.sleep(3)
    interrupt(process, out, 4)
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]


def kernels(parent):
    """Process ids of a command's kernels, which have sessions of their own."""
    lines = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
    return [line.split()[0] for line in lines if line.split()[1] == str(parent) and "ipykernel_launcher" in line]


@pytest.mark.faults
@pytest.mark.parametrize("n", [1, 2])
def test_a_killed_worker_costs_its_shard_and_nothing_else(start, tmp_path, n):
    arguments = ["--store", str(tmp_path / "store"), "--executor", "dask", "--workers", str(n)]
    process, out = start(*LONG, "--set", "n_steps=20", *arguments, until="maps:   0%")
    store = Store(tmp_path / "store")
    while not (before := [s.path for key in store.keys() if key.startswith("maps") for s in store.shards(key)]):
        time.sleep(0.1)
    victim = next(pid for pid, name in processes(process.pid) if pid != process.pid and "resource_tracker" not in name)
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    stamps = {path: path.stat().st_mtime_ns for path in before}
    assert process.wait(180) == 0, out.read_text()
    print(f"ended {time.monotonic() - killed:.1f} s after one of {n} workers was killed")
    assert {path: path.stat().st_mtime_ns for path in before} == stamps
    assert "Traceback" not in out.read_text()
    assert not processes(process.pid)


@pytest.mark.faults
def test_a_pair_that_kills_every_worker_is_named_and_the_rest_is_kept(tmp_path):
    with pytest.raises(ShardError) as error:
        score({"picky": Picky(kill=True)}, tmp_path, "dask", workers=2, keep_heatmaps=True)
    assert f"run, picky: maps, image {IMAGES.ids[1]}, label 3: it killed the workers that computed it, 3 times" in str(error.value)
    store = Store(tmp_path)
    (maps,) = [key for key in store.keys() if key.startswith("maps")]
    assert sum(b - a for a, b in store.missing(store.experiment(maps))) == 1


@pytest.mark.faults
def test_a_notebook_uses_workers_of_its_own(tmp_path):
    from nbclient import NotebookClient

    cells = [
        "from salkit import *\nimages = load_images('cifar10-samples').sample(2)\nnet = load_classifier('cifar10-resnet20')",
        "class Own:\n    def attribute(self, classifier, inputs, target, **_):\n        return inputs.mean(1)\n\n"
        f"print(evaluate(net, images, {{'own': Own()}}, n_steps=2, store={str(tmp_path)!r}, executor='dask', workers=1).sizes)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(cells)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    text = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert "1 Dask workers at tcp://" in text
    assert "'label': 10" in text
    assert "Warning" not in text

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
import torch
from distributed import LocalCluster
from distributed.utils import get_mp_context
from jupyter_client.manager import start_new_kernel

from salkit.data import load_images
from salkit.engine import cluster, dask_shards
from salkit.engine.compare import compare_stores
from salkit.engine.executors import check_executor, open_engine, raise_failures
from salkit.engine.identity import Experiment
from salkit.engine.shards import Job, ShardError, WorkerError
from salkit.engine.store import Store
from salkit.evaluation.evaluate import evaluate
from salkit.methods import get_method
from salkit.models import load_classifier

COMMAND = [sys.executable, "-m", "salkit"]
LONG = "evaluate learned_mask --n 8 --labels 0,3 --points 4 --set n_steps=40 --device cpu".split()
SQUARES = Experiment("table", "squares", 12, {"values": "0 to 11"})


@dataclass(frozen=True, eq=False)
class Numbers:
    """A source."""

    values: np.ndarray

    def about(self):
        seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "MALLOC_ARENA_MAX")}
        return seen | {"threads": torch.get_num_threads(), "worker": os.getpid()}


@dataclass(frozen=True)
class Squares:
    """A task that raises for one row, or kills its worker for another, always or once; `log` keeps the rows of each attempt."""

    log: str = ""
    raises: int = -1
    kills: int = -1
    kills_once: int = -1
    nap: float = 0.0

    def __call__(self, source, store, start, stop):
        time.sleep(self.nap)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{start}-{stop}\n")
            if start <= self.kills < stop or (start <= self.kills_once < stop and attempts(self.log, self.kills_once) == 1):
                os._exit(1)
        if start <= self.raises < stop:
            raise ArithmeticError("cannot square this")
        return {"square": source.values[start:stop] ** 2}

    def shard_size(self, source):
        return 4

    def row_name(self, source, row):
        return f"number {source.values[row]}"


def attempts(log, row):
    """How often a row was tried."""
    return sum(row in range(*map(int, line.split("-"))) for line in Path(log).read_text().split())


def square(store, executor="serial", task=None, **settings):
    """Compute what a store does not have."""
    with open_engine(store, executor, show_progress=False, **settings) as engine:
        failures = engine.run([Job(SQUARES, task or Squares())], [Numbers(np.arange(SQUARES.rows))])
        raise_failures(failures, engine.store)


@pytest.fixture(scope="module")
def workers():
    """Two local workers that are told of two GPUs and six cores. They are forks of one process that has imported everything."""
    with pytest.MonkeyPatch.context() as patch, dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(["salkit.__main__", "pytest", "pytorchcv.models.resnet_cifar", "dask.array", "distributed"])
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(os, "cpu_count", lambda: 6)
        threads = os.environ.get("OMP_NUM_THREADS")
        with cluster.local_cluster() as found:
            patch.undo()
            assert os.environ.get("OMP_NUM_THREADS") == threads  # Dask's defaults would change our own, too
            yield found


def test_local_workers_compute_each_with_its_share_of_the_machine(workers, tmp_path):
    square(tmp_path, workers.scheduler_address, Squares(nap=0.2))
    store = Store(tmp_path)
    np.testing.assert_array_equal(store.read(SQUARES.key)["square"], np.arange(SQUARES.rows) ** 2)
    about = [store.about(shard) for shard in store.shards(SQUARES.key)]
    assert {(a["CUDA_VISIBLE_DEVICES"], a["MALLOC_ARENA_MAX"], a["threads"]) for a in about} == {("0", "1", 3), ("1", "1", 3)}
    assert len({a["worker"] for a in about} - {os.getpid()}) == 2
    assert not list(tmp_path.glob("inputs-*"))
    with urllib.request.urlopen(workers.dashboard_link, timeout=10) as page:
        assert page.status == 200


def test_maps_and_curves_of_local_workers_are_those_of_the_serial_executor_to_the_bit(workers, tmp_path):
    methods = {"ours": get_method("learned_mask", n_steps=2, n_distractors=2), "gradient": get_method("gradient_x_input")}
    images, net = load_images("cifar10-samples").sample(2), load_classifier("cifar10-resnet20")
    torch.set_num_threads(2)
    try:
        for name, executor in (("serial", "serial"), ("dask", workers.scheduler_address)):
            evaluate(net, images, methods, store=tmp_path / name, executor=executor, device="cpu", n_steps=4, show_progress=False)
    finally:
        torch.set_num_threads(1)
    serial = Store(tmp_path / "serial")
    table = compare_stores(serial, Store(tmp_path / "dask"))
    assert {"map", "prob", "insertion", "deletion"} <= set(table.score)
    assert {"evaluation, ours: maps", "evaluation, gradient: curves"} <= set(table.run)
    assert table.largest.max() == 0
    assert [serial.experiment(key).what["kept_as"] for key in serial.keys() if key.startswith("maps")] == ["logits"]


def test_a_row_that_kills_its_workers_is_named_and_all_others_are_kept(workers, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(ShardError, match="1 rows could not be computed") as error:
        square(tmp_path / "store", workers.scheduler_address, Squares(str(log), kills=5, kills_once=9))
    assert "squares, number 5: it killed the workers that computed it, 3 times" in str(error.value)
    tried = log.read_text().split()
    assert (tried.count("4-8"), tried.count("5-6"), attempts(log, 5)) == (2, 1, 3)
    assert (tried.count("8-12"), attempts(log, 9)) == (2, 2)
    assert Store(tmp_path / "store").missing(SQUARES) == [(5, 6)]


def test_a_row_that_raises_is_named_and_the_rest_is_kept(workers, tmp_path):
    with pytest.raises(ShardError, match="1 rows could not be computed") as error:
        square(tmp_path, workers.scheduler_address, Squares(raises=6))
    assert "squares, number 6: ArithmeticError: cannot square this (test_executors.py:" in str(error.value)
    assert "Everything else is kept in" in str(error.value)
    assert Store(tmp_path).missing(SQUARES) == [(6, 7)]
    with pytest.raises(ShardError) as error:
        square(None, workers.scheduler_address, Squares(raises=6))
    assert "is kept" not in str(error.value)


OLD = {"torch": "1.0", "salkit": "0"}


def other_code(*given, plain=dask_shards._described):
    return {name: described | {"source": ["0"]} for name, described in plain(*given).items()}


@dataclass(frozen=True)
class Unpickled(Squares):
    """A task that calls a function when a worker reads it."""

    call: tuple = ()

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("change", "task", "message"),
    [
        (("versions", lambda: OLD), None, r"the Dask worker tcp://.* has torch .* instead of 1\.0, salkit .*: results of other"),
        (("Path.resolve", lambda path: path), None, "does not see the store store: it has to be there under the same path"),
        (("_described", other_code), None, "has another source for squares: its code, or a file it reads, differs"),
        (("digest", lambda sent: "0"), None, "expected inputs with the checksum 0, got .*inputs.pickle with "),
        (None, Unpickled(call=(eval, ("1 / 0",))), "cannot read its inputs: ZeroDivisionError: division by zero"),
        (None, Unpickled(call=(os._exit, (1,))), "3 Dask workers died while they read their inputs"),
    ],
)
def test_workers_that_see_something_else_are_refused(workers, tmp_path, monkeypatch, change, task, message):
    monkeypatch.chdir(tmp_path)
    if change:
        monkeypatch.setattr(f"salkit.engine.dask_shards.{change[0]}", change[1])
    with pytest.raises(WorkerError, match=message):
        square("store", workers.scheduler_address, task)


def test_a_run_gives_up_when_no_worker_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_shards, "PATIENCE", 0.2)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as scheduler:
        with pytest.raises(WorkerError, match=r"there has been no Dask worker for 0.2 seconds\. What was finished is kept"):
            square(tmp_path, scheduler.scheduler_address)


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)])
def test_a_run_ends_when_its_scheduler_does(tmp_path, end):
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as scheduler:
        address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at" in line)
        threading.Timer(0.5, scheduler.send_signal, [end]).start()
        with pytest.raises(WorkerError, match=r"the Dask scheduler is gone\. What was finished is kept"):
            square(tmp_path, address)


def test_gpus_that_the_environment_names_are_shared_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [cluster.environment(i, 3)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["5", "7", "5"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" not in cluster.environment(0, 1)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://nobody.invalid:8786", "carrier://pigeon:1"])
def test_an_address_where_no_scheduler_is_is_named_quickly(address, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_shards, "ANSWER", 0.5)
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"executor: expected the address of a running Dask scheduler, got '{address}' \(.+\)$"):
        square(tmp_path, address)
    assert time.monotonic() - began < 5


def test_without_dask_its_executors_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    check_executor("serial")
    with pytest.raises(ValueError, match=r"'dask' needs the extra dist \(pip install 'salkit\[dist\]'\), which is not installed"):
        check_executor("dask")


def test_a_slurm_job_starts_a_worker_as_documented():
    from dask_jobqueue import SLURMCluster

    folder = Path(__file__).parents[2]
    text = "".join(path.read_text() for path in [folder / "README.md", *(folder / "docs").glob("*.md")])
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
    lines = subprocess.run(["ps", "-ww", "-s", str(group), "-o", "pid=,stat=,args="], capture_output=True, text=True).stdout.splitlines()
    return [(int(pid), name) for pid, state, name in (line.split(maxsplit=2) for line in lines) if "Z" not in state]


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


def first_maps(process, out, store):
    """Shards of maps, as soon as there is one."""
    while not (found := list(store.glob("maps-*/*.safetensors"))):
        assert process.poll() is None, out.read_text()
        time.sleep(0.1)
    return found


def interrupt(process, out):
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
    assert took < 4  # about a second on an idle machine


@pytest.mark.faults
@pytest.mark.parametrize("executor", ["serial", "dask"])
def test_ctrl_c_ends_a_run_at_once_and_keeps_what_is_finished(start, tmp_path, executor):
    where = ["--store", str(tmp_path / "store"), "--executor", executor, "--workers", "2"]
    process, out = start(*LONG, *where, until="maps:   0%")
    done = first_maps(process, out, tmp_path / "store")
    interrupt(process, out)
    assert all(path.is_file() for path in done)


@pytest.mark.faults
def test_ctrl_c_while_workers_start_leaves_nothing_behind(start, tmp_path):
    process, out = start(*LONG, "--store", str(tmp_path / "store"), "--executor", "dask", "--workers", "2", until="")
    deadline = time.monotonic() + 60
    while len(processes(process.pid)) < 4:  # the run, multiprocessing's tracker, two workers
        assert time.monotonic() < deadline
        time.sleep(0.05)
    interrupt(process, out)


@pytest.mark.faults
@pytest.mark.parametrize("executor", ["serial", "dask"])
def test_ctrl_c_ends_the_notebooks_and_their_kernel(start, tmp_path, executor):
    arguments = ["--profile", "smoke", "--notebook", "02", "--output", str(tmp_path / "run"), "--executor", executor, "--workers", "2"]
    process, out = start("reproduce", *arguments, until="cell 6")
    # Kernels have sessions of their own.
    kernels = [child for child in psutil.Process(process.pid).children() if "ipykernel_launcher" in " ".join(child.cmdline())]
    assert kernels
    time.sleep(3)
    interrupt(process, out)
    assert not any(kernel.is_running() for kernel in kernels)


@pytest.mark.faults
def test_a_killed_worker_costs_its_shard_and_nothing_else(start, tmp_path):
    where = ["--store", str(tmp_path / "store"), "--executor", "dask", "--workers", "1"]
    process, out = start(*LONG, "--set", "n_steps=20", *where, until="maps:   0%")
    stamps = {path: path.stat().st_mtime_ns for path in first_maps(process, out, tmp_path / "store")}
    (worker,) = (pid for pid, name in processes(process.pid) if pid != process.pid and "resource_tracker" not in name)
    os.kill(worker, signal.SIGKILL)
    assert process.wait(180) == 0, out.read_text()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert "Traceback" not in out.read_text()
    assert not processes(process.pid)


OWN = """
import multiprocessing, time
from salkit import *

class Own:
    nap = 60
    def attribute(self, classifier, inputs, target, **_):
        time.sleep(self.nap)
        return inputs.mean(1)

def score(store):
    net, images = load_classifier("cifar10-resnet20"), load_images("cifar10-samples").sample(2)
    print(evaluate(net, images, {"own": Own()}, n_steps=2, store=store, executor="dask", workers=1).sizes)
"""


@pytest.mark.faults
def test_ctrl_c_in_a_notebook_ends_its_workers_and_the_next_cell_goes_on(tmp_path):
    manager, client = start_new_kernel(kernel_name="python3")
    said = []

    def note(message):
        said.append(message["content"].get("text", ""))

    try:
        client.execute_interactive(OWN, timeout=120)
        client.execute(f"score({str(tmp_path)!r})")
        while "curves" not in "".join(said):
            note(client.get_iopub_msg(timeout=120))
        before = time.monotonic()
        os.killpg(os.getpgid(manager.provisioner.pid), signal.SIGINT)
        assert client.get_shell_msg(timeout=30)["content"]["ename"] == "KeyboardInterrupt"
        assert time.monotonic() - before < 4
        code = f"assert not multiprocessing.active_children()\nOwn.nap = 0\nscore({str(tmp_path)!r})"
        reply = client.execute_interactive(code, timeout=120, output_hook=note)
        assert reply["content"]["status"] == "ok", said
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    text = "".join(said)
    assert text.count("1 Dask workers at tcp://") == 2
    assert "'label': 10" in text
    assert not [noise for noise in ("Warning", "distributed.") if noise in text]

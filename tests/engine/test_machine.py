import os
import platform
import subprocess
from datetime import UTC, datetime

import pytest
import torch

from salkit.engine import machine as module
from salkit.engine.machine import cpu_name, installed, machine


def test_a_measurement_says_where_it_comes_from():
    found = machine()
    assert (found["device"], found["cores"], found["torch_threads"]) == ("cpu", os.cpu_count(), torch.get_num_threads())
    assert (found["torch"], found["python"]) == (torch.__version__, platform.python_version())
    assert abs((datetime.now(UTC) - datetime.fromisoformat(str(found["date"]))).total_seconds()) < 60
    assert found["cpu"] == cpu_name()


def test_the_commit_says_when_files_were_changed_after_it(tmp_path, monkeypatch):
    def git(*arguments):
        own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *own, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "--short", "HEAD")
    (tmp_path / "another").write_text("not of the commit")
    assert machine()["commit"] == commit
    (tmp_path / "file").write_text("two")
    assert machine()["commit"] == f"{commit}-dirty"


@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch, path):
    """In no repository, and where git is not installed."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if path:
        monkeypatch.setenv("PATH", path)
    assert machine()["commit"] == "unknown"


def test_processors_are_told_apart_by_name_model_and_instructions(tmp_path, monkeypatch):
    lines = "processor\t: {0}\ncpu family\t: {1}\nmodel\t\t: {2}\nmodel name\t: Xeon {2}\nflags\t\t: avx512f\n"
    (tmp_path / "cpuinfo").write_text("\n".join(lines.format(core, 6, 143) for core in (0, 1)))
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / "cpuinfo")
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert cpu_name() == f"Xeon 143 (family 6, model 143, {torch.backends.cpu.get_cpu_capability()})"
    monkeypatch.setattr(module.sys, "platform", "darwin")
    monkeypatch.setattr(module.platform, "processor", lambda: "arm")
    assert cpu_name() == f"arm ({torch.backends.cpu.get_cpu_capability()})"


def test_packages_that_are_not_installed_have_no_version():
    assert installed("pytest") == pytest.__version__
    assert installed("no-such-package") is None

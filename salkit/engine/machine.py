"""Where numbers come from: machine, versions, commit and date."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def machine(device: str = "cpu") -> dict[str, object]:
    """Machine, versions, commit and date of a measurement.

    Example:
        >>> sorted(machine())[:4]
        ['commit', 'cores', 'cpu', 'date']
    """
    commit = _git("rev-parse", "--short", "HEAD")
    dirty = "-dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit + dirty if commit else "unknown",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def installed(package: str) -> str | None:
    """Version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name, family and model (a name may stand for several), and the widest instructions that torch uses there."""
    facts = {"model name": platform.processor() or platform.machine(), "cpu family": "", "model": ""}
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in facts:
                facts[name.strip()] = value.strip()
    kind = f"family {facts['cpu family']}, model {facts['model']}, " if facts["model"] else ""
    return f"{facts['model name']} ({kind}{torch.backends.cpu.get_cpu_capability()})"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

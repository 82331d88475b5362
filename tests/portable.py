"""The tests whose numbers can depend on a processor's kernels, under several instruction sets and numbers of threads.

`make test-portable`, or `python tests/portable.py tests/test_curves.py` for some files only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

COMBINATIONS = [
    # torch's instruction set (None: the processor's), oneDNN's, threads: every value, and the extremes together.
    (None, "AVX512_CORE", 2),
    (None, "AVX2", 1),
    ("avx2", "AVX512_CORE", 1),
    ("default", "AVX2", 2),
    ("default", "AVX2", 1),
]
# No net runs there, or its numbers do not matter.
SKIPPED = ["data", "report", "commands", "studies/test_theory.py", "studies/test_theory_study.py", "test_faults.py", "test_bad_input.py"]


def run(capability: str | None, isa: str, threads: int, paths: list[str]) -> bool:
    """Run the tests under one combination, print a line, and say whether they passed."""
    setting = {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": str(threads)} | ({"ATEN_CPU_CAPABILITY": capability} if capability else {})
    inherited = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    ignored = [f"--ignore=tests/{path}" for path in SKIPPED]
    workers = max((os.cpu_count() or 1) // threads, 1)
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "--dist", "loadfile", "--tb=short", *ignored, *paths]
    start = time.perf_counter()
    done = subprocess.run(command, env=inherited | setting, capture_output=True, text=True)
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    name = f"torch {capability or 'as is':7}  oneDNN {isa:11}  threads {threads}"
    print(f"{'passed' if done.returncode == 0 else 'FAILED'}  {name}  {time.perf_counter() - start:4.0f} s  {last}", flush=True)
    if done.returncode:
        print(done.stdout, done.stderr, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    passed = [run(*combination, sys.argv[1:] or ["tests"]) for combination in COMBINATIONS]
    sys.exit(not all(passed))

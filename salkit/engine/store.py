"""Where results live: one folder an experiment, one file a shard, written beside, flushed and renamed.

A shard's name holds its rows and the checksum of its bytes, so that one rename publishes the numbers and how to check them, and processes
that write at the same time have nothing to agree on. Readers see whole shards or none.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import load, save

from salkit.engine.identity import Experiment, canonical, digest

Arrays = dict[str, np.ndarray]
SHARD = re.compile(r"(\d{8})-(\d{8})\.([0-9a-f]{16})\.safetensors")


class StoreError(RuntimeError):
    """Results cannot be kept or read; the message says where and why, and what to do."""


class MissingRows(StoreError):
    """Rows that are wanted are not there, because they could not be computed or were damaged since."""


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` (exclusive) of an experiment, in a file."""

    start: int
    stop: int
    path: Path


@dataclass(frozen=True)
class RunState:
    """How far a run is: rows of all its experiments and how many are done, which are missing, bytes, and when something last changed."""

    name: str
    rows: int
    done: int
    missing: list[str]
    size: int
    changed: float

    def age(self, now: float | None = None) -> str:
        """How long ago something changed, in words: `"3 min"`, `"2 h"`, `"5 d"`; a clock that jumped back gives `"0 min"`."""
        minutes = max(0.0, ((time.time() if now is None else now) - self.changed) / 60)
        return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.0f} h" if minutes < 36 * 60 else f"{minutes / 1440:.0f} d"


class Store:
    """A folder of experiments.

    Args:
        folder: is made when something is written.
        durable: flush every shard to the disk before it counts; False for results that need not outlive the process.

    Raises:
        ValueError: the folder is a file.

    Example:
        >>> Store("runs/demo/store").folder.name
        'store'
    """

    def __init__(self, folder: str | Path, *, durable: bool = True) -> None:
        if not isinstance(folder, (str, Path)):
            raise TypeError(f"store: expected a folder, got {folder!r}")
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"store: expected a folder, got {folder}, which is a file")
        self.durable = durable
        self._checked: dict[Path, tuple[int, int]] = {}

    def open(self, experiment: Experiment) -> None:
        """Make room for an experiment and write its manifest, if that has not been done.

        Raises:
            StoreError: the folder cannot be written to, or holds the manifest of another experiment.
        """
        path = self.folder / experiment.key / "manifest.json"
        if path.exists():
            self.experiment(experiment.key)
        else:
            self._write(path, json.dumps(experiment.manifest(), indent=1, ensure_ascii=False).encode())

    def experiment(self, key: str) -> Experiment:
        """The experiment of a key, from its manifest.

        Raises:
            StoreError: no manifest, or one that was changed.
        """
        path = self.folder / key / "manifest.json"
        try:
            found = Experiment.from_manifest(json.loads(path.read_text()))
            if found.key != key:
                raise ValueError(f"manifest: expected that of {key}, got that of {found.key}")
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is not what it should be ({error}); delete {path.parent} to compute its results anew") from error
        return found

    def shards(self, key: str) -> list[Shard]:
        """The sound shards of an experiment, by their first row; damaged and foreign ones are set aside with a warning."""
        found = []
        for path in sorted((self.folder / key).glob("*.safetensors")):
            match = SHARD.fullmatch(path.name)
            if match and self._sound(path, key, int(match[1]), int(match[2]), match[3]):
                found.append(Shard(int(match[1]), int(match[2]), path))
        return found

    def missing(self, experiment: Experiment, size: int | None = None) -> list[tuple[int, int]]:
        """Ranges of rows that are not there, cut where multiples of `size` are; None for no cuts."""
        there = np.zeros(experiment.rows, bool)
        for shard in self.shards(experiment.key):
            there[shard.start : shard.stop] = True
        edges = np.flatnonzero(np.diff(np.concatenate([[1], there, [1]]).astype(np.int8))).tolist()
        ranges = list(zip(edges[::2], edges[1::2], strict=True))
        if size is None:
            return ranges
        cuts = [[a, *range(a - a % size + size, b, size), b] for a, b in ranges]
        return [pair for each in cuts for pair in itertools.pairwise(each)]

    def write(self, key: str, start: int, stop: int, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None) -> Path:
        """Keep the rows `start` to `stop` of an experiment: arrays that have them along their first axis.

        Raises:
            StoreError: the disk is full or cannot be written; nothing is left behind.
            ValueError: an array has another number of rows.
        """
        packed, types = {}, {}
        for name, array in arrays.items():
            if array.shape[:1] != (stop - start,):
                raise ValueError(f"{name}: expected {stop - start} rows, got an array of shape {array.shape}")
            if array.dtype.kind == "U":  # the format has no text: code points
                types[name] = array.dtype.str
                array = np.ascontiguousarray(array).view(np.uint32).reshape(*array.shape, array.dtype.itemsize // 4)
            packed[name] = np.ascontiguousarray(array)
        header = {"key": key, "rows": [start, stop], "text": types, "host": socket.gethostname()} | dict(about or {})
        data = save(packed, {"salkit": canonical(header)})
        path = self.folder / key / f"{start:08d}-{stop:08d}.{digest(data)}.safetensors"
        self._write(path, data)
        return path

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Arrays:
        """Arrays of the rows `start` to `stop` of an experiment.

        Raises:
            MissingRows: some of them.
        """
        stop = self.experiment(key).rows if stop is None else stop
        arrays, there = self.read_partly(key, start, stop)
        if not there.all():
            raise MissingRows(f"{self.folder / key}: expected rows {start} to {stop}, got {int(there.sum())} of them")
        return arrays

    def read_partly(self, key: str, start: int, stop: int) -> tuple[Arrays, np.ndarray]:
        """What is there of the rows `start` to `stop`: arrays (NaN or zero elsewhere), and which rows are there, `(stop - start,)`."""
        arrays: Arrays = {}
        there = np.zeros(stop - start, bool)
        for shard in self.shards(key):
            low, high = max(start, shard.start), min(stop, shard.stop)
            if low >= high or there[low - start : high - start].all():
                continue
            for name, values in self._load(shard.path).items():
                if name not in arrays:
                    blank = np.nan if values.dtype.kind == "f" else np.zeros((), values.dtype)
                    arrays[name] = np.full((stop - start, *values.shape[1:]), blank, values.dtype)
                arrays[name][low - start : high - start] = values[low - shard.start : high - shard.start]
            there[low - start : high - start] = True
        return arrays, there

    def about(self, shard: Shard) -> dict[str, Any]:
        """Where a shard was computed: host, device, threads."""
        return _header(shard.path.read_bytes())

    @contextmanager
    def claim(self, key: str, start: int, stop: int) -> Iterator[bool]:
        """Whether these rows are ours to compute; False while another living process is at them.

        A lock of the operating system, which ends with its process: no clock, and nothing to clean up after a crash. Where the file system
        has none, two processes may compute the same rows, which costs time and nothing else.
        """
        path = self.folder / key / f"{start:08d}-{stop:08d}.lock"
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError):
            yield True
            return
        try:
            yield True
        finally:
            with suppress(OSError):  # while it is ours; who waits for it looks for the rows first
                path.unlink()
            lock.release()

    def keep_run(self, name: str, run: Mapping[str, Any]) -> None:
        """Write the manifest of a run: which experiments it is made of; one that is there is only touched, if that is allowed."""
        path, data = self.folder / "runs" / f"{name}.json", json.dumps(run, indent=1, ensure_ascii=False).encode()
        if path.is_file() and path.read_bytes() == data:
            with suppress(OSError):
                os.utime(path)
        else:
            self._write(path, data)

    def keep_experiments(self, name: str, keys: Sequence[str]) -> None:
        """Write the manifest of a run that is nothing more than its experiments, the first of which gives it its hash."""
        self.keep_run(f"{name}-{digest(keys[0])[:8]}", {"experiments": list(keys)})

    def runs(self) -> dict[str, dict[str, Any]]:
        """Name -> manifest of all runs, the latest last.

        Raises:
            StoreError: one cannot be read.
        """
        found = {}
        for path in sorted((self.folder / "runs").glob("*.json"), key=_changed):
            try:
                found[path.stem] = json.loads(path.read_text())
                if not isinstance(found[path.stem]["experiments"], list):
                    raise TypeError("experiments: expected a list")
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise StoreError(f"{path}: expected a run's manifest, got {error!r}; delete it, and run the same command again") from error
        return found

    def keys(self) -> list[str]:
        """Keys of all experiments, the latest last."""
        return [p.parent.name for p in sorted(self.folder.glob("*/manifest.json"), key=_changed)]

    def unfinished(self) -> str:
        """Name and rows of the run that was started last, `"table1 312/525"`, by the names of its shards alone; empty when it is done."""
        newest = max((self.folder / "runs").glob("*.json"), key=_changed, default=None)
        rows = done = 0
        with suppress(OSError, ValueError, KeyError, TypeError):  # a display is no reason to stop a run; `runs` names what is wrong
            for key in json.loads(newest.read_text())["experiments"] if newest else ():
                rows += json.loads((self.folder / key / "manifest.json").read_text())["rows"]
                done += sum(int(m[2]) - int(m[1]) for p in (self.folder / key).iterdir() if (m := SHARD.fullmatch(p.name)))
        return f"{newest.stem.rpartition('-')[0]} {done}/{rows}" if newest and done < rows else ""

    def overview(self) -> list[RunState]:
        """How far every run is; experiments that belong to none come last, as a run without a name."""
        runs = {name: run["experiments"] for name, run in self.runs().items()}
        if orphans := sorted(set(self.keys()) - {key for keys in runs.values() for key in keys}):
            runs[""] = orphans
        states = []
        for name, keys in runs.items():
            experiments = [self.experiment(key) for key in keys if key in self.keys()]
            left = {e.title: sum(b - a for a, b in self.missing(e)) for e in experiments}
            rows, files = sum(e.rows for e in experiments), [p for e in experiments for p in (self.folder / e.key).iterdir()]
            missing = [f"{title.rpartition(', ')[2]} {n}" for title, n in left.items() if n]
            stats = [found for p in files if (found := _stat(p))]
            changed = max((found.st_mtime for found in stats), default=0.0)
            states.append(RunState(name, rows, rows - sum(left.values()), missing, sum(found.st_size for found in stats), changed))
        return states

    def prune(self, *, drop: Sequence[str] = (), dry_run: bool = False) -> list[Path]:
        """Remove experiments that no run's manifest needs, and what crashes and damage left in the others; not while a run is at it.

        Args:
            drop: runs (names or their beginnings) whose manifests go first.
            dry_run: remove nothing.

        Returns:
            What was (or would be) removed.

        Raises:
            ValueError: there is no run of a name in `drop`.
        """
        runs = self.runs()
        for name in drop:
            if not any(full.startswith(name) for full in runs):
                raise ValueError(f"drop: expected the beginning of one of {list(runs)}, got {name!r}")
        doomed = [self.folder / "runs" / f"{full}.json" for full in runs if full.startswith(tuple(drop))] if drop else []
        needed = {key for full, run in runs.items() for key in run["experiments"] if not (drop and full.startswith(tuple(drop)))}
        for folder in (p for p in self.folder.iterdir() if p.is_dir()):
            left_over = (p for p in folder.iterdir() if p.suffix in (".part", ".damaged", ".lock"))
            doomed += left_over if folder.name in needed | {"runs"} else [folder]
        if not dry_run:
            for path in doomed:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return sorted(doomed)

    def _write(self, path: Path, data: bytes) -> None:
        part = path.with_name(f"{path.stem[:40]}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("xb") as file:
                    file.write(data)
                    if self.durable:
                        file.flush()
                        os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            if self.durable:
                _flush_folder(path.parent)
        except OSError as error:
            raise StoreError(
                f"cannot write {path} ({error.strerror or error}). What was finished before is kept; make room, or name another folder "
                "as the store, and run the same command again"
            ) from error

    def _sound(self, path: Path, key: str, start: int, stop: int, checksum: str) -> bool:
        """Whether a file holds what its name says; checked again only when it has changed."""
        try:
            state = path.stat()
            stamp = (state.st_mtime_ns, state.st_size)
            if self._checked.get(path) == stamp:
                return True
            data = path.read_bytes()
        except FileNotFoundError:  # just set aside or pruned by another process
            return False
        fault = ""
        if digest(data) != checksum:
            fault = f"its bytes have the checksum {digest(data)}: truncated or damaged"
        else:
            header = _header(data)
            if [header.get("key"), header.get("rows")] != [key, [start, stop]]:
                fault = f"it holds rows {header.get('rows')} of {header.get('key')}"
        if fault:
            aside = path.with_suffix(".damaged")
            with suppress(OSError):
                path.replace(aside)
            warnings.warn(f"{path} is not used: {fault}. It is set aside as {aside.name}, and its rows are computed again", stacklevel=3)
            return False
        self._checked[path] = stamp
        return True

    def _load(self, path: Path) -> Arrays:
        data = path.read_bytes()
        arrays, types = load(data), _header(data)["text"]
        return {name: a.view(types[name]).reshape(a.shape[:-1]) if name in types else a for name, a in arrays.items()}


def _header(data: bytes) -> dict[str, Any]:
    """What `Store.write` put beside the arrays; empty for a file of something else."""
    try:
        length = int.from_bytes(data[:8], "little")
        return dict(json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["salkit"]))
    except (ValueError, KeyError, TypeError, SafetensorError):
        return {}


def _stat(path: Path) -> os.stat_result | None:
    """None where another process has just renamed or removed it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _changed(path: Path) -> float:
    found = _stat(path)
    return found.st_mtime if found else 0.0


def _flush_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

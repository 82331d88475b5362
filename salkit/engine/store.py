"""Results on disk: a folder per experiment, a file per shard.

A file is written under a temporary name, flushed and renamed, so readers see complete shards only. Its name holds its rows and the checksum
of its bytes, so several processes can write at the same time.
"""

from __future__ import annotations

import itertools
import json
import logging
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
from safetensors.numpy import load, save

from salkit.engine.identity import Experiment, canonical, digest

Arrays = dict[str, np.ndarray]

_named: set[str] = set()
SHARD = re.compile(r"(\d{8})-(\d{8})\.([0-9a-f]{16})\.safetensors")
TYPED = re.compile(r'"unknown-([^"]+)-[0-9a-f]{32}"')
"""Code in a description that was typed in a notebook or at a prompt, see `source_digest`."""


class StoreError(RuntimeError):
    """Results cannot be written or read. The message says where, why, and what to do."""


class MissingRows(StoreError):
    """Some rows are not in the store: they could not be computed, or their file was damaged."""


@dataclass(frozen=True)
class Shard:
    """A file with the rows `start` to `stop` (exclusive) of an experiment."""

    start: int
    stop: int
    path: Path


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        name: of the run.
        rows: of all its experiments together.
        done: how many of them are in the store.
        missing: experiments with missing rows, and how many.
        size: in bytes.
        changed: when a file last changed, in seconds since 1970.
    """

    name: str
    rows: int
    done: int
    missing: list[str]
    size: int
    changed: float

    def age(self) -> str:
        """How long ago a file changed, in words: `"3 min"`, `"2 h"`, `"5 d"`. A time in the future gives `"0 min"`."""
        minutes = max(0.0, (time.time() - self.changed) / 60)
        return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.0f} h" if minutes < 36 * 60 else f"{minutes / 1440:.0f} d"


class Store:
    """A folder of experiments.

    Args:
        folder: is created when something is written.
        durable: flush every shard to the disk, so that it survives a power cut; False for results that nobody needs afterwards.

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
        """Create the folder of an experiment and write its manifest, unless they are there.

        Results of code that was typed in a notebook or at a prompt can be reused in this process only. That is logged once.

        Raises:
            StoreError: the folder cannot be written to, or holds the manifest of another experiment.
        """
        path = self.folder / experiment.key / "manifest.json"
        if path.exists():
            self.experiment(experiment.key)
            return
        if self.durable and (new := set(TYPED.findall(canonical(experiment.what))) - _named):
            _named.update(new)
            logging.getLogger(__name__).warning(
                "%s: typed in a notebook or at a prompt, so results are reused in this process only. Move it to a file, or give it an "
                "attribute `version` (str or int) and change that whenever you change the code.",
                ", ".join(sorted(new)),
            )
        self._write(path, _json(experiment.manifest()))

    def experiment(self, key: str) -> Experiment:
        """Read the manifest of an experiment.

        Raises:
            StoreError: there is none, or it was changed.
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
        """The shards of an experiment in order of their first row. Damaged files are renamed, with a warning."""
        found = []
        for path in sorted((self.folder / key).glob("*.safetensors")):
            match = SHARD.fullmatch(path.name)
            if match and self._sound(path, key, int(match[1]), int(match[2]), match[3]):
                found.append(Shard(int(match[1]), int(match[2]), path))
        return found

    def missing(self, experiment: Experiment, size: int | None = None) -> list[tuple[int, int]]:
        """Ranges of rows that are not in the store, split at multiples of `size`."""
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
        """Write the rows `start` to `stop` of an experiment.

        Args:
            key: of the experiment.
            start: first row.
            stop: the row after the last.
            arrays: name -> values, rows along the first axis.
            about: what else to write into the header, for example the device.

        Raises:
            StoreError: the disk is full or cannot be written to. No partial file is left.
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
        """Read the rows `start` to `stop` of an experiment, by default all.

        Raises:
            MissingRows: some rows are not in the store.
        """
        stop = self.experiment(key).rows if stop is None else stop
        arrays, there = self.read_partly(key, start, stop)
        if not there.all():
            raise MissingRows(f"{self.folder / key}: expected rows {start} to {stop}, got {int(there.sum())} of them")
        return arrays

    def read_partly(self, key: str, start: int, stop: int) -> tuple[Arrays, np.ndarray]:
        """Arrays of the rows `start` to `stop` with NaN or zero in missing rows, and which rows are there `(stop - start,)`."""
        arrays: Arrays = {}
        there = np.zeros(stop - start, bool)
        for shard in self.shards(key):
            low, high = max(start, shard.start), min(stop, shard.stop)
            if low >= high or there[low - start : high - start].all():
                continue
            data = shard.path.read_bytes()
            types = _header(data)["text"]
            for name, values in load(data).items():
                values = values.view(types[name]).reshape(values.shape[:-1]) if name in types else values
                if name not in arrays:
                    blank = np.nan if values.dtype.kind == "f" else np.zeros((), values.dtype)
                    arrays[name] = np.full((stop - start, *values.shape[1:]), blank, values.dtype)
                arrays[name][low - start : high - start] = values[low - shard.start : high - shard.start]
            there[low - start : high - start] = True
        return arrays, there

    def about(self, shard: Shard) -> dict[str, Any]:
        """The header of a shard: where it was computed (host, device, threads)."""
        return _header(shard.path.read_bytes())

    @contextmanager
    def claim(self, key: str, start: int, stop: int) -> Iterator[bool]:
        """Reserve rows for this process; False if another process has reserved them.

        The operating system releases the lock when the process ends, even after a crash. On a file system without locks two processes may
        compute the same rows, which costs time but no results.
        """
        path = self.folder / key / f"{start:08d}-{stop:08d}.lock"
        lock, ours = FileLock(path), True
        try:
            lock.acquire(blocking=False)
        except Timeout:
            ours = False
        except (OSError, NotImplementedError):
            pass
        try:
            yield ours
        finally:
            if lock.is_locked:
                with suppress(OSError):  # before the release: a waiting process looks for the rows first
                    path.unlink()
                lock.release()

    def keep_run(self, name: str, run: Mapping[str, Any]) -> None:
        """Write the manifest of a run, which lists its experiments. An equal one that is already there becomes the latest."""
        path, data = self.folder / "runs" / f"{name}.json", _json(run)
        if path.is_file() and path.read_bytes() == data:
            with suppress(OSError):
                os.utime(path)
        else:
            self._write(path, data)

    def keep_experiments(self, name: str, keys: Sequence[str]) -> None:
        """Write the manifest of a run that has nothing but experiments; the first one's key is in its name."""
        self.keep_run(f"{name}-{digest(keys[0])[:8]}", {"experiments": list(keys)})

    def runs(self) -> dict[str, dict[str, Any]]:
        """Name -> manifest of all runs, the latest last.

        Raises:
            StoreError: a manifest cannot be read.
        """
        found = {}
        for path in sorted((self.folder / "runs").glob("*.json"), key=_stat):
            try:
                found[path.stem] = json.loads(path.read_text())
                if not isinstance(found[path.stem]["experiments"], list):
                    raise TypeError("experiments: expected a list")
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise StoreError(f"{path}: expected a run's manifest, got {error!r}; delete it, and run the same command again") from error
        return found

    def keys(self) -> list[str]:
        """Keys of all experiments, the latest last."""
        return [p.parent.name for p in sorted(self.folder.glob("*/manifest.json"), key=_stat)]

    def unfinished(self) -> str:
        """The run that was started last and its rows, `"table1 312/525"`; empty when it is done. Reads no results, so it is fast."""
        newest = max((self.folder / "runs").glob("*.json"), key=_stat, default=None)
        rows = done = 0
        with suppress(OSError, ValueError, KeyError, TypeError):  # only for a display; `runs` says what is wrong
            for key in json.loads(newest.read_text())["experiments"] if newest else ():
                rows += json.loads((self.folder / key / "manifest.json").read_text())["rows"]
                done += sum(int(m[2]) - int(m[1]) for p in (self.folder / key).iterdir() if (m := SHARD.fullmatch(p.name)))
        return f"{newest.stem.rpartition('-')[0]} {done}/{rows}" if newest and done < rows else ""

    def overview(self) -> list[RunState]:
        """How far every run is. Experiments that belong to no run come last, as a run without a name."""
        known, runs = self.keys(), {name: run["experiments"] for name, run in self.runs().items()}
        if orphans := sorted(set(known).difference(*runs.values())):
            runs[""] = orphans
        states = []
        for name, keys in runs.items():
            experiments = [self.experiment(key) for key in keys if key in known]
            left = {e.title: sum(b - a for a, b in self.missing(e)) for e in experiments}
            rows, files = sum(e.rows for e in experiments), [_stat(p) for e in experiments for p in (self.folder / e.key).iterdir()]
            missing = [f"{title.rpartition(', ')[2]} {n}" for title, n in left.items() if n]
            size, changed = sum(size for _, size in files), max((changed for changed, _ in files), default=0.0)
            states.append(RunState(name, rows, rows - sum(left.values()), missing, size, changed))
        return states

    def prune(self, *, drop: Sequence[str] = (), dry_run: bool = False) -> list[Path]:
        """Remove experiments that no run needs, and files left by crashes or damage. Do not call it while something is computed.

        Args:
            drop: runs to forget first (names or their beginnings).
            dry_run: remove nothing.

        Returns:
            What was removed, or would be.

        Raises:
            ValueError: no run has a name in `drop`.
        """
        runs = self.runs()
        if unknown := [name for name in drop if not any(full.startswith(name) for full in runs)]:
            raise ValueError(f"drop: expected the beginning of one of {list(runs)}, got {unknown[0]!r}")
        dropped = [full for full in runs if full.startswith(tuple(drop))]
        needed = {key for full, run in runs.items() if full not in dropped for key in run["experiments"]}
        doomed = [self.folder / "runs" / f"{full}.json" for full in dropped]
        for folder in (p for p in self.folder.iterdir() if p.is_dir()):
            left_over = [p for p in folder.iterdir() if p.suffix in (".part", ".damaged", ".lock")]
            doomed += left_over if folder.name in needed | {"runs"} else [folder]
        if not dry_run:
            for path in doomed:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return sorted(doomed)

    def _write(self, path: Path, data: bytes) -> None:
        part = path.with_name(f"{path.stem[:40]}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                file.write(data)
                if self.durable:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
        except BaseException as error:
            with suppress(OSError):
                part.unlink()
            if not isinstance(error, OSError):
                raise
            raise StoreError(
                f"cannot write {path} ({error.strerror or error}). What was finished before is kept; make room, or name another folder "
                "as the store, and run the same command again"
            ) from error
        if self.durable:
            with suppress(OSError):  # not every system can make a rename survive a power cut
                handle = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def _sound(self, path: Path, key: str, start: int, stop: int, checksum: str) -> bool:
        """Whether a file's checksum and header agree with its name. Read again only after it has changed."""
        try:
            state = path.stat()
            stamp = (state.st_mtime_ns, state.st_size)
            if self._checked.get(path) == stamp:
                return True
            data = path.read_bytes()
        except FileNotFoundError:  # another process has just renamed or removed it
            return False
        found = _header(data)
        if digest(data) != checksum:
            fault = f"its bytes have the checksum {digest(data)}: truncated or damaged"
        elif [found.get("key"), found.get("rows")] != [key, [start, stop]]:
            fault = f"it holds rows {found.get('rows')} of {found.get('key')}"
        else:
            self._checked[path] = stamp
            return True
        aside = path.with_suffix(".damaged")
        with suppress(OSError):
            path.replace(aside)
        warnings.warn(f"{path} is not used: {fault}. It is set aside as {aside.name}, and its rows are computed again", stacklevel=3)
        return False


def _header(data: bytes) -> dict[str, Any]:
    """The header that `Store.write` made; empty for any other file."""
    try:
        length = int.from_bytes(data[:8], "little")
        return dict(json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["salkit"]))
    except (ValueError, KeyError, TypeError):
        return {}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _stat(path: Path) -> tuple[float, int]:
    """When a file last changed, and its size; zeros for one that another process has just renamed or removed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return found.st_mtime, found.st_size

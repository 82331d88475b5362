"""`make reproduce`: papermill over the notebooks, then one page that links everything they left behind."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from salkit.data.files import data_dir
from salkit.engine.executors import check_executor
from salkit.engine.store import Store as ResultStore
from salkit.models.folding import ALLOCATOR
from salkit.models.passes import measured
from salkit.report.pages import clock, write_index
from salkit.studies.costs import tune
from salkit.studies.profiles import get_profile

TOLERANCE = 0.02
"""Largest allowed relative difference of a checked number that brings no tolerance of its own: simulated ones repeat to rounding."""


class NotebookError(RuntimeError):
    """A notebook failed; the message names the notebook, the cell and the error."""


def notebooks_dir() -> Path:
    """The notebooks of this checkout."""
    return data_dir().parent / "notebooks"


def reproduce(
    profile: str = "demo",
    *,
    notebook: str | None = None,
    output_dir: str | Path | None = None,
    store: str | Path | None = None,
    executor: str = "serial",
    workers: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    console: Console | None = None,
    source: str | Path | None = None,
) -> Path:
    """Execute the notebooks in order and write `index.html`; what is in the store is not computed again.

    Args:
        profile: smoke, demo or paper.
        notebook: only the one notebook whose name begins with this.
        output_dir: default `runs/PROFILE`; gets `notebooks/`, `html/`, `tables/`, `figures/`, `index.html`.
        store: where results are kept; default `output_dir/store`.
        executor: `"serial"`, `"dask"` (local workers, started once for all notebooks) or the address of a Dask scheduler.
        workers: how many local workers; None for one a GPU, or one a core.
        parameters: further values for the parameter cells (`seed`, `device`).
        console: where progress goes.
        source: the folder of the notebooks; default the checkout's.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: unknown profile, notebook or parameter; nothing has run then.
        NotebookError: a notebook failed; later ones have not run, and the page shows how far it came.

    Example:
        >>> reproduce("smoke", notebook="01")  # doctest: +SKIP
    """
    get_profile(profile)
    folder = Path(source) if source is not None else notebooks_dir()
    paths = _select(folder, notebook)
    output = (Path(output_dir) if output_dir is not None else Path("runs") / profile).resolve()
    values = (
        {"profile": profile, "output_dir": str(output)} | ({"store": str(Path(store).resolve())} if store else {}) | dict(parameters or {})
    )
    check_executor(executor, workers)
    check_parameters(paths, values | ({} if executor == "serial" else {"executor": executor}))
    for part in ("notebooks", "html", "tables", "figures"):
        (output / part).mkdir(parents=True, exist_ok=True)
    expected = expected_values(profile)
    kept = ResultStore(store or output / "store")
    progress = _Progress([(p.stem, expected.get(p.stem, {}).get("seconds")) for p in paths], console or Console(), kept.unfinished)
    os.environ.update(ALLOCATOR | os.environ)  # kernels inherit it
    if not measured() and profile != "smoke":
        progress.console.print("Measuring once which passes are fastest on this device (salkit tune) ...")
        with suppress(OSError):  # a home that cannot be written to is no reason to stop
            tune(str(values.get("device", "auto")))
    try:
        with _workers(executor, workers, progress.console) as address, progress:
            for path in paths:
                _execute(path, output, values | address, progress)
    finally:
        index = write_index(output, profile, progress.finished)
    if os.environ.get("SALKIT_RECORD") == "1":
        _record(profile, {name: {"seconds": round(seconds)} for name, seconds, _ in progress.finished})
    return index


def check_parameters(paths: Sequence[Path], values: Mapping[str, Any]) -> None:
    """Refuse a parameter that a notebook's cell tagged `parameters` does not have: papermill would only warn.

    Raises:
        ValueError: names the notebook and the parameters it knows.
    """
    import papermill

    for path in paths:
        known = sorted(papermill.inspect_notebook(str(path)))
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"parameter: expected one that {path.name} knows, {known}, got {unknown}")


def expected_values(profile: str) -> dict[str, dict[str, Any]]:
    """Notebook -> its `seconds` on two CPU cores and its checked `values`; empty for a profile without a recorded run."""
    path = data_dir() / "expected" / f"{profile}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def check(notebook: str, profile: str, values: Mapping[str, float | tuple[float, float]]) -> str:
    """Compare a notebook's numbers with the recorded ones; the last cell prints the answer.

    With `SALKIT_RECORD=1` in the environment the numbers are recorded instead.

    Args:
        notebook: name without suffix.
        profile: whose expectations.
        values: name -> number, or number and tolerance (the recorded tolerance counts).

    Returns:
        How many agree, and the names of those that do not.

    Raises:
        ValueError: a recorded number is missing from `values`, or the other way round.
    """
    pairs = {k: v if isinstance(v, tuple) else (v, TOLERANCE * abs(v) + 1e-6) for k, v in values.items()}
    if os.environ.get("SALKIT_RECORD") == "1":
        _record(profile, {notebook: {"values": {k: [round(float(number), 6) for number in pair] for k, pair in pairs.items()}}})
    recorded = expected_values(profile).get(notebook, {}).get("values")
    if recorded is None:
        return f"no numbers are recorded for profile {profile}: nothing to compare"
    if set(recorded) != set(values):
        raise ValueError(f"values: expected the recorded names, differing in {sorted(set(recorded) ^ set(values))}")
    wrong = []
    for name, (number, tolerance) in recorded.items():
        got = pairs[name][0]
        if not (abs(got - number) <= tolerance or (got != got and number != number)):
            wrong.append(f"{name}: expected {number:.4f} within {tolerance:.4f}, got {got:.4f}")
    return "\n".join([f"{len(recorded) - len(wrong)} of {len(recorded)} checks passed", *wrong])


def _record(profile: str, news: Mapping[str, Mapping[str, Any]]) -> None:
    expected = expected_values(profile)
    for notebook, entry in news.items():
        expected.setdefault(notebook, {}).update(entry)
    path = data_dir() / "expected" / f"{profile}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


@contextmanager
def _workers(executor: str, workers: int | None, console: Console) -> Iterator[dict[str, str]]:
    """The notebooks' parameter that sends them to the workers; local ones live as long as this."""
    if executor != "dask":
        yield {} if executor == "serial" else {"executor": executor}
        return
    from salkit.engine.cluster import local_cluster

    with local_cluster(workers) as cluster:
        console.print(f"Dask workers at {cluster.scheduler_address}; dashboard: {cluster.dashboard_link}", soft_wrap=True)
        yield {"executor": cluster.scheduler_address}


def _select(folder: Path, notebook: str | None) -> list[Path]:
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    if notebook:
        chosen = [p for p in paths if p.stem.startswith(notebook.removesuffix(".ipynb"))]
        if len(chosen) != 1:
            raise ValueError(f"notebook: expected the beginning of one of {[p.stem for p in paths]}, got {notebook!r}")
        return chosen
    if not paths:
        raise ValueError(f"notebook: expected notebooks in {folder}, got none")
    return paths


def _execute(path: Path, output: Path, values: Mapping[str, Any], progress: _Progress) -> None:
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.exceptions import PapermillExecutionError

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **settings: Any) -> Any:
            cell_start = nb_man.cell_start

            def start(cell: Any, cell_index: int | None = None, **more: Any) -> Any:
                progress.cell((cell_index or 0) + 1, len(nb_man.nb.cells))
                return cell_start(cell, cell_index, **more)

            nb_man.cell_start = start
            # Everything that lasts is on the disk; asked to end, an interrupted kernel would take its time and complain. Its log is quiet
            # since it warns of talking to us over TCP every time.
            quiet = {"extra_arguments": ["--IPKernelApp.log_level=40"], "shutdown_kernel": "immediate"}
            return super().execute_managed_notebook(nb_man, kernel_name, **quiet, **settings)

    papermill_engines.register("salkit", Engine)
    executed = output / "notebooks" / path.name
    progress.start(path.stem)
    # Our display counts cells; bars inside the outputs would only be noise.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        papermill.execute_notebook(
            str(path), str(executed), dict(values), engine_name="salkit", kernel_name="python3", progress_bar=False, cwd=str(path.parent)
        )
    except PapermillExecutionError as error:
        progress.stop(ok=False)
        raise NotebookError(
            f"{path.name}, cell {error.cell_index + 1} (In [{error.exec_count}]): {error.ename}: {error.evalue}\n"
            f"  {error.source.strip().splitlines()[0]}\nThe notebook as far as it came: {executed}"
        ) from error
    _to_html(executed, output / "html" / f"{path.stem}.html")
    progress.stop(ok=True)


def _to_html(notebook: Path, page: Path) -> None:
    from nbconvert import HTMLExporter

    exporter = HTMLExporter()
    exporter.log.setLevel("ERROR")  # it would remark on figures without alternative text
    body, _ = exporter.from_filename(str(notebook))
    page.write_text(body)


@dataclass
class _Progress:
    """Which notebook, cell and rows run, and how long is left, from the recorded seconds scaled by how fast this machine has been."""

    notebooks: list[tuple[str, float | None]]
    console: Console
    rows: Callable[[], str] = str
    finished: list[tuple[str, float, bool]] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic
    _name: str = ""
    _cell: str = ""
    _since: float = 0.0
    _live: Live | None = None

    def __enter__(self) -> _Progress:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._line, console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._name = ""
            self._live.stop()

    def start(self, name: str) -> None:
        self._name, self._cell, self._since = name, "starting", self.clock()

    def cell(self, number: int, total: int) -> None:
        self._cell = f"cell {number}/{total}"
        if not self._live:
            self.console.print(self._line())

    def stop(self, ok: bool) -> None:
        seconds = self.clock() - self._since
        self.finished.append((self._name, seconds, ok))
        self.console.print(Text(f"{'done  ' if ok else 'failed'} {self._name}  {clock(seconds)}"))
        self._name = ""

    def left(self) -> float | None:
        """Estimated seconds left in all, None while a notebook without a recorded time is still to come."""
        seconds = dict(self.notebooks)
        gone = [name for name, _, _ in self.finished]
        to_come = [seconds[name] for name, _ in self.notebooks if name not in gone]
        if any(s is None for s in to_come):
            return None
        known = sum(s for s in (seconds[name] for name in gone) if s)
        pace = sum(t for _, t, _ in self.finished) / known if known else 1.0
        running = self.clock() - self._since if self._name else 0.0
        current = seconds.get(self._name) or 0.0
        return pace * (sum(s or 0.0 for s in to_come) - current) + max(pace * current - running, 0.0)

    def _line(self) -> Text:
        if not self._name:
            return Text("")
        position = [name for name, _ in self.notebooks].index(self._name) + 1
        left = self.left()
        remaining = "time left unknown" if left is None else f"about {clock(left)} left"
        elapsed = clock(self.clock() - self._since)
        parts = [f"notebook {position}/{len(self.notebooks)}", self._name, self._cell, self.rows(), elapsed, remaining]
        return Text("  ".join(part for part in parts if part))

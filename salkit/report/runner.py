"""`make reproduce`: runs the notebooks with papermill and writes their pages."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from salkit.data.files import data_dir
from salkit.engine.store import Store
from salkit.models.folding import ALLOCATOR
from salkit.report.expected import Outcome, compare, expected_values, outcome_path, read_outcomes, record, write_outcome
from salkit.report.pages import write_index, write_page
from salkit.report.progress import Progress
from salkit.studies.runs import Runs


class NotebookError(RuntimeError):
    """A notebook failed; the message names the notebook, the cell and the error."""


class FailedChecks(NotebookError):
    """All notebooks ran, but some of their numbers are not the recorded ones; the message names the notebooks."""


WHERE = ("device", "store")
"""Settings that say where to compute. The recorded numbers hold for all of their values, and for the defaults of the other settings."""


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
    """Execute the notebooks in order and write `index.html`. Results that are already in the store are not computed again.

    Args:
        profile: smoke, demo, overnight or paper.
        notebook: run only the one notebook whose name begins with this.
        output_dir: default `runs/PROFILE`; gets `notebooks/`, `html/`, `tables/`, `figures/`, `checks/`, `index.html`.
        store: where results are kept; default `output_dir/store`.
        executor: `"serial"`, `"dask"` (local workers, started once for all notebooks) or the address of a Dask scheduler.
        workers: how many local workers; default one per GPU, or one per core.
        parameters: further settings of `salkit.studies.runs.Runs`: `seed`, `device`, `schedule`, `precision`.
        console: where progress goes.
        source: the folder of the notebooks; default the checkout's.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: unknown profile, notebook or parameter; nothing has run then.
        NotebookError: a notebook failed. Later ones have not run; the page shows how far the run came.
        FailedChecks: a number is not the recorded one, with the default settings. All notebooks have run; the console and the page list
            what failed.

    Example:
        >>> reproduce("smoke", notebook="01")  # doctest: +SKIP
    """
    settings = dict(parameters or {})
    known = [f.name for f in fields(Runs) if f.name not in ("profile", "output_dir", "store", "executor", "workers")]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"parameter: expected some of {known}, got {unknown}")
    output = (Path(output_dir) if output_dir is not None else Path("runs") / profile).resolve()
    if store:
        settings["store"] = str(Path(store).resolve())
    Runs(profile, executor=executor, workers=workers, **settings)  # refuses wrong values before anything runs
    paths = _select(Path(source) if source is not None else notebooks_dir(), notebook)
    for part in ("notebooks", "html", "tables", "figures"):
        (output / part).mkdir(parents=True, exist_ok=True)
    expected, kept = expected_values(profile), Store(store or output / "store")
    progress = Progress({p.stem: expected.get(p.stem, {}).get("seconds") for p in paths}, console or Console(), kept.unfinished)
    os.environ.update(ALLOCATOR | os.environ)  # kernels inherit it
    try:
        with _workers(executor, workers, progress.console) as where, progress:
            values = {"profile": profile, "output_dir": str(output), "settings": settings | where}
            for path in paths:
                _execute(path, output, values, progress)
    finally:
        changed = {name: value for name, value in settings.items() if name not in WHERE}
        index = write_index(output, profile, progress.finished, changed)
        ran = {name for name, _, _ in progress.finished}
        failed = _print_checks({name: each for name, each in read_outcomes(output).items() if name in ran}, changed, progress.console)
    if os.environ.get("SALKIT_RECORD") == "1":
        record(profile, {name: {"seconds": round(seconds)} for name, seconds, _ in progress.finished})
    if failed and not changed:
        raise FailedChecks(f"checks failed in {', '.join(failed)}; see {index}")
    return index


def _print_checks(outcomes: Mapping[str, Outcome], changed: Mapping[str, Any], console: Console) -> list[str]:
    """Print how many checks passed, and the failed ones in red. Returns the notebooks with failed checks."""
    passed, failed = (sum(map(count, outcomes.values())) for count in (lambda each: each.passed, lambda each: len(each.failed)))
    console.print(f"{passed} checks passed, {failed} failed", style="bold red" if failed else None, highlight=False)
    for name, outcome in outcomes.items():
        for line in outcome.failed:
            console.print(f"  {name}  {line}", style="red", markup=False, highlight=False, soft_wrap=True)
    if failed and changed:
        console.print(f"The recorded numbers are of the default settings, and this run has {changed}.", markup=False, highlight=False)
    return [name for name, outcome in outcomes.items() if outcome.failed]


@contextmanager
def _workers(executor: str, workers: int | None, console: Console) -> Iterator[dict[str, str]]:
    """The setting that sends a notebook's work to the workers. Local workers live until the block ends."""
    if executor != "dask":
        yield {} if executor == "serial" else {"executor": executor}
        return
    from salkit.engine.cluster import local_cluster

    with local_cluster(workers) as cluster:
        console.print(f"Dask workers at {cluster.scheduler_address}; dashboard: {cluster.dashboard_link}", soft_wrap=True)
        yield {"executor": cluster.scheduler_address}


def _select(folder: Path, notebook: str | None) -> list[Path]:
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    if not paths:
        raise ValueError(f"notebook: expected notebooks in {folder}, got none")
    chosen = [p for p in paths if p.stem.startswith((notebook or "").removesuffix(".ipynb"))]
    if notebook and len(chosen) != 1:
        raise ValueError(f"notebook: expected the beginning of one of {[p.stem for p in paths]}, got {notebook!r}")
    return chosen


def _execute(path: Path, output: Path, values: Mapping[str, Any], progress: Progress) -> None:
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
            # Results are on the disk, so a kernel can be killed; asked to end after an interrupt it would wait and print a traceback.
            # Its log is quiet because it warns about its TCP connection each time.
            quiet = {"extra_arguments": ["--IPKernelApp.log_level=40"], "shutdown_kernel": "immediate"}
            return super().execute_managed_notebook(nb_man, kernel_name, **quiet, **settings)

    papermill_engines.register("salkit", Engine)
    executed = output / "notebooks" / path.name
    outcome_path(output, path.stem).unlink(missing_ok=True)
    progress.start(path.stem)
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress is shown here; bars in the outputs would repeat it
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
    write_page(executed, output / "html" / f"{path.stem}.html")
    progress.stop(ok=True, note=_outcome(path.stem, output, values["profile"]))


def _outcome(name: str, output: Path, profile: str) -> str:
    """How many checks of a notebook passed. Numbers that are recorded but that it did not check are failed checks."""
    if not outcome_path(output, name).exists():
        if "values" not in expected_values(profile).get(name, {}):
            return "no checks"
        write_outcome(output, name, compare(name, profile, {}))
    return read_outcomes(output)[name].summary

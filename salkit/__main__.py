"""The command line: `python -m salkit` or `salkit`."""

from __future__ import annotations

import gc
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from salkit import checkpoints, compare, costs, masker_training, models, reproduce, tables, training
from salkit.checks import check_choice, check_out
from salkit.data import load_distractors, load_images
from salkit.evaluation import evaluate
from salkit.executors import ShardError, WorkerError
from salkit.image_files import data_dir, open_images
from salkit.methods import METHODS, get_method
from salkit.methods.masker import save_masker
from salkit.results import open_results
from salkit.scores import PROTOCOLS
from salkit.store import Store as ResultStore
from salkit.store import StoreError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Completeness and soundness of saliency maps.", rich_markup_mode=None)
console = Console()

Store = Annotated[Path | None, typer.Option(help="Folder that keeps results; a run that was stopped goes on from it.")]
Executor = Annotated[str, typer.Option(help="serial, dask (local workers) or the address of a Dask scheduler, tcp://host:port.")]
Workers = Annotated[int | None, typer.Option(help="Local Dask workers; default one a GPU, or one a core.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]


@app.command("reproduce")
def reproduce_command(
    profile: Annotated[str, typer.Option(help="smoke, demo or paper.")] = "demo",
    notebook: Annotated[str | None, typer.Option(help="Only this notebook (name or its beginning).")] = None,
    output: Annotated[Path | None, typer.Option(help="Where results go; default runs/PROFILE.")] = None,
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE for the notebooks' parameter cells.")] = None,
    store: Store = None,
    executor: Executor = "serial",
    workers: Workers = None,
) -> None:
    """Execute the notebooks in order and write the report; what is in the store already is not computed again."""
    with _errors():
        parameters = dict(_name_and_value("parameter", p) for p in parameter or [])
        where = {"output_dir": output, "store": store, "executor": executor, "workers": workers}
        index = reproduce.reproduce(profile, notebook=notebook, **where, parameters=parameters, console=console)  # type: ignore[arg-type]
        console.print(f"Open {index}")


@app.command("plan")
def plan_command(
    profile: Annotated[str, typer.Option(help="smoke, demo or paper.")] = "paper",
    device: Device = "auto",
) -> None:
    """Count a profile's passes and estimate its hours on this device."""
    with _errors():
        planned = costs.plan(profile, device)
        name = models.resolve_device(device)
    table = Table(title=f"profile {profile} on {_device_name(name)}")
    for column in ("notebook", "forward passes", "forward-backward passes", "hours"):
        table.add_column(column, justify="left" if column == "notebook" else "right", no_wrap=True)
    for cost in planned:
        table.add_row(cost.notebook, f"{cost.forward:,}", f"{cost.forward_backward:,}", f"{cost.hours:,.2f}")
    table.add_section()
    sums = [sum(getattr(cost, name) for cost in planned) for name in ("forward", "forward_backward", "hours")]
    table.add_row("together", f"{sums[0]:,}", f"{sums[1]:,}", f"{sums[2]:,.2f}")
    console.print(table)
    console.print(
        "Passes are of single images. Rates were measured on a few steps with random weights; notebook 01 makes none and takes minutes."
    )


@app.command("evaluate")
def evaluate_command(
    method: Annotated[list[str], typer.Argument(help=f"Methods by name: {', '.join(METHODS)}.")],
    data: Annotated[str, typer.Option(help="cifar10-samples, imagenet-samples, cifar10, imagenette or folder:PATH.")] = "cifar10-samples",
    classifier: Annotated[str, typer.Option(help=f"One of {', '.join(models.CLASSIFIERS)}.")] = "cifar10-resnet20",
    labels: Annotated[
        str | None, typer.Option(help="Class indices, comma-separated; default: all of CIFAR-10, or the labels present.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="How many images; default all.")] = None,
    preset: Annotated[str, typer.Option(help="source: the methods' own sizes; fast: a laptop's.")] = "source",
    setting: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, a setting of the methods.")] = None,
    protocol: Annotated[str, typer.Option(help=f"{' or '.join(PROTOCOLS)}.")] = "paper",
    points: Annotated[int, typer.Option(help="Points of a curve.")] = 28,
    csv: Annotated[Path | None, typer.Option(help="Also write the table here.")] = None,
    store: Store = None,
    executor: Executor = "serial",
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Score methods by name on a data set or folder."""
    with _errors():
        check_choice("protocol", protocol, sorted(PROTOCOLS))
        check_choice("classifier", classifier, list(models.CLASSIFIERS))
        check_out("csv", csv, ".csv")
        settings = dict(_name_and_value("set", s) for s in setting or [])
        methods = {name: get_method(name, preset, **settings) for name in method}  # type: ignore[arg-type]
        kind = "cifar10" if classifier.startswith("cifar10") else "imagenet"
        images = load_images(data, n=n, seed=seed, preprocessing=kind)
        chosen = _label_list(labels) if labels else None
        if chosen is None and kind == "imagenet":
            chosen = sorted(set(images.labels[images.labels >= 0].tolist()))
        net = models.load_classifier(classifier, chosen, PROTOCOLS[protocol].softmax_over)
        pool = load_distractors(data, seed=seed, preprocessing=kind)
        scores = evaluate(
            *(net, images, methods),
            distractors=pool,
            protocol=protocol,
            n_steps=points,
            seed=seed,
            device=device,
            store=store,
            name="_".join(method),
            executor=executor,
            workers=workers,
        )
        table = tables.tidy_table(scores, tables.paper_values("none")).drop(columns=["paper", "verdict"])
    shown = Table(title=f"{len(images)} images of {data}, {classifier}, protocol {protocol}")
    for column in ("method", "metric", "mean", "95 % interval", "n"):
        shown.add_column(column, justify="left" if column in ("method", "metric") else "right")
    for row in table.itertuples():
        interval = f"{row.low:.3f} to {row.high:.3f}" if row.n > 1 else "too few images"
        shown.add_row(row.method, row.metric, f"{row.ours:.3f}" if row.n else "", interval, str(row.n))
    console.print(shown)
    if csv:
        with _errors():
            csv.parent.mkdir(parents=True, exist_ok=True)
            table.to_csv(f"{csv}.part", index=False)
            Path(f"{csv}.part").replace(csv)
        console.print(f"written to {csv}")


@app.command("train-classifier")
def train_classifier_command(
    train: Annotated[list[str], typer.Option(help="Training images: cifar10 or folder:PATH; may be given several times.")],
    val: Annotated[str, typer.Option(help="Validation images: cifar10 or folder:PATH.")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint (safetensors, float16) goes.")],
    times: Annotated[list[int] | None, typer.Option(help="How often an epoch sees the images of each --train.")] = None,
    net: Annotated[str, typer.Option(help="resnet20 or resnet164.")] = "resnet20",
    epochs: Annotated[int, typer.Option(help="Epochs.")] = training.Recipe.epochs,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a CIFAR-10 classifier; a run that was stopped goes on where it was."""
    with _errors():
        check_out("out", out, ".safetensors")
        repeats = times or [1] * len(train)
        if len(repeats) != len(train):
            raise ValueError(f"times: expected one number for each --train, {len(train)}, got {len(repeats)}")
        sets = [load_images(name, split="train", preprocessing="cifar10", show_progress=True) for name in train]
        held_out = load_images(val, preprocessing="cifar10")
        torch.manual_seed(seed)
        model = models.cifar10_net(net).to(models.resolve_device(device))
        recipe = training.Recipe(epochs=epochs, seed=seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        log = training.train_classifier(
            model, list(zip(sets, repeats, strict=True)), held_out, recipe, state_path=out.with_suffix(".state")
        )
        checkpoints.save_checkpoint(model, out, torch.float16)
        model.half().float()  # what a reader of the float16 checkpoint gets
        exact = training.accuracy(model, held_out)
    for row in log:
        console.print(f"epoch {row['epoch']:3.0f}  loss {row['loss']:.3f}  accuracy {row['val_accuracy']:.3f}  {row['seconds']:.0f} s")
    console.print(f"{out}: accuracy {exact:.4f} on {len(held_out)} images of {val}")


@app.command("train-masker")
def train_masker_command(
    kind: Annotated[str, typer.Argument(help="dabkowski_gal or phang.")],
    train: Annotated[str, typer.Option(help="Training images: imagenette, cifar10 or folder:PATH.")],
    val: Annotated[str, typer.Option(help="Held-out images that the learning curve is measured on.")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint (safetensors, float16) goes.")],
    classifier: Annotated[str, typer.Option(help=f"The net to explain: {', '.join(models.CLASSIFIERS)}.")] = "efficientnet-lite0",
    class_conditional: Annotated[bool, typer.Option(help="Phang's optional mode: a mask for each class.")] = False,
    width: Annotated[list[int] | None, typer.Option(help="Dabkowski and Gal's decoder, fine to coarse; default 64 128 256.")] = None,
    embedding: Annotated[str, typer.Option(help="Where Dabkowski and Gal's classes start: normal or classifier.")] = "normal",
    area_ramp: Annotated[float, typer.Option(help="Share of the last phase over which the area penalty grows; 0 in the sources.")] = 0.0,
    images: Annotated[list[int] | None, typer.Option(help="Images to see, one number a phase; default the source's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default the source's.")] = None,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = masker_training.MaskerRecipe.lr,
    size: Annotated[int | None, typer.Option(help="Side of the training crops; default the classifier's.")] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between measurements and checkpoints.")] = 500,
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a masker network on a frozen classifier; a run that was stopped goes on where it was."""
    with _errors():
        check_out("out", out, ".safetensors")
        check_choice("classifier", classifier, list(models.CLASSIFIERS))
        preprocessing = "cifar10" if classifier.startswith("cifar10") else "imagenet"
        files = open_images(train, split="train", preprocessing=preprocessing)
        held_out = load_images(val, preprocessing=preprocessing)
        net = models.load_classifier(classifier, device=models.resolve_device(device))
        recipe = masker_training.MaskerRecipe(
            kind=kind,  # type: ignore[arg-type]
            class_conditional=class_conditional,
            widths=tuple(width or masker_training.MaskerRecipe.widths),
            embedding=embedding,  # type: ignore[arg-type]
            images=tuple(images) if images else None,
            area_ramp=area_ramp,
            batch_size=batch_size,
            lr=lr,
            size=size,
            eval_every=eval_every,
            seed=seed,
        )
        masker = masker_training.make_masker(net, masker_training.taps_of(classifier), recipe, held_out.images.shape[-1])
        out.parent.mkdir(parents=True, exist_ok=True)
        log = masker_training.train_masker(masker, net, files, held_out, recipe, state_path=out.with_suffix(".state"), n_workers=workers)
        trained = {"classifier": classifier, "recipe": asdict(recipe), "n_train": len(files.ids), "n_val": len(held_out), "log": log}
        save_masker(masker, out, trained)
    table = Table(*(name for name in log[-1]), title=f"{out}: learning curve, measured on {len(held_out)} held-out images")
    for row in log:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


runs = typer.Typer(no_args_is_help=False, invoke_without_command=True, help="What a store holds: list (the default), prune, export.")
app.add_typer(runs, name="runs")
StoreFolder = Annotated[Path, typer.Option("--store", help="The store's folder.")]


@runs.callback()
def runs_command(context: typer.Context, store: StoreFolder = Path("runs/demo/store")) -> None:
    """List the runs of a store with their progress, size and age."""
    if context.invoked_subcommand:
        return
    with _errors():
        kept = _existing(store)
        table = Table(title=str(store))
        for column in ("run", "rows", "missing", "size", "last change"):
            left = column in ("run", "missing")
            table.add_column(column, justify="left" if left else "right", no_wrap=column != "missing")
        for row in kept.overview():
            table.add_row(
                row.name or "(no run)", f"{row.done} of {row.rows}", ", ".join(row.missing) or "nothing", _bytes(row.size), row.age()
            )
    console.print(table)


@runs.command("prune")
def prune_command(
    store: StoreFolder = Path("runs/demo/store"),
    drop: Annotated[list[str] | None, typer.Option(help="First forget this run (name or its beginning).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove experiments that no run needs, and what crashes and damage left behind."""
    with _errors():
        kept = _existing(store)
        gone = kept.prune(drop=drop or (), dry_run=dry_run)
        for path in gone:
            console.print(f"{'would remove' if dry_run else 'removed'} {path}", soft_wrap=True)
        console.print(f"{len(gone)} removed" if not dry_run else f"{len(gone)} to remove")


@runs.command("export")
def export_command(
    out: Annotated[Path, typer.Argument(help="A .nc file (netCDF) to write.")],
    run: Annotated[str, typer.Option(help="Name of the run, or its beginning; of several the latest.")] = "table1",
    store: StoreFolder = Path("runs/demo/store"),
) -> None:
    """Write what is there of a run as one netCDF file, for publication."""
    with _errors():
        check_out("out", out, ".nc")
        results = open_results(_existing(store), run)
        out.parent.mkdir(parents=True, exist_ok=True)
        results.to_netcdf(f"{out}.part", engine="scipy")
        Path(f"{out}.part").replace(out)
    console.print(f"{out}: {dict(results.sizes)}; missing: {results.attrs['missing'] or 'nothing'}")


@app.command("compare")
def compare_command(
    run_a: Annotated[Path, typer.Argument(help="A run's output folder, or its store.")],
    run_b: Annotated[Path, typer.Argument(help="Another one.")],
    maps: Annotated[float, typer.Option(help="Largest difference of a learned mask that passes.")] = compare.MAPS,
    scores: Annotated[float, typer.Option(help="Largest difference of a probability, curve or score that passes.")] = compare.SCORES,
) -> None:
    """Print the largest differences between two runs; exit code 1 above the tolerances."""
    with _errors():
        table = compare.compare_stores(*(_existing(path / "store" if (path / "store").is_dir() else path) for path in (run_a, run_b)))
    shown = Table(title=f"{run_a} and {run_b}")
    for column in table.columns:
        shown.add_column(column, justify="left" if column in ("run", "method", "score", "where") else "right")
    for row in table.itertuples(index=False):
        shown.add_row(*(f"{v:.2g}" if isinstance(v, float) else str(v) for v in row))
    console.print(shown)
    worst = {kind: table[(table.score == "map") == (kind == "maps")].largest.max() for kind in ("maps", "scores")}
    limits = {"maps": maps, "scores": scores}
    beyond = [f"{kind}: {worst[kind]:.2g} > {limits[kind]:g}" for kind in worst if worst[kind] > limits[kind]]
    console.print("; ".join(beyond) if beyond else f"equal within {maps:g} (maps) and {scores:g} (scores)")
    if beyond:
        raise typer.Exit(1)


@app.command("info")
def info_command() -> None:
    """Versions, device and what is cached: what to quote with a number."""
    table = Table(show_header=False)
    for package in ("salkit", "torch", "torchvision", "captum", "xarray", "numpy", "scipy", "jupyterlab", "papermill"):
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "not installed")
    table.add_row("python", platform.python_version())
    table.add_row("device", _device_name(models.resolve_device()))
    table.add_row("threads, capability", f"{torch.get_num_threads()}, {torch.backends.cpu.get_cpu_capability()}")
    shipped = sorted((data_dir() / "checkpoints").glob("*.safetensors"))
    table.add_row("checkpoints", "\n".join(p.stem for p in shipped) or "none")
    downloads = data_dir() / "downloads"
    cached = sorted(p.name for p in downloads.iterdir()) if downloads.is_dir() else []
    table.add_row(f"downloads in {downloads}", "\n".join(cached) or "none")
    console.print(table)


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def _name_and_value(option: str, text: str) -> tuple[str, int | float | str | bool | None]:
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"{option}: expected NAME=VALUE, got {text!r}")
    if value.lower() in WORDS:
        return name, WORDS[value.lower()]
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, value


WORDS = {"true": True, "false": False, "none": None}


def _label_list(text: str) -> list[int]:
    try:
        return [int(a) for a in text.split(",")]
    except ValueError:
        raise ValueError(f"labels: expected class indices, comma-separated, got {text!r}") from None


def _existing(folder: Path) -> ResultStore:
    if not folder.is_dir():
        raise FileNotFoundError(f"store: expected a folder with results, got {folder}, which is not one")
    return ResultStore(folder)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


class _errors:
    """A wrong input ends in one clear line and exit code 1, not in a traceback; Ctrl-C in a line that says how to go on and code 130."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            Console(stderr=True).print("stopped. Finished shards are in the store; the same command goes on where it was.", style="yellow")
            gc.freeze()  # the interpreter would look through a million objects for two seconds
            raise typer.Exit(130)
        if isinstance(error, (ValueError, TypeError, OSError, ShardError, StoreError, WorkerError, reproduce.NotebookError)):
            Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1)


if __name__ == "__main__":
    app()

"""The command line: `python -m salkit` or `salkit`."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from salkit import models
from salkit.checks import check_choice, check_out
from salkit.commands import store as store_commands
from salkit.commands.options import Device, Executor, Seed, Store, Workers, console, errors, label_list, name_and_value
from salkit.data.files import data_dir, open_images
from salkit.data.images import load_distractors, load_images
from salkit.evaluation.evaluate import evaluate
from salkit.methods import METHODS, get_method, masker_training
from salkit.methods.masker import save_masker
from salkit.models import checkpoints, training
from salkit.models.zoo import cifar10_net
from salkit.report import reproduce, tables
from salkit.scores import PROTOCOLS
from salkit.studies import costs

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Completeness and soundness of saliency maps.", rich_markup_mode=None)


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
    with errors():
        parameters = dict(name_and_value("parameter", p) for p in parameter or [])
        where = {"output_dir": output, "store": store, "executor": executor, "workers": workers}
        index = reproduce.reproduce(profile, notebook=notebook, **where, parameters=parameters, console=console)  # type: ignore[arg-type]
        console.print(f"Open {index}")


@app.command("plan")
def plan_command(
    profile: Annotated[str, typer.Option(help="smoke, demo or paper.")] = "paper",
    device: Device = "auto",
) -> None:
    """Count a profile's passes and estimate its hours on this device."""
    with errors():
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
    with errors():
        check_choice("protocol", protocol, sorted(PROTOCOLS))
        check_choice("classifier", classifier, list(models.CLASSIFIERS))
        check_out("csv", csv, ".csv")
        settings = dict(name_and_value("set", s) for s in setting or [])
        methods = {name: get_method(name, preset, **settings) for name in method}  # type: ignore[arg-type]
        kind = "cifar10" if classifier.startswith("cifar10") else "imagenet"
        images = load_images(data, n=n, seed=seed, preprocessing=kind)
        chosen = label_list(labels) if labels else None
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
        with errors():
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
    with errors():
        check_out("out", out, ".safetensors")
        repeats = times or [1] * len(train)
        if len(repeats) != len(train):
            raise ValueError(f"times: expected one number for each --train, {len(train)}, got {len(repeats)}")
        sets = [load_images(name, split="train", preprocessing="cifar10", show_progress=True) for name in train]
        held_out = load_images(val, preprocessing="cifar10")
        torch.manual_seed(seed)
        model = cifar10_net(net).to(models.resolve_device(device))
        recipe = training.Recipe(epochs=epochs, seed=seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        log = training.train_classifier(
            model, list(zip(sets, repeats, strict=True)), held_out, recipe, state_path=out.with_suffix(".state")
        )
        checkpoints.save_checkpoint(model, out, torch.float16)
        model.half().float()  # what a reader of the float16 checkpoint gets
        exact = training.accuracy(model, held_out)
    for row in log:
        console.print(f"epoch {row['epoch']:3.0f}  loss {row['loss']:.3f}  accuracy {row['val_accuracy']:.3f}")
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
    with errors():
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


app.add_typer(store_commands.runs, name="runs")
app.command("compare")(store_commands.compare_command)


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


if __name__ == "__main__":
    app()

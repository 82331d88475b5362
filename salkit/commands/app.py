"""The command line: `python -m salkit` or `salkit`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from salkit import models
from salkit.atomic import atomic_write
from salkit.checks import check_choice, check_out
from salkit.commands.options import Device, Executor, Seed, Store, Workers, console, errors, label_list, name_and_value, print_table
from salkit.commands.store import compare_command, runs
from salkit.commands.study import study_command, verify_command
from salkit.commands.training import train_classifier_command, train_masker_command
from salkit.data.files import data_dir
from salkit.data.images import load_distractors, load_images
from salkit.evaluation.evaluate import evaluate
from salkit.methods import METHODS, get_method
from salkit.report.runner import reproduce
from salkit.report.tables import tidy_table
from salkit.scores import PROTOCOLS
from salkit.studies import costs

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Completeness and soundness of saliency maps.", rich_markup_mode=None)


@app.command("reproduce")
def reproduce_command(
    profile: Annotated[str, typer.Option(help="smoke, demo, overnight or paper.")] = "demo",
    notebook: Annotated[str | None, typer.Option(help="Only this notebook (name or its beginning).")] = None,
    output: Annotated[Path | None, typer.Option(help="Where results go; default runs/PROFILE.")] = None,
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE for seed, device, ...")] = None,
    store: Store = None,
    executor: Executor = "serial",
    workers: Workers = None,
) -> None:
    """Execute the notebooks in order and write the report. Results already in the store are not computed again."""
    with errors():
        parameters = dict(name_and_value("parameter", p) for p in parameter or [])
        where = {"output_dir": output, "store": store, "executor": executor, "workers": workers}
        index = reproduce(profile, notebook=notebook, **where, parameters=parameters, console=console)  # type: ignore[arg-type]
        console.print(f"Open {index}")


@app.command("plan")
def plan_command(profile: Annotated[str, typer.Option(help="smoke, demo, overnight or paper.")] = "paper", device: Device = "auto") -> None:
    """Count a profile's passes and estimate its hours on this device."""
    with errors():
        planned = costs.plan(profile, device)
        device = models.resolve_device(device)
    counts = [(cost.notebook, cost.forward, cost.forward_backward, cost.hours) for cost in planned]
    counts.append(("together", sum(c.forward for c in planned), sum(c.forward_backward for c in planned), sum(c.hours for c in planned)))
    rows = [[name, f"{forward:,}", f"{backward:,}", f"{hours:,.2f}"] for name, forward, backward, hours in counts]
    columns = ["notebook", "forward passes", "forward-backward passes", "hours"]
    print_table(f"profile {profile} on {_device_name(device)}", columns, rows, left=["notebook"], total=True)
    console.print("A pass is of one image. The rates were measured just now, on a few steps with random weights.")
    console.print("Notebook 01 needs no passes and takes minutes.")


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
        # Masks are learned with the protocol's loss.
        loss = {"learned_mask": {"loss": PROTOCOLS[protocol].loss}}
        methods = {name: get_method(name, preset, **loss.get(name, {}) | settings) for name in method}  # type: ignore[arg-type]
        kind = "cifar10" if classifier.startswith("cifar10") else "imagenet"
        images = load_images(data, n=n, seed=seed, preprocessing=kind)
        chosen = label_list(labels) if labels else None
        if chosen is None and kind == "imagenet":
            chosen = sorted(set(images.labels[images.labels >= 0].tolist()))
        net = models.load_classifier(classifier, chosen, PROTOCOLS[protocol].softmax_over)
        pool = load_distractors(data, seed=seed, preprocessing=kind)
        given: dict[str, Any] = {"distractors": pool, "protocol": protocol, "n_steps": points, "name": "_".join(method)}
        given |= {"seed": seed, "device": device, "store": store, "executor": executor, "workers": workers}
        scores = evaluate(net, images, methods, **given)
        table = tidy_table(scores).drop(columns=["paper", "verdict"])
    rows = []
    for row in table.itertuples():
        interval = f"{row.low:.3f} to {row.high:.3f}" if row.n > 1 else "too few images"
        rows.append([row.method, row.metric, f"{row.ours:.3f}" if row.n else "", interval, str(row.n)])
    title = f"{len(images)} images of {data}, {classifier}, protocol {protocol}"
    print_table(title, ["method", "metric", "mean", "95 % interval", "n"], rows, left=["method", "metric"])
    if csv:
        with errors():
            csv.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(csv) as part:
                table.to_csv(part, index=False)
        console.print(f"written to {csv}")


app.command("study")(study_command)
app.command("verify")(verify_command)
app.command("train-classifier")(train_classifier_command)
app.command("train-masker")(train_masker_command)
app.add_typer(runs, name="runs")
app.command("compare")(compare_command)


@app.command("info")
def info_command() -> None:
    """Print versions, device and cached files: quote these with your numbers."""
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

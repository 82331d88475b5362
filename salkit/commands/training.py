"""Commands that train a classifier or a masker."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from salkit import models
from salkit.checks import check_choice, check_out
from salkit.commands.options import Device, Seed, console, errors, print_table
from salkit.data.files import open_images
from salkit.data.images import load_images
from salkit.methods import masker_training
from salkit.methods.masker import save_masker
from salkit.models import checkpoints, training
from salkit.models.zoo import cifar10_net


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
    """Train a CIFAR-10 classifier. A stopped training continues where it was."""
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
        model.half().float()  # the rounded weights that the checkpoint holds
        exact = training.accuracy(model, held_out)
    for row in log:
        console.print(f"epoch {row['epoch']:3.0f}  loss {row['loss']:.3f}  accuracy {row['val_accuracy']:.3f}")
    console.print(f"{out}: accuracy {exact:.4f} on {len(held_out)} images of {val}")


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
    """Train a masker network on a frozen classifier. A stopped training continues where it was."""
    with errors():
        check_out("out", out, ".safetensors")
        check_choice("classifier", classifier, list(models.CLASSIFIERS))
        preprocessing = "cifar10" if classifier.startswith("cifar10") else "imagenet"
        files = open_images(train, split="train", preprocessing=preprocessing)
        held_out = load_images(val, preprocessing=preprocessing)
        net = models.load_classifier(classifier, device=models.resolve_device(device))
        given: dict[str, Any] = {"kind": kind, "class_conditional": class_conditional, "embedding": embedding, "area_ramp": area_ramp}
        given |= {"widths": tuple(width or masker_training.MaskerRecipe.widths), "images": tuple(images) if images else None}
        given |= {"batch_size": batch_size, "lr": lr, "size": size, "eval_every": eval_every, "seed": seed}
        recipe = masker_training.MaskerRecipe(**given)
        masker = masker_training.make_masker(net, masker_training.taps_of(classifier), recipe, held_out.images.shape[-1])
        out.parent.mkdir(parents=True, exist_ok=True)
        log = masker_training.train_masker(masker, net, files, held_out, recipe, state_path=out.with_suffix(".state"), n_workers=workers)
        trained = {"classifier": classifier, "recipe": asdict(recipe), "n_train": len(files.ids), "n_val": len(held_out), "log": log}
        save_masker(masker, out, trained)
    rows = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in log]
    print_table(f"{out}: learning curve, measured on {len(held_out)} held-out images", list(log[-1]), rows, left=["phase"])

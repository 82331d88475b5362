"""Training the CIFAR-10 classifier that the kit ships: small images, kept in memory, augmented a whole batch at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salkit.checks import check_integer, check_settings
from salkit.data.images import ImageSet
from salkit.models.checkpoints import load_state, load_training_state
from salkit.progress import progress_bar


@dataclass(frozen=True)
class Recipe:
    """Settings of `train_classifier`; the defaults trained the checkpoint in `data/checkpoints`."""

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.2
    padding: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, counts=("epochs", "batch_size"), weights=("momentum", "weight_decay"), rates=("lr",), shares=("warmup",))
        for name in ("padding", "seed"):
            check_integer(name, getattr(self, name))


def train_classifier(
    net: nn.Module,
    sets: list[tuple[ImageSet, int]],
    val: ImageSet,
    recipe: Recipe | None = None,
    *,
    state_path: str | Path | None = None,
    show_progress: bool = True,
) -> list[dict[str, float]]:
    """Train `net` in place: cross-entropy, Nesterov SGD, one-cycle learning rate, random crops and flips, bfloat16 autocast.

    Args:
        net: maps `(N, 3, H, W)` to logits; trained on the device it is on.
        sets: pairs of images and how often each of their images is seen an epoch.
        val: images the accuracy of each epoch is measured on.
        recipe: sizes and rates; default `Recipe()`.
        state_path: where to keep the state after each epoch; training goes on from it when it exists.
        show_progress: a bar over the steps.

    Returns:
        One row an epoch: `epoch`, `loss`, `val_accuracy`, `seconds`.

    Raises:
        ValueError: no training images, or some without a label; a state that is damaged or of another net.

    Example:
        >>> log = train_classifier(cifar10_net("resnet20"), [(train, 1)], val, Recipe(epochs=1))  # doctest: +SKIP
    """
    recipe = recipe or Recipe()
    if not sets or any((images.labels < 0).any() for images, _ in sets):
        raise ValueError("sets: expected at least one set of images, all of them labelled")
    device = next(net.parameters()).device
    net.to(memory_format=torch.channels_last)
    images = torch.cat([s.images for s, _ in sets]).to(device)
    labels = torch.cat([s.labels for s, _ in sets]).to(device)
    repeats = torch.cat([torch.full((len(s),), times) for s, times in sets])
    order = torch.arange(len(images)).repeat_interleave(repeats)
    steps = len(order) // recipe.batch_size
    optimizer = torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=max(steps * recipe.epochs, 1), pct_start=recipe.warmup, cycle_momentum=False
    )
    log: list[dict[str, float]] = []
    if state_path and Path(state_path).exists():
        state = load_training_state(state_path, ("net", "optimizer", "schedule", "log"), device)
        load_state(net, state["net"], state_path)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        log = state["log"]
    for epoch in range(len(log), recipe.epochs):
        start, total = time.perf_counter(), 0.0
        # Seeded by the epoch, so that a resumed run sees what an undisturbed one would have seen.
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        batches = _batches(images, labels, order, recipe, generator)
        net.train()
        for inputs, target in progress_bar(batches, show_progress, desc=f"epoch {epoch + 1}/{recipe.epochs}", total=steps, leave=False):
            with torch.autocast(device.type, torch.bfloat16):
                logits = net(inputs.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        row = {"epoch": epoch + 1, "loss": total / max(steps, 1), "val_accuracy": accuracy(net, val)}
        log.append(row | {"seconds": time.perf_counter() - start})
        if state_path:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "log": log}
            torch.save(state, f"{state_path}.tmp")
            os.replace(f"{state_path}.tmp", state_path)
    net.eval()
    return log


@torch.inference_mode()
def accuracy(net: nn.Module, images: ImageSet, batch_size: int = 500) -> float:
    """Share of `images` that the net (or `Classifier` over all classes) labels correctly, in [0, 1]; float32, eval mode."""
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    batches = zip(images.images.split(batch_size), images.labels.split(batch_size), strict=True)
    correct = sum((net(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in batches)
    net.train(was_training)
    return correct / len(images)


def _batches(images: Tensor, labels: Tensor, order: Tensor, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches with a random shift (reflected borders) and flip for every image; the last short batch is dropped."""
    side, pad = images.shape[-1], recipe.padding
    grid = torch.arange(side)
    for chosen in order[torch.randperm(len(order), generator=generator)].split(recipe.batch_size):
        n = len(chosen)
        if n < recipe.batch_size:
            return
        shift = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator)
        flip = torch.rand(n, generator=generator) < 0.5
        columns = torch.where(flip[:, None], grid.flip(0), grid) + shift[:, :1]
        rows = grid + shift[:, 1:]
        padded = F.pad(images[chosen.to(images.device)], (pad,) * 4, mode="reflect")
        index = (rows[:, None, :, None], columns[:, None, None, :])
        batch = padded[torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None], *index]
        yield batch, labels[chosen.to(labels.device)]

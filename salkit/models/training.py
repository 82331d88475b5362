"""Training that can be stopped and resumed, and how the CIFAR-10 classifier that the kit ships is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salkit.checks import check_integer, check_settings
from salkit.data.images import ImageSet
from salkit.models.checkpoints import load_state, load_training_state
from salkit.progress import progress_bar


class ResumableTraining:
    """Training in rounds, such as epochs. After each round the log gets a row, and the state is written to a file.

    Args:
        net: the net to train, on the device it is on.
        recipe: settings of the training; a state with others is refused.
        path: file of the state; training goes on from it if it exists. None keeps no state.

    Attributes:
        log: one row a finished round.

    Raises:
        ValueError: the file is damaged, or of another net or recipe.
    """

    def __init__(self, net: nn.Module, recipe: object, path: str | Path | None = None) -> None:
        self.net, self.recipe, self.path = net, str(recipe), path
        self.log: list[dict[str, Any]] = []
        self._saved: dict[str, Any] = {}
        if path and Path(path).exists():
            device = next(net.parameters()).device
            self._saved = load_training_state(path, ("net", "optimizer", "schedule", "phase", "log", "recipe"), device)
            load_state(net, self._saved["net"], path)
            self.log = self._saved["log"]
            if self._saved["recipe"] != self.recipe:
                raise ValueError(
                    f"recipe: expected {self._saved['recipe']}, as in the interrupted training in {path}, got {self.recipe}; delete "
                    "the file to train from the start"
                )

    def finished(self, phase: str = "") -> int:
        """How many rounds of a phase are done."""
        return sum(row.get("phase", "") == phase for row in self.log)

    def run(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        n_rounds: int,
        batches: Callable[[int], Iterable[tuple[Any, ...]]],
        loss: Callable[..., Tensor],
        measure: Callable[[int, float], dict[str, Any]],
        *,
        phase: str = "",
        clip: float | None = None,
    ) -> None:
        """Train the rounds that are not done yet.

        Args:
            optimizer: of the parameters to train; it and the `schedule` step after every batch.
            schedule: of the learning rate.
            n_rounds: rounds in all.
            batches: the batches of a round, counted from 0 and asked for in order. A resumed training has to get the same ones.
            loss: called with the items of a batch.
            measure: called with the round and its mean loss; returns the row of the log.
            phase: name of this part of the training, if it has several; then a row's `phase` has to be that name.
            clip: largest norm of the gradient.
        """
        if self._saved.get("phase") == phase:
            optimizer.load_state_dict(self._saved["optimizer"])
            schedule.load_state_dict(self._saved["schedule"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for number in range(self.finished(phase), n_rounds):
            self.net.train()
            total, steps = 0.0, 0
            for batch in batches(number):
                value = loss(*batch)
                for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
                    parameter.grad = gradient
                if clip is not None:
                    nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()
                schedule.step()
                total, steps = total + value.item(), steps + 1
            self.log.append(measure(number, total / max(steps, 1)))
            if self.path:
                state = {"net": self.net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                torch.save(state | {"phase": phase, "log": self.log, "recipe": self.recipe}, f"{self.path}.tmp")
                os.replace(f"{self.path}.tmp", self.path)
        self.net.eval()


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
        state_path: file of the state after each epoch; training goes on from it if it exists.
        show_progress: a bar over the steps.

    Returns:
        One row an epoch: `epoch`, `loss`, `val_accuracy`.

    Raises:
        ValueError: no training images, or some without a label; a state that is damaged, or of another net or recipe.

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
    training = ResumableTraining(net, recipe, state_path)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        shuffled = _batches(images, labels, order, recipe, generator)
        yield from progress_bar(shuffled, show_progress, desc=f"epoch {epoch + 1}/{recipe.epochs}", total=steps, leave=False)

    def loss(inputs: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits = net(inputs.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), target)

    def measure(epoch: int, mean_loss: float) -> dict[str, float]:
        return {"epoch": epoch + 1, "loss": mean_loss, "val_accuracy": accuracy(net, val)}

    training.run(optimizer, schedule, recipe.epochs, batches, loss, measure)
    return training.log


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

"""Training the masker networks of Dabkowski and Gal and of Phang et al. over a frozen classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from salkit.checks import check_choice, check_integer, check_settings, is_integer
from salkit.data.files import PREPROCESSING, ImageFiles
from salkit.data.images import ImageSet
from salkit.methods.dabkowski_gal import DabkowskiGalNet
from salkit.methods.masker import Masker, Phase
from salkit.methods.phang import PhangNet
from salkit.models.classifier import Classifier
from salkit.models.training import ResumableTraining
from salkit.models.zoo import FEATURE_TAPS
from salkit.progress import progress_bar


@dataclass(frozen=True)
class MaskerRecipe:
    """How a masker is made and trained; the defaults are its source's.

    Attributes:
        kind: `"dabkowski_gal"` or `"phang"`.
        class_conditional: Phang's optional mode.
        widths: of Dabkowski and Gal's decoder, fine to coarse.
        classes: class indices with an embedding; None for all classes of the net.
        embedding: start of Dabkowski and Gal's class embedding: `"normal"` for random draws, `"classifier"` for the weights of the
            classifier's last layer, which are meaningful for classes without a training image, too.
        images: how many training images are seen, a number a phase; None for the source's.
        batch_size: None for the source's.
        size: side of the training crops; None for the size of the classifier's inputs.
        area_ramp: share of a phase over which the penalty on the mask's area grows to its full weight; 0 in the sources. With full weight
            from the start, a short training of Dabkowski and Gal's masker ends in empty masks.
        lr, weight_decay: of Adam.
        clip: largest norm of the gradient (Phang et al.).
        eval_every: steps between measurements on held-out images; the state is saved at each of them.
    """

    kind: Literal["dabkowski_gal", "phang"]
    class_conditional: bool = False
    widths: tuple[int, ...] = (64, 128, 256)
    classes: tuple[int, ...] | None = None
    embedding: Literal["normal", "classifier"] = "normal"
    images: tuple[int, ...] | None = None
    batch_size: int | None = None
    size: int | None = None
    area_ramp: float = 0.0
    lr: float = 1e-3
    weight_decay: float = 1e-4
    clip: float = 10.0
    eval_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, sorted(Masker.KINDS))
        check_choice("embedding", self.embedding, ("normal", "classifier"))
        counts, flags = ("batch_size", "size", "eval_every"), ("class_conditional",)
        check_settings(self, counts=counts, weights=("weight_decay", "area_ramp"), rates=("lr", "clip"), flags=flags)
        check_integer("seed", self.seed)
        for width in self.widths:
            check_integer("widths", width, 1)


def make_masker(classifier: Classifier, taps: Sequence[str], recipe: MaskerRecipe, side: int = 224) -> Masker:
    """An untrained masker for a classifier.

    Args:
        classifier: the masker reads its features.
        taps: names of the classifier's modules to read, fine to coarse; Phang's masker reads the last two.
        recipe: architecture and seed.
        side: of an image, in pixels.

    Raises:
        ValueError: unknown taps, or an embedding that cannot start from the classifier's weights.

    Example:
        >>> classifier = load_classifier("cifar10-resnet20")  # doctest: +SKIP
        >>> make_masker(classifier, FEATURE_TAPS["cifar10-resnet20"], MaskerRecipe("phang"), side=32)  # doctest: +SKIP
    """
    taps = tuple(taps) if recipe.kind == "dabkowski_gal" else tuple(taps)[-2:]
    device = next(classifier.parameters()).device
    with torch.no_grad():
        logits, features = classifier.features(torch.zeros(1, 3, side, side, device=device), taps)
    channels = [f.shape[1] for f in features]
    classes = logits.shape[1] if recipe.classes is None else recipe.classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.kind == "phang":
            code = classifier.class_weights().shape[1] if recipe.class_conditional else 0
            return PhangNet(taps, channels, classes, class_conditional=recipe.class_conditional, class_width=code).to(device)
        masker = DabkowskiGalNet(taps, channels, classes, recipe.widths)
    if recipe.embedding == "classifier":
        weights = classifier.class_weights()
        if weights.shape[1] != channels[-1]:
            raise ValueError(f"embedding: expected class weights of length {channels[-1]}, as the last tap has, got {weights.shape[1]}")
        rows = weights if recipe.classes is None else weights[list(recipe.classes)]
        masker.embedding.weight.data.copy_(rows)
    return masker.to(device)


def train_masker(
    masker: Masker,
    classifier: Classifier,
    train: ImageFiles,
    val: ImageSet,
    recipe: MaskerRecipe,
    *,
    state_path: str | Path | None = None,
    n_workers: int = 0,
    show_progress: bool = True,
) -> list[dict[str, Any]]:
    """Train a masker in place: Adam on random crops and flips; the classifier stays as it is.

    Args:
        masker: from `make_masker` with the same recipe; trained on the device it is on.
        classifier: the net that is explained.
        train: labelled images, decoded as they are needed.
        val: held-out images that the masker is measured on after every `eval_every` steps.
        recipe: sizes and rates.
        state_path: file of the state at every measurement; training goes on from it if it exists.
        n_workers: processes that decode images.
        show_progress: a bar over the steps.

    Returns:
        The learning curve, one row a measurement: `phase`, `step` (in its phase), `images` (seen in all), `loss` (mean since the last
        row), and the columns of `measure`.

    Raises:
        ValueError: no training images, or some without a label; a state that is damaged, or of another masker or recipe.
    """
    if not len(train.ids) or min(train.labels) < 0:
        raise ValueError("train: expected at least one image, all of them labelled")
    training, device = ResumableTraining(masker, recipe, state_path), next(masker.parameters()).device

    def train_stage(stage: Phase, seen: int) -> None:
        """Train one phase, after `seen` images of those before it."""
        adam = torch.optim.Adam(stage.parameters, recipe.lr, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.StepLR(adam, stage.decay_every)
        first = min(training.finished(stage.name) * recipe.eval_every, stage.n_steps)
        loader = DataLoader(Batches(train, stage.batch_size, recipe, range(first, stage.n_steps)), batch_size=None, num_workers=n_workers)
        bar = progress_bar(loader, show_progress, desc=f"{recipe.kind}, {stage.name}", total=stage.n_steps, initial=first)
        steps = enumerate(bar, first + 1)

        def loss(step: int, batch: tuple[Tensor, Tensor]) -> Tensor:
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + seen + step)
            area = min(1.0, step / (recipe.area_ramp * stage.n_steps)) if recipe.area_ramp else 1.0
            return masker.loss(stage.name, classifier, batch[0].to(device), batch[1].to(device), generator, area)

        def row(number: int, mean_loss: float) -> dict[str, Any]:
            step = min((number + 1) * recipe.eval_every, stage.n_steps)
            images = seen + step * stage.batch_size
            return {"phase": stage.name, "step": step, "images": images, "loss": mean_loss} | measure(masker, classifier, val)

        every = recipe.eval_every
        rounds = -(-stage.n_steps // every)
        training.run(adam, schedule, rounds, lambda _: islice(steps, every), loss, row, phase=stage.name, clip=recipe.clip)

    seen = 0
    for stage in stages(masker, recipe):
        train_stage(stage, seen)
        seen += stage.n_steps * stage.batch_size
    return training.log


def stages(masker: Masker, recipe: MaskerRecipe) -> list[Phase]:
    """The phases at the sizes of a recipe. The learning rate decays after the same share of the steps as in the source.

    Raises:
        ValueError: `recipe.images` has another length than the phases.
    """
    phases = masker.phases()
    images = [p.batch_size * p.n_steps for p in phases] if recipe.images is None else recipe.images
    if len(images) != len(phases) or not all(is_integer(n, 1) for n in images):
        raise ValueError(f"images: expected a number >= 1 for each phase {[p.name for p in phases]}, got {images}")
    chosen = []
    for p, n_images in zip(phases, images, strict=True):
        batch = recipe.batch_size or p.batch_size
        n_steps = max(1, n_images // batch)
        chosen.append(Phase(p.name, p.parameters, batch, n_steps, max(1, p.decay_every * n_steps // p.n_steps)))
    return chosen


@torch.no_grad()
def measure(masker: Masker, classifier: Classifier, images: ImageSet, batch_size: int = 40) -> dict[str, float]:
    """Quality of a masker on images with known labels, all numbers in [0, 1].

    Returns:
        `area`: mean of the masks of the true labels; `area_false`: the same for a false label (that of the image before it);
        `whole`, `kept`, `removed`: mean probability of the true label on the whole image, on the pixels that the mask keeps (the others
        are gray), and on the other pixels alone.
    """
    masker.eval()
    device = next(masker.parameters()).device
    false = images.labels.roll(1)
    sums: dict[str, float] = dict.fromkeys(("area", "area_false", "whole", "kept", "removed"), 0.0)
    parts = (images.images.split(batch_size), images.labels.split(batch_size), false.split(batch_size))
    for inputs, labels, others in (tuple(t.to(device) for t in part) for part in zip(*parts, strict=True)):
        masks = masker.masks(classifier, inputs, labels)
        sums["area"] += masks.mean((1, 2, 3)).sum().item()
        sums["area_false"] += masker.masks(classifier, inputs, others).mean((1, 2, 3)).sum().item()
        for name, shown in (("whole", inputs), ("kept", inputs * masks), ("removed", inputs * (1 - masks))):
            prob = classifier.fast(inputs).logits(shown).softmax(1)
            sums[name] += prob.gather(1, labels[:, None]).sum().item()
    return {name: value / len(images) for name, value in sums.items()}


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of random resized crops and flips. The batch of a step depends on nothing but the recipe and the step."""

    def __init__(self, files: ImageFiles, batch_size: int, recipe: MaskerRecipe, steps: range) -> None:
        pre = PREPROCESSING[files.preprocessing]
        # Least area of a crop in the sources: Dabkowski and Gal 0.3 of the image, Phang et al. torchvision's default.
        least = 0.3 if recipe.kind == "dabkowski_gal" else 0.08
        crop = transforms.RandomResizedCrop(recipe.size or pre.size, scale=(least, 1.0), antialias=True)
        flip = transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(pre.mean, pre.std)])
        self.files, self.batch_size, self.seed, self.steps = files, batch_size, recipe.seed * 1_000_003, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: images `(n, 3, H, W)` and class indices `(n,)`. Every epoch is a permutation of the images."""
        n, total = self.batch_size, len(self.files.ids)
        places = range(self.steps[index] * n, (self.steps[index] + 1) * n)
        epochs = {p // total for p in places}
        orders = {e: torch.randperm(total, generator=torch.Generator().manual_seed(self.seed + e)) for e in epochs}
        chosen = [int(orders[p // total][p % total]) for p in places]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + places[0])
            images = torch.stack([self.transform(self.files.open(i)) for i in chosen])
        return images, torch.tensor([self.files.labels[i] for i in chosen])


def taps_of(name: str) -> tuple[str, ...]:
    """The taps of one of the kit's classifiers.

    Raises:
        ValueError: unknown name.
    """
    check_choice("classifier", name, sorted(FEATURE_TAPS))
    return FEATURE_TAPS[name]

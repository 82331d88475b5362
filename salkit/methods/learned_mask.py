"""The paper's method (Section 4): learn a mask that keeps the label probable when everything else is hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from salkit import masking
from salkit.checks import check_choice, check_settings
from salkit.methods.base import Cost, LearnedMap
from salkit.methods.pairs import Pairs
from salkit.models.classifier import Classifier, PrecisionChoice, resolve_precision
from salkit.models.passes import pass_by_pass, pass_size
from salkit.progress import progress_bar

Loss = Literal["nll", "released"]
Name = Literal["paper", "settled"]


@dataclass(frozen=True)
class Schedule:
    """How a mask is learned.

    Attributes:
        n_steps: of Adam.
        lr: Adam's rate.
        n_distractors: images that a step draws.
        stratified: whether all images of the pool are drawn before one comes again.
        decay: whether the rate falls to 0, by the same amount every step.
    """

    n_steps: int
    lr: float
    n_distractors: int
    stratified: bool
    decay: bool


SCHEDULES: dict[Name, Schedule] = {
    "paper": Schedule(2000, 0.05, 10, stratified=False, decay=False),
    "settled": Schedule(500, 0.3, 1, stratified=True, decay=True),
}
"""As published, and a schedule of a fortieth of its passes. More passes do not change its scores: notebook 07 shows that."""


@dataclass(frozen=True)
class LearnedMask(LearnedMap):
    """Masks by optimisation, Equation 4: minimise over M  `E[loss(f, x~, a)] + tv * TV(M^s) + l1 * ||M^s||_1`.

    M is the sigmoid of logits `(H/s, W/s)` that start at 0, upsampled bilinearly by s; `x~ = M^s x + (1 - M^s) infill`; Adam.
    The regularisers are sums over the full-resolution mask. Pairs do not interact: losses are summed over them and Adam works elementwise.
    On a CPU an image's pairs go through the net by themselves, in passes of one size, so that their masks do not depend on other images,
    on threads or on workers. Another processor rounds differently. Adam amplifies that on nets with kinks, until the masks differ visibly
    while their scores stay close.

    Args:
        scale: s, the factor a mask is upsampled by.
        tv: weight of the total variation, the paper's lTV.
        l1: weight of the mask's area; 2e-5 at 224 pixels as released. The released function's default, 1e-3, fits 32 pixels;
            both are about 1 / (H W).
        infill: `"random_image"` from the distractors (Equation 2), `"gray"` (0) or `"blur"`.
        loss: `"nll"` is the text, the mean over distractors of `-log f(x~, a)`. `"released"` is the published code: the
            probabilities are averaged over the distractors, and cross-entropy takes that average for logits.
        schedule: `"paper"` as published, `"settled"` with a fortieth of the passes; see `SCHEDULES`.
        n_steps: Adam steps; None for the schedule's, as for the next two.
        lr: Adam's learning rate; `"settled"` lowers it to 0 in equal steps.
        n_distractors: images drawn for every step; with gray and blur one composite does.
        precision: of the passes; logits, losses and Adam are float32. `"auto"` is bfloat16 where that is faster
            (`resolve_precision`).
        internal_batch_size: composites a forward pass at most; None chooses by image size.
        show_progress: a bar over the batches of pairs.

    Cost: `n_steps * n_distractors` forward-backward passes a pair (`n_steps` with gray or blur).

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> [LearnedMask(schedule=name).cost().forward_backward for name in ("paper", "settled")]
        [20000, 500]
    """

    scale: int = 4
    tv: float = 0.01
    l1: float = 2e-5
    infill: masking.Infill = "random_image"
    loss: Loss = "nll"
    schedule: Name = "paper"
    n_steps: int = None  # type: ignore[assignment]  # set from the schedule
    lr: float = None  # type: ignore[assignment]
    n_distractors: int = None  # type: ignore[assignment]
    precision: PrecisionChoice = "float32"
    internal_batch_size: int | None = None
    show_progress: bool = False

    kept_as = "logits"  # what `learn` returns and a store keeps

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, sorted(SCHEDULES))
        for name in ("n_steps", "lr", "n_distractors"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(SCHEDULES[self.schedule], name))
        counts = ("scale", "n_steps", "n_distractors", "internal_batch_size")
        check_settings(self, counts=counts, weights=("tv", "l1"), rates=("lr",), flags=("show_progress",))
        check_choice("infill", self.infill, masking.INFILLS)
        check_choice("loss", self.loss, get_args(Loss))
        check_choice("precision", self.precision, get_args(PrecisionChoice))

    @property
    def composites_per_step(self) -> int:
        """Composites a pair needs a step."""
        return self.n_distractors if self.infill == "random_image" else 1

    def cost(self) -> Cost:
        """`n_steps * n_distractors` forward-backward passes a pair (`n_steps` with gray or blur)."""
        return Cost(forward_backward=self.n_steps * self.composites_per_step)

    def resolved(self, classifier: Classifier, device: torch.device) -> LearnedMask:
        """With the precision that `"auto"` means there."""
        return replace(self, precision=resolve_precision(self.precision, classifier, device))

    def _learn(self, pairs: Pairs) -> Tensor:
        """The masks' logits `(N, H/s, W/s)`; see `LearnedMap`.

        Distractors are drawn with replacement for every step, or (`"settled"`) each of the pool in random order before one comes again; an
        image that equals the explained one is left out of its draws.

        Raises:
            ValueError: the image side is no multiple of `scale`; random-image infill without a usable distractor.
        """
        classifier, inputs, target, distractors, seed, names = pairs
        if distractors is not None and distractors.ndim == 4:
            distractors = distractors.to(memory_format=torch.channels_last)  # here, or every pass would copy the pool
        size = pass_size(inputs, self.composites_per_step, self.internal_batch_size)
        with progress_bar(None, self.show_progress, total=len(inputs), unit="pair", desc="learning masks") as bar:

            def learn(rows: Tensor) -> Tensor:
                *_, logits = self.trajectory(classifier, inputs[rows], target[rows], distractors, seed, [names[i] for i in rows])
                bar.update(len(rows))
                return logits

            return pass_by_pass(learn, names, size, inputs.device)

    def trajectory(
        self,
        classifier: Classifier,
        inputs: Tensor,
        target: Tensor,
        distractors: Tensor | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> Iterator[Tensor]:
        """Logits `(N, H/s, W/s)` after every step, all pairs in one pass; a tensor that the next step changes. Arguments as for `learn`.

        Raises:
            ValueError: the image side is no multiple of `scale`; random-image infill without a usable distractor.
        """
        pairs = Pairs.checked(classifier, inputs, target, distractors, seed, ids)
        n, _, height, width = inputs.shape
        if height % self.scale or width % self.scale:
            raise ValueError(f"scale: expected a divisor of the image sides {(height, width)}, got {self.scale}")
        pool, draws = self._infills(pairs)
        net = classifier.fast(inputs, resolve_precision(self.precision, classifier, inputs.device))
        logits = inputs.new_zeros(n, 1, height // self.scale, width // self.scale, requires_grad=True)
        adam = torch.optim.Adam([logits], lr=self.lr)
        column = net.scope_index(target)
        # Composites are made as the net wants them, channels last and in its precision, so that nothing is copied on the way.
        shown, hidden = (x.permute(0, 2, 3, 1).to(net.dtype).contiguous() for x in (inputs, pool))
        for i, step in enumerate(draws.to(inputs.device).unbind(1)):
            if SCHEDULES[self.schedule].decay:
                adam.param_groups[0]["lr"] = self.lr * (1 - i / self.n_steps)
            masks = masking.upsample(logits.sigmoid(), self.scale)
            infill = hidden.index_select(0, step.flatten()).unflatten(0, step.shape)  # faster than hidden[step]
            composites = masking.channels_last_composite(shown[:, None], masks.to(net.dtype), infill)
            log_probs = net.scope_log_probs(composites).unflatten(0, step.shape)
            loss = self._label_loss(log_probs, column).sum()
            loss = loss + self.tv * masking.total_variation(masks).sum() + self.l1 * masking.l1_norm(masks).sum()
            (logits.grad,) = torch.autograd.grad(loss, [logits])
            adam.step()
            yield logits.detach().squeeze(1)

    def heatmaps(self, learned: Tensor, size: Sequence[int]) -> Tensor:
        """The masks `(N, H, W)` in (0, 1)."""
        del size
        return masking.upsample(learned[:, None].sigmoid(), self.scale).squeeze(1)

    def _infills(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """What hides the pixels: a pool of images, and which of them each pair sees at each step, `(N, n_steps, composites_per_step)`."""
        inputs, distractors, n = pairs.inputs, pairs.distractors, len(pairs.inputs)
        if self.infill == "gray":
            return torch.zeros_like(inputs[:1]), torch.zeros(n, self.n_steps, 1, dtype=torch.int64)
        if self.infill == "blur":
            return masking.blur(inputs), torch.arange(n)[:, None, None].expand(n, self.n_steps, 1)
        if distractors is None or distractors.shape[1:] != inputs.shape[1:] or not len(distractors):
            expected, got = tuple(inputs.shape[1:]), None if distractors is None else tuple(distractors.shape)
            raise ValueError(f"distractors: infill='random_image' expects images of shape (P, *{expected}), got {got}")
        pool = distractors.to(inputs)
        draws = np.empty((n, self.n_steps, self.n_distractors), np.int64)
        usable: dict[str, np.ndarray] = {}
        for i, (name, generator) in enumerate(zip(pairs.names, pairs.generators("distractors"), strict=True)):
            if name not in usable:
                usable[name] = (pool != inputs[i]).flatten(1).any(1).nonzero().flatten().cpu().numpy()
            if not len(usable[name]):
                raise ValueError(f"distractors: expected an image other than the explained one ({name}), got only that one")
            draws[i] = usable[name][self._draw(generator, len(usable[name]))]
        return pool, torch.from_numpy(draws)

    def _draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Which of n images each step sees, `(n_steps, n_distractors)`."""
        shape = (self.n_steps, self.n_distractors)
        if not SCHEDULES[self.schedule].stratified:
            return generator.integers(n, size=shape)
        rounds = -(-shape[0] * shape[1] // n)
        return generator.permuted(np.tile(np.arange(n), (rounds, 1)), axis=1).ravel()[: shape[0] * shape[1]].reshape(shape)

    def _label_loss(self, log_probs: Tensor, column: Tensor) -> Tensor:
        """One loss a pair from log-probabilities `(n, D, columns)`."""
        if self.loss == "nll":
            return -log_probs.mean(1).gather(1, column[:, None]).squeeze(1)
        return F.cross_entropy(log_probs.exp().mean(1), column, reduction="none")

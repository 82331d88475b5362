"""The protocol every saliency method follows, the checks they share, and the paper's "cheating" wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from salkit.models import Classifier


@dataclass(frozen=True)
class Cost:
    """Passes of single images through the classifier that a map takes; `per` image if one computation serves all labels.

    Example:
        >>> Cost(forward_backward=300)
        Cost(forward=0, forward_backward=300, per='pair')
    """

    forward: int = 0
    forward_backward: int = 0
    per: Literal["pair", "image"] = "pair"


@runtime_checkable
class SaliencyMethod(Protocol):
    """Anything with this `attribute` can be scored; higher means more salient, whatever the method's own convention.

    A method whose map is the same for every label may say so with an attribute `depends_on_label = False`: it is then computed
    once an image, and its curves serve all labels. One that knows its `cost() -> Cost` is counted by `salkit plan`.
    """

    def attribute(
        self,
        classifier: Classifier,
        inputs: Tensor,
        target: Tensor,
        *,
        distractors: Tensor | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> Tensor:
        """Heatmaps for a flat batch of (image, label) pairs.

        Args:
            classifier: the net to explain.
            inputs: `(N, 3, H, W)` normalised images, one a pair.
            target: `(N,)` int64 indices into the classifier's label list.
            distractors: `(P, 3, H, W)` pool for methods that fill hidden pixels with other images.
            seed: of every random draw, together with the pair's image id and label.
            ids: stable names of the images; None takes a hash of the pixels.

        Returns:
            `(N, H, W)` float32 on the device of `inputs`.
        """
        ...


class LearnedMap:
    """A method whose maps take long and are made from something small, which is then what is kept of them, in float16.

    A subclass has `learn`, with the arguments of `attribute`, and `heatmaps`.
    """

    def learn(
        self,
        classifier: Classifier,
        inputs: Tensor,
        target: Tensor,
        *,
        distractors: Tensor | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> Tensor:
        """What is learned for each pair, `(N, h, w)` at a resolution of its own; arguments as for `SaliencyMethod.attribute`."""
        raise TypeError(f"{type(self).__name__} does not say how it learns")

    def heatmaps(self, learned: Tensor, size: Sequence[int]) -> Tensor:
        """Heatmaps `(N, H, W)` of the given size from what was learned."""
        raise TypeError(f"{type(self).__name__} does not say what its maps look like")

    def attribute(
        self,
        classifier: Classifier,
        inputs: Tensor,
        target: Tensor,
        *,
        distractors: Tensor | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> Tensor:
        """Heatmaps `(N, H, W)` in [0, 1]; see `SaliencyMethod.attribute`. Errors are those of `learn`."""
        return self.heatmaps(self.learn(classifier, inputs, target, distractors=distractors, seed=seed, ids=ids), inputs.shape[-2:])


@dataclass(frozen=True)
class same_map_for_all_labels:
    """The paper's "cheating": explain the net's prediction and return that map for every label.

    Example:
        >>> from salkit import LearnedMask
        >>> cheating = same_map_for_all_labels(LearnedMask(n_steps=20))
        >>> cheating.depends_on_label
        False
    """

    method: SaliencyMethod
    depends_on_label = False

    def cost(self) -> Cost:
        """What the wrapped method takes for one label, and a forward pass to find the prediction."""
        inner = method_cost(self.method)
        return Cost(inner.forward + 1, inner.forward_backward, "image")

    def attribute(
        self,
        classifier: Classifier,
        inputs: Tensor,
        target: Tensor,
        *,
        distractors: Tensor | None = None,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> Tensor:
        """Heatmaps of the wrapped method for the predicted label, whatever the target; see `SaliencyMethod.attribute`."""
        check_pairs(classifier, inputs, target)
        with torch.inference_mode():
            prediction = torch.cat([classifier(x).argmax(1) for x in inputs.split(64)])
        return self.method.attribute(classifier, inputs, prediction.clone(), distractors=distractors, seed=seed, ids=ids)


def mask_side(inputs: Tensor, mask_size: int | None) -> int:
    """Side of a coarse mask: as given, or an eighth of the image's (28 of 224, as the sources have it).

    Raises:
        ValueError: larger than the image.
    """
    side = max(1, min(inputs.shape[-2:]) // 8) if mask_size is None else mask_size
    if side > min(inputs.shape[-2:]):
        raise ValueError(f"mask_size: expected at most the image sides {tuple(inputs.shape[-2:])}, got {mask_size}")
    return side


def check_settings(method: object, *, counts: Sequence[str] = (), weights: Sequence[str] = (), rates: Sequence[str] = ()) -> None:
    """Refuse settings out of range.

    Args:
        method: a dataclass of settings.
        counts: names of those that are integers >= 1 (or None).
        weights: of those that are finite and >= 0.
        rates: of those that are finite and > 0.

    Raises:
        ValueError: names the setting, what is expected and what was given.
    """
    for name in counts:
        value = getattr(method, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
    for name in weights:
        if not 0 <= getattr(method, name) < float("inf"):
            raise ValueError(f"{name}: expected a finite weight >= 0, got {getattr(method, name)!r}")
    for name in rates:
        if not 0 < getattr(method, name) < float("inf"):
            raise ValueError(f"{name}: expected a positive, finite number, got {getattr(method, name)!r}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: names the setting and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {tuple(choices)}, got {value!r}")


def method_cost(method: SaliencyMethod) -> Cost:
    """What a map of the method takes; nothing for one that does not say."""
    cost: Cost = method.cost() if hasattr(method, "cost") else Cost()
    return cost


def check_pairs(classifier: Classifier, inputs: Tensor, target: Tensor) -> None:
    """Refuse a malformed batch of pairs.

    Raises:
        TypeError: the classifier is not a `Classifier`, or a tensor is of the wrong type.
        ValueError: wrong shapes, values that are not finite, or targets outside the label list.
    """
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier: expected a salkit.models.Classifier, got {type(classifier).__name__}")
    for name, value in (("inputs", inputs), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if inputs.ndim != 4 or inputs.shape[1] != 3:
        raise ValueError(f"inputs: expected shape (N, 3, H, W), got {tuple(inputs.shape)}")
    if not len(inputs):
        raise ValueError("inputs: expected at least one pair, got none")
    if not inputs.is_floating_point():
        raise TypeError(f"inputs: expected a floating-point tensor, got {inputs.dtype}")
    if not torch.isfinite(inputs).all():
        raise ValueError("inputs: expected finite values, got NaN or infinity")
    if target.dtype != torch.int64:
        raise TypeError(f"target: expected int64 indices into the label list, got {target.dtype}")
    if target.shape != inputs.shape[:1]:
        raise ValueError(f"target: expected shape ({len(inputs)},), one label a pair, got {tuple(target.shape)}")
    n_labels = None if classifier.labels is None else len(classifier.labels)
    if target.min() < 0 or (n_labels is not None and target.max() >= n_labels):
        raise ValueError(f"target: expected indices 0 to {'C' if n_labels is None else n_labels} - 1, got {target.min()} to {target.max()}")


def label_names(classifier: Classifier, target: Tensor) -> list[int]:
    """The class index of each target: the name a pair's random draws go by, whatever the order of the label list."""
    return [t if classifier.labels is None else classifier.labels[t] for t in target.tolist()]

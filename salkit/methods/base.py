"""The protocol every saliency method follows, the checks they share, and the paper's "cheating" wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from salkit.methods.pairs import Pairs
from salkit.models.classifier import Classifier
from salkit.models.passes import pass_by_pass, smaller_when_out_of_memory


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


class Method:
    """Base of the kit's methods: checks the pairs, and makes passes smaller when memory runs out. A subclass has `_attribute`."""

    @smaller_when_out_of_memory
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
        """Heatmaps `(N, H, W)`; see `SaliencyMethod.attribute`.

        Raises:
            TypeError: the classifier is not a `Classifier`, or a tensor is of the wrong type.
            ValueError: wrong shapes, values that are not finite, targets outside the label list, or what the method says of itself.
        """
        return self._attribute(Pairs.checked(classifier, inputs, target, distractors, seed, ids))

    def _attribute(self, pairs: Pairs) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say what its maps are")


class LearnedMap(Method):
    """A method whose maps take long and are made from something small, which is then what is kept of them.

    A subclass has `_learn` (or `learn`) and `heatmaps`.
    """

    def resolved(self, classifier: Classifier, device: torch.device) -> LearnedMap:
        """The same method with everything settled that it would choose by the net and the device."""
        del classifier, device
        return self

    @smaller_when_out_of_memory
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
        """What is learned for each pair, `(N, h, w)` at a resolution of its own; arguments and errors as for `attribute`."""
        return self._learn(Pairs.checked(classifier, inputs, target, distractors, seed, ids))

    def _learn(self, pairs: Pairs) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say how it learns")

    def heatmaps(self, learned: Tensor, size: Sequence[int]) -> Tensor:
        """Heatmaps `(N, H, W)` of the given size from what was learned."""
        raise TypeError(f"{type(self).__name__} does not say what its maps look like")

    def _attribute(self, pairs: Pairs) -> Tensor:
        settings = {"distractors": pairs.distractors, "seed": pairs.seed, "ids": pairs.names}
        learned = self.learn(pairs.classifier, pairs.inputs, pairs.target, **settings)  # type: ignore[arg-type]
        return heatmaps_one_by_one(self, learned, pairs.inputs.shape[-2:])


def heatmaps_one_by_one(method: LearnedMap, learned: Tensor, size: Sequence[int]) -> Tensor:
    """`method.heatmaps` of every pair by itself, `(N, h, w)` -> `(N, H, W)`: enlarging rounds differently for other batches and threads."""
    return pass_by_pass(lambda row: method.heatmaps(learned[row], size), range(len(learned)), 1, learned.device)


@dataclass(frozen=True)
class same_map_for_all_labels(Method):
    """The paper's "cheating": explain the net's prediction and return that map for every label.

    Example:
        >>> from salkit import LearnedMask
        >>> cheating = same_map_for_all_labels(LearnedMask(n_steps=20))
        >>> cheating.depends_on_label
        False
    """

    method: SaliencyMethod
    depends_on_label = False

    def __post_init__(self) -> None:
        check_method("method", self.method)

    def cost(self) -> Cost:
        """What the wrapped method takes for one label, and a forward pass to find the prediction."""
        inner = method_cost(self.method)
        return Cost(inner.forward + 1, inner.forward_backward, "image")

    def _attribute(self, pairs: Pairs) -> Tensor:
        prediction = pairs.classifier.probabilities(pairs.inputs).argmax(1)
        settings = {"distractors": pairs.distractors, "seed": pairs.seed, "ids": pairs.names}
        return self.method.attribute(pairs.classifier, pairs.inputs, prediction, **settings)  # type: ignore[arg-type]


def mask_side(inputs: Tensor, mask_size: int | None) -> int:
    """Side of a coarse mask: as given, or an eighth of the image's (28 of 224, as the sources have it).

    Raises:
        ValueError: larger than the image.
    """
    side = max(1, min(inputs.shape[-2:]) // 8) if mask_size is None else mask_size
    if side > min(inputs.shape[-2:]):
        raise ValueError(f"mask_size: expected at most the image sides {tuple(inputs.shape[-2:])}, got {mask_size}")
    return side


def method_cost(method: SaliencyMethod) -> Cost:
    """What a map of the method takes; nothing for one that does not say."""
    cost: Cost = method.cost() if hasattr(method, "cost") else Cost()
    return cost


def check_method(name: str, method: object) -> None:
    """Refuse what is no saliency method.

    Raises:
        TypeError: no `attribute` that can be called, or a class instead of one of its objects.
    """
    if isinstance(method, type) or not callable(getattr(method, "attribute", None)):
        got = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
        raise TypeError(f"{name}: expected an object with an `attribute` method, got {got}")

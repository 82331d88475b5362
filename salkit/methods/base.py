"""The protocol every saliency method follows, the checks they share, and the paper's "cheating" wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from salkit.models import Classifier


@runtime_checkable
class SaliencyMethod(Protocol):
    """Anything with this `attribute` can be scored; higher means more salient, whatever the method's own convention.

    A method whose map is the same for every label may say so with an attribute `depends_on_label = False`: it is then computed
    once an image, and its curves serve all labels.
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

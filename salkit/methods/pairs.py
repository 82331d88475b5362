"""A batch of (image, label) pairs: the checks that every public function shares, and the names and random streams of its pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from salkit.checks import check_images, check_integer
from salkit.models.classifier import Classifier


class Pairs(NamedTuple):
    """A checked batch of (image, label) pairs: what `attribute` was given, and the names of the images."""

    classifier: Classifier
    inputs: Tensor
    target: Tensor
    distractors: Tensor | None
    seed: int
    names: list[str]

    @classmethod
    def checked(
        cls, classifier: Classifier, inputs: Tensor, target: Tensor, distractors: Tensor | None, seed: int, ids: Sequence[str] | None
    ) -> Pairs:
        """Refuse a malformed batch; arguments as for `SaliencyMethod.attribute`, errors as for `check_pairs`."""
        check_pairs(classifier, inputs, target)
        return cls(classifier, inputs, target, distractors, seed, image_ids(inputs, ids))

    @property
    def classes(self) -> list[int]:
        """The class index of each pair's label."""
        return label_names(self.classifier, self.target)

    def generators(self, purpose: str) -> list[np.random.Generator]:
        """A random stream for each pair, see `pair_generator`."""
        return [pair_generator(self.seed, name, a, purpose) for name, a in zip(self.names, self.classes, strict=True)]


def check_classifier(classifier: Classifier) -> None:
    """Refuse a net that is no `Classifier` yet.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(classifier, Classifier):
        raise TypeError(f"classifier: expected a salkit.models.Classifier, got {type(classifier).__name__}")


def check_precision(name: str, inputs: Tensor, classifier: Classifier) -> None:
    """Refuse images of another type than the net's weights.

    Raises:
        TypeError: names both.
    """
    wanted = next((p.dtype for p in classifier.parameters() if p.is_floating_point()), inputs.dtype)
    if inputs.dtype != wanted:
        raise TypeError(f"{name}: expected {wanted}, as the net's weights are, got {inputs.dtype}")


def check_pairs(classifier: Classifier, inputs: Tensor, target: Tensor) -> None:
    """Refuse a malformed batch of pairs.

    Raises:
        TypeError: the classifier is not a `Classifier`, or a tensor is of the wrong type.
        ValueError: wrong shapes, values that are not finite, or targets outside the label list.
    """
    check_classifier(classifier)
    check_images("inputs", inputs)
    check_precision("inputs", inputs, classifier)
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a torch.Tensor, got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target: expected int64 indices into the label list, got {target.dtype}")
    if target.shape != inputs.shape[:1]:
        raise ValueError(f"target: expected shape ({len(inputs)},), one label a pair, got {tuple(target.shape)}")
    check_indices("target", target, classifier.n_labels(inputs))


def check_indices(name: str, indices: Tensor, n: int) -> None:
    """Refuse indices outside `[0, n - 1]`.

    Raises:
        ValueError: names the extremes.
    """
    if indices.min() < 0 or indices.max() >= n:
        raise ValueError(f"{name}: expected indices 0 to {n - 1}, got {indices.min()} to {indices.max()}")


def label_names(classifier: Classifier, target: Tensor) -> list[int]:
    """The class index of each target: the name a pair's random draws go by, whatever the order of the label list."""
    return [t if classifier.labels is None else classifier.labels[t] for t in target.tolist()]


def pair_generator(seed: int, image_id: str, label: int, purpose: str) -> np.random.Generator:
    """The random stream of one (image, label) pair: the same in whatever batch, worker or order the pair is computed."""
    check_integer("seed", seed)
    digest = hashlib.blake2b(f"{seed}|{image_id}|{label}|{purpose}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def image_ids(inputs: Tensor, ids: Sequence[str] | None = None) -> list[str]:
    """The ids as given, else a hash of each image's pixels: an id that does not depend on the place in the batch."""
    if ids is None:
        return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest() for image in inputs.detach().cpu().contiguous()]
    if len(ids) != len(inputs):
        raise ValueError(f"ids: expected one id a pair, {len(inputs)}, got {len(ids)}")
    return [str(i) for i in ids]

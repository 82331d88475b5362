"""What `evaluate` and the studies are given: the checks of images, methods, labels and protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from salkit.checks import check_images
from salkit.data.images import ImageSet
from salkit.methods import LearnedMask, SaliencyMethod, get_method, same_map_for_all_labels
from salkit.methods.base import check_method
from salkit.methods.masker import MaskerMethod
from salkit.methods.pairs import check_classifier, check_indices, check_precision, image_ids
from salkit.models.classifier import Classifier
from salkit.scores import Protocol


def check_scene(
    classifier: Classifier, images: ImageSet | Tensor, distractors: ImageSet | Tensor | None
) -> tuple[Tensor, tuple[str, ...], Tensor]:
    """Images, their names (a hash of the pixels for those without) and the pool of distractors (None: the images), all on the CPU.

    Raises:
        TypeError: wrong types.
        ValueError: wrong shapes, none at all, values that are not finite, or distractors of another size than the images.
    """
    check_classifier(classifier)
    inputs = _pixels("images", images)
    check_precision("images", inputs, classifier)
    pool = inputs if distractors is None else _pixels("distractors", distractors)
    if pool.shape[1:] != inputs.shape[1:]:
        expected, got = tuple(inputs.shape[1:]), tuple(pool.shape)
        raise ValueError(f"distractors: expected shape (P, *{expected}), the size of images, got {got}")
    return inputs, images.ids if isinstance(images, ImageSet) else tuple(image_ids(inputs)), pool


def _pixels(name: str, images: ImageSet | Tensor) -> Tensor:
    """Images on the CPU; `name` is the argument's, for errors."""
    if not isinstance(images, (ImageSet, Tensor)):
        raise TypeError(f"{name}: expected an ImageSet or a tensor (N, 3, H, W), got {type(images).__name__}")
    inputs = images.images if isinstance(images, ImageSet) else images.detach()
    check_images(name, inputs)
    return inputs.cpu()


def check_methods(methods: Mapping[str, SaliencyMethod] | Sequence[str]) -> dict[str, SaliencyMethod]:
    """Methods by name, those of masker networks with their checkpoints.

    Raises:
        TypeError: neither names nor methods.
        ValueError: none at all, an unknown name, or a checkpoint that does not fit.
        FileNotFoundError: a masker's checkpoint that is not there.
    """
    if isinstance(methods, str) or not isinstance(methods, (Mapping, Sequence)):
        got = f"the string {methods!r}" if isinstance(methods, str) else type(methods).__name__
        raise TypeError(f"methods: expected names or a mapping of name to method, got {got}")
    if not methods:
        raise ValueError("methods: expected at least one, got none")
    chosen = dict(methods) if isinstance(methods, Mapping) else {name: get_method(name) for name in methods}
    for name, method in chosen.items():
        if not isinstance(name, str):
            raise TypeError(f"methods: expected names of type str, got {name!r}")
        check_method(f"methods[{name!r}]", method)
        inner = method.method if isinstance(method, same_map_for_all_labels) else method
        if isinstance(inner, MaskerMethod):
            inner.network()
    return chosen


def check_protocol(classifier: Classifier, methods: Mapping[str, SaliencyMethod], protocol: Protocol) -> None:
    """Refuse a classifier or learned mask that does not follow the protocol which the results would be labelled with.

    Raises:
        ValueError: another softmax scope or loss; says what to write instead.
    """
    ours, wanted = classifier.softmax_over, protocol.softmax_over
    if classifier.labels is not None and ours != wanted:
        raise ValueError(
            f"classifier: expected softmax_over={wanted!r}, as the protocol has it, got {ours!r}. Write Classifier(..., "
            f"softmax_over={wanted!r}) (load_classifier takes it, too), or evaluate(..., protocol=Protocol(softmax_over={ours!r}))"
        )
    for name, method in methods.items():
        inner = method.method if isinstance(method, same_map_for_all_labels) else method
        if isinstance(inner, LearnedMask) and inner.loss != protocol.loss:
            raise ValueError(
                f"methods[{name!r}]: expected loss={protocol.loss!r}, as the protocol has it, got {inner.loss!r}. Write "
                f"LearnedMask(loss={protocol.loss!r}), or evaluate(..., protocol=Protocol(loss={inner.loss!r}))"
            )


def check_targets(targets: Tensor | None, classifier: Classifier, inputs: Tensor) -> Tensor | None:
    """Labels of each image `(N, k)`, on the CPU; None for all labels.

    Raises:
        TypeError: not a tensor.
        ValueError: another type or shape, or indices outside the label list.
    """
    if targets is None:
        return None
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: expected a torch.Tensor, got {type(targets).__name__}")
    if targets.dtype != torch.int64 or targets.ndim != 2 or len(targets) != len(inputs) or not targets.shape[1]:
        got = f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise ValueError(f"targets: expected int64 of shape ({len(inputs)}, k), got {got}")
    device = next((p.device for p in classifier.parameters()), inputs.device)
    check_indices("targets", targets, classifier.n_labels(inputs[:1].to(device)))
    return targets.cpu()


def label_coords(classifier: Classifier, images: ImageSet | Tensor, targets: Tensor, n_labels: int) -> dict[str, object]:
    """Names of the labels; where every image has labels of its own, their names a (image, label)."""
    indices = list(range(n_labels) if classifier.labels is None else classifier.labels)
    known = isinstance(images, ImageSet) and len(images.class_names) > max(indices)
    names = np.array([images.class_names[i] if known and isinstance(images, ImageSet) else str(i) for i in indices])
    if len(set(names)) < len(names):
        names = np.array([f"{name} ({i})" for name, i in zip(names, indices, strict=True)])
    if torch.equal(targets, torch.arange(n_labels).expand(len(targets), -1)):
        return {"label": names.tolist()}
    places = [f"label {i + 1}" for i in range(targets.shape[1])]
    return {"label": places, "label_name": names[targets.numpy()].tolist()}

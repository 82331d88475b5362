"""Images with two true labels: mosaics of the left and right halves of two images, chosen by a rule that knows no saliency method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import torch
import xarray as xr
from torch import Tensor

from salkit.checks import check_integer, check_number
from salkit.data.images import ImageSet
from salkit.engine.executors import Engine
from salkit.evaluation.evaluate import probabilities
from salkit.models.classifier import Classifier
from salkit.scores import localisation

TOP = 0.1
"""The share of the pixels that `localisation_top` looks at."""


class Mosaics(NamedTuple):
    """Mosaics `(N, 3, H, W)`, the labels of their left and right halves `(N, 2)`, and the images that are in none of them.

    The labels are indices into the classifier's label list, as `evaluate(targets=...)` takes them. `others` serve as distractors: a half of
    a mosaic must not be what hides its pixels.
    """

    images: ImageSet
    targets: Tensor
    others: ImageSet


def choose_mosaics(
    classifier: Classifier,
    images: ImageSet,
    *,
    min_prob: float = 0.05,
    max_uses: int = 3,
    engine: Engine | None = None,
    device: str | None = None,
) -> Mosaics:
    """The mosaics of two images in which the net sees both.

    The rule, fixed before any map was computed: the images that the net classifies right, in all ordered pairs of two classes; a mosaic
    qualifies if the net gives both classes at least `min_prob`. They are taken in the order of the less probable class, the most probable
    first, but each pair of images once (in the better of its two orders) and each image in at most `max_uses` mosaics. The first mosaics
    are the same whatever number of them is used.

    With EfficientNet-Lite0 and the 20 packaged images: 16 are classified right, 17 pairs of them have both labels at 0.05 or more, and
    12 mosaics of 10 images are taken. A limit of 2 uses would leave 8. The net's prediction is one of the two labels in 8 mosaics, and a
    third class in 4. Mosaics share images, so 12 of them say less than 12 independent images would.

    Args:
        classifier: gives the probabilities, best over all classes of its net.
        images: with their classes; all ordered pairs of the N that are classified right are tried, a forward pass each.
        min_prob: of both labels.
        max_uses: of an image.
        engine: keeps the probabilities in its store; None keeps nothing.
        device: where to compute, see `evaluate`.

    Raises:
        ValueError: no mosaic qualifies, or an argument out of range.

    Example:
        >>> classifier, images = load_classifier("efficientnet-lite0"), load_images("imagenet-samples")  # doctest: +SKIP
        >>> mosaics = choose_mosaics(classifier, images)  # doctest: +SKIP
        >>> evaluate(classifier, mosaics.images, methods, targets=mosaics.targets, distractors=mosaics.others)  # doctest: +SKIP
    """
    check_number("min_prob", min_prob, 0, 1)
    check_integer("max_uses", max_uses, 1)
    found = probabilities(classifier, images, engine, device).argmax(1)
    labels = found if classifier.labels is None else torch.tensor(classifier.labels)[found]
    right = (labels == images.labels).nonzero().flatten().tolist()
    pairs = [(a, b) for a, b in permutations(right, 2) if found[a] != found[b]]
    if not pairs:
        raise ValueError(f"images: expected images of two classes that the net classifies right, got {len(right)} of {len(images)} right")
    every = side_by_side(images, pairs)
    targets = found[torch.tensor(pairs)]
    least = probabilities(classifier, every, engine, device).gather(1, targets).amin(1)
    chosen: list[int] = []
    uses: Counter[int] = Counter()
    for i in least.argsort(descending=True, stable=True).tolist():
        a, b = pairs[i]
        if least[i] >= min_prob and (b, a) not in [pairs[j] for j in chosen] and max(uses[a], uses[b]) < max_uses:
            chosen.append(i)
            uses.update((a, b))
    if not chosen:
        raise ValueError(f"min_prob: expected a probability that both labels of some mosaic reach, got {min_prob}; best {least.max():.2g}")
    return Mosaics(every.subset(chosen), targets[chosen], images.subset([i for i in range(len(images)) if i not in uses]))


def side_by_side(images: ImageSet, pairs: Sequence[tuple[int, int]]) -> ImageSet:
    """The central halves of two images side by side, for each pair (left, right) of places in the set.

    Ids are `left+right`; the label is -1, since there are two.

    Raises:
        ValueError: the images' width is not even.

    Example:
        >>> from salkit.data import load_images
        >>> side_by_side(load_images("cifar10-samples"), [(3, 17)]).ids
        ('cifar10_03_0+cifar10_17_7',)
    """
    width = images.images.shape[-1]
    if width % 2:
        raise ValueError(f"images: expected an even width, got {width}")
    half = images.images[..., width // 4 : width // 4 + width // 2]
    left, right = torch.tensor(pairs).T
    ids = tuple(f"{images.ids[a]}+{images.ids[b]}" for a, b in pairs)
    unknown = torch.full((len(ids),), -1)
    return ImageSet(torch.cat([half[left], half[right]], -1), unknown, ids, images.class_names, images.mean, images.std)


def halves(height: int, width: int) -> Tensor:
    """Where the two labels of a mosaic are: `(2, H, W)` bool, the left half and the right half.

    Example:
        >>> halves(1, 4).int().tolist()
        [[[1, 1, 0, 0]], [[0, 0, 1, 1]]]
    """
    left = torch.arange(width).expand(height, -1) < width // 2
    return torch.stack([left, ~left])


def add_localisation(result: xr.Dataset) -> xr.Dataset:
    """An evaluation of mosaics with the share of each map in its label's half, dims `(method, image, label)`.

    Args:
        result: of `evaluate(..., targets=mosaics.targets, keep_heatmaps=True)`.

    Returns:
        With `localisation`, the share of the mass, and `localisation_top`, the share of the tenth of the pixels that is most salient; see
        `salkit.scores.localisation`. Their mean over the two labels is 0.5 for a map that ignores the label.

    Raises:
        ValueError: no heatmaps, or not two labels an image.
    """
    if "heatmap" not in result or result.sizes["label"] != 2:
        got = f"{list(result.data_vars)} and {result.sizes['label']} labels"
        raise ValueError(f"result: expected heatmaps for two labels an image, got {got}")
    maps = result.heatmap.transpose("method", "image", "label", "y", "x")
    where, seed = halves(maps.sizes["y"], maps.sizes["x"]), int(result.attrs.get("seed", 0))
    for name, top in (("localisation", None), ("localisation_top", TOP)):
        shares = [localisation(torch.from_numpy(of_method.values), where, top, seed).numpy() for of_method in maps]
        result = result.assign({name: (maps.dims[:3], shares)})
    return result

"""Images as an `ImageSet`: packaged samples, CIFAR-10, Imagenette and any folder.

Images are normalised, `(pixel - mean) / std`, so that 0 is the gray of the paper and of Captum's default baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salkit.checks import check_integer, check_labels, is_integer
from salkit.data.files import PREPROCESSING, open_images
from salkit.progress import progress_bar


@dataclass(frozen=True)
class ImageSet:
    """Images with stable ids, ready for a classifier.

    Attributes:
        images: `(N, 3, H, W)` float32 (or float64), normalised, finite.
        labels: `(N,)` int64 indices into `class_names`; -1 if unknown.
        ids: a stable, unique name for each image, from which its random draws are seeded.
        class_names: names of all classes of the data set (1000 for ImageNet's).
        mean, std: the normalisation, per channel.

    Raises:
        TypeError: images or labels are not tensors.
        ValueError: shapes that do not fit, repeated ids, or images of another dtype or with values that are not finite.

    Example:
        >>> images = load_images("cifar10-samples")
        >>> images.images.shape
        torch.Size([20, 3, 32, 32])
    """

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        n = len(self.ids)
        for name, value in (("images", self.images), ("labels", self.labels)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if self.images.ndim != 4 or len(self.images) != n or self.images.shape[1] != 3:
            raise ValueError(f"images: expected shape ({n}, 3, H, W) for {n} ids, got {tuple(self.images.shape)}")
        if self.images.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"images: expected float32 or float64, got {self.images.dtype}")
        # Minimum and maximum are NaN if any value is, and need no memory of the images' size.
        if self.images.numel() and not torch.stack(self.images.aminmax()).isfinite().all():
            bad = [i for i, image in zip(self.ids, self.images, strict=True) if not image.isfinite().all()]
            raise ValueError(f"images: expected finite values, got NaN or infinity in {len(bad)} of {n} images, first {bad[0]!r}")
        if self.labels.shape != (n,) or self.labels.dtype != torch.int64:
            raise ValueError(f"labels: expected shape ({n},) of int64, got {tuple(self.labels.shape)} of {self.labels.dtype}")
        if len(set(self.ids)) != n:
            raise ValueError(f"ids: expected unique names, got {Counter(self.ids).most_common(1)[0][0]!r} more than once")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean, std: expected three numbers each, got {self.mean} and {self.std}")

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The images at `indices`, in that order.

        Raises:
            ValueError: not integers, or out of range.
        """
        index = torch.as_tensor(indices)
        if len(index) and (index.dtype != torch.int64 or index.min() < -len(self) or index.max() >= len(self)):
            raise ValueError(f"indices: expected integers below {len(self)}, got {indices}")
        index = index.long()
        ids = tuple(self.ids[i] for i in index.tolist())
        return ImageSet(self.images[index], self.labels[index], ids, self.class_names, self.mean, self.std)

    def sample(self, n: int, seed: int = 0) -> ImageSet:
        """`n` images drawn without replacement, in their original order.

        Raises:
            ValueError: `n` is not between 1 and the number of images.
        """
        return self.subset(_sample_indices(len(self), n, seed))

    def split(self, n: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Two disjoint sets: `n` images drawn without replacement, and the rest."""
        first = _sample_indices(len(self), n, seed)
        return self.subset(first), self.subset(np.setdiff1d(np.arange(len(self)), first).tolist())

    def with_labels(self, labels: Sequence[int]) -> ImageSet:
        """The images whose label is one of `labels`."""
        return self.subset(torch.isin(self.labels, torch.tensor(check_labels(labels))).nonzero().flatten())

    def pixels(self) -> Tensor:
        """The images to look at: `(N, H, W, 3)` in [0, 1]."""
        return denormalise(self.images, self.mean, self.std)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation: `(N, 3, H, W)` normalised -> `(N, H, W, 3)` in [0, 1]."""
    scale, shift = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (std, mean))
    return (images * scale + shift).clamp(0, 1).permute(0, 2, 3, 1)


def load_images(
    name: str,
    *,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    download: bool = True,
    preprocessing: str | None = None,
    show_progress: bool = False,
) -> ImageSet:
    """Load a data set by name.

    Args:
        name: `"cifar10-samples"` and `"imagenet-samples"` (20 images each, inside the wheel `foolbox`), `"cifar10"`,
            `"imagenette"` (downloaded, checksums verified), or `"folder:PATH"` with one sub-folder per class, or with images only.
            Sub-folders named after classes of CIFAR-10 or ImageNet (or Imagenette's WordNet ids) get those indices, others are
            numbered in alphabetical order.
        split: `"test"` or `"train"`, for the downloaded data sets.
        n: number of images to draw at random; None for all.
        seed: seed of that draw.
        root: folder of the downloads; default `data/downloads` of the kit.
        download: whether a missing data set may be downloaded.
        preprocessing: `"cifar10"` or `"imagenet"`, for folders (default `"imagenet"`).
        show_progress: whether to show a progress bar.

    Raises:
        ValueError: an unknown name, split or preprocessing, more images than there are, or a file that is not an image, is damaged
            or has pixels of unknown range.
        FileNotFoundError: no such folder or no image in it, or a data set that cannot be downloaded; the message says which file to
            put where.

    Example:
        >>> load_images("imagenet-samples", n=5).images.shape
        torch.Size([5, 3, 224, 224])
    """
    index = open_images(name, split=split, root=root, download=download, preprocessing=preprocessing)
    chosen = range(len(index.ids)) if n is None else _sample_indices(len(index.ids), n, seed)
    pre = PREPROCESSING[index.preprocessing]
    pixels = torch.empty(len(chosen), 3, pre.size, pre.size, dtype=torch.uint8)
    for row, i in enumerate(progress_bar(chosen, show_progress, desc=f"decoding {name}")):
        pixels[row] = pre(index.open(i))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pre.mean, pre.std))
    images = pixels.float().div_(255).sub_(mean).div_(std)
    labels = torch.tensor([index.labels[i] for i in chosen], dtype=torch.int64)
    ids = tuple(index.ids[i] for i in chosen)
    return ImageSet(images, labels, ids, index.class_names, pre.mean, pre.std)


def load_distractors(name: str, *, n: int = 1000, seed: int = 0, **settings: Any) -> ImageSet:
    """The images that random-image infill draws from: `n` training images; for packaged samples and folders, all their images.

    No method draws the explained image itself, so the samples are filled with the other samples.
    """
    if name in ("cifar10", "imagenette"):
        return load_images(name, split="train", n=n, seed=seed, **settings)
    return load_images(name, **settings)


def _sample_indices(total: int, n: int, seed: int) -> list[int]:
    if not is_integer(n, 1) or n > total:
        raise ValueError(f"n: expected 1 to {total} images, got {n!r}")
    return sorted(np.random.default_rng(check_integer("seed", seed)).choice(total, n, replace=False).tolist())

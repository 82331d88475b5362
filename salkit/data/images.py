"""Images: packaged samples, CIFAR-10, Imagenette and any folder, all as one `ImageSet`.

Images are kept in normalised space, `(pixel - mean) / std`, so that 0 is the gray of the paper and of Captum's default baseline.
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
        labels: `(N,)` int64 indices into `class_names`; -1 where a folder does not tell.
        ids: one stable name an image; every random draw for the image is seeded by it.
        class_names: names of all classes of the data set (1000 for ImageNet's).
        mean, std: the normalisation that was applied, per channel.

    Raises:
        ValueError: shapes that do not go together, equal ids, images of another type or with values that are not finite.

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
        # The extremes tell: they are NaN where anything is, and take no memory.
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
            ValueError: no integers, or some outside the set.
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
        """Only the images whose label is one of `labels`."""
        return self.subset(torch.isin(self.labels, torch.tensor(check_labels(labels))).nonzero().flatten())

    def pixels(self) -> Tensor:
        """The images as people see them: `(N, H, W, 3)` in [0, 1]."""
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
            `"imagenette"` (downloaded, checksums verified), or `"folder:PATH"`: one sub-folder a class, or images only. Folders
            named after the classes of CIFAR-10 or ImageNet (name or Imagenette's WordNet id) get those indices, others are
            numbered in alphabetical order.
        split: `"test"` or `"train"`, for the downloaded data sets.
        n: how many images to draw (before anything is decoded); None for all.
        seed: of that draw.
        root: where downloads are; default `data/downloads` of the kit.
        download: whether a missing data set may be fetched.
        preprocessing: `"cifar10"` or `"imagenet"`, for folders (default `"imagenet"`).
        show_progress: a bar while decoding.

    Raises:
        ValueError: unknown name, split or preprocessing, more images asked for than there are, or a file that is no image, damaged,
            or of pixels whose range it does not tell.
        FileNotFoundError: no such folder or no image in it; a data set that is missing and cannot be fetched (the message says
            what to put where).

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
    """The pool that random-image infill draws from: training images; for packaged samples and folders the images themselves.

    Methods never use the explained image as its own distractor, so for the samples the pool is "the other samples".
    """
    if name in ("cifar10", "imagenette"):
        return load_images(name, split="train", n=n, seed=seed, **settings)
    return load_images(name, **settings)


def _sample_indices(total: int, n: int, seed: int) -> list[int]:
    if not is_integer(n, 1) or n > total:
        raise ValueError(f"n: expected 1 to {total} images, got {n!r}")
    return sorted(np.random.default_rng(check_integer("seed", seed)).choice(total, n, replace=False).tolist())

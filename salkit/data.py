"""Images: packaged samples, CIFAR-10, Imagenette and any folder, all as one `ImageSet`.

Images are kept in normalised space, `(pixel - mean) / std`, so that 0 is the gray of the paper and of Captum's default baseline.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets, transforms
from torchvision.models import ResNet50_Weights
from tqdm import tqdm

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENETTE_WNIDS = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip
"""The ten classes of Imagenette: WordNet id -> ImageNet class index."""

IMAGENETTE_LABELS = tuple(IMAGENETTE_WNIDS.values())
IMAGENET_SAMPLE_LABELS = (99, 243, 455, 471, 541, 559, 741, 853, 915, 949)
"""The label list of the embedded default: the ten classes of the packaged ImageNet samples that EfficientNet-Lite0 is surest of, as
Imagenette's ten were chosen for being easy."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Preprocessing:
    """How a file becomes an input: shorter side to `resize`, centre crop to `size`, then `(pixel - mean) / std`."""

    resize: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixels `(3, size, size)` uint8, before normalisation."""
        steps = [transforms.Resize(self.resize), transforms.CenterCrop(self.size), transforms.PILToTensor()]
        return transforms.Compose(steps)(image.convert("RGB"))


PREPROCESSING = {
    "cifar10": Preprocessing(32, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class ImageSet:
    """Images with stable ids, ready for a classifier.

    Attributes:
        images: `(N, 3, H, W)` float32, normalised.
        labels: `(N,)` int64 indices into `class_names`; -1 where a folder does not tell.
        ids: one stable name an image; every random draw for the image is seeded by it.
        class_names: names of all classes of the data set (1000 for ImageNet's).
        mean, std: the normalisation that was applied, per channel.

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
        if self.images.ndim != 4 or len(self.images) != n or self.images.shape[1] != 3:
            raise ValueError(f"images: expected shape ({n}, 3, H, W) for {n} ids, got {tuple(self.images.shape)}")
        if self.labels.shape != (n,):
            raise ValueError(f"labels: expected shape ({n},), got {tuple(self.labels.shape)}")
        if len(set(self.ids)) != n:
            raise ValueError("ids: expected unique names, got duplicates")

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
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
        return self.subset(torch.isin(self.labels, torch.as_tensor(labels)).nonzero().flatten())

    def pixels(self) -> Tensor:
        """The images as people see them: `(N, H, W, 3)` in [0, 1]."""
        return denormalise(self.images, self.mean, self.std)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation: `(N, 3, H, W)` normalised -> `(N, H, W, 3)` in [0, 1]."""
    scale, shift = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (std, mean))
    return (images * scale + shift).clamp(0, 1).permute(0, 2, 3, 1)


def data_dir() -> Path:
    """Where the kit's own files are: `$SALKIT_DATA`, else `data/` of the checkout, else the installed copy."""
    checkout = Path(__file__).resolve().parents[1] / "data"
    default = checkout if (checkout / "paper").is_dir() else Path(sys.prefix) / "share" / "salkit"
    return Path(os.environ.get("SALKIT_DATA", default))


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
            `"imagenette"` (downloaded by torchvision, checksums verified), or `"folder:PATH"`: one sub-folder a class, or
            images only. Folders named after the classes of CIFAR-10 or ImageNet (name or Imagenette's WordNet id) get those
            indices, others are numbered in alphabetical order.
        split: `"test"` or `"train"`, for the downloaded data sets.
        n: how many images to draw (before anything is decoded); None for all.
        seed: of that draw.
        root: where downloads are; default `data/downloads` of the kit.
        download: whether a missing data set may be fetched.
        preprocessing: `"cifar10"` or `"imagenet"`, for folders (default `"imagenet"`).
        show_progress: a bar while decoding.

    Raises:
        ValueError: unknown name, split or preprocessing, or more images asked for than there are.
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


def open_images(
    name: str,
    *,
    split: str = "test",
    root: str | Path | None = None,
    download: bool = True,
    preprocessing: str | None = None,
) -> ImageFiles:
    """A data set by name with nothing decoded yet; arguments and errors as for `load_images`.

    Example:
        >>> open_images("imagenet-samples").labels[:3]
        [243, 559, 438]
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if preprocessing is not None and preprocessing not in PREPROCESSING:
        raise ValueError(f"preprocessing: expected one of {sorted(PREPROCESSING)}, got {preprocessing!r}")
    downloads = Path(root) if root is not None else data_dir() / "downloads"
    if name.startswith("folder:"):
        index = _folder(Path(name.removeprefix("folder:")), preprocessing or "imagenet")
    elif name in ("cifar10-samples", "imagenet-samples"):
        index = _packaged(name.removesuffix("-samples"))
    elif name == "cifar10":
        index = _cifar10(downloads, split, download)
    elif name == "imagenette":
        index = _imagenette(downloads, split, download)
    else:
        known = ["cifar10-samples", "imagenet-samples", "cifar10", "imagenette", "folder:PATH"]
        raise ValueError(f"name: expected one of {known}, got {name!r}")
    return index


def progress_bar(iterable: Iterable[Any] | None, show: bool, **settings: Any) -> Any:
    """A tqdm bar, or its silent twin; left to itself a bar heeds `TQDM_DISABLE`, which an explicit `disable=False` would override."""
    return tqdm(iterable, **settings) if show else tqdm(iterable, disable=True)


def load_distractors(name: str, *, n: int = 1000, seed: int = 0, **settings: Any) -> ImageSet:
    """The pool that random-image infill draws from: training images; for packaged samples and folders the images themselves.

    Methods never use the explained image as its own distractor, so for the samples the pool is "the other samples".
    """
    if name in ("cifar10", "imagenette"):
        return load_images(name, split="train", n=n, seed=seed, **settings)
    return load_images(name, **settings)


@dataclass(frozen=True)
class ImageFiles:
    """A data set before decoding: names, labels and how to open image i as RGB."""

    ids: Sequence[str]
    labels: Sequence[int]
    open: Callable[[int], Image.Image]
    class_names: tuple[str, ...]
    preprocessing: str

    def subset(self, indices: Sequence[int]) -> ImageFiles:
        """The files at `indices`, in that order."""
        ids, labels = [self.ids[i] for i in indices], [self.labels[i] for i in indices]
        return ImageFiles(ids, labels, lambda i: self.open(indices[i]), self.class_names, self.preprocessing)


def _sample_indices(total: int, n: int, seed: int) -> list[int]:
    if not 1 <= n <= total:
        raise ValueError(f"n: expected 1 to {total} images, got {n}")
    return sorted(np.random.default_rng(seed).choice(total, n, replace=False).tolist())


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 ImageNet class names by index."""
    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def _packaged(prefix: str) -> ImageFiles:
    # Found without importing foolbox, of which only the files are used.
    spec = find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the packaged samples are files of the package foolbox 3.3.4, which is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    paths = sorted(p for p in folder.iterdir() if re.match(rf"{prefix}_\d+_\d+\.", p.name))

    classes = CIFAR10_CLASSES if prefix == "cifar10" else imagenet_classes()
    labels = [int(p.stem.split("_")[2]) for p in paths]
    return ImageFiles([p.stem for p in paths], labels, lambda i: _open(paths[i]), classes, prefix)


def _cifar10(root: Path, split: str, download: bool) -> ImageFiles:
    fetched: Any = _fetch(lambda get: datasets.CIFAR10(root, train=split == "train", download=get), "CIFAR-10", root, download)
    ids = [f"cifar10_{split}_{i:05d}" for i in range(len(fetched.data))]
    return ImageFiles(ids, fetched.targets, lambda i: Image.fromarray(fetched.data[i]), CIFAR10_CLASSES, "cifar10")


def _imagenette(root: Path, split: str, download: bool) -> ImageFiles:
    part = "train" if split == "train" else "val"
    folder = root / "imagenette2" / part
    if not folder.is_dir():
        _fetch(lambda get: datasets.Imagenette(root, split=part, size="full", download=get), "Imagenette", root, download)
    return _folder(folder, "imagenet")


def _fetch(make: Callable[[bool], Any], title: str, root: Path, download: bool) -> Any:
    root.mkdir(parents=True, exist_ok=True)
    try:
        return make(False)
    except RuntimeError:  # torchvision: not there, or a checksum differs
        try:
            if download:
                return make(True)
            reason = "downloading is switched off"
        except (OSError, RuntimeError) as error:
            reason = str(error)
    raise FileNotFoundError(
        f"{title} is not in {root} and could not be fetched ({reason}). On a machine with a network run the same command once, "
        f"or copy torchvision's archive of {title} into {root}; the packaged samples and folders need no network."
    )


def _folder(folder: Path, preprocessing: str) -> ImageFiles:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of images, got {folder}, which is not one")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"folder: expected images ({' '.join(IMAGE_SUFFIXES)}), got none under {folder}")
    ids = [p.relative_to(folder).as_posix() for p in paths]
    owner = [i.split("/")[0] if "/" in i else None for i in ids]
    names = sorted({o for o in owner if o is not None})
    class_names, index = _number_classes(names)

    return ImageFiles(ids, [-1 if o is None else index[o] for o in owner], lambda i: _open(paths[i]), class_names, preprocessing)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _number_classes(names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names and the index of each folder: CIFAR-10's or ImageNet's when the folders carry their names, else alphabetical."""
    imagenet = {name: i for i, name in enumerate(imagenet_classes())} | IMAGENETTE_WNIDS
    cifar = {name: i for i, name in enumerate(CIFAR10_CLASSES)}
    for known, class_names in ((cifar, CIFAR10_CLASSES), (imagenet, imagenet_classes())):
        if names and set(names) <= known.keys():
            return class_names, {name: known[name] for name in names}
    return tuple(names), {name: i for i, name in enumerate(names)}

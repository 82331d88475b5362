"""Images: packaged samples, CIFAR-10, Imagenette and any folder, all as one `ImageSet`.

Images are kept in normalised space, `(pixel - mean) / std`, so that 0 is the gray of the paper and of Captum's default baseline.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import transforms
from torchvision.models import ResNet50_Weights

from salkit.checks import check_choice, check_integer, check_labels, is_integer
from salkit.downloads import fetch, progress_bar, unpack

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENETTE_WNIDS = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip
"""The ten classes of Imagenette: WordNet id -> ImageNet class index."""

IMAGENETTE_LABELS = tuple(IMAGENETTE_WNIDS.values())
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_CHECKSUM = "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_IMAGES_PER_FILE = 10_000
IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz"
IMAGENETTE_CHECKSUM = "md5:fe2fc210e6bb7c5664d602c3cd71e612"

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
    if preprocessing is not None:
        check_choice("preprocessing", preprocessing, sorted(PREPROCESSING))
    known = ("cifar10-samples", "imagenet-samples", "cifar10", "imagenette", "folder:PATH")
    if not isinstance(name, str) or not (name in known[:4] or name.startswith("folder:")):
        raise ValueError(f"name: expected one of {known}, got {name!r}")
    downloads = Path(root) if root is not None else data_dir() / "downloads"
    if name.startswith("folder:"):
        index = _folder(Path(name.removeprefix("folder:")), preprocessing or "imagenet")
    elif name in ("cifar10-samples", "imagenet-samples"):
        index = _packaged(name.removesuffix("-samples"))
    elif name == "cifar10":
        index = _cifar10(downloads, split, download)
    else:
        index = _imagenette(downloads, split, download)
    return index


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
    if not is_integer(n, 1) or n > total:
        raise ValueError(f"n: expected 1 to {total} images, got {n!r}")
    return sorted(np.random.default_rng(check_integer("seed", seed)).choice(total, n, replace=False).tolist())


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
    folder = root / "cifar-10-batches-bin"
    if not folder.is_dir():
        try:
            archive = _fetch(CIFAR10_URL, root, CIFAR10_CHECKSUM, "CIFAR-10", download)
        except FileNotFoundError as error:
            if (root / "cifar-10-batches-py").is_dir() or (root / "cifar-10-python.tar.gz").is_file():
                raise FileNotFoundError(
                    f"{error} The Python version of CIFAR-10, which is there (torchvision's), is not read: its files are pickles, and "
                    "loading a pickle runs what is in it."
                ) from None
            raise
        unpack(archive, folder)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    records = np.concatenate([_cifar10_records(folder / name) for name in names])
    labels, pixels = records[:, 0].tolist(), records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    ids = [f"cifar10_{split}_{i:05d}" for i in range(len(labels))]
    return ImageFiles(ids, labels, lambda i: Image.fromarray(pixels[i]), CIFAR10_CLASSES, "cifar10")


def _cifar10_records(path: Path) -> np.ndarray:
    """Records of a batch of the binary version, `(N, 1 + 3 * 32 * 32)` uint8: the label, then the red, green and blue plane."""
    if not path.is_file():
        raise FileNotFoundError(f"CIFAR-10: expected {path}, which is missing; delete {path.parent} to have it unpacked anew")
    values, length = np.fromfile(path, np.uint8), 1 + 3 * 32 * 32
    if len(values) != CIFAR10_IMAGES_PER_FILE * length or values[::length].max() >= len(CIFAR10_CLASSES):
        raise ValueError(
            f"{path}: expected {CIFAR10_IMAGES_PER_FILE} records of {length} bytes, each a label below 10 and an image, got "
            f"{len(values)} bytes; delete {path.parent} to have it unpacked anew"
        )
    return values.reshape(-1, length)


def _imagenette(root: Path, split: str, download: bool) -> ImageFiles:
    folder = root / "imagenette2"
    if not folder.is_dir():
        unpack(_fetch(IMAGENETTE_URL, root, IMAGENETTE_CHECKSUM, "Imagenette", download), folder)
    return _folder(folder / ("train" if split == "train" else "val"), "imagenet")


def _fetch(url: str, root: Path, checksum: str, title: str, download: bool) -> Path:
    path, hint = root / url.rpartition("/")[2], "The packaged samples and folders need no network."
    return fetch(url, path, checksum=checksum, title=title, hint=hint, download=download)


def _folder(folder: Path, preprocessing: str) -> ImageFiles:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of images, got {folder}, which is not one")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())
    if not paths:
        raise FileNotFoundError(f"folder: expected images ({' '.join(IMAGE_SUFFIXES)}), got none under {folder}")
    ids = [p.relative_to(folder).as_posix() for p in paths]
    owner = [i.split("/")[0] if "/" in i else None for i in ids]
    names = sorted({o for o in owner if o is not None})
    class_names, index = _number_classes(names)

    return ImageFiles(ids, [-1 if o is None else index[o] for o in owner], lambda i: _open(paths[i]), class_names, preprocessing)


def _open(path: Path) -> Image.Image:
    """An image file as RGB, the right way up; of several frames the first.

    Raises:
        ValueError: no image, a damaged or a huge one, or one whose pixels have a range it does not tell.
    """
    with path.open("rb") as file:
        try:
            with Image.open(file) as image:
                return _rgb(image)
        except UnidentifiedImageError as error:
            raise ValueError(f"{path}: expected an image, got {'none PIL knows' if path.stat().st_size else 'an empty file'}") from error
        except Exception as error:  # each of PIL's decoders has its own kinds for damaged files
            raise ValueError(f"{path}: expected an image in one piece with 8 or 16 bits a channel, got {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    # PIL itself refuses twice as many pixels, and only warns from here on.
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {Image.MAX_IMAGE_PIXELS}")
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # broken EXIF says nothing about the pixels, which are there
        pass
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r}: 32 bits a pixel, which could mean any range")
    if image.mode.startswith("I;16"):
        # PIL would clip at 255. Halves cannot occur: 257 is odd.
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        # PIL warns where this is done in one step; transparent pixels keep their colour either way.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _number_classes(names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names and the index of each folder: CIFAR-10's or ImageNet's when the folders carry their names, else alphabetical."""
    imagenet = {name: i for i, name in enumerate(imagenet_classes())} | IMAGENETTE_WNIDS
    cifar = {name: i for i, name in enumerate(CIFAR10_CLASSES)}
    for known, class_names in ((cifar, CIFAR10_CLASSES), (imagenet, imagenet_classes())):
        if names and set(names) <= known.keys():
            return class_names, {name: known[name] for name in names}
    return tuple(names), {name: i for i, name in enumerate(names)}

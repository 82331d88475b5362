"""Data sets as files: packaged samples, CIFAR-10, Imagenette and image folders, and how a file becomes pixels."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision import transforms
from torchvision.models import ResNet50_Weights

from salkit.checks import check_choice
from salkit.data.downloads import fetch, unpack

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
"""Ten classes of the packaged ImageNet samples: those that EfficientNet-Lite0 classifies most confidently. Imagenette's ten were chosen
for being easy, too."""
OTHER_IMAGENET_SAMPLE_LABELS = (22, 129, 251, 305, 317, 438, 511, 609, 630, 990)
"""The nine classes of the other ten packaged samples (two show a jeep), and the other class that the net sees most in one of them."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Preprocessing:
    """From image file to input: shorter side to `resize`, centre crop to `size`, then `(pixel - mean) / std`."""

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
class ImageFiles:
    """A data set before decoding: ids, labels and a function that opens image i as RGB."""

    ids: Sequence[str]
    labels: Sequence[int]
    open: Callable[[int], Image.Image]
    class_names: tuple[str, ...]
    preprocessing: str

    def subset(self, indices: Sequence[int]) -> ImageFiles:
        """The files at `indices`, in that order."""
        ids, labels = [self.ids[i] for i in indices], [self.labels[i] for i in indices]
        return ImageFiles(ids, labels, lambda i: self.open(indices[i]), self.class_names, self.preprocessing)


def data_dir() -> Path:
    """Folder of the kit's own files: `$SALKIT_DATA`, else `data/` of the checkout, else the installed copy."""
    checkout = Path(__file__).resolve().parents[2] / "data"
    default = checkout if (checkout / "paper").is_dir() else Path(sys.prefix) / "share" / "salkit"
    return Path(os.environ.get("SALKIT_DATA", default))


def open_images(
    name: str, *, split: str = "test", root: str | Path | None = None, download: bool = True, preprocessing: str | None = None
) -> ImageFiles:
    """A data set by name, not yet decoded; arguments and errors as in `load_images`.

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
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")), preprocessing or "imagenet")
    if name.endswith("-samples"):
        return _packaged(name.removesuffix("-samples"))
    downloads = Path(root) if root is not None else data_dir() / "downloads"
    return (_cifar10 if name == "cifar10" else _imagenette)(downloads, split, download)


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
    """Records of a binary CIFAR-10 file, `(N, 1 + 3 * 32 * 32)` uint8: label, then the red, green and blue plane."""
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
    owners = [i.split("/")[0] if "/" in i else "" for i in ids]
    class_names, index = _number_classes(sorted(set(owners) - {""}))
    return ImageFiles(ids, [index.get(o, -1) for o in owners], lambda i: _open(paths[i]), class_names, preprocessing)


def _open(path: Path) -> Image.Image:
    """Open an image file as RGB, turned as its EXIF says; only the first frame is read.

    Raises:
        ValueError: not an image, a damaged or a huge one, or pixels of unknown range.
    """
    with path.open("rb") as file:
        try:
            with Image.open(file) as image:
                return _rgb(image)
        except UnidentifiedImageError as error:
            raise ValueError(f"{path}: expected an image, got {'none PIL knows' if path.stat().st_size else 'an empty file'}") from error
        except Exception as error:  # PIL's decoders raise many kinds of errors for damaged files
            raise ValueError(f"{path}: expected an image in one piece with 8 or 16 bits a channel, got {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    # PIL itself refuses twice as many pixels, and only warns from here on.
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {Image.MAX_IMAGE_PIXELS}")
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # the EXIF is broken, the pixels are not
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
    """Class names and each folder's index: CIFAR-10's or ImageNet's if all folders have their names, else in alphabetical order."""
    for class_names, more in ((CIFAR10_CLASSES, {}), (imagenet_classes(), IMAGENETTE_WNIDS)):
        known = {name: i for i, name in enumerate(class_names)} | more
        if names and set(names) <= known.keys():
            return class_names, known
    return tuple(names), {name: i for i, name in enumerate(names)}

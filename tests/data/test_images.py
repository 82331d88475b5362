import numpy as np
import pytest
import torch
from PIL import Image

from salkit import data
from salkit.data import ImageSet, load_distractors, load_images
from salkit.data import files as image_files
from salkit.data.files import open_images


def write_image(path, color, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_packaged_samples():
    cifar, imagenet = load_images("cifar10-samples"), load_images("imagenet-samples")
    assert cifar.images.shape == (20, 3, 32, 32)
    assert imagenet.images.shape == (20, 3, 224, 224)
    assert cifar.ids[0] == "cifar10_00_3"
    assert cifar.class_names[cifar.labels[0]] == "cat"
    assert imagenet.class_names[imagenet.labels[0]] == "bull mastiff"
    assert cifar.images.dtype == torch.float32
    assert cifar.labels.dtype == torch.int64


def test_normalisation_is_undone_by_pixels():
    cifar = load_images("cifar10-samples")
    pixels = cifar.pixels()
    assert pixels.shape == (20, 32, 32, 3)
    byte = pixels * 255
    torch.testing.assert_close(byte, byte.round(), atol=1e-3, rtol=0)
    gray = data.denormalise(torch.zeros(1, 3, 2, 2), cifar.mean, cifar.std)[0, 0, 0]
    torch.testing.assert_close(gray, torch.tensor(cifar.mean))


def test_sampling_and_splits():
    cifar = load_images("cifar10-samples")
    chosen = cifar.sample(5, seed=1)
    assert chosen.ids == cifar.sample(5, seed=1).ids != cifar.sample(5, seed=2).ids
    assert load_images("cifar10-samples", n=5, seed=1).ids == chosen.ids, "drawn before or after decoding, the same images"
    torch.testing.assert_close(chosen.images, cifar.images[[cifar.ids.index(i) for i in chosen.ids]])
    first, rest = cifar.split(8)
    assert len(first) == 8
    assert set(first.ids) | set(rest.ids) == set(cifar.ids)
    assert not set(first.ids) & set(rest.ids)
    only = cifar.with_labels([0, 9])
    assert set(only.labels.tolist()) == {0, 9}


CIFAR10, IMAGENET = image_files.CIFAR10_CLASSES, image_files.imagenet_classes()


@pytest.mark.parametrize(
    ("files", "labels", "class_names"),
    [
        (["cat/b.jpg", "ship/a.png"], [3, 8], CIFAR10),
        (["n01440764/a.png", "n03888257/a.png"], [0, 701], IMAGENET),
        (["apple/a.png", "zebra/a.png"], [0, 1], ("apple", "zebra")),
        (["a.png"], [-1], ()),
    ],
)
def test_classes_of_folders(tmp_path, files, labels, class_names):
    for name, size in zip(files, [(300, 260), (260, 300)], strict=False):
        write_image(tmp_path / name, "red", size)
    (tmp_path / files[0]).with_name("notes.txt").write_text("not an image")
    images = load_images(f"folder:{tmp_path}")
    assert images.ids == tuple(files)
    assert images.labels.tolist() == labels
    assert images.class_names == class_names
    assert images.images.shape == (len(files), 3, 224, 224)
    assert load_images(f"folder:{tmp_path}", preprocessing="cifar10").images.shape == (len(files), 3, 32, 32)


def test_an_image_one_pixel_wide(tmp_path):
    write_image(tmp_path / "a.png", (5, 6, 7), (1, 999))
    pixels = (load_images(f"folder:{tmp_path}").pixels()[0] * 255).round()
    assert pixels.unique(dim=0).unique(dim=1).flatten().tolist() == [5, 6, 7]


def palette_image():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    return image


def bytes_image(mode, *values):
    return Image.frombytes(mode, (2, 1), bytes(values))


@pytest.mark.parametrize(
    ("name", "image", "settings", "pixels"),
    [
        ("a.png", bytes_image("RGB", 1, 2, 3, 4, 5, 6), {}, [[1, 2, 3], [4, 5, 6]]),
        ("a.png", bytes_image("L", 0, 200), {}, [[0] * 3, [200] * 3]),
        ("a.png", bytes_image("L", 0, 200), {"transparency": 200}, [[0] * 3, [200] * 3]),
        ("a.png", bytes_image("LA", 7, 255, 200, 0), {}, [[7] * 3, [200] * 3]),
        ("a.png", bytes_image("RGBA", 1, 2, 3, 255, 4, 5, 6, 0), {}, [[1, 2, 3], [4, 5, 6]]),
        ("a.png", Image.frombytes("1", (2, 1), b"\x40"), {}, [[0] * 3, [255] * 3]),
        ("a.png", palette_image(), {}, [[10, 20, 30], [40, 50, 60]]),
        ("a.png", palette_image(), {"transparency": 1}, [[10, 20, 30], [40, 50, 60]]),
        ("a.png", palette_image(), {"transparency": bytes([0, 128])}, [[10, 20, 30], [40, 50, 60]]),
        # Ink: 255 - C where there is no black, 0 where there is only black.
        ("a.tif", bytes_image("CMYK", 255, 0, 100, 0, 0, 0, 0, 255), {}, [[0, 255, 155], [0, 0, 0]]),
        # 65535 is white, 32767 half of it; 128 of 65535 is nearer to 0 than to 1 of 255, 129 is not.
        ("a.png", bytes_image("I;16", 255, 255, 255, 127), {}, [[255] * 3, [127] * 3]),
        ("a.tif", bytes_image("I;16", 128, 0, 129, 0), {}, [[0] * 3, [1] * 3]),
        ("a.tif", bytes_image("I;16B", 255, 255, 128, 128), {}, [[255] * 3, [128] * 3]),
        ("a.webp", bytes_image("RGBA", 1, 2, 3, 255, 4, 5, 6, 0), {"lossless": True, "exact": True}, [[1, 2, 3], [4, 5, 6]]),
        ("a.bmp", bytes_image("RGB", 1, 2, 3, 4, 5, 6), {}, [[1, 2, 3], [4, 5, 6]]),
        # Broken EXIF is no reason to refuse.
        ("a.png", bytes_image("L", 0, 9), {"exif": b"Exif\0\0II*\0\x08\0\0\0\x09\0broken"}, [[0] * 3, [9] * 3]),
        ("a.png", bytes_image("L", 0, 9), {"save_all": True, "append_images": [bytes_image("L", 50, 60)]}, [[0] * 3, [9] * 3]),
        ("a.tif", bytes_image("L", 0, 9), {"save_all": True, "append_images": [bytes_image("L", 50, 60)]}, [[0] * 3, [9] * 3]),
    ],
)
def test_pixels_of_every_mode_by_hand(tmp_path, name, image, settings, pixels):
    image.save(tmp_path / name, **settings)
    opened = open_images(f"folder:{tmp_path}").open(0)
    assert opened.mode == "RGB"
    assert np.asarray(opened).tolist() == [pixels]


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(np.asarray(open_images(f"folder:{tmp_path}").open(0))[0, 0], [0, 255, 255], atol=2)


@pytest.mark.parametrize(("name", "mode"), [("a.png", "RGB"), ("a.jpg", "L"), ("a.tif", "I;16"), ("a.webp", "RGB")])
def test_images_stand_upright(tmp_path, name, mode):
    image = Image.new(mode, (32, 16))
    image.paste({"RGB": (255, 255, 255), "L": 255, "I;16": 65535}[mode], (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter: the left half becomes the upper one
    image.save(tmp_path / name, exif=exif)
    pixels = np.asarray(open_images(f"folder:{tmp_path}").open(0))
    assert pixels.shape == (32, 16, 3)
    assert pixels[:14].min() > 250
    assert pixels[18:].max() < 5


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode):
    Image.new(mode, (32, 32), 1000).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a.tif: expected an image .* 8 or 16 bits a channel, got mode '{mode}'"):
        load_images(f"folder:{tmp_path}")


def flipped(content):
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 255]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        *[(f"a.{kind}", share, "") for kind in ("png", "jpg", "bmp", "webp", "tif") for share in (0.02, 0.5, 0.9)],
        ("a.png", flipped, " in one piece"),
        ("a.png", lambda content: b"a text", ", got none PIL knows"),
        ("a.png", lambda content: b"", ", got an empty file"),
    ],
)
def test_files_that_are_truncated_damaged_or_no_image_are_named(tmp_path, name, damage, message):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(damage(content) if callable(damage) else content[: int(damage * len(content))])
    with pytest.raises(ValueError, match=rf"{path}: expected an image{message}"):
        load_images(f"folder:{tmp_path}")
    path.unlink()
    path.mkdir()
    with pytest.raises(FileNotFoundError, match="folder: expected images"):
        load_images(f"folder:{tmp_path}")


@pytest.mark.parametrize("times", [1.5, 3])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused(tmp_path, monkeypatch, times):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 / times))
    with pytest.raises(ValueError, match=r"a.png: expected an image .*, got .*pixels"):
        load_images(f"folder:{tmp_path}")


def test_a_file_that_vanished_keeps_its_own_error(tmp_path):
    write_image(tmp_path / "a.png", "red")
    files = open_images(f"folder:{tmp_path}")
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        files.open(0)


def test_distractors_of_samples_are_the_samples():
    assert load_distractors("cifar10-samples").ids == load_images("cifar10-samples").ids


def test_an_image_set_may_be_empty_and_of_float64():
    images = load_images("cifar10-samples", n=2)
    fields = (images.labels, images.ids, images.class_names, images.mean, images.std)
    assert len(ImageSet(images.images.double(), *fields).subset([])) == 0

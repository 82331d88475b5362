import numpy as np
import pytest
import torch
from PIL import Image

from salkit import data
from salkit.data import ImageSet, load_distractors, load_images


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
    with pytest.raises(ValueError, match="n: expected 1 to 20 images, got 21"):
        cifar.sample(21)


def test_folder_of_cifar10_classes(tmp_path):
    write_image(tmp_path / "ship" / "a.png", "red")
    write_image(tmp_path / "cat" / "b.jpg", "blue")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    images = load_images(f"folder:{tmp_path}", preprocessing="cifar10")
    assert images.ids == ("cat/b.jpg", "ship/a.png")
    assert images.labels.tolist() == [3, 8]
    assert images.class_names == data.CIFAR10_CLASSES


def test_folder_with_classes_of_its_own_and_without(tmp_path):
    write_image(tmp_path / "own" / "zebra" / "a.png", "red", (300, 260))
    write_image(tmp_path / "own" / "apple" / "a.png", "red", (260, 300))
    own = load_images(f"folder:{tmp_path}/own")
    assert own.images.shape == (2, 3, 224, 224)
    assert own.class_names == ("apple", "zebra")
    assert own.labels.tolist() == [0, 1]
    write_image(tmp_path / "flat" / "a.png", "red")
    assert load_images(f"folder:{tmp_path}/flat").labels.tolist() == [-1]


def test_folder_with_imagenette_names(tmp_path):
    write_image(tmp_path / "n01440764" / "a.png", "red")
    write_image(tmp_path / "n03888257" / "a.png", "red")
    images = load_images(f"folder:{tmp_path}")
    assert images.labels.tolist() == [0, 701]
    assert images.class_names[701] == "parachute"


def test_gray_and_palette_files_become_rgb(tmp_path):
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(tmp_path / "gray.png")
    Image.new("P", (32, 32), 3).save(tmp_path / "palette.png")
    assert load_images(f"folder:{tmp_path}", preprocessing="cifar10").images.shape == (2, 3, 32, 32)


def test_distractors_of_samples_are_the_samples():
    assert load_distractors("cifar10-samples").ids == load_images("cifar10-samples").ids


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"name: expected one of .* got 'mnist'"):
        load_images("mnist")
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'val'"):
        load_images("cifar10", split="val")
    with pytest.raises(ValueError, match="preprocessing: expected one of"):
        load_images(f"folder:{tmp_path}", preprocessing="mnist")
    with pytest.raises(FileNotFoundError, match="folder: expected a folder of images"):
        load_images(f"folder:{tmp_path}/missing")
    with pytest.raises(FileNotFoundError, match="folder: expected images"):
        load_images(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_a_missing_download_says_what_to_put_where(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"is not in {tmp_path} .*copy"):
        load_images(name, root=tmp_path, download=False)


def test_image_sets_check_themselves():
    images = torch.zeros(2, 3, 4, 4)
    fields = (("a", "b"), ("x",), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match=r"images: expected shape \(2, 3, H, W\)"):
        ImageSet(images[:1], torch.zeros(2, dtype=torch.int64), *fields)
    with pytest.raises(ValueError, match=r"labels: expected shape \(2,\)"):
        ImageSet(images, torch.zeros(3, dtype=torch.int64), *fields)
    with pytest.raises(ValueError, match="ids: expected unique names"):
        ImageSet(images, torch.zeros(2, dtype=torch.int64), ("a", "a"), *fields[1:])

"""Masker networks: what they learn, their losses by hand, training that can be cut short, checkpoints."""

import json
import math
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from salkit import masking
from salkit.data import ImageSet
from salkit.data.files import ImageFiles
from salkit.methods import DabkowskiGal, Phang
from salkit.methods.dabkowski_gal import DabkowskiGalNet
from salkit.methods.masker import bordered_variation, load_masker, masker_metadata, masker_path, save_masker
from salkit.methods.masker_training import Batches, MaskerRecipe, make_masker, measure, stages, taps_of, train_masker
from salkit.methods.phang import PhangNet
from salkit.models import Classifier, load_classifier

TAPS = ("fine", "coarse")
KINDS = ("dabkowski_gal", "phang", "phang-conditional")


@pytest.fixture
def colours():
    """Three classes: the colour of the upper left quadrant; the features of its two stages are the colours at 16 and at 8 pixels."""
    convs, last = [nn.Conv2d(3, 3, 2, stride=2, bias=False) for _ in range(2)], nn.Linear(3, 3, bias=False)
    for conv in convs:
        conv.weight.data.copy_(torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 2, 2) / 4)
    last.weight.data.copy_(40 * torch.eye(3))
    window = nn.ZeroPad2d((0, -4, 0, -4)), nn.ZeroPad2d((0, 4, 0, 4))  # keeps the quadrant only
    stages = {"fine": nn.Sequential(convs[0], nn.ReLU()), "coarse": nn.Sequential(convs[1], *window, nn.ReLU())}
    return Classifier(nn.Sequential(OrderedDict(stages | {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "last": last})))


def patches(n, generator):
    """Images whose four quadrants have a patch of a random colour each, and the colour (class) of the first."""
    kinds = torch.randint(3, (n, 2, 2), generator=generator)
    patch = F.one_hot(kinds, 3).permute(0, 3, 1, 2).float()
    grid = F.pad(patch.repeat_interleave(8, 2).repeat_interleave(8, 3).view(n, 3, 2, 8, 2, 8), (4, 4, 0, 0, 4, 4)).reshape(n, 3, 32, 32)
    return grid + 0.05 * torch.randn(n, 3, 32, 32, generator=generator), kinds[:, 0, 0]


@pytest.fixture
def tiny_set():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(10, 32, 32, 3), dtype=np.uint8)
    labels = [i % 3 for i in range(10)]
    return ImageFiles([f"image {i}" for i in range(10)], labels, lambda i: Image.fromarray(pixels[i]), ("red", "green", "blue"), "cifar10")


@pytest.fixture
def held_out():
    inputs, labels = patches(5, torch.Generator().manual_seed(9))
    return ImageSet(inputs, labels, tuple("abcde"), ("red", "green", "blue"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def recipe_of(kind, **more):
    images = (24, 32) if kind == "dabkowski_gal" else (40,)
    return MaskerRecipe(kind, **{"widths": (4,), "images": images, "batch_size": 4, "eval_every": 3} | more)


def masker_of(kind, classifier, **more):
    source, conditional = kind.removesuffix("-conditional"), kind.endswith("conditional")
    return make_masker(classifier, TAPS, recipe_of(source, class_conditional=conditional, **more), side=32)


def method_of(kind, masker, **more):
    return DabkowskiGal(masker, **more) if kind == "dabkowski_gal" else Phang(masker, class_conditional=kind.endswith("conditional"))


# --- What they learn ------------------------------------------------------------------------------------------------------------------


def learn(masker, classifier, lr, n_steps, area_ramp):
    """Plain Adam on synthetic images: the kit's own random crops would move the quadrant."""
    generator = torch.Generator().manual_seed(0)
    for phase, steps in zip(masker.phases(), n_steps, strict=True):
        adam = torch.optim.Adam(phase.parameters, lr)
        for step in range(steps):
            inputs, labels = patches(24, generator)
            area = min(1.0, (step + 1) / (area_ramp * steps)) if area_ramp else 1.0
            masker.train()
            loss = masker.loss(phase.name, classifier, inputs, labels, generator, area)
            adam.zero_grad()
            loss.backward()
            adam.step()


# The initial weights of Phang's last layer saturate the sigmoid; from seed 0 the masks start, and stay, empty where the patch is.
@pytest.mark.parametrize(("kind", "seed"), [("dabkowski_gal", 0), ("phang", 2), ("phang-conditional", 1)])
def test_maskers_learn_where_the_net_looks(colours, held_out, kind, seed):
    masker = masker_of(kind, colours, widths=(8,), seed=seed)
    learn(masker, colours, *((1e-2, (40, 70), 0.5) if kind == "dabkowski_gal" else (3e-3, (60,), 0.0)))
    method = method_of(kind, masker, confidence=0.0)
    inputs, labels = patches(40, torch.Generator().manual_seed(99))
    assert (colours(inputs).argmax(1) == labels).all()
    heatmaps = method.attribute(colours, inputs, labels)
    patch = heatmaps[:, 4:12, 4:12].mean((1, 2))
    others = torch.stack([heatmaps[:, y : y + 8, x : x + 8].mean((1, 2)) for y, x in ((4, 20), (20, 4), (20, 20))]).amax(0)
    assert (patch > others).float().mean() > 0.9
    assert patch.mean() > others.mean() + 0.2, "the patch that decides the class, and none of the three like it"
    # Polarity: what the map calls salient keeps the class, the rest does not.
    keep, drop = ((colours(inputs * m[:, None])[torch.arange(40), labels]).exp().mean() for m in (heatmaps, 1 - heatmaps))
    assert keep > drop + 0.1
    false, whole = method.attribute(colours, inputs, labels.roll(1)), colours(inputs)[torch.arange(40), labels].exp().mean()
    found = measure(masker, colours, replace(held_out, images=inputs, labels=labels, ids=tuple(map(str, range(40)))))
    expected = {"area": heatmaps.mean(), "area_false": false.mean(), "whole": whole, "kept": keep, "removed": drop}
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-5)
    if kind == "dabkowski_gal":
        # False classes are asked for in training, too: their masks shall not show the true class.
        differs = labels != labels.roll(1)
        assert false[differs][:, 4:12, 4:12].mean() < heatmaps[differs][:, 4:12, 4:12].mean() - 0.2


# --- Training -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "opened"), [("dabkowski_gal", 18), ("dabkowski_gal", 47), ("phang", 30), ("phang", 3)])
def test_training_that_was_cut_short_goes_on_as_if_nothing_had_been(tmp_path, colours, tiny_set, held_out, kind, opened):
    recipe = recipe_of(kind, area_ramp=0.5)
    undisturbed = masker_of(kind, colours)
    log = train_masker(undisturbed, colours, tiny_set, held_out, recipe, show_progress=False)
    calls = []

    def fail(i):
        calls.append(i)
        if len(calls) > opened:
            raise KeyboardInterrupt
        return tiny_set.open(i)

    state = tmp_path / "state.pt"
    failing = replace(tiny_set, open=fail)
    with pytest.raises(KeyboardInterrupt):
        train_masker(masker_of(kind, colours), colours, failing, held_out, recipe, state_path=state, show_progress=False)
    # After 3 images of 4 the first measurement has not been made: training starts anew.
    assert state.exists() == (opened > 12)
    resumed = masker_of(kind, colours, seed=1 if opened > 12 else 0)  # what it starts from is overwritten by the state
    again = train_masker(resumed, colours, tiny_set, held_out, recipe, state_path=state, show_progress=False)
    # The same numbers in the same order: equal but for what is rounded differently after a reload.
    torch.testing.assert_close(resumed.state_dict(), undisturbed.state_dict(), atol=1e-6, rtol=1e-5)
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(log), rtol=1e-5, atol=1e-6)
    fresh = masker_of(kind, colours)
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), undisturbed.parameters(), strict=True)), "something was learned"
    once_more = train_masker(masker_of(kind, colours), colours, tiny_set, held_out, recipe, state_path=state, show_progress=False)
    assert once_more == again, "a finished training is not begun again"


def test_learning_curve_and_phases(colours, tiny_set, held_out):
    masker = masker_of("dabkowski_gal", colours)
    before = {k: v.clone() for k, v in masker.state_dict().items()}
    parameters = {k: v.clone() for k, v in colours.state_dict().items()}
    recipe = recipe_of("dabkowski_gal", images=(24, 4))
    log = train_masker(masker, colours, tiny_set, held_out, recipe, show_progress=False)
    keys = {"phase", "step", "images", "loss", "area", "area_false", "whole", "kept", "removed"}
    assert all(row.keys() == keys for row in log)
    assert [(row["phase"], row["step"], row["images"]) for row in log] == [("embedding", 3, 12), ("embedding", 6, 24), ("masks", 1, 28)]
    assert all(0 <= row[name] <= 1 for row in log for name in ("area", "area_false", "whole", "kept", "removed"))
    # The held-out images are what `measure` is about.
    true_class = colours(held_out.images)[torch.arange(5), held_out.labels].exp().mean().item()
    assert log[0]["whole"] == pytest.approx(true_class, abs=1e-6)
    assert not masker.training
    assert all(torch.equal(v, parameters[k]) for k, v in colours.state_dict().items()), "the classifier stays as it is"
    # Phase by phase: one step over the masks moves each of their parameters by at most the rate, and leaves the embedding.
    embedding_only = masker_of("dabkowski_gal", colours)
    assert {"embedding.weight", "head.weight"} <= {k for k, v in masker.named_parameters() if not torch.equal(v, before[k])}
    assert all((v - before[k]).abs().max() < 1.01e-3 for k, v in masker.named_parameters() if k != "embedding.weight")
    train_masker(embedding_only, colours, tiny_set, held_out, recipe_of("dabkowski_gal", images=(24, 8)), show_progress=False)
    assert torch.equal(embedding_only.embedding.weight, masker.embedding.weight), "the second phase leaves the embedding alone"


def test_training_needs_labelled_images(colours, tiny_set, held_out):
    for labels, ids in (([0, -1], ["a", "b"]), ([], [])):
        files = replace(tiny_set, ids=ids, labels=labels)
        with pytest.raises(ValueError, match="train: expected at least one image, all of them labelled"):
            train_masker(masker_of("phang", colours), colours, files, held_out, recipe_of("phang"), show_progress=False)


def test_stages_scale_the_sources_schedule(colours):
    dabkowski_gal, phang = masker_of("dabkowski_gal", colours), masker_of("phang", colours)

    def sizes(masker, **settings):
        return [(name, *found) for name, _, *found in stages(masker, MaskerRecipe(masker.kind, **settings))]

    assert sizes(dabkowski_gal) == [("embedding", 128, 8500, 4000), ("masks", 64, 3000, 1_000_000)]
    steps = 3558  # a fifth of 1 281 167 images in batches of 72
    assert sizes(phang) == [("masks", 72, 60 * steps, 20 * steps)]
    assert sizes(phang, images=(7_200,)) == [("masks", 72, 100, 33)]
    # 85 of 8500 steps: the rate falls after 40 instead of 4000.
    assert sizes(dabkowski_gal, images=(859, 5), batch_size=10) == [("embedding", 10, 85, 40), ("masks", 10, 1, 333)]
    for images in ((10,), (10, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"images: expected a number >= 1 for each phase \['embedding', 'masks'\]"):
            stages(dabkowski_gal, MaskerRecipe("dabkowski_gal", images=images))


@pytest.mark.parametrize("size", [None, 16])
def test_batches_are_the_same_whatever_step_they_start_from(tiny_set, size):
    recipe = recipe_of("phang", size=size)
    torch.manual_seed(5)
    whole = Batches(tiny_set, 4, recipe, range(8))
    torch.manual_seed(6)
    late = Batches(tiny_set, 4, recipe, range(5, 8))
    assert len(late) == 3
    torch.testing.assert_close([late[i] for i in range(3)], [whole[i] for i in range(5, 8)], atol=0, rtol=0)
    images, labels = whole[0]
    assert images.shape == (4, 3, size or 32, size or 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert not torch.equal(whole[0][0], Batches(tiny_set, 4, recipe_of("phang", seed=1), range(8))[0][0])


def test_every_epoch_is_a_permutation(tiny_set):
    opened = []
    files = replace(tiny_set, open=lambda i: opened.append(i) or tiny_set.open(i))
    batches = Batches(files, 4, recipe_of("phang"), range(10))
    labels = torch.cat([batches[i][1] for i in range(10)])
    # 40 images are four epochs of ten, whose borders fall inside batches.
    epochs = [opened[10 * e : 10 * (e + 1)] for e in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert labels.tolist() == [tiny_set.labels[i] for i in opened]


def test_crops_are_normalised_and_as_large_as_the_source_has_them():
    # A white image stays white whatever the crop: (1 - mean) / std.
    files = ImageFiles(["white"], [0], lambda i: Image.new("RGB", (50, 40), "white"), ("only",), "cifar10")
    images, _ = Batches(files, 2, recipe_of("phang"), range(1))[0]
    expected = torch.tensor([(1 - 0.4914) / 0.2023, (1 - 0.4822) / 0.1994, (1 - 0.4465) / 0.2010])
    torch.testing.assert_close(images, expected.view(1, 3, 1, 1).expand(2, 3, 32, 32), atol=1e-5, rtol=0)
    # A ramp of 64 values over the width: the share of it that a crop shows, at areas >= 0.3 and an aspect >= 3/4, is above
    # sqrt(0.3 * 3/4) = 0.47; torchvision's default of 0.08 goes down to 0.24.
    ramp = Image.fromarray(np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2))
    # 0.47 less half a pixel of the crop at either side.
    for kind, low, high in (("dabkowski_gal", 0.42, 1.0), ("phang", 0.2, 0.4)):
        images, _ = Batches(replace(files, open=lambda i: ramp), 200, recipe_of(kind), range(1))[0]
        assert low < ((images.amax((2, 3)) - images.amin((2, 3)))[:, 0] * 0.2023).min() < high


# --- Checkpoints and errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_make_the_same_masks(tmp_path, colours, kind):
    known = {"classes": (2, 0) if kind == "dabkowski_gal" else None}
    masker = masker_of(kind, colours, **known).eval()
    for module in masker.modules():
        if isinstance(module, nn.BatchNorm2d):  # buffers have to be kept, too
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    path = tmp_path / "masker.safetensors"
    save_masker(masker, path, {"classifier": "colours", "log": [{"step": 1}]})
    assert [p.name for p in tmp_path.iterdir()] == ["masker.safetensors"], "no half-written file stays"
    assert masker_metadata(path) == {"kind": masker.kind, "settings": masker.settings, "classifier": "colours", "log": [{"step": 1}]}
    loaded = load_masker(path)
    assert type(loaded) is type(masker)
    assert loaded.taps == masker.taps == TAPS
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    inputs, target = patches(3, torch.Generator().manual_seed(0))[0], torch.tensor([2, 0, 2])
    maps = [method_of(kind, m).attribute(colours, inputs, target) for m in (masker, path, str(path))]
    # float16 has 11 bits: weights are off by up to 2^-12 of themselves, a mask in (0, 1) by a few times that.
    torch.testing.assert_close(maps[1], maps[0], atol=5e-3, rtol=0)
    assert torch.equal(maps[1], maps[2])
    assert maps[0].std() > 0.01
    save_masker(masker_of(kind, colours, seed=7, **known), path)
    assert not torch.equal(method_of(kind, path).attribute(colours, inputs, target), maps[1]), "a file that changed is read anew"
    with pytest.raises(FileNotFoundError, match=r"masker: expected a checkpoint \(shipped: .*cifar10-resnet20"):
        load_masker(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, r"masker: expected a masker's checkpoint, got .*masker\.safetensors, whose header has \[\]"),
        ({"kind": '"unet"', "settings": "{}"}, r"masker: expected one of \['dabkowski_gal', 'phang'\], got 'unet'"),
        ({"kind": '"phang"', "settings": "{"}, r"masker: expected a header of JSON, got .*masker\.safetensors, where"),
        ({"kind": '"phang"', "settings": '{"depth": 3}'}, r"masker: expected the settings of 'phang' in .*, got \{'depth': 3\}"),
        ({"kind": '"phang"', "settings": None}, r"masker\.safetensors: expected the weights of a PhangNet .*other shapes"),
    ],
)
def test_a_header_that_does_not_fit_is_named(tmp_path, colours, header, message):
    path, masker = tmp_path / "masker.safetensors", masker_of("phang", colours)
    if header.get("settings", "") is None:
        header = header | {"settings": json.dumps(masker.settings | {"channels": [1, 1]})}
    save_file({k: v.contiguous() for k, v in masker.state_dict().items()}, path, header)
    with pytest.raises(ValueError, match=message):
        load_masker(path)


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("phang", "phang-conditional", "masker: expected one trained with class_conditional=True"),
        ("phang-conditional", "phang", "masker: expected one trained with class_conditional=False"),
        ("phang-conditional", "phang-conditional", r"target: expected classes this masker knows \(2 of them\), got \[1\]"),
        ("dabkowski_gal", "dabkowski_gal", r"target: expected classes this masker knows \(2 of them\), got \[1\]"),
    ],
)
def test_maskers_of_the_wrong_kind_are_named(colours, kind, asked, message):
    with pytest.raises(ValueError, match=message):
        method_of(asked, masker_of(kind, colours, classes=(0, 2))).attribute(colours, torch.zeros(1, 3, 32, 32), torch.tensor([1]))


def test_wrong_maskers_cannot_be_made():
    for arguments in ((["fine"], [3], 3), (TAPS, [3], 3), (["a", "b", "c"], [1, 1, 1], 3, (8,))):
        with pytest.raises(ValueError, match="taps: expected two or more"):
            DabkowskiGalNet(*arguments)
    with pytest.raises(ValueError, match="classes: expected at least two"):
        DabkowskiGalNet(TAPS, [3, 3], [1])
    with pytest.raises(ValueError, match=r"embedding: expected one of .* got 'zeros'"):
        MaskerRecipe("phang", embedding="zeros")


def test_masker_settings_come_from_the_classifier(colours, mean_pixel, reference_classifier):
    assert torch.equal(colours.class_weights(), 40 * torch.eye(3))
    assert reference_classifier.class_weights().shape == (10, 512)
    with pytest.raises(ValueError, match="net: expected a last layer of type Linear, got none in MeanPixel"):
        mean_pixel.class_weights()
    masker = masker_of("dabkowski_gal", colours, embedding="classifier", classes=(2, 0))
    assert torch.equal(masker.embedding.weight, colours.class_weights()[[2, 0]])
    assert masker.settings == {"taps": list(TAPS), "channels": [3, 3], "widths": [4], "classes": [2, 0]}
    net = load_classifier("cifar10-resnet20", pretrained=False)
    phang = make_masker(net, taps_of("cifar10-resnet20"), MaskerRecipe("phang"), side=32)
    assert phang.taps == ("features.stage2", "features.stage3"), "as published, the last two"
    assert phang.settings["channels"] == [32, 64]
    before = torch.random.get_rng_state()
    same = [make_masker(net, taps_of("cifar10-resnet20"), MaskerRecipe("dabkowski_gal", widths=(4, 4)), side=32) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(same[0].parameters(), same[1].parameters(), strict=True))
    with pytest.raises(ValueError, match="embedding: expected class weights of length 32, as the last tap has, got 64"):
        make_masker(net, ("features.stage1", "features.stage2"), MaskerRecipe("dabkowski_gal", embedding="classifier"), side=32)


# --- The methods around them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_which_maps_differ_from_label_to_label(colours, kind):
    method = method_of(kind, masker_of(kind, colours), confidence=0.5)
    for name, value in method.masker.named_buffers():
        if name.endswith("running_var"):
            value.fill_(0.1)
    method.masker.train()  # batch norm would then mix the images of a batch
    state = {k: v.clone() for k, v in method.masker.state_dict().items()}
    inputs = patches(1, torch.Generator().manual_seed(1))[0].expand(3, -1, -1, -1)
    maps = method.attribute(colours, inputs, torch.arange(3))
    assert all(torch.equal(v, state[k]) for k, v in method.masker.state_dict().items()), "running statistics stay"
    assert 0 <= maps.min() < maps.max() <= 1
    assert maps.std() > 0.01
    differ = min((maps[i] - maps[j]).abs().max().item() for i, j in ((0, 1), (0, 2), (1, 2)))
    if kind == "phang":
        assert differ < 1e-6, "rounding in passes of another size"
    else:
        assert differ > 1e-3
    assert getattr(method, "depends_on_label", True) == (kind != "phang")
    assert method.cost().per == ("image" if kind == "phang" else "pair")
    # Targets count in the label list; a masker goes by class.
    reordered = Classifier(colours.net, labels=[2, 0])
    torch.testing.assert_close(method.attribute(reordered, inputs[:2], torch.tensor([0, 1])), maps[[2, 0]], atol=1e-5, rtol=0)


def test_phang_mask_by_hand(colours):
    torch.manual_seed(0)
    masker = masker_of("phang", colours).eval()
    inputs, _ = patches(2, torch.Generator().manual_seed(2))
    _, features = colours.features(inputs, TAPS)
    reduced = []
    for block, feature in zip(masker.reduce, features, strict=True):
        # A new batch norm in eval mode divides by sqrt(1 + 1e-5).
        hidden = torch.einsum("oi,nihw->nohw", block[0].weight[:, :, 0, 0], feature).relu() / math.sqrt(1 + 1e-5)
        reduced.append(F.interpolate(hidden, (8, 8), mode="bilinear", align_corners=False))
    coarse = F.conv2d(torch.cat(reduced, 1), masker.last.weight, masker.last.bias, padding=1).sigmoid()
    expected = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(masker.masks(colours, inputs, torch.tensor([0, 1])), expected, atol=1e-6, rtol=1e-5)


def test_dabkowski_gal_gate_and_head_by_hand(colours):
    masker = masker_of("dabkowski_gal", colours).eval()
    inputs, _ = patches(2, torch.Generator().manual_seed(2))
    classes = torch.tensor([1, 2])
    _, (fine, coarse) = colours.features(inputs, TAPS)
    maps = []
    for confidence in (0.0, 6.0):
        similar = (coarse * masker.embedding.weight[classes][:, :, None, None]).sum(1, keepdim=True)
        gated = coarse / (1 + torch.exp(confidence - similar))
        h = masker.head(masker.blocks[0](gated, fine / math.sqrt(1 + 1e-5)))
        mask = h[:, :1].abs() / (h[:, :1].abs() + h[:, 1:].abs())
        maps.append(F.interpolate(mask, (32, 32), mode="bilinear", align_corners=False))
        torch.testing.assert_close(masker.masks(colours, inputs, classes, confidence), maps[-1], atol=1e-5, rtol=1e-4)
    assert (maps[0] - maps[1]).abs().max() > 1e-3
    for parameter in masker.head.parameters():
        parameter.data.zero_()
    assert torch.equal(masker.masks(colours, inputs, classes), torch.zeros(2, 1, 32, 32)), "0 / 0 in the source"


# --- Losses by hand -------------------------------------------------------------------------------------------------------------------


def test_bordered_variation_by_hand():
    mask = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.4, 0.0], [1.0, 0.0, 0.6]])
    right = 0.5**2 + 0.5**2 + 0.2**2 + 0.4**2 + 1.0**2 + 0.6**2
    down = 0.2**2 + 0.1**2 + 1.0**2 + 0.8**2 + 0.4**2 + 0.6**2
    # Upper, lower, left, right line; corners count twice.
    border = (0.25 + 1) + (1 + 0.36) + (0.04 + 1) + (1 + 0.36)
    expected = (right + down + 0.3 * border) / 2
    assert bordered_variation(mask[None, None]).item() == pytest.approx(expected, rel=1e-6)
    both = torch.stack([mask, torch.zeros(3, 3)])[:, None]
    assert bordered_variation(both).item() == pytest.approx(expected / 2, rel=1e-6), "the mean over the batch"


def test_dabkowski_gal_embedding_loss_by_hand(colours):
    masker, asked = masker_of("dabkowski_gal", colours), []
    activation = masker.activation
    masker.embedding.weight.data *= 20
    masker.activation = lambda top, row: asked.append(row) or activation(top, row)
    inputs, labels = patches(400, torch.Generator().manual_seed(0))
    found = masker.loss("embedding", colours, inputs, labels, torch.Generator().manual_seed(3)).item()
    false = asked[0] != labels
    assert abs(false.float().mean() - 0.5) < 0.125, "5 deviations of a share of 400"
    assert set(asked[0][labels == 0].tolist()) == {0, 1, 2}
    weights = masker.embedding.weight[asked[0]][:, :, None, None]
    e = (colours.features(inputs, TAPS)[1][1] * weights).sum(1).mean((1, 2))
    assert found == pytest.approx(F.cross_entropy(torch.stack([-e, e], 1) / 2, (~false).long()).item(), rel=1e-5)


class Tapped(nn.Module):
    """Logits by hand; features for a masker that the test replaces."""

    def __init__(self, logits):
        super().__init__()
        self.tap, self.logits = nn.Identity(), logits

    def forward(self, inputs):
        return self.logits(self.tap(inputs))


@pytest.mark.parametrize("area", [1.0, 0.5, 0.0])
def test_dabkowski_gal_loss_by_hand(area):
    generator, seen, asked, n = torch.Generator().manual_seed(0), [], [], 200
    classifier = Classifier(Tapped(lambda x: seen.append(x) or 8 * x.mean((2, 3))))
    inputs, labels = torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 3
    masks = torch.tensor([0.0, 0.4, 1.0])[torch.randint(3, (n, 1, 8, 8), generator=generator)]
    masker = DabkowskiGalNet(["tap", "tap"], [3, 3], 3, (4,))
    masker.masks = lambda classifier, x, classes: asked.append(classes) or masks
    found = masker.loss("masks", classifier, inputs, labels, generator, area).item()
    false = asked[0] != labels
    assert abs(false.float().mean() - 0.3) < 0.17, "5 deviations of a share of 200"
    assert set(asked[0][labels == 0].tolist()) == {0, 1, 2}
    preserved, destroyed = seen[-1].chunk(2)
    # Blurring noise of deviation 0.066 leaves no more than it; other infills are noise of 0.24 around a colour below 0.73.
    blurred = masking.gaussian_blur(inputs, 1, 8 * 11 / 224, "constant")
    for composite, shown, hidden in ((preserved, masks == 1, masks == 0), (destroyed, masks == 0, masks == 1)):
        assert (composite - inputs)[shown.expand_as(inputs)].std() == pytest.approx(0.066, rel=0.03)
        is_blur = ((composite - blurred) * hidden).abs().amax((1, 2, 3)) < 0.066 * 5
        assert abs(is_blur.float().mean() - 0.5) < 0.18
        assert ((composite * hidden)[~is_blur].abs() < 0.73 + 5 * 0.242).all()

    def margin(z, y, least, sign):
        return max(0.0, sign * (max(z[k] for k in range(3) if k != y) - z[y]) + least)

    total = 0.0
    for y, asks_false, *shown in zip(labels.tolist(), false.tolist(), preserved.double(), destroyed.double(), strict=True):
        kept, dropped = ((8 * x.mean((1, 2))).tolist() for x in shown)
        true_d, true_p = margin(dropped, y, 5, -1), margin(kept, y, 1, 1)
        false_d, false_p = margin(dropped, y, 1, 1), margin(kept, y, 1, -1)
        total += false_d + 0.3 * false_p if asks_false else true_d + 0.3 * true_p
    size = (masks.double() + 0.0005).pow(0.3).mean()
    # Sums of 200 float32 values of up to 15.
    assert found == pytest.approx(total / n + 8 * area * size.item() + 0.005 * bordered_variation(masks).item(), rel=1e-5)


@pytest.mark.parametrize("area", [1.0, 0.25])
def test_phang_loss_by_hand(area):
    generator = torch.Generator().manual_seed(0)
    classifier, n = Classifier(Tapped(lambda x: 8 * x.mean((2, 3)))), 12
    inputs = torch.randn(n, 3, 4, 4, generator=generator)
    masks = torch.rand(n, 1, 4, 4, generator=generator)
    # Class 0 where the mask is and, weaker, class 1 where it is not: known, found inside and lost outside.
    inputs[:4] *= 0.1
    inputs[:4, 0] += 2 * (masks[:4, 0] > 0.5)
    inputs[:4, 1] += 1.2 * (masks[:4, 0] < 0.5)
    labels = torch.tensor([0] * 6 + [1, 2, 1, 2, 1, 2])
    masker = PhangNet(["tap", "tap"], [3, 3], 3, width=4)
    masker._decode = lambda *arguments: masks
    found = masker.loss("masks", classifier, inputs, labels, torch.Generator(), area).item()

    x, m, total, cases = inputs.double().numpy(), masks.double().numpy(), 0.0, set()
    for i, y in enumerate(labels.tolist()):
        z, z_in, z_out = (8 * shown.mean((1, 2)) for shown in (x[i], x[i] * m[i], x[i] * (1 - m[i])))
        p_out = np.exp(z_out) / np.exp(z_out).sum()
        works_in, known, lost = z_in.argmax() == y, z.argmax() == y, z_out.argmax() != y
        cases |= {("inside", works_in), ("known", known), ("lost", known and lost)}
        total += -np.log(np.exp(z_in[y]) / np.exp(z_in).sum()) - area * max(0.0, works_in - m[i].mean())
        total += known * (p_out * np.log(p_out)).sum() - 10 * area * max(0.0, float(known and lost) - m[i].mean())
        grid = m[i, 0]
        variation = (np.diff(grid, axis=0) ** 2).sum() + (np.diff(grid, axis=1) ** 2).sum()
        variation += 0.3 * sum((line**2).sum() for line in (grid[0], grid[-1], grid[:, 0], grid[:, -1]))
        total += 2 * 0.001 * variation / 2
    assert len(cases) == 6, "every indicator is seen both true and false"
    # Float32 against float64: sums of a dozen values of up to 10.
    assert found == pytest.approx(total / n, rel=1e-5)


# --- Reading the classifier -----------------------------------------------------------------------------------------------------------


def test_features_are_the_outputs_of_the_named_modules(colours):
    inputs, _ = patches(3, torch.Generator().manual_seed(0))
    logits, (coarse, fine) = colours.features(inputs, ("coarse", "fine"))
    torch.testing.assert_close(logits, colours.logits(inputs))
    torch.testing.assert_close(fine, F.avg_pool2d(inputs, 2).relu(), atol=1e-6, rtol=0)
    quarter = F.avg_pool2d(fine, 2)
    quarter[..., 4:, :] = 0
    quarter[..., 4:] = 0
    torch.testing.assert_close(coarse, quarter, atol=1e-6, rtol=0)
    assert colours.features(inputs, ())[1] == []
    with pytest.raises(RuntimeError):  # hooks are removed even when the net fails
        colours.features(torch.ones(1, 5, 32, 32), TAPS)
    assert not any(module._forward_hooks for module in colours.net.modules())


def test_features_of_a_module_used_twice_are_its_last(mean_pixel):
    pool, inputs = nn.AvgPool2d(2), torch.arange(48.0).view(1, 3, 4, 4)
    _, (last,) = Classifier(nn.Sequential(pool, pool, nn.Flatten())).features(inputs, ["0"])
    assert torch.equal(last, inputs.mean((2, 3), keepdim=True))
    with pytest.raises(ValueError, match=r"taps: expected names of modules of MeanPixel, got \['layer1', 'layer2'\]"):
        mean_pixel.features(torch.ones(1, 3, 2, 2), ["layer1", "layer2"])


@pytest.mark.parametrize("name", KINDS)
def test_shipped_maskers_are_small_and_say_how_they_were_trained(name):
    path = masker_path(f"{name}-efficientnet-lite0")
    header = masker_metadata(path)
    assert header["classifier"] == "efficientnet-lite0"
    assert (header["n_train"], header["n_val"]) == (320, 80)
    assert path.stat().st_size < 6_000_000
    last = header["log"][-1]
    assert 0 < last["area"] < 1
    assert last["kept"] < last["whole"]
    assert last["removed"] < last["whole"]

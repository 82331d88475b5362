import math
from itertools import combinations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from salkit.data import load_images
from salkit.data.images import ImageSet
from salkit.engine.executors import open_engine
from salkit.evaluation.evaluate import evaluate, probabilities
from salkit.methods import get_method
from salkit.models import Classifier, load_classifier
from salkit.report.tables import metric_values
from salkit.studies.mosaics import add_localisation, choose_mosaics, halves, side_by_side


class Halves(nn.Module):
    """Logits are the channels' means, of which the left half counts a little more: a mosaic is not its mirror image to the net."""

    def forward(self, inputs):
        side = inputs.shape[-1] // 2
        return 0.6 * inputs[..., :side].mean((2, 3)) + 0.4 * inputs[..., side:].mean((2, 3))


CLASSES = [0, 1, 2, 0, 1, 2, 2]
STRENGTHS = [4.0, 5.0, 3.0, 6.5, 3.7, 5.6, 0.0]


@pytest.fixture
def scene():
    """Plain images of one colour; the last one is gray, of which the net says class 0."""
    images = torch.zeros(7, 3, 4, 8)
    for image, (channel, strength) in zip(images, zip(CLASSES, STRENGTHS, strict=True), strict=True):
        image[channel] = strength
    ids = tuple("abcdefg")
    return Classifier(Halves()), ImageSet(images, torch.tensor(CLASSES), ids, ("red", "green", "blue"), (0.0,) * 3, (1.0,) * 3)


def by_hand(min_prob, max_uses):
    """The rule once more: for each pair of images the better order, by the formula of the softmax; then the best one that is allowed."""

    def least(a, b):
        logits = [0.0] * 3
        logits[CLASSES[a]] += 0.6 * STRENGTHS[a]
        logits[CLASSES[b]] += 0.4 * STRENGTHS[b]
        return min(math.exp(logits[CLASSES[i]]) for i in (a, b)) / sum(map(math.exp, logits))

    left = {max((a, b), (b, a), key=lambda pair: least(*pair)) for a, b in combinations(range(6), 2) if CLASSES[a] != CLASSES[b]}
    chosen = []
    while allowed := [p for p in left if least(*p) >= min_prob and all(sum(i in q for q in chosen) < max_uses for i in p)]:
        chosen.append(max(allowed, key=lambda pair: least(*pair)))
        left.remove(chosen[-1])
    return chosen


@pytest.mark.parametrize(("min_prob", "max_uses"), [(0.0, 99), (0.35, 99), (0.2, 1), (0.2, 2)])
def test_the_rule(scene, min_prob, max_uses):
    found, expected = choose_mosaics(*scene, min_prob=min_prob, max_uses=max_uses), by_hand(min_prob, max_uses)
    assert found.images.ids == tuple(f"{'abcdefg'[a]}+{'abcdefg'[b]}" for a, b in expected)
    assert found.targets.tolist() == [[CLASSES[a], CLASSES[b]] for a, b in expected]
    assert set(found.others.ids) == {i for place, i in enumerate("abcdefg") if not any(place in pair for pair in expected)}


def test_the_rules_limits_matter(scene):
    lengths = [len(by_hand(*limits)) for limits in ((0.0, 99), (0.35, 99), (0.2, 1), (0.2, 2))]
    assert lengths[0] == 12
    assert 0 < lengths[2] < lengths[3] < lengths[0]
    assert 0 < lengths[1] < 12


def test_targets_are_places_in_the_label_list(scene):
    net, images = scene[0].net, scene[1]
    found = choose_mosaics(Classifier(net, labels=[2, 0]), images.subset(range(6)), min_prob=0.0, max_uses=99)
    # Green images are never right, since the net cannot say green.
    assert not set("be") & {name for pair in found.images.ids for name in pair.split("+")}
    classes = {name: place for name, place in zip("acdf", (1, 0, 1, 0), strict=True)}
    assert found.targets.tolist() == [[classes[name] for name in pair.split("+")] for pair in found.images.ids]


def test_mosaics_are_the_central_halves_side_by_side():
    images = load_images("cifar10-samples", n=3)
    found = side_by_side(images, [(0, 2), (2, 0)])
    for mosaic, (a, b) in zip(found.images, [(0, 2), (2, 0)], strict=True):
        for x in range(16):
            assert torch.equal(mosaic[..., x], images.images[a][..., 8 + x])
            assert torch.equal(mosaic[..., 16 + x], images.images[b][..., 8 + x])
    assert found.labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="images: expected an even width, got 31"):
        side_by_side(ImageSet(images.images[..., 1:], images.labels, images.ids, images.class_names, images.mean, images.std), [(0, 1)])


def test_what_the_packaged_images_give(tmp_path):
    """What the docstring says of them."""
    classifier, images = load_classifier("efficientnet-lite0"), load_images("imagenet-samples")
    with open_engine(tmp_path, show_progress=False) as engine:
        found, two, any_number = (choose_mosaics(classifier, images, max_uses=uses, engine=engine) for uses in (3, 2, 20))
        right = probabilities(classifier, images, engine).argmax(1) == images.labels
        every = probabilities(classifier, found.images, engine)
    prob = every.gather(1, found.targets)
    assert [int(right.sum()), len(two.images), len(found.images), len(any_number.images)] == [16, 8, 12, 17]
    assert len(found.others) == 10
    assert int((every.argmax(1, keepdim=True) == found.targets).sum()) == 8
    assert (prob >= 0.05).all()
    # From the most plausible second label on.
    assert (prob.amin(1).diff() <= 0).all()
    assert found.images.ids[0] == "imagenet_13_471+imagenet_15_99"
    assert [images.class_names[a] for a in found.targets[0].tolist()] == ["cannon", "goose"]
    assert not {name for pair in found.images.ids for name in pair.split("+")} & set(found.others.ids)


def test_wrong_arguments_are_named(scene):
    classifier, images = scene
    with pytest.raises(ValueError, match=r"min_prob: expected a probability that both labels of some mosaic reach, got 0\.9; best 0\."):
        choose_mosaics(classifier, images, min_prob=0.9)
    with pytest.raises(ValueError, match="max_uses: expected an integer >= 1"):
        choose_mosaics(classifier, images, max_uses=0)
    with pytest.raises(ValueError, match="images: expected images of two classes that the net classifies right, got 1 of 2 right"):
        choose_mosaics(classifier, images.subset([0, 6]))


def test_scores_of_two_true_labels(scene):
    """From choice to table, with a map that ignores the label and one that knows where its label is."""
    classifier, images = scene
    found = choose_mosaics(classifier, images, min_prob=0.2)

    class OwnHalf:
        def attribute(self, classifier, inputs, target, *, ids, **settings):
            classes = [[CLASSES["abcdefg".index(name)] for name in pair.split("+")] for pair in ids]
            sides = [both.index(a) for both, a in zip(classes, target.tolist(), strict=True)]
            return halves(4, 8)[sides].float() + torch.arange(8) / 100

    methods = {"own": OwnHalf(), "gaussian": get_method("centered_gaussian")}
    result = evaluate(classifier, found.images, methods, targets=found.targets, distractors=found.others, keep_heatmaps=True, n_steps=8)
    result = add_localisation(result)
    assert result.localisation.dims == ("method", "image", "label")
    np.testing.assert_allclose(result.localisation_top.sel({"method": "own"}), 1.0)
    # (4 + 0.06) / (4 + 0.28) of the left map, (4 + 0.22) / (4 + 0.28) of the right one, a column.
    np.testing.assert_allclose(result.localisation.sel({"method": "own"}), [[4.06 / 4.28, 4.22 / 4.28]] * len(found.images), rtol=1e-6)
    values = metric_values(result)
    for name in ("localisation", "localisation_top"):
        np.testing.assert_allclose(values[name].sel({"method": "gaussian"}), 0.5, atol=1e-6)
    # Best effort is the completeness of the less probable of the two labels.
    other = result.completeness.isel(label=result.prob.argmin("label"))
    xr.testing.assert_allclose(values["best_effort"].transpose(*other.dims), other.drop_vars(["label", "label_name"]), atol=1e-6)


def test_localisation_wants_heatmaps_of_two_labels(scene):
    classifier, images = scene
    for settings in ({"targets": torch.zeros(7, 2, dtype=torch.int64)}, {"keep_heatmaps": True}):
        result = evaluate(classifier, images, ["random"], n_steps=4, **settings)
        with pytest.raises(ValueError, match="result: expected heatmaps for two labels an image"):
            add_localisation(result)

"""What the README promises of a CPU: an image's numbers depend on nothing but its own pairs and the settings.

Held by construction, so on any processor: the same rows go through the same calls of the net, each on one thread.
"""

import copy

import pytest
import torch
import xarray as xr
from torch import nn

from salkit import METHODS, LearnedMask, evaluate, get_method, insertion_curve, load_classifier, load_images
from salkit.evaluation.results import open_results
from salkit.models import Classifier


class Recording(nn.Module):
    """A small net with everything the kit folds and converts; notes what goes through it, and on how many threads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.act = nn.ReLU()
        self.last = nn.Linear(8 * 64, 10)
        self.calls = []

    def __deepcopy__(self, memo):  # all copies note in one list
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__ = {k: v if k == "calls" else copy.deepcopy(v, memo) for k, v in self.__dict__.items()}
        return twin

    def forward(self, inputs):
        if not isinstance(inputs, torch.fx.Proxy):
            self.calls.append((tuple(inputs.shape), inputs.detach().float().sum((1, 2, 3)).tolist(), torch.get_num_threads()))
        hidden = self.act(self.depthwise(self.act(self.norm(self.first(inputs)))))
        return self.last(nn.functional.adaptive_avg_pool2d(hidden, 8).flatten(1))


@pytest.fixture(scope="module")
def recording():
    return Classifier(Recording().eval())


@pytest.fixture(scope="module")
def pairs():
    """Three images, each with four labels, and a pool of distractors."""
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pool = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return images.repeat_interleave(4, 0), torch.arange(12) % 4, [name for name in "abc" for _ in range(4)], pool


def explain(method, classifier, pairs, rows, threads=1):
    inputs, target, ids, pool = pairs
    classifier.net.calls.clear()
    torch.set_num_threads(threads)
    try:
        maps = method.attribute(classifier, inputs[rows], target[rows], distractors=pool, ids=[ids[i] for i in rows])
    finally:
        torch.set_num_threads(1)
    return maps, sorted(classifier.net.calls)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_images_pairs_go_through_the_same_passes_whatever_is_beside_them(recording, pairs, quick, name):
    method = quick(name, recording, ("first", "depthwise"))
    everything, _ = explain(method, recording, pairs, list(range(12)))
    whole, calls = explain(method, recording, pairs, list(range(12)), threads=2)
    assert torch.equal(everything, whole), "threads"
    assert {n for *_, n in calls} <= {1}
    mixed = [11 - i if i % 2 else i for i in range(12)]  # images interleaved
    rows = [i for image in (2, 0, 1) for i in range(12) if i // 4 == image]
    assert torch.equal(explain(method, recording, pairs, rows)[0], whole[rows]), "order of the images"
    in_order = sorted(mixed, key=lambda i: (i % 4, i // 4))
    assert torch.equal(explain(method, recording, pairs, in_order)[0], whole[in_order]), "labels of an image apart, but in their order"
    alone = [explain(method, recording, pairs, list(range(4 * i, 4 * i + 4))) for i in range(3)]
    assert torch.equal(torch.cat([maps for maps, _ in alone]), whole), "other images"
    assert set(map(str, calls)) <= {str(call) for _, found in alone for call in found}, "the same contents in every call"


def test_curves_of_a_pair_are_the_same_beside_others(recording, pairs):
    inputs, target, _, _ = pairs
    heatmaps = torch.rand(12, 32, 32, generator=torch.Generator().manual_seed(3))
    recording.net.calls.clear()
    torch.set_num_threads(2)
    whole = insertion_curve(recording, inputs, target, heatmaps, n_steps=60)
    torch.set_num_threads(1)
    assert {n for *_, n in recording.net.calls[1:]} == {1}  # the first shows which layers follow each other
    apart = [insertion_curve(recording, inputs[i : i + 1], target[i : i + 1], heatmaps[i : i + 1], n_steps=60) for i in range(12)]
    assert torch.equal(torch.cat(apart), whole)


def test_a_run_on_two_images_is_the_first_two_of_a_run_on_three_and_what_attribute_gives(tmp_path, two_threads):
    classifier, images = load_classifier("cifar10-resnet20"), load_images("cifar10-samples")
    settings = {"distractors": images, "n_steps": 12, "keep_curves": True, "keep_heatmaps": True, "show_progress": False}
    small = {"n_steps": 4, "n_distractors": 2, "lr": 0.3}
    methods = {"s=2": LearnedMask(scale=2, **small), "s=1": LearnedMask(scale=1, **small), "rise": get_method("rise", n_masks=30)}
    three = evaluate(classifier, images.subset([0, 1, 2]), methods, store=tmp_path / "three", **settings)
    torch.set_num_threads(1)
    two = evaluate(classifier, images.subset([0, 1]), methods, **settings)
    xr.testing.assert_identical(two.drop_vars("pixels"), three.isel(image=slice(2)).drop_vars("pixels"))
    kept = open_results(tmp_path / "three").isel(image=slice(2))
    xr.testing.assert_identical(kept.insertion_auc, two.insertion_auc)
    inputs, target = images.images[:2].repeat_interleave(10, 0), torch.arange(20) % 10
    ids = [name for name in images.ids[:2] for _ in range(10)]
    for name, method in methods.items():
        heatmaps = method.attribute(classifier, inputs, target, distractors=images.images, ids=ids)
        kept_maps = torch.from_numpy(two.heatmap.sel({"method": name}).values).flatten(0, 1)
        assert torch.equal(kept_maps, heatmaps), name
        curves = insertion_curve(classifier, inputs, target, heatmaps, n_steps=12)
        assert torch.equal(torch.from_numpy(two.insertion_curve.sel({"method": name}).values).flatten(0, 1), curves), name
    # Masks at full resolution keep their order: rounded to fewer bits, nine pixels of ten would be tied.
    assert two.tie_share.sel({"method": "s=1"}).max() < 0.2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_pairs", [1, 2, 10, 12])
def test_masks_in_both_precisions_with_few_and_many_pairs_side_by_side(pairs, precision, n_pairs, two_threads):
    classifier = Classifier(Recording().eval())  # without a twin: the first pass makes it, which may be a worker's
    inputs, target, ids, pool = pairs
    method = LearnedMask(scale=1, n_steps=2, n_distractors=2, precision=precision, internal_batch_size=4)
    masks = method.attribute(classifier, inputs[:n_pairs], target[:n_pairs], distractors=pool, ids=ids[:n_pairs])
    assert masks.shape == (n_pairs, 32, 32)
    again = method.attribute(classifier, inputs[:n_pairs], target[:n_pairs], distractors=pool, ids=ids[:n_pairs])
    assert torch.equal(masks, again)

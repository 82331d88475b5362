import pandas as pd
import pytest
import torch
from torch import nn

from salkit.curves import auc, insertion_curve
from salkit.data import load_images
from salkit.methods import LearnedMask
from salkit.models import Classifier
from salkit.studies.quality import SCORES, compare_schedules, learning_quality, per_image

COLUMNS = ["schedule", "seed", "image", "label", "composites", "f", "g", "predicted"]


@pytest.fixture(scope="module")
def samples():
    return load_images("cifar10-samples")


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(392, 4)))


def test_scores_along_the_way_end_where_learning_ends(classifier, samples):
    images = samples.subset([3, 7])
    steps = {"a": {"n_steps": 7}, "b": {"n_steps": 3, "schedule": "settled"}}
    methods = {name: LearnedMask(scale=4, n_distractors=2, **settings) for name, settings in steps.items()}
    found = learning_quality(classifier, images, samples, methods, 3, 8, seed=5)
    assert {name: sorted(set(rows.composites)) for name, rows in found.groupby("schedule")} == {"a": [2, 4, 10, 14], "b": [2, 4, 6]}
    prob = classifier(images.images).exp()
    for i, image in enumerate(images.ids):
        rows = found[(found.schedule == "a") & (found.image == image) & (found.composites == 14)]
        first, second = prob[i].topk(2).indices.tolist()
        third = next(a % 4 for a in range(first + 1, first + 4) if a % 4 != second)
        assert rows.label.tolist() == [first, second, third]
        assert rows.predicted.tolist() == [True, False, False]
        target = torch.tensor(rows.label.tolist())
        inputs, ids = images.images[i].expand(3, -1, -1, -1), [image] * 3
        logits = methods["a"].learn(classifier, inputs, target, distractors=samples.images, seed=5, ids=ids)
        heatmaps = methods["a"].heatmaps(logits.half().float(), (32, 32))
        g = auc(insertion_curve(classifier, inputs, target, heatmaps, n_steps=8))
        torch.testing.assert_close(torch.tensor(rows.g.tolist()), g, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.tensor(rows.f.tolist()), prob[i, target], rtol=0, atol=1e-6)


def test_stopping_early_is_the_beginning_of_the_whole(classifier, samples):
    settings = (classifier, samples.subset([0]), samples)
    for schedule in ("paper", "settled"):
        method = {"m": LearnedMask(scale=4, schedule=schedule, n_steps=10, n_distractors=3)}
        whole, part = learning_quality(*settings, method, 2, 4), learning_quality(*settings, method, 2, 4, most=8)
        assert sorted(set(part.composites)) == [3, 6]
        pd.testing.assert_frame_equal(part, whole[whole.composites <= 6].reset_index(drop=True))


def test_scores_of_an_image_by_hand():
    rows = [("m", 0, "x", 1, 10, 0.8, 0.6, True), ("m", 0, "x", 2, 10, 0.1, 0.4, False), ("m", 0, "x", 3, 10, 0.0, 0.002, False)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    scores = per_image(table).iloc[0]
    # min(0.6 / 0.8, 1, 1), min(1, 0.1 / 0.4, 0.001 / 0.002), the prediction's g, and the mean of all.
    assert [scores[name] for name in SCORES] == pytest.approx([0.75, 0.25, 0.6, (0.6 + 0.4 + 0.002) / 3])


def table_of(*schedules):
    """Measurements of one label an image from (schedule, composites, seed, g of each image)."""
    rows = [(name, seed, str(i), 1, spent, 1.0, g, True) for name, spent, seed, values in schedules for i, g in enumerate(values)]
    return pd.DataFrame(rows, columns=COLUMNS)


UNSURE = "too few images to say"


@pytest.mark.parametrize(
    ("values", "verdict"), [([0.504, 0.506], "equal"), ([0.6, 0.61], "different"), ([0.6, 0.4], UNSURE), ([0.505, 0.52], UNSURE)]
)
def test_schedules_are_told_apart_by_the_whole_interval(values, verdict):
    # What a schedule had on its way does not count.
    table = table_of(("a", 10, 0, values * 3), ("a", 5, 0, [0.0] * 6), ("b", 10, 0, [0.5] * 6))
    found = compare_schedules(table, [("a", "b")]).set_index("score")
    assert found.loc["insertion AUC of the prediction", "verdict"] == verdict
    assert found.loc["worst-case completeness", "n"] == 6


def test_seeds_count_with_their_mean_or_one_by_one():
    table = table_of(("a", 10, 0, [0.4, 0.6]), ("a", 10, 1, [0.6, 0.6]), ("b", 10, 0, [0.5, 0.6]))
    found = compare_schedules(table, [("a", "b"), ("a/1", "a/0")])
    differences = found[found.score == "insertion AUC of the prediction"].difference
    assert differences.tolist() == pytest.approx([0.0, 0.1])

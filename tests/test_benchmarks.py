import dataclasses

import pytest
import torch
from torch import nn

from benchmarks import released
from benchmarks.cases import CASES, Material, settle
from benchmarks.harness import Contestant, Measurement, Row, Target, round_robin, table
from benchmarks.limits import Limits
from benchmarks.speed import curve_rows, learning_rows, torchcam_areas, torchcam_composites
from salkit.curves import auc, deletion_curve, insertion_curve
from salkit.methods import LearnedMask
from salkit.methods.pairs import Pairs
from salkit.models import Classifier

LABELS = (1, 3, 4, 8)


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
    settle(made, torch.randn(8, 3, 16, 16))
    return made.eval()


@pytest.fixture
def small():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 3]), torch.rand(4, 16, 16, generator=generator)


@pytest.mark.parametrize("scale", [1, 4])
def test_released_loop_learns_the_masks_of_the_released_loss(net, small, scale):
    images, target, _ = small
    classifier = Classifier(net, LABELS, "labels")
    method = LearnedMask(scale=scale, tv=0.01, l1=1e-3, loss="released", n_steps=20, n_distractors=3)
    pool, draws = method._infills(Pairs.checked(classifier, images, target, images, 0, None))
    found = released.learn_masks(net, images, target, pool, draws, LABELS, scale=scale, l1=1e-3)
    expected = method.attribute(classifier, images, target, distractors=images)
    assert (found.squeeze(1) - expected).abs().mean() < 5e-4
    assert (expected - 0.5).abs().mean() > 0.05
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_released_curve_is_ours_without_the_empty_image(net, small):
    images, target, heatmaps = small
    expected = insertion_curve(Classifier(net, LABELS, "labels"), images, target, heatmaps, n_steps=64)[:, 1:]
    for i in range(4):
        found = released.insertion_curve(net, images[i], int(target[i]), heatmaps[i], LABELS, 64)
        torch.testing.assert_close(found, expected[i], atol=1e-5, rtol=0)


def test_torchcam_finds_the_same_areas_and_its_composites_are_counted(net, small):
    pytest.importorskip("torchcam")
    images, target, heatmaps = small
    passed = []
    handle = net.register_forward_hook(lambda module, arguments, output: passed.append(len(output)))
    found = torchcam_areas(net, images, target, heatmaps, LABELS, 8)
    handle.remove()
    classifier = Classifier(net, LABELS, "labels")
    for name, curve in (("insertion_auc", insertion_curve), ("deletion_auc", deletion_curve)):
        area = auc(curve(classifier, images, target, heatmaps, n_steps=8), "trapezoid").mean()
        assert found[name] == pytest.approx(area.item(), abs=1e-5)
    assert sum(passed) == torchcam_composites(4, 256, 8)


def test_ratios_are_taken_round_by_round():
    ratio = Measurement("ours", (30.0, 10.0, 44.0)).over(Measurement("theirs", (10.0, 5.0, 11.0)), "ours / theirs")
    assert ratio == Measurement("ours / theirs", (3.0, 2.0, 4.0))
    assert ratio.median == 3.0
    assert ratio.text() == "3.00 [2.00, 4.00]"
    assert Measurement("fast", (2190.4, 980.2)).text() == "1585 [980, 2190]"


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (Target(2.8), 2.8, "met"),
        (Target(4.0), 3.0, "missed by 25.0 %"),
        (Target(1e-3, at_least=False), 9e-4, "met"),
        (Target(1e-3, at_least=False), 1.5e-3, "missed by 50.0 %"),
        (Target(0.95), None, "not measured"),
    ],
)
def test_verdicts(target, value, verdict):
    found = None if value is None else Measurement("ratio", (value,))
    assert target.verdict(found) == verdict
    assert Row("net", "task", "ratio", found, target).record()["verdict"] == verdict


def test_every_contestant_warms_up_and_then_runs_once_a_round():
    runs = []
    contestants = [Contestant(name, 10, lambda name=name: runs.append(name)) for name in "abc"]
    found = round_robin(contestants, 2, "cpu")
    assert "".join(runs) == "abcbcacab"
    assert {name: len(found[name].values) for name in found} == {"a": 2, "b": 2, "c": 2}
    assert all(value > 0 for measurement in found.values() for value in measurement.values)


def test_table_drops_empty_columns():
    assert table(["a", "b", "c"], [["1", "", "22"], ["3", "", "4"]]) == "| a | c  |\n|---|----|\n| 1 | 22 |\n| 3 | 4  |"


@pytest.mark.parametrize("rows_of", [learning_rows, curve_rows])
def test_a_case_from_search_to_verdicts(net, small, rows_of):
    images, *_ = small
    few = {"batches": (4,), "short": 8, "long": 8, "pairs": 4, "n_points": 8, "finalists": 9}
    case = dataclasses.replace(CASES["resnet20"].quick(), labels=LABELS, learning_target=1e9, curves_targets=(1e9, 1e9), **few)
    material = Material(net, LABELS, images, tuple("abcd"))
    limits = Limits(case, material, "cpu")
    limits.threads = 2  # torch keeps its own number
    before = torch.get_num_threads()
    rows = {row.name: row for row in rows_of(case, material, limits, "cpu")}
    assert rows["salkit float32 / limit"].target == Target(0.95)
    assert {rows[f"limit float32: {name}, 4 a pass, 2 Python threads"].unit for name in ("plain", "folded")} == {"composites/s"}
    verdicts = {row.target.verdict(row.found) for name, row in rows.items() if name.endswith("/ released") and row.target}
    assert "missed by 100.0 %" in verdicts
    assert torch.get_num_threads() == before

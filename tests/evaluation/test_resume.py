"""`evaluate` with a store: what is computed again, and what happens to pairs that cannot be computed."""

import re
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from typer.testing import CliRunner

from salkit import methods as registry
from salkit.__main__ import app
from salkit.data import ImageSet, load_images
from salkit.engine.identity import Experiment
from salkit.engine.shards import Job, ShardError, compute_shard
from salkit.engine.store import Store, StoreError
from salkit.evaluation.evaluate import evaluate
from salkit.evaluation.results import open_results
from salkit.methods import get_method
from salkit.methods.base import LearnedMap
from salkit.models import Classifier
from salkit.saliency_metric import ALPHAS
from salkit.scores import Protocol


@dataclass(frozen=True)
class Learned(LearnedMap):
    """Learns the mean of the channels, turned by the label; not for the pairs in `broken`."""

    turn: float = 1.0
    broken: ClassVar[set[tuple[str, int]]] = set()
    learned: ClassVar[list[tuple[str, int]]] = []

    def learn(self, classifier: Classifier, inputs: Tensor, target: Tensor, *, ids, **settings) -> Tensor:
        pairs = list(zip(ids, target.tolist(), strict=True))
        if bad := self.broken.intersection(pairs):
            raise ArithmeticError(f"no map of {min(bad)}")
        self.learned.extend(pairs)
        classifier(inputs)
        return torch.stack([x.mean(0).roll(int(self.turn) * a) for x, a in zip(inputs, target.tolist(), strict=True)])

    def heatmaps(self, kept: Tensor, size) -> Tensor:
        return kept

    def attribute(self, classifier: Classifier, inputs: Tensor, target: Tensor, **settings) -> Tensor:
        return self.heatmaps(self.learn(classifier, inputs, target, **settings), inputs.shape[-2:])


METHODS = {"ours": Learned(), "gradient": get_method("gradient_x_input"), "random": get_method("random")}
IDS = ("cat", "dog", "fox", "owl")


def image_set(ids, seed):
    pixels = torch.randn(len(ids), 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return ImageSet(pixels, torch.zeros(len(ids), dtype=torch.int64), ids, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(autouse=True)
def sound():
    yield
    Learned.broken.clear()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)))


@pytest.fixture
def images():
    return image_set(IDS, 1)


@pytest.fixture
def seen(net):
    """How many images each pass of the latest run took through the net."""
    sizes = []
    net.net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def run(net, images, store, seen):
    def call(methods=METHODS, images=images, **settings):
        seen.clear()
        Learned.learned.clear()
        given = {"n_steps": 4, "show_progress": False, "images_per_batch": 2, "store": store} | settings
        return evaluate(net, images, methods, **given)

    return call


def test_with_a_store_the_results_are_the_same_and_repeating_computes_nothing(run, seen):
    everything = {"blur_games": True, "keep_curves": True, "keep_heatmaps": True, "deletion": "all"}
    without, first = run(store=None, **everything), run(**everything)
    assert sum(seen) > 4 * 3 * 3
    second = run(**everything)
    assert seen == []
    xr.testing.assert_identical(first, without)
    xr.testing.assert_identical(second, without)


def changed_net(net, images):
    with torch.no_grad():
        net.net[0].weight[0, 0, 0, 0] += 0.1
    return {}


def changed_pixel(net, images):
    images.images[0, 0, 0, 0] += 0.1
    return {}


@pytest.mark.parametrize(
    ("change", "computes", "learned"),
    [
        ({"protocol": "released"}, False, 0),
        ({"protocol": Protocol(auc_rule="trapezoid")}, False, 0),
        ({"images_per_batch": 1}, False, 0),
        ({"methods": {"another name": Learned()}, "name": "another"}, False, 0),
        ({"n_steps": 8}, True, 0),
        ({"baseline": 0.5}, True, 0),
        ({"deletion": "all"}, True, 0),
        ({"blur_games": True}, True, 0),
        ({"saliency_metric": True}, True, 0),
        ({"keep_heatmaps": True}, True, 0),  # the gradient's maps had not been kept
        ({"methods": {"ours": Learned(), "turned": Learned(turn=2.0)}}, True, 12),  # one more
        ({"methods": METHODS | {"ours": Learned(turn=2.0)}}, True, 12),
        ({"seed": 1}, True, 12),
        ({"distractors": torch.zeros(2, 3, 8, 8)}, True, 12),
        (changed_net, True, 12),
        (changed_pixel, True, 12),
    ],
)
def test_a_change_computes_only_what_depends_on_it(run, net, images, seen, change, computes, learned):
    run()
    change = change(net, images) if callable(change) else change
    again = run(**change)
    assert (bool(seen), len(Learned.learned)) == (computes, learned)
    xr.testing.assert_identical(again, run(store=None, **change))
    run(**change)
    assert seen == []


def test_the_saliency_metric_is_kept_like_everything_else(run, store, seen):
    first, again = run(saliency_metric=True), run(saliency_metric=True)
    assert seen == []
    xr.testing.assert_identical(first, again)
    xr.testing.assert_identical(first, run(saliency_metric=True, store=None))
    assert Store(store).prune() == []
    own = ["saliency_metric", "saliency_metric_by_alpha", "alpha"]
    assert first[own].notnull().all().to_array().all()
    xr.testing.assert_identical(first.drop_vars([*own, "box", "tried"]), run().drop_vars(["box", "tried"]))


def test_labels_of_ones_own_are_read_back_with_their_names(run, store):
    made = run(targets=torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]]), keep_curves=True)
    xr.testing.assert_identical(open_results(store), made)
    assert made.label_name.values.tolist() == [["a", "b"], ["b", "c"], ["c", "a"], ["a", "c"]]


def shards(store, method, *kinds):
    """The shards of a method in the only evaluation of a store."""
    (found,) = [run for run in Store(store).runs().values() if "methods" in run]
    jobs = next(m for m in found["methods"] if m["method"] == method)
    return [path for kind in kinds for path in sorted((store / jobs[kind]).glob("*.safetensors"))]


def test_half_a_run_is_opened_with_holes_and_says_what_is_missing(run, store):
    whole = run(keep_curves=True, saliency_metric=True)
    xr.testing.assert_identical(open_results(store, "eval"), whole)
    last = [shards(store, "gradient", "curves")[1], shards(store, "ours", "crops")[1]]  # images 2 and 3
    for path in [*last, *shards(store, "random", "curves", "crops")]:
        path.unlink()
    half = open_results(store)
    assert half.attrs["missing"] == "ours: crops 2 of 4; gradient: curves 2 of 4; random: curves 0 of 4; random: crops 0 of 4"
    there = half.insertion_auc.notnull().all("label")
    assert there.values.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]
    for name in ("insertion_auc", "completeness", "soundness", "label_correlation", "games", "insertion_curve", "tie_share"):
        xr.testing.assert_identical(half[name], whole[name].where(there))
    assert half.saliency_metric.notnull().all("box").values.tolist() == [[True, True, False, False], [True] * 4, [False] * 4]
    # Of two images each has the threshold that is best for the other.
    by_alpha = whole.saliency_metric_by_alpha.sel({"method": "ours"})[:2].values
    np.testing.assert_allclose(half.alpha.sel({"method": "ours"})[:2], [ALPHAS[by_alpha[1].argmin()], ALPHAS[by_alpha[0].argmin()]])
    xr.testing.assert_identical(half.alpha.sel({"method": "gradient"}), whole.alpha.sel({"method": "gradient"}))
    xr.testing.assert_identical(half.prob, whole.prob)
    with pytest.raises(StoreError, match=r"expected an evaluation whose name begins with 'table9', got \['evaluation-\w{8}'\]"):
        open_results(store, "table9")
    for path in shards(store, "ours", "curves") + shards(store, "gradient", "curves"):
        path.unlink()
    none = open_results(store)
    of_ours, of_random = "ours: curves 0 of 4; ours: crops 2 of 4", "random: curves 0 of 4; random: crops 0 of 4"
    assert none.attrs["missing"] == f"{of_ours}; gradient: curves 0 of 4; {of_random}"
    assert "insertion_auc" not in none
    xr.testing.assert_identical(none.prob, whole.prob)


def test_a_pair_that_fails_is_named_and_everything_else_is_kept(run, store):
    expected = run(store=None)
    Learned.broken.add(("fox", 1))
    with pytest.raises(ArithmeticError, match="no map of"):
        run(store=None)  # where nothing is kept the first error comes through
    with pytest.raises(ShardError) as raised:
        run()
    message = str(raised.value)
    assert re.search(r"ours: maps, image fox, label 1: ArithmeticError: no map of \('fox', 1\) \(test_resume.py:\d+\)", message)
    assert f"Everything else is kept in {store}; the same command tries these again" in message
    assert "cat" not in message
    assert "gradient" not in message
    half = open_results(store)
    assert half.attrs["missing"] == "ours: maps 3 of 4; ours: curves 3 of 4"
    there = xr.ones_like(expected.insertion_auc, dtype=bool)
    there.loc[{"method": "ours", "image": "fox"}] = False
    xr.testing.assert_allclose(half.insertion_auc, expected.insertion_auc.where(there), atol=1e-6)
    # It fails again as long as it is not mended; then only it is computed.
    with pytest.raises(ShardError, match="image fox, label 1"):
        run()
    Learned.broken.clear()
    xr.testing.assert_allclose(run(), expected, atol=1e-6)
    assert Learned.learned == [("fox", label) for label in range(3)]  # an image's pairs are computed together


def test_maps_that_are_not_kept_fail_by_image(run):
    Learned.broken.add(("owl", 0))

    class NotKept:
        def attribute(self, classifier, inputs, target, **settings):
            return Learned().attribute(classifier, inputs, target, **settings)

    with pytest.raises(ShardError, match=r"1 rows could not be computed:\n  evaluation, mine: curves, image owl: ArithmeticError: no map"):
        run({"mine": NotKept()})


def test_many_failures_are_counted(run):
    Learned.broken.update((name, label) for name in IDS for label in range(3))
    with pytest.raises(ShardError, match=r"(?s)^24 rows could not be computed:.*labels 0, 1, 2: .*\n  and 4 more\n") as raised:
        run({name: Learned(turn=turn) for turn, name in enumerate(["one", "two", "three"])})
    assert str(raised.value).count("image") == 20


def test_the_saliency_metric_of_an_image_that_fails_is_missing(run, store):
    Learned.broken.update(("fox", label) for label in range(3))
    with pytest.raises(ShardError, match=r"evaluation, ours: maps, image fox, labels 0, 1, 2: ArithmeticError"):
        run(saliency_metric=True)
    half = open_results(store)
    assert half.attrs["missing"] == "ours: maps 3 of 4; ours: curves 3 of 4; ours: crops 3 of 4"
    assert half.saliency_metric.notnull().all("box").values.tolist() == [[True, True, False, True], [True] * 4, [True] * 4]
    Learned.broken.clear()
    xr.testing.assert_identical(run(saliency_metric=True), run(saliency_metric=True, store=None))


def test_the_command_line_ends_with_code_1_and_the_pairs(store, monkeypatch):
    monkeypatch.setitem(registry.METHODS, "learned", Learned)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    command = ["evaluate", "learned", "--n", "2", "--points", "2", "--device", "cpu", "--store", str(store), "--labels", "3,5"]
    broken = load_images("cifar10-samples", n=2).ids[1]
    Learned.broken.add((broken, 0))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert f"learned: maps, image {broken}, label 3: ArithmeticError" in result.stderr
    assert "Traceback" not in result.output
    Learned.broken.clear()
    Learned.learned.clear()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert Learned.learned == [(broken, 0), (broken, 1)]


def test_a_store_object_serves_as_well_as_its_folder(run, store, seen):
    run(store=str(store))
    for again in (Store(store), Store(store, durable=False)):
        run(METHODS | {"ours": replace(METHODS["ours"])}, store=again)
        assert seen == []


def test_rows_that_another_run_has_kept_since_are_not_computed(tmp_path):
    store, asked = Store(tmp_path), []
    experiment = Experiment("table", "toy", 8, {})
    store.open(experiment)
    store.write(experiment.key, 2, 4, {"x": np.zeros(2)})

    def task(source, store, start, stop):
        asked.append((start, stop))
        return {"x": np.ones(stop - start)}

    job, source = Job(experiment, task), SimpleNamespace(about=dict)
    with Store(tmp_path).claim(experiment.key, 0, 6):
        assert compute_shard(job, source, store, 0, 6) is None
    assert compute_shard(job, source, store, 0, 6) == []
    assert asked == [(0, 2), (4, 6)]
    assert store.read(experiment.key, 0, 6)["x"].tolist() == [1, 1, 0, 0, 1, 1]

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from salkit.data import load_images
from salkit.data.files import IMAGENET_SAMPLE_LABELS, IMAGENETTE_LABELS, OTHER_IMAGENET_SAMPLE_LABELS
from salkit.engine.executors import open_engine
from salkit.methods import get_method
from salkit.models import load_classifier
from salkit.report.tables import paper_values
from salkit.scores import PROTOCOLS
from salkit.studies import profiles
from salkit.studies.experiments import LENGTHS, Experiment, experiments, with_composites
from salkit.studies.mosaics import choose_mosaics
from salkit.studies.profiles import IMAGES, PROFILES, Study, get_profile
from salkit.studies.recorded import settings_of
from salkit.studies.runs import Runs

NESTED = ("smoke", "demo", "overnight")
SMALL = Study(data="cifar10-samples", classifier="cifar10-resnet20", l1=1e-3, lists={"a": (0, 3, 5, 8), "b": (1, 2, 4)})


def parts(profile):
    """(name, first method) -> experiment; the two name it."""
    return {(part.name, next(iter(part.methods))): part for part in experiments(PROFILES[profile])}


@pytest.fixture
def engine(tmp_path):
    with open_engine(tmp_path, show_progress=False) as opened:
        yield opened


def small(images="list", **settings):
    return Experiment(name="e", notebook="03", study=SMALL, methods={"random": get_method("random")}, images=images, **settings)


def scene_of(part, engine, seed=0):
    return part.scene(part.classifier(), seed, engine, "cpu")


def test_smaller_profiles_differ_in_numbers_of_images_alone():
    whole = PROFILES["overnight"]
    for name in ("smoke", "demo"):
        profile = PROFILES[name]
        assert (profile.cifar10, profile.imagenet, profile.tvs) == (whole.cifar10, whole.imagenet, whole.tvs)
        assert profile.recorded == "overnight"
    assert whole.recorded == PROFILES["paper"].recorded == ""
    for counts in IMAGES.values():
        assert list(counts[:3]) == sorted(counts[:3])
    for smaller, larger in pairwise(NESTED):
        few, many = parts(smaller), parts(larger)
        assert 0 < len(few) < len(many)
        for key, part in few.items():
            other = many[key]
            assert {n: settings_of(m) for n, m in part.methods.items()} == {n: settings_of(m) for n, m in other.methods.items()}
            same = replace(part, methods=other.methods, n_images=other.n_images)
            assert same == other
            assert 0 < part.n_images <= other.n_images
        # In the same order.
        assert [key for key in many if key in few] == list(few)


def test_smaller_profiles_have_the_first_images(engine):
    for key, part in parts("demo").items():
        first, whole = scene_of(part, engine), scene_of(parts("overnight")[key], engine)
        n = len(first.images)
        assert n == part.n_images < len(whole.images)
        assert first.images.ids == whole.images.ids[:n]
        assert torch.equal(first.images.images, whole.images.images[:n])
        assert first.targets is whole.targets is None
        assert first.pool.ids == whole.pool.ids


def test_a_night_begins_with_what_is_worth_most():
    night = [(part.name, list(part.methods)) for part in experiments(PROFILES["overnight"])]
    rows, choices = profiles.ROWS, ["all_released", "labels_nll", "labels_released"]
    ours, cheap_first = ["Ours", *rows["variants"][:3]], ("ours", "variants", "cheap")
    expected = [
        *((f"table1_{labels}", list(rows[group])) for labels in "ab" for group in cheap_first),
        ("sweep", ["0", "0.001", "0.01", "0.1", "1"]),
        ("table1_a", list(rows["prior"])),
        *(("mosaics", list(rows[group])) for group in cheap_first),
        ("second_seed", [*rows["ours"], *rows["variants"], *rows["prior"]]),
        ("second_seed_sweep", ["0", "0.001", "0.01", "0.1", "1"]),
        ("lengths", [str(n) for n in LENGTHS]),
        *((f"settled_{choice}", ["Ours, twice", "Ours (s=1), twice"]) for choice in ["all_nll", *choices]),
        *((f"protocol_{c}", ours + (list(profiles.LABEL_FREE_LOSS) if c == "labels_nll" else [])) for c in choices),
        ("table1_b", list(rows["prior"])),
        *(("two_labels", list(rows[group])) for group in (*cheap_first, "prior")),
        *(("mosaics", list(rows[group])) for group in ("prior", "igos")),
        ("table1_a", list(rows["igos"])),
    ]
    # Each choice by name, however `get_args` orders them.
    assert sorted(night) == sorted(expected)
    assert [name for name, _ in night if "_all_" not in name and "labels_" not in name] == [
        name for name, _ in expected if "_all_" not in name and "labels_" not in name
    ]
    whole = set().union(*(methods for name, methods in night if name == "table1_a"))
    assert whole == set(profiles.table1_methods(PROFILES["overnight"].imagenet, PROTOCOLS["paper"]))


def test_settings_of_single_experiments():
    night = parts("overnight")
    everything = {"blur_games": True, "saliency_metric": True}
    for (name, _), part in night.items():
        assert (part.study, part.notebook) == (
            (PROFILES["overnight"].cifar10, "02" if part.seed == 0 else "03")
            if "sweep" in name
            else (PROFILES["overnight"].imagenet, part.notebook)
        )
        assert part.seed == int(name.startswith("second_seed"))
        assert part.keep == (everything if name.startswith("table1") or name == "second_seed" else {})
        scope, loss = name.split("_")[1:] if name.startswith(("settled", "protocol")) else ("all", "nll")
        assert (part.protocol.softmax_over, part.protocol.loss) == (scope, loss)
        assert {m.loss for m in part.methods.values() if hasattr(m, "loss")} <= {loss}
    ours = night["table1_a", "Ours"].methods["Ours"]
    assert ours.cost().forward_backward == 500
    for spent in LENGTHS:
        assert night["lengths", "12"].methods[str(spent)] == replace(ours, n_steps=spent)
    twice = night["settled_all_nll", "Ours, twice"].methods
    assert twice["Ours, twice"] == replace(ours, n_steps=1000)
    assert twice["Ours (s=1), twice"] == replace(ours, n_steps=1000, scale=1)
    assert {night[f"{name}_all_nll", "Ours, twice"].n_labels for name in ("settled",)} == {night["lengths", "12"].n_labels} == {3}


def test_a_number_of_composites_makes_whole_steps():
    ours = get_method("learned_mask", n_distractors=10)
    assert [with_composites(ours, n).n_steps for n in (5, 10, 50, 59)] == [1, 1, 5, 5]
    assert with_composites(replace(ours, infill="gray"), 50).n_steps == 50


def test_the_profile_paper_has_the_papers_settings():
    paper = get_profile("paper")
    assert {
        name: (part.n_images, part.labels_per_image()) for (name, _), part in parts("paper").items() if "table1" in name or name == "sweep"
    } == {
        "table1_a": (1000, 10),
        "sweep": (1000, 10),
    }
    for study in (paper.cifar10, paper.imagenet):
        ours = study.learned_mask(PROTOCOLS["paper"])
        assert (ours.n_steps, ours.n_distractors, ours.lr, ours.schedule) == (2000, 10, 0.05, "paper")
    assert (paper.cifar10.classifier, paper.imagenet.classifier) == ("cifar10-resnet164", "resnet50")
    assert (paper.cifar10.data, paper.imagenet.data, paper.imagenet.labels) == ("cifar10", "imagenette", IMAGENETTE_LABELS)
    assert {0.0, 0.001, 0.01, 0.1} <= set(paper.tvs)


def test_table1_settings_are_the_papers():
    methods = profiles.table1_methods(PROFILES["paper"].imagenet, PROTOCOLS["paper"])
    assert set(profiles.PAPER_ROWS) == set(paper_values("table1").method) <= set(methods)
    assert set(profiles.LABEL_FREE_LOSS) <= set(profiles.PAPER_ROWS) & set(profiles.ROWS["cheap"])
    assert sorted(name for group in profiles.ROWS.values() for name in group) == sorted(methods), "each row in one group"
    ours = methods["Ours"]
    assert (ours.scale, ours.tv, ours.infill, ours.loss, ours.l1) == (4, 0.01, "random_image", "nll", 2e-5)
    assert methods["Ours (s=1)"].scale == 1
    assert methods["Ours (TV=0.001)"].tv == 0.001
    assert methods["Ours (gray)"].infill == "gray"
    assert methods["Ours (cheating)"].method == ours
    sweep = profiles.tv_sweep_methods(PROFILES["paper"].cifar10, (0.0, 0.1), PROTOCOLS["paper"])
    assert {name: (m.tv, m.scale, m.l1) for name, m in sweep.items()} == {"0": (0.0, 1, 1e-3), "0.1": (0.1, 1, 1e-3)}


def test_no_table_has_a_shortened_method():
    """Methods other than ours keep their sources' settings."""
    methods = profiles.table1_methods(PROFILES["smoke"].imagenet, PROTOCOLS["paper"])
    for row, name in (("iGOS++", "igos_pp"), ("Fong and Vedaldi", "fong_vedaldi"), ("RISE", "rise"), ("SmoothGrad", "smooth_grad")):
        assert methods[row] == get_method(name) != get_method(name, "fast") or name == "smooth_grad"


def test_the_second_list_has_the_other_ten_images():
    study = PROFILES["overnight"].imagenet
    assert study.lists == {"a": IMAGENET_SAMPLE_LABELS, "b": OTHER_IMAGENET_SAMPLE_LABELS}
    assert [len(set(labels)) for labels in study.lists.values()] == [10, 10]
    assert study.labels == IMAGENET_SAMPLE_LABELS
    first, second = (study.images(name) for name in "ab")
    assert len(first) == len(second) == 10
    assert {*first.ids, *second.ids} == set(load_images("imagenet-samples").ids)
    assert set(second.labels.tolist()) <= set(OTHER_IMAGENET_SAMPLE_LABELS)
    part = parts("overnight")["table1_b", "Ours"]
    assert part.labels == "b"
    assert part.labels_per_image() == 10


def test_labels_and_pool_of_a_list(engine):
    part = small(labels="b", n_images=2)
    classifier = part.classifier()
    assert (classifier.labels, classifier.softmax_over) == ((1, 2, 4), "all")
    assert part.labels_per_image() == 3
    scene = scene_of(part, engine)
    assert set(scene.images.labels.tolist()) <= {1, 2, 4}
    assert (len(scene.images), scene.targets, len(scene.pool)) == (2, None, SMALL.pool)
    assert len(scene_of(replace(part, n_images=99), engine).images) == len(SMALL.images("b")), "no more than there are"
    released = replace(part, protocol=PROTOCOLS["released"]).classifier()
    assert released.softmax_over == "labels"
    assert replace(part, study=replace(SMALL, lists={"a": None}), labels="a").labels_per_image() == 10


def test_the_most_probable_label_the_next_and_those_after_it(engine):
    part = small(n_images=3, n_labels=3)
    scene = scene_of(part, engine)
    with torch.no_grad():
        prob = part.classifier()(scene.images.images).exp()
    for own, found in zip(prob.tolist(), scene.targets.tolist(), strict=True):
        first, second = sorted(range(4), key=own.__getitem__)[:1:-1]
        third = next(a % 4 for a in range(first + 1, first + 4) if a % 4 != second)
        assert found == [first, second, third]
    assert part.labels_per_image() == 3


@pytest.mark.parametrize("maskers_know", ["all classes", "the list"])
def test_two_plausible_labels_that_every_method_knows(engine, maskers_know):
    """The paper's maskers know the labels of the list only; asked for another class they raise."""
    study = replace(SMALL, small_maskers=maskers_know == "all classes")
    part = replace(small("two labels", n_images=3), study=study)
    scene, images = scene_of(part, engine), load_images("cifar10-samples")
    listed = range(10) if maskers_know == "all classes" else study.labels
    with torch.no_grad():
        prob = load_classifier(study.classifier)(images.images).exp()[:, list(listed)]
    second = sorted(range(len(images)), key=lambda i: -sorted(prob[i].tolist())[-2])[:3]
    assert scene.images.ids == tuple(images.ids[i] for i in second)
    assert scene.targets.tolist() == [prob[i].topk(2).indices.tolist() for i in second]
    assert part.labels_per_image() == 2


def test_mosaics_have_the_labels_of_their_halves(engine):
    part = small("mosaics", n_images=2)
    scene = scene_of(part, engine)
    found = choose_mosaics(part.classifier(), load_images("cifar10-samples"))
    assert part.classifier().labels is None
    assert scene.images.ids == found.images.ids[:2]
    assert torch.equal(scene.targets, found.targets[:2])
    assert scene.pool.ids == found.others.ids
    halves = [name.split("+") for name in scene.images.ids]
    assert scene.targets.tolist() == [[int(name[-1]) for name in pair] for pair in halves]
    assert not set(scene.pool.ids) & {name for pair in halves for name in pair}


@pytest.mark.parametrize("images", ["list", "two labels", "mosaics"])
def test_images_by_name(engine, images):
    part = small(images, n_images=4, **{"n_labels": 2} if images == "list" else {})
    whole = scene_of(part, engine)
    some = scene_of(replace(part, only=(whole.images.ids[3], whole.images.ids[1])), engine)
    assert some.images.ids == (whole.images.ids[3], whole.images.ids[1])
    assert torch.equal(some.images.images, whole.images.images[[3, 1]])
    assert torch.equal(some.targets, whole.targets[[3, 1]])
    assert some.pool.ids == whole.pool.ids


def test_a_run_may_ask_for_experiments_that_compute_nothing_in_its_profile():
    assert sorted({part.name for part in Runs("smoke").experiments()}) == ["sweep", "table1_a", "table1_b"]
    assert "mosaics" not in {part.name for part in Runs("demo").experiments()}
    assert {part.name for part in Runs("paper").experiments()} == {
        *("table1_a", "sweep", "mosaics", "two_labels", "protocol_all_released", "protocol_labels_nll", "protocol_labels_released"),
    }

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from salkit import models
from salkit.data import load_images
from salkit.engine.identity import describe
from salkit.evaluation.evaluate import evaluate
from salkit.methods import RISE, FongVedaldi, Phang, same_map_for_all_labels
from salkit.methods.masker import save_masker
from salkit.methods.masker_training import make_masker, taps_of
from salkit.models import load_classifier
from salkit.report.tables import paper_values
from salkit.scores import PROTOCOLS
from salkit.studies import costs, profiles, runs
from salkit.studies.profiles import PROFILES, get_profile
from salkit.studies.runs import Runs


def test_profiles_change_sizes_and_the_paper_has_the_papers():
    paper = get_profile("paper")
    for study in (paper.cifar10, paper.imagenette):
        ours = study.learned_mask(PROTOCOLS["paper"])
        assert (study.n_images, ours.n_steps, ours.n_distractors, ours.lr) == (1000, 2000, 10, 0.05)
    assert (paper.cifar10.classifier, paper.imagenette.classifier) == ("cifar10-resnet164", "resnet50")
    assert len(paper.imagenette.labels) == 10
    assert {0.0, 0.001, 0.01, 0.1} <= set(paper.tvs)


def test_table1_settings_are_the_papers():
    methods = profiles.table1_methods(PROFILES["paper"].imagenette, PROTOCOLS["paper"])
    assert set(profiles.PAPER_ROWS) == set(paper_values("table1").method) <= set(methods)
    assert set(profiles.CHEAP_ROWS) <= set(profiles.PAPER_ROWS)
    ours = methods["Ours"]
    assert (ours.scale, ours.tv, ours.infill, ours.loss, ours.l1) == (4, 0.01, "random_image", "nll", 2e-5)
    assert methods["Ours (s=1)"].scale == 1
    assert methods["Ours (TV=0.001)"].tv == 0.001
    assert methods["Ours (gray)"].infill == "gray"
    assert methods["Ours (cheating)"].method == ours
    sweep = profiles.tv_sweep_methods(PROFILES["paper"].cifar10, (0.0, 0.1), PROTOCOLS["paper"])
    assert {name: (m.tv, m.scale, m.l1) for name, m in sweep.items()} == {"0": (0.0, 1, 1e-3), "0.1": (0.1, 1, 1e-3)}


TINY = replace(PROFILES["smoke"].cifar10, n_images=2, n_steps=3, n_distractors=2, n_points=4, masker_images=(12, 12, 12))


@pytest.mark.parametrize("known", [None, (0, 3, 5, 8)])
def test_every_method_is_asked_for_two_labels_that_it_knows(tmp_path, monkeypatch, known):
    """The paper's maskers know the labels of the list only; asked for another class they raise."""
    study = replace(TINY, labels=(0, 3, 5, 8))
    monkeypatch.setitem(PROFILES, "paper", replace(PROFILES["paper"], imagenette=study))
    (tmp_path / "checkpoints").mkdir()
    classifier = load_classifier(study.classifier)
    for name, recipe in profiles.masker_recipes(study).items():
        masker = make_masker(classifier, taps_of(study.classifier), replace(recipe, classes=known, embedding="normal"), side=32)
        save_masker(masker, tmp_path / "checkpoints" / f"{name}-{study.classifier}.safetensors")
    rows = ["Dabkowski and Gal", "Phang et al.", "Phang et al. (class)", "Random"]
    monkeypatch.setattr(Runs, "_methods", lambda self, methods=Runs._methods: {name: methods(self)[name] for name in rows})
    result = Runs("paper", output_dir=tmp_path).two_labels()
    assert result.attrs["two_best_of"] == ("all classes" if known is None else "the label list")
    assert result.method.values.tolist() == rows
    assert result.insertion_auc.shape == (len(rows), study.own_label_images, 2)
    # By hand: of the images of the list, those whose second label is the most probable.
    images = study.images()
    with torch.no_grad():
        prob = classifier(images.images).exp()[:, list(known or range(10))]
    top = prob.topk(2).values
    second = top[:, 1].argsort(descending=True)[: study.own_label_images]
    assert result.image.values.tolist() == [images.ids[i] for i in second]
    np.testing.assert_allclose(result.prob, top[second], atol=1e-5)


def test_equal_trainings_leave_equal_tables(tmp_path, monkeypatch):
    """A table of results holds nothing that a clock or a second run would change."""
    study = replace(TINY, labels=(0, 3, 5, 8))
    monkeypatch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], imagenette=study))
    recipes = {name: replace(profiles.masker_recipes(study)[name], size=32) for name in ("dabkowski_gal", "phang")}
    monkeypatch.setattr(profiles, "masker_recipes", lambda study: recipes)
    first, second = (Runs("smoke", output_dir=tmp_path / name).train_maskers() for name in "ab")
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert set(first.masker) == set(recipes)
    monkeypatch.setattr(runs, "train_masker", None)  # a finished training is not repeated
    pd.testing.assert_frame_equal(Runs("smoke", output_dir=tmp_path / "a").train_maskers(), first, check_exact=True)


def test_passes_are_counted_as_they_are_made():
    """Count the images that really go through the net and compare with the plan."""
    study = replace(TINY, labels=(0, 3, 5), n_steps=2, n_points=2)
    methods = profiles.table1_methods(study, PROTOCOLS["paper"], internal_batch_size=2)  # so that no pass is filled up
    # Each kind of cost. Left out: the line search of iGOS++ takes as many passes as it takes, LRP about two.
    names = ("Ours", "Ours (cheating)", "Gradient x Input", "Random", "Centered Gaussian", "Grad-CAM", "SmoothGrad")
    methods = {name: methods[name] for name in names}
    methods["RISE"], methods["Fong and Vedaldi"] = RISE(n_masks=5), FongVedaldi(n_steps=2)
    forward, forward_backward = costs.count_passes(study, methods, 2, 3)
    classifier = load_classifier(study.classifier, study.labels, pretrained=False)
    seen = {"forward": 0, "forward_backward": 0}

    def count(module, inputs):
        seen["forward_backward" if inputs[0].requires_grad else "forward"] += len(inputs[0])

    classifier.net.register_forward_pre_hook(count)
    images = load_images(study.data).sample(2)
    evaluate(classifier, images, methods, distractors=load_images(study.data), n_steps=2, show_progress=False)
    assert seen["forward_backward"] == forward_backward
    # One image goes through the net to find Grad-CAM's layer, and three times to fold the batch norms.
    assert seen["forward"] == forward + 1 + 3


def test_plan_scales_with_the_profile(monkeypatch):
    monkeypatch.setattr(costs, "_seconds_per_pass", lambda study, device: (0.001, 0.002))
    plan = {cost.notebook: cost for cost in costs.plan("paper", "cpu")}
    table1 = plan["03_imagenette_table1"]
    # A map of a pair: ours 20,000 three times and 2,000 with gray; iGOS++ 1,200, Fong and Vedaldi 300, SmoothGrad and integrated
    # gradients 50 each, LRP 2, Gradient x Input and Grad-CAM 1. Cheating learns an image's map once.
    each, once = 3 * 20_000 + 2_000 + 1_200 + 300 + 2 * 50 + 2 + 1 + 1, 20_000
    held_out = 200 * (each + once)
    # Maps that are not kept, once more for the crops: SmoothGrad, integrated gradients, LRP, Gradient x Input and Grad-CAM.
    again = 1_000 * (2 * 50 + 2 + 1 + 1)
    assert table1.forward_backward == 10_000 * each + 1_000 * once + held_out + again
    # A curve at every pixel count: insertion for each pair, deletion for each image, 1024 + 1 points.
    assert plan["02_cifar10_tv_sweep"].forward == 1_000 + 5 * (10_000 + 1_000) * 1_025
    # Best effort: 1000 images with two labels each; Figure 2: two settings twice and one map for both; the gallery: ten.
    own_labels, figure2, gallery = 1_000 * (2 * each + once), 5 * 20_000, 10 * 20_000
    assert plan["04_figures"].forward_backward == own_labels + figure2 + gallery
    # The grid: our four settings for three more pairs of scope and loss, and Gradient x Input once more.
    assert plan["06_which_protocol"].forward_backward == 10_000 * (3 * (3 * 20_000 + 2_000) + 1)
    # Four labels of 100 CIFAR-10 images and two of 100 Imagenette images, by both schedules.
    assert plan["07_cost_and_quality"].forward_backward == (400 + 200) * (20_000 + 2_000)
    # Two passes with gradient for each image that a masker learns masks on.
    assert plan["00_train_maskers"].forward_backward == pytest.approx(2 * (192_000 + 2 * 12 * 9_469), rel=0.001)
    assert plan["01_theory_toy_model"].forward == 0
    assert table1.hours == pytest.approx((table1.forward * 0.001 + table1.forward_backward * 0.002) / 3600)


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert (models.resolve_device("auto"), models.resolve_device("cpu")) == (device, "cpu")


def test_shipped_maskers_go_first_and_their_content_counts(tmp_path):
    assert profiles.masker_of("phang", "efficientnet-lite0", tmp_path) == "phang-efficientnet-lite0"
    own = profiles.masker_of("phang", "resnet50", tmp_path)
    assert own == tmp_path / "phang-resnet50.safetensors"
    method = Phang(own)
    seen = {str(describe(method))}
    for content in (b"one", b"two"):
        own.write_bytes(content)
        seen.add(str(describe(method)))
    assert len(seen) == 3
    assert describe(same_map_for_all_labels(method))["method"] == describe(method)


def test_a_profile_keeps_its_schedule_unless_told_otherwise():
    protocol = PROTOCOLS["paper"]
    for name, own in (("demo", "fast"), ("paper", "paper")):
        assert {getattr(get_profile(name), of).schedule for of in ("cifar10", "imagenette")} == {own}
    fast = get_profile("paper", "fast").imagenette.learned_mask(protocol)
    assert (fast.schedule, fast.cost().forward_backward) == ("fast", 2000)
    assert Runs("demo", schedule="paper").chosen.cifar10.learned_mask(protocol).n_steps == 40, "sizes that a profile names stay"
    assert Runs("paper", precision="auto").chosen.imagenette.learned_mask(protocol).precision == "auto"
    for told in ("schedule", "precision"):
        with pytest.raises(ValueError, match=rf"{told}: expected one of .*, got 'slow'"):
            Runs("demo", **{told: "slow"})

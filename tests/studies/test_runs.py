from dataclasses import replace
from importlib import import_module

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
from salkit.scores import PROTOCOLS
from salkit.studies import costs, experiments, profiles, runs
from salkit.studies.profiles import PROFILES, Study, get_profile
from salkit.studies.runs import Runs

TINY = Study(
    data="cifar10-samples",
    classifier="cifar10-resnet20",
    lists={"a": (0, 3, 5, 8)},
    l1=1e-3,
    n_steps=3,
    n_points=4,
    maskers=(12, 12, 12),
)


@pytest.mark.parametrize("known", [None, (0, 3, 5, 8)])
def test_every_method_is_asked_for_two_labels_that_it_knows(tmp_path, monkeypatch, known):
    """The paper's maskers know the labels of the list only; asked for another class they raise."""
    study = replace(TINY, small_maskers=known is None)
    counts = dict.fromkeys(profiles.IMAGES, 0) | {"two labels": 2}
    monkeypatch.setitem(PROFILES, "paper", replace(PROFILES["paper"], imagenet=study, images=counts))
    rows = ("Dabkowski and Gal", "Phang et al.", "Phang et al. (class)", "Random")
    monkeypatch.setattr(profiles, "ROWS", {"ours": rows[:1], "variants": (), "cheap": rows[1:], "prior": (), "igos": ()})
    (tmp_path / "checkpoints").mkdir()
    classifier = load_classifier(study.classifier)
    for name, recipe in profiles.masker_recipes(study).items():
        assert recipe.classes in (None, known)
        recipe = replace(recipe, classes=known, embedding="normal")
        masker = make_masker(classifier, taps_of(study.classifier), recipe, side=32)
        save_masker(masker, tmp_path / "checkpoints" / f"{name}-{study.classifier}.safetensors")
    monkeypatch.setattr(experiments, "TWO_LABELS", (("two_labels", ("ours", "cheap")),))
    result = Runs("paper", output_dir=tmp_path, device="cpu").result("two_labels")
    assert set(result.method.values) == set(rows)
    assert result.insertion_auc.shape == (len(rows), 2, 2)
    assert result.insertion_auc.notnull().all()
    with torch.no_grad():
        prob = classifier(load_images(study.data).images).exp()[:, list(known or range(10))]
    top = prob.topk(2).values
    np.testing.assert_allclose(result.prob, top[top[:, 1].argsort(descending=True)[:2]], atol=1e-5)


def test_equal_trainings_leave_equal_tables(tmp_path, monkeypatch):
    """A table of results holds nothing that a clock or a second run would change."""
    monkeypatch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], imagenet=TINY))
    recipes = {name: replace(profiles.masker_recipes(TINY)[name], size=32) for name in ("dabkowski_gal", "phang")}
    monkeypatch.setattr(profiles, "masker_recipes", lambda study: recipes)
    first, second = (Runs("smoke", output_dir=tmp_path / name).train_maskers() for name in "ab")
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert set(first.masker) == set(recipes)
    monkeypatch.setattr(runs, "train_masker", None)  # a finished training is not repeated
    pd.testing.assert_frame_equal(Runs("smoke", output_dir=tmp_path / "a").train_maskers(), first, check_exact=True)


def test_passes_are_counted_as_they_are_made(monkeypatch):
    """Count the images that really go through the net and compare with the plan."""
    study = replace(TINY, lists={"a": (0, 3, 5)}, n_steps=2, n_points=2)
    whole_passes = {"internal_batch_size": 2, "n_distractors": 2}  # so that none is filled up
    methods = profiles.table1_methods(study, PROTOCOLS["paper"], **whole_passes)
    # Each kind of cost. Left out: the line search of iGOS++ takes as many passes as it takes, LRP about two.
    names = ("Ours", "Ours (cheating)", "Gradient x Input", "Random", "Centered Gaussian", "Grad-CAM", "SmoothGrad")
    methods = {name: methods[name] for name in names}
    methods["RISE"], methods["Fong and Vedaldi"] = RISE(n_masks=5), FongVedaldi(n_steps=2)
    seen = {"forward": 0, "forward_backward": 0}

    def count(module, inputs):
        seen["forward_backward" if inputs[0].requires_grad else "forward"] += len(inputs[0])

    def crops(classifier, inputs, target, boxes, *settings):
        # Instead of passes: boxes that are equal share one, and passes are filled up.
        seen["forward"] += boxes[..., 0].numel()
        return torch.zeros(boxes.shape[:2])

    monkeypatch.setattr(import_module("salkit.saliency_metric"), "_score", crops)
    images = load_images(study.data).sample(2)
    for keep in ({}, {"blur_games": True}, {"saliency_metric": True}):
        classifier = load_classifier(study.classifier, study.labels, pretrained=False)
        classifier.net.register_forward_pre_hook(count)
        seen.update(forward=0, forward_backward=0)
        forward, forward_backward = costs.count_passes(study, methods, 2, 3, keep)
        evaluate(classifier, images, methods, distractors=load_images(study.data), n_steps=2, show_progress=False, **keep)
        assert seen["forward_backward"] == forward_backward
        # One image finds Grad-CAM's layer, for the curves and for the crops, and goes through the net three times to fold batch norms.
        assert seen["forward"] == forward + (2 if "saliency_metric" in keep else 1) + 3


def test_plan_scales_with_the_profile(monkeypatch):
    monkeypatch.setattr(costs, "_seconds_per_pass", lambda study, device: (0.001, 0.002))
    plan = {cost.notebook: cost for cost in costs.plan("paper", "cpu")}
    table1 = plan["03_imagenette_table1"]
    # A map of a pair: ours 20,000 three times and 2,000 with gray; iGOS++ 1,200, Fong and Vedaldi 300, SmoothGrad and integrated
    # gradients 50 each, LRP 2, Gradient x Input and Grad-CAM 1. Cheating learns an image's map once.
    each, once = 3 * 20_000 + 2_000 + 1_200 + 300 + 2 * 50 + 2 + 1 + 1, 20_000
    # Maps that are not kept, once more for the crops: SmoothGrad, integrated gradients, LRP, Gradient x Input and Grad-CAM.
    again = 1_000 * (2 * 50 + 2 + 1 + 1)
    assert table1.forward_backward == 10_000 * each + 1_000 * once + again
    # A curve at every pixel count: insertion for each pair, deletion for each image, 1024 + 1 points.
    assert plan["02_cifar10_tv_sweep"].forward == 1_000 + 5 * (10_000 + 1_000) * 1_025
    # 1000 images and 100 mosaics with two labels each; on the mosaics all rows, on the others all but iGOS++.
    assert plan["04_figures"].forward_backward == 100 * (2 * each + once) + 1_000 * (2 * (each - 1_200) + once)
    # The grid: our four settings for three more pairs of scope and loss, and Gradient x Input once more.
    assert plan["06_which_protocol"].forward_backward == 10_000 * (3 * (3 * 20_000 + 2_000) + 1)
    # Two passes with gradient for each image that a masker learns masks on.
    assert plan["00_train_maskers"].forward_backward == pytest.approx(2 * (192_000 + 2 * 12 * 9_469), rel=0.001)
    assert plan["01_theory_toy_model"].forward == 0
    assert "07_cost_and_quality" not in plan, "the settled schedule is no matter of the paper's profile"
    assert table1.hours == pytest.approx((table1.forward * 0.001 + table1.forward_backward * 0.002) / 3600)


def test_the_plan_of_a_night_by_hand(monkeypatch):
    monkeypatch.setattr(
        costs, "_seconds_per_pass", lambda study, device: (1.0, 1000.0) if study.data == "cifar10-samples" else (0.0, 0.001)
    )
    plan = {cost.notebook: cost for cost in costs.plan("overnight", "cpu")}
    # Five rates of TV on 20 images with ten labels each, and on three with the second seed; 500 composites a pair.
    sweep, again = 5 * 20 * 10 * 500, 5 * 3 * 10 * 500
    assert plan["02_cifar10_tv_sweep"].forward_backward == sweep
    assert plan["02_cifar10_tv_sweep"].hours == pytest.approx((plan["02_cifar10_tv_sweep"].forward + 1000 * sweep) / 3600)
    # Four settings, and one map an image; each list, and three images with the second seed; iGOS++ on five images.
    ours = 10 * 10 * 4 * 500 + 10 * 500
    cheap, fong = 10 * 11 * (2 * 50 + 2 + 1 + 1), 10 * 10 * 300
    assert plan["03_imagenette_table1"].forward_backward == 2 * (ours + cheap + fong) + 3 * (ours + fong) // 10 + 5 * 10 * 1_200 + again
    # Each choice at twice the length, two scales; and the schedules that are too short; three labels of eight images.
    assert plan["07_cost_and_quality"].forward_backward == 8 * 3 * (4 * 2 * 1000 + 12 + 50 + 124 + 250)
    # The smaller profiles have less of everything.
    for name in ("smoke", "demo"):
        for cost in costs.plan(name, "cpu"):
            assert cost.forward_backward <= plan[cost.notebook].forward_backward


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
    for name, own in (("demo", "settled"), ("overnight", "settled"), ("paper", "paper")):
        assert {getattr(get_profile(name), of).schedule for of in ("cifar10", "imagenet")} == {own}
    settled = get_profile("paper", "settled").imagenet.learned_mask(protocol)
    assert (settled.schedule, settled.cost().forward_backward) == ("settled", 500)
    assert Runs("demo", schedule="paper").chosen.cifar10.learned_mask(protocol).cost().forward_backward == 20_000
    assert Runs("paper", precision="auto").chosen.imagenet.learned_mask(protocol).precision == "auto"
    for told in ("schedule", "precision"):
        with pytest.raises(ValueError, match=rf"{told}: expected one of .*, got 'slow'"):
            Runs("demo", **{told: "slow"})

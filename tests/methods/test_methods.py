from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency

from salkit.methods import METHODS, CaptumMethod, LearnedMask, get_method, same_map_for_all_labels
from salkit.methods.base import Cost, LearnedMap, SaliencyMethod
from salkit.methods.masker import MaskerMethod
from salkit.methods.pairs import Pairs
from salkit.models import Classifier

FAST = {"scale": 1, "n_steps": 12, "n_distractors": 2, "l1": 1e-3, "lr": 0.2}
OUTPUTS = {"logit": lambda classifier: classifier.net, "log_prob": lambda classifier: classifier, "prob": lambda c: lambda x: c(x).exp()}


@pytest.mark.parametrize("infill", ["gray", "image"])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("which", ["best", "second"])
def test_masks_of_the_released_code(reference_classifier, reference, which, scale, infill):
    settings = {"scale": scale, "tv": 0.01, "l1": 1e-3, "infill": {"gray": "gray", "image": "random_image"}[infill]}
    method = LearnedMask(**settings, loss="released", n_steps=100, n_distractors=1)
    target = reference[f"target_{which}"].long()
    masks = method.attribute(reference_classifier, reference["images"], target, distractors=reference["distractor"])
    difference = (masks - reference[f"mask_{which}_s{scale}_{infill}"]).abs()
    # The fixture's README: Adam amplifies rounding where the gradient is almost 0, so single pixels may be 2e-2 off.
    assert difference.mean() < 5e-4
    assert difference.max() < 2e-2


def test_one_step_against_adam_by_hand(quadrant, images):
    # Adam's first step is lr * sign(gradient): +-0.1 from logit 0, so every mask value is sigmoid(+-0.1).
    masks = LearnedMask(scale=1, tv=0.0, l1=0.0, infill="gray", n_steps=1, lr=0.1).attribute(quadrant, images[:1].abs(), torch.tensor([0]))
    assert torch.allclose(masks[0, :16, :16], torch.sigmoid(torch.tensor(0.1)))
    assert torch.allclose(masks[0, 16:], torch.tensor(0.5)), "no gradient outside the quadrant"


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("nll", -(np.log(0.8) + np.log(0.4)) / 2), ("released", -np.log(np.exp(0.6) / (np.exp(0.4) + np.exp(0.6))))],
)
def test_loss_by_hand(loss, expected):
    log_probs = torch.tensor([[[0.2, 0.8], [0.6, 0.4]]]).log()
    assert LearnedMask(loss=loss)._label_loss(log_probs, torch.tensor([1])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_keeps_the_protocol(reference_classifier, reference, images, name, quick):
    method = quick(name, reference_classifier, ("0", "2"))
    assert isinstance(method, SaliencyMethod)
    cost = method.cost()
    assert isinstance(cost, Cost)
    assert min(cost.forward, cost.forward_backward) >= 0
    assert cost.per == "image" or getattr(method, "depends_on_label", True)
    inputs, target = reference["images"], torch.tensor([0, 1, 2, 3])
    before = inputs.clone()
    heatmaps = method.attribute(reference_classifier, inputs, target, distractors=images, seed=3, ids=list("abcd"))
    assert heatmaps.shape == (4, 32, 32)
    assert heatmaps.dtype == torch.float32
    assert not heatmaps.requires_grad
    assert torch.isfinite(heatmaps).all()
    assert heatmaps.std() > 0.01
    if isinstance(method, (LearnedMap, MaskerMethod)):
        assert heatmaps.min() >= -1e-6, "rounding of a blur"
        assert heatmaps.max() <= 1 + 1e-6
    assert torch.equal(inputs, before)
    assert not inputs.requires_grad
    again = method.attribute(reference_classifier, inputs, target, distractors=images, seed=3, ids=list("abcd"))
    assert torch.equal(heatmaps, again), "the same seed gives the same map"


@pytest.mark.parametrize("name", ["learned_mask", "random"])
def test_seed_id_and_label_each_change_the_draws(reference_classifier, reference, images, name, quick):
    method = quick(name, reference_classifier, ("0", "2"))
    twice = reference["images"][:1].repeat(2, 1, 1, 1)

    def explain(ids="aa", labels=(1, 1), seed=0):
        return method.attribute(reference_classifier, twice, torch.tensor(labels), distractors=images, ids=list(ids), seed=seed)

    base, other_id = explain(), explain(ids="ab")
    assert torch.equal(base[0], base[1])
    torch.testing.assert_close(other_id[0], base[0], atol=1e-4, rtol=0)  # a pass of one pair instead of two rounds differently
    for other in (other_id, explain(seed=1), explain(labels=(1, 2))):
        assert not torch.equal(other[1], base[1])


def test_the_explained_image_is_never_its_own_distractor(quadrant, images):
    # With one other image in the pool every draw must be that one: the same masks as with that image alone.
    target = torch.zeros(1, dtype=torch.int64)
    with_itself = LearnedMask(**FAST).attribute(quadrant, images[:1], target, distractors=images[:2], ids=["a"])
    alone = LearnedMask(**FAST).attribute(quadrant, images[:1], target, distractors=images[1:2], ids=["a"])
    assert torch.equal(with_itself, alone)
    with pytest.raises(ValueError, match="distractors: expected an image other than the explained one"):
        LearnedMask(**FAST).attribute(quadrant, images[:1], target, distractors=images[:1])


def test_released_loss_over_all_classes_uses_their_probabilities(reference, reference_classifier, images):
    net, method, two = reference_classifier.net, LearnedMask(**FAST, loss="released"), torch.tensor([0, 1, 0, 1])
    classifiers = (Classifier(net, [4, 7], "labels"), two), (Classifier(net, [4, 7], "all"), two), (Classifier(net), 4 + 3 * two)
    within, among_all, everything = (method.attribute(c, reference["images"], t, distractors=images) for c, t in classifiers)
    torch.testing.assert_close(among_all, everything)
    assert (among_all - within).abs().max() > 1e-3


def test_cheating_returns_the_map_of_the_prediction_for_every_label(reference_classifier, reference, images):
    cheating = same_map_for_all_labels(get_method("gradient_x_input"))
    inputs = reference["images"][:1].repeat(10, 1, 1, 1)
    heatmaps = cheating.attribute(reference_classifier, inputs, torch.arange(10))
    honest = get_method("gradient_x_input").attribute(reference_classifier, inputs[:1], reference["target_best"][:1].long())
    torch.testing.assert_close(heatmaps, honest.expand(10, -1, -1))
    assert not cheating.depends_on_label


@pytest.mark.parametrize(
    ("method", "attribution", "settings", "output"),
    [
        *((CaptumMethod(Saliency, {"abs": False}, o, internal_batch_size=3), Saliency, {"abs": False}, o) for o in OUTPUTS),
        *((CaptumMethod(IntegratedGradients, {"n_steps": 4}, o), IntegratedGradients, {"n_steps": 4}, o) for o in OUTPUTS),
        (get_method("integrated_gradients", n_steps=6), IntegratedGradients, {"n_steps": 6}, "logit"),
        (get_method("gradient_x_input"), InputXGradient, {}, "logit"),
        (get_method("gradient_x_input", reduction="abs_sum"), InputXGradient, {}, "logit"),
    ],
)
def test_captums_methods_are_captums_summed_over_channels(reference_classifier, reference, method, attribution, settings, output):
    inputs, target = reference["images"], reference["target_second"].long()
    forward = OUTPUTS[output](reference_classifier)
    direct = attribution(forward).attribute(inputs.clone().requires_grad_(), target=target, **settings).detach().float()
    expected = direct.abs().sum(1) if method.reduction == "abs_sum" else direct.sum(1)
    torch.testing.assert_close(method.attribute(reference_classifier, inputs, target), expected, atol=1e-6, rtol=1e-5)


def test_centered_gaussian_is_symmetric_and_falls_with_the_distance(reference_classifier, reference):
    heatmap = get_method("centered_gaussian").attribute(reference_classifier, reference["images"][:1], torch.tensor([0]))[0]
    assert torch.equal(heatmap, heatmap.flip(0))
    assert torch.equal(heatmap, heatmap.flip(1))
    assert (heatmap[15, 16:].diff() < 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_device_changes_nothing(reference_classifier, reference, images, name, quick):
    method, target = quick(name, reference_classifier, ("0", "2")), torch.tensor([0, 1, 2, 3])
    there = Classifier(reference_classifier.net).cuda()
    on_cpu = method.attribute(reference_classifier, reference["images"], target, distractors=images)
    on_gpu = method.attribute(there, reference["images"].cuda(), target.cuda(), distractors=images.cuda())
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=0)


def test_settled_draws_take_all_of_the_pool_before_any_image_comes_again(quadrant, images):
    method = LearnedMask(schedule="settled", scale=1, n_steps=7, n_distractors=2)
    _, draws = method._infills(Pairs(quadrant, images[:2], torch.tensor([0, 1]), images, 0, ["a", "b"]))
    for i, drawn in enumerate(draws.flatten(1).tolist()):
        assert i not in drawn, "an image is not its own distractor"
        for start in (0, 4, 8):
            assert sorted(drawn[start : start + 4]) == sorted(set(range(5)) - {i})
    assert draws[0, 0].tolist() + draws[0, 1].tolist() != draws[0, 2].tolist() + draws[0, 3].tolist(), "in another order each time"


def test_schedules_fill_in_what_is_not_given():
    settled = LearnedMask(schedule="settled")
    assert (settled.n_steps, settled.lr, settled.n_distractors) == (500, 0.3, 1)
    assert LearnedMask(schedule="settled", n_steps=3, n_distractors=2) == replace(settled, n_steps=3, n_distractors=2)
    assert (LearnedMask().n_steps, LearnedMask().lr, LearnedMask().n_distractors) == (2000, 0.05, 10)
    assert get_method("learned_mask", "fast") == settled, "one meaning of fast"


@pytest.mark.parametrize("schedule", ["settled", "paper"])
def test_the_rate_of_the_settled_schedule_falls_to_zero(reference_classifier, reference, schedule):
    """A loop of torch's own Adam, whose rate `LinearLR` lowers by the same amount every step."""
    inputs, n_steps, lr = reference["images"][:1], 9, 0.4
    method = LearnedMask(schedule=schedule, scale=1, tv=0.0, l1=1e-3, infill="gray", n_steps=n_steps, lr=lr)
    logits = torch.zeros(1, 1, 32, 32, requires_grad=True)
    adam = torch.optim.Adam([logits], lr)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0 if schedule == "settled" else 1.0, n_steps)
    steps = method.trajectory(reference_classifier, inputs, torch.tensor([4]))
    for i, found in enumerate(steps):
        adam.zero_grad()
        assert adam.param_groups[0]["lr"] == pytest.approx(lr * (1 - i / n_steps) if schedule == "settled" else lr)
        (1e-3 * logits.sigmoid().sum() - reference_classifier(inputs * logits.sigmoid())[0, 4]).backward()
        adam.step()
        falling.step()
        # Adam amplifies rounding where the gradient is almost 0.
        assert (found - logits[:, 0]).abs().mean() < 1e-3
    assert i == n_steps - 1
    other = LearnedMask(schedule="paper" if schedule == "settled" else "settled", scale=1, l1=1e-3, infill="gray", n_steps=n_steps, lr=lr)
    assert (replace(other, tv=0.0).learn(reference_classifier, inputs, torch.tensor([4])) - found).abs().mean() > 0.1


def test_masks_in_bfloat16_are_close_and_in_float32(reference_classifier, images):
    call = (reference_classifier, images, torch.arange(5))
    methods = [LearnedMask(**FAST | {"n_steps": 4}, precision=precision) for precision in ("float32", "bfloat16")]
    whole, half = (method.attribute(*call, distractors=images) for method in methods)
    assert half.dtype == torch.float32
    assert not torch.equal(whole, half)
    # Adam's first step goes by the gradient's sign, so that single pixels may go the other way.
    assert (half - whole).abs().mean() < 0.01

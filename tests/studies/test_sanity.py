from collections import OrderedDict

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import ndimage, stats
from skimage.feature import hog
from torch import nn

from salkit.data import load_images
from salkit.methods import get_method
from salkit.models import CLASSIFIERS, Classifier, load_classifier
from salkit.studies.sanity import SIMILARITIES, STAGES, is_no_map, layer_randomisation, randomise, similarity, verdicts

METHODS = {name: get_method(name) for name in ("gradient_x_input", "centered_gaussian", "random")}


@pytest.fixture
def net():
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.Linear(16, 2))
    norm = made[1][0]
    nn.init.constant_(norm.weight, 3.0)
    nn.init.constant_(norm.bias, -2.0)
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(7.0)
    norm.num_batches_tracked.fill_(11)
    return made.eval()


def changed_entries(before, after):
    old, new = before.state_dict(), after.state_dict()
    assert list(old) == list(new)
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_only_the_named_modules_forget(net):
    assert changed_entries(net, randomise(net, ["3"])) == {"3.weight", "3.bias"}
    assert changed_entries(net, randomise(net, ["0", "3"])) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert changed_entries(net, randomise(net, [])) == set()
    with pytest.raises(ValueError, match=r"modules: expected names of modules of Sequential, got \['7', 'head'\]"):
        randomise(net, ["0", "7", "head"])


def test_batch_norms_forget_what_they_learned_and_keep_their_statistics(net):
    # The name of the block around it: modules inside are randomised too.
    changed = randomise(net, ["1"])
    assert changed_entries(net, changed) == {"1.0.weight", "1.0.bias"}
    assert changed[1][0].weight.tolist() == [1.0] * 4
    assert changed[1][0].bias.tolist() == [0.0] * 4
    assert not changed.training


def test_forgetting_is_seeded_and_leaves_the_net_and_the_global_stream_alone(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stream = torch.get_rng_state()
    one, again, other = (randomise(net, ["0", "3"], seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), stream)
    assert changed_entries(one, again) == set()
    assert changed_entries(one, other) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weights_are_drawn_as_for_a_new_layer(net):
    # PyTorch's default: uniform within 1 / sqrt(fan-in), here 1 / sqrt(2500).
    wide = nn.Sequential(nn.Linear(2500, 40))
    nn.init.constant_(wide[0].weight, 9.0)
    weight = randomise(wide, ["0"])[0].weight
    assert weight.abs().max().item() <= 0.02
    # The deviation of a uniform variable is its half width / sqrt(3); 100 000 draws know it to a third of a percent.
    assert weight.std().item() == pytest.approx(0.02 / 3**0.5, rel=0.02)


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_stages_name_modules_that_exist_and_together_hold_every_parameter_once(name):
    net = load_classifier(name, pretrained=False).net
    modules = [module for stage in STAGES[name].values() for module in stage]
    assert set(modules) <= {module for module, _ in net.named_modules()}
    for parameter, _ in net.named_parameters():
        assert sum(parameter.startswith(f"{module}.") for module in modules) == 1, parameter


@pytest.mark.parametrize("name", ["cifar10-resnet20", "efficientnet-lite0"])
def test_every_stage_forgets_all_its_weights(name):
    net = load_classifier(name, pretrained=False).net
    with torch.no_grad():
        # No layer starts with these values, so a module that cannot be reset shows.
        for parameter in net.parameters():
            parameter.fill_(0.123)
    for stage, modules in STAGES[name].items():
        changed = dict(randomise(net, modules).named_parameters())
        for parameter, value in changed.items():
            inside = any(parameter.startswith(f"{module}.") for module in modules)
            assert bool((value == 0.123).any()) != inside, (stage, parameter)


def test_spearman_with_ties_is_the_correlation_of_mean_ranks():
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-3, 4, (12, 12)).astype(float) for _ in range(2))
    b += a
    mean_ranks = [[(np.sum(m < v) + np.sum(m <= v) + 1) / 2 for v in m.ravel()] for m in (a, b)]
    found = similarity(np.exp(a), b**3)  # increasing functions keep the ranks
    assert found["spearman"] == pytest.approx(np.corrcoef(mean_ranks)[0, 1], abs=1e-12)


def test_absolute_values_are_clipped_at_their_99th_percentile():
    # 400 pixels: the percentile lies between the 4th and the 5th largest, so the 4 largest are tied, in either map.
    rng = np.random.default_rng(3)
    a, b = (rng.permutation(400).astype(float) + 1 for _ in range(2))
    clipped = [np.where(m > 396, 396.01, m) for m in (a, b)]
    signs = rng.choice([-1, 1], 400)
    found = similarity((a * signs).reshape(20, 20), b.reshape(20, 20))["spearman_absolute"]
    assert found == pytest.approx(stats.spearmanr(*clipped).statistic, abs=1e-12)
    assert found != pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9), "the clip must show"


def test_ssim_is_the_formula_of_wang_et_al_on_maps_scaled_to_the_unit_interval():
    rng = np.random.default_rng(7)
    a = rng.normal(size=(40, 40))
    b = a + 0.7 * rng.normal(size=(40, 40))
    x, y = ((m - m.min()) / (m.max() - m.min()) for m in (a, b))

    # Windows of 11 x 11 with Gaussian weights of deviation 1.5, where they fit into the map.
    mx, my, xx, yy, xy = (ndimage.gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5] for values in (x, y, x * x, y * y, x * y))
    # scikit-image takes the sample covariance of 121 pixels.
    cov, variances = 121 / 120 * (xy - mx * my), 121 / 120 * (xx - mx**2 + yy - my**2)
    c1, c2 = 0.01**2, 0.03**2
    local = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (variances + c2))
    assert similarity(a, b)["ssim"] == pytest.approx(local.mean(), abs=1e-9)
    assert 0.3 < local.mean() < 0.9


@pytest.mark.parametrize(("side", "cell"), [(32, 2), (56, 4), (112, 8)])
def test_gradients_are_compared_in_cells_of_a_fourteenth_of_the_side(side, cell):
    rng = np.random.default_rng(side)
    a = rng.normal(size=(side, side))
    b = a + rng.normal(size=(side, side))
    histograms = [hog((m - m.min()) / np.ptp(m), 9, (cell, cell), (2, 2)) for m in (a, b)]
    assert similarity(a, b)["hog"] == pytest.approx(np.corrcoef(*histograms)[0, 1], abs=1e-9)


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_a_constant_map_is_no_map(value):
    flat, noise = np.full((32, 32), value), np.random.default_rng(5).random((32, 32))
    for pair in ((flat, noise), (noise, flat), (flat, flat)):
        found = similarity(*pair)
        assert tuple(found) == SIMILARITIES
        assert np.isnan(list(found.values())).all()


def test_no_map_is_one_value_nearly_everywhere():
    # Of 1000 pixels 990 are 99 %: one more and nothing is left to call a map.
    for same, expected in ((989, False), (990, False), (991, True), (1000, True)):
        heatmap = np.arange(1000.0)
        heatmap[:same] = -3.0
        assert is_no_map(np.random.default_rng(0).permutation(heatmap).reshape(20, 50)) is expected
    # A mask of zeros and ones has only ties, and says much.
    assert not is_no_map(np.indices((32, 32))[0] < 6)


def test_a_measure_of_constant_magnitudes_is_left_out():
    noise = np.random.default_rng(6).normal(size=(32, 32))
    found = similarity(np.sign(noise), noise)
    assert np.isnan(found.pop("spearman_absolute"))
    assert found["spearman"] > 0.8
    assert np.isfinite(list(found.values())).all()


NET_STAGES = {"output": ("output",), "middle": ("middle", "norm"), "first": ("first",)}


def new_net():
    torch.manual_seed(1)
    layers = {"first": nn.Conv2d(3, 16, 3), "clip": nn.ReLU(), "middle": nn.Conv2d(16, 16, 3), "norm": nn.BatchNorm2d(16)}
    layers |= {"clip2": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(4), "flat": nn.Flatten(), "output": nn.Linear(256, 10)}
    return Classifier(nn.Sequential(OrderedDict(layers)).eval())


@pytest.fixture(scope="module")
def scene():
    return new_net(), load_images("cifar10-samples", n=2)


@pytest.fixture(scope="module")
def randomised(scene):
    return layer_randomisation(scene[0], NET_STAGES, scene[1], METHODS, show_progress=False)


def test_dims_and_coordinates_of_layer_randomisation(randomised, scene):
    for name in SIMILARITIES:
        assert randomised[name].sizes == {"mode": 2, "stage": 3, "method": 3, "image": 2}
        assert randomised[f"{name}_control"].sizes == {"method": 3, "image": 2}
        assert (abs(randomised[name]) <= 1 + 1e-6).all()
    found = [randomised[name].values.tolist() for name in ("mode", "stage", "method", "image")]
    assert found == [["cascading", "independent"], list(NET_STAGES), list(METHODS), list(scene[1].ids)]


def test_a_map_that_ignores_the_net_survives_and_one_that_reads_it_does_not(randomised):
    for name in SIMILARITIES:
        np.testing.assert_allclose(randomised[name].sel({"method": "centered_gaussian"}), 1.0, atol=1e-6)
    # 1024 pixels: unrelated ranks have deviation 0.03; nothing but noise is left in the gradients of a random net.
    last = randomised.sel({"method": "gradient_x_input", "mode": "cascading", "stage": "first"})
    assert (abs(last.spearman) < 0.3).all()
    assert (last.ssim < 0.6).all()
    assert (randomised.spearman.sel({"method": "gradient_x_input"}) < 0.9).all()


def test_layer_randomisation_against_nets_randomised_by_hand(randomised, scene):
    classifier, images = scene
    with torch.no_grad():
        prediction = classifier(images.images).argmax(1)
    before = METHODS["gradient_x_input"].attribute(classifier, images.images, prediction).numpy()
    for mode, modules in (("cascading", ["output", "middle", "norm"]), ("independent", ["middle", "norm"])):
        forgetful = Classifier(randomise(classifier.net, modules))
        after = METHODS["gradient_x_input"].attribute(forgetful, images.images, prediction).numpy()
        at = randomised.sel({"mode": mode, "stage": "middle", "method": "gradient_x_input"})
        for i in range(2):
            expected = stats.spearmanr(before[i].ravel(), after[i].ravel()).statistic
            # The rounding of two runs may swap ranks of nearly equal pixels.
            assert at.spearman.values[i] == pytest.approx(expected, abs=1e-3)
        np.testing.assert_allclose(at.heatmap, after[0], atol=1e-5 * abs(after[0]).max())
        np.testing.assert_allclose(at.original, before[0], atol=1e-5 * abs(before[0]).max())
    np.testing.assert_array_equal(randomised.pixels, images.pixels()[0])


def test_the_control_compares_two_seeds_of_the_trained_net(randomised, scene):
    # Two of the methods draw nothing. The third draws all of its map, so that it changes with the weights and with everything else.
    for name in SIMILARITIES:
        np.testing.assert_allclose(randomised[f"{name}_control"].sel({"method": ["gradient_x_input", "centered_gaussian"]}), 1.0, atol=1e-6)
    classifier, images = scene
    ids = {"ids": images.ids[:1]}
    with torch.no_grad():
        label = classifier(images.images[:1]).argmax(1)
    maps = [METHODS["random"].attribute(classifier, images.images[:1], label, seed=seed, **ids)[0].numpy() for seed in (0, 1)]
    own = randomised.sel({"method": "random"})
    np.testing.assert_array_equal(own.original, maps[0])
    np.testing.assert_array_equal(own.control, maps[1])
    # Whatever the weights, its maps are the control's.
    xr.testing.assert_equal(own.spearman, own.spearman_control.broadcast_like(own.spearman))
    assert float(own.spearman_control[0]) == pytest.approx(stats.spearmanr(*(m.ravel() for m in maps)).statistic, abs=1e-6)


def made(after, control):
    """A result with one stage, as far as `verdicts` reads it: similarities and controls of the images by method."""
    coords = {"mode": ["cascading"], "stage": ["fc"], "method": list(after), "image": range(len(next(iter(after.values()))))}
    values = np.array(list(after.values()), np.float32)[None, None]
    dims = ("mode", "stage", "method", "image")
    data = {"spearman": (dims, values), "spearman_control": (dims[2:], np.array([control[name] for name in after], np.float32))}
    return xr.Dataset(data, coords)


def test_verdicts():
    spread, none = np.linspace(-0.05, 0.05, 8), np.nan
    cases = {
        "changes with the weights": (spread, 0.8 + spread),
        "changes in part": (0.7 + spread, 1 + 0 * spread),
        "does not change": (1 + 0 * spread, 1 + 0 * spread),
        "no map": ([none] * 5 + [0.0] * 3, 1 + 0 * spread),
        "cannot tell: the map does not agree with itself": (spread, 0.2 + spread),
        # Below and above half of the control, and not below the control in every image.
        "cannot tell at n = 8": ([0.9, 0.0] * 4, 0.8 + 8 * spread),
        # Half of the images have maps: those are judged.
        "cannot tell at n = 4": ([none] * 4 + [0.0] * 4, 1 + 0 * spread),
    }
    table = verdicts(made({name: after for name, (after, _) in cases.items()}, {name: control for name, (_, control) in cases.items()}))
    assert table.verdict.tolist() == list(cases) == table.method.tolist()
    assert table.no_map.tolist() == [0, 0, 0, 0.625, 0, 0, 0.5]
    assert table.n.tolist() == [8, 8, 8, 3, 8, 8, 4]
    first = table.iloc[0]
    assert [first.similarity, first.control, first.difference] == pytest.approx([0, 0.8, -0.8], abs=1e-6)
    assert first.low <= first.difference <= first.high < 0
    # All eight differences have one sign: 2 of 256 assignments are as far from 0.
    assert first.p_value == pytest.approx(2 / 256)


def test_noise_is_no_evidence_that_a_map_reads_the_weights():
    """Fails where the control is left out: unrelated to the trained net's map, and to its own."""
    rng = np.random.default_rng(0)
    table = verdicts(made({"noise": rng.normal(0, 0.02, 10)}, {"noise": rng.normal(0, 0.02, 10)}))
    assert table.verdict.item() == "cannot tell: the map does not agree with itself"


@pytest.mark.parametrize(("n", "verdict"), [(5, "cannot tell at n = 5"), (6, "changes with the weights")])
def test_a_verdict_needs_six_images(n, verdict):
    assert verdicts(made({"map": [0.0] * n}, {"map": [1.0] * n})).verdict.item() == verdict


def test_maps_of_which_no_image_has_any():
    table = verdicts(made({"flat": [np.nan] * 3, "map": [0.0] * 3}, {"flat": [np.nan] * 3, "map": [1.0] * 3}))
    assert table.verdict.tolist() == ["no map", "cannot tell at n = 3"]
    assert table.no_map.tolist() == [1.0, 0.0]


def test_verdicts_of_a_real_run(randomised):
    table = verdicts(randomised)
    assert len(table) == 18
    assert (table.n == 2).all()
    # Two images allow no verdict but that noise cannot be judged.
    found = table.groupby("method").verdict.unique().map(list)
    assert found["random"] == ["cannot tell: the map does not agree with itself"]
    assert found["gradient_x_input"] == found["centered_gaussian"] == ["cannot tell at n = 2"]
    hog = verdicts(randomised, "hog").query("method == 'gradient_x_input' and stage == 'first' and mode == 'independent'").iloc[0]
    own = randomised.sel({"method": "gradient_x_input", "stage": "first", "mode": "independent"})
    assert [hog.similarity, hog.control] == pytest.approx([float(own.hog.mean()), float(own.hog_control.mean())])
    for wrong in ({"measure": "ssim"}, {"alpha": 2.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            verdicts(randomised, **wrong)


class TargetAsMap:
    """A map that tells which label it was asked to explain: its gradient points up, down or across."""

    def attribute(self, classifier, inputs, target, **settings):
        ramp = torch.arange(inputs.shape[-1]).float()
        side = ramp[:, None] + 0 * ramp[None]
        return torch.stack([side * (1 + t) + side.T * (10 - t) for t in target.tolist()])


def test_either_prediction_can_be_explained(scene):
    classifier, images = scene
    # With seed 6 the random nets predict what the net itself does, with seed 3 something else.
    for seed, agrees in ((6, True), (3, False)):
        arguments = (classifier, {"output": ("output",)}, images, {"target": TargetAsMap()})
        original, changed = (
            layer_randomisation(*arguments, modes=["cascading"], explain=explain, seed=seed, show_progress=False)
            for explain in ("original", "randomised")
        )
        assert original.spearman.shape == (1, 1, 1, 2)
        np.testing.assert_allclose(original.spearman, 1.0)
        np.testing.assert_array_equal(changed.spearman > 1 - 1e-6, agrees)
        forgetful = Classifier(randomise(classifier.net, ["output"], seed))
        with torch.no_grad():
            same = forgetful(images.images).argmax(1) == classifier(images.images).argmax(1)
        assert same.tolist() == [agrees, agrees]


def test_wrong_arguments_are_named(scene):
    with pytest.raises(ValueError, match="modes, stages: expected at least one of each"):
        layer_randomisation(scene[0], NET_STAGES, scene[1], METHODS, modes=[])
    with pytest.raises(ValueError, match=r"explain: expected one of .*randomised.*, got 'both'"):
        layer_randomisation(scene[0], NET_STAGES, scene[1], METHODS, explain="both")

"""Prior saliency methods against finite differences, plain loops, the library called directly, and nets whose answer is known."""

import math

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from salkit import masking
from salkit.curves import auc, insertion_curve
from salkit.methods import FAST, LRP, METHODS, RISE, FongVedaldi, GradCAM, IGOSpp, SmoothGrad, get_method
from salkit.methods.base import Cost
from salkit.methods.fong_vedaldi import RADII, _crop
from salkit.methods.igos_pp import TRIALS, _Pair, box_blur
from salkit.methods.lrp import canonical
from salkit.methods.pairs import pair_generator
from salkit.models import Classifier, load_classifier


class Double(Classifier):
    """Stays in float64, so that finite differences are exact to many digits."""

    def logits(self, inputs):
        return self.net(inputs)


@pytest.fixture
def counting(quadrant):
    """Counts the images that pass, apart by whether a gradient was asked for."""
    classifier = Classifier(quadrant.net, labels=[0, 1])
    classifier.passed = passed = [0, 0]

    def count(module, inputs):
        passed[inputs[0].requires_grad] += len(inputs[0])

    classifier.net.register_forward_pre_hook(count)
    return classifier


@pytest.fixture
def smooth():
    """A smooth net of three classes on images of 8 x 8, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3), nn.Softplus(), nn.Flatten(), nn.Linear(24, 3)
    ).double()
    net[-1].weight.data *= 5  # else all probabilities are about a third whatever the image
    return Double(net)


@pytest.fixture
def small():
    generator = torch.Generator().manual_seed(1)
    # Neighbouring pixels of a random image differ by about 1, far from the flat areas that the bilateral weights look for.
    return torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64) * 0.7


def interior(*shape):
    """Masks well inside (0, 1), where clipping and absolute values have no kink."""
    return 0.2 + 0.6 * torch.rand(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def finite_differences(function, masks, step=1e-5):
    """Central differences of values `(N,)` by the masks of the same pair; step^2 and rounding / step are both about 1e-10."""
    slope = torch.empty_like(masks)
    for at in np.ndindex(*masks.shape[1:]):
        moved = torch.zeros_like(masks)
        moved[(slice(None), *at)] = step
        slope[(slice(None), *at)] = (function(masks + moved) - function(masks - moved)) / (2 * step)
    return slope


def probability(classifier, image, label):
    return classifier.logits(image[None]).softmax(1)[0, label]


# --- iGOS++ ---------------------------------------------------------------------------------------------------------------------------


def igos_pairs(classifier, inputs, target, seed=0):
    noise = [pair_generator(seed, f"image {i}", a, "igos_pp") for i, a in enumerate(target.tolist())]
    images = zip(inputs.split(1), box_blur(inputs).split(1), target.tolist(), noise, strict=True)
    return [_Pair(classifier, *pair) for pair in images]


def by_pair(function, pairs, *masks):
    """What `function` gives for each pair and its masks, stacked."""
    return torch.stack([function(pair, *own) for pair, *own in zip(pairs, *(m.split(1) for m in masks), strict=True)])


def bilinear(side, size):
    """Matrix that interpolates linearly from `side` to `size` points with the corners aligned."""
    matrix = np.zeros((size, side))
    for i in range(size):
        place = i * (side - 1) / (size - 1)
        low = min(int(place), side - 2)
        matrix[i, low], matrix[i, low + 1] = 1 - (place - low), place - low
    return torch.from_numpy(matrix)


def igos_scores_by_loop(classifier, image, blurred, label, masks, n_path, noise):
    """The four path scores with their signs; `noise (4, n_path, 3, H, W)`."""
    matrix = bilinear(masks.shape[-1], image.shape[-1])
    deletion, insertion = (matrix @ m @ matrix.T for m in masks)
    product = deletion * insertion
    total = 0.0
    terms = [(1, image, blurred, deletion), (-1, blurred, image, insertion), (1, image, blurred, product), (-1, blurred, image, product)]
    for (sign, u, v, mask), draws in zip(terms, noise, strict=True):
        for k in range(1, n_path + 1):
            part = k / n_path * mask
            total += sign * probability(classifier, u * part + v * (1 - part) + draws[k - 1], label) / n_path
    return total


def igos_regulariser_by_hand(image, masks, l1, tv, sigma):
    product = (masks[0] * masks[1]).numpy()
    matrix = bilinear(len(product), image.shape[-1]).numpy()
    full, x = matrix @ product @ matrix.T, image.numpy()
    # Vertical differences of the image are averaged over the channels first, horizontal ones last.
    down = np.exp(-(np.diff(x, axis=1).mean(0) ** 2) / sigma) * np.diff(full, axis=0) ** 2
    right = np.exp(-(np.diff(x, axis=2) ** 2) / sigma).mean(0) * np.diff(full, axis=1) ** 2
    low = (np.diff(product, axis=0) ** 2).mean() + (np.diff(product, axis=1) ** 2).mean()
    return l1 * np.abs(1 - product).mean() + tv * (low + down.mean() + right.mean()) / 2


@pytest.mark.parametrize(("gradient", "share"), [("consistent", 1.0), ("released", 0.5)])
def test_igos_direction_is_the_slope_of_the_loss_and_the_released_one_halves_the_scores(smooth, small, gradient, share):
    pairs, masks = igos_pairs(smooth, small, torch.tensor([0, 1, 2])), interior(3, 2, 3, 3)
    # sigma 1 instead of 0.01: else the bilateral weights vanish on a random image. Powers of two as counts: 1 / n is exact in float32.
    method = IGOSpp(mask_size=3, n_path=4, noise=0.0, sigma=1.0, gradient=gradient, internal_batch_size=7)
    whole, regular = (finite_differences(lambda m, f=f: by_pair(f, pairs, m), masks) for f in (method._loss, method._regulariser))
    assert (whole - regular).abs().max() > 1e-3, "else there is nothing to halve"
    found = by_pair(method._direction, pairs, masks).squeeze(1)
    torch.testing.assert_close(found, regular + share * (whole - regular), atol=1e-8, rtol=1e-6)
    assert IGOSpp().gradient == "released"


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_igos_scores_are_those_of_a_plain_loop(smooth, small, noise):
    target, n_path = torch.tensor([0, 1, 2]), 4
    method = IGOSpp(mask_size=3, n_path=n_path, noise=noise, internal_batch_size=5, tv=0.0, l1=0.0)
    masks = interior(3, 2, 3, 3)
    pairs = igos_pairs(smooth, small, target, seed=4)
    found = [by_pair(method._loss, pairs, masks) for _ in range(2)]
    for i in range(3):
        stream = pair_generator(4, f"image {i}", target[i].item(), "igos_pp")
        for value in found:  # the second evaluation goes on with the stream: fresh noise
            draws = noise * torch.from_numpy(stream.standard_normal((4, n_path, 3, 8, 8), dtype=np.float32)).double()
            expected = igos_scores_by_loop(smooth, small[i], pairs[i].blurred[0], target[i], masks[i], n_path, draws)
            # Noise is scaled in the dtype of the masks; float64 throughout.
            assert value[i].item() == pytest.approx(expected.item(), abs=1e-9)
    assert torch.equal(*found) == (noise == 0)


def test_igos_regulariser_by_hand(smooth):
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    masks = interior(1, 2, 3, 3)
    method = IGOSpp(mask_size=3, l1=0.7, tv=20.0, sigma=0.8)

    def value(x, m):
        return method._regulariser(igos_pairs(smooth, x, torch.tensor([0]))[0], m).item()

    assert value(image, masks) == pytest.approx(igos_regulariser_by_hand(image[0], masks[0], 0.7, 20.0, 0.8), rel=1e-12)
    # Turning image and masks about the diagonal exchanges the two weights, which treat the channels differently.
    turned = image.transpose(-1, -2), masks.transpose(-1, -2)
    assert value(*turned) == pytest.approx(igos_regulariser_by_hand(turned[0][0], turned[1][0], 0.7, 20.0, 0.8), rel=1e-12)
    assert abs(value(*turned) - value(image, masks)) > 1e-3


def test_igos_blur_is_opencvs_at_224_pixels():
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    taps = np.exp(-(np.arange(-25, 26) ** 2) / (2 * 50**2))
    expected = image[0].double().numpy()
    for axis in (1, 2):
        expected = ndimage.correlate1d(expected, taps / taps.sum(), axis=axis, mode="mirror")
    # 51 * 51 products of float32 a pixel.
    np.testing.assert_allclose(box_blur(image)[0].numpy(), expected, atol=1e-5)


def test_igos_line_search_finds_each_pairs_own_step(smooth, small):
    target, n_path = torch.tensor([0, 1, 2]), 4
    method = IGOSpp(mask_size=3, n_path=n_path, noise=0.0, sigma=1.0, alpha=10.0, l1=0.1, tv=1.0)
    pairs, masks = igos_pairs(smooth, small, target), interior(3, 2, 3, 3)
    # Directions of very different length need steps of very different size; uphill no step is accepted and the last, tiny one is taken.
    direction = by_pair(method._direction, pairs, masks).squeeze(1) * torch.tensor([0.1, 100.0, -100.0]).view(3, 1, 1, 1)
    found = by_pair(method._line_search, pairs, masks, direction).squeeze(1)
    silence = torch.zeros(4, n_path, 3, 8, 8)
    steps = []
    for i in range(3):

        def loss(m, i=i):
            scores = igos_scores_by_loop(smooth, small[i], pairs[i].blurred[0], target[i], m, n_path, silence)
            return scores.item() + igos_regulariser_by_hand(small[i], m, 0.1, 1.0, 1.0)

        def tried(alpha, i=i):
            return (masks[i] - alpha * direction[i]).clamp(0, 1)

        alpha, least = 10.0, 1e-4 * direction[i].square().sum().item()
        while alpha >= 1e-5 and loss(tried(alpha)) > loss(masks[i]) - alpha * least:
            alpha *= 0.2
        steps.append(alpha)
        torch.testing.assert_close(found[i], tried(alpha), atol=1e-6, rtol=0)
    assert steps[0] > steps[1] > 1e-5 > steps[2], "a search with one step for all would pass unnoticed"


# --- Fong and Vedaldi -----------------------------------------------------------------------------------------------------------------


def enlarged(masks):
    """Masks of 4 x 4 enlarged by repetition to 8 x 8, and blurred."""
    doubled = (np.kron(m, np.ones((2, 2))) for m in masks[:, 0].numpy())
    return torch.from_numpy(np.stack([ndimage.gaussian_filter(m, 1.25, mode="mirror", radius=4) for m in doubled]))[:, None]


@pytest.mark.parametrize("regulariser", ["sums", "means"])
def test_fong_vedaldi_slope_is_that_of_the_objective(smooth, small, regulariser):
    target, masks, hidden = torch.tensor([0, 1, 2]), interior(3, 1, 4, 4), small.flip(-1)
    # A radius of 35 pixels at 224 is a deviation of 1.25 pixels of 8: the blur reaches beyond a cell of the mask.
    method = FongVedaldi(regulariser=regulariser, blur_radius=35.0, l1=0.3, tv=0.4, gradient="consistent")

    def objective(m):
        composites = small * enlarged(m) + hidden * (1 - enlarged(m))
        return torch.stack([probability(smooth, *pair) for pair in zip(composites, target, strict=True)]) + method.penalty(m)

    slope = method.slope(smooth, small, hidden, target, masks)
    torch.testing.assert_close(slope, finite_differences(objective, masks), atol=1e-6, rtol=1e-5)  # the kernel's taps are float32


def test_fong_vedaldi_released_slope_takes_the_blur_for_the_identity(smooth, small):
    target, masks, hidden = torch.tensor([0, 1, 2]), interior(3, 1, 4, 4), small.flip(-1)
    method = FongVedaldi(blur_radius=35.0)
    assert method.gradient == "released"
    full = enlarged(masks).requires_grad_()
    prob = smooth.logits(small * full + hidden * (1 - full)).softmax(1)[torch.arange(3), target].sum()
    (by_pixel,) = torch.autograd.grad(prob, [full])
    # The source sums over each block of pixels.
    expected = by_pixel.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2)) + finite_differences(method.penalty, masks)
    released = method.slope(smooth, small, hidden, target, masks)
    torch.testing.assert_close(released, expected, atol=1e-6, rtol=1e-5)
    consistent = FongVedaldi(blur_radius=35.0, gradient="consistent").slope(smooth, small, hidden, target, masks)
    assert (released - consistent).abs().max() > 1e-3
    sharp = [FongVedaldi(blur_radius=0.0, gradient=g).slope(smooth, small, hidden, target, masks) for g in ("released", "consistent")]
    torch.testing.assert_close(*sharp, atol=1e-12, rtol=0)


def test_fong_vedaldi_penalty_by_hand():
    mask = torch.tensor([[[[0.0, 0.5, 1.0], [0.5, 0.5, 0.0], [1.0, 1.0, 1.0]]]], dtype=torch.float64)
    area = 1 + 0.5 + 0 + 0.5 + 0.5 + 1 + 0 + 0 + 0
    # (down, right) at each place, 0 beyond the last row and column.
    slopes = [(0.5, 0.5), (0.0, 0.5), (-1.0, 0.0), (0.5, 0.0), (0.5, -0.5), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)]
    isotropic = sum((down**2 + right**2) ** 1.5 for down, right in slopes)
    sums = FongVedaldi(l1=2.0, tv=3.0).penalty(mask)
    assert sums.tolist() == pytest.approx([2 * area + 3 * isotropic], abs=1e-9)  # the 1e-12 under the root
    # The port: differences along each axis separately, means over the 6 that there are.
    down, right = (0.5, 0.0, -1.0, 0.5, 0.5, 1.0), (0.5, 0.5, 0.0, -0.5, 0.0, 0.0)
    separate = sum(abs(d) ** 3 for d in down) / 6 + sum(abs(d) ** 3 for d in right) / 6
    means = FongVedaldi(l1=2.0, tv=3.0, regulariser="means").penalty(mask)
    assert means.tolist() == pytest.approx([2 * area / 9 + 3 * separate], abs=1e-12)
    flat = torch.full((1, 1, 3, 3), 0.3, requires_grad=True)
    (slope,) = torch.autograd.grad(FongVedaldi(l1=0.0).penalty(flat).sum(), [flat])
    assert torch.equal(slope, torch.zeros_like(slope)), "differentiable where the mask is flat"
    assert FongVedaldi().weights() == (1e-4, 1e-2)
    assert FongVedaldi(regulariser="means", tv=0.0).weights() == (0.01, 0.0)


def test_fong_vedaldi_crops_are_the_windows_asked_for():
    images = torch.arange(2 * 3 * 7 * 9.0).view(2, 3, 7, 9)
    windows = _crop(images, torch.tensor([[0, 3], [2, 1]]), (5, 6))
    assert torch.equal(windows, torch.stack([images[0, :, 0:5, 3:9], images[1, :, 2:7, 1:7]]))


def test_fong_vedaldi_shifts_image_and_blurred_image_together(mean_pixel):
    classifier, seen = Classifier(mean_pixel.net, labels=[0, 1, 2]), []
    classifier.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    # A ramp, blurred or not, is the same ramp away from the border: whatever the mask, a composite of two equal windows is one.
    ramp = torch.arange(32.0).expand(1, 3, 32, 32).clone()
    FongVedaldi(n_steps=30, internal_batch_size=1).attribute(classifier, ramp, torch.tensor([0]))
    rows = torch.stack([s[0, 0, 16, 10:22] for s in seen])
    enlarged = F.interpolate(ramp, (36, 36), mode="bilinear", align_corners=False)[0, 0, 16]
    offsets = [min(range(4), key=lambda o: (row - enlarged[10 + o : 22 + o]).abs().max().item()) for row in rows]
    # Windows apart by one pixel would differ by about 0.9; rounding of values up to 32 is 1e-5.
    assert all((row - enlarged[10 + o : 22 + o]).abs().max() < 1e-4 for row, o in zip(rows, offsets, strict=True))
    assert set(offsets) == {0, 1, 2, 3}
    seen.clear()
    FongVedaldi(n_steps=2, jitter=1, internal_batch_size=1).attribute(classifier, ramp, torch.tensor([0]))
    torch.testing.assert_close(seen[0][0, 0, 16, 10:22], ramp[0, 0, 16, 10:22], atol=1e-4, rtol=0)


DISTANCE = np.hypot(*np.meshgrid(np.arange(32) - 15.5, np.arange(32) - 15.5))


def masks_by_radius():
    """The source's circles (radii at 224 pixels) as masks of 32 x 32: 0 inside, 1 outside, the edge blurred."""
    inside = {radius: (DISTANCE < radius * 32 / 224).astype(float) for radius in range(0, 171, 5)}
    return {radius: 1 - ndimage.gaussian_filter(disc, 320 / 224, mode="mirror", radius=4) for radius, disc in inside.items()}


class Centre(nn.Module):
    """Class 0 as long as any pixel of magnitude above a half is left."""

    def forward(self, inputs):
        left = (inputs.abs().amax((1, 2, 3)) > 0.5).float() * 20 - 10
        return torch.stack([left, -left], 1)


def test_fong_vedaldi_circle_is_the_smallest_that_hides_the_class():
    classifier, x = Classifier(Centre()), torch.zeros(3, 3, 32, 32)
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    x[0, :, 13:19, 13:19] = checks[13:19, 13:19]
    x[1, :, 8:24, 8:24] = checks[8:24, 8:24]
    # The third never belonged to the class: nothing hides it any better, so the largest is taken.
    hidden = torch.zeros_like(x)
    start = FongVedaldi()._circle(classifier, x, hidden, torch.tensor([0, 0, 0]), 4)
    found, by_radius = [], masks_by_radius()
    for image, mask in zip(x, start[:, 0], strict=True):
        hides = [radius for radius, shown in by_radius.items() if (image[0].abs().numpy() * shown).max() <= 0.5 < image.abs().max()]
        found.append(min(hides, default=170))
        np.testing.assert_allclose(mask.numpy(), by_radius[found[-1]].reshape(4, 8, 4, 8).mean((1, 3)), atol=1e-5)
    # The corners lie 3.5 and 10.6 pixels off the middle (25 and 74 at 224); the blurred edge of a small disc is half hidden further in.
    assert 25 < found[0] < 50
    assert 74 < found[1] < 90
    assert found[2] == 170 == RADII[-1]


@pytest.mark.parametrize("sign", [1, -1])
def test_fong_vedaldi_circle_takes_99_percent_of_what_the_largest_takes(mean_pixel, sign):
    # A class that fades: the more of the bright middle is hidden, the less probable it is. With a dark middle the class grows instead.
    x, masks = torch.zeros(1, 3, 32, 32), list(masks_by_radius().values())
    x[0, 0] = torch.from_numpy(sign * 20 * np.exp(-(DISTANCE**2) / 50))
    probs = [1 / (1 + 2 * math.exp(-(x[0, 0].numpy() * mask).mean())) for mask in masks]
    whole = 1 / (1 + 2 * math.exp(-x[0, 0].mean().item()))
    left = [(p - probs[-1]) / (whole - probs[-1]) for p in probs]
    first = next(i for i, share in enumerate(left) if share < 0.01)
    assert left[first] < 0.009 < 0.011 < left[first - 1], "rounding does not decide"
    start = FongVedaldi()._circle(mean_pixel, x, torch.zeros_like(x), torch.tensor([0]), 32)
    np.testing.assert_allclose(start[0, 0].numpy(), masks[first], atol=1e-5)


# --- RISE -----------------------------------------------------------------------------------------------------------------------------


def test_rise_is_the_mean_of_masks_weighted_by_probability(reference_classifier, reference):
    method = RISE(n_masks=30, keep=0.3, internal_batch_size=7)
    image = reference["images"][1]
    masks = method.masks(image, seed=5)
    assert masks.shape == (30, 1, 32, 32)
    for label in (2, 6):
        expected = torch.zeros(32, 32)
        for mask in masks:
            expected += probability(reference_classifier, image * mask, label) * mask[0] / (30 * 0.3)
        found = method.attribute(reference_classifier, image[None], torch.tensor([label]), seed=5)[0]
        # Float32 sums of 30 addends below 4.
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_rise_labels_of_an_image_share_their_passes(counting, images):
    method = RISE(n_masks=24, internal_batch_size=10)
    heatmaps = method.attribute(counting, torch.cat([images[:2], images[:2]]), torch.tensor([0, 0, 1, 1]))
    assert counting.passed == [2 * 24, 0]
    # Probabilities sum to 1, so the maps of all labels sum to the mean mask over p, whatever the net.
    mean = method.masks(images[0]).mean(0) / method.keep
    torch.testing.assert_close(heatmaps[:2] + heatmaps[2:], mean.expand(2, -1, -1), atol=1e-5, rtol=0)
    assert (heatmaps[0] - heatmaps[2]).abs().max() > 1e-2


@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_rise_masks_show_a_share_of_every_pixel(keep):
    masks = RISE(n_masks=2000, keep=keep).masks(torch.zeros(3, 30, 32))
    assert masks.shape == (2000, 1, 30, 32)
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-6, "interpolation weights sum to 1 but for rounding"
    # The mean of 2000 values deviates by at most sqrt(p (1 - p) / 2000) = 0.011; 5 deviations over 960 correlated pixels.
    assert (masks.mean(0) - keep).abs().max() < 0.056
    assert len({tuple(m.flatten().tolist()) for m in masks[:100]}) == 100, "cells and shifts differ from mask to mask"
    # Cells of 5 pixels, interpolated: neighbours differ by at most a fifth.
    assert masks.diff(dim=-1).abs().max() <= 0.2 + 1e-6


# --- Captum's -------------------------------------------------------------------------------------------------------------------------


def test_integrated_gradients_are_complete(reference_classifier, reference):
    inputs, target = reference["images"], torch.tensor([1, 2, 3, 4])
    # The sum is the logit less that of the gray image (error of a 50-point rule at kinks).
    fine = get_method("integrated_gradients").attribute(reference_classifier, inputs, target).sum((1, 2))
    rise = (reference_classifier.logits(inputs) - reference_classifier.logits(torch.zeros_like(inputs)))[torch.arange(4), target]
    torch.testing.assert_close(fine, rise, atol=2e-2, rtol=0)


@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_grad_cam_by_hand(reference_classifier, reference, mean_pixel, layer):
    net, inputs, target = reference_classifier.net, reference["images"], torch.tensor([1, 2, 3, 4])
    features = net[: int(layer) + 1](inputs).detach().requires_grad_()
    logits = net[int(layer) + 1 :](features)
    (slope,) = torch.autograd.grad(logits[torch.arange(4), target].sum(), [features])
    coarse = F.relu((slope.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)).detach()
    found = GradCAM(layer=layer, internal_batch_size=3).attribute(reference_classifier, inputs, target)
    assert found.max() > 0
    expected = F.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    if layer == "2":  # average pooling is the last to put out maps
        torch.testing.assert_close(GradCAM().attribute(reference_classifier, inputs, target), found)
        with pytest.raises(ValueError, match="layer: expected a net with spatial feature maps, got MeanPixel"):
            GradCAM().attribute(mean_pixel, inputs, target - target)


@pytest.mark.parametrize(("noise", "reduction"), [(0.1, "abs_sum"), (0.1, "sum"), (0.0, "abs_sum")])
def test_smooth_grad_is_captums_under_the_pairs_seed(reference_classifier, reference, noise, reduction):
    image, label = reference["images"][2:3], 7
    before = torch.random.get_rng_state()
    method = SmoothGrad(n_samples=6, noise_level=noise, reduction=reduction, internal_batch_size=4)
    found = method.attribute(reference_classifier, image, torch.tensor([label]), seed=3, ids=["dog"])
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"
    tunnel = NoiseTunnel(Saliency(reference_classifier.net))
    spread = noise * float(image.max() - image.min())
    with torch.random.fork_rng():
        torch.manual_seed(int(pair_generator(3, "dog", label, "smooth_grad").integers(2**62)))
        settings = {"nt_samples": 6, "nt_samples_batch_size": 4, "stdevs": spread, "abs": False}
        direct = tunnel.attribute(image.clone().requires_grad_(), target=label, **settings).detach()
    torch.testing.assert_close(found, (direct if reduction == "sum" else direct.abs()).sum(1), atol=1e-6, rtol=1e-4)


# --- LRP ------------------------------------------------------------------------------------------------------------------------------


def test_canonical_net_computes_the_same_without_batch_norms(images, with_statistics):
    classifier = Classifier(with_statistics(load_classifier("cifar10-resnet20", pretrained=False).net))
    state = {k: v.clone() for k, v in classifier.net.state_dict().items()}
    before = classifier.net(images)
    net = canonical(classifier.net)
    # The merged ones may stay behind as modules that nothing calls.
    called = [type(net.get_submodule(node.target)).__name__ for node in net.graph.nodes if node.op == "call_module"]
    assert "BatchNorm2d" not in called
    assert called.count("Sum") == 9, "one for each residual unit"
    assert sum(isinstance(module, nn.BatchNorm2d) for module in classifier.net.modules()) == 21
    # Merged weights are rounded once more in each of 20 layers; logits are of the order of their largest value.
    torch.testing.assert_close(net(images), before, atol=1e-4 * float(before.abs().max()), rtol=0)
    assert all(torch.equal(v, state[k]) for k, v in classifier.net.state_dict().items()), "the classifier itself is left alone"


class Shared(nn.Module):
    """One convolution twice, with a norm after one of its calls; a sum with a factor; a sum that broadcasts a parameter."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.shift = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x):
        return torch.add(self.norm(self.conv(x)) + self.shift, self.conv(x), alpha=2).mean((2, 3))


def test_canonical_leaves_alone_what_it_cannot_merge(images, with_statistics):
    net = with_statistics(Shared())
    torch.testing.assert_close(canonical(net)(images), net(images))


def test_lrp_shares_out_the_whole_relevance(images):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten()]
    classifier = Classifier(nn.Sequential(*layers, nn.Linear(1800, 10, bias=False)), labels=[3, 8])
    heatmaps = LRP().attribute(classifier, images, torch.tensor([0, 1, 0, 1, 0]))
    # Without biases each rule hands on all it gets, but for the stabiliser (1e-6, against logits of about 0.1).
    torch.testing.assert_close(heatmaps.sum((1, 2)), torch.ones(5), atol=1e-2, rtol=0)
    assert (heatmaps[0] - LRP().attribute(classifier, images[:1], torch.tensor([1]))[0]).abs().max() > 1e-4


def test_lrp_does_not_turn_the_map_of_a_negative_logit_upside_down():
    # Only the evidence for the label's own class counts in the last layer: pixels that raise it are positive although it is negative.
    net = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=False))
    nn.init.constant_(net[0].weight, 1 / 3)
    nn.init.constant_(net[3].weight, -1.0)
    classifier = Classifier(net)
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    assert classifier.logits(x)[0, 0] < 0
    heatmap = LRP().attribute(classifier, x, torch.tensor([0]))[0]
    # epsilon: a * w / z with w = -1 and z = -sum(a), so shares a / sum(a).
    torch.testing.assert_close(heatmap, x[0].mean(0) / x[0].mean(0).sum(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rules", ["epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
def test_lrp_rules_run_on_a_net_with_skip_connections(images, rules):
    classifier = load_classifier("cifar10-resnet20")
    heatmaps = LRP(rules).attribute(classifier, images[:2], torch.tensor([1, 2]))
    assert torch.isfinite(heatmaps).all()
    assert heatmaps.std() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in classifier.net.modules())


def test_lrp_names_a_net_that_cannot_be_traced(images):
    class Branching(nn.Module):
        def forward(self, inputs):
            return inputs.mean((2, 3)) if inputs.sum() > 0 else -inputs.mean((2, 3))

    with pytest.raises(TypeError, match=r"classifier: expected a net that torch\.fx can trace, got Branching"):
        LRP().attribute(Classifier(Branching()), images, torch.tensor([0, 1, 2, 0, 1]))


# --- Nets whose answer is known -------------------------------------------------------------------------------------------------------

LEARNED = {"scale": 1, "n_steps": 30, "n_distractors": 2, "l1": 1e-6, "lr": 0.2}
BY_LABEL = {
    **{
        f"learned_mask {infill}": {"scale": 1, "n_steps": 30, "n_distractors": 2, "l1": 1e-6, "lr": 0.2, "infill": infill}
        for infill in masking.INFILLS
    },
    # One cell of 8 x 8 counts 12 times as much in the mean as one of 28 x 28 (28^2 / 8^2), which the weights of the sources are made for.
    "igos_pp": {"n_steps": 5, "n_path": 4, "alpha": 100.0, "mask_size": 8, "l1": 0.3, "tv": 0.3},
    # Area outweighs smoothness, so that a mask opens where nothing is to be hidden, and not only there where it happens to start open.
    "fong_vedaldi": {"n_steps": 60, "l1": 0.01, "tv": 0.01},
    "rise": {"n_masks": 800},
    "gradient_x_input": {},
    "grad_cam": {},
    "smooth_grad": {"n_samples": 5},
    "integrated_gradients": {"n_steps": 8},
    "lrp": {},
}
NEED_LAYERS = {"grad_cam", "lrp"}


@pytest.fixture
def texture():
    """Class 0 is texture in the upper left quadrant; checkerboards all over, which blurring, graying and inserting hide or show alike."""
    place = nn.ZeroPad2d((0, -4, 0, -4)), nn.ZeroPad2d((0, 4, 0, 4))  # leaves the quadrant only
    layers = nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.AvgPool2d(4), *place, nn.Flatten(), nn.Linear(128, 2)
    layers[0].weight.data.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1) / 3)  # brighter and darker than gray
    layers[-1].weight.data.copy_(torch.tensor([[0.25], [-0.25]]).expand(2, 128))
    layers[-1].bias.data.copy_(torch.tensor([-2.0, 2.0]))
    contrast = 1 + torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.3
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    return Classifier(nn.Sequential(*layers)), contrast * checks.expand(4, 3, 32, 32)


def assert_points_at_the_quadrant(classifier, inputs, target, heatmaps):
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[:16, :16] = True
    assert (heatmaps[:, inside].mean(1) > heatmaps[:, ~inside].mean(1)).all()
    right, wrong = (auc(insertion_curve(classifier, inputs, target, sign * heatmaps, n_steps=16)) for sign in (1, -1))
    assert (right > wrong + 0.05).all(), "a map of the wrong polarity would come out the other way"


def test_every_method_that_asks_for_the_label_is_checked_for_its_polarity():
    asks = {name for name in METHODS if getattr(get_method(name), "depends_on_label", True)}
    assert {name.split()[0] for name in BY_LABEL} == asks - {"random", "dabkowski_gal"}, "which have tests of their own"


@pytest.mark.parametrize("name", sorted(BY_LABEL))
def test_maps_find_the_texture_the_net_looks_at(texture, name):
    classifier, inputs = texture
    target = torch.zeros(4, dtype=torch.int64)
    assert classifier(inputs).exp()[:, 0].min() > 0.9
    assert classifier(masking.blur(inputs)).exp()[:, 0].max() < 0.1, "blurring hides the class"
    method = get_method(name.split()[0], **BY_LABEL[name])
    heatmaps = method.attribute(classifier, inputs, target, distractors=torch.zeros_like(inputs))
    assert_points_at_the_quadrant(classifier, inputs, target, heatmaps)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("name", sorted(set(BY_LABEL) - NEED_LAYERS))
def test_maps_find_the_quadrant_the_net_looks_at(quadrant, name, label):
    # Label 0 speaks for bright pixels, 1 for dark ones. A spot at the quadrant's corner with the contrary around the corner, so that
    # blurring takes the class away, and the same spot in the opposite quadrant, which does not count.
    inputs = torch.zeros(2, 3, 32, 32)
    inputs[..., 12:20, 12:20] = -6.0
    inputs[..., 12:16, 12:16] = inputs[..., 24:28, 24:28] = 6.0
    inputs *= torch.tensor([1.0, 1.5]).view(2, 1, 1, 1) * (1 if label == 0 else -1)
    target = torch.full((2,), label)
    assert (quadrant(masking.blur(inputs))[:, label] < quadrant(inputs)[:, label] - 0.08).all()
    method, contrary = get_method(name.split()[0], **BY_LABEL[name]), torch.full_like(inputs, 2.0 * label - 1)
    heatmaps = method.attribute(quadrant, inputs, target, distractors=contrary)
    spot, other = heatmaps[:, 12:16, 12:16].mean((1, 2)), heatmaps[:, 24:28, 24:28].mean((1, 2))
    assert (spot > other).all()
    assert_points_at_the_quadrant(quadrant, inputs, target, heatmaps)


# --- Settings, presets, costs ---------------------------------------------------------------------------------------------------------


def test_fast_presets_are_settings_of_known_methods():
    assert set(FAST) <= set(METHODS)
    for name in METHODS:
        fast, source = get_method(name, "fast"), get_method(name)
        assert type(fast) is type(source)
        assert (fast == source) == (name not in FAST)
        costs = [cost.forward + cost.forward_backward for cost in (fast.cost(), source.cost())]
        assert (costs[0] < costs[1]) == (name in FAST)
    assert get_method("rise", "fast", n_masks=3) == RISE(n_masks=3), "a setting goes before the preset's"


def test_costs_are_what_the_net_sees(counting, images):
    target, both = torch.tensor([0, 0]), {"internal_batch_size": 2}  # so that no pass is filled up
    circle = FongVedaldi(n_steps=7, start="circle", **both)
    for method in (FongVedaldi(n_steps=7, **both), circle, RISE(n_masks=20), SmoothGrad(6), get_method("gradient_x_input")):
        counting.passed[:] = 0, 0
        method.attribute(counting, images[:2], target)
        assert counting.passed == [2 * method.cost().forward, 2 * method.cost().forward_backward]
    counting.passed[:] = 0, 0
    IGOSpp(n_steps=3, n_path=2, internal_batch_size=8).attribute(counting, images[:1], target[:1])
    # The gradient, and the loss and 1 to 13 trials of each step.
    assert counting.passed[1] == 3 * 8
    assert counting.passed[0] in range(3 * 2 * 8, 3 * 14 * 8 + 1, 8)
    assert IGOSpp(n_steps=2, n_path=3).cost() == Cost((1 + TRIALS) * 24, 24)
    sources = [get_method(name).cost() for name in ("igos_pp", "fong_vedaldi", "rise")]
    assert sources == [Cost(6000, 1200), Cost(0, 300), Cost(8000, 0, "image")]

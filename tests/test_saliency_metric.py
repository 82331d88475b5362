import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from salkit.models import Classifier
from salkit.saliency_metric import ALPHAS, boxes, crop, leave_one_out, saliency_metric, saliency_metric_by_alpha

STAIRS = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0], [0.0, 0.25, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def box_by_loops(heatmap, alpha):
    """The definition, pixel by pixel; the map is compared in its own precision, as the threshold is met exactly."""
    low, high = heatmap.min(), heatmap.max()
    salient = [
        (y, x)
        for y in range(heatmap.shape[0])
        for x in range(heatmap.shape[1])
        if low == high or heatmap[y, x] - low >= np.float32(alpha) * (high - low)
    ]
    ys, xs = [y for y, _ in salient], [x for _, x in salient]
    return min(ys), max(ys) + 1, min(xs), max(xs) + 1


def metric_by_loops(classifier, image, label, box):
    """The definition for one pair and box: the crop is cut out, and resized alone."""
    top, bottom, left, right = box
    alone = F.interpolate(image[None, :, top:bottom, left:right], image.shape[1:], mode="bilinear", align_corners=False)
    with torch.no_grad():
        p = classifier(alone)[0, label].exp().item()
    area = (bottom - top) * (right - left) / (image.shape[1] * image.shape[2])
    return math.log(max(area, 0.05)) - math.log(max(p, 1e-8))


def drawn_pairs(n, side, seed=0):
    """Images with structure, labels, and maps of which some are smooth (boxes of all sizes), some spiky, one constant."""
    rng = np.random.default_rng(seed)
    inputs = torch.from_numpy(rng.normal(size=(n, 3, side, side)).cumsum(2).cumsum(3).astype(np.float32) / side)
    heatmaps = torch.from_numpy(rng.random((n, side, side)).astype(np.float32))
    yy, xx = np.mgrid[:side, :side]
    for i in range(0, n, 2):
        y, x = rng.integers(side, size=2)
        heatmaps[i] = torch.from_numpy(np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / rng.uniform(2, side))).float()
    heatmaps[-1] = 0.3
    return inputs, torch.from_numpy(rng.integers(0, 3, n)), heatmaps


def square(channel, value):
    """An image that is 0 but for a square of 4 x 4 pixels in one channel, a quarter of it, and the map of that square."""
    inputs = torch.zeros(1, 3, 8, 8)
    inputs[0, channel, 2:6, 2:6] = value
    return inputs, (inputs[:, channel] > 0).float()


class Counting(nn.Module):
    """Channel means; keeps the batch sizes that it saw, in a list that copies of the net share."""

    sizes = []  # noqa: RUF012

    def forward(self, inputs):
        self.sizes.append(len(inputs))
        return inputs.mean((2, 3))


def test_a_constant_map_points_at_the_whole_image():
    flat = torch.tensor([-2.0, 0.0, 0.7])[:, None, None].expand(3, 5, 7)
    for alpha, rule in ((0.0, "threshold"), (0.5, "threshold"), (1.0, "threshold"), (0.5, "largest_component")):
        assert boxes(flat, alpha, rule).tolist() == [[0, 5, 0, 7]] * 3


def test_largest_component_of_the_pixels_above_the_mean():
    heatmap = torch.zeros(6, 8)
    heatmap[0, 0] = 1.0
    heatmap[3:5, 4:7] = 0.5
    heatmap[5, 3] = 0.5  # touches the blob at a corner only: another region
    # The mean is 4.5 / 48; the six pixels of the blob are more than the brightest one, and 0.08 is below the mean.
    heatmap[2, 4] = 0.08
    assert boxes(heatmap[None], rule="largest_component").tolist() == [[3, 5, 4, 7]]
    assert boxes(heatmap[None], 0.5).tolist() == [[0, 6, 0, 7]]
    # No alpha there.
    assert boxes(heatmap[None], 0.9, "largest_component").tolist() == [[3, 5, 4, 7]]


def test_threshold_boxes_against_loops_over_the_pixels():
    heatmaps, corners = drawn_pairs(12, 9)[2], torch.zeros(2, 5, 7)
    heatmaps[3] -= 5.0
    corners[0, 4, 6] = corners[1, 0, 2] = corners[1, 3, 5] = 1.0
    # The map is scaled to [0, 1] first, so that neither its unit nor its zero matters; powers of two do not round.
    for maps in (heatmaps, corners, STAIRS[None], STAIRS[None] * 8 - 4):
        for alpha in (*ALPHAS, 0.51, 1.0):
            assert boxes(maps, alpha).tolist() == [list(box_by_loops(m, alpha)) for m in maps.numpy()]
    assert boxes(corners).tolist() == [[4, 5, 6, 7], [0, 4, 2, 6]], "one pixel in the corner, and several blobs"
    by_hand = {0.0: [0, 4, 0, 4], 0.25: [1, 3, 1, 3], 0.3: [1, 2, 1, 3], 0.5: [1, 2, 1, 3], 0.51: [1, 2, 1, 2], 1.0: [1, 2, 1, 2]}
    assert {alpha: boxes(STAIRS[None], alpha)[0].tolist() for alpha in by_hand} == by_hand, "what is at the threshold counts"


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13), (32, 32)])
def test_crops_are_what_interpolate_makes_of_the_piece_alone(height, width):
    rng = np.random.default_rng(height)
    n = 40
    inputs = torch.from_numpy(rng.normal(size=(n, 3, height, width)).astype(np.float32))
    ends = [np.sort(np.stack([rng.permutation(side + 1)[:2] for _ in range(n)])) for side in (height, width)]
    box = torch.from_numpy(np.concatenate(ends, 1))
    box[0] = torch.tensor([0, height, 0, width])
    for i, (top, left) in enumerate([(0, 0), (height - 1, width - 1), (3, 5), (0, width - 1)], start=1):
        box[i] = torch.tensor([top, top + 1, left, left + 1])
    box[5] = torch.tensor([height - 1, height, 0, width])
    box[6] = torch.tensor([0, height, 2, 3])
    cut = crop(inputs, box)
    for image, (top, bottom, left, right), ours in zip(inputs, box.tolist(), cut, strict=True):
        alone = image[None, :, top:bottom, left:right]
        expected = F.interpolate(alone, (height, width), mode="bilinear", align_corners=False, antialias=False)[0]
        # Places are rounded to float32: 1e-6 of a pixel at side 32, times differences between neighbours of up to 8.
        torch.testing.assert_close(ours, expected, atol=3e-5, rtol=0)


def test_the_metric_by_hand(mean_pixel):
    inputs, heatmaps = square(0, 2.0)
    p = math.exp(2) / (math.exp(2) + 2)  # the crop is red all over: channel means 2, 0, 0
    # Another label, and another image with the same box, are not mixed up with the first pair.
    three = torch.cat([inputs, inputs, square(2, 2.0)[0]])
    metric = saliency_metric(mean_pixel, three, torch.tensor([0, 1, 0]), heatmaps.expand(3, 8, 8))
    # Float32 logarithms.
    assert metric.tolist() == pytest.approx([math.log(0.25) - math.log(prob) for prob in (p, (1 - p) / 2, (1 - p) / 2)], abs=1e-5)
    # At alpha 0 the whole image counts: area 1, channel means 2 / 4, 0, 0.
    whole = saliency_metric(mean_pixel, inputs, torch.tensor([0]), heatmaps, 0.0)
    assert whole.item() == pytest.approx(-math.log(math.exp(0.5) / (math.exp(0.5) + 2)), abs=1e-5)
    assert whole.dtype == torch.float32
    assert whole.shape == (1,)


def test_areas_below_a_twentieth_count_as_a_twentieth(quadrant):
    # 1 pixel of 64 is below 0.05, 4 pixels (0.0625) are not. The crop is constant 1, so p = sigmoid(8) for label 0.
    inputs = torch.zeros(2, 3, 8, 8)
    inputs[0, :, 4, 4] = inputs[1, :, 4:6, 4:6] = 1.0
    metric = saliency_metric(quadrant, inputs, torch.tensor([0, 0]), inputs[:, 0])
    log_p = -math.log1p(math.exp(-8))
    assert metric.tolist() == pytest.approx([math.log(0.05) - log_p, math.log(4 / 64) - log_p], abs=1e-5)


def test_impossible_labels_stay_finite(quadrant):
    # Label 1 has p = sigmoid(-8 * 100), 0 in float32: the floor of 1e-8 makes it the worst there is, log 1 - log 1e-8.
    inputs = torch.full((1, 3, 8, 8), 100.0)
    metric = saliency_metric(quadrant, inputs, torch.tensor([1]), torch.zeros(1, 8, 8))
    assert metric.item() == pytest.approx(8 * math.log(10), abs=1e-4)
    # p = 1e-6 is above the floor and counts as it is.
    shallow = torch.full((1, 3, 8, 8), math.log(1e6) / 8)
    assert saliency_metric(quadrant, shallow, torch.tensor([1]), torch.zeros(1, 8, 8)).item() == pytest.approx(6 * math.log(10), abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.35, 0.8])
def test_the_metric_against_loops(reference_classifier, reference, alpha):
    inputs, target = reference["images"], reference["target_best"].long()
    heatmaps = drawn_pairs(len(inputs), 32)[2]
    metric = saliency_metric(reference_classifier, inputs, target, heatmaps, alpha)
    expected = [
        metric_by_loops(reference_classifier, image, label, box_by_loops(heatmap.numpy(), alpha))
        for image, label, heatmap in zip(inputs, target.tolist(), heatmaps, strict=True)
    ]
    # Crops agree to 3e-5 (above), log-probabilities to a few times that.
    np.testing.assert_allclose(metric, expected, atol=5e-4)


def test_phangs_rule_takes_the_box_of_the_largest_region(mean_pixel):
    inputs, heatmaps = square(1, 3.0)
    heatmaps[0, 0, 0] = 5.0
    p = math.exp(3) / (math.exp(3) + 2)
    metric = saliency_metric(mean_pixel, inputs, torch.tensor([1]), heatmaps, rule="largest_component")
    assert metric.item() == pytest.approx(math.log(0.25) - math.log(p), abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_the_metric_at_every_threshold_against_loops(seed):
    classifier = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    inputs, target, heatmaps = drawn_pairs(6, 12, seed)
    alphas = [i * 0.05 for i in range(20)] + [0.99]
    assert pytest.approx(alphas) == list(ALPHAS)
    found = saliency_metric_by_alpha(classifier, inputs, target, heatmaps)
    triples = zip(inputs, target.tolist(), heatmaps.numpy(), strict=True)
    expected = [[metric_by_loops(classifier, x, label, box_by_loops(m, alpha)) for alpha in ALPHAS] for x, label, m in triples]
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert len(found.round(decimals=3).unique()) > 20, "a grid on which all thresholds are alike would test nothing"


def left_out_by_loops(metric):
    """Of each image the metric at the threshold that all others together like best, the lowest of several; none for a single image."""
    there, found = [i for i, row in enumerate(metric) if not any(map(math.isnan, row))], []
    for i, row in enumerate(metric):
        others = [metric[j] for j in there if j != i]
        sums = [math.fsum(other[at] for other in others) for at in range(len(ALPHAS))]
        best = sums.index(min(sums))
        found.append((row[best], ALPHAS[best]) if i in there and others else (math.nan, math.nan))
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_one_that_is_best_for_the_other_images(n, seed):
    rng = np.random.default_rng(seed)
    drawn = torch.from_numpy(rng.normal(size=(n, len(ALPHAS))).astype(np.float32))
    # Whole numbers have many equal sums.
    tied = torch.from_numpy(rng.integers(-1, 2, (n, len(ALPHAS))).astype(np.float32))
    holes = drawn.clone()
    holes[rng.permutation(n)[: n // 2]] = torch.nan
    for metric in (drawn, tied, holes):
        expected = left_out_by_loops(metric.tolist())
        np.testing.assert_allclose(torch.stack(leave_one_out(metric), 1), expected, rtol=1e-6)
    assert torch.stack(leave_one_out(drawn)).isnan().all() == (n == 1), "one image has no others"
    # An image's own numbers choose nothing.
    changed = drawn.clone()
    changed[0] = -changed[0]
    assert torch.equal(leave_one_out(changed)[1][:1].nan_to_num(), leave_one_out(drawn)[1][:1].nan_to_num())


def test_of_equal_thresholds_the_lowest_is_chosen(mean_pixel):
    def chosen(inputs, heatmaps):
        """For an image beside one that is its equal."""
        two = [torch.cat([each, each]) for each in (inputs, heatmaps)]
        _, alpha = leave_one_out(saliency_metric_by_alpha(mean_pixel, two[0], torch.tensor([0, 0]), two[1]))
        return alpha.tolist()

    # A binary map has the whole image as its box at threshold 0 and one and the same box at all others. Here the box is better:
    inputs, heatmaps = square(0, 2.0)
    assert chosen(inputs, heatmaps) == pytest.approx([0.05, 0.05])
    # Red around a green square: the whole image shows label 0 better.
    assert chosen(torch.stack([8 * (1 - heatmaps), 8 * heatmaps, 0 * heatmaps], 1), heatmaps) == [0.0, 0.0]
    # A constant map has one box for all thresholds.
    assert chosen(torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8)) == [0.0, 0.0]


def test_equal_boxes_of_a_pair_are_evaluated_once():
    classifier = Classifier(Counting(), labels=[0, 1, 2])
    inputs, target, heatmaps = drawn_pairs(5, 12)
    distinct = sum(len({box_by_loops(heatmap, alpha) for alpha in ALPHAS}) for heatmap in heatmaps.numpy())
    assert 5 < distinct < 5 * len(ALPHAS), "some boxes are equal, not all"
    Counting.sizes.clear()
    saliency_metric_by_alpha(classifier, inputs, target, heatmaps)
    assert sum(Counting.sizes) == distinct


def test_batches_change_nothing_but_the_size_of_a_pass():
    inputs, target, heatmaps = drawn_pairs(7, 12)
    counting = Classifier(Counting(), labels=[0, 1, 2])
    all_at_once = saliency_metric(counting, inputs, target, heatmaps, 0.4)
    for size in (1, 2, 3, 7, 100):
        Counting.sizes.clear()
        found = saliency_metric(counting, inputs, target, heatmaps, 0.4, internal_batch_size=size)
        # Float32 sums may round differently in batches of another size.
        torch.testing.assert_close(found, all_at_once, atol=1e-5, rtol=0)
        assert max(Counting.sizes) <= size
        assert sum(Counting.sizes) == 7
    one_by_one = [saliency_metric(counting, inputs[[i]], target[[i]], heatmaps[[i]], 0.4) for i in range(7)]
    torch.testing.assert_close(torch.cat(one_by_one), all_at_once, atol=1e-5, rtol=0)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from salkit import masking
from salkit.methods.pairs import image_ids, pair_generator


def test_composite_keeps_where_the_mask_is_one_and_fills_elsewhere():
    inputs, infill = torch.full((1, 3, 2, 2), 5.0), torch.full((1, 3, 2, 2), -1.0)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 1.0]]]])
    assert masking.composite(inputs, mask, infill)[0, 0].tolist() == [[5.0, -1.0], [2.0, 5.0]]
    assert masking.composite(inputs, mask, 0.0)[0, 2].tolist() == [[5.0, 0.0], [2.5, 5.0]]


def test_composites_made_channels_last_are_the_same():
    generator = torch.Generator().manual_seed(0)
    inputs, infill = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 6, 3, 4, 5, generator=generator)
    masks = torch.rand(2, 6, 4, 5, generator=generator)
    made = masking.channels_last_composite(inputs.permute(0, 2, 3, 1)[:, None], masks, infill.movedim(2, -1).contiguous())
    expected = masking.composite(inputs[:, None], masks.unsqueeze(2), infill)
    assert torch.equal(made, expected.flatten(0, 1))
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_total_variation_by_hand_skips_last_row_and_column_as_anchors():
    # Anchors are the four upper left pixels; the jump between (2, 1) and (2, 2) is not counted.
    mask = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    assert masking.total_variation(mask).item() == 4.0


def test_total_variation_of_the_reference_masks(reference):
    for which in ("best", "second"):
        # The fixture's README: within 0.5 %, since its own values came from the masks before they were rounded.
        ours = masking.total_variation(reference[f"mask_{which}_s1_gray"])
        torch.testing.assert_close(ours, reference[f"tv_{which}"].float(), rtol=5e-3, atol=0)


def test_upsample_is_bilinear_without_aligned_corners():
    low = torch.tensor([[[[0.0, 1.0]]]])
    assert masking.upsample(low, 2)[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert masking.upsample(low, 1) is low


def test_rise_blur_against_scipy_with_zeros_around_the_image():
    inputs = np.random.default_rng(0).normal(size=(2, 3, 17, 23)).astype(np.float32)
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1.0
    # SciPy's "reflect" repeats the pixel at the border; it is also its default, which RISE leaves.
    kernel = ndimage.gaussian_filter(impulse, 5, mode="reflect", truncate=4.0)
    # Measured on RISE's code: all weights within 7 % of 1 / 121. A Gaussian of deviation 5, cut off, would vary much more.
    assert 0.03 < abs(kernel * 121 - 1).max() < 0.07
    expected = [[ndimage.correlate(channel, kernel, mode="constant", cval=0.0) for channel in image.astype(float)] for image in inputs]
    # Float32 sums of 121 products.
    np.testing.assert_allclose(masking.rise_blur(torch.from_numpy(inputs)), expected, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(0, 3))
def test_ranks_are_a_permutation_that_sorts_the_map(draw, seed):
    heatmaps = torch.from_numpy(np.random.default_rng(draw).integers(0, 6, (2, 5, 5)).astype(np.float32))
    for heatmap, ranks in zip(heatmaps, masking.rank_pixels(heatmaps, seed), strict=True):
        order = ranks.flatten().argsort()
        assert sorted(ranks.flatten().tolist()) == list(range(25))
        assert (heatmap.flatten()[order].diff() <= 0).all()


def test_ties_are_broken_by_the_seed_and_by_nothing_else():
    flat = torch.zeros(3, 8, 8)
    ranks = masking.rank_pixels(flat, seed=1)
    assert torch.equal(ranks[0], ranks[2])
    assert torch.equal(ranks, masking.rank_pixels(flat, seed=1))
    assert not torch.equal(ranks, masking.rank_pixels(flat, seed=2))
    assert not torch.equal(ranks[0].flatten().sort().indices, torch.arange(64)), "ties must not fall back to reading order"


def test_tie_share_counts_pixels_with_a_twin():
    heatmaps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[0.0, 0.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert masking.tie_share(heatmaps).tolist() == [0.0, 0.5, 1.0]


def test_pair_generator_depends_on_every_part_and_on_nothing_else():
    def draw(*key):
        return pair_generator(*key).integers(1 << 30)

    base = (0, "cat_01", 3, "distractors")
    assert draw(*base) == draw(*base)
    others = [(1, *base[1:]), (0, "cat_02", 3, "distractors"), (0, "cat_01", 4, "distractors"), (0, "cat_01", 3, "random")]
    assert len({draw(*key) for key in [base, *others]}) == 5


def test_image_ids_are_given_or_hashed_from_the_pixels(images):
    assert image_ids(images, range(5)) == ["0", "1", "2", "3", "4"]
    ids = image_ids(images)
    assert len(set(ids)) == 5
    assert image_ids(images.flip(0)) == ids[::-1]


@pytest.mark.parametrize("padding", ["reflect", "constant"])
def test_gaussian_blur_is_torchvisions_over_the_whole_square(padding):
    inputs = torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    radius, sigma = 4, 1.7
    whole = gaussian_blur(F.pad(inputs, (2 * radius,) * 4, mode=padding), [2 * radius + 1] * 2, [sigma] * 2)
    inside = whole[..., 2 * radius : -2 * radius, 2 * radius : -2 * radius]
    torch.testing.assert_close(masking.gaussian_blur(inputs, radius, sigma, padding), inside)
    # Ten pixels in 224, cut off at three deviations (20 / 224 * 10 = 0.89, times 3 is 2.7); no radius reaches beyond the image.
    assert torch.equal(masking.blur(inputs), masking.gaussian_blur(inputs, 3, 200 / 224))
    assert torch.equal(masking.blur(inputs, 9.0), masking.gaussian_blur(inputs, 19, 9.0))

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from salkit.masking import rank_pixels
from salkit.scores import PROTOCOLS, best_effort, completeness, label_correlation, localisation, soundness, worst_case, worst_per_image

unit = st.floats(0, 1, width=32)
eps = st.sampled_from([0.0, 0.001, 0.01, 0.1])


def one(value):
    return torch.tensor([value], dtype=torch.float32)


def test_section_3_3_of_the_paper():
    # f = 0.67 and 0.13; g of the three methods for the two labels as printed; thresholds 0.
    f = torch.tensor([0.67, 0.13])
    g = torch.tensor([[0.65, 0.15], [0.70, 0.29], [0.43, 0.58 * 0.13]])
    alpha, beta = (score(g, f.expand(3, 2), eps=0.0).amin(1) for score in (completeness, soundness))
    # Printed to two digits from rounded inputs.
    torch.testing.assert_close(alpha, torch.tensor([0.97, 1.00, 0.58]), atol=5e-3, rtol=0)
    torch.testing.assert_close(beta, torch.tensor([0.87, 0.45, 1.00]), atol=5e-3, rtol=0)


def test_scores_of_the_released_code(reference):
    for which in ("best", "second"):
        prob = reference["probs"].gather(1, reference[f"target_{which}"].long()[:, None])[:, 0]
        for key in (f"{which}_s{s}_{infill}" for s in (1, 4) for infill in ("gray", "image")):
            area = reference[f"ins1_{key}"]
            torch.testing.assert_close(completeness(area, prob), reference[f"alpha_{key}"])
            torch.testing.assert_close(soundness(area, prob), reference[f"beta_{key}"])


@given(unit, unit, unit, eps)
@example(0.0, 0.5, 0.0, 0.0)
@example(0.5, 0.0, 0.0, 0.0)
@example(0.0, 0.0, 0.5, 0.0)
@example(0.0, 0.0, 0.5, 0.01)
def test_against_equation_1_computed_in_python(g, more, f, e):
    alpha, beta = completeness(one(g), one(f), e), soundness(one(g), one(f), e)
    assert alpha.item() == pytest.approx(1.0 if f == 0 else min(max(g, e) / f, 1.0), rel=1e-5, abs=1e-30)
    assert beta.item() == pytest.approx(1.0 if g == 0 else min(max(f, e) / g, 1.0), rel=1e-5, abs=1e-30)
    assert min(alpha, beta) >= 0
    assert max(alpha, beta) == 1, "g cannot be both too small and too large"
    # Completeness rises and soundness falls with the area.
    low, high = sorted((g, more))
    assert completeness(one(low), one(f), e) <= completeness(one(high), one(f), e)
    assert soundness(one(low), one(f), e) >= soundness(one(high), one(f), e)


def test_tensors_and_labelled_arrays_agree():
    rng = np.random.default_rng(0)
    g, f = rng.random((2, 4, 3)).astype(np.float32)
    labelled = [xr.DataArray(v, dims=("image", "label")) for v in (g, f)]
    for score in (completeness, soundness):
        plain = score(torch.from_numpy(g), torch.from_numpy(f))
        np.testing.assert_allclose(score(*labelled), plain, rtol=1e-6)
        assert worst_case(score(*labelled)).item() == pytest.approx(worst_case(plain).item(), rel=1e-6)


def test_worst_case_is_the_minimum_over_labels_then_the_mean_over_images():
    scores = torch.tensor([[1.0, 0.5, 0.9], [0.25, 1.0, 1.0]])
    assert worst_case(scores).item() == 0.375
    assert worst_per_image(scores).tolist() == [0.5, 0.25]
    both = xr.DataArray(torch.stack([scores, scores / 2]).numpy(), dims=("method", "image", "label"))
    assert worst_case(both).values.tolist() == [0.375, 0.1875]


def test_best_effort_by_hand():
    prob = xr.DataArray([[0.7, 0.29, 0.01], [0.2, 0.5, 0.3], [0.995, 0.004, 0.001]], dims=("image", "label"))
    alpha = xr.DataArray([[0.1, 0.8, 0.6], [0.3, 0.2, 0.9], [0.0, 0.5, 0.4]], dims=("image", "label"))
    effort = best_effort(alpha.assign_coords(label=[0, 1, 2]), prob.assign_coords(label=[0, 1, 2]))
    # The third image has no second label with probability 0.01 or more.
    assert effort.values[:2].tolist() == [0.6, 0.3]
    assert math.isnan(effort.values[2])


def test_label_correlation_is_the_mean_spearman_over_pairs_of_labels():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(4, 1, 7, 9))
    # From unrelated maps to nearly equal ones; normal draws have no ties.
    heatmaps = rng.normal(size=(4, 5, 7, 9)) + np.array([0, 0.5, 2, 20])[:, None, None, None] * shared
    pairs = [(a, b) for a in range(5) for b in range(a)]
    expected = [np.mean([stats.spearmanr(maps[a].ravel(), maps[b].ravel()).statistic for a, b in pairs]) for maps in heatmaps]
    # Float32 result.
    np.testing.assert_allclose(label_correlation(torch.from_numpy(heatmaps)), expected, atol=1e-6)
    assert abs(expected[0]) < 0.1
    assert expected[3] > 0.9


def test_label_correlation_of_equal_contrary_and_single_maps():
    # Without ties, so that the negative map has exactly the reversed ranks.
    heatmap = torch.from_numpy(np.random.default_rng(1).permutation(48).reshape(1, 6, 8) / 64.0)
    assert label_correlation(torch.stack([heatmap, heatmap], 1)).tolist() == pytest.approx([1.0])
    assert label_correlation(torch.stack([heatmap, heatmap.exp(), 3 * heatmap - 7], 1)).tolist() == pytest.approx([1.0])
    assert label_correlation(torch.stack([heatmap, -heatmap], 1)).tolist() == pytest.approx([-1.0])
    assert label_correlation(heatmap[:, None]).tolist() == [1.0]
    # Two equal maps and their negative: the pairs have 1, -1 and -1.
    assert label_correlation(torch.stack([heatmap, heatmap, -heatmap], 1)).tolist() == pytest.approx([-1 / 3])
    # Ties are broken alike in all maps, so that constant maps are the same map.
    assert label_correlation(torch.zeros(2, 3, 6, 8)).tolist() == pytest.approx([1.0, 1.0])


def test_protocols_are_the_documented_ones():
    paper, released = PROTOCOLS["paper"], PROTOCOLS["released"]
    assert (paper.softmax_over, paper.eps_completeness, paper.eps_soundness, paper.loss) == ("all", 0.01, 0.001, "nll")
    assert (released.softmax_over, released.eps_completeness, released.eps_soundness, released.loss) == ("labels", 0.1, 0.1, "released")


HALVES = torch.tensor([[[True, False]], [[False, True]]])


def test_localisation_by_hand():
    # Mass 6 of 8 on the left; the negative pixel does not count. One pixel of two is the more salient.
    maps = torch.tensor([[[[6.0, 2.0]], [[6.0, 2.0]]], [[[3.0, -1.0]], [[-3.0, -1.0]]]])
    assert localisation(maps, HALVES).tolist() == [[0.75, 0.25], [1.0, 0.5]]
    assert localisation(maps, HALVES, top=0.5).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    # Regions of each image's own.
    assert localisation(maps, torch.stack([HALVES, ~HALVES])).tolist() == [[0.75, 0.25], [0.0, 0.5]]


@pytest.mark.parametrize("top", [None, 0.1, 0.37, 1.0])
def test_localisation_pixel_by_pixel(top):
    rng = np.random.default_rng(1)
    maps, regions = rng.integers(-3, 6, (3, 2, 9, 11)).astype(np.float32), rng.random((2, 9, 11)) < 0.3
    found = localisation(torch.from_numpy(maps), torch.from_numpy(regions), top, seed=4)
    ranks = rank_pixels(torch.from_numpy(maps).flatten(0, 1), 4).view(maps.shape)
    for n, a in np.ndindex(3, 2):
        inside = whole = 0.0
        for y, x in np.ndindex(9, 11):
            mass = max(maps[n, a, y, x], 0) if top is None else float(ranks[n, a, y, x] < round(99 * top))
            whole += mass
            inside += mass * regions[a, y, x]
        assert found[n, a].item() == pytest.approx(inside / whole, abs=1e-6)


def test_a_map_that_knows_no_place_is_localised_by_chance():
    regions = torch.zeros(1, 8, 8, dtype=torch.bool)
    regions[:, :, :2] = True
    for value in (2.0, 0.0, -1.0):
        assert localisation(torch.full((1, 1, 8, 8), value), regions).item() == 0.25
    one_for_both = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(-1, 2, -1, -1)
    halves = torch.stack([torch.arange(8).expand(8, -1) < 4, torch.arange(8).expand(8, -1) >= 4])
    for top in (None, 0.1):
        torch.testing.assert_close(localisation(one_for_both, halves, top).mean(1), torch.full((5,), 0.5))


def test_ranks_do_not_feel_an_offset_and_mass_does():
    maps = torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    halves = torch.stack([torch.arange(6).expand(6, -1) < 3, torch.arange(6).expand(6, -1) >= 3])
    assert torch.equal(localisation(maps, halves, 0.2), localisation((4 * maps + 9).exp(), halves, 0.2))
    before, after = localisation(maps, halves), localisation(maps + 9, halves)
    assert ((after - 0.5).abs() < (before - 0.5).abs() / 4).all()


def test_localisation_names_wrong_arguments():
    maps = torch.rand(1, 2, 1, 2)
    for regions in (HALVES.float(), HALVES[:1], HALVES[..., :1]):
        with pytest.raises(ValueError, match=r"regions: expected bool of shape \(A, H, W\) = \(2, 1, 2\) or"):
            localisation(maps, regions)
    for top in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="top: expected"):
            localisation(maps, HALVES, top)

import numpy as np
import pytest
import torch

from salkit import masking
from salkit.curves import auc, deletion_curve, insertion_curve, insertion_curves_all_labels, kept_counts


def brute_force_curve(classifier, image, label, heatmap, counts, baseline=0.0):
    """The definition read aloud: sort, keep one more pixel, look; no batch, no ranks."""
    order = np.argsort(-heatmap.numpy().ravel(), kind="stable")
    curve = []
    for count in counts:
        shown = torch.full_like(image, baseline)
        for pixel in order[:count]:
            row, column = divmod(int(pixel), image.shape[-1])
            shown[:, row, column] = image[:, row, column]
        curve.append(classifier(shown[None]).exp()[0, label].item())
    return curve


@pytest.fixture
def small(images):
    inputs = images[:3, :, :6, :6].clone()
    # No ties: a permutation of distinct values.
    heatmaps = torch.stack([torch.randperm(36, generator=torch.Generator().manual_seed(i)).view(6, 6).float() for i in range(3)])
    return inputs, torch.tensor([2, 0, 1]), heatmaps


@pytest.mark.parametrize("n_steps", [None, 1, 5, 36])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_insertion_against_its_brute_force_twin(mean_pixel, small, n_steps, baseline):
    inputs, target, heatmaps = small
    curves = insertion_curve(mean_pixel, inputs, target, heatmaps, n_steps=n_steps, baseline=baseline)
    counts = kept_counts(36, n_steps).tolist()
    for i in range(3):
        expected = brute_force_curve(mean_pixel, inputs[i], target[i], heatmaps[i], counts, baseline)
        np.testing.assert_allclose(curves[i], expected, atol=1e-6)


def test_insertion_of_the_negated_map_is_deletion_even_with_ties(reference_classifier, reference):
    inputs, target = reference["images"], reference["target_best"].long()
    heatmaps = (reference["mask_best_s4_image"] * 8).round()
    assert masking.tie_share(heatmaps).min() > 0.9
    settings = {"n_steps": 16, "baseline": 0.7, "seed": 1, "internal_batch_size": 5}
    inserted = insertion_curve(reference_classifier, inputs, target, -heatmaps, **settings)
    torch.testing.assert_close(deletion_curve(reference_classifier, inputs, target, heatmaps, **settings), inserted)


@pytest.mark.parametrize("infill", ["gray", "image"])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("which", ["best", "second"])
def test_areas_of_the_released_code(reference_classifier, reference, which, scale, infill):
    key, target = f"{which}_s{scale}_{infill}", reference[f"target_{which}"].long()
    maps = reference[f"mask_{key}"]
    for pixels in (1, 32):
        settings = {"n_steps": 1024 // pixels}
        inserted = auc(insertion_curve(reference_classifier, reference["images"], target, maps, **settings))
        deleted = auc(deletion_curve(reference_classifier, reference["images"], target, maps, **settings), game="deletion")
        # The fixture's README: 2e-3, because upsampled masks have a few exact ties that its unstable sort broke its own way.
        atol = 2e-3 if scale == 4 else 1e-5
        torch.testing.assert_close(inserted, reference[f"ins{pixels}_{key}"], atol=atol, rtol=0)
        torch.testing.assert_close(deleted, reference[f"del{pixels}_{key}"], atol=atol, rtol=0)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batches_change_nothing(reference_classifier, reference, batch):
    inputs, target, maps = reference["images"], reference["target_second"].long(), reference["mask_second_s1_gray"]
    whole = insertion_curve(reference_classifier, inputs, target, maps, n_steps=32)
    split = insertion_curve(reference_classifier, inputs, target, maps, n_steps=32, internal_batch_size=batch)
    # Passes of another size run other kernels: sums of 512 float32 products in another order, 512 * 2 ** -24 of logits of about 1 at most.
    torch.testing.assert_close(split, whole, atol=3e-5, rtol=0)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = insertion_curve(reference_classifier, inputs[order], target[order], maps[order], n_steps=32)
    assert torch.equal(shuffled, whole[order]), "the passes of a map hold nothing else"


def test_curves_of_all_labels_hold_the_curve_of_each(reference_classifier, reference):
    inputs, maps = reference["images"], reference["mask_best_s1_gray"]
    together = insertion_curves_all_labels(reference_classifier, inputs, maps, n_steps=8)
    torch.testing.assert_close(together.sum(-1), torch.ones(4, 9))
    for label in (0, 9):
        one = insertion_curve(reference_classifier, inputs, torch.full((4,), label), maps, n_steps=8)
        torch.testing.assert_close(together[..., label], one)


def test_baseline_may_be_images(mean_pixel, small):
    inputs, target, heatmaps = small
    blurred = masking.blur(inputs, sigma=1.0)
    curves = insertion_curve(mean_pixel, inputs, target, heatmaps, baseline=blurred, n_steps=2)
    torch.testing.assert_close(curves[:, 0], mean_pixel(blurred).exp().gather(1, target[:, None])[:, 0])


def test_nothing_is_mutated(mean_pixel, small):
    before = [tensor.clone() for tensor in small]
    deletion_curve(mean_pixel, *small)
    assert all(torch.equal(a, b) for a, b in zip(before, small, strict=True))


def test_auc_rules_by_hand():
    curve = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 1.0]])
    assert auc(curve).tolist() == [0.75, 1.0]
    assert auc(curve, game="deletion").tolist() == [0.25, 1.0]
    assert auc(curve, "trapezoid").tolist() == auc(curve, "trapezoid", game="deletion").tolist() == [0.5, 1.0]

import numpy as np
import pytest
import torch
import xarray as xr

from salkit.curves import auc, deletion_curve, insertion_curve
from salkit.data import load_images
from salkit.evaluation import evaluate
from salkit.methods import get_method, same_map_for_all_labels
from salkit.models import Classifier
from salkit.scores import PROTOCOLS, Protocol, completeness, soundness

METHODS = {
    "gradient": get_method("gradient_x_input"),
    "same": same_map_for_all_labels(get_method("gradient_x_input")),
    "gaussian": get_method("centered_gaussian"),
}


class AsIfItDepended:
    """A method that hides that its map is the same for every label, so that it takes the long way round."""

    def __init__(self, method):
        self.method = method

    def attribute(self, classifier, inputs, target, **settings):
        return self.method.attribute(classifier, inputs, target, **settings)


@pytest.fixture
def scores(reference_classifier, reference):
    return evaluate(
        reference_classifier,
        reference["images"],
        METHODS,
        n_steps=8,
        deletion="all",
        keep_curves=True,
        keep_heatmaps=True,
        show_progress=False,
    )


def test_every_pair_against_the_functions_it_is_made_of(scores, reference_classifier, reference):
    inputs = reference["images"]
    np.testing.assert_allclose(scores.prob, reference["probs"], atol=1e-6)
    np.testing.assert_array_equal(scores.prediction, reference["target_best"])
    for name, method in METHODS.items():
        for label in (0, 4, 9):
            target = torch.full((4,), label)
            heatmaps = method.attribute(reference_classifier, inputs, target)
            g = auc(insertion_curve(reference_classifier, inputs, target, heatmaps, n_steps=8))
            removed = auc(deletion_curve(reference_classifier, inputs, target, heatmaps, n_steps=8), game="deletion")
            f = reference["probs"][:, label]
            pair = scores.sel({"method": name}).isel(label=label)
            np.testing.assert_allclose(pair.insertion_auc, g, atol=1e-5)
            np.testing.assert_allclose(pair.deletion_auc, removed, atol=1e-5)
            np.testing.assert_allclose(pair.heatmap, heatmaps, atol=1e-5)
            np.testing.assert_allclose(pair.completeness, completeness(g, f), atol=1e-4)
            np.testing.assert_allclose(pair.soundness, soundness(g, f), atol=1e-4)
            np.testing.assert_allclose(pair.insertion_curve.mean("kept").shape, (4,))


def test_maps_that_ignore_the_label_take_a_short_cut_with_the_same_result(reference_classifier, reference, scores):
    slow = evaluate(
        reference_classifier,
        reference["images"],
        {name: AsIfItDepended(METHODS[name]) for name in ("same", "gaussian")},
        n_steps=8,
        deletion="all",
        show_progress=False,
    )
    for name in ("insertion_auc", "deletion_auc", "tie_share"):
        np.testing.assert_allclose(slow[name], scores[name].sel({"method": ["same", "gaussian"]}), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_change_nothing(reference_classifier, reference, scores, batch):
    again = evaluate(
        reference_classifier, reference["images"], METHODS, n_steps=8, deletion="all", images_per_batch=batch, show_progress=False
    )
    xr.testing.assert_allclose(again, scores.drop_vars(["insertion_curve", "heatmap", "kept"]), atol=1e-5)


def test_deletion_of_the_prediction_only(reference_classifier, reference, scores):
    one = evaluate(reference_classifier, reference["images"], METHODS, n_steps=8, show_progress=False)
    at = {"label": scores.prediction}
    np.testing.assert_allclose(one.deletion_auc.isel(at), scores.deletion_auc.isel(at), atol=1e-6)
    assert int(one.deletion_auc.notnull().sum()) == 3 * 4
    assert (
        evaluate(reference_classifier, reference["images"], ["random"], n_steps=2, deletion="none", show_progress=False)
        .deletion_auc.isnull()
        .all()
    )


def test_labels_of_ones_own_choice(reference_classifier, reference, scores):
    targets = reference["probs"].topk(2).indices
    top = evaluate(reference_classifier, reference["images"], METHODS, targets=targets, n_steps=8, show_progress=False)
    rows = torch.arange(4)[:, None]
    np.testing.assert_allclose(top.prob, reference["probs"][rows, targets], atol=1e-6)
    np.testing.assert_allclose(top.insertion_auc, scores.insertion_auc.values[:, rows, targets], atol=1e-5)
    np.testing.assert_allclose(top.deletion_auc[:, :, 0], scores.deletion_auc.values[:, torch.arange(4), targets[:, 0]], atol=1e-5)
    assert top.label.values.tolist() == ["label 1", "label 2"]
    assert top.label_name.values[0].tolist() == [str(i) for i in targets[0].tolist()]


def test_thresholds_and_area_come_from_the_protocol(reference_classifier, reference, scores):
    released = evaluate(reference_classifier, reference["images"], METHODS, protocol="released", n_steps=8, show_progress=False)
    np.testing.assert_allclose(released.insertion_auc, scores.insertion_auc)
    assert (released.completeness >= scores.completeness).all()
    assert released.attrs["eps_soundness"] == PROTOCOLS["released"].eps_soundness
    trapezoid = evaluate(
        reference_classifier, reference["images"], METHODS, protocol=Protocol(auc_rule="trapezoid"), n_steps=8, show_progress=False
    )
    curve = scores.insertion_curve
    expected = (curve.sum("kept") - (curve.isel(kept=0) + curve.isel(kept=-1)) / 2) / 8
    np.testing.assert_allclose(trapezoid.insertion_auc, expected, atol=1e-6)


def test_image_sets_give_names_and_pixels(reference_classifier):
    images = load_images("cifar10-samples", n=2)
    scores = evaluate(reference_classifier, images, ["random"], n_steps=2, keep_heatmaps=True, show_progress=False)
    assert scores.image.values.tolist() == list(images.ids)
    assert scores.label.values.tolist() == list(images.class_names)
    np.testing.assert_array_equal(scores.pixels, images.pixels())
    with_list = Classifier(reference_classifier.net, [8, 0])
    assert evaluate(with_list, images, ["random"], n_steps=2, show_progress=False).label.values.tolist() == ["ship", "airplane"]


class WrongShape:
    def attribute(self, classifier, inputs, target, **settings):
        return torch.zeros(len(inputs), 2, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"methods": ["lime"]}, ValueError, "name: expected one of"),
        ({"methods": "random"}, TypeError, "methods: expected names or a mapping"),
        ({"methods": []}, ValueError, "methods: expected at least one"),
        ({"methods": {"mine": 3}}, TypeError, "methods: expected objects with an `attribute` method, got int for 'mine'"),
        ({"methods": {"mine": WrongShape()}}, ValueError, r"heatmaps: expected shape \(40, 32, 32\)"),
        ({"protocol": "mine"}, ValueError, "protocol: expected a Protocol or one of"),
        ({"deletion": "some"}, ValueError, "deletion: expected"),
        ({"targets": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"targets: expected int64 of shape \(4, k\)"),
        ({"targets": torch.full((4, 1), 10)}, ValueError, "targets: expected indices 0 to 9"),
        ({"images": torch.zeros(0, 3, 32, 32)}, ValueError, "images: expected at least one image"),
        ({"images": "cifar10"}, TypeError, "images: expected an ImageSet"),
        ({"classifier": torch.nn.Identity()}, TypeError, "classifier: expected a salkit"),
    ],
)
def test_wrong_arguments_are_named(reference_classifier, reference, change, error, message):
    arguments = {"classifier": reference_classifier, "images": reference["images"], "methods": ["random"]} | change
    with pytest.raises(error, match=message):
        evaluate(**arguments, n_steps=2, show_progress=False)

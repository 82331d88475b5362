import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from salkit.curves import auc, deletion_curve, insertion_curve
from salkit.data import load_images
from salkit.evaluation.evaluate import evaluate
from salkit.masking import rise_blur
from salkit.methods import get_method, same_map_for_all_labels
from salkit.models import Classifier
from salkit.saliency_metric import ALPHAS, saliency_metric, saliency_metric_by_alpha
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


@pytest.fixture(scope="module")
def score(reference_classifier, reference):
    """`evaluate` of the three methods on the reference images, unless others are given."""

    def call(methods=METHODS, images=reference["images"], classifier=reference_classifier, **settings):
        return evaluate(classifier, images, methods, **{"n_steps": 8, "show_progress": False} | settings)

    return call


@pytest.fixture(scope="module")
def scores(score):
    return score(deletion="all", keep_curves=True, keep_heatmaps=True)


@pytest.fixture(scope="module")
def everything(reference):
    """Three images with everything on."""
    return {"images": reference["images"][:3], "saliency_metric": True, "blur_games": True}


@pytest.fixture(scope="module")
def full(score, everything):
    return score(**everything)


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


def test_maps_that_ignore_the_label_take_a_short_cut_with_the_same_result(score, scores):
    slow = score({name: AsIfItDepended(METHODS[name]) for name in ("same", "gaussian")}, deletion="all")
    for name in ("insertion_auc", "deletion_auc", "tie_share"):
        np.testing.assert_allclose(slow[name], scores[name].sel({"method": ["same", "gaussian"]}), atol=1e-5)


def test_batches_change_nothing(score, scores, full, everything):
    again = score(deletion="all", images_per_batch=3)
    xr.testing.assert_identical(again, scores.drop_vars(["insertion_curve", "heatmap", "kept"]))
    xr.testing.assert_identical(score(**everything, images_per_batch=1), full)


def test_a_protocol_that_is_not_followed_is_refused(score, reference_classifier):
    """Recorded as the paper's, a softmax over two labels or the released loss would be another experiment's numbers."""
    few = Classifier(reference_classifier.net, labels=[0, 3], softmax_over="labels")
    with pytest.raises(ValueError, match=r"classifier: expected softmax_over='all', as the protocol has it, got 'labels'. Write .*'all'"):
        score(["random"], classifier=few)
    assert score(["random"], classifier=few, protocol="released").attrs["softmax_over"] == "labels"
    ours = {"m": same_map_for_all_labels(get_method("learned_mask", n_steps=1, loss="released"))}
    with pytest.raises(ValueError, match=r"methods\['m'\]: expected loss='nll', as the protocol has it, got 'released'. Write .*'nll'"):
        score(ours)
    score(ours, protocol=Protocol(loss="released"))
    assert Classifier(reference_classifier.net, labels=[0, 3]).softmax_over == PROTOCOLS["paper"].softmax_over


def test_deletion_of_the_prediction_only(score, scores):
    one, at = score(), {"label": scores.prediction}
    np.testing.assert_allclose(one.deletion_auc.isel(at), scores.deletion_auc.isel(at), atol=1e-6)
    assert int(one.deletion_auc.notnull().sum()) == 3 * 4
    assert score(["random"], deletion="none").deletion_auc.isnull().all()


def test_labels_of_ones_own_choice(score, scores, reference):
    targets = reference["probs"].topk(2).indices
    top = score(targets=targets)
    rows = torch.arange(4)[:, None]
    np.testing.assert_allclose(top.prob, reference["probs"][rows, targets], atol=1e-6)
    np.testing.assert_allclose(top.insertion_auc, scores.insertion_auc.values[:, rows, targets], atol=1e-5)
    np.testing.assert_allclose(top.deletion_auc[:, :, 0], scores.deletion_auc.values[:, torch.arange(4), targets[:, 0]], atol=1e-5)
    assert top.label.values.tolist() == ["label 1", "label 2"]
    assert top.label_name.values[0].tolist() == [str(i) for i in targets[0].tolist()]


def test_thresholds_and_area_come_from_the_protocol(score, scores):
    released = score(protocol="released")
    np.testing.assert_allclose(released.insertion_auc, scores.insertion_auc)
    assert (released.completeness >= scores.completeness).all()
    assert released.attrs["eps_soundness"] == PROTOCOLS["released"].eps_soundness
    curve = scores.insertion_curve
    expected = (curve.sum("kept") - (curve.isel(kept=0) + curve.isel(kept=-1)) / 2) / 8
    np.testing.assert_allclose(score(protocol=Protocol(auc_rule="trapezoid")).insertion_auc, expected, atol=1e-6)


def test_image_sets_give_names_and_pixels(score, reference_classifier):
    images = load_images("cifar10-samples", n=2)
    found = score(["random"], images, keep_heatmaps=True)
    assert found.image.values.tolist() == list(images.ids)
    assert found.label.values.tolist() == list(images.class_names)
    np.testing.assert_array_equal(found.pixels, images.pixels())
    with_list = Classifier(reference_classifier.net, [8, 0])
    assert score(["random"], images, with_list).label.values.tolist() == ["ship", "airplane"]


def test_games_against_the_curves_of_the_predicted_label(full, reference_classifier, reference):
    inputs, prediction = reference["images"][:3], reference["target_best"][:3].long()
    assert full.games.dims == ("method", "image", "game", "infill", "rule")
    assert full.game.values.tolist() == ["insertion", "deletion"]
    infills = {"gray": 0.0, "blur": rise_blur(inputs)}
    for name, method in METHODS.items():
        heatmaps = method.attribute(reference_classifier, inputs, prediction)
        for game, play in (("insertion", insertion_curve), ("deletion", deletion_curve)):
            for infill, baseline in infills.items():
                curve = play(reference_classifier, inputs, prediction, heatmaps, baseline=baseline, n_steps=8)
                for rule in ("mean", "trapezoid"):
                    ours = full.games.sel({"method": name, "game": game, "infill": infill, "rule": rule})
                    # Passes of another size round differently.
                    np.testing.assert_allclose(ours, auc(curve, rule, game=game), atol=1e-5)
    flat = full.games.sel({"method": "gaussian"}).values.reshape(3, -1)
    assert all(len(set(areas.round(4).tolist())) == 8 for areas in flat), "games that are alike would hide a mix-up"


@pytest.mark.parametrize("deletion", ["prediction", "all"])
def test_games_take_the_predicted_labels_map_also_where_labels_are_chosen(score, full, everything, reference, deletion):
    # The prediction comes last among these labels.
    chosen = score(**everything, targets=reference["probs"][:3].topk(3).indices.flip(1), deletion=deletion)
    np.testing.assert_allclose(chosen.games, full.games, atol=1e-5)
    np.testing.assert_allclose(chosen.saliency_metric, full.saliency_metric, atol=1e-4)


def test_games_that_were_not_played_are_missing(score):
    gray = score(["centered_gaussian"], deletion="none")
    assert gray.infill.values.tolist() == ["gray"]
    assert gray.games.sel({"game": "deletion"}).isnull().all()
    assert gray.games.sel({"game": "insertion"}).notnull().all()
    # The blur games are asked for by themselves.
    blur = score(["centered_gaussian"], deletion="none", blur_games=True)
    assert blur.games.sel({"game": "deletion", "infill": "gray"}).isnull().all()
    assert blur.games.sel({"infill": "blur"}).notnull().all()


def test_the_other_images_choose_the_threshold_of_the_saliency_metric(full, scores, reference_classifier, reference):
    images, prediction = reference["images"][:3], reference["target_best"][:3].long()
    assert not {"saliency_metric", "saliency_metric_by_alpha", "alpha"} & set(scores.data_vars), "it was not asked for"
    assert full.saliency_metric.dims == ("method", "image", "box")
    assert full.box.values.tolist() == ["threshold", "largest_component"]
    assert full.alpha.dims == ("method", "image")
    assert full.saliency_metric_by_alpha.dims == ("method", "image", "tried")
    assert full.tried.values.tolist() == list(ALPHAS)
    for name, method in METHODS.items():
        heatmaps, found = method.attribute(reference_classifier, images, prediction), full.sel({"method": name})
        pairs = (reference_classifier, images, prediction, heatmaps)
        # Gradients of passes of another size round differently, and the metric is a logarithm.
        np.testing.assert_allclose(found.saliency_metric_by_alpha, saliency_metric_by_alpha(*pairs), atol=1e-4)
        largest = saliency_metric(*pairs, rule="largest_component")
        np.testing.assert_allclose(found.saliency_metric.sel(box="largest_component"), largest, atol=1e-4)
        for i in range(3):
            others = found.saliency_metric_by_alpha.drop_isel(image=i).mean("image")
            best = int(others.argmin("tried"))
            assert found.alpha[i].item() == pytest.approx(ALPHAS[best])
            assert found.saliency_metric.sel(box="threshold")[i] == found.saliency_metric_by_alpha[i, best]


def test_label_correlation_of_methods_that_ignore_the_label_is_one(score, scores):
    assert scores.label_correlation.dims == ("method", "image")
    assert (scores.label_correlation.sel({"method": ["same", "gaussian"]}) == 1).all()
    # Of those that do not, by rank correlations of the maps; gradients x pixels have no ties but exact zeros.
    pairs = [(a, b) for a in range(10) for b in range(a)]
    for i in range(4):
        maps = scores.heatmap.sel({"method": "gradient"}).isel(image=i).values.reshape(10, -1)
        expected = np.mean([stats.spearmanr(maps[a], maps[b]).statistic for a, b in pairs])
        assert scores.label_correlation.sel({"method": "gradient"}).values[i] == pytest.approx(expected, abs=1e-4)
    assert (scores.label_correlation.sel({"method": "gradient"}) < 0.9).all()
    # A method that hides it is found out.
    np.testing.assert_allclose(score({"m": AsIfItDepended(METHODS["same"])}).label_correlation, 1, atol=1e-6)

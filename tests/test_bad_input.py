"""What a user can get wrong: each ends early, in one error that names the argument, what was expected and what was got."""

import re
from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from typer.testing import CliRunner

from salkit.__main__ import app
from salkit.curves import auc, deletion_curve, insertion_curve, insertion_curves_all_labels
from salkit.data import ImageSet, load_images
from salkit.engine.compare import compare_stores
from salkit.engine.identity import describe_experiment
from salkit.engine.store import Store, StoreError
from salkit.evaluation.evaluate import evaluate
from salkit.evaluation.results import open_results, rescore
from salkit.masking import rank_pixels
from salkit.methods import METHODS, CaptumMethod, DabkowskiGal, LearnedMask, Phang, Random, get_method, same_map_for_all_labels
from salkit.methods.masker_training import MaskerRecipe, stages, taps_of
from salkit.methods.phang import PhangNet
from salkit.models import Classifier, load_classifier, resolve_device
from salkit.models.training import Recipe
from salkit.models.zoo import cifar10_net
from salkit.report.runner import reproduce
from salkit.saliency_metric import saliency_metric, saliency_metric_by_alpha
from salkit.scores import Protocol, completeness, soundness, worst_case
from salkit.statistics import mean_interval, paired_comparison
from salkit.studies import costs, profiles, recorded, theory
from salkit.studies.runs import Runs
from salkit.studies.sanity import layer_randomisation

NAN, INF = float("nan"), float("inf")
IMAGES, TARGET, HALF = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]), torch.tensor(0.5)
HEATMAPS = IMAGES[:, 0]
OTHER_DTYPES = (torch.uint8, torch.int64, torch.float16, torch.complex64)


class Net(nn.Module):
    """Logits of three classes, which `change` may spoil; its passes are counted."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.conv, self.change = nn.Conv2d(3, 3, 1), change

    def forward(self, inputs):
        return self.change(self.conv(inputs).mean((2, 3)))


NAN_NET = Classifier(Net(lambda logits: logits * NAN), [0, 1, 2])


class Says:
    """A method that returns whatever it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def attribute(self, classifier, inputs, target, **settings):
        return self.answer(inputs)


SET = ImageSet(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), ("a", "b"), ("x", "y", "z"), (0.5,) * 3, (0.5,) * 3)
image_set = partial(replace, SET)


def spoiled(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


@pytest.fixture
def kit(tmp_path):
    """What the rows are made of: a classifier whose passes are counted, images, a folder with files, and one that must stay empty."""
    torch.manual_seed(0)
    kit = SimpleNamespace(classifier=Classifier(Net(), [0, 1, 2]), folder=tmp_path / "in", out=tmp_path / "out", passes=0)
    kit.folder.mkdir()

    def count(module, inputs):
        kit.passes += isinstance(module, Net) and isinstance(inputs[0], torch.Tensor)  # torch.fx calls it with proxies

    def file(name):
        (kit.folder / name).touch()
        return kit.folder / name

    # With good arguments but for those that a row changes.
    pairs = {"classifier": kit.classifier, "inputs": IMAGES, "target": TARGET}
    kit.score = partial(
        evaluate, classifier=kit.classifier, images=IMAGES, methods=["random"], n_steps=2, store=kit.out / "store", show_progress=False
    )
    kit.curve, kit.deletion = (partial(f, **pairs, heatmaps=HEATMAPS) for f in (insertion_curve, deletion_curve))
    kit.metric, kit.threshold = (partial(f, **pairs, heatmaps=HEATMAPS) for f in (saliency_metric, saliency_metric_by_alpha))
    kit.explain = lambda method, **change: method.attribute(**pairs | change)
    kit.random, kit.file = partial(kit.explain, Random()), file
    kit.wrong_net = lambda change: kit.score(classifier=Classifier(Net(change)), store=None)
    kit.says = lambda answer: kit.score(methods={"mine": Says(answer)}, store=None)
    handle = register_module_forward_pre_hook(count)
    yield kit
    handle.remove()


def changed_manifest(k):
    store, about = Store(k.folder), describe_experiment("table", "t", 1, settings={"a": 1})
    store.open(about)
    path = k.folder / about.key / "manifest.json"
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    store.open(about)


def randomised(k, **change):
    given = {"stages": {"all": ["conv"]}, "images": image_set(), "methods": {"random": Random()}} | change
    layer_randomisation(k.classifier, given.pop("stages"), given.pop("images"), given.pop("methods"), **given, show_progress=False)


def each(values, call, message, error=ValueError):
    """A row a value; the message ends with it, or with a tensor's dtype or shape."""

    def said(value):
        return str(value.dtype if error is TypeError else tuple(value.shape)) if isinstance(value, torch.Tensor) else repr(value)

    return [(lambda k, v=value: call(k, v), error, f"{message}, got {re.escape(said(value))}$") for value in values]


TABLE = [
    (lambda k: k.curve(inputs=IMAGES.numpy()), TypeError, "inputs: expected a torch.Tensor, got ndarray"),
    *each((IMAGES.byte(), IMAGES.cfloat()), lambda k, v: k.curve(inputs=v), "inputs: expected a floating-point tensor", TypeError),
    *each((IMAGES.double(), IMAGES.half()), lambda k, v: k.random(inputs=v), "inputs: expected torch.float32, as the net.*", TypeError),
    *each((IMAGES[0], IMAGES[:, :1]), lambda k, v: k.curve(inputs=v), r"inputs: expected shape \(N, 3, H, W\)"),
    *each((IMAGES.permute(0, 2, 3, 1), IMAGES[..., :0]), lambda k, v: k.random(inputs=v), "inputs: expected shape .*"),
    (lambda k: k.curve(inputs=IMAGES[:0]), ValueError, "inputs: expected at least one image, got none"),
    (lambda k: k.curve(inputs=spoiled(IMAGES, NAN)), ValueError, "inputs: expected finite values, got NaN or infinity"),
    (lambda k: k.random(inputs=spoiled(IMAGES, -INF)), ValueError, "inputs: expected finite values, got NaN or infinity"),
    (lambda k: k.curve(target=[0, 1]), TypeError, "target: expected a torch.Tensor, got list"),
    *each((TARGET.float(), TARGET.bool()), lambda k, v: k.curve(target=v), "target: expected int64 indices.*", TypeError),
    *each((TARGET[:1], TARGET[None]), lambda k, v: k.curve(target=v), r"target: expected shape \(2,\), one label a pair"),
    (lambda k: k.deletion(target=TARGET - 1), ValueError, "target: expected indices 0 to 2, got -1 to 0"),
    (lambda k: k.curve(target=TARGET + 2), ValueError, "target: expected indices 0 to 2, got 2 to 3"),
    (lambda k: k.curve(classifier=Net()), TypeError, r"classifier: expected a salkit\.models\.Classifier, got Net"),
    (lambda k: k.random(ids=["a"]), ValueError, "ids: expected one id a pair, 2, got 1"),
    (lambda k: k.explain(LearnedMask()), ValueError, r"distractors: infill='random_image' expects images of shape .* got None"),
    (lambda k: k.explain(LearnedMask(), distractors=torch.zeros(2, 3, 4, 4)), ValueError, r"distractors: .*expects .* got \(2, 3, 4, 4\)"),
    (lambda k: k.explain(get_method("igos_pp", mask_size=9)), ValueError, r"mask_size: expected at most the image sides \(8, 8\), got 9"),
    (lambda k: k.explain(LearnedMask(scale=3), distractors=IMAGES), ValueError, r"scale: expected a divisor of .*\(8, 8\), got 3"),
    (lambda k: k.curve(heatmaps=HEATMAPS.numpy()), TypeError, "heatmaps: expected a torch.Tensor, got ndarray"),
    *each((HEATMAPS.byte(), HEATMAPS > 0), lambda k, v: k.deletion(heatmaps=v), "heatmaps: expected a floating-point tensor", TypeError),
    *each((IMAGES, HEATMAPS[:, :4]), lambda k, v: k.curve(heatmaps=v), r"heatmaps: expected shape \(2, 8, 8\) .*"),
    (lambda k: k.metric(heatmaps=HEATMAPS[:0]), ValueError, r"heatmaps: expected shape \(2, 8, 8\) .* got \(0, 8, 8\)"),
    (lambda k: k.curve(heatmaps=spoiled(HEATMAPS, NAN)), ValueError, "heatmaps: expected finite values, got NaN or infinity"),
    (lambda k: k.metric(heatmaps=spoiled(HEATMAPS, INF)), ValueError, "heatmaps: expected finite values, got NaN"),
    (lambda k: k.threshold(heatmaps=spoiled(HEATMAPS, NAN)), ValueError, "heatmaps: expected finite values, got NaN"),
    (lambda k: k.threshold(target=TARGET[:1]), ValueError, r"target: expected shape \(2,\), one label a pair, got \(1,\)"),
    (lambda k: insertion_curves_all_labels(Net(), IMAGES, HEATMAPS), TypeError, "classifier: expected a salkit.* got Net"),
    (lambda k: k.curve(baseline=torch.zeros(7)), ValueError, r"baseline: expected a shape that broadcasts to \(2, 3, 8, 8\), got \(7,\)"),
    *each((NAN, "gray"), lambda k, v: k.curve(baseline=v), "baseline: expected a finite number"),
    (lambda k: k.curve(baseline=spoiled(IMAGES, NAN)), ValueError, "baseline: expected finite values, got NaN"),
    *each((0, -1, 65, 2.0, True), lambda k, v: k.curve(n_steps=v), "n_steps: expected None or an integer from 1 to 64 pixels"),
    *each((-1, 1.5, "1", True, None), lambda k, v: k.curve(seed=v), "seed: expected an integer >= 0"),
    (lambda k: k.explain(get_method("rise", n_masks=2), seed=0.5), ValueError, "seed: expected an integer >= 0, got 0.5"),
    (lambda k: rank_pixels(HEATMAPS, -1), ValueError, "seed: expected an integer >= 0, got -1"),
    *each((0, -4, 2.5, True), lambda k, v: k.curve(internal_batch_size=v), "internal_batch_size: expected an integer >= 1"),
    (lambda k: auc([0.0, 1.0]), TypeError, "curve: expected a torch.Tensor, got list"),
    (lambda k: auc(torch.tensor([0, 1])), TypeError, "curve: expected a floating-point tensor, got torch.int64"),
    (lambda k: auc(torch.zeros(4, 1)), ValueError, r"curve: expected at least 2 points, got shape \(4, 1\)"),
    (lambda k: auc(torch.tensor(0.5)), ValueError, r"curve: expected at least 2 points, got shape \(\)"),
    (lambda k: auc(torch.zeros(3), "sum"), ValueError, r"rule: expected one of \('mean', 'trapezoid'\), got 'sum'"),
    (lambda k: auc(torch.zeros(3), game="chess"), ValueError, r"game: expected one of \('insertion', 'deletion'\), got 'chess'"),
    (lambda k: k.metric(rule="oval"), ValueError, r"rule: expected one of \('threshold', .*\), got 'oval'"),
    *each((-0.1, 1.1, NAN, "0.5", True), lambda k, v: k.metric(alpha=v), r"alpha: expected a finite number in \[0, 1\]"),
    (lambda k: completeness(torch.tensor(1.5), HALF), ValueError, r"auc: expected values in \[0, 1\], got 1.5"),
    (lambda k: soundness(torch.tensor(-0.5), HALF), ValueError, r"auc: expected values in \[0, 1\], got -0.5"),
    (lambda k: soundness(HALF, torch.tensor(NAN)), ValueError, r"prob: expected values in \[0, 1\], got nan"),
    (lambda k: soundness("high", HALF), TypeError, "auc: expected numbers, got 'high'"),
    (lambda k: soundness(HALF, torch.tensor(0.5 + 0j)), TypeError, "prob: expected real numbers, got torch.complex64"),
    (lambda k: completeness(torch.zeros(3), torch.zeros(2)), ValueError, r"prob: expected a shape that broadcasts to \(3,\), got \(2,\)"),
    *each((-0.1, 1.5, NAN, "0.1", True), lambda k, v: completeness(HALF, HALF, v), r"eps: expected a finite number in \[0, 1\]"),
    (lambda k: worst_case([[0.5]]), TypeError, "scores: expected a tensor or a DataArray, got list"),
    (lambda k: worst_case(torch.zeros(3)), ValueError, r"scores: expected shape \(..., N, A\) .* got \(3,\)"),
    (lambda k: worst_case(torch.zeros(3, 0)), ValueError, r"scores: expected shape .* at least one of each, got \(3, 0\)"),
    (lambda k: worst_case(xr.DataArray([1.0], dims="image")), ValueError, r"scores: expected dims image and label, got \('image',\)"),
    (lambda k: theory.certifies([1, 2], [1, 0], 1), ValueError, r"mask: expected bool \(2,\), got int64"),
    (lambda k: theory.simulate([1, 2], [1], n_trials=0.5), ValueError, "n_trials: expected an integer >= 1, got 0.5"),
    (lambda k: theory.toy_terms("9", 0.5), ValueError, "d: expected an integer >= 1, got '9'"),
    *each((0.0, 1.0, 95, "95%"), lambda k, v: mean_interval([0, 1], v), "confidence: expected a number between 0 and 1"),
    (lambda k: mean_interval([[0.1], [0.2]]), ValueError, r"values: expected shape \(N,\), one number an image, got \(2, 1\)"),
    (lambda k: paired_comparison([0.1, 0.2], [0.1]), ValueError, r"b: expected the shape of a, \(2,\), got \(1,\)"),
    (lambda k: image_set(images=IMAGES.numpy()), TypeError, "images: expected a torch.Tensor, got ndarray"),
    (lambda k: image_set(labels=[0, 1]), TypeError, "labels: expected a torch.Tensor, got list"),
    (lambda k: image_set(images=spoiled(IMAGES, NAN)), ValueError, "images: .* got NaN or infinity in 1 of 2 images, first 'a'"),
    (lambda k: image_set(images=spoiled(IMAGES, INF)), ValueError, "images: expected finite values, got NaN or infinity"),
    *each(OTHER_DTYPES, lambda k, v: image_set(images=IMAGES.to(v)), "images: expected float32 or float64"),
    *each((IMAGES[:, :2], IMAGES[:1]), lambda k, v: image_set(images=v), r"images: expected shape \(2, 3, H, W\) for 2 ids"),
    (lambda k: image_set(ids=("a", "a")), ValueError, "ids: expected unique names, got 'a' more than once"),
    (lambda k: image_set(labels=torch.zeros(2, 1, dtype=torch.int64)), ValueError, r"labels: expected shape \(2,\) of int64, got \(2, 1\)"),
    (lambda k: image_set(labels=torch.zeros(2)), ValueError, r"labels: expected shape \(2,\) of int64, got \(2,\) of torch.float32"),
    (lambda k: image_set(mean=(0.5,)), ValueError, r"mean, std: expected three numbers each, got \(0.5,\)"),
    (lambda k: image_set().subset([2]), ValueError, r"indices: expected integers below 2, got \[2\]"),
    (lambda k: image_set().subset(torch.tensor([True, False])), ValueError, "indices: expected integers below 2, got tensor"),
    *each((3, 1.5), lambda k, v: image_set().sample(v), "n: expected 1 to 2 images"),
    (lambda k: image_set().sample(1, seed=-1), ValueError, "seed: expected an integer >= 0, got -1"),
    (lambda k: image_set().with_labels(["cat"]), TypeError, r"labels: expected integers, got \['cat'\]"),
    *each((None, "mnist"), lambda k, v: load_images(v), r"name: expected one of \('cifar10-samples', .*\)"),
    *each(("val", None), lambda k, v: load_images("cifar10", split=v), "split: expected 'train' or 'test'"),
    *each(("mnist",), lambda k, v: load_images(f"folder:{k.folder}", preprocessing=v), "preprocessing: expected one of .*"),
    (lambda k: load_images(f"folder:{k.folder}"), FileNotFoundError, r"folder: expected images \(.png .*\), got none under .*in"),
    (lambda k: Classifier(lambda x: x), TypeError, r"net: expected a torch\.nn\.Module, got function"),
    (lambda k: Classifier(Net(), softmax_over="some"), ValueError, "softmax_over: expected 'labels' or 'all', got 'some'"),
    *each(([1, 1], [], [-1]), lambda k, v: Classifier(Net(), v), "labels: expected distinct class indices >= 0, at least one"),
    *each((3, [0.5], ["cat"], "01", [True], [[0]], [None]), lambda k, v: Classifier(Net(), v), "labels: expected integers", TypeError),
    (lambda k: load_classifier("vgg"), ValueError, r"name: expected one of \('cifar10-resnet164', .* got 'vgg'"),
    (lambda k: cifar10_net(20), ValueError, r"name: expected one of \('resnet164', 'resnet20'\), got 20"),
    (lambda k: taps_of("vgg"), ValueError, r"classifier: expected one of .* got 'vgg'"),
    (lambda k: load_classifier("cifar10-resnet20", device="gpu"), ValueError, "device: expected 'auto', 'cpu', .* got 'gpu'"),
    *each(("gpu", "cuda:7", "meta"), lambda k, v: resolve_device(v), "device: expected 'auto', 'cpu', or 'cuda' or 'cuda:N' where .*"),
    *each(("lime", ["random"]), lambda k, v: get_method(v), r"name: expected one of \('centered_gaussian', .*\)"),
    (lambda k: get_method("random", "slow"), ValueError, r"preset: expected one of \('source', 'fast'\), got 'slow'"),
    (lambda k: get_method("learned_mask", steps=3), TypeError, r"settings: expected some of \['scale', .* got \['steps'\]"),
    (lambda k: LearnedMask(schedule="settled", lr=0.0), ValueError, "lr: expected a positive, finite number, got 0.0"),
    (lambda k: k.explain(get_method("fong_vedaldi", mask_size=9)), ValueError, r"mask_size: expected .* sides \(8, 8\), got 9"),
    (lambda k: k.explain(get_method("grad_cam", layer="top")), ValueError, "layer: expected the name of a module of Net, got 'top'"),
    (lambda k: CaptumMethod(3), TypeError, "attribution: expected a Captum class or a function that makes one, got 3"),
    (lambda k: CaptumMethod(Net, output="z"), ValueError, r"output: expected one of .* got 'z'"),
    (lambda k: CaptumMethod(Net, reduction="max"), ValueError, r"reduction: expected one of \('sum', 'abs_sum'\), got 'max'"),
    (lambda k: CaptumMethod(Net, internal_batch_size=0), ValueError, "internal_batch_size: expected an integer >= 1, got 0"),
    (lambda k: CaptumMethod(Net, 3), TypeError, "settings: expected a mapping of names to values, got 3"),
    (lambda k: Phang(3), TypeError, "masker: expected a name, a path or a Masker, got 3"),
    (lambda k: k.score(methods={"m": Phang("none")}), FileNotFoundError, "masker: expected a checkpoint .* got .*none"),
    (lambda k: k.explain(DabkowskiGal(PhangNet(["conv"], [3], 3))), ValueError, "masker: expected .* 'dabkowski_gal', got one of 'phang'"),
    (lambda k: k.score(methods={"m": DabkowskiGal("phang-efficientnet-lite0")}), ValueError, "masker: .* got one of 'phang'"),
    (lambda k: k.explain(Phang(PhangNet(["top"], [3], 3))), ValueError, r"taps: expected names of modules of Net, got \['top'\]"),
    (lambda k: same_map_for_all_labels("random"), TypeError, "method: expected an object with an `attribute` method, got str"),
    (lambda k: k.score(methods={"mine": Says}), TypeError, r"methods\['mine'\]: expected an object .* got the class Says"),
    (lambda k: k.score(methods={"mine": SimpleNamespace(attribute=1)}), TypeError, "expected an object .* got SimpleNamespace"),
    (lambda k: k.score(methods={3: Random()}), TypeError, "methods: expected names of type str, got 3"),
    (lambda k: k.score(methods="random"), TypeError, "methods: expected names or a mapping of name to method, got the string 'random'"),
    (lambda k: k.score(methods=Random()), TypeError, "methods: expected names or a mapping of name to method, got Random"),
    (lambda k: k.score(methods=[Random()]), ValueError, r"name: expected one of .* got Random\(\)"),
    (lambda k: k.score(methods=[]), ValueError, "methods: expected at least one, got none"),
    (lambda k: k.score(classifier=Net()), TypeError, r"classifier: expected a salkit\.models\.Classifier, got Net"),
    (lambda k: k.score(images="cifar10"), TypeError, r"images: expected an ImageSet or a tensor \(N, 3, H, W\), got str"),
    (lambda k: k.score(images=IMAGES[:0]), ValueError, "images: expected at least one image, got none"),
    (lambda k: k.score(images=image_set().subset([])), ValueError, "images: expected at least one image, got none"),
    (lambda k: k.score(images=image_set(images=IMAGES.double())), TypeError, "images: expected torch.float32.* got torch.float64"),
    (lambda k: k.score(distractors=torch.zeros(2, 3, 9, 9)), ValueError, r"distractors: .* the size of images, got \(2, 3, 9, 9\)"),
    (lambda k: k.score(distractors=IMAGES[:0]), ValueError, "distractors: expected at least one image, got none"),
    *each(("yes", 1, None), lambda k, v: k.score(saliency_metric=v), "saliency_metric: expected True or False", TypeError),
    (lambda k: k.score(targets=[[0], [1]]), TypeError, "targets: expected a torch.Tensor, got list"),
    (lambda k: k.score(targets=torch.zeros(2, 1)), ValueError, r"targets: expected int64 .* got torch.float32 of shape \(2, 1\)"),
    (lambda k: k.score(targets=TARGET), ValueError, r"targets: expected int64 of shape \(2, k\), got torch.int64 of shape \(2,\)"),
    (lambda k: k.score(targets=TARGET[:, None][:, :0]), ValueError, r"targets: expected int64 of shape \(2, k\), got .* \(2, 0\)"),
    (lambda k: k.score(targets=TARGET[:, None] - 1), ValueError, "targets: expected indices 0 to 2, got -1 to 0"),
    (lambda k: k.score(targets=TARGET[:, None] + 2), ValueError, "targets: expected indices 0 to 2, got 2 to 3"),
    (lambda k: k.score(protocol="mine"), ValueError, r"protocol: expected a Protocol or one of \['paper', 'released'\], got 'mine'"),
    (lambda k: rescore(None, ["paper"]), ValueError, r"protocol: expected a Protocol or one of .* got \['paper'\]"),
    *each((-0.01, 1.1, NAN, "0.1", True), lambda k, v: Protocol(eps_soundness=v), r"eps_soundness: expected a finite number in \[0, 1\]"),
    (lambda k: Protocol(auc_rule="sum"), ValueError, r"auc_rule: expected one of \('mean', 'trapezoid'\), got 'sum'"),
    (lambda k: Protocol(loss="mse"), ValueError, r"loss: expected one of \('nll', 'released'\), got 'mse'"),
    (lambda k: Protocol("some"), ValueError, r"softmax_over: expected one of \('labels', 'all'\), got 'some'"),
    (lambda k: k.score(n_steps=65), ValueError, "n_steps: expected None or an integer from 1 to 64 pixels, got 65"),
    (lambda k: k.score(baseline=NAN), ValueError, "baseline: expected a finite number, got nan"),
    (lambda k: k.score(deletion="some"), ValueError, r"deletion: expected one of \('prediction', 'all', 'none'\), got 'some'"),
    (lambda k: k.score(seed=-1), ValueError, "seed: expected an integer >= 0, got -1"),
    (lambda k: k.score(images_per_batch=0), ValueError, "images_per_batch: expected an integer >= 1, got 0"),
    (lambda k: k.score(name="a/b"), ValueError, r"name: expected letters, digits, '_', '\.' and '-' \(it names a file\), got 'a/b'"),
    (lambda k: k.score(device="gpu"), ValueError, "device: expected 'auto', 'cpu', .* got 'gpu'"),
    (lambda k: k.score(executor="slurm"), ValueError, r"executor: expected 'serial', 'dask' or .* got 'slurm'"),
    (lambda k: k.score(executor=3), ValueError, r"executor: expected 'serial', 'dask' or .* got 3"),
    *each((0, -1, 1.5, True), lambda k, v: k.score(workers=v), "workers: expected an integer >= 1"),
    (lambda k: k.score(store=k.file("store")), ValueError, r"store: expected a folder, got .*store, which is a file"),
    (lambda k: k.score(store=3), TypeError, "store: expected a folder, got 3"),
    (changed_manifest, StoreError, r"manifest\.json .*manifest: expected the description of table-\w+, got one that hashes to table-"),
    (lambda k: open_results(k.folder, "table1"), StoreError, r"expected an evaluation whose name begins with 'table1', got \[\]"),
    (lambda k: compare_stores(Store(k.folder), Store(k.folder)), ValueError, "run_a: expected a folder with results, got .* none"),
    (lambda k: randomised(k, stages={"top": ["fc"]}), ValueError, r"modules: expected names of modules of Net, got \['fc'\]"),
    (lambda k: randomised(k, modes=["both"]), ValueError, r"modes: expected one of \('cascading', 'independent'\), got 'both'"),
    (lambda k: randomised(k, images=IMAGES), TypeError, "images: expected an ImageSet, got Tensor"),
    (lambda k: profiles.get_profile("huge"), ValueError, r"profile: expected one of \['smoke', 'demo', 'overnight', 'paper'\], got 'huge'"),
    (lambda k: Runs(["smoke"]), ValueError, r"profile: expected one of .* got \['smoke'\]"),
    (lambda k: Runs("smoke").live("gallery"), ValueError, r"name: expected one of \['sweep', 'table1_a', 'table1_b'\], got 'gallery'"),
    (lambda k: recorded.load("smoke", "gallery"), FileNotFoundError, "smoke/gallery: expected recorded results, got none"),
    (lambda k: costs.plan("smoke", "gpu"), ValueError, "device: expected 'auto', .* got 'gpu'"),
    (lambda k: Runs("smoke", device="cuda:7"), ValueError, "device: expected 'auto', .* got 'cuda:7'"),
    (lambda k: Runs("smoke", seed=0.5), ValueError, "seed: expected an integer >= 0, got 0.5"),
    (lambda k: reproduce("smoke", notebook="09", output_dir=k.out), ValueError, r"notebook: expected the beginning of one of .* got '09'"),
    (lambda k: reproduce("smoke", parameters={"sead": 1}, output_dir=k.out), ValueError, r"parameter: expected .* got \['sead'\]"),
    (lambda k: reproduce("smoke", source=k.folder, output_dir=k.out), ValueError, "notebook: expected notebooks in .* got none"),
    (lambda k: MaskerRecipe("unet"), ValueError, r"kind: expected one of \('dabkowski_gal', 'phang'\), got 'unet'"),
    (lambda k: MaskerRecipe("phang", batch_size=0), ValueError, "batch_size: expected an integer >= 1, got 0"),
    (lambda k: MaskerRecipe("phang", lr=NAN), ValueError, "lr: expected a positive, finite number, got nan"),
    (lambda k: Recipe(epochs=0), ValueError, "epochs: expected an integer >= 1, got 0"),
    (lambda k: stages(PhangNet(["conv"], [3], 3), MaskerRecipe("phang", images=(0,))), ValueError, r"images: .* >= 1 .* got \(0,\)"),
]
# A pass for each of the two images, and the first one of several rows.
AFTER_FIRST_PASSES = [
    (lambda k: k.curve(classifier=Classifier(Net()), target=TARGET + 2), ValueError, "target: expected indices 0 to 2, got 2 to 3"),
    (lambda k: k.score(classifier=Classifier(Net(), [0, 3]), store=None), ValueError, "labels: .* the net's 3 classes, got 3"),
    (lambda k: k.wrong_net(lambda logits: logits * NAN), ValueError, "classifier: expected finite logits, got NaN or infinity"),
    (lambda k: k.wrong_net(lambda logits: logits + INF), ValueError, "classifier: expected finite logits, got NaN or infinity"),
    (lambda k: k.wrong_net(lambda logits: logits[..., None]), ValueError, r"net: expected logits of shape \(\d, C\) .* got \(\d, 3, 1\)"),
    (lambda k: k.wrong_net(lambda logits: logits.mean(0)), ValueError, r"net: expected logits of shape \(\d, C\) .* got \(3,\)"),
    (lambda k: k.wrong_net(lambda logits: logits[:1]), ValueError, r"net: expected logits of shape \(\d, C\) .* got \(1, 3\)"),
    (lambda k: k.wrong_net(lambda logits: (logits, logits)), TypeError, "net: expected a tensor of logits, got tuple"),
    (lambda k: k.curve(classifier=NAN_NET, n_steps=2), ValueError, "classifier: expected finite logits, got NaN or infinity"),
    (lambda k: k.metric(classifier=NAN_NET), ValueError, "classifier: expected finite logits, got NaN or infinity"),
    (lambda k: k.explain(Phang(PhangNet(["conv"], [9], 3))), ValueError, r"masker: .* \[9\] channels .* got \[3\]"),
    (lambda k: k.says(lambda x: x[:, 0] * NAN), ValueError, "heatmaps: expected finite values, got NaN or infinity"),
    (lambda k: k.says(lambda x: x), ValueError, r"heatmaps: expected shape \(6, 8, 8\) .* got \(6, 3, 8, 8\)"),
    (lambda k: k.says(lambda x: x[:, 0].numpy()), TypeError, "heatmaps: expected a torch.Tensor, got ndarray"),
    (lambda k: k.says(lambda x: None), TypeError, "heatmaps: expected a torch.Tensor, got NoneType"),
    (lambda k: k.says(lambda x: x[:, 0] > 0), TypeError, "heatmaps: expected a floating-point tensor, got torch.bool"),
]


@pytest.mark.parametrize(("passes", "call", "error", "message"), [(0, *row) for row in TABLE] + [(3, *row) for row in AFTER_FIRST_PASSES])
def test_bad_input_ends_early_in_a_clear_error(kit, call, error, message, passes):
    with pytest.raises(error, match=f"(?s){message}") as caught:
        call(kit)
    assert type(caught.value) is error
    assert re.search(r"(?s)(expected|expects) .* got ", str(caught.value)), "what was expected, and what was got"
    assert len(str(caught.value)) < 1000
    assert kit.passes <= passes, "before anything is computed"
    assert not kit.out.exists(), "before anything is written"


BY_TYPE = {
    "int": (0, -1, 1.5, NAN, True, "3", None),
    "float": (NAN, INF, -INF, True, "0.5", [1], None),
    "bool": (1, "false", None),
    "Path": (0, True, None),
    "": (0, "none", None),
}
WRONG = [
    (name, f.name, value)
    for name, method in METHODS.items()
    if isinstance(method, type)
    for f in fields(method)
    for value in next(values for kind, values in BY_TYPE.items() if kind in f.type)
    if not (f.default is None and (value is None or f.type == "str | None"))  # None is right only where it is the default
]
OUT_OF_RANGE = {
    "centered_gaussian": {"sigma": 0.0},
    "fong_vedaldi": {"lr": 0.0, "l1": -0.1, "tv": -1.0, "beta": 0.0, "blur_radius": -1.0},
    "gradient_x_input": {"reduction": "max", "internal_batch_size": 0},
    "igos_pp": {"l1": -1.0, "tv": -1.0, "noise": -0.1, "alpha": 0.0, "least_alpha": -1.0, "sigma": 0.0, "shrink": 1.0},
    "integrated_gradients": {"n_steps": 0, "internal_batch_size": 2.5},
    "learned_mask": {"tv": -1.0, "l1": -0.1, "lr": 0.0, "precision": "float16"},
    "rise": {"keep": 1.0},
    "smooth_grad": {"noise_level": -0.1},
}
WRONG += [(name, field, value) for name, settings in OUT_OF_RANGE.items() for field, value in settings.items()]


@pytest.mark.parametrize(("name", "field", "value"), WRONG)
def test_no_setting_of_any_method_takes_nonsense(name, field, value):
    with pytest.raises((ValueError, TypeError), match=f"^{field}: expected .* got {re.escape(repr(value))}$"):
        get_method(name, **{field: value})


# Odd but right.


def test_numbers_of_numpy_are_numbers(kit):
    plain = kit.score(methods={"ours": LearnedMask(scale=1, n_steps=2, tv=0.5, infill="gray")}, seed=3)
    settings = {"scale": np.int64(1), "n_steps": np.int32(2), "tv": np.float32(0.5), "infill": "gray"}
    same = {"seed": np.int64(3), "n_steps": np.int64(2), "baseline": np.float32(0), "images_per_batch": np.int8(16)}
    scores = kit.score(methods={"ours": LearnedMask(**settings)}, **same)
    assert scores.identical(plain)
    assert len(list((kit.out / "store" / "runs").iterdir())) == 1, "the very same run"


def test_constant_heatmaps_are_all_ties(kit):
    """Allowed: they rank nothing, the order is the seed's, and the share of ties says so."""
    scores = kit.says(lambda x: torch.zeros(len(x), 8, 8))
    assert (scores.tie_share == 1).all()
    assert scores.insertion_auc.notnull().all()


def test_heatmaps_of_other_precisions_and_strides(kit):
    for change in (torch.Tensor.double, torch.Tensor.half, lambda m: m.transpose(1, 2).contiguous().transpose(1, 2)):
        heatmaps = change(HEATMAPS.half().float())
        torch.testing.assert_close(kit.curve(heatmaps=heatmaps), kit.curve(heatmaps=HEATMAPS.half().float()))


# The command line.


SHELL = [
    ("evaluate lime", "name: expected one of"),
    ("evaluate random --data mnist", "name: expected one of"),
    ("evaluate random --data folder:/nowhere", "folder: expected a folder of images, got /nowhere"),
    ("evaluate random --classifier vgg", "classifier: expected one of"),
    ("evaluate random --labels 3,x", "labels: expected class indices, comma-separated, got '3,x'"),
    ("evaluate random --labels 3,3", "labels: expected distinct class indices"),
    ("evaluate random --labels 10", "labels: expected indices below the net's 10 classes, got 10"),
    ("evaluate random --n 0", "n: expected 1 to 20 images, got 0"),
    ("evaluate random --set sigma", "set: expected NAME=VALUE, got 'sigma'"),
    ("evaluate random --set sigma=1", "settings: expected some of [] for 'random', got ['sigma']"),
    ("evaluate learned_mask --set lr=true", "lr: expected a positive, finite number, got True"),
    ("evaluate phang --set masker=none.safetensors", "masker: expected a checkpoint"),
    ("evaluate random --csv OUT/scores.xlsx", "csv: expected a file name that ends in .csv, got"),
    ("evaluate random --csv FILE/scores.csv", "csv: expected a file in a folder, got"),
    ("evaluate random --store FILE", "store: expected a folder, got"),
    ("evaluate random --executor slurm", "executor: expected"),
    ("evaluate random --device cuda:7", "device: expected 'auto', 'cpu', or 'cuda' or 'cuda:N' where there is one, got 'cuda:7'"),
    ("plan --profile huge", "profile: expected one of"),
    ("plan --device gpu", "device: expected"),
    ("study --profile huge", "profile: expected one of"),
    ("study --output FILE --executor slurm", "executor: expected"),
    ("reproduce --profile huge", "profile: expected one of"),
    ("reproduce --notebook 09", "notebook: expected the beginning of one of"),
    ("reproduce --output OUT -p sead=3", "parameter: expected some of ['seed', "),
    ("reproduce --output FILE/run", "Not a directory"),
    ("train-classifier --train mnist --val mnist --out OUT/net.pth", "out: expected a file name that ends in .safetensors"),
    ("train-classifier --train mnist --val mnist --out OUT/n.safetensors", "name: expected one of"),
    ("train-masker unet --train cifar10-samples --val cifar10-samples --out OUT/n.safetensors", "kind: expected one of"),
    ("runs --store OUT", "store: expected a folder with results, got"),
    ("runs --store FILE", "store: expected a folder with results, got"),
    ("runs export OUT/a.csv --store FOLDER", "out: expected a file name that ends in .nc, got"),
    ("runs export OUT/a.nc --store FOLDER", "expected an evaluation whose name begins with 'table1', got []"),
    ("runs prune --store FOLDER --drop old", "drop: expected the beginning of one of [], got 'old'"),
    ("compare FOLDER FOLDER", "run_a: expected a folder with results, got"),
    ("compare OUT FOLDER", "store: expected a folder with results, got"),
]


@pytest.mark.parametrize(("command", "message"), SHELL)
def test_on_the_command_line_it_is_one_line(kit, monkeypatch, command, message):
    places = {"OUT": str(kit.out), "FILE": str(kit.file("file")), "FOLDER": str(kit.folder)}
    monkeypatch.chdir(kit.folder)
    result = CliRunner().invoke(app, [re.sub("OUT|FILE|FOLDER", lambda m: places[m[0]], word) for word in command.split()])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line and "row/s" not in line]  # bars aside
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not kit.out.exists()
    assert [p.name for p in kit.folder.iterdir()] == ["file"], "nothing is left"

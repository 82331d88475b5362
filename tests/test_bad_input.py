"""What a user can get wrong: each ends early, in one error that names the argument, what was expected and what was got."""

import pickle
import re
import tarfile
import zipfile
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from typer.testing import CliRunner

from salkit import statistics
from salkit.__main__ import app
from salkit.curves import auc, deletion_curve, insertion_curve, insertion_curves_all_labels
from salkit.data import ImageSet, load_images
from salkit.data.downloads import unpack, verify
from salkit.engine.compare import compare_stores
from salkit.engine.identity import describe_experiment
from salkit.engine.store import Store, StoreError
from salkit.evaluation.evaluate import evaluate
from salkit.evaluation.results import open_results, rescore
from salkit.masking import rank_pixels
from salkit.methods import (
    METHODS,
    CaptumMethod,
    DabkowskiGal,
    LearnedMask,
    Phang,
    Random,
    get_method,
    masker_training,
    same_map_for_all_labels,
)
from salkit.methods.masker_training import MaskerRecipe, taps_of
from salkit.methods.phang import PhangNet
from salkit.models import Classifier, load_classifier, resolve_device
from salkit.models.checkpoints import load_checkpoint, save_checkpoint
from salkit.models.passes import batch_size
from salkit.models.training import Recipe
from salkit.models.zoo import cifar10_net
from salkit.report.runner import reproduce
from salkit.saliency_metric import saliency_metric
from salkit.scores import Protocol, completeness, soundness, worst_case
from salkit.studies import costs, profiles, theory
from salkit.studies.runs import Runs
from salkit.studies.sanity import layer_randomisation

NAN, INF = float("nan"), float("inf")


class Net(nn.Module):
    """Logits of three classes, which `change` may spoil; its passes are counted."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.conv, self.change = nn.Conv2d(3, 3, 1), change

    def forward(self, inputs):
        return self.change(self.conv(inputs).mean((2, 3)))


class Says:
    """A method that returns whatever it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def attribute(self, classifier, inputs, target, **settings):
        return self.answer(inputs)


class Trace:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def image_set(**change):
    fields_ = {
        "images": torch.zeros(2, 3, 8, 8),
        "labels": torch.tensor([0, 1]),
        "ids": ("a", "b"),
        "class_names": ("x", "y", "z"),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    return ImageSet(**fields_ | change)


def spoiled(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """What the rows are made of: a classifier whose passes are counted, images, a folder with files, and one that must stay empty."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    kit = SimpleNamespace(classifier=Classifier(Net(), [0, 1, 2]), images=images, target=torch.tensor([0, 1]), heatmaps=images[:, 0])
    kit.folder, kit.out, kit.passes, kit.monkeypatch = tmp_path / "in", tmp_path / "out", 0, monkeypatch
    kit.folder.mkdir()

    def count(module, inputs):
        kit.passes += isinstance(module, Net)

    def call(function, *more, **change):
        """With good arguments but for the changed ones."""
        given = {"classifier": kit.classifier, "inputs": kit.images, "target": kit.target, "heatmaps": kit.heatmaps} | change
        return function(*(given.pop(name) for name in ("classifier", "inputs", "target", "heatmaps")), *more, **given)

    def score(**change):
        given = {"classifier": kit.classifier, "images": kit.images, "methods": ["random"], "n_steps": 2, "store": kit.out / "store"}
        return evaluate(**given | change, show_progress=False)

    def explain(method, **change):
        given = {"inputs": kit.images, "target": kit.target} | change
        return method.attribute(kit.classifier, given.pop("inputs"), given.pop("target"), **given)

    def file(name, content):
        path = kit.folder / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        return path

    def picture(content, name="a.png"):
        file(name, content)
        return load_images(f"folder:{kit.folder}")

    kit.score, kit.explain, kit.file, kit.picture = score, explain, file, picture
    kit.curve, kit.deletion, kit.metric = (partial(call, f) for f in (insertion_curve, deletion_curve, saliency_metric))
    kit.random = partial(explain, Random())
    kit.wrong_net = lambda change: score(classifier=Classifier(Net(change)), store=None)
    kit.says = lambda answer: score(methods={"mine": Says(answer)}, store=None)
    handle = register_module_forward_pre_hook(count)
    yield kit
    handle.remove()


def row(name, call, message, error=ValueError, passes=0):
    return pytest.param(call, message, error, passes, id=name)


def damaged_png(k):
    Image.effect_noise((64, 64), 50).save(k.folder / "a.png")
    return k.picture((k.folder / "a.png").read_bytes()[:900])


def bomb(k):
    Image.new("L", (100, 100)).save(k.folder / "a.png")
    k.monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    return k.picture((k.folder / "a.png").read_bytes())


def pickled(k):
    path = k.file("net.safetensors", pickle.dumps(Trace(k.out)))
    load_checkpoint(Net(), path)


def other_architecture(k):
    save_checkpoint(nn.Linear(2, 2), k.folder / "net.safetensors")
    load_checkpoint(Net(), k.folder / "net.safetensors")


def slipping_zip(k):
    with zipfile.ZipFile(k.folder / "a.zip", "w") as file:
        file.writestr("../../out/evil", "E")
    unpack(k.folder / "a.zip", k.folder / "unpacked")


def slipping_tar(k):
    with tarfile.open(k.folder / "a.tgz", "w:gz") as file:
        file.addfile(tarfile.TarInfo("../../out/evil"))
    unpack(k.folder / "a.tgz", k.folder / "unpacked")


def changed_manifest(k):
    store, about = Store(k.folder), describe_experiment("table", "t", 1, settings={"a": 1})
    store.open(about)
    path = k.folder / about.key / "manifest.json"
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    store.open(about)


def changed_run(k):
    (k.folder / "runs").mkdir()
    (k.folder / "runs" / "table1-1.json").write_text('{"experiments": ')
    open_results(k.folder, "table1")


def environment(value):
    def call(k):
        k.monkeypatch.setenv("SALKIT_BATCH_SIZE", value)
        k.score()

    return call


def other_masker(k):
    k.explain(DabkowskiGal(PhangNet(["conv"], [3], 3)))


def randomised(k, **change):
    given = {"stages": {"all": ["conv"]}, "images": image_set(), "methods": {"random": Random()}} | change
    layer_randomisation(k.classifier, given.pop("stages"), given.pop("images"), given.pop("methods"), **given, show_progress=False)


TABLE = [
    # Pairs: every method and curve checks them alike.
    row("inputs are an array", lambda k: k.curve(inputs=np.zeros((2, 3, 8, 8))), "inputs: expected a torch.Tensor, got ndarray", TypeError),
    row("inputs are None", lambda k: k.curve(inputs=None), "inputs: expected a torch.Tensor, got NoneType", TypeError),
    row(
        "inputs are integers",
        lambda k: k.curve(inputs=k.images.byte()),
        "inputs: expected a floating-point tensor, got torch.uint8",
        TypeError,
    ),
    row(
        "inputs are complex",
        lambda k: k.curve(inputs=k.images.cfloat()),
        "inputs: expected a floating-point .* got torch.complex64",
        TypeError,
    ),
    row(
        "inputs are float64",
        lambda k: k.curve(inputs=k.images.double()),
        "inputs: expected torch.float32, as the net.* got torch.float64",
        TypeError,
    ),
    row(
        "inputs are float16",
        lambda k: k.random(inputs=k.images.half()),
        "inputs: expected torch.float32, as the net.* got torch.float16",
        TypeError,
    ),
    row("one image without its batch", lambda k: k.curve(inputs=k.images[0]), r"inputs: expected shape \(N, 3, H, W\), got \(3, 8, 8\)"),
    row("gray inputs", lambda k: k.curve(inputs=k.images[:, :1]), r"inputs: expected shape \(N, 3, H, W\), got \(2, 1, 8, 8\)"),
    row("channels last", lambda k: k.random(inputs=k.images.permute(0, 2, 3, 1)), r"inputs: expected shape .* got \(2, 8, 8, 3\)"),
    row("inputs without pixels", lambda k: k.random(inputs=k.images[..., :0]), r"inputs: expected shape .* got \(2, 3, 8, 0\)"),
    row("no inputs", lambda k: k.curve(inputs=k.images[:0]), "inputs: expected at least one image, got none"),
    row("NaN in inputs", lambda k: k.curve(inputs=spoiled(k.images, NAN)), "inputs: expected finite values, got NaN or infinity"),
    row("infinity in inputs", lambda k: k.random(inputs=spoiled(k.images, -INF)), "inputs: expected finite values, got NaN or infinity"),
    row("target is a list", lambda k: k.curve(target=[0, 1]), "target: expected a torch.Tensor, got list", TypeError),
    row("target is float", lambda k: k.curve(target=k.target.float()), "target: expected int64 indices.* got torch.float32", TypeError),
    row("target is boolean", lambda k: k.random(target=k.target.bool()), "target: expected int64 indices.* got torch.bool", TypeError),
    row("target too short", lambda k: k.curve(target=k.target[:1]), r"target: expected shape \(2,\), one label a pair, got \(1,\)"),
    row("target of two dims", lambda k: k.curve(target=k.target[None]), r"target: expected shape \(2,\), one label a pair, got \(1, 2\)"),
    row("target negative", lambda k: k.deletion(target=k.target - 1), "target: expected indices 0 to 2, got -1 to 0"),
    row("target beyond the label list", lambda k: k.curve(target=k.target + 2), "target: expected indices 0 to 2, got 2 to 3"),
    row(
        "target beyond the net's classes, which it tells when called once",
        lambda k: k.curve(classifier=Classifier(Net()), target=k.target + 2),
        *("target: expected indices 0 to 2, got 2 to 3", ValueError, 1),
    ),
    row(
        "classifier is a net", lambda k: k.curve(classifier=Net()), r"classifier: expected a salkit\.models\.Classifier, got Net", TypeError
    ),
    row("ids of another length", lambda k: k.random(ids=["a"]), "ids: expected one id a pair, 2, got 1"),
    row(
        "distractors missing", lambda k: k.explain(LearnedMask()), r"distractors: infill='random_image' expects images of shape .* got None"
    ),
    row(
        "distractors of another size",
        lambda k: k.explain(LearnedMask(), distractors=torch.zeros(2, 3, 4, 4)),
        r"distractors: .*expects .* got \(2, 3, 4, 4\)",
    ),
    row(
        "mask larger than the image",
        lambda k: k.explain(get_method("igos_pp", mask_size=9)),
        r"mask_size: expected at most the image sides \(8, 8\), got 9",
    ),
    row(
        "scale that does not divide",
        lambda k: k.explain(LearnedMask(scale=3), distractors=k.images),
        r"scale: expected a divisor of .*\(8, 8\), got 3",
    ),
    # Heatmaps, curves, scores.
    row(
        "heatmaps are an array", lambda k: k.curve(heatmaps=k.heatmaps.numpy()), "heatmaps: expected a torch.Tensor, got ndarray", TypeError
    ),
    row(
        "heatmaps are bytes",
        lambda k: k.deletion(heatmaps=k.heatmaps.byte()),
        "heatmaps: expected a floating-point .* got torch.uint8",
        TypeError,
    ),
    row(
        "heatmaps are boolean",
        lambda k: k.deletion(heatmaps=k.heatmaps > 0),
        "heatmaps: expected a floating-point .* got torch.bool",
        TypeError,
    ),
    row("heatmaps are complex", lambda k: k.curve(heatmaps=k.heatmaps.cfloat()), "heatmaps: expected .* got torch.complex64", TypeError),
    row("heatmaps with channels", lambda k: k.curve(heatmaps=k.images), r"heatmaps: expected shape \(2, 8, 8\) .* got \(2, 3, 8, 8\)"),
    row(
        "heatmaps of another size",
        lambda k: k.curve(heatmaps=k.heatmaps[:, :4]),
        r"heatmaps: expected shape \(2, 8, 8\) .* got \(2, 4, 8\)",
    ),
    row("no heatmaps", lambda k: k.metric(heatmaps=k.heatmaps[:0]), r"heatmaps: expected shape \(2, 8, 8\) .* got \(0, 8, 8\)"),
    row("NaN in heatmaps", lambda k: k.curve(heatmaps=spoiled(k.heatmaps, NAN)), "heatmaps: expected finite values, got NaN or infinity"),
    row("infinity in heatmaps", lambda k: k.metric(heatmaps=spoiled(k.heatmaps, INF)), "heatmaps: expected finite values, got NaN"),
    row(
        "a net for the curves of all labels",
        lambda k: insertion_curves_all_labels(Net(), k.images, k.heatmaps),
        *("classifier: expected a salkit.* got Net", TypeError),
    ),
    row(
        "baseline of another shape",
        lambda k: k.curve(baseline=torch.zeros(7)),
        r"baseline: expected a shape that broadcasts to \(2, 3, 8, 8\), got \(7,\)",
    ),
    row("baseline NaN", lambda k: k.curve(baseline=NAN), "baseline: expected a finite number, got nan"),
    row("baseline with a NaN", lambda k: k.curve(baseline=spoiled(k.images, NAN)), "baseline: expected finite values, got NaN"),
    row("baseline is a word", lambda k: k.curve(baseline="gray"), "baseline: expected a finite number, got 'gray'"),
    *(
        row(f"n_steps {n}", lambda k, n=n: k.curve(n_steps=n), f"n_steps: expected None or an integer from 1 to 64 pixels, got {n}")
        for n in (0, -1, 65, 2.0, True)
    ),
    *(
        row(f"seed {s!r} of a curve", lambda k, s=s: k.curve(seed=s), f"seed: expected an integer >= 0, got {s!r}")
        for s in (-1, 1.5, "1", True, None)
    ),
    row("seed of a method", lambda k: k.random(seed=-1), "seed: expected an integer >= 0, got -1"),
    row("seed of RISE", lambda k: k.explain(get_method("rise", n_masks=2), seed=0.5), "seed: expected an integer >= 0, got 0.5"),
    row("seed of the ranking", lambda k: rank_pixels(k.heatmaps, -1), "seed: expected an integer >= 0, got -1"),
    *(
        row(f"internal batch {n}", lambda k, n=n: k.curve(internal_batch_size=n), f"internal_batch_size: expected an integer >= 1, got {n}")
        for n in (0, -4, 2.5, True)
    ),
    row("curve is a list", lambda k: auc([0.0, 1.0]), "curve: expected a torch.Tensor, got list", TypeError),
    row("curve of integers", lambda k: auc(torch.tensor([0, 1])), "curve: expected a floating-point tensor, got torch.int64", TypeError),
    row("curve of one point", lambda k: auc(torch.zeros(4, 1)), r"curve: expected at least 2 points, got shape \(4, 1\)"),
    row("curve is a number", lambda k: auc(torch.tensor(0.5)), r"curve: expected at least 2 points, got shape \(\)"),
    row("unknown rule", lambda k: auc(torch.zeros(3), "sum"), r"rule: expected one of \('mean', 'trapezoid'\), got 'sum'"),
    row("unknown game", lambda k: auc(torch.zeros(3), game="chess"), r"game: expected one of \('insertion', 'deletion'\), got 'chess'"),
    row("unknown rule of a box", lambda k: k.metric(rule="oval"), r"rule: expected one of \('threshold', .*\), got 'oval'"),
    *(
        row(f"alpha {a!r}", lambda k, a=a: k.metric(a), rf"alpha: expected a finite number in \[0, 1\], got {a!r}")
        for a in (-0.1, 1.1, NAN, "0.5", True)
    ),
    row("area above 1", lambda k: completeness(torch.tensor(1.5), torch.tensor(0.5)), r"auc: expected values in \[0, 1\], got 1.5"),
    row("probability NaN", lambda k: soundness(torch.tensor(0.5), torch.tensor(NAN)), r"prob: expected values in \[0, 1\], got nan"),
    row("area is a word", lambda k: soundness("high", torch.tensor(0.5)), "auc: expected numbers, got 'high'", TypeError),
    row(
        "complex probability",
        lambda k: soundness(torch.tensor(0.5), torch.tensor(0.5 + 0j)),
        "prob: expected real numbers, got torch.complex64",
        TypeError,
    ),
    row(
        "areas and probabilities do not fit",
        lambda k: completeness(torch.zeros(3), torch.zeros(2)),
        r"prob: expected a shape that broadcasts to \(3,\), got \(2,\)",
    ),
    *(
        row(
            f"eps {e!r}",
            lambda k, e=e: completeness(torch.zeros(1), torch.zeros(1), e),
            rf"eps: expected a finite number in \[0, 1\], got {e!r}",
        )
        for e in (-0.1, 1.5, NAN, "0.1", True)
    ),
    row("scores are a list", lambda k: worst_case([[0.5]]), "scores: expected a tensor or a DataArray, got list", TypeError),
    row("scores of one dim", lambda k: worst_case(torch.zeros(3)), r"scores: expected shape \(..., N, A\) .* got \(3,\)"),
    row("scores without labels", lambda k: worst_case(torch.zeros(3, 0)), r"scores: expected shape .* at least one of each, got \(3, 0\)"),
    row("mask of the toy model is no mask", lambda k: theory.certifies([1, 2], [1, 0], 1), r"mask: expected bool \(2,\), got int64"),
    row("half a trial", lambda k: theory.simulate([1, 2], [1], n_trials=0.5), "n_trials: expected an integer >= 1, got 0.5"),
    row("dimension is a word", lambda k: theory.toy_terms("9", 0.5), "d: expected an integer >= 1, got '9'"),
    row(
        "confidence is a word",
        lambda k: statistics.bootstrap_interval([0, 1], "95%"),
        "confidence: expected a number between 0 and 1, got '95%'",
    ),
    # Image sets.
    row(
        "images are an array", lambda k: image_set(images=np.zeros((2, 3, 8, 8))), "images: expected a torch.Tensor, got ndarray", TypeError
    ),
    row("labels are a list", lambda k: image_set(labels=[0, 1]), "labels: expected a torch.Tensor, got list", TypeError),
    row(
        "NaN in an image",
        lambda k: image_set(images=spoiled(torch.zeros(2, 3, 8, 8), NAN)),
        "images: expected finite .* got NaN or infinity in 1 of 2 images, first 'a'",
    ),
    row(
        "infinity in an image",
        lambda k: image_set(images=spoiled(torch.zeros(2, 3, 8, 8), INF)),
        "images: expected finite values, got NaN or infinity",
    ),
    row("uint8 images", lambda k: image_set(images=torch.zeros(2, 3, 8, 8).byte()), "images: expected float32 or float64, got torch.uint8"),
    row(
        "images of two channels",
        lambda k: image_set(images=torch.zeros(2, 2, 8, 8)),
        r"images: expected shape \(2, 3, H, W\) for 2 ids, got \(2, 2, 8, 8\)",
    ),
    row("ids twice", lambda k: image_set(ids=("a", "a")), "ids: expected unique names, got 'a' more than once"),
    row(
        "labels of another shape",
        lambda k: image_set(labels=torch.zeros(2, 1, dtype=torch.int64)),
        r"labels: expected shape \(2,\) of int64, got \(2, 1\)",
    ),
    row(
        "labels are float",
        lambda k: image_set(labels=torch.zeros(2)),
        r"labels: expected shape \(2,\) of int64, got \(2,\) of torch.float32",
    ),
    row("mean of one channel", lambda k: image_set(mean=(0.5,)), r"mean, std: expected three numbers each, got \(0.5,\)"),
    row("index beyond the set", lambda k: image_set().subset([2]), r"indices: expected integers below 2, got \[2\]"),
    row("indices are a mask", lambda k: image_set().subset(torch.tensor([True, False])), "indices: expected integers below 2, got tensor"),
    row("more images than there are", lambda k: image_set().sample(3), "n: expected 1 to 2 images, got 3"),
    row("half an image", lambda k: image_set().sample(1.5), "n: expected 1 to 2 images, got 1.5"),
    row("seed of a sample", lambda k: image_set().sample(1, seed=-1), "seed: expected an integer >= 0, got -1"),
    row("labels are words", lambda k: image_set().with_labels(["cat"]), r"labels: expected integers, got \['cat'\]", TypeError),
    # Files.
    row("truncated png", damaged_png, r"a\.png: expected an image in one piece .* got"),
    row("empty file", lambda k: k.picture(b""), r"a\.png: expected an image, got an empty file"),
    row("text named png", lambda k: k.picture("a text"), r"a\.png: expected an image, got none PIL knows"),
    row(
        "folder named png",
        lambda k: ((k.folder / "a.png").mkdir(), load_images(f"folder:{k.folder}")),
        "folder: expected images .* got none",
        FileNotFoundError,
    ),
    row("bomb", bomb, r"a\.png: expected an image .* got .*10000 pixels"),
    row(
        "32 bits a pixel",
        lambda k: (Image.new("F", (9, 9)).save(k.folder / "a.tif"), load_images(f"folder:{k.folder}")),
        "a.tif: expected .* 8 or 16 bits .* got mode 'F'",
    ),
    row(
        "no folder", lambda k: load_images(f"folder:{k.folder}/none"), "folder: expected a folder of images, got .*none", FileNotFoundError
    ),
    row("unknown data set", lambda k: load_images("mnist"), r"name: expected one of \('cifar10-samples', .* got 'mnist'"),
    row("data set is None", lambda k: load_images(None), r"name: expected one of .* got None"),
    row("unknown split", lambda k: load_images("cifar10", split="val"), "split: expected 'train' or 'test', got 'val'"),
    row(
        "unknown preprocessing",
        lambda k: load_images("cifar10", preprocessing=3),
        r"preprocessing: expected one of \('cifar10', 'imagenet'\), got 3",
    ),
    row("pickle for safetensors", pickled, r"net\.safetensors: expected a safetensors file in one piece, got a pickle"),
    row(
        "checkpoint of another net",
        other_architecture,
        r"net\.safetensors: expected the weights of a Net .* got others \(missing: conv\.bias",
    ),
    row(
        "checkpoint is a folder",
        lambda k: load_checkpoint(Net(), k.folder),
        "path: expected a checkpoint, got .*, which is not a file",
        FileNotFoundError,
    ),
    row("zip that slips out", slipping_zip, r"a\.zip: expected files and folders inside it only, got the member '\.\./\.\./out/evil'"),
    row("tar that slips out", slipping_tar, r"a\.tgz: expected files and folders inside it only, got the member '\.\./\.\./out/evil'"),
    row(
        "file of another checksum",
        lambda k: verify(k.file("net", b"1"), "sha256:00000000"),
        "net: expected sha256:00000000, got sha256:6b86b273",
    ),
    row("checksum that is none", lambda k: verify(k.file("net", b"1"), "crc:00000000"), r"checksum: expected one of .* got 'crc:00000000'"),
    # Classifiers.
    row("net is a function", lambda k: Classifier(lambda x: x), r"net: expected a torch\.nn\.Module, got function", TypeError),
    row("softmax over some", lambda k: Classifier(Net(), softmax_over="some"), "softmax_over: expected 'labels' or 'all', got 'some'"),
    row("labels twice", lambda k: Classifier(Net(), [1, 1]), r"labels: expected distinct class indices >= 0, .* got \[1, 1\]"),
    row("no labels", lambda k: Classifier(Net(), []), r"labels: expected distinct class indices >= 0, at least one, got \[\]"),
    row("negative label", lambda k: Classifier(Net(), [-1]), r"labels: expected distinct class indices >= 0, .* got \[-1\]"),
    *(
        row(
            f"labels {labels!r}",
            lambda k, labels=labels: Classifier(Net(), labels),
            f"labels: expected integers, got {re.escape(repr(labels))}",
            TypeError,
        )
        for labels in (3, [0.5], ["cat"], "01", [True], [[0]], [None])
    ),
    row(
        "label beyond the net's classes",
        lambda k: k.score(classifier=Classifier(Net(), [0, 3]), store=None),
        "labels: expected indices below the net's 3 classes, got 3",
        passes=1,
    ),
    row("unknown classifier", lambda k: load_classifier("vgg"), r"name: expected one of \('cifar10-resnet164', .* got 'vgg'"),
    row("unknown net", lambda k: cifar10_net(20), r"name: expected one of \('resnet164', 'resnet20'\), got 20"),
    row("classifier without taps", lambda k: taps_of("vgg"), r"classifier: expected one of .* got 'vgg'"),
    row(
        "classifier on no device",
        lambda k: load_classifier("cifar10-resnet20", device="gpu"),
        "device: expected 'auto', 'cpu', .* got 'gpu'",
    ),
    *(
        row(f"device {d}", lambda k, d=d: resolve_device(d), f"device: expected 'auto', 'cpu', or 'cuda' .* got '{d}'")
        for d in ("gpu", "cuda:7", "meta")
    ),
    row(
        "net returns NaN",
        lambda k: k.wrong_net(lambda logits: logits * NAN),
        "classifier: expected finite logits, got NaN or infinity",
        passes=1,
    ),
    row(
        "net returns infinity",
        lambda k: k.wrong_net(lambda logits: logits + INF),
        "classifier: expected finite logits, got NaN or infinity",
        passes=1,
    ),
    row(
        "net of too many dims",
        lambda k: k.wrong_net(lambda logits: logits[..., None]),
        r"net: expected logits of shape \(2, C\) .* got \(2, 3, 1\)",
        passes=1,
    ),
    row(
        "net loses its batch",
        lambda k: k.wrong_net(lambda logits: logits.mean(0)),
        r"net: expected logits of shape \(2, C\) .* got \(3,\)",
        passes=1,
    ),
    row(
        "net sums its batch",
        lambda k: k.wrong_net(lambda logits: logits[:1]),
        r"net: expected logits of shape \(2, C\) .* got \(1, 3\)",
        passes=1,
    ),
    row(
        "net returns a tuple",
        lambda k: k.wrong_net(lambda logits: (logits, logits)),
        "net: expected a tensor of logits, got tuple",
        TypeError,
        1,
    ),
    row(
        "net that is NaN where something is hidden",
        lambda k: k.curve(classifier=Classifier(Net(lambda z: z * NAN), [0, 1, 2]), n_steps=2),
        *("classifier: expected finite logits, got NaN or infinity", ValueError, 1),
    ),
    row(
        "net that is NaN on crops",
        lambda k: k.metric(classifier=Classifier(Net(lambda z: z * NAN), [0, 1, 2])),
        *("classifier: expected finite logits, got NaN or infinity", ValueError, 1),
    ),
    # Methods.
    row("unknown method", lambda k: get_method("lime"), r"name: expected one of \('centered_gaussian', .* got 'lime'"),
    row("method name is a list", lambda k: get_method(["random"]), r"name: expected one of .* got \['random'\]"),
    row("unknown preset", lambda k: get_method("random", "slow"), r"preset: expected one of \('source', 'fast'\), got 'slow'"),
    row(
        "misspelt setting",
        lambda k: get_method("learned_mask", steps=3),
        r"settings: expected some of \['scale', .* got \['steps'\]",
        TypeError,
    ),
    row(
        "unknown infill", lambda k: LearnedMask(infill="white"), r"infill: expected one of \('random_image', 'gray', 'blur'\), got 'white'"
    ),
    row("unknown loss", lambda k: LearnedMask(loss="mse"), r"loss: expected one of \('nll', 'released'\), got 'mse'"),
    row(
        "unknown layer", lambda k: k.explain(get_method("grad_cam", layer="top")), "layer: expected the name of a module of Net, got 'top'"
    ),
    row(
        "attribution is no class",
        lambda k: CaptumMethod(3),
        "attribution: expected a Captum class or a function that makes one, got 3",
        TypeError,
    ),
    row(
        "settings of Captum are no mapping",
        lambda k: CaptumMethod(Net, 3),
        "settings: expected a mapping of names to values, got 3",
        TypeError,
    ),
    row("confidence of a masker", lambda k: DabkowskiGal(confidence=INF), "confidence: expected a finite number, got inf"),
    row("masker is a number", lambda k: Phang(3), "masker: expected a name, a path or a Masker, got 3", TypeError),
    row(
        "masker that is not there",
        lambda k: k.score(methods={"m": Phang("none")}),
        "masker: expected a checkpoint .* got .*none",
        FileNotFoundError,
    ),
    row("masker of another kind", other_masker, "masker: expected a checkpoint of 'dabkowski_gal', got one of 'phang'"),
    row(
        "masker of another kind in a run",
        lambda k: k.score(methods={"m": DabkowskiGal("phang-efficientnet-lite0")}),
        "masker: expected a checkpoint of 'dab.* got one of 'phang'",
    ),
    row(
        "masker with other taps",
        lambda k: k.explain(Phang(PhangNet(["top"], [3], 3))),
        r"taps: expected names of modules of Net, got \['top'\]",
    ),
    row(
        "masker for another classifier",
        lambda k: k.explain(Phang(PhangNet(["conv"], [9], 3))),
        r"masker: expected a classifier with \[9\] channels .* got \[3\]",
        passes=1,
    ),
    row(
        "cheating with a name",
        lambda k: same_map_for_all_labels("random"),
        "method: expected an object with an `attribute` method, got str",
        TypeError,
    ),
    row(
        "method is a class",
        lambda k: k.score(methods={"mine": Says}),
        r"methods\['mine'\]: expected an object with an `attribute` method, got the class Says",
        TypeError,
    ),
    row(
        "method without attribute",
        lambda k: k.score(methods={"mine": 3}),
        r"methods\['mine'\]: expected an object with an `attribute` method, got int",
        TypeError,
    ),
    row(
        "attribute is no method",
        lambda k: k.score(methods={"mine": SimpleNamespace(attribute=1)}),
        r"methods\['mine'\]: expected an object .* got SimpleNamespace",
        TypeError,
    ),
    row("names of methods are numbers", lambda k: k.score(methods={3: Random()}), "methods: expected names of type str, got 3", TypeError),
    row(
        "methods are one name",
        lambda k: k.score(methods="random"),
        "methods: expected names or a mapping of name to method, got the string 'random'",
        TypeError,
    ),
    row(
        "methods are one method",
        lambda k: k.score(methods=Random()),
        "methods: expected names or a mapping of name to method, got Random",
        TypeError,
    ),
    row("methods are objects without names", lambda k: k.score(methods=[Random()]), r"name: expected one of .* got Random\(\)"),
    row("no methods", lambda k: k.score(methods=[]), "methods: expected at least one, got none"),
    row("method returns NaN", lambda k: k.says(lambda x: x[:, 0] * NAN), "heatmaps: expected finite values, got NaN or infinity", passes=1),
    row("method returns channels", lambda k: k.says(lambda x: x), r"heatmaps: expected shape \(6, 8, 8\) .* got \(6, 3, 8, 8\)", passes=1),
    row(
        "method returns an array",
        lambda k: k.says(lambda x: x[:, 0].numpy()),
        "heatmaps: expected a torch.Tensor, got ndarray",
        TypeError,
        1,
    ),
    row("method returns None", lambda k: k.says(lambda x: None), "heatmaps: expected a torch.Tensor, got NoneType", TypeError, 1),
    row(
        "method returns a mask of booleans",
        lambda k: k.says(lambda x: x[:, 0] > 0),
        "heatmaps: expected a floating-point tensor, got torch.bool",
        TypeError,
        1,
    ),
    # Evaluations.
    row(
        "classifier of a run is a net",
        lambda k: k.score(classifier=Net()),
        r"classifier: expected a salkit\.models\.Classifier, got Net",
        TypeError,
    ),
    row(
        "images of a run are a name",
        lambda k: k.score(images="cifar10"),
        r"images: expected an ImageSet or a tensor \(N, 3, H, W\), got str",
        TypeError,
    ),
    row("no images", lambda k: k.score(images=k.images[:0]), "images: expected at least one image, got none"),
    row("empty image set", lambda k: k.score(images=image_set().subset([])), "images: expected at least one image, got none"),
    row("images of a run are one", lambda k: k.score(images=k.images[0]), r"images: expected shape \(N, 3, H, W\), got \(3, 8, 8\)"),
    row(
        "images of a run are bytes",
        lambda k: k.score(images=k.images.byte()),
        "images: expected a floating-point tensor, got torch.uint8",
        TypeError,
    ),
    row(
        "images of a run are float64",
        lambda k: k.score(images=image_set(images=torch.zeros(2, 3, 8, 8).double())),
        "images: expected torch.float32.* got torch.float64",
        TypeError,
    ),
    row(
        "NaN in the images of a run",
        lambda k: k.score(images=spoiled(k.images, NAN)),
        "images: expected finite values, got NaN or infinity",
    ),
    row(
        "distractors of a run of another size",
        lambda k: k.score(distractors=torch.zeros(2, 3, 9, 9)),
        r"distractors: expected shape \(P, \*\(3, 8, 8\)\), the size of images, got \(2, 3, 9, 9\)",
    ),
    row("no distractors", lambda k: k.score(distractors=k.images[:0]), "distractors: expected at least one image, got none"),
    row(
        "held-out images of another size",
        lambda k: k.score(held_out=torch.zeros(2, 3, 9, 9)),
        r"distractors: expected shape \(P, \*\(3, 9, 9\)\), the size of held_out, got",
    ),
    row(
        "held-out images are a name", lambda k: k.score(held_out="val"), "held_out: expected an ImageSet or a tensor .* got str", TypeError
    ),
    row("targets are a list", lambda k: k.score(targets=[[0], [1]]), "targets: expected a torch.Tensor, got list", TypeError),
    row(
        "targets are float",
        lambda k: k.score(targets=torch.zeros(2, 1)),
        r"targets: expected int64 of shape \(2, k\), got torch.float32 of shape \(2, 1\)",
    ),
    row(
        "targets of one dim",
        lambda k: k.score(targets=k.target),
        r"targets: expected int64 of shape \(2, k\), got torch.int64 of shape \(2,\)",
    ),
    row(
        "no targets an image",
        lambda k: k.score(targets=k.target[:, None][:, :0]),
        r"targets: expected int64 of shape \(2, k\), got .* \(2, 0\)",
    ),
    row("targets negative", lambda k: k.score(targets=k.target[:, None] - 1), "targets: expected indices 0 to 2, got -1 to 0"),
    row("targets out of range", lambda k: k.score(targets=k.target[:, None] + 2), "targets: expected indices 0 to 2, got 2 to 3"),
    row(
        "unknown protocol",
        lambda k: k.score(protocol="mine"),
        r"protocol: expected a Protocol or one of \['paper', 'released'\], got 'mine'",
    ),
    row("protocol is a number", lambda k: k.score(protocol=3), r"protocol: expected a Protocol or one of .* got 3"),
    row(
        "unknown protocol to score again", lambda k: rescore(None, ["paper"]), r"protocol: expected a Protocol or one of .* got \['paper'\]"
    ),
    *(
        row(
            f"protocol with eps {e!r}",
            lambda k, e=e: Protocol(eps_soundness=e),
            rf"eps_soundness: expected a finite number in \[0, 1\], got {e!r}",
        )
        for e in (-0.01, 1.1, NAN, "0.1", True)
    ),
    row(
        "protocol with an unknown rule", lambda k: Protocol(auc_rule="sum"), r"auc_rule: expected one of \('mean', 'trapezoid'\), got 'sum'"
    ),
    row("protocol with an unknown loss", lambda k: Protocol(loss="mse"), r"loss: expected one of \('nll', 'released'\), got 'mse'"),
    row("protocol with an unknown scope", lambda k: Protocol("some"), r"softmax_over: expected one of \('labels', 'all'\), got 'some'"),
    row("points of a run", lambda k: k.score(n_steps=65), "n_steps: expected None or an integer from 1 to 64 pixels, got 65"),
    row("baseline of a run", lambda k: k.score(baseline=NAN), "baseline: expected a finite number, got nan"),
    row("deletion of some", lambda k: k.score(deletion="some"), r"deletion: expected one of \('prediction', 'all', 'none'\), got 'some'"),
    row("seed of a run", lambda k: k.score(seed=-1), "seed: expected an integer >= 0, got -1"),
    row("seed of a run is a float", lambda k: k.score(seed=1.0), "seed: expected an integer >= 0, got 1.0"),
    row("images per batch", lambda k: k.score(images_per_batch=0), "images_per_batch: expected an integer >= 1, got 0"),
    row(
        "name of a run", lambda k: k.score(name="a/b"), r"name: expected letters, digits, '_', '\.' and '-' \(it names a file\), got 'a/b'"
    ),
    row("device of a run", lambda k: k.score(device="gpu"), "device: expected 'auto', 'cpu', .* got 'gpu'"),
    row("unknown executor", lambda k: k.score(executor="slurm"), r"executor: expected 'serial', 'dask' or .* got 'slurm'"),
    row("executor is a number", lambda k: k.score(executor=3), r"executor: expected 'serial', 'dask' or .* got 3"),
    *(
        row(f"workers {n!r}", lambda k, n=n: k.score(workers=n), f"workers: expected an integer >= 1, got {n!r}")
        for n in (0, -1, 1.5, True)
    ),
    row("store is a file", lambda k: k.score(store=k.file("store", "")), r"store: expected a folder, got .*store, which is a file"),
    row("store is a number", lambda k: k.score(store=3), "store: expected a folder, got 3", TypeError),
    row(
        "changed manifest",
        changed_manifest,
        r"manifest\.json .*manifest: expected the description of table-\w+, got one that hashes to table-",
        StoreError,
    ),
    row("changed manifest of a run", changed_run, r"table1-1\.json: expected a run's manifest, got JSONDecodeError", StoreError),
    row(
        "no such run",
        lambda k: open_results(k.folder, "table1"),
        r"expected an evaluation whose name begins with 'table1', got \[\]",
        StoreError,
    ),
    row(
        "batch size in the environment is a word",
        environment("many"),
        "SALKIT_BATCH_SIZE: expected an integer >= 1 in the environment, got 'many'",
    ),
    row("batch size in the environment is 0", environment("0"), "SALKIT_BATCH_SIZE: expected an integer >= 1 in the environment, got '0'"),
    row(
        "comparison of nothing",
        lambda k: compare_stores(Store(k.folder), Store(k.folder)),
        "run_a: expected a folder with results, got .*, which has none",
    ),
    row(
        "stages that are none", lambda k: randomised(k, stages={"top": ["fc"]}), r"modules: expected names of modules of Net, got \['fc'\]"
    ),
    row("unknown mode", lambda k: randomised(k, modes=["both"]), r"modes: expected one of \('cascading', 'independent'\), got 'both'"),
    row("randomisation of a tensor", lambda k: randomised(k, images=k.images), "images: expected an ImageSet, got Tensor", TypeError),
    # Runs, trainings, notebooks.
    row("unknown profile", lambda k: profiles.get_profile("huge"), r"profile: expected one of \['smoke', 'demo', 'paper'\], got 'huge'"),
    row("profile is a list", lambda k: Runs(["smoke"]), r"profile: expected one of .* got \['smoke'\]"),
    row("plan of an unknown device", lambda k: costs.plan("smoke", "gpu"), "device: expected 'auto', .* got 'gpu'"),
    row("runs on no device", lambda k: Runs("smoke", device="cuda:7"), "device: expected 'auto', .* got 'cuda:7'"),
    row("runs with half a seed", lambda k: Runs("smoke", seed=0.5), "seed: expected an integer >= 0, got 0.5"),
    row(
        "unknown notebook",
        lambda k: reproduce("smoke", notebook="09", output_dir=k.out),
        r"notebook: expected the beginning of one of .* got '09'",
    ),
    row(
        "misspelt parameter",
        lambda k: reproduce("smoke", parameters={"sead": 1}, output_dir=k.out),
        r"parameter: expected some of .* got \['sead'\]",
    ),
    row("no notebooks", lambda k: reproduce("smoke", source=k.folder, output_dir=k.out), "notebook: expected notebooks in .* got none"),
    row("unknown masker", lambda k: MaskerRecipe("unet"), r"kind: expected one of \('dabkowski_gal', 'phang'\), got 'unet'"),
    row("batches of nothing", lambda k: MaskerRecipe("phang", batch_size=0), "batch_size: expected an integer >= 1, got 0"),
    row("rate NaN", lambda k: MaskerRecipe("phang", lr=NAN), "lr: expected a positive, finite number, got nan"),
    row("no epochs", lambda k: Recipe(epochs=0), "epochs: expected an integer >= 1, got 0"),
    row(
        "training without images",
        lambda k: masker_training.stages(PhangNet(["conv"], [3], 3), MaskerRecipe("phang", images=(0,))),
        r"images: expected a number >= 1 .* got \(0,\)",
    ),
]


@pytest.mark.parametrize(("call", "message", "error", "passes"), TABLE)
def test_bad_input_ends_early_in_a_clear_error(kit, call, message, error, passes):
    with pytest.raises(error, match=f"(?s){message}") as caught:
        call(kit)
    assert type(caught.value) is error
    assert re.search(r"(?s)(expected|expects) .* got ", str(caught.value)), "what was expected, and what was got"
    assert len(str(caught.value)) < 1000
    assert kit.passes <= passes, "before anything is computed"
    assert not kit.out.exists(), "before anything is written"


CHECKED = [(name, f) for name, method in METHODS.items() if isinstance(method, type) for f in fields(method)]
WRONG = {
    "int": (0, -1, 1.5, NAN, True, "3", None),
    "float": (NAN, INF, True, "0.5", [1], None),
    "bool": (1, "false", None),
    "Path": (0, True, None),
    "": (0, "none", None),
}


@pytest.mark.parametrize(("name", "field"), CHECKED, ids=[f"{name}-{f.name}" for name, f in CHECKED])
def test_no_setting_of_any_method_takes_nonsense(name, field):
    """By what the field is annotated with; None is right only where it is the default."""
    for value in next(values for kind, values in WRONG.items() if kind in field.type):
        if field.default is None and (value is None or field.type == "str | None"):
            continue
        with pytest.raises((ValueError, TypeError), match=f"^{field.name}: expected .* got {re.escape(repr(value))}$"):
            get_method(name, **{field.name: value})


@pytest.mark.parametrize("name", ["gradient_x_input", "integrated_gradients"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3"])
def test_nor_do_those_made_by_a_function(name, value):
    with pytest.raises(ValueError, match=f"^internal_batch_size: expected an integer >= 1, got {value!r}$"):
        get_method(name, internal_batch_size=value)


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
        heatmaps = change(kit.heatmaps.half().float())
        torch.testing.assert_close(kit.curve(heatmaps=heatmaps), kit.curve(heatmaps=kit.heatmaps.half().float()))


def upside_down():
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.new("RGB", (256, 256), (9, 8, 7))
    return image, "png", {"exif": exif}


def palette():
    image = Image.new("P", (256, 256), 1)
    image.putpalette([0, 0, 0, 40, 50, 60])
    return image, "png", {"transparency": 0}


@pytest.mark.parametrize(
    ("image", "kind", "settings", "pixel"),
    [
        pytest.param(Image.new("L", (256, 256), 200), "png", {}, (200, 200, 200), id="gray"),
        pytest.param(*palette(), (40, 50, 60), id="palette with transparency"),
        pytest.param(Image.new("CMYK", (256, 256), (255, 0, 100, 0)), "tif", {}, (0, 255, 155), id="CMYK"),
        pytest.param(Image.new("I;16", (256, 256), 32767), "png", {}, (127, 127, 127), id="16 bits"),
        pytest.param(*upside_down(), (9, 8, 7), id="EXIF"),
        pytest.param(Image.new("RGBA", (256, 256), (1, 2, 3, 0)), "png", {}, (1, 2, 3), id="RGBA"),
        pytest.param(Image.new("1", (256, 256), 1), "png", {}, (255, 255, 255), id="one bit"),
        pytest.param(Image.new("RGB", (1, 999), (5, 6, 7)), "png", {}, (5, 6, 7), id="one pixel wide"),
    ],
)
def test_odd_files_have_the_right_pixels(tmp_path, image, kind, settings, pixel):
    image.save(tmp_path / f"a.{kind}", **settings)
    images = load_images(f"folder:{tmp_path}")
    assert (images.pixels()[0] * 255).round().int().unique(dim=0).unique(dim=1).flatten().tolist() == list(pixel)


# The command line.


SHELL = [
    (["evaluate", "lime"], "name: expected one of"),
    (["evaluate", "random", "--data", "mnist"], "name: expected one of"),
    (["evaluate", "random", "--data", "folder:/nowhere"], "folder: expected a folder of images, got /nowhere"),
    (["evaluate", "random", "--classifier", "vgg"], "classifier: expected one of"),
    (["evaluate", "random", "--labels", "3,x"], "labels: expected class indices, comma-separated, got '3,x'"),
    (["evaluate", "random", "--labels", "3,3"], "labels: expected distinct class indices"),
    (["evaluate", "random", "--labels", "10"], "labels: expected indices below the net's 10 classes, got 10"),
    (["evaluate", "random", "--n", "0"], "n: expected 1 to 20 images, got 0"),
    (["evaluate", "random", "--points", "0"], "n_steps: expected"),
    (["evaluate", "random", "--preset", "slow"], "preset: expected one of"),
    (["evaluate", "random", "--protocol", "mine"], "protocol: expected one of"),
    (["evaluate", "random", "--set", "sigma"], "set: expected NAME=VALUE, got 'sigma'"),
    (["evaluate", "random", "--set", "sigma=1"], "settings: expected some of [] for 'random', got ['sigma']"),
    (["evaluate", "learned_mask", "--set", "lr=true"], "lr: expected a positive, finite number, got True"),
    (["evaluate", "learned_mask", "--set", "lr=nan"], "lr: expected a positive, finite number, got nan"),
    (["evaluate", "phang", "--set", "masker=none.safetensors"], "masker: expected a checkpoint"),
    (["evaluate", "random", "--csv", "OUT/scores.xlsx"], "csv: expected a file name that ends in .csv, got"),
    (["evaluate", "random", "--csv", "FILE/scores.csv"], "csv: expected a file in a folder, got"),
    (["evaluate", "random", "--store", "FILE"], "store: expected a folder, got"),
    (["evaluate", "random", "--executor", "slurm"], "executor: expected"),
    (["evaluate", "random", "--workers", "0"], "workers: expected an integer >= 1, got 0"),
    (["evaluate", "random", "--seed", "-1"], "seed: expected an integer >= 0, got -1"),
    (
        ["evaluate", "random", "--device", "cuda:7"],
        "device: expected 'auto', 'cpu', or 'cuda' or 'cuda:N' where there is one, got 'cuda:7'",
    ),
    (["plan", "--profile", "huge"], "profile: expected one of"),
    (["plan", "--device", "gpu"], "device: expected"),
    (["reproduce", "--profile", "huge"], "profile: expected one of"),
    (["reproduce", "--notebook", "09"], "notebook: expected the beginning of one of"),
    (["reproduce", "--output", "OUT", "-p", "sead=3"], "parameter: expected some of ['seed', "),
    (["reproduce", "--output", "FILE/run"], "Not a directory"),
    (
        ["train-classifier", "--train", "mnist", "--val", "mnist", "--out", "OUT/net.pth"],
        "out: expected a file name that ends in .safetensors",
    ),
    (["train-classifier", "--train", "mnist", "--val", "mnist", "--out", "OUT/n.safetensors"], "name: expected one of"),
    (
        ["train-masker", "unet", "--train", "cifar10-samples", "--val", "cifar10-samples", "--out", "OUT/n.safetensors"],
        "kind: expected one of",
    ),
    (["runs", "--store", "OUT"], "store: expected a folder with results, got"),
    (["runs", "--store", "FILE"], "store: expected a folder with results, got"),
    (["runs", "export", "OUT/a.csv", "--store", "FOLDER"], "out: expected a file name that ends in .nc, got"),
    (["runs", "export", "OUT/a.nc", "--store", "FOLDER"], "expected an evaluation whose name begins with 'table1', got []"),
    (["runs", "prune", "--store", "FOLDER", "--drop", "old"], "drop: expected the beginning of one of [], got 'old'"),
    (["compare", "FOLDER", "FOLDER"], "run_a: expected a folder with results, got"),
    (["compare", "OUT", "FOLDER"], "store: expected a folder with results, got"),
]


@pytest.mark.parametrize(("arguments", "message"), SHELL, ids=[" ".join(arguments) for arguments, _ in SHELL])
def test_on_the_command_line_it_is_one_line(kit, arguments, message):
    places = {"OUT": str(kit.out), "FILE": str(kit.file("file", "")), "FOLDER": str(kit.folder)}
    kit.monkeypatch.chdir(kit.folder)
    result = CliRunner().invoke(app, [re.sub("OUT|FILE|FOLDER", lambda m: places[m[0]], a) for a in arguments])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line and "row/s" not in line]  # bars aside
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not kit.out.exists()
    assert [p.name for p in kit.folder.iterdir()] == ["file"], "nothing is left"


def test_a_batch_size_that_is_none_is_told_by_every_command(kit):
    kit.monkeypatch.setenv("SALKIT_BATCH_SIZE", "many")
    result = CliRunner().invoke(app, ["evaluate", "random"])
    assert (result.exit_code, result.stderr.splitlines()) == (
        1,
        ["error: SALKIT_BATCH_SIZE: expected an integer >= 1 in the environment, got 'many'"],
    )
    kit.monkeypatch.setenv("SALKIT_BATCH_SIZE", "3")
    assert batch_size(kit.images) == 3

import copy
import pickle
import time
from pathlib import Path

import pytest
import requests
import torch
from torch import nn

from salkit import data
from salkit.methods.masker import load_masker, masker_metadata
from salkit.models import Classifier, checkpoints, load_classifier, resolve_precision, zoo
from salkit.models import classifier as classifier_module
from salkit.models.checkpoints import save_checkpoint
from salkit.models.passes import in_parallel, pass_by_pass


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


def test_scopes_and_label_lists_by_hand(net, images):
    logits = net.eval()(images)
    within = Classifier(net, [4, 1], "labels")
    torch.testing.assert_close(within(images), logits[:, [4, 1]].log_softmax(1))
    torch.testing.assert_close(within(images).exp().sum(1), torch.ones(5))
    among_all = Classifier(net, [4, 1], "all")
    torch.testing.assert_close(among_all(images), logits.log_softmax(1)[:, [4, 1]])
    torch.testing.assert_close(among_all.scope_log_probs(images), logits.log_softmax(1))
    target = torch.tensor([0, 1])
    assert among_all.scope_index(target).tolist() == [4, 1]
    assert within.scope_index(target).tolist() == [0, 1]
    assert Classifier(net, None, "all")(images).shape == (5, 6)


def test_frozen_copied_and_kept_in_eval_mode(net, images):
    net.train()
    classifier = Classifier(net)
    assert net.training, "the caller's net is left as it was"
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not classifier.train().net.training
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    classifier(images)
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items()), "batch-norm does not learn"
    assert classifier.net[0].weight.is_contiguous(memory_format=torch.channels_last)
    inputs = images.clone().requires_grad_()
    classifier(inputs).sum().backward()
    assert inputs.grad is not None


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda net, path: torch.save(net.state_dict(), path), "a zip, as torch.save writes it around a pickle"),
        (lambda net, path: path.write_bytes(pickle.dumps({"a": 1})), "a pickle"),
        (lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False), "a pickle"),
        (lambda net, path: path.write_bytes(b""), "an empty file"),
        (lambda net, path: path.write_text("<html>a text</html>"), "a damaged or another file"),
        (lambda net, path: (save_checkpoint(net, path), path.write_bytes(path.read_bytes()[:-9])), "a damaged or another file"),
    ],
)
def test_a_checkpoint_of_another_kind_is_named_and_never_unpickled(net, tmp_path, monkeypatch, write, kind):
    path = tmp_path / "net.safetensors"
    write(net, path)
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(pickle, "load", None)
    for load in (lambda path: checkpoints.load_checkpoint(net, path), masker_metadata, load_masker):
        with pytest.raises(ValueError, match=rf"{path}: expected a safetensors file in one piece, got {kind} \("):
            load(path)
    with pytest.raises(FileNotFoundError, match="path: expected a checkpoint, got"):
        checkpoints.load_checkpoint(net, tmp_path)


def test_a_checkpoint_of_another_architecture_names_the_file_and_keys(net, tmp_path, monkeypatch):
    save_checkpoint(net, tmp_path / "net.safetensors")
    other = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Linear(4, 6), nn.Linear(6, 6))
    message = (
        r"net.safetensors: expected the weights of a Sequential of this architecture, got others \(missing: 2.bias, 2.weight \(2 in all\); "
        r"unexpected: 1.num_batches_tracked, 1.running_mean, 1.running_var \(5 in all\); "
        r"other shapes: 0.weight \(4, 3, 3, 3\) for \(4, 3, 5, 5\), 1.bias \(4,\) for \(6,\), 1.weight \(4,\) for \(6, 4\) \(3 in all\)\)"
    )
    with pytest.raises(ValueError, match=message):
        checkpoints.load_checkpoint(other, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="list: expected the weights of a Sequential of this architecture"):
        checkpoints.load_state(net, [1], "list")
    monkeypatch.setattr(zoo, "checkpoint_path", lambda name: tmp_path / "net.safetensors")
    for name in ("cifar10-resnet20", "cifar10-resnet164"):
        with pytest.raises(ValueError, match=r"net.safetensors: expected the weights of a CIFARResNet"):
            load_classifier(name)


class Runs:
    """Unpickling it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_damaged_training_state_says_to_delete_it(net, tmp_path):
    path = tmp_path / "net.state"
    torch.save({"net": net.state_dict(), "log": []}, path)
    assert checkpoints.load_training_state(path, ["net", "log"])["log"] == []
    whole = path.read_bytes()
    torch.save({"net": Runs(tmp_path / "trace"), "log": []}, path)
    runs_code = path.read_bytes()
    for content in (whole[:-100], whole[:300], b"", b"text", pickle.dumps({"net": 1, "log": print}), runs_code, whole):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"state_path: expected the state .* got {path}, which is damaged .* delete it"):
            checkpoints.load_training_state(path, ["net", "optimizer"] if content == whole else ["net", "log"])
    assert not (tmp_path / "trace").exists()


# About 90 % on held-out images (data/checkpoints/README.md), and the number the net is known to get right with this preprocessing.
@pytest.mark.parametrize(
    ("net", "images", "right"),
    [("cifar10-resnet20", "cifar10-samples", range(16, 21)), ("efficientnet-lite0", "imagenet-samples", (16, 17))],
)
def test_shipped_nets_know_the_packaged_images(net, images, right):
    samples = data.load_images(images)
    with torch.no_grad():
        assert (load_classifier(net)(samples.images).argmax(1) == samples.labels).sum() in right


def test_paper_nets_exist_and_need_no_network_without_weights():
    for name, side, classes in (("cifar10-resnet164", 32, 10), ("resnet50", 64, 1000)):
        classifier = load_classifier(name, pretrained=False)
        assert classifier(torch.zeros(1, 3, side, side)).shape == (1, classes)


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise requests.ConnectionError("Network is unreachable")

    monkeypatch.setattr(zoo, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(requests, "get", no_network)
    where = rf"copy it \(sha256:0676ba61\) to {tmp_path}/downloads/torchvision/resnet50-0676ba61.pth"
    with pytest.raises(FileNotFoundError, match=rf"weights file of ResNet50 .* could not be fetched \(Network is unreachable.*{where}"):
        load_classifier("resnet50")
    where = r"get https://\S*resnet164bn_cifar10-0368-74ae9f4b.pth.zip and copy the file .*\.pth in it \(sha1:74ae9f4b\w{32}\) to"
    with pytest.raises(FileNotFoundError, match=rf"weights file of ResNet-164 .*{where}"):
        load_classifier("cifar10-resnet164")


def test_fast_twins_are_made_once_and_again_for_other_weights(net, mean_pixel, images):
    assert mean_pixel.fast(images) is mean_pixel, "without batch norms a net is its own twin"
    classifier = Classifier(net, [4, 1], "all")
    twin = classifier.fast(images)
    assert twin is classifier.fast(images)
    assert (twin.labels, twin.softmax_over, twin.dtype) == ((4, 1), "all", torch.float32)
    assert classifier.fast(images, "bfloat16").dtype == torch.bfloat16
    assert twin is classifier.fast(images)
    with torch.no_grad():
        classifier.net[5].bias += 1.0
    torch.testing.assert_close(classifier.fast(images).logits(images), classifier.logits(images))
    for copied in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        assert copied._twins == {}
    with pytest.raises(ValueError, match=r"precision: expected one of .*, got 'float16'"):
        classifier.fast(images, "float16")


def test_batch_norms_that_stay_keep_their_statistics_in_float32(images):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    half = Classifier(net).fast(images, "bfloat16")
    assert half.net[0].running_mean.dtype == half.net[0].weight.dtype == torch.float32
    assert half.net[1].weight.dtype == half.dtype == torch.bfloat16
    torch.testing.assert_close(half(images), Classifier(net)(images), rtol=0, atol=0.02)


def test_auto_precision(monkeypatch):
    cpu, plain = torch.device("cpu"), Classifier(nn.Conv2d(3, 3, 1))
    depthwise = Classifier(nn.Conv2d(3, 3, 3, groups=3))
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert resolve_precision("auto", plain, cpu) == ("bfloat16" if native else "float32")
        assert resolve_precision("auto", depthwise, cpu) == "float32"
        assert resolve_precision("bfloat16", depthwise, cpu) == "bfloat16"


class Forgetful(nn.Module):
    """Keeps what it computes on itself, as nets do whose features are looked at later."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.seen = torch.zeros(1)

    def forward(self, inputs):
        self.seen = inputs.mean((2, 3)) * self.scale
        time.sleep(0.02)
        return self.seen


def test_workers_do_not_mix_up_a_net_that_keeps_what_it_computes(two_threads):
    classifier = Classifier(Forgetful())
    rows = torch.arange(8.0)[:, None, None, None].expand(-1, 3, 2, 2)
    classifier.logits(rows.clone().requires_grad_())  # keeps a tensor with a history
    fast = classifier.fast(rows)
    found = pass_by_pass(lambda some: fast.logits(rows[some]), range(8), 2, rows.device)
    assert found[:, 0].tolist() == list(range(8))
    assert all(net.scale is classifier.net.scale for net in classifier._copies.values()), "weights are shared"


def test_a_twin_that_was_made_in_inference_mode_can_be_differentiated_through(net, images):
    classifier = Classifier(net)
    with torch.inference_mode():
        classifier.fast(images)(images)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.fast(images)(leaf).sum(), leaf)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_workers_that_ask_for_a_twin_at_the_same_time_get_the_same_one(net, images, precision, monkeypatch, two_threads):
    made, fold = [], classifier_module.fold_batch_norms

    def slow(*arguments, **settings):
        time.sleep(0.05)
        made.append(1)
        return fold(*arguments, **settings)

    monkeypatch.setattr(classifier_module, "fold_batch_norms", slow)
    classifier = Classifier(net)
    twins = list(in_parallel(lambda i: classifier.fast(images, precision), range(4), images.device))
    assert {id(twin) for twin in twins} == {id(classifier.fast(images, precision))}
    assert len(made) == 1

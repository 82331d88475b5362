import functools
import importlib.metadata
import json
from dataclasses import dataclass, field, replace
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from salkit.engine import identity
from salkit.engine.identity import Experiment, canonical, describe, describe_experiment, digest
from salkit.evaluation.planning import PartMaker
from salkit.evaluation.tasks import Source
from salkit.methods import METHODS, get_method, same_map_for_all_labels
from salkit.methods.captum_methods import CaptumMethod
from salkit.models import Classifier

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(a, b):
    return canonical(describe(a)) == canonical(describe(b))


@settings(max_examples=30)
@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_the_order_of_settings_does_not_matter(what):
    backwards = dict(reversed(what.items()))
    assert canonical(what) == canonical(backwards)
    assert Experiment("table", "a", 1, what).key == Experiment("table", "b", 1, backwards).key
    assert json.loads(canonical(what)) == what


def test_every_part_of_a_description_counts_but_its_title():
    made = Experiment("maps", "toy", 2, {"tv": 0.1}, {"torch": "2.9"})
    assert made.key.startswith("maps-")
    assert replace(made, title="another").key == made.key
    others = [{"kind": "curves"}, {"rows": 3}, {"what": {"tv": 0.2}}, {"what": {"l1": 0.1}}, {"what": {}}, {"versions": {"torch": "2.8"}}]
    assert len({made.key} | {replace(made, **change).key for change in others}) == 1 + len(others)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), JSON, max_size=3), st.integers(0, 100))
def test_a_manifest_survives_its_file(what, rows):
    made = Experiment("curves", "Bild 1: ä", rows, what, {"torch": "2.9"})
    read = Experiment.from_manifest(json.loads(json.dumps(made.manifest(), ensure_ascii=False)))
    assert (read, read.key) == (made, made.key)


CHANGES = [{"rows": 3}, {"kind": "curves"}, {"what": {"tv": 0.2}}, {"versions": {"torch": "3"}}, {"key": "maps-1"}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_manifest_is_refused(change):
    made = Experiment("maps", "toy", 2, {"tv": 0.1}, {"torch": "2.9"}).manifest()
    with pytest.raises(ValueError, match=r"manifest: expected the description of maps-\w+, got one that hashes to"):
        Experiment.from_manifest(made | change)
    Experiment.from_manifest(made | {"title": "for people"})


@pytest.mark.parametrize("broken", [{}, [], "text", None, {"kind": "maps"}])
def test_something_else_than_a_manifest_is_refused(broken):
    with pytest.raises(ValueError, match="manifest: expected a description with key, kind, title"):
        Experiment.from_manifest(broken)


def test_versions_and_code_are_in_the_key(monkeypatch):
    keys = [describe_experiment("table", "toy", 1, tv=0.1)]
    assert keys[0].versions.keys() == {*identity.LIBRARIES, "code"}
    assert keys[0].versions["torch"] == importlib.metadata.version("torch")
    assert keys[0].what == {"precision": "float32", "tv": 0.1}
    keys.append(describe_experiment("table", "toy", 1, tv=0.2))
    for name in ("version", "kit_digest"):
        monkeypatch.setattr(identity, name, lambda *_: "99")
        keys.append(describe_experiment("table", "toy", 1, tv=0.1))
    assert len({experiment.key for experiment in keys}) == 4


def test_digests_tell_types_and_shapes_apart():
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(1, 4), torch.zeros(4, dtype=torch.int32), torch.zeros(2).double()]
    assert len({digest(z) for z in zeros}) == len(zeros)
    assert digest(torch.arange(6.0).view(2, 3).T) == digest(torch.tensor([[0.0, 3], [1, 4], [2, 5]]))
    assert digest(torch.ones(3)) == digest(np.ones(3, np.float32))
    assert digest({"a": torch.ones(1), "b": torch.zeros(1)}) == digest({"b": torch.zeros(1), "a": torch.ones(1)})
    assert digest({"a": torch.ones(1)}) != digest({"b": torch.ones(1)})
    assert digest("a") == digest(b"a") == digest("a")
    assert len(digest(torch.zeros(0))) == 16


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_described_by_its_settings(name):
    method = get_method(name)
    first = describe(method)
    assert first == describe(get_method(name))
    assert json.loads(canonical(first)) == first
    assert "show_progress" not in first
    assert "unknown" not in canonical(first)
    if hasattr(method, "internal_batch_size"):
        assert not same(method, replace(method, internal_batch_size=3))


def test_any_setting_matters_but_the_progress_bar():
    method = get_method("learned_mask")
    for change in ({"tv": 0.2}, {"n_steps": 3}, {"infill": "gray"}, {"scale": 2}, {"l1": 0.0}, {"loss": "released"}, {"n_distractors": 3}):
        assert not same(method, replace(method, **change)), change
    assert same(method, replace(method, show_progress=True))


def test_wrappers_are_described_with_what_they_wrap():
    method = get_method("learned_mask")
    cheating = same_map_for_all_labels(method)
    assert not same(cheating, method)
    assert same(cheating, same_map_for_all_labels(replace(method, show_progress=True)))
    assert not same(cheating, same_map_for_all_labels(replace(method, tv=0.5)))


def test_captum_methods_are_told_apart():
    noisy = CaptumMethod(lambda forward: captum.attr.NoiseTunnel(captum.attr.Saliency(forward)))
    made = [
        noisy,
        CaptumMethod(captum.attr.Saliency),
        CaptumMethod(captum.attr.Saliency, {"abs": False}),
        CaptumMethod(captum.attr.InputXGradient),
        CaptumMethod(captum.attr.InputXGradient, output="prob"),
    ]
    assert len({canonical(describe(m)) for m in made}) == len(made)
    assert same(made[1], CaptumMethod(captum.attr.Saliency))


def scaled(factor, x):
    return factor * x


class Scaling:
    def __init__(self, factor):
        self.factor = factor

    def scale(self, x):
        return self.factor * x


def scaling(factor):
    return lambda x: factor * x


def test_functions_are_told_apart_by_what_they_hold():
    double, triple = lambda x: 2 * x, lambda x: 3 * x  # on one line: their source is the same
    assert not same(double, triple)
    assert not same(scaling(2), scaling(3))
    assert same(scaling(2), scaling(2))
    assert not same(functools.partial(scaled, 2), functools.partial(scaled, 3))
    assert not same(functools.partial(scaled, factor=2), functools.partial(scaled, factor=3))
    assert same(functools.partial(scaled, 2), functools.partial(scaled, 2))
    assert not same(Scaling(2).scale, Scaling(3).scale)
    assert same(Scaling(2).scale, Scaling(2).scale)
    defaults = [lambda x, factor=factor: factor * x for factor in (2, 3)]
    assert not same(*defaults)
    named = [lambda x, *, factor=factor: factor * x for factor in (2, 3)]
    assert not same(*named)
    assert same(scaled, scaled)
    assert not same(max, min)
    assert not same(torch.relu, torch.sigmoid)
    assert not same(torch.ones(2).add, torch.zeros(2).add)


def test_a_function_that_calls_itself_is_described():
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    assert same(factorial, factorial)


def test_numbers_of_numpy_are_numbers():
    assert describe([np.int64(3), np.float64(0.5), np.bool_(True), (1, 2), range(2)]) == [3, 0.5, True, [1, 2], [0, 1]]
    assert describe({"a": None, 1: "x"}) == {"a": None, "1": "x"}
    assert not same(1, True)


def test_tensors_and_arrays_go_by_their_values():
    assert same(torch.ones(2), np.ones(2, np.float32))
    assert not same(torch.ones(2), torch.zeros(2))
    assert not same(torch.ones(2), torch.ones(1, 2))


class Gain(nn.Module):
    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = gain
        self.register_buffer("offset", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.gain * x.mean((2, 3)) + self.offset


class OtherGain(Gain):
    def forward(self, x):
        return self.gain * x.amax((2, 3)) + self.offset


OtherGain.__name__ = "Gain"


def test_nets_go_by_structure_code_and_weights():
    conv = nn.Conv2d(3, 4, 1)
    state = {name: value.clone() for name, value in conv.state_dict().items()}
    again = nn.Conv2d(3, 4, 1)
    assert not same(conv, again)
    again.load_state_dict(state)
    assert same(conv, again)
    assert not same(nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()))
    assert not same(Gain(1.0), Gain(2.0))
    moved = Gain()
    moved.offset += 1
    assert not same(Gain(), moved)
    assert repr(Gain()) == repr(OtherGain())
    assert not same(nn.Sequential(Gain()), nn.Sequential(OtherGain()))


class OtherClassifier(Classifier):
    """Might compute something else."""


def test_a_classifier_is_its_class_net_labels_and_scope():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 10))
    made = [Classifier(net), Classifier(net, [0, 1]), Classifier(net, [1, 0]), Classifier(net, [0, 1], "all"), OtherClassifier(net)]
    assert len({canonical(describe(c)) for c in made}) == len(made)
    assert same(made[1], Classifier(net, [0, 1]))
    first = describe(made[0])
    made[0].fast(torch.zeros(1, 3, 1, 1))  # makes a twin, which is no setting
    assert describe(made[0]) == first


@dataclass
class Described:
    seen: int
    unseen: Any = None

    def describe_as(self) -> dict[str, Any]:
        return {"seen": self.seen}


def test_what_an_object_says_of_itself_counts():
    assert same(Described(1, unseen={1, 2}), Described(1))
    assert not same(Described(1), Described(2))
    assert not same(Described(1), Part(1))


def test_paths_go_by_what_the_file_holds(tmp_path):
    path = tmp_path / "masker.bin"
    missing = describe(path)
    path.write_bytes(b"one")
    first = describe(path)
    path.write_bytes(b"two")
    second = describe(path)
    assert len({canonical(x) for x in (missing, first, second)}) == 3
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "masker.bin").write_bytes(b"one")
    assert describe(tmp_path / "elsewhere" / "masker.bin") == first


@dataclass
class Part:
    factor: float = 1.0


@dataclass
class Whole:
    parts: tuple[Part, ...] = (Part(), Part(2.0))
    more: dict[str, Any] = field(default_factory=dict)


class Slotted:
    __slots__ = ("a", "unset")

    def __init__(self, a):
        self.a = a


def test_what_is_inside_counts():
    assert same(Whole(), Whole())
    assert not same(Whole(), Whole((Part(), Part(3.0))))
    assert not same(Whole(), Whole(more={"x": Part()}))
    assert same(Slotted(1), Slotted(1))
    assert not same(Slotted(1), Slotted(2))


@pytest.mark.parametrize("thing", [{1, 2}, 1j, torch.Generator(), object()])
def test_what_cannot_be_described_is_refused(thing):
    with pytest.raises(ValueError, match="settings: expected something that can be described"):
        describe({"setting": thing})


def test_an_automatic_precision_is_settled_before_it_is_described(reference_classifier, images, monkeypatch):
    maker = PartMaker("run", Source(reference_classifier, images, tuple("abcde"), images), 0)
    explained = torch.zeros(5, 1, dtype=torch.int64)

    def part(precision):
        return maker.maps("ours", get_method("learned_mask", precision=precision), explained)

    for native, settled in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert part("auto").experiment.key == part(settled).experiment.key
        assert part("auto").experiment.what["precision"] == part("auto").task.method.precision == settled
    assert part("bfloat16").experiment.key != part("float32").experiment.key

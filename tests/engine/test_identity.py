import functools
import importlib.metadata
import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
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
from salkit.evaluation.jobs import Jobs
from salkit.evaluation.tasks import Source
from salkit.methods import METHODS, get_method, same_map_for_all_labels
from salkit.methods.captum_methods import CaptumMethod
from salkit.models import Classifier

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


MADE = Experiment("maps", "toy", 2, {"tv": 0.1}, {"torch": "2.9"})
CHANGES = [{"kind": "curves"}, {"rows": 3}, {"what": {"tv": 0.2}}, {"what": {"l1": 0.1}}, {"what": {}}, {"versions": {"torch": "2.8"}}]


def test_every_part_of_a_description_counts_but_its_title():
    assert MADE.key.startswith("maps-")
    assert replace(MADE, title="another").key == MADE.key
    assert Experiment.from_manifest(MADE.manifest() | {"title": "for people"}) == replace(MADE, title="for people")
    assert len({MADE.key} | {replace(MADE, **change).key for change in CHANGES}) == 1 + len(CHANGES)
    for change in [*CHANGES, {"key": "maps-1"}]:
        with pytest.raises(ValueError, match=r"manifest: expected the description of maps-\w+, got one that hashes to"):
            Experiment.from_manifest(MADE.manifest() | change)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), JSON, max_size=5), st.integers(0, 100))
def test_settings_survive_their_file_and_their_order_does_not_matter(what, rows):
    made = Experiment("curves", "Bild 1: ä", rows, what, {"torch": "2.9"})
    assert replace(made, what=dict(reversed(what.items()))).key == made.key
    read = Experiment.from_manifest(json.loads(json.dumps(made.manifest(), ensure_ascii=False)))
    assert (read, read.key) == (made, made.key)


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
    assert first == describe(get_method(name)) == json.loads(canonical(first))
    assert "show_progress" not in first
    assert "unknown" not in canonical(first)
    if hasattr(method, "internal_batch_size"):
        assert describe(replace(method, internal_batch_size=3)) != first
    if hasattr(method, "show_progress"):
        assert describe(replace(method, show_progress=True)) == first


def scaled(factor, x):
    return factor * x


def scaling(factor):
    return lambda x: factor * x


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


UNSEEN = {1}
"""Cannot be described, and need not: of a module's values only the source counts."""


def configured(factor):
    class Base:
        def __init__(self):
            super().__init__()

    class Attribute(Base):
        amount = factor

    class Closure(Base):
        scale = lambda self, x: factor * x if UNSEEN else x  # noqa: E731

    class Default(Base):
        scale = staticmethod(lambda x, *, factor=factor: factor * x)

    return [Attribute(), Closure(), Default()]


class Slotted:
    __slots__ = ("a", "unset")

    def __init__(self, a):
        self.a = a


@dataclass
class Part:
    factor: float = 1.0

    def scale(self, x):
        return self.factor * x


@dataclass
class Whole:
    parts: tuple[Part, ...] = (Part(), Part(2.0))
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Described:
    factor: int
    unseen: Any = None

    def describe_as(self) -> dict[str, Any]:
        return {"factor": self.factor}


class Gain(nn.Module):
    def __init__(self, gain=1.0, offset=0.0):
        super().__init__()
        self.gain = gain
        self.register_buffer("offset", torch.full((1,), offset), persistent=False)

    def forward(self, x):
        return self.gain * x.mean((2, 3)) + self.offset


class OtherGain(Gain):
    def forward(self, x):
        return self.gain * x.amax((2, 3)) + self.offset


OtherGain.__name__ = "Gain"  # both print alike


class OtherClassifier(Classifier):
    """Might compute something else."""


def seeded(net, seed=0):
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return net


def learned_masks():
    changes = ({}, {"tv": 0.2}, {"n_steps": 3}, {"infill": "gray"}, {"scale": 2}, {"l1": 0.0}, {"loss": "released"}, {"n_distractors": 3})
    made = [get_method("learned_mask", **change) for change in changes]
    return [*made, *map(same_map_for_all_labels, made)]


def captum_methods():
    noisy = CaptumMethod(lambda forward: captum.attr.NoiseTunnel(captum.attr.Saliency(forward)))
    plain, others = captum.attr.Saliency, CaptumMethod(captum.attr.InputXGradient)
    return [noisy, CaptumMethod(plain), CaptumMethod(plain, {"abs": False}), others, replace(others, output="prob")]


def functions():
    double, triple = lambda x: 2 * x, lambda x: 3 * x  # on one line: their source is the same
    partials = [functools.partial(scaled, 2), functools.partial(scaled, 3), functools.partial(scaled, factor=2)]
    bound = [Part(2).scale, Part(3).scale]
    defaults = [lambda x, factor=factor: factor * x for factor in (2, 3)] + [lambda x, *, factor=factor: factor * x for factor in (2, 3)]
    libraries = [max, min, torch.relu, torch.sigmoid, torch.ones(2).add, torch.zeros(2).add]
    return [double, triple, scaling(2), scaling(3), scaled, factorial, *partials, *bound, *defaults, *libraries]


def nets():
    plain = [nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()), seeded(nn.Conv2d(3, 4, 1)), seeded(nn.Conv2d(3, 4, 1), 1)]
    return [*plain, Gain(1.0), Gain(2.0), Gain(offset=1.0), nn.Sequential(Gain()), nn.Sequential(OtherGain())]


def classifiers():
    net = seeded(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten()))
    return [Classifier(net), Classifier(net, [0, 1]), Classifier(net, [1, 0]), Classifier(net, [0, 1], "labels"), OtherClassifier(net), net]


def values():
    plain = [1, True, None, "1", 0.5, [1, 2], [[1], 2], {"a": 1}, torch.ones(2), torch.zeros(2), torch.ones(1, 2), np.ones(2)]
    whole = [Whole(), Whole((Part(), Part(3.0))), Whole(more={"x": Part()}), Part(1), Part(2), Described(1, unseen={1, 2}), Described(2)]
    return [*plain, *whole, *configured(2), *configured(3), Slotted(1), Slotted(2), SimpleNamespace(a=1), SimpleNamespace(a=2)]


@pytest.mark.parametrize("group", [learned_masks, captum_methods, functions, nets, classifiers, values])
def test_equal_things_have_equal_descriptions_and_no_others(group):
    described = [canonical(describe(thing)) for thing in group()]
    assert [canonical(describe(thing)) for thing in group()] == described
    assert len(set(described)) == len(described)


def test_a_classifiers_twin_is_no_setting():
    classifier = classifiers()[0]
    first = describe(classifier)
    assert classifier.fast(torch.zeros(1, 3, 1, 1)) is not classifier
    assert describe(classifier) == first


def test_numbers_and_arrays_of_all_libraries_are_alike():
    assert describe([np.int64(3), np.float64(0.5), np.bool_(True), (1, 2), range(2)]) == [3, 0.5, True, [1, 2], [0, 1]]
    assert describe({"a": None, 1: "x"}) == {"a": None, "1": "x"}
    assert describe(torch.ones(2)) == describe(np.ones(2, np.float32))


def test_paths_go_by_what_the_file_holds(tmp_path):
    path = tmp_path / "masker.bin"
    missing = describe(path)
    path.write_bytes(b"one")
    first = describe(path)
    (tmp_path / "elsewhere").mkdir()
    assert describe(path.rename(tmp_path / "elsewhere" / path.name)) == first
    path.write_bytes(b"two")
    assert len({canonical(x) for x in (missing, first, describe(path))}) == 3


@pytest.mark.parametrize("thing", [{1, 2}, 1j, torch.Generator(), object()])
def test_what_cannot_be_described_is_refused(thing):
    with pytest.raises(ValueError, match="settings: expected something that can be described"):
        describe({"setting": thing})


def test_an_automatic_precision_is_settled_before_it_is_described(reference_classifier, images, monkeypatch):
    maker = Jobs("run", Source(reference_classifier, images, tuple("abcde"), images), 0)
    explained = torch.zeros(5, 1, dtype=torch.int64)

    def part(precision):
        return maker.maps("ours", get_method("learned_mask", precision=precision), explained)

    for native, settled in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert part("auto").experiment.key == part(settled).experiment.key
        assert part("auto").experiment.what["precision"] == part("auto").task.method.precision == settled
    assert part("bfloat16").experiment.key != part("float32").experiment.key

"""What is to be computed: frozen descriptions in canonical JSON, each with a hash that its results go by."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from salkit.methods.masker import MaskerMethod, masker_path
from salkit.models.classifier import Classifier

LIBRARIES = ("torch", "torchvision", "numpy", "captum", "zennit", "scikit-image")
"""Packages whose version changes numbers."""

NEUTRAL = ("internal_batch_size", "show_progress")
"""Settings that change no number but its rounding: results computed with other ones are the same results."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of one array of results; `rows` of them are computed in shards.

    Where it runs (device, threads, batch and shard sizes) is not part of it: that changes rounding only, and each shard says it.

    Attributes:
        kind: what is computed: probabilities, maps, curves, crops, table.
        title: for people; not part of the hash.
        rows: pairs of maps, images of everything else.
        what: the description, JSON-able: classifier, images, targets, method, protocol and other settings, seed, precision.
        versions: of libraries and of the kit's code that change these numbers.

    Example:
        >>> a = Experiment("table", "toy", 1, {"tv": 0.01, "scale": 4}, {})
        >>> a.key == Experiment("table", "another title", 1, {"scale": 4, "tv": 0.01}, {}).key
        True
    """

    kind: str
    title: str
    rows: int
    what: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Kind and hash: the name of its folder in a store."""
        return f"{self.kind}-{digest(canonical([self.kind, self.rows, self.what, self.versions]))}"

    def manifest(self) -> dict[str, Any]:
        """What is written beside its results; `from_manifest` reads it."""
        names = ("key", "kind", "title", "rows", "what", "versions")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> Experiment:
        """The experiment that a manifest describes.

        Raises:
            ValueError: the description does not have the hash that the manifest names: somebody changed it.
        """
        try:
            found = Experiment(*(manifest[f.name] for f in fields(Experiment)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"manifest: expected a description with key, kind, title, rows, what and versions, got {error!r}") from None
        if found.key != manifest.get("key"):
            raise ValueError(f"manifest: expected the description of {manifest.get('key')}, got one that hashes to {found.key}")
        return found


def describe_experiment(kind: str, title: str, rows: int, code: Iterable[object] = (), **settings: Any) -> Experiment:
    """The experiment with these settings, as `describe` sees them.

    Args:
        kind: see `Experiment`.
        title: for people.
        rows: how many there are.
        code: modules, classes or functions, besides those of the methods among the settings, whose source changes the numbers.
        settings: everything else that does.

    Raises:
        ValueError: a setting that cannot be described.
    """
    libraries = {name: version(name) for name in LIBRARIES}
    what = {"precision": "float32"} | {name: describe(value) for name, value in settings.items()}
    return Experiment(kind, title, rows, what, libraries | {"code": digest(canonical([source_digest(c) for c in code]))})


def describe_images(ids: Sequence[str], inputs: Tensor) -> dict[str, Any]:
    """Names and pixels of images."""
    return {"ids": list(ids), "pixels": digest(inputs)}


def describe_classifier(classifier: Classifier) -> dict[str, Any]:
    """Class and structure of the net, its weights' hash, label list and softmax scope."""
    labels = None if classifier.labels is None else list(classifier.labels)
    return {"net": describe(classifier.net), "labels": labels, "softmax_over": classifier.softmax_over}


def describe(value: Any) -> Any:
    """A JSON-able description that changes whenever the value would give other numbers.

    Dataclasses (methods, too) by class, source and fields, nets and tensors by their hashes, functions by their source and what they hold
    (not by the names of their module that they look up), other objects by source and attributes, paths by what the file holds.

    Raises:
        ValueError: something without attributes that could be described.

    Example:
        >>> describe({"tv": (0.1, 1)})
        {'tv': [0.1, 1]}
    """
    above = _above.get()
    if any(value is each for each in above):
        return {"again": _name(type(value))}
    token = _above.set((*above, value))
    try:
        return _describe(value)
    finally:
        _above.reset(token)


_above: ContextVar[tuple[Any, ...]] = ContextVar("above", default=())
"""What is being described, so that something that holds itself comes to an end."""


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (Tensor, np.ndarray)):
        return {"shape": list(value.shape), "values": digest(value)}
    if isinstance(value, (Sequence, range)):
        return [describe(v) for v in value]
    if isinstance(value, Path):
        return {"file": value.name, "holds": digest(value.read_bytes()) if value.is_file() else "missing"}
    if isinstance(value, nn.Module):
        return _describe_net(value)
    if isinstance(value, partial):
        return {"partial": describe(value.func), "holds": describe([value.args, value.keywords])}
    if isinstance(value, (type, ModuleType)) or inspect.isroutine(value):
        return {"function": _name(value), "source": source_digest(value), "holds": describe(_held(value))}
    named = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else _attributes(value)
    if isinstance(value, MaskerMethod) and isinstance(value.masker, (str, Path)):
        named["masker"] = masker_path(value.masker)
    settings = {name: describe(v) for name, v in named.items() if name not in NEUTRAL}
    return {"class": _name(type(value)), "source": [source_digest(c) for c in type(value).__mro__ if c is not object], **settings}


def _describe_net(net: nn.Module) -> dict[str, Any]:
    """Structure, weights and buffers, and of every module its class and what plain attributes (a factor, an activation) it has."""
    usual = vars(nn.Module())
    own = {name: {k: v for k, v in vars(m).items() if k not in usual and _is_plain(v)} for name, m in net.named_modules()}
    # What the dilation of one pixel is depends on the device (see `round_alike`) and changes nothing.
    structure = re.sub(r"(kernel_size=\(1, 1\).*), dilation=\(2, 2\)", r"\1", repr(net))
    for plain in own.values():
        if plain.get("kernel_size") == (1, 1):
            plain.pop("dilation", None)
    classes: set[Any] = {type(m) for m in net.modules()}
    sources = sorted((_name(c), source_digest(c)) for c in classes)
    tensors = {**dict(net.named_buffers()), **net.state_dict()}
    made = {"class": _name(type(net)), "source": digest(canonical(sources)), "own": digest(canonical(describe(own)))}
    return made | {"structure": digest(structure), "weights": digest(tensors)}


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int, float, FunctionType))


def _held(function: object) -> list[Any]:
    """What a function uses besides its arguments and names of its module: the object it belongs to, variables around it, defaults."""
    owner = getattr(function, "__self__", None)
    held = [] if owner is None or isinstance(owner, (type, ModuleType)) else [owner]
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, FunctionType):
        return held
    held += [cell.cell_contents for cell in plain.__closure__ or ()] + [plain.__defaults__, plain.__kwdefaults__]
    # Of several lambdas in one line the source is the same.
    return [*held, _bytecode(plain.__code__)] if plain.__name__ == "<lambda>" else held


def _bytecode(code: CodeType) -> list[Any]:
    constants = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]


def canonical(value: Any) -> str:
    """JSON in one form only: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: str | bytes | Tensor | np.ndarray | Mapping[str, Tensor]) -> str:
    """16 hex digits of BLAKE2b: of text, bytes, an array's type, shape and values, or named arrays."""
    found = hashlib.blake2b(digest_size=8)
    if isinstance(value, Mapping):
        for name, tensor in sorted(value.items()):
            found.update(f"{name}:{digest(tensor)};".encode())
    elif isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else np.ascontiguousarray(value)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    else:
        found.update(value.encode() if isinstance(value, str) else value)
    return found.hexdigest()


@cache  # looking a class up in its file takes a while
def source_digest(thing: object) -> str:
    """A hash of source code: of the whole module for the kit's own, else of the class or function; comments and docstrings do not count."""
    module = thing if inspect.ismodule(thing) else sys.modules.get(getattr(thing, "__module__", ""))
    name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None)
    if name.partition(".")[0] == "salkit" and file:
        return _code_digest(Path(file).read_text())
    if name.partition(".")[0] in sys.stdlib_module_names | {"torch", "captum"} - {"__main__"}:
        return "library"
    try:
        return _code_digest(inspect.getsource(thing))  # type: ignore[arg-type]
    except (OSError, TypeError):
        # Typed at a Python prompt: equals nothing but itself, so its results are never taken for another's.
        return f"unknown-{uuid.uuid4().hex}"


@cache
def _code_digest(source: str) -> str:
    try:
        tree = ast.parse(inspect.cleandoc(source) if source[:1].isspace() else source)
    except SyntaxError:  # a lambda in the middle of a line
        return digest(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return digest(ast.dump(tree))


def _name(thing: type | Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}" if hasattr(thing, "__qualname__") else thing.__name__


def _attributes(value: object) -> dict[str, Any]:
    if not hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
        raise ValueError(f"settings: expected something that can be described (a dataclass, say), got {value!r}")
    slots = [name for c in type(value).__mro__ for name in getattr(c, "__slots__", ())]
    return {name: getattr(value, name) for name in [*getattr(value, "__dict__", {}), *slots] if hasattr(value, name)}

"""What is computed: descriptions in canonical JSON. The hash of a description is the key of its results."""

from __future__ import annotations

import hashlib
import inspect
import json
import uuid
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from salkit.engine.code import kit_digest, source_digest, used_by

LIBRARIES = ("torch", "torchvision", "numpy", "captum", "zennit", "scikit-image")
"""Packages whose version changes numbers."""

NEUTRAL = ("show_progress",)
"""Settings that change no number. They are not part of the key."""


@dataclass(frozen=True)
class Experiment:
    """A description of everything that decides one table of numbers.

    Where it runs (device, workers, shard sizes) is not part of it. Each shard of results says that for itself.

    Attributes:
        kind: what is computed, for example maps or curves.
        title: a name for people. It is not part of the key.
        rows: how many rows the results have.
        what: all settings, JSON-able.
        versions: of the libraries, and a hash of the kit's code.

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
        """Kind and hash. It names the folder of the results in a store."""
        return f"{self.kind}-{digest(canonical([self.kind, self.rows, self.what, self.versions]))}"

    def manifest(self) -> dict[str, Any]:
        """The description as a dictionary, to be written beside the results. `from_manifest` reads it."""
        return {name: getattr(self, name) for name in ("key", "kind", "title", "rows", "what", "versions")}

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> Experiment:
        """Read what `manifest` made.

        Raises:
            ValueError: something else, or a description that was changed: its hash is not the key that it names.
        """
        try:
            found = Experiment(*(manifest[f.name] for f in fields(Experiment)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"manifest: expected a description with key, kind, title, rows, what and versions, got {error!r}") from None
        if found.key != manifest.get("key"):
            raise ValueError(f"manifest: expected the description of {manifest.get('key')}, got one that hashes to {found.key}")
        return found


def describe_experiment(kind: str, title: str, rows: int, **settings: Any) -> Experiment:
    """The experiment with these settings, the installed libraries and the kit's code.

    Args:
        kind: see `Experiment`.
        title: see `Experiment`.
        rows: see `Experiment`.
        settings: everything that decides the numbers. `describe` makes it JSON-able.

    Raises:
        ValueError: a setting that cannot be described.

    Example:
        >>> describe_experiment("table", "toy", 1, tv=0.1).what
        {'precision': 'float32', 'tv': 0.1}
    """
    what = {"precision": "float32"} | {name: describe(value) for name, value in settings.items()}
    return Experiment(kind, title, rows, what, {name: version(name) for name in LIBRARIES} | {"code": kit_digest()})


def describe(value: Any) -> Any:
    """A JSON-able description, which differs for two values that can give different numbers.

    - Tensors and nets: hashes of their values; nets also the structure and the code of every layer.
    - Functions and classes: their code (see `source_digest`), defaults, and the variables around them.
    - Other objects: the code of their class, and the dictionary that their method `describe_as()` returns. Without that method it is
      their fields or attributes.
    - Paths: what the file holds.

    Values that are changed in a module after it was imported do not count.

    Raises:
        ValueError: something without attributes, for example a set.

    Example:
        >>> describe({"tv": (0.1, 1)})
        {'tv': [0.1, 1]}
    """
    if any(value is each for each in _above.get()):
        return {"again": _name(type(value))}
    before = _above.set((*_above.get(), value))
    try:
        return _describe(value)
    finally:
        _above.reset(before)


_above: ContextVar[tuple[Any, ...]] = ContextVar("above", default=())
"""What is being described now: something that contains itself is described once."""


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
    if isinstance(value, partial):
        return {"partial": describe(value.func), "holds": describe([value.args, value.keywords])}
    if isinstance(value, (type, ModuleType)) or inspect.isroutine(value):
        return {"function": _name(value), "source": _source(value), "holds": describe(_held(value))}
    if hasattr(value, "describe_as"):
        named = value.describe_as()
    elif isinstance(value, nn.Module):
        return _describe_net(value)
    else:
        named = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else _attributes(value)
    settings = {name: describe(v) for name, v in named.items() if name not in NEUTRAL}
    return {"class": _name(type(value)), "source": _sources(value), **settings}


def _describe_net(net: nn.Module) -> dict[str, Any]:
    """The structure and the weights, and of every layer its class and its plain attributes (a factor, an activation)."""
    usual = vars(nn.Module())
    own = {name: {k: v for k, v in vars(m).items() if k not in usual and _is_plain(v)} for name, m in net.named_modules()}
    own_text = canonical(describe(own))
    kinds = {(type(m), repr(getattr(m, "version", None))): m for m in net.modules()}
    sources = sorted({canonical([_name(type(m)), *_sources(m)]) for m in kinds.values()})
    tensors = {**dict(net.named_buffers()), **net.state_dict()}
    made = {"class": _name(type(net)), "source": [json.loads(text) for text in sources]}
    made["own"] = own_text if "unknown-" in own_text else digest(own_text)
    return made | {"structure": digest(repr(net)), "weights": digest(tensors)}


def _sources(value: object) -> list[Any]:
    """What stands for the code of an object's class and of those that it inherits from."""
    return [_source(c, getattr(value, "version", None)) for c in type(value).__mro__ if c is not object]


def _source(thing: object, version: object = None) -> Any:
    found = source_digest(thing, version)
    typed = found.startswith("unknown-")
    local = isinstance(thing, type) and "<locals>" in thing.__qualname__ and not found.startswith("version ")
    return [found, [_describe_or_not(value) for value in used_by(thing, typed)]] if typed or local else found


def _describe_or_not(value: Any) -> Any:
    """The description; of what cannot be described, random text, since it may have changed."""
    try:
        return describe(value)
    except ValueError:
        return f"unknown-{uuid.uuid4().hex}"


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int, float, FunctionType))


def _held(function: object) -> list[Any]:
    """What a function uses besides its arguments and its module: the object it belongs to, variables around it, defaults."""
    owner = getattr(function, "__self__", None)
    held = [] if owner is None or isinstance(owner, (type, ModuleType)) else [owner]
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, FunctionType):
        return held
    held += [cell.cell_contents for cell in plain.__closure__ or ()] + [plain.__defaults__, plain.__kwdefaults__]
    # Two lambdas on one line have the same source.
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


def _name(thing: type | Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}" if hasattr(thing, "__qualname__") else thing.__name__


def _attributes(value: object) -> dict[str, Any]:
    if not hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
        raise ValueError(f"settings: expected something that can be described (a dataclass, say), got {value!r}")
    slots = [name for c in type(value).__mro__ for name in getattr(c, "__slots__", ())]
    return {name: getattr(value, name) for name in [*getattr(value, "__dict__", {}), *slots] if hasattr(value, name)}

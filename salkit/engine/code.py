"""What stands for code in a key: the kit's files, a user's modules, the version of a library."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import sys
import uuid
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

KIT = Path(__file__).parents[1]

# These parts of the kit change no number: commands and report work on finished results, and the engine moves and keeps arrays as they are
# (the progress bar draws). Studies choose what is computed, which is in the key; a table that one of them makes has their code in its key.
NOT_IN_EVERY_KEY = {"__init__.py", "__main__.py", "atomic.py", "commands", "engine", "progress.py", "report", "studies"}


@cache
def kit_digest(folder: Path = KIT, part: str | None = None) -> str:
    """A hash of all code of the kit that can change a number, or of one of its packages; without comments and docstrings."""
    parts = [folder / part] if part else [path for path in folder.iterdir() if path.name not in NOT_IN_EVERY_KEY]
    files = [file for path in parts for file in (path.rglob("*.py") if path.is_dir() else [path]) if file.suffix == ".py"]
    return _digest(sorted((file.relative_to(folder).as_posix(), code_digest(file.read_bytes())) for file in files))


def source_digest(thing: Any, version: object = None) -> str:
    """What stands for the code of a function, class or module in a key.

    - Of the kit: a hash of the whole package.
    - Of an installed library: its name and version.
    - Of another file: a hash of the module and of all modules that it imports, directly or indirectly, without the kit and libraries.
    - Typed in a notebook or at a prompt: the attribute `version` (str or int), else `"unknown-…"`, which differs in every process.

    Comments and docstrings do not count.

    Args:
        thing: the function, class or module.
        version: instead of the attribute of `thing`.

    Example:
        >>> source_digest(json.dumps)
        'python'
    """
    name = _module_name(thing)
    module = thing if inspect.ismodule(thing) else sys.modules.get(name)
    file = Path(getattr(module, "__file__", None) or "")
    if file.is_relative_to(KIT):
        return _digest([kit_digest(KIT, file.relative_to(KIT).parts[0]), _own_code(thing, file)])
    if _of_python(name, file) and (_is_named(thing, module) or not isinstance(thing, (type, FunctionType))):
        return "python"
    if _installed(file) and (library := _library(name.partition(".")[0])):
        return library
    if not _was_in(file, thing, module):
        version = getattr(thing, "version", None) if version is None else version
        usable = isinstance(version, (str, int)) and not isinstance(version, bool)
        return f"version {version}" if usable else f"unknown-{_qualified(thing)}-{_token(thing)}"
    sources = sorted((each, code_digest(source)) for each, source in _own_modules(name).items())
    return _digest([sources, _own_code(thing, file)])


def used_by(thing: Any, typed: bool) -> list[Any]:
    """What a function or class uses besides its source: class attributes, defaults, outer variables, and if it was typed global values."""
    inside = vars(thing).items() if isinstance(thing, type) else ()
    found = [value for name, value in inside if not name.startswith(("__", "_abc")) and not hasattr(type(value), "__get__")]
    for function in _functions(thing):
        found += [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
        found += [function.__defaults__, function.__kwdefaults__]
        found += [function.__globals__[name] for name in _names(function.__code__) if typed and name in function.__globals__]
    return [value for value in found if value is not thing]


@cache
def code_digest(source: str | bytes) -> str:
    """A hash of a module's source without comments and docstrings.

    Example:
        >>> code_digest("x = 1  # one") == code_digest("x  =  1") != code_digest("x = 2")
        True
    """
    return _digest(ast.dump(_tree(source)))


def _tree(source: str | bytes) -> ast.Module:
    """The syntax tree without docstrings; of compiled code and the like one with the file's bytes."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.parse(repr(source))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return tree


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


def _module_name(thing: Any) -> str:
    if inspect.ismodule(thing):
        return thing.__name__
    return getattr(thing, "__module__", None) or type(thing).__module__


def _qualified(thing: Any) -> str:
    return getattr(thing, "__qualname__", None) or type(thing).__qualname__


def _was_in(file: Path, thing: Any, module: ModuleType | None) -> bool:
    """Whether a function or class comes from this file, and not from a prompt or another process."""
    if not file.is_file() or (_module_name(thing) == "__main__" and hasattr(sys, "ps1")):  # there is a prompt
        return False
    if not isinstance(thing, FunctionType):
        return thing is module or _is_named(thing, module)
    made_in = Path(inspect.unwrap(thing).__code__.co_filename)
    return made_in.is_file() and made_in.samefile(file)


def _is_named(thing: Any, module: ModuleType | None) -> bool:
    return hasattr(module, _qualified(thing).partition(".")[0])


def _of_python(name: str, file: Path) -> bool:
    """Whether a module belongs to the standard library. A user's file may have the same name."""
    return name.partition(".")[0] in sys.stdlib_module_names and (not file.is_file() or file.is_relative_to(Path(os.__file__).parent))


def _installed(file: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(file.parts))


@cache
def _library(root: str) -> str:
    """Name and version of the installed distribution that has this package; empty if there is none."""
    try:
        return f"{root} {version(root)}"
    except PackageNotFoundError:
        return ", ".join(f"{name} {version(name)}" for name in sorted(set(packages_distributions().get(root, ()))))


def _own_modules(name: str) -> dict[str, bytes]:
    """Name -> source of a module and of all it imports, except the kit, Python and installed libraries."""
    found: dict[str, bytes] = {}
    waiting = [name]
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None) or _spec(name)
        path = Path(getattr(module, "__file__", None) or getattr(spec, "origin", None) or "")
        if name not in found and path.is_file() and not (_installed(path) or path.is_relative_to(KIT) or _of_python(name, path)):
            found[name] = _source(name, path)
            waiting += [name.rpartition(".")[0], *_imports(found[name], spec.parent if spec else "")]
    return found


_sources: dict[str, tuple[object, bytes]] = {}


def _source(name: str, file: Path) -> bytes:
    """The source of a module, read once after it was loaded: an edit after that is not the code that runs."""
    module = sys.modules.get(name)
    loaded = getattr(module, "__spec__", None) or module  # `importlib.reload` gives a module another one
    if loaded is None or _sources.get(name, (None, b""))[0] is not loaded:
        _sources[name] = loaded, file.read_bytes()
    return _sources[name][1]


def _spec(name: str) -> ModuleSpec | None:
    """Where a module would be imported from. Unlike `importlib.util.find_spec` it never imports the parent package."""
    parent = name.rpartition(".")[0]
    if not parent:
        return PathFinder.find_spec(name) if name else None
    spec = getattr(sys.modules.get(parent), "__spec__", None) or _spec(parent)
    return PathFinder.find_spec(name, spec.submodule_search_locations) if spec and spec.submodule_search_locations else None


@cache
def _imports(source: bytes, package: str) -> list[str]:
    """Names of all that a module imports, among them functions and classes."""
    found = []
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # a relative import that would fail
                base = resolve_name("." * node.level + (node.module or ""), package)
                found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return found


def _own_code(thing: Any, file: Path) -> list[str]:
    """Hashes of the function itself, or of the class's functions: a module may define several with the same name."""
    lines = [function.__code__.co_firstlineno for function in _functions(thing) if function.__code__.co_filename == str(file)]
    found = _by_line(_source(_module_name(thing), file)) if lines else {}
    return [found.get(line, "") for line in lines]


@cache
def _by_line(source: bytes) -> dict[int, str]:
    """First line -> hash of a function that begins there."""
    functions = [n for n in ast.walk(_tree(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    return {min([n.lineno, *(d.lineno for d in getattr(n, "decorator_list", ()))]): _digest(ast.dump(n)) for n in functions}


def _functions(thing: Any) -> list[FunctionType]:
    """A function itself, or the functions in the body of a class."""
    found = []
    for each in vars(thing).values() if isinstance(thing, type) else [thing]:
        each = next((inner for name in ("__func__", "fget", "func") if (inner := getattr(each, name, None)) is not None), each)
        if isinstance(each, FunctionType) and isinstance(inner := inspect.unwrap(each), FunctionType):
            found.append(inner)
    return found


def _names(code: CodeType) -> list[str]:
    """All global names and attributes that a function and the functions inside it use."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


@cache
def _token(thing: Any) -> str:
    """Random text: the same for the same object, and in this process only."""
    return uuid.uuid4().hex

"""Which code is in a key: the kit's own, a user's modules, and what was typed."""

import ast
import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import captum.attr
import pytest
import torch
from torch import nn

import salkit
from salkit import evaluation
from salkit.engine import code
from salkit.engine.code import KIT, NOT_IN_EVERY_KEY, code_digest, kit_digest, source_digest
from salkit.engine.identity import canonical, describe, describe_experiment
from salkit.engine.store import Store
from salkit.methods import get_method
from salkit.studies import theory, theory_study

MODULES = sorted(path.relative_to(KIT).as_posix() for path in KIT.rglob("*.py"))
COUNTED = [name for name in MODULES if name.partition("/")[0] not in NOT_IN_EVERY_KEY]


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return shutil.copytree(KIT, tmp_path_factory.mktemp("copy") / "salkit", ignore=shutil.ignore_patterns("__pycache__"))


def test_everything_that_computes_is_counted(kit):
    folders = {"data", "models", "methods", "evaluation"}
    files = {"masking.py", "curves.py", "scores.py", "saliency_metric.py", "statistics.py", "checks.py"}
    assert {name.partition("/")[0] for name in COUNTED} >= folders | files
    assert kit_digest.__wrapped__(kit) == kit_digest() == describe_experiment("table", "toy", 1).versions["code"]


@pytest.mark.parametrize("name", MODULES)
def test_other_code_in_the_kit_is_another_key_and_other_words_are_not(kit, name):
    source = (kit / name).read_text()
    digests = []
    for changed in (f"{source}\nADDED = 1\n", source.replace('"""', '"""Another docstring. ', 1) + "\n# a comment\n", source):
        (kit / name).write_text(changed)
        digests.append(kit_digest.__wrapped__(kit))
    assert [digest != kit_digest() for digest in digests] == [name in COUNTED, False, False]


def test_a_new_file_counts_until_somebody_says_otherwise(kit):
    (kit / "new.py").write_text("x = 1")
    assert kit_digest.__wrapped__(kit) != kit_digest()
    (kit / "new.py").unlink()


PLAIN = "class Mean:\n    async def of(self, x):\n        return sum(x) / len(x)\n"
WORDY = """'A module.'


class Mean:
    'Says what it does.'

    async def of(self, x):
        'And how.'
        return sum(x) / len( x )  # a comment
"""


@pytest.mark.parametrize("old", ["", "async "])
def test_comments_docstrings_and_spaces_do_not_count(old):
    plain, wordy = PLAIN.replace(old, ""), WORDY.replace(old, "")
    assert code_digest(wordy) == code_digest(plain) != code_digest(plain.replace("sum", "max"))
    assert code_digest(plain) != code_digest(plain.replace("Mean", "Median"))


def test_the_kit_goes_by_its_packages_and_libraries_by_their_versions():
    names = ("random", "learned_mask", "rise")
    assert len({source_digest(thing) for thing in (*(type(get_method(name)) for name in names), theory, salkit, evaluation)}) == 6
    versions = {nn.Linear: "torch", captum.attr.Saliency: "captum", nn.functional.relu: "torch", nn: "torch"}
    assert all(source_digest(thing) == f"{name} {importlib.metadata.version(name)}" for thing, name in versions.items())
    assert {source_digest(thing) for thing in (max, Path, ast.dump, ast, torch.ones(2).add)} == {"python"}


def test_a_table_has_the_code_of_the_studies_in_its_key(monkeypatch):
    keys = [describe_experiment("table", "toy", 1, function=theory_study.theorem_lengths).key]
    monkeypatch.setattr(code, "kit_digest", lambda folder, part: f"another {part}")
    keys += [describe_experiment("table", "toy", 1, function=theory_study.theorem_lengths).key for _ in range(2)]
    assert keys[0] != keys[1] == keys[2]


# A user's own files.

FILES = {
    "my_methods.py": """
import my_helper
from my_package import inner

class Mine:
    def attribute(self, classifier, inputs, target, **settings):
        from my_later import shift
        return my_helper.scaled(inputs.mean(1)) + inner.OFFSET + shift
""",
    "my_helper.py": "from my_deeper import factor\n\ndef scaled(x):\n    return factor() * x\n",
    "my_deeper.py": "def factor():\n    return 2.0\n",
    "my_later.py": "shift = 0.0\n",
    "my_package/__init__.py": "STEPS = 1\n",
    "my_package/inner.py": "from . import constants\nOFFSET = constants.OFFSET\n",
    "my_package/constants.py": "OFFSET = 0.0\n",
    "my_package/unused.py": "OFFSET = 0.0\n",
    "my_other.py": "x = 1\n",
}
USED = [name for name in FILES if name not in ("my_package/unused.py", "my_other.py")]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a method of one's own: `own.write(name, text)` edits it, `own.load()` imports it as a new process would."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def forget():
        for name in [name for name in sys.modules if name.startswith("my_")]:
            del sys.modules[name]

    def load():
        forget()
        importlib.invalidate_caches()
        return importlib.import_module("my_methods").Mine()

    for name, text in FILES.items():
        write(name, text)
    yield SimpleNamespace(write=write, load=load, folder=tmp_path)
    forget()


def digests_of(own, name, *texts):
    """What stands for the method after each of these edits of a file."""
    found = []
    for text in texts:
        own.write(name, text)
        found.append(canonical(describe(own.load())))
    return found


def test_a_file_of_ones_own_with_a_name_of_pythons(own, monkeypatch):
    own.write("my_methods.py", FILES["my_methods.py"].replace("my_helper", "profile"))
    digests = []
    for factor in (2, 3):
        own.write("profile.py", f"def scaled(x):\n    return {factor} * x\n")
        monkeypatch.delitem(sys.modules, "profile", raising=False)
        digests += [source_digest(type(own.load())), source_digest(importlib.import_module("profile").scaled)]
    assert len(set(digests)) == 4
    assert "python" not in digests


@pytest.mark.parametrize("name", ["my_later.py", "my_later.so"])
def test_files_that_are_no_source_go_by_their_bytes(own, name):
    (own.folder / "my_later.py").unlink()
    assert len(set(digests_of(own, name, "\0compiled", "\0compiled anew", "print 'an old Python'"))) == 3


@pytest.mark.parametrize("name", FILES)
def test_a_users_module_counts_with_everything_of_its_own_that_it_imports(own, name):
    text = FILES[name]
    first, again, comment, other = digests_of(own, name, text, text, f"# a comment\n{text}", f"{text}\nADDED = 1\n")
    assert first == again == comment
    assert (other != first) == (name in USED)


def test_what_runs_counts_and_not_what_was_edited_since(own):
    mine = own.load()
    first = describe(mine)
    own.write("my_deeper.py", "def factor():\n    return 3.0\n")
    assert describe(mine) == first
    importlib.reload(sys.modules["my_deeper"])
    assert describe(mine) != first


def test_own_code_is_found_wherever_it_lies_but_not_in_libraries(own, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("lib")
    monkeypatch.syspath_prepend(elsewhere)
    edits = [elsewhere / "my_deeper.py", "def factor():\n    return 2.0\n", "def factor():\n    return 4.0\n"]
    assert len(set(digests_of(own, *edits))) == 2
    monkeypatch.setattr(code, "_installed", lambda file: file.is_relative_to(elsewhere))
    assert len(set(digests_of(own, *edits))) == 1


def made(double):
    if double:

        class Scaled:
            def of(self, x):
                return 2 * x

    else:

        class Scaled:
            def of(self, x):
                return 3 * x

    return Scaled, Scaled.of


def test_functions_and_classes_of_the_same_name_are_told_apart():
    for one, other, again in zip(made(True), made(False), made(True), strict=True):
        assert source_digest(one) == source_digest(again) != source_digest(other)


# What was typed.

TYPED = """
factor = 2.0
names = {"a"}

def scaled(x):
    return factor * x

class Mine:
    shift = 0.0

    def attribute(self, classifier, inputs, target, **settings):
        return scaled(inputs.mean(1)) + self.shift
"""


@pytest.fixture
def typed():
    """A namespace like a notebook's."""
    space = {"__name__": "__main__"}
    exec(TYPED, space)
    return space


CHANGES = {
    "the class typed again": (lambda space: exec(TYPED, space), True),
    "a helper typed again": (lambda space: exec("def scaled(x):\n    return 3 * x", space), True),
    "a value that a helper uses": (lambda space: space.update(factor=3.0), True),
    "an attribute of the class": (lambda space: setattr(space["Mine"], "shift", 1.0), True),
    "something else": (lambda space: space.update(another=1), False),
    "nothing": (lambda space: None, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_typed_code_equals_itself_as_long_as_nothing_that_it_uses_changes(typed, change):
    first = describe(typed["Mine"]())
    assert first["source"][0][0].startswith("unknown-Mine-")
    act, counts = CHANGES[change]
    act(typed)
    assert (describe(typed["Mine"]()) != first) == counts


def test_typed_code_that_uses_what_cannot_be_described_never_equals_itself(typed):
    exec("class Sets:\n    def call(self):\n        return names", typed)
    assert describe(typed["Sets"]()) != describe(typed["Sets"]())


@pytest.mark.parametrize("function", ["lambda x: x", "(lambda: (lambda x: x))()"])
def test_typed_functions_equal_only_themselves(function):
    one, other = eval(function, {"__name__": "__main__"}), eval(function, {})
    assert source_digest(one).startswith("unknown-")
    assert source_digest(one) == source_digest(one) != source_digest(other)


@pytest.mark.parametrize(("version", "stands"), [("1", True), (0, True), (True, False), (1.5, False), (None, False)])
def test_a_version_stands_for_typed_code(typed, version, stands):
    typed["Mine"].version = version
    first = describe(typed["Mine"]())
    assert (first["source"] == [f"version {version}"]) == stands
    exec(TYPED, typed)
    mine = typed["Mine"]()
    mine.version = version
    assert (describe(mine)["source"] == first["source"]) == stands
    mine.version = "another"
    assert describe(mine)["source"] == ["version another"]


def test_typed_nets_are_marked_where_workers_look(typed):
    exec(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.act = lambda x: x",
        typed,
    )
    found = canonical(describe(nn.Sequential(typed["Net"]())))
    assert found.count("unknown-") >= 2


def test_typed_code_is_named_once_where_results_are_kept(typed, tmp_path, caplog):
    exec("class MineToo(Mine):\n    pass", typed)
    with caplog.at_level(logging.WARNING, "salkit"):
        for folder, durable in (("not kept", False), ("a", True), ("b", True)):
            for rows in (1, 2):
                Store(tmp_path / folder, durable=durable).open(describe_experiment("table", "t", rows, method=typed["MineToo"]()))
            assert len(caplog.records) == durable
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "Mine, MineToo, scaled: typed in a notebook or at a prompt, so results are reused in this process only."
    )
    assert "`version`" in record.getMessage()


SCRIPT = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("salkit_code", {code.__file__!r})
code = importlib.util.module_from_spec(spec)
spec.loader.exec_module(code)

class Mine:
    def attribute(self):
        return 1

class Versioned(Mine):
    version = 3

print(code.source_digest(Mine), code.source_digest(Versioned), code.source_digest(Mine.attribute))
"""


def test_a_script_goes_by_its_file_and_a_prompt_by_its_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(*command, text=None):
        done = subprocess.run([sys.executable, *command], input=text, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.split()

    assert run("script.py") == run(str(tmp_path / "script.py"))
    assert "unknown" not in str(run("script.py"))
    first, second = run("-", text=SCRIPT), run("-", text=SCRIPT)
    assert first[1] == second[1] == "version"
    assert first[2] == second[2] == "3"
    assert [a.startswith("unknown-") and a != b for a, b in zip(first, second, strict=True)] == [True, False, False, True]


def test_a_class_that_another_process_sent_has_no_file_here(monkeypatch):
    """Dask workers get what was typed by value; their own `__main__` has a file that does not hold it."""
    main = ModuleType("__main__")
    main.__file__ = os.__file__
    monkeypatch.setitem(sys.modules, "__main__", main)
    sent = type("Sent", (), {"__module__": "__main__"})
    assert source_digest(sent).startswith("unknown-Sent-")

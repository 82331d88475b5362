"""Results are recorded whole, method by method, and read back as `evaluate` gives them."""

import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from salkit.__main__ import app
from salkit.methods import LearnedMask, Random, get_method, same_map_for_all_labels
from salkit.scores import PROTOCOLS, Protocol
from salkit.studies import profiles, recorded, runs
from salkit.studies.experiments import Experiment
from salkit.studies.profiles import IMAGES, PROFILES, Study
from salkit.studies.runs import Runs

SMALL = Study(
    data="cifar10-samples",
    classifier="cifar10-resnet20",
    lists={"a": (0, 3, 5), "b": (1, 2, 4)},
    l1=1e-3,
    n_points=4,
    n_steps=2,
)
ROWS = {"ours": ("Ours",), "variants": ("Ours (s=1)", "Ours (cheating)"), "cheap": ("Random", "Gradient x Input"), "prior": (), "igos": ()}


def counts(**images):
    return dict.fromkeys(IMAGES, 0) | images


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two profiles that nest, on small images, and a folder of their own to record in."""
    whole = replace(PROFILES["overnight"], name="whole", cifar10=SMALL, imagenet=SMALL, images=counts(ours=2, variants=2, cheap=3, sweep=2))
    whole = replace(whole, tvs=(0.0, 0.1))
    part = replace(whole, name="part", images=counts(ours=1, cheap=2), recorded="whole")
    monkeypatch.setitem(PROFILES, "whole", whole)
    monkeypatch.setitem(PROFILES, "part", part)
    monkeypatch.setattr(profiles, "ROWS", ROWS)
    monkeypatch.setattr(recorded, "data_dir", lambda: tmp_path / "data")
    # Masks at a quarter of the side are kept, as those of the large images are.
    monkeypatch.setattr(recorded, "LARGEST", 8)
    monkeypatch.setattr(recorded, "PICTURED", 2)
    return tmp_path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "data_dir", lambda: tmp_path)
    return tmp_path / "recorded" / "made up"


def evaluation(method, n=3, labels=("cat", "dog", "fox"), seed=0, **more):
    """What `evaluate` could have returned."""
    rng = np.random.default_rng(seed)
    sizes = {"method": 1, "image": n, "label": len(labels), "kept": 5, "row": 8, "column": 8}
    dims = {
        "insertion_curve": ("method", "image", "label", "kept"),
        "insertion_auc": ("method", "image", "label"),
        "prob": ("image", "label"),
    }
    values = {name: (of, rng.random([sizes[d] for d in of], dtype=np.float32)) for name, of in dims.items()}
    coords = {"method": [method], "image": [f"image {i}" for i in range(n)], "label": list(labels), "kept": np.arange(5)}
    made = xr.Dataset(values, coords).assign(prediction=("image", np.arange(n) % len(labels)), **more)
    return made.assign_attrs(data="d", classifier="c", missing="", eps_completeness=0.01)


def test_what_is_saved_is_loaded(folder):
    made = evaluation("Ours (s=1)", labels=("cat", "dog", "fée"))
    path = recorded.save("made up", "table1_a", made)
    assert path == folder / "table1_a" / "Ours_s_1.nc"
    found = recorded.load("made up", "table1_a")
    assert found.insertion_curve.dtype == np.float32
    # Float32 to the last bit.
    for name in ("insertion_curve", "insertion_auc", "prob", "prediction", "method", "image", "label", "kept"):
        np.testing.assert_array_equal(found[name], made[name])
        assert found[name].dims == made[name].dims
    assert {name: found.attrs[name] for name in made.attrs} == made.attrs
    xr.testing.assert_identical(recorded.load_method("made up", "table1_a", "Ours (s=1)"), found)


def test_names_of_methods_make_different_files():
    names = set(profiles.table1_methods(PROFILES["overnight"].imagenet, PROTOCOLS["paper"])) | {
        "Ours, twice",
        "Ours (s=1), twice",
        "0",
        "0.001",
    }
    paths = {recorded.path_of("p", "e", name).name for name in names}
    assert len({path.lower() for path in paths}) == len(names), "nor on a disk that does not tell capitals apart"
    assert all(set(path) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._") for path in paths)


def test_logits_are_rounded_to_the_step(folder):
    logits = np.random.default_rng(0).normal(0, 3, (1, 3, 3, 8, 8)).astype(np.float32)
    logits[0, 0, 0, 0] = [0.0, recorded.STEP, -recorded.STEP, 0.4 * recorded.STEP, 0.6 * recorded.STEP, 12.5, -12.5, 31.0]
    made = evaluation("Ours", map=(("method", "image", "label", "row", "column"), logits))
    recorded.save("made up", "e", made)
    found = recorded.load("made up", "e")["map"].values
    np.testing.assert_array_equal(found, np.round(logits.astype(np.float64) / recorded.STEP) * recorded.STEP)
    assert found[0, 0, 0, 0].tolist() == [0.0, recorded.STEP, -recorded.STEP, 0.0, recorded.STEP, 12.5, -12.5, 31.0]
    assert np.abs(found - logits).max() <= recorded.STEP / 2
    # Half the bytes of float32.
    assert recorded.path_of("made up", "e", "Ours").stat().st_size < logits.nbytes / 2 + 8000


def test_nothing_recorded_is_an_error_that_names_the_folder(folder):
    with pytest.raises(FileNotFoundError, match=r"made up/table1_a: expected recorded results, got none"):
        recorded.load("made up", "table1_a")


def test_methods_with_different_numbers_of_images_are_joined():
    many, few = evaluation("Random", n=3), evaluation("Ours", n=2)
    few = few.assign_coords(composites=("method", [500.0]))
    many = many.assign_coords(composites=("method", [np.nan]))
    found = recorded.joined([few, many])
    assert sorted(found.method.values) == ["Ours", "Random"]
    assert found.image.values.tolist() == many.image.values.tolist()
    ours = found.sel({"method": "Ours"})
    np.testing.assert_array_equal(ours.insertion_auc[:2], few.insertion_auc[0])
    assert ours.insertion_auc[2].isnull().all()
    np.testing.assert_array_equal(found.sel({"method": "Random"}).insertion_auc, many.insertion_auc[0])
    np.testing.assert_array_equal(found.prob, many.prob)
    assert found.prob.dims == ("image", "label")
    assert float(ours.composites) == 500
    assert found.attrs == many.attrs


def test_label_lists_are_stacked_with_the_names_of_their_labels():
    first = recorded.joined([evaluation("Ours", n=2), evaluation("Random", n=3)])
    second = evaluation("Ours", n=2, labels=("oak", "elm", "fir"), seed=1).assign_coords(image=["x", "y"])
    assert recorded.stacked([first]) is first
    found = recorded.stacked([first, second])
    assert found.image.values.tolist() == [*first.image.values, "x", "y"]
    assert found.label.values.tolist() == ["label 1", "label 2", "label 3"]
    assert found.label_name.dims == ("image", "label")
    assert found.label_name.values.tolist() == [["cat", "dog", "fox"]] * 3 + [["oak", "elm", "fir"]] * 2
    np.testing.assert_array_equal(found.prob[3:], second.prob)
    np.testing.assert_array_equal(found.sel({"method": "Ours"}).insertion_auc[3:], second.insertion_auc[0])
    np.testing.assert_array_equal(found.insertion_auc[..., :3, :].sel({"method": "Random"}), first.insertion_auc.sel({"method": "Random"}))
    assert found.sel({"method": "Random"}).insertion_auc[3:].isnull().all(), "the second list has no Random"
    # Lists that already go by places.
    named = found.isel(image=slice(3, None))
    assert recorded.stacked([first, named]).label_name.values.tolist() == found.label_name.values.tolist()


def test_recorded_is_what_has_the_same_settings_and_images(tiny):
    method = LearnedMask(n_steps=2, scale=2)
    part = Experiment(name="e", notebook="03", study=SMALL, methods={"m": method}, n_images=2)
    names = ["image 0", "image 1"]
    assert not recorded.is_recorded("whole", part, "m", names)
    made = evaluation("m", n=2).assign_attrs(data=SMALL.data, classifier=SMALL.classifier)
    recorded.save("whole", "e", made.assign_coords(recorded.provenance(method, 1.5)))
    assert recorded.is_recorded("whole", part, "m", names)
    assert recorded.is_recorded("whole", part, "m", names[:1])
    assert recorded.is_recorded("whole", replace(part, methods={"m": replace(method, internal_batch_size=3)}), "m", names), (
        "the same numbers"
    )
    for other in (["image 0", "image 1", "image 2"], ["image 1", "image 0"], ["image 0", "another"]):
        assert not recorded.is_recorded("whole", part, "m", other)
    for other in (
        replace(part, name="f"),
        replace(part, methods={"m": replace(method, n_steps=3)}),
        replace(part, methods={"m": same_map_for_all_labels(method)}),
        replace(part, methods={"m": get_method("random")}),
        replace(part, study=replace(SMALL, data="folder:elsewhere")),
        replace(part, study=replace(SMALL, classifier="cifar10-resnet164")),
    ):
        assert not recorded.is_recorded("whole", other, "m", names)
    assert not recorded.is_recorded("part", part, "m", names)


def test_provenance_says_how_and_where(folder):
    about = recorded.provenance(LearnedMask(schedule="settled"), 12.34)
    recorded.save("made up", "e", evaluation("Ours").assign_coords(about))
    recorded.save("made up", "e", evaluation("Random").assign_coords(recorded.provenance(Random(), 1.0)))
    found = recorded.load("made up", "e")
    one = found.sel({"method": "Ours"})
    assert (one.composites.item(), one.core_seconds.item()) == (500, 12.3)
    assert np.isnan(found.sel({"method": "Random"}).composites)
    assert json.loads(one.settings.item())["schedule"] == "settled"
    assert f"torch {version('torch')}" in one.versions.item().split(", ")
    for name in ("recorded_on", "processor", "commit", "cores"):
        assert one[name].item()
    assert recorded.composites(same_map_for_all_labels(LearnedMask(n_steps=3))) == 30


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("No space left on device")])
def test_a_file_is_there_whole_or_not_at_all(folder, monkeypatch, failure):
    whole = evaluation("Ours")
    before = recorded.save("made up", "e", whole).read_bytes()
    write = xr.Dataset.to_netcdf

    def half(self, path, **settings):
        write(self, path, **settings)
        path.write_bytes(path.read_bytes()[:100])
        raise failure

    monkeypatch.setattr(xr.Dataset, "to_netcdf", half)
    for method in ("Ours", "Random"):
        with pytest.raises((KeyboardInterrupt, OSError)):
            recorded.save("made up", "e", evaluation(method, seed=1))
    assert [path.name for path in (folder / "e").iterdir()] == ["Ours.nc"]
    assert (folder / "e" / "Ours.nc").read_bytes() == before


def run(tiny, name, profile="whole"):
    return Runs(profile, device="cpu", output_dir=tiny / name)


TABLE1 = [*ROWS["ours"], *ROWS["variants"], *ROWS["cheap"]]
ALL = [*(("table1_a", m) for m in TABLE1), *(("table1_b", m) for m in TABLE1), ("sweep", "0"), ("sweep", "0.1")]


def test_recording_goes_on_where_it_was_stopped_and_gives_what_a_live_run_gives(tiny, monkeypatch):
    computed, evaluate = [], Runs.evaluate

    def watched(self, part, **settings):
        computed.extend((part.name, name) for name in part.methods)
        return evaluate(self, part, **settings)

    monkeypatch.setattr(Runs, "evaluate", watched)
    first = run(tiny, "first").record()
    assert [next(first) for _ in range(3)] == [("table1_a", "Ours", False), ("table1_a", "Ours", True), ("table1_a", "Ours (s=1)", False)]
    first.close()  # stopped while the second method is computed
    assert computed == [("table1_a", "Ours")]
    # Without the store of the first run, so that only what is recorded counts.
    told = list(run(tiny, "second").record())
    assert told[0] == ("table1_a", "Ours", True)
    assert [what[:2] for what in told if what[2]] == ALL
    assert computed == ALL, "each once"
    monkeypatch.setenv("COLUMNS", "300")
    shell = CliRunner().invoke(app, ["study", "--profile", "whole", "--output", str(tiny / "third")])
    assert shell.exit_code == 0, shell.output
    assert shell.output.splitlines()[:-1] == [f"recorded  {name}: {method}" for name, method in ALL]
    assert str(recorded.folder("whole")) in shell.output.splitlines()[-1]
    assert computed == ALL

    whole = {name: recorded.load("whole", name) for name in ("table1_a", "table1_b", "sweep")}
    found = whole["table1_a"]
    assert set(found.method.values) == set(TABLE1)
    assert found.sizes["image"] == 3
    assert found.sel({"method": "Ours"}).insertion_auc.notnull().all("label").values.tolist() == [True, True, False]
    assert found.attrs["data"] == SMALL.data

    # The results of a profile that is recorded, of itself and of a part of it.
    for name, values in whole.items():
        shown = run(tiny, "part", "part").result(name)
        rows = [method for part in run(tiny, "whole").experiments() if part.name == name for method in part.methods]
        assert shown.method.values.tolist() == rows, "in the order of the experiment, not of the files"
        xr.testing.assert_identical(shown, values.sel({"method": rows}))
    table1 = run(tiny, "part", "part").table1()
    assert table1.image.values.tolist() == [*whole["table1_a"].image.values, *whole["table1_b"].image.values]
    np.testing.assert_array_equal(table1.insertion_auc[:, :3], whole["table1_a"].insertion_auc.sel({"method": table1.method}))

    # What the part computes live are the recorded numbers of the same images.
    computed.clear()
    live = run(tiny, "part", "part").live("table1_a")
    assert computed == [("table1_a", name) for name in ("Ours", *ROWS["cheap"])]
    assert live.image.values.tolist() == found.image.values[:2].tolist()
    for method, n in [("Ours", 1), *((name, 2) for name in ROWS["cheap"])]:
        here, there = (each.sel({"method": method}).isel(image=slice(n)) for each in (live, found))
        for name in ("prob", "prediction", "insertion_curve", "insertion_auc", "completeness", "soundness", "games", "label_correlation"):
            np.testing.assert_array_equal(here[name], there[name].transpose(*here[name].dims))
        np.testing.assert_array_equal(here.saliency_metric_by_alpha, there.saliency_metric_by_alpha)
        assert live.sel({"method": method}).insertion_auc.isel(image=slice(n, None)).isnull().all()
    # A profile of its own computes.
    assert "settings" not in run(tiny, "second").result("sweep").coords


def test_maps_that_are_kept_are_those_of_the_evaluation(tiny):
    for what in run(tiny, "first").record():
        if what == ("table1_a", "Gradient x Input", True):
            break
    found = recorded.load_method("whole", "table1_a", "Ours")
    assert found["map"].dims == ("method", "image", "label", "row", "column")
    assert found["map"].shape == (1, 2, 3, 8, 8)
    assert "picture" not in found
    part = next(part for part in run(tiny, "first").experiments() if "Ours" in part.methods)
    scene, target = part.scene(part.classifier(), 0, None, "cpu"), torch.arange(3).repeat(2)
    inputs, ids = scene.images.images.repeat_interleave(3, 0), [i for i in scene.images.ids for _ in range(3)]
    logits = part.methods["Ours"].learn(part.classifier(), inputs, target, distractors=scene.pool.images, ids=ids)
    # Kept in half precision by the store.
    np.testing.assert_allclose(found["map"][0], logits.view(2, 3, 8, 8), atol=2e-3)
    assert logits.std() > 0.1
    # One map for all labels: that of the most probable one.
    cheating, best = recorded.load_method("whole", "table1_a", "Ours (cheating)"), found.prob.argmax("label")
    for label in range(3):
        np.testing.assert_array_equal(cheating["map"][0, :, label], found["map"][0].isel(label=best))
    # Larger masks and other methods' maps are small pictures, from 0 to 127 each.
    for name in ("Ours (s=1)", "Gradient x Input"):
        other = recorded.load_method("whole", "table1_a", name)
        assert "map" not in other
        with xr.open_dataset(recorded.path_of("whole", "table1_a", name), engine="scipy") as file:
            assert file.picture.dtype == np.int8
            assert file.picture.shape == (1, 2, 3, 8, 8)
        # Of the first two images; when loaded, each is with its image.
        assert other.picture.dims == ("method", "image", "label", "row", "column")
        some = other.picture.isel(image=[0, 1])
        assert (some.min(("row", "column")) == 0).all()
        assert (some.max(("row", "column")) == 127).all()
        assert other.picture.isel(image=slice(2, None)).isnull().all()


def test_large_maps_are_averaged_into_pictures(monkeypatch, tmp_path):
    """By hand: means over blocks, then scaled."""
    monkeypatch.setattr(recorded, "LARGEST", 4)
    maps = np.random.default_rng(0).random((1, 6, 2, 8, 8)).astype(np.float32)
    made = xr.Dataset({"heatmap": (("method", "image", "label", "y", "x"), maps)}, {"method": ["m"]})

    class Kept:
        what = {"kept_as": "values"}  # noqa: RUF012

    class OneRun:
        def runs(self):
            return {"a": {"methods": [{"method": "other", "maps": "?"}]}, "b": {"methods": [{"method": "m", "maps": "key"}]}, "c": {}}

        def read(self, key):
            return {"map": maps[0]}

        def experiment(self, key):
            assert key == "key"
            return Kept

    ((name, (dims, found)),) = recorded.pictures(made, OneRun()).items()
    assert (name, dims) == ("picture", ("method", "pictured", "label", "row", "column"))
    assert found.shape == (1, recorded.PICTURED, 2, 4, 4)
    blocks = maps[0, :4].reshape(4, 2, 4, 2, 4, 2).mean((3, 5))
    low, high = blocks.min((2, 3), keepdims=True), blocks.max((2, 3), keepdims=True)
    np.testing.assert_array_equal(found[0], np.round((blocks - low) / (high - low) * 127))


OURS = ("Ours", "Ours (s=1)", "Ours (TV=0.001)", "Ours (gray)")


def test_the_grid_of_protocols_takes_each_map_from_where_it_was_learned(folder, monkeypatch):
    """Made-up recorded files: every method's areas are the number of its file."""
    monkeypatch.setattr(recorded, "folder", lambda profile: folder if profile == "overnight" else folder / profile)
    cheap = profiles.LABEL_FREE_LOSS
    files = {
        "table1_a": [*OURS, *cheap, "LRP", "RISE"],
        "protocol_labels_nll": [*OURS, *cheap],
        "protocol_all_released": list(OURS),
        "protocol_labels_released": list(OURS),
    }
    number, numbers, probs = 0, {}, {"all": 0.25, "labels": 0.75}
    for name, methods in files.items():
        for method in methods:
            number += 1
            numbers[name, method] = number
            made = evaluation(method, n=2, soundness=(("method", "image", "label"), np.zeros((1, 2, 3))))
            areas = xr.full_like(made.insertion_auc, number)
            prob = xr.full_like(made.prob, probs["labels" if "labels" in name else "all"])
            recorded.save("overnight", name, made.assign(insertion_auc=areas, prob=prob))
    grid = Runs("demo").protocol_grid()
    assert set(grid) == {("all", "nll"), ("labels", "nll"), ("all", "released"), ("labels", "released")}
    for (scope, loss), found in grid.items():
        assert set(found.method.values) == {*OURS, *cheap}
        assert set(found.data_vars) == {"prob", "prediction", "insertion_auc", "insertion_curve"}
        assert (found.prob == probs[scope]).all()
        rules = Protocol(scope, loss=loss)
        for method in (*OURS, *cheap):
            # Maps of the cheap rows depend on neither choice, and their scores on the scope.
            learned = rules.loss if method in OURS else "nll"
            source = "table1_a" if (scope, learned) == ("all", "nll") else f"protocol_{scope}_{learned}"
            assert (found.insertion_auc.sel({"method": method}) == numbers[source, method]).all()


def test_what_is_not_an_evaluation_is_recorded_too(tiny, monkeypatch):
    """Layer randomisation; what it computes is stood in for."""
    made, asked = xr.Dataset({"similarity": ("stage", np.float32([1.0, 0.25]))}, {"stage": ["none", "last"]}), []
    monkeypatch.setattr(runs, "layer_randomisation", lambda *scene, **settings: asked.append(scene[2].ids) or made)
    monkeypatch.setitem(runs.STAGES, SMALL.classifier, {})
    for name in ("whole", "part"):
        monkeypatch.setitem(PROFILES, name, replace(PROFILES[name], images=counts(sanity=3)))
    told = ("sanity", "layer randomisation")
    assert list(run(tiny, "first").record()) == [(*told, False), (*told, True)]
    assert list(run(tiny, "second").record()) == [(*told, True)]
    assert asked == [SMALL.images().ids[:3]]
    xr.testing.assert_identical(run(tiny, "part", "part").sanity(), made)
    assert len(asked) == 1

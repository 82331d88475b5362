"""A recorded study is compared cell by cell, and what is wrong in it is found."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from salkit import masking
from salkit.__main__ import app
from salkit.studies import profiles, recorded, verify
from salkit.studies import runs as study_runs
from salkit.studies.profiles import IMAGES, PROFILES, Study
from salkit.studies.runs import Runs
from salkit.studies.verify import Cell

SMALL = Study(data="cifar10-samples", classifier="cifar10-resnet20", lists={"a": (0, 3, 5)}, l1=1e-3, n_points=4, n_steps=6)
ROWS = {"ours": ("Ours",), "variants": (), "cheap": ("Random", "Gradient x Input"), "prior": (), "igos": ()}
COUNTS = dict.fromkeys(IMAGES, 0) | {"ours": 3, "cheap": 3, "sweep": 2, "second seed": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small study, recorded once."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, folder)
        list(Runs("whole").record())
    return folder


def arrange(patch, folder):
    whole = replace(PROFILES["overnight"], name="whole", cifar10=SMALL, imagenet=SMALL, images=COUNTS, tvs=(0.0, 0.1))
    patch.setitem(PROFILES, "whole", whole)
    patch.setitem(PROFILES, "part", replace(whole, name="part", images=COUNTS | {"ours": 1, "cheap": 2}, recorded="whole"))
    patch.setattr(profiles, "ROWS", ROWS)
    patch.setattr(recorded, "data_dir", lambda: folder)
    patch.setattr(recorded, "LARGEST", 8)
    patch.setattr(recorded, "PICTURED", 2)


@pytest.fixture
def runs(files, tmp_path, monkeypatch):
    """The study in a folder that a test may damage."""
    arrange(monkeypatch, tmp_path)
    for path in (files / "recorded").rglob("*.nc"):
        copy = tmp_path / path.relative_to(files)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return Runs("whole")


def found(runs, cells):
    return pd.concat(list(verify.recompute(runs, cells, workers=1)), ignore_index=True)


def kept(runs, cell):
    """What is recorded of a cell's method, without its maps."""
    return recorded.load_method(runs.profile, cell.experiment, cell.method).drop_vars(["map", "picture"], errors="ignore")


def plant(runs, cell, variable, change):
    """Change one number of a cell in the files."""
    result = kept(runs, cell)
    values = result[variable].sel(image=cell.image).values
    values.flat[-1] += change
    result[variable].loc[{"image": cell.image}] = values
    recorded.save(runs.profile, cell.experiment, result)


def test_a_right_study_agrees_to_the_bit_and_every_cell_is_known(runs):
    cells = verify.recorded_cells(runs)
    per_image = {"table1_a": ["Ours", "Random", "Gradient x Input"], "sweep": ["0", "0.1"]}
    assert {(c.experiment, c.method) for c in cells if "seed" not in c.experiment} == {(e, m) for e in per_image for m in per_image[e]}
    assert len([c for c in cells if c.experiment == "table1_a"]) == 9
    chosen = [cell for cell in cells if cell.image == next(iter(cells)).image]
    table, verdict = verify.judge(found(runs, chosen), None)
    assert table.largest.max() == 0
    assert verdict.passed
    assert (verdict.n, verdict.wrong, verdict.exact) == (len(chosen), 0, True)


@pytest.mark.parametrize("variable", ["insertion_auc", "insertion_curve", "games", "label_correlation", "deletion_auc"])
@pytest.mark.parametrize("change", [1e-6, np.nan])
def test_a_planted_wrong_number_is_found_when_its_cell_is_drawn(runs, variable, change):
    cell = next(cell for cell in verify.recorded_cells(runs) if cell.method == "Random")
    if variable == "deletion_auc" and change == change:
        # Only the prediction has one, so the last is NaN: a number where there should be none.
        result = kept(runs, cell)
        result[variable] = result[variable].fillna(0.5)
        recorded.save(runs.profile, cell.experiment, result)
    elif variable == "deletion_auc":
        result = kept(runs, cell)
        result[variable] = result[variable] * np.nan
        recorded.save(runs.profile, cell.experiment, result)
    else:
        plant(runs, cell, variable, change)
    table, verdict = verify.judge(found(runs, [cell]), None)
    assert table[table.wrong].variable.tolist() == [variable]
    assert not verdict.passed
    assert str(verdict).startswith("0 of 1 recomputed cells are equal")


def no_tv(patch):
    patch.setattr(masking, "total_variation", lambda masks: masks.sum((-2, -1)) * 0)


def other_sign(patch):
    curves = masking.channels_last_composite
    patch.setattr(masking, "channels_last_composite", lambda image, mask, infill: curves(image, 1 - mask, infill))


def other_scope(patch):
    right = study_runs.experiments
    other = {"softmax_over": "labels"}
    patch.setattr(study_runs, "experiments", lambda *of: [replace(e, protocol=replace(e.protocol, **other)) for e in right(*of)])


@pytest.mark.parametrize("wrong", [no_tv, other_sign, other_scope])
def test_a_planted_wrong_method_is_found_even_within_the_spread_of_seeds(runs, monkeypatch, wrong):
    """As on another processor, where equality cannot be asked for."""
    allowed = verify.tolerances(runs)
    cells = [cell for cell in verify.recorded_cells(runs) if cell.method in ("0.1", "Ours") and "seed" not in cell.experiment]
    assert verify.judge(found(runs, cells), allowed)[1].passed
    wrong(monkeypatch)
    assert not verify.judge(found(runs, cells), allowed)[1].passed


def test_other_settings_than_the_recorded_ones_are_refused(runs, monkeypatch):
    changed = replace(SMALL, l1=2e-3)
    monkeypatch.setitem(PROFILES, "whole", replace(PROFILES["whole"], imagenet=changed))
    with pytest.raises(ValueError, match=r"Ours.nc: expected results with the settings .*0.002.*, got .*0.001"):
        verify.recorded_cells(runs)


def test_a_sample_is_random_seeded_and_does_not_prefer_cheap_cells():
    cells = {Cell("e", f"method {i}", f"image {j}"): 1.0 if i else 30.0 for i in range(2) for j in range(500)}
    drawn = [verify.sample(cells, minutes=10, seed=seed) for seed in range(20)]
    assert verify.sample(cells, 10, seed=3) == drawn[3] != drawn[4]
    assert len({len(some) for some in drawn}) == 1, "the size is fixed before anything is drawn"
    share = np.mean([cell.method == "method 0" for some in drawn for cell in some])
    # 20 samples of about 77 cells or more: a standard deviation of 0.013 or less.
    assert abs(share - 0.5) < 0.06
    assert len(verify.sample(cells, 10, n=7)) == 7
    assert len(set(verify.sample(cells, 10, n=1000))) == 1000
    with pytest.raises(ValueError, match="n: expected 1 to 1000 recorded cells, got 1001"):
        verify.sample(cells, 10, n=1001)


@pytest.mark.parametrize(("n", "wrong"), [(23, 0), (10, 0), (40, 2), (5, 5)])
def test_the_largest_share_of_wrong_cells_is_the_exact_binomial_bound(n, wrong):
    share = verify.largest_share_wrong(n, wrong)
    if wrong == n:
        assert share == 1
        return
    # With this share so few wrong ones in a sample have a probability of 5 %.
    from scipy.stats import binom

    assert binom.cdf(wrong, n, share) == pytest.approx(0.05)


def rows(method, largest, shifts):
    table = pd.DataFrame({"method": method, "largest": largest, "shift": shifts})
    return table.assign(experiment="e", image=[f"image {i}" for i in range(len(table))], variable="insertion_auc")


def test_differences_that_lean_to_one_side_do_not_pass():
    allowed = {"Ours": {"insertion_auc": 0.1}}
    even = [0.01 * (-1) ** i for i in range(10)]
    assert verify.judge(rows("Ours", 0.05, even), allowed)[1].passed
    table, verdict = verify.judge(rows("Ours", 0.05, [0.01] * 10), allowed)
    assert not table.wrong.any()
    assert not verdict.passed
    assert "Mean difference of g: +0.0100" in str(verdict)


@pytest.mark.parametrize(
    ("method", "largest", "wrong"), [("Random", 0.004, 0), ("Random", 0.02, 1), ("Ours (gray)", 0.09, 0), ("Ours", 0.2, 1)]
)
def test_what_may_differ_elsewhere(method, largest, wrong):
    """Two seeds' spread for learned masks, that of the others' for one without a second seed, and rounding for the rest."""
    assert verify.judge(rows(method, [largest], [0.0]), {"Ours": {"insertion_auc": 0.1}})[1].wrong == wrong


def test_the_spread_is_that_of_two_recorded_seeds(runs):
    a, b = (recorded.load("whole", name) for name in ("table1_a", "second_seed"))
    images = b.image.values
    one, other = (each.insertion_auc.sel({"method": "Ours", "image": images}) for each in (a, b))
    by_hand = np.abs(one - other).max()
    assert verify.tolerances(runs)["Ours"]["insertion_auc"] == pytest.approx(float(by_hand))
    assert by_hand > 0


def test_the_live_part_is_what_is_shown(runs):
    table = verify.live_part(Runs("part"), "table1_a").set_index("method")
    assert table.images.to_dict() == {"Ours": 1, "Random": 2, "Gradient x Input": 2}
    assert table.largest.max() == 0
    assert (table["g live"] == table["g shown"]).all()
    assert table.allowed["Random"] == verify.ROUNDING
    assert table.allowed["Ours"] >= verify.tolerances(runs)["Ours"]["insertion_auc"]


def test_the_command_exits_with_1_when_a_number_is_wrong(runs):
    command = ["verify", "--profile", "whole", "--n", "3", "--workers", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "3 of 3 recomputed cells are equal" in done.output
    for cell in verify.sample(verify.recorded_cells(runs), 10, 3):
        plant(runs, cell, "insertion_auc", 0.01)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "0 of 3 recomputed cells are equal" in done.output
    assert "insertion_auc" in done.output


def test_nan_is_equal_to_nan_only():
    a, b = (xr.DataArray(values, dims="x") for values in ([0.5, np.nan, 1.0], [0.5, np.nan, 1.25]))
    assert verify.difference(a, b) == 0.25
    assert verify.difference(a, b.fillna(0.0)) == np.inf

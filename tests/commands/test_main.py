import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from salkit.__main__ import app
from salkit.methods.masker import masker_metadata
from salkit.studies import costs


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_evaluate_prints_a_table_and_writes_it(run, tmp_path):
    csv = tmp_path / "new" / "scores.csv"
    result = run("evaluate", "random", "centered_gaussian", "--n", "2", "--points", "4", "--csv", str(csv), "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "2 images of cifar10-samples, cifar10-resnet20, protocol paper" in result.output
    table = pd.read_csv(csv)
    assert set(table.method) == {"random", "centered_gaussian"}
    assert table[table.metric == "soundness"].ours.between(0, 1).all()


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_evaluate_takes_settings_labels_and_a_folder(run, tmp_path, protocol):
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{name}.png")
    arguments = f"--data folder:{tmp_path} --labels 3,5 --points 2 --set n_steps=2 --set scale=1 --device cpu --protocol {protocol}".split()
    result = run("evaluate", "learned_mask", *arguments)
    assert result.exit_code == 0, result.output
    assert "soundness" in result.output


def test_plan_prints_passes_and_hours(run, monkeypatch):
    monkeypatch.setattr(costs, "_seconds_per_pass", lambda study, device: (0.001, 0.003))
    result = run("plan", "--profile", "paper", "--device", "cpu")
    assert result.exit_code == 0, result.output
    # Notebook 02: predictions of 1,000 images, then for five methods a curve of 1,025 points for each of ten labels and one of deletion.
    assert f"{1_000 + 5 * 1_000 * (10 + 1) * 1_025:,}" in result.output
    assert "03_imagenette_table1" in result.output


def test_a_masker_is_trained_and_used_from_the_shell(run, tmp_path):
    out = tmp_path / "made" / "phang.safetensors"
    sizes = ["--images", "4", "--batch-size", "2", "--eval-every", "1", "--device", "cpu", "--classifier", "cifar10-resnet20"]
    arguments = ["train-masker", "phang", "--train", "cifar10-samples", "--val", "cifar10-samples", "--out", str(out), *sizes]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "measured on 20 held-out images" in result.output
    header = masker_metadata(out)
    assert header["classifier"] == "cifar10-resnet20"
    assert [row["step"] for row in header["log"]] == [1, 2]
    result = run("evaluate", "phang", "--n", "2", "--points", "2", "--set", f"masker={out}", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "phang" in result.output


def test_info_names_versions_and_checkpoints(run):
    result = run("info")
    assert result.exit_code == 0, result.output
    for part in ("salkit", "torch", "cifar10-resnet20", "device"):
        assert part in result.output

from pathlib import Path

import pytest
from torch import nn

from salkit.atomic import atomic_write
from salkit.models import checkpoints


def test_a_file_is_replaced_when_it_is_complete_and_never_before(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")

    def fail():
        with atomic_write(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"], "no half-written file stays"
    assert path.read_text() == "old"
    with atomic_write(str(path)) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]


def test_a_checkpoint_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def full_disk(state, path, metadata):
        Path(path).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save_checkpoint(nn.Linear(2, 2), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())

from pathlib import Path

import pytest
from torch import nn

from salkit.atomic import atomic_write
from salkit.models import checkpoints


def test_a_file_is_replaced_when_it_is_complete_and_never_before(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    path.write_text("old")

    def full_disk(state, path, metadata):
        Path(path).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save_checkpoint(nn.Linear(2, 2), path)
    assert list(tmp_path.iterdir()) == [path], "no half-written file stays"
    assert path.read_text() == "old"
    with atomic_write(str(path)) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "new"

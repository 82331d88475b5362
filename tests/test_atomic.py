import pytest

from salkit.atomic import atomic_write


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

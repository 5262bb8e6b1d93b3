"""Files are whole or absent."""

from __future__ import annotations

import pytest

from headwise import atomic


def test_replacing_shows_the_new_file_only_when_complete(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.suffix == ".safetensors"
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_replacing_keeps_the_old_file_on_an_error(tmp_path, error):
    path = tmp_path / "x.txt"
    atomic.write_text(path, "old")
    with pytest.raises(error), atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_write_json_refuses_numbers_that_are_not_finite(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        atomic.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())

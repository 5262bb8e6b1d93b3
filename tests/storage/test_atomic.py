"""Files are whole or absent, with the user's umask; what cannot be written is named as the user knows it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from headwise.errors import StorageError
from headwise.storage import atomic
from headwise.storage.claims import Claim
from headwise.training.address import write_tensors
from made_cases import each


def test_replacing_shows_the_new_file_only_when_complete(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.suffix == ".safetensors"
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


@each("error", [RuntimeError, KeyboardInterrupt])
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


WRITERS = {
    "text": lambda path: atomic.write_text(path, "x"),
    "json": lambda path: atomic.write_json(path, {}),
    "tensors": lambda path: write_tensors(path, {"a": torch.zeros(2)}),
}


@each("mask", [0o022, 0o002, 0o077])
@each("kind", WRITERS)
def test_files_have_the_users_umask(tmp_path, kind, mask):
    before = os.umask(mask)
    try:
        WRITERS[kind](tmp_path / "x.bin")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.bin").stat().st_mode) == 0o666 & ~mask


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file" / "x.txt"


def a_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop" / "x.txt"


def a_folder(folder: Path) -> Path:
    (folder / "x.txt").mkdir()
    return folder / "x.txt"


PLACES = {
    a_file: "a file lies where a folder should be",
    a_loop: "symbolic link",
    a_folder: "it is a folder",
}


@each("kind", WRITERS)
@each("place", PLACES)
def test_a_place_where_nothing_can_be_written_is_named(tmp_path, place, kind):
    path = place(tmp_path)
    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(StorageError, match=PLACES[place]) as caught:
        WRITERS[kind](path)
    assert str(caught.value).startswith((str(path), str(path.parent)))
    assert ".tmp" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


@each("place", [a_file, a_loop])
def test_a_claim_on_such_a_place_is_refused_alike(tmp_path, place):
    with pytest.raises(StorageError, match=PLACES[place]), Claim(place(tmp_path)):
        pass


@each("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT, errno.EROFS])
@each("kind", WRITERS)
def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch, kind, number):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "flush", refuse)
    with pytest.raises(StorageError) as caught:
        WRITERS[kind](path)
    assert str(caught.value).startswith(f"{path} cannot be written: {os.strerror(number)}")
    assert ("make room" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert caught.value.errno == number
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), atomic.replacing(tmp_path / "x.bin") as part:
        part.write_bytes(Path("/absent/file").read_bytes())

"""Hashes of contents: remembered as long as nothing says that a file changed, and never longer."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from headwise.data.stores import tfds
from headwise.data.stores.listfiles import digests, read_list
from headwise.errors import ConfigError
from headwise.results import fingerprint
from headwise.storage import hashes
from headwise.storage.hashes import Remembered, file_sha256, sha256_of, stamp_of
from made_cases import each

ABC, ABD = hashlib.sha256(b"abc").hexdigest(), hashlib.sha256(b"abd").hexdigest()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as one that changed long ago."""
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc")
    return path


def by_path(file: Path, cache: Path) -> str:
    return file_sha256(file, cache)


def by_list(file: Path, cache: Path) -> str:
    os.environ["HEADWISE_CACHE"] = str(cache)  # put back by the fixture of every test
    lists = file.with_name("test.txt")
    lists.write_text(f"{file.name} 0\n")
    return digests(read_list(lists, 1), file.parent, file.parent)[0].sha256


WAYS = pytest.mark.parametrize("read", [by_path, by_list])


@WAYS
@pytest.mark.usefixtures("settled")
def test_a_copy_that_keeps_size_and_time_is_told_from_what_it_replaced(read: Callable, file: Path) -> None:
    cache = file.parent / "cache"
    assert read(file, cache) == ABC
    (file.parent / "other").write_bytes(b"abd")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    shutil.copyfile(file.parent / "other", file)
    os.utime(file, ns=times)
    assert file.stat().st_mtime_ns == times[1] and read(file, cache) == ABD


@WAYS
def test_what_changed_just_now_is_not_remembered(read: Callable, file: Path) -> None:
    os.utime(file, (1e9, 1e9))  # says that it is old; when it was told so cannot be set
    read(file, file.parent / "cache")
    assert not list((file.parent / "cache").glob("**/*.json"))


@WAYS
@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"x": 1}', b"\xff\xfe", b"[" * 100_000])
def test_damaged_notes_count_as_none_and_are_replaced(read: Callable, file: Path, damage: bytes) -> None:
    cache = file.parent / "cache"
    read(file, cache)
    (note,) = cache.glob("*/*.json")
    note.write_bytes(damage)
    assert read(file, cache) == ABC and ABC in note.read_text()


@WAYS
@pytest.mark.usefixtures("settled")
def test_what_is_remembered_is_not_read_again(read: Callable, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = file.parent / "cache"
    read(file, cache)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert read(file, cache) == ABC


@WAYS
@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_is_no_error(read: Callable, file: Path) -> None:
    (file.parent / "occupied").write_text("in the way")
    assert read(file, file.parent / "occupied") == ABC


@each("row", [[], [1], "x", [1, 2, 3, "short", False], [1, 2, 3, ABC], [1, 2, 3, ABC, 0], None])
def test_a_row_of_another_shape_is_none(tmp_path: Path, row: object) -> None:
    remembered = Remembered("kind", "owner", tmp_path)
    remembered.keep("a", [1, 2, 3], ABC, True)
    remembered.save()
    assert Remembered("kind", "owner", tmp_path).get("a", [1, 2, 3]) == (ABC, True)
    assert Remembered("kind", "owner", tmp_path).get("a", [1, 2, 4]) is None
    (note,) = tmp_path.glob("kind/*.json")
    note.write_text(json.dumps({"a": row}))
    assert Remembered("kind", "owner", tmp_path).get("a", [1, 2, 3]) is None


def test_several_files_have_one_stamp(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"22")
    both = stamp_of(first.stat(), second.stat())
    assert both == [*stamp_of(first.stat()), *stamp_of(second.stat())] and both[::3] == [1, 2]


def test_the_environment_says_where_hashes_lie(file: Path, monkeypatch: pytest.MonkeyPatch, settled: None) -> None:
    monkeypatch.setenv("HEADWISE_CACHE", str(file.parent / "there"))
    file_sha256(file)
    assert len(list((file.parent / "there" / "sha256").glob("*.json"))) == 1


def test_the_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot hash .*nothing\.bin"):
        file_sha256(tmp_path / "nothing.bin", tmp_path)
    with pytest.raises(ConfigError, match="cannot hash"):
        file_sha256(tmp_path, tmp_path)


def test_many_processes_at_once(tmp_path: Path) -> None:
    file = Path(pytest.__file__)  # old, as nothing that a test writes is
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(file_sha256, [(file, tmp_path / "cache")] * 30)
    assert set(found) == {sha256_of(file)}
    assert len(list((tmp_path / "cache" / "sha256").iterdir())) == 1


def test_there_is_one_margin_and_the_old_names_lead_to_it() -> None:
    assert fingerprint.file_sha256 is file_sha256 and fingerprint.cache_folder is hashes.cache_folder
    source = Path(tfds.__file__).parents[2]
    files = [path for path in source.rglob("*.py") if "SETTLED_SECONDS" in path.read_text(encoding="utf-8")]
    assert [path.name for path in files] == ["hashes.py"]

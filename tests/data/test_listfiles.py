from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_trees import write_lines

from headwise.data.stores import listfiles
from headwise.data.stores.listfiles import digests, locate, read_list
from headwise.errors import DataError
from headwise.storage import hashes
from made_cases import each


def settle(*files: Path) -> None:
    """Pretend that files were written long ago."""
    for file in files:
        os.utime(file, (1e9, 1e9))


def test_label_follows_the_last_space(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_bytes(b"\xef\xbb\xbfa/b c.jpg 0\r\nd.jpg 2\r\n\r\n")
    entries = read_list(tmp_path / "test.txt", 3)
    assert [(e.path, e.label, e.line) for e in entries] == [("a/b c.jpg", 0, 1), ("d.jpg", 2, 2)]


@each(
    "text, message",
    [
        ("", r"test\.txt: is empty"),
        ("\n \n", r"test\.txt: is empty"),
        ("a.jpg 0\nb.jpg\n", r"test\.txt, line 2: expected 'relative/path label'.*got 'b.jpg'"),
        ("a.jpg 0\n\nb.jpg 1\n", r"test\.txt, line 2: expected"),
        ("a.jpg x\n", r"test\.txt, line 1: expected .* whole number, got 'a.jpg x'"),
        ("a.jpg 1.0\n", r"line 1: expected"),
        ("a.jpg 1_0\n", r"line 1: expected"),
        (" 1\n", r"line 1: expected"),
        ("a\0.jpg 1\n", r"line 1: expected"),
        ("a.jpg 0\nb.jpg 3\n", r"test\.txt, line 2: label 3 is outside of 0\.\.2 \(3 classes\)"),
        ("a.jpg -1\n", r"test\.txt, line 1: label -1 is outside of 0\.\.2"),
    ],
)
def test_malformed_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "test.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / "test.txt", 3)


def test_unreadable_lists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.txt: does not exist; a list file is needed"):
        read_list(tmp_path / "test.txt", 3)
    (tmp_path / "test.txt").write_bytes(b"a.jpg 0\n\xff\xfe 1\n")
    with pytest.raises(DataError, match=r"test\.txt: is not UTF-8 text .*byte 8"):
        read_list(tmp_path / "test.txt", 3)


def located(root: Path, folder: Path, path: str) -> list[Path]:
    write_lines(folder / "test.txt", [f"{path} 0"])
    return [found for found, _ in locate(read_list(folder / "test.txt", 1), folder, root)]


def test_paths_stay_inside_the_root(tmp_path: Path) -> None:
    root, folder, twin = tmp_path / "root", tmp_path / "root" / "toy", tmp_path / "root" / "twin"
    folder.mkdir(parents=True)
    twin.mkdir()
    for file in (tmp_path / "secret.jpg", folder / "own.jpg", twin / "shared.jpg"):
        file.touch()
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "inner.jpg").symlink_to(twin / "shared.jpg")
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    assert located(root, folder, "own.jpg") == [folder / "own.jpg"]
    assert located(root, folder, "../twin/shared.jpg") == [twin / "shared.jpg"]
    assert located(root, folder, "inner.jpg") == [twin / "shared.jpg"]
    for path in ("../../secret.jpg", "link.jpg", "up/secret.jpg"):
        with pytest.raises(DataError, match=rf"test\.txt, line 1: path '{path}' leaves the data root"):
            located(root, folder, path)
    for path in (str(folder / "own.jpg"), "/etc/passwd"):
        with pytest.raises(DataError, match=r"test\.txt, line 1: path .* is absolute"):
            located(root, folder, path)


def test_a_sibling_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root" / "toy").mkdir(parents=True)
    (tmp_path / "rootless").mkdir()
    (tmp_path / "rootless" / "a.jpg").touch()
    with pytest.raises(DataError, match="leaves the data root"):
        located(tmp_path / "root", tmp_path / "root" / "toy", "../../rootless/a.jpg")


def test_the_task_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "toy").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = located(tmp_path / "root", tmp_path / "root" / "toy", "a.jpg")
    assert found == [tmp_path / "elsewhere" / "a.jpg"]


def test_missing_images(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"test\.txt, line 1: image 'nowhere/a.jpg' not found in"):
        located(tmp_path, tmp_path, "nowhere/a.jpg")
    with pytest.raises(DataError, match=r"test\.txt, line 1: 'folder' in .* is not a file"):
        located(tmp_path, tmp_path, "folder")


def test_digests_are_remembered_until_a_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("a.jpg", b"\xff\xd8\xff..."), ("b.jpg", b"\x89PNG")):
        (tmp_path / name).write_bytes(content)
    settle(tmp_path / "a.jpg", tmp_path / "b.jpg")
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1.0)
    write_lines(tmp_path / "test.txt", ["a.jpg 0", "b.jpg 0"])
    entries = read_list(tmp_path / "test.txt", 1)
    first = digests(entries, tmp_path, tmp_path)
    assert [digest.is_jpeg for digest in first] == [True, False]
    assert list((cache / "digests").iterdir())
    read: list[Path] = []
    original = listfiles._read_digest
    monkeypatch.setattr(listfiles, "_read_digest", lambda path: read.append(path) or original(path))
    assert digests(entries, tmp_path, tmp_path) == first
    assert read == []
    (tmp_path / "b.jpg").write_bytes(b"\x89GNP")
    settle(tmp_path / "b.jpg")
    second = digests(entries, tmp_path, tmp_path)
    assert second[0] == first[0] and second[1] != first[1]
    assert read == [tmp_path / "b.jpg"]

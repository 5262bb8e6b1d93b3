"""List files that anybody may have written: the pairs that a naive reader sees, or one line that says what is wrong."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from headwise.data import notices
from headwise.data.stores.folder import FolderSource
from headwise.data.stores.listfiles import SUFFIXES, locate, read_list
from headwise.data.tasks import VTABTask
from headwise.errors import DataError, HeadwiseError

CLASSES = 3
NAMES = ("a.png", "b c.png", "x 1.png", " lead.png", "\u00fc\u3042.png", "in/e.png", "in/\u00a0.png", "tab\t.png", "-1")
"""Images that are there."""
Pairs = list[tuple[str, int]]


def bounded(examples: int) -> Any:
    """The same examples every time, so many of them."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=checks)


def naive(content: bytes, num_classes: int = CLASSES) -> Pairs | None:
    """What a list says, read character by character; None if it is no list."""
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError:
        return None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    pairs = []
    for line in lines:
        while line and line[-1] in " \t":
            line = line[:-1]
        words = line.split(" ")
        path, label = " ".join(words[:-1]), words[-1]
        if not set(label.removeprefix("-")) <= set("0123456789") or label in ("", "-"):
            path, label = after_image(line) or (path, label)
        if not path.strip() or "\0" in path or not label or not set(label) <= set("0123456789"):
            return None
        number = 0
        for digit in label:
            number = min(10 * number + ord(digit) - ord("0"), 10**9)
        if number >= num_classes:
            return None
        pairs.append((path, number))
    return pairs or None


def after_image(line: str) -> tuple[str, str] | None:
    """The longest beginning that ends as images do before a tab, a comma or a blank, and what follows those."""
    for end in range(len(line), 0, -1):
        blank = line[end:].lstrip(" ")
        is_parted = blank.startswith(("\t", ","))
        if line[:end].lower().endswith(SUFFIXES) and (is_parted or line[end : end + 1] == " "):
            return line[:end], blank[is_parted:].lstrip(" ")
    return None


def file_of(path: str) -> str | None:
    """The image that a path means, by its name in `NAMES`; None if it is none of them, or leads out of the folder."""
    depth = 0
    for part in path.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return None
    meant = posixpath.normpath(path)
    return meant if not path.startswith("/") and not path.endswith(("/", "/.")) and meant in NAMES else None


ODD_PATHS = ["in/../a.png", "./a.png", "in//e.png", "nowhere.png", "/etc/passwd", "../a.png", "../../x", "in", ".", ""]
ODD_PATHS += [
    "a.png/",
    "a.png/.",
    "nowhere/../a.png",
    "x" * 300,
    "y/" * 3000,
    "a.png\0",
    "link.png",
    "loop.png",
    "pipe",
]
PATHS = st.sampled_from([*NAMES, *ODD_PATHS]) | st.text(max_size=6)
ODD_LABELS = ["3", "-1", "-0", "+1", "007", "1.0", "1_0", "", "\u0662", "\u00b2", "9" * 30, "9" * 5000]
ODD_LABELS += ["0" * 30 + "2", "0x1", "1e0", "two", "None", "1\0"]
LABELS = st.sampled_from([*"012", *ODD_LABELS]) | st.integers().map(str)
SEPARATORS = st.sampled_from([*" " * 12, "  ", "\t", " \t", ",", "", "\u00a0", "\u3000"])
ENDS = st.sampled_from(
    [*["\n"] * 8, "\r\n", "\r", " \n", "\t\r\n", "\n\n", "\u2028", "\x85", "\x0b", "\x1c", "\u00a0\n", ""]
)
LINES = st.tuples(PATHS, SEPARATORS, LABELS, ENDS).map("".join)
RIGHT = st.tuples(st.sampled_from(NAMES), st.sampled_from([" 0", " 1", " 2"]), ENDS).map("".join)
TEXTS = st.lists(LINES | RIGHT | RIGHT, max_size=6).map("".join)
CONTENTS = (
    TEXTS.map(lambda text: text.encode("utf-8", "replace"))
    | TEXTS.map(lambda text: b"\xef\xbb\xbf" + text.encode())
    | TEXTS.map(lambda text: text.encode("utf-16"))
    | st.binary(max_size=30)
    | st.tuples(TEXTS, st.binary(max_size=3), TEXTS).map(lambda parts: parts[0].encode() + parts[1] + parts[2].encode())
)


def refusal(error: HeadwiseError) -> str:
    """The text of a refusal, which must be a line that is not too long."""
    text = str(error)
    assert text.isprintable() and len(text) < 1000, text
    return text


def check_reading(folder: Path, content: bytes) -> None:
    file = folder / "test.txt"
    file.write_bytes(content)
    expected = naive(content)
    try:
        entries = read_list(file, CLASSES)
    except DataError as error:
        assert refusal(error).startswith(str(file))
        assert expected is None, error
        return
    assert [(entry.path, entry.label) for entry in entries] == expected
    files = [file_of(path) for path, _ in expected]
    try:
        found = locate(entries, folder, folder)
    except DataError as error:
        assert f"{file}, line {files.index(None) + 1}: " in refusal(error)
        return
    assert [path for path, _ in found] == [folder / str(name) for name in files]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the images, and of what is none."""
    monkeypatch.setattr(notices, "_said", set())
    inside = tmp_path / "root" / "toy"
    (inside / "in").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(inside / name, format="PNG")
    (tmp_path / "secret.png").write_bytes((inside / "a.png").read_bytes())
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "loop.png").symlink_to("loop.png")
    os.mkfifo(inside / "pipe")
    return inside


@bounded(400)
@given(CONTENTS)
@example(b"a.png 0 \nb c.png 1\n")
@example(b"a.png 0\xc2\xa0\n")
@example(b"a.png " + b"0" * 5000 + b"2\n")
@example(b"a.png 0\n \n\t\n\x0c\n")
@example(b"a.png/ 0\n")
@example(b"a.png/. 0\n")
def test_a_list_is_read_as_it_stands_or_refused(folder: Path, content: bytes) -> None:
    check_reading(folder, content)


@pytest.mark.slow
@bounded(5000)
@given(CONTENTS)
def test_many_lists_are_read_as_they_stand_or_refused(folder: Path, content: bytes) -> None:
    check_reading(folder, content)


def task() -> VTABTask:
    return VTABTask(name="toy", group="own", num_classes=CLASSES, folders=["toy"])


def check_use(folder: Path, contents: dict[str, bytes | None]) -> None:
    """Everything that is done with a user's lists, and what it must come to."""
    for name, content in contents.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    source, toy = FolderSource(folder.parent), task()
    said = {name: None if content is None else naive(content) for name, content in contents.items()}
    whole = {name: pairs for name, pairs in said.items() if pairs and all(file_of(path) for path, _ in pairs)}
    is_right = said.keys() == {*whole, *(name for name, content in contents.items() if content is None)}
    labels: dict[str, set[int]] = {}
    for path, label in [pair for pairs in whole.values() for pair in pairs]:
        labels.setdefault(str(file_of(path)), set()).add(label)
    is_right &= all(len(found) == 1 for found in labels.values())
    for split, name in (("train800val200", "train.txt"), ("val200", "val.txt"), ("test", "test.txt")):
        try:
            pixels = source.load(toy, split, 8)
            fingerprint = source.fingerprint(toy, (split,))
            told = source.labels(toy)
        except HeadwiseError as error:
            refusal(error)
            assert not is_right or name not in whole, error
            continue
        assert is_right and source.count(toy, split) == len(whole[name]) and len(fingerprint) == 64
        names = [str(file_of(path)) for path, _ in whole[name]]
        assert [NAMES.index(there) for there in names] == pixels.images[:, 0, 0, 0].tolist()
        assert [label for _, label in whole[name]] == pixels.labels.tolist() == source.all_labels(toy, split).tolist()
        trained = {file_of(path) for path, _ in whole.get("train.txt", [])}
        leaked = sum(file_of(path) in trained for path, _ in whole.get("test.txt", []))
        assert told == ["own data", *([f"test images in train: {leaked}"] if leaked else [])]
    try:
        kept = source.load(toy, "train800", 8).keys
    except HeadwiseError as error:
        refusal(error)
    else:
        held_out = {file_of(path) for path, _ in whole["val.txt"]}
        assert list(kept) == [path for path, _ in whole["train.txt"] if file_of(path) not in held_out]


LISTS = st.fixed_dictionaries(
    {"train.txt": CONTENTS | TEXTS.map(str.encode), "test.txt": CONTENTS, "val.txt": st.none() | CONTENTS}
)
GOOD = st.lists(st.sampled_from([f"{name} {NAMES.index(name) % CLASSES}\n" for name in NAMES]))
FINE = (GOOD | GOOD.map(lambda rows: ["./a.png 0\n", "in/../a.png 0\r\n", *rows])).map(
    lambda rows: "".join(rows).encode()
)
RIGHT_LISTS = st.fixed_dictionaries({"train.txt": FINE, "test.txt": FINE, "val.txt": st.none() | FINE})


@bounded(60)
@given(LISTS | RIGHT_LISTS | RIGHT_LISTS)
def test_what_is_made_of_a_users_lists(folder: Path, contents: dict[str, bytes | None]) -> None:
    check_use(folder, contents)


@pytest.mark.slow
@bounded(500)
@given(LISTS | RIGHT_LISTS | RIGHT_LISTS)
def test_what_is_made_of_many_lists(folder: Path, contents: dict[str, bytes | None]) -> None:
    check_use(folder, contents)

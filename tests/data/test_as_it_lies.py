"""A user's images as they lie: class folders with and without parts, tables, names in place of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headwise.data.found import with_classes
from headwise.data.stores.folder import FolderSource
from headwise.data.stores.listfiles import read_list
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError, DataError
from made_cases import each

DATASET = {"group": "own", "name": "folder", "num_classes": None, "folders": ["."], "class_names": []}
SPLITS = ("train800", "val200", "train800val200", "test")


def put(root: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(root / name)
    return root


def task_of(root: Path, **fields: Any) -> VTABTask:
    return VTABTask(**with_classes({**DATASET, **fields}, {"root": str(root)}))


def lines(root: Path, task: VTABTask, split: str) -> list[tuple[str, int]]:
    return [(entry.path, entry.label) for entry in FolderSource(root)._entries(task, split)]


def test_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    put(tmp_path, "train/dog/b.JPG", "train/a cat/1.png", "train/a cat/deep/2.png", "val/dog/1.png", "test/a cat/9.png")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    put(tmp_path, "train/dog/.hidden.png", "train/.cache/x.png")
    task = task_of(tmp_path)
    assert (task.num_classes, task.class_names) == (2, ("a cat", "dog"))
    train = [("train/a cat/1.png", 0), ("train/a cat/deep/2.png", 0), ("train/dog/b.JPG", 1)]
    assert lines(tmp_path, task, "train800val200") == lines(tmp_path, task, "train800") == train
    assert lines(tmp_path, task, "val200") == [("val/dog/1.png", 1)]
    assert lines(tmp_path, task, "test") == [("test/a cat/9.png", 0)]
    pixels = FolderSource(tmp_path).load(task, "train800val200", 16)
    assert pixels.labels.tolist() == [0, 0, 1]
    assert FolderSource(tmp_path).labels(task) == ["own data"]


def test_val_is_the_test_where_there_is_no_other(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(10)), "val/a/x.png", "val/b/x.png")
    task = task_of(tmp_path)
    assert lines(tmp_path, task, "test") == [("val/a/x.png", 0), ("val/b/x.png", 1)]
    parts = [lines(tmp_path, task, split) for split in ("train800", "val200")]
    assert [len(part) for part in parts] == [16, 4] and not set(parts[0]) & set(parts[1])
    assert sorted([*parts[0], *parts[1]]) == sorted(lines(tmp_path, task, "train800val200"))


def test_one_root_is_split_alike_everywhere(tmp_path: Path) -> None:
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)] + ["emu/1.png", "emu/2.png"]
    put(tmp_path / "one", *names)
    put(tmp_path / "two", *reversed(names))
    task = task_of(tmp_path / "one")
    assert task.class_names == ("cat", "dog", "emu")
    for split in SPLITS:
        assert lines(tmp_path / "one", task, split) == lines(tmp_path / "two", task, split)
    train, test = (lines(tmp_path / "one", task, split) for split in ("train800val200", "test"))
    assert sorted(path for path, _ in train + test) == sorted(names)
    assert [[label for _, label in test].count(label) for label in range(3)] == [2, 2, 1]
    assert FolderSource(tmp_path / "one").labels(task) == ["own data", "own split"]
    assert FolderSource(tmp_path / "one").fingerprint(task) == FolderSource(tmp_path / "one").fingerprint(task)


@each(
    "name, text",
    [
        ("train.txt", "a b.png cat\nc,d.png great dog\n"),
        ("train.txt", "a b.png\tcat\nc,d.png\tgreat dog\n"),
        ("train.txt", "a b.png, cat\nc,d.png,great dog\n"),
        ("train.csv", 'path,label\na b.png,cat\n"c,d.png",great dog\n'),
        ("train.csv", 'a b.png,cat\n"c,d.png",great dog\n'),
        ("train.csv", 'Label,extra,Image\ncat,0,a b.png\ngreat dog,1,"c,d.png"\n'),
        ("train.tsv", "filename\tclass\na b.png\tcat\nc,d.png\tgreat dog\n"),
        ("train.csv", 'path,label\r\na b.png,0\r\n"c,d.png",1\r\n'),
    ],
)
def test_lists_and_tables_name_classes(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path, "a b.png", "c,d.png")
    (tmp_path / name).write_text(text, newline="")
    (tmp_path / "test.txt").write_text("a b.png 0\n" if ",0" in text and "\r" in text else "a b.png cat\n")
    task = task_of(tmp_path)
    assert task.num_classes == 2 and task.class_names in ((), ("cat", "great dog"))
    assert lines(tmp_path, task, "train800val200") == [("a b.png", 0), ("c,d.png", 1)]
    assert lines(tmp_path, task, "test") == [("a b.png", 0)]


def test_what_is_given_counts(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png")
    task = task_of(tmp_path, class_names=["b", "a"])
    assert lines(tmp_path, task, "test") == [("test/a/1.png", 1)]
    given = {**DATASET, "num_classes": 7}
    assert with_classes(given, {"root": str(tmp_path)}) is given
    assert with_classes({**DATASET, "num_classes": 2}, {"root": str(tmp_path)})["class_names"] == ["a", "b"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("a.png cat\nb.png dog\n")
    for count, names in ((2, ["cat", "dog"]), (3, [])):
        filled = with_classes({**DATASET, "num_classes": count}, {"root": str(tmp_path / "lists")})
        assert (filled["num_classes"], filled["class_names"]) == (count, names)
    official = {**DATASET, "group": "natural"}
    assert with_classes(official, {"root": str(tmp_path)}) is official


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "one", "train/a/1.png", "train/b/1.png", "test/c/1.png")
    with pytest.raises(DataError, match=r"'c' is no class; allowed: a, b"):
        lines(tmp_path / "one", task_of(tmp_path / "one"), "test")
    with pytest.raises(DataError, match=r"2 class folders in .* for dataset\.num_classes=3; leave it out"):
        lines(tmp_path / "one", task_of(tmp_path / "one", num_classes=3), "test")
    put(tmp_path / "two", "only/1.png")
    with pytest.raises(ConfigError, match=r"holds neither two class folders nor list files"):
        with_classes(DATASET, {"root": str(tmp_path / "two")})
    for data in ({"root": None}, {}):
        with pytest.raises(ConfigError, match=r"dataset\.num_classes must be given: add dataset\.num_classes=VALUE"):
            with_classes(DATASET, data)
    (tmp_path / "train.txt").write_text("a.png cat\nb.png 1\n")
    with pytest.raises(DataError, match="labels are numbers in some lines and names in others"):
        task_of(tmp_path)
    with pytest.raises(DataError, match=r"train\.txt, line 1: 'cat' is no class \(did you mean 'cats'\?\)"):
        read_list(tmp_path / "train.txt", 2, ["cats", "dogs"])
    (tmp_path / "train.csv").write_text("path,label\na.png\n")
    with pytest.raises(DataError, match=r"train\.csv, line 2: 1 columns"):
        read_list(tmp_path / "train.csv", 2, ["cats", "dogs"])


def test_class_folders_say_which_test_images_are_in_the_training_set(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png")
    (tmp_path / "test/cat/again.png").write_bytes((tmp_path / "train/cat/a.png").read_bytes())
    task = task_of(tmp_path)
    assert "test images in train: 1" in FolderSource(tmp_path).labels(task)


@each("label", ["9" * 5000, "99999999"])
def test_a_huge_label_makes_no_huge_classifier(label: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(f"a.png 0\nb.png {label}\n")
    with pytest.raises(DataError, match=r"a label is 9+, and there are 2 labels"):
        with_classes({"group": "own", "num_classes": None, "folders": ["."]}, {"root": str(tmp_path)})


def test_a_wrong_root_is_named_and_not_the_number_of_classes(tmp_path: Path) -> None:
    task = {"group": "own", "num_classes": None, "class_names": [], "folders": ["."], "name": "folder"}
    for root, said in (
        ("nowhere", "is no folder; give one of class folders"),
        ("", "holds neither two class folders nor"),
    ):
        with pytest.raises(ConfigError, match=f"data.root=.*{said}"):
            with_classes(task, {"root": str(tmp_path / root)})

"""Images with several labels: tables of 0 and 1, of names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headwise.data.found import with_classes
from headwise.data.stores.folder import FolderSource
from headwise.data.tasks import VTABTask
from headwise.data.vtab import VTABDataModule
from headwise.errors import ConfigError, DataError
from headwise.protocol.plan import PIXELS

DATASET = {"group": "own", "name": "folder", "num_classes": None, "folders": ["."], "class_names": []}


def task_of(root: Path, **fields: Any) -> VTABTask:
    return VTABTask(**with_classes({**DATASET, "multi_label": True, **fields}, {"root": str(root)}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index} a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("train.csv", "path,dog,big cat\n0 a.png,1,1\n1 a.png,0,0\n2 a.png,0,1\n"),
        ("train.tsv", "dog\timage\tbig cat\n1\t0 a.png\t1\n0\t1 a.png\t0\n0\t2 a.png\t1\n"),
        ("train.csv", "path,labels\n0 a.png,dog|big cat\n1 a.png,\n2 a.png,big cat\n"),
        ("train.csv", "0 a.png,big cat; dog\n1 a.png,\n2 a.png,big cat\n"),
        ("train.csv", "path,tags\n0 a.png,1|0\n1 a.png,\n2 a.png,1\n"),
    ],
)
def test_one_table_in_many_forms(root: Path, name: str, train: str) -> None:
    (root / name).write_text(train)
    numbers = "1|0" in train
    (root / "test.csv").write_text(f"path,labels\n3 a.png,{'0' if numbers else 'dog'}\n")
    task = task_of(root)
    order = [0, 1] if numbers or task.class_names == ("dog", "big cat") else [1, 0]
    pixels = FolderSource(root).load(task, "train800val200", 16)
    assert pixels.labels[:, order].tolist() == [[1, 1], [0, 0], [0, 1]]
    assert FolderSource(root).load(task, "test", 16).labels[:, order].tolist() == [[1, 0]]
    assert "multi-label (mAP)" in FolderSource(root).labels(task)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("path,dog,cat\n0 a.png,1,2\n", "", r"train\.csv, line 2: column 'cat' holds '2'"),
        ("path,dog,cat\n0 a.png,1\n", "", r"train\.csv, line 2: 2 columns"),
        ("path,dog,dog\n0 a.png,1,1\n", "", r"line 1: the first line names 'dog' twice"),
        (
            "path,dog,cat\n0 a.png,1,0\n",
            "path,dog\n1 a.png,1\n",
            r"test\.csv, line 1: there is no column for class 'cat'",
        ),
        ("path,dog,cat\n0 a.png,1,0\n", "path,dog,cats\n1 a.png,1,1\n", r"column 'cats' is no class .*'cat'"),
        ("path,dog,cat\n0 a.png,1,0\n", "path,labels\n1 a.png,dgo\n", r"test\.csv, line 2: 'dgo' is no class .*'dog'"),
        ("path,labels\n0 a.png,0|1|1\n", "", r"train\.csv, line 2: labels are .* each once"),
        ("0 a.png,0|1\n1 a.png,1|0\n", "2 a.png,0|1\n", r"every image has both classes \(.*train\.csv, line 1\)"),
        ("path,labels\n0 a.png,dog|1\n", "", r"some classes are numbers and others names"),
        ("path,dog,cat\n0 a.png,1,0\n0 a.png,0,1\n", "path,dog,cat\n1 a.png,1,1\n", r"1 image with two sets of labels"),
    ],
)
def test_what_contradicts_itself_is_refused(root: Path, train: str, test: str, said: str) -> None:
    (root / "train.csv").write_text(train)
    if test:
        (root / "test.csv").write_text(test)
    with pytest.raises(DataError, match=said):
        task = task_of(root)
        FolderSource(root).load(task, "train800val200", 16)
        FolderSource(root).load(task, "test", 16)


def test_only_tables_of_ones_own_have_several_labels(root: Path) -> None:
    with pytest.raises(ConfigError, match="only a user's own images"):
        VTABTask(name="a", group="natural", num_classes=2, folders=("a",), multi_label=True)
    (root / "train.txt").write_text("0 a.png 1\n")
    with pytest.raises(DataError, match=r"come from \.csv, \.tsv or Parquet"):
        task_of(root)
    assert PIXELS["multi_label"] is False, "a task with one label an image keeps its identity"


@pytest.mark.parametrize("train", ["path,dog,cat\n0 a.png,1,0\n", "path,labels\n0 a.png,dog\n"])
def test_names_for_a_number_of_classes_say_what_to_leave_out(root: Path, train: str) -> None:
    (root / "train.csv").write_text(train)
    with pytest.raises(DataError, match=r"'dog' is no class; .*dataset\.num_classes is left out"):
        FolderSource(root).load(task_of(root, num_classes=3), "train800val200", 16)


@pytest.mark.parametrize("select", [None, "val200"])
def test_images_to_be_tested_need_a_label_before_training(root: Path, select: str | None) -> None:
    (root / "train.csv").write_text("path,dog,cat\n0 a.png,1,0\n1 a.png,0,1\n")
    for name, labels in (("test", "0,1" if select else "0,0"), ("val", "0,0")):
        (root / f"{name}.csv").write_text(f"path,dog,cat\n{'23'[name == 'val']} a.png,{labels}\n")
    data = VTABDataModule(task_of(root), FolderSource(root), 16, select_split=select)
    with pytest.raises(DataError, match=rf"no image of {select or 'test'} has a label"):
        data.train_batches()

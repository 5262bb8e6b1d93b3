from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_trees import REPO, load_task, write_lines, write_tree
from PIL import Image

from headwise.data.sources import AutoSource, FolderSource, SyntheticSource
from headwise.data.tasks import VTABTask
from headwise.errors import DataError
from made_cases import each


def own_tree(root: Path, **lists: list[str]) -> VTABTask:
    """Images a.png .. e.png beside list files ``<name>.txt``, and their task."""
    root.mkdir()
    for i, name in enumerate("abcde"):
        Image.new("RGB", (100 + i, 120), (i, i, i)).save(root / f"{name}.png")
    for name, rows in lists.items():
        write_lines(root / f"{name}.txt", rows)
    return load_task("own/folder", num_classes=2)


def test_loads_what_the_list_names_in_its_order(tree: Path, toy: VTABTask) -> None:
    pixels = FolderSource(tree).load(toy, "train800val200", 32)
    assert pixels.images.shape == (6, 32, 32, 3) and pixels.images.dtype == np.uint8
    assert pixels.labels.tolist() == [0, 1, 2, 0, 0, 1] and pixels.labels.dtype == np.int64
    assert pixels.keys[0] == "images/train800/0.png"
    assert pixels.provenance["source"] == "folder" and pixels.provenance["resize"] == "pil_bicubic"
    expected = Image.open(tree / "toy" / pixels.keys[4]).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels.images[4], np.asarray(expected))


def test_other_folder_names_are_accepted(tree: Path, toy: VTABTask) -> None:
    first = FolderSource(tree).fingerprint(toy)
    (tree / "toy").rename(tree / "other")
    assert FolderSource(tree).fingerprint(toy) == first
    write_tree(tree / "toy", size=(98, 98))
    assert FolderSource(tree).folder(toy) == tree.resolve() / "toy"


@each(
    "name, folder",
    [
        ("cifar100", "cifar"),
        ("cifar100", "cifar100"),
        ("pets", "oxford_pet"),
        ("pets", "oxford_iiit_pet"),
        ("camelyon", "patch_camelyon"),
        ("kitti_dist", "kitti"),
        ("dsprites_loc", "dsprites_location"),
    ],
)
def test_folder_names_of_known_trees(tmp_path: Path, name: str, folder: str) -> None:
    (tmp_path / folder).mkdir()
    assert FolderSource(tmp_path).folder(load_task(name)).name == folder


def test_subset_of_a_list(tree: Path, toy: VTABTask) -> None:
    source = FolderSource(tree)
    part, whole = source.load(toy, "test", 32, limit=3), source.load(toy, "test", 32)
    picked = [whole.keys.index(key) for key in part.keys]
    assert len(picked) == 3 and picked == sorted(picked)
    np.testing.assert_array_equal(part.images, whole.images[picked])
    np.testing.assert_array_equal(part.labels, whole.labels[picked])


def test_fingerprint_is_of_content_not_of_place(tree: Path, toy: VTABTask, tmp_path: Path) -> None:
    first = FolderSource(tree).fingerprint(toy)
    shutil.copytree(tree, tmp_path / "moved")
    assert FolderSource(tmp_path / "moved").fingerprint(toy) == first
    assert FolderSource(tree).fingerprint(toy, ("train800", "val200")) != first
    listing = (tree / "toy" / "test.txt").read_text()
    (tree / "toy" / "test.txt").write_text(listing.replace("4.png 1", "4.png 2"))
    assert FolderSource(tree).fingerprint(toy) != first
    (tree / "toy" / "test.txt").write_text(listing.replace("\n", "\r\n"))
    assert FolderSource(tree).fingerprint(toy) == first
    Image.new("RGB", (120, 100)).save(tree / "toy" / "images" / "test" / "4.png")
    assert FolderSource(tree).fingerprint(toy) != first


def test_labels_of_a_tree(tree: Path, toy: VTABTask) -> None:
    source = FolderSource(tree)
    assert source.labels(toy) == ["unofficial split"]
    write_lines(tree / "toy" / "val200.txt", ["images/val200/0.png 1", "images/val200/1.png 1"])
    assert source.labels(toy) == ["unofficial split", "inconsistent train lists"]


def test_an_official_split_has_no_label(tmp_path: Path, toy: VTABTask) -> None:
    write_tree(tmp_path / "toy", {"train800": 800, "val200": 200, "test": 5}, size=(2, 2))
    assert FolderSource(tmp_path).labels(toy) == []
    assert FolderSource(tmp_path).labels(replace(toy, num_test=6)) == ["unofficial split"]


def test_lossy_copies(tree: Path, toy: VTABTask) -> None:
    lossless = replace(toy, encoding="lossless")
    assert "lossy" not in FolderSource(tree).labels(lossless)
    Image.new("RGB", (9, 9)).save(tree / "toy" / "images" / "test" / "4.png", "JPEG")
    assert "lossy" in FolderSource(tree).labels(lossless), "the content decides, not the name"
    assert "lossy" not in FolderSource(tree).labels(toy)
    Image.new("RGB", (9, 9)).save(tree / "toy" / "images" / "test" / "000000.jpg")
    write_lines(tree / "toy" / "test.txt", ["images/test/000000.jpg 0"])
    assert "lossy" in FolderSource(tree).labels(toy), "numbered by an exporter, hence encoded again"


def test_missing_root_folder_and_list(tree: Path, toy: VTABTask) -> None:
    with pytest.raises(DataError, match=r"data.root='/nowhere' is not a folder"):
        FolderSource("/nowhere")
    source = FolderSource(tree)
    with pytest.raises(DataError, match=r"no folder for task 'x' in .*: looked for tyo, b \(did you mean 'toy'\?\)"):
        source.folder(replace(toy, name="x", folders=("tyo", "b")))
    with pytest.raises(DataError, match=r"folder '\.\./toy' leaves the data root"):
        source.folder(replace(toy, folders=("../toy",)))
    with pytest.raises(DataError, match=rf"the root itself holds list files: did you mean '{tree}'\?"):
        FolderSource(tree / "toy").folder(toy)
    (tree / "toy" / "train800.txt").unlink()
    with pytest.raises(DataError, match=r"task 'toy': train800 needs train800.txt in .*toy', which is not there"):
        source.load(toy, "train800", 32)


def test_errors_name_list_file_and_line(tree: Path, toy: VTABTask) -> None:
    source, image = FolderSource(tree), tree / "toy" / "images" / "test" / "3.png"
    image.write_bytes(image.read_bytes()[:500])
    with pytest.raises(DataError, match=r"toy/test.txt, line 4: image .*3.png' cannot be decoded"):
        source.load(toy, "test", 32)
    image.unlink()
    for call in (source.fingerprint, source.labels, lambda task: source.load(task, "test", 32)):
        with pytest.raises(DataError, match=r"toy/test.txt, line 4: image 'images/test/3.png' not found"):
            call(toy)


def test_own_images(tmp_path: Path) -> None:
    task = own_tree(tmp_path / "own", train=["a.png 0", "b.png 1", "c.png 0"], test=["d.png 1", "e.png 0"])
    source = FolderSource(tmp_path / "own")
    assert source.labels(task) == ["own data"]
    assert source.load(task, "train800val200", 32).keys == ("a.png", "b.png", "c.png")
    assert source.load(task, "test", 32).labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"val200 needs val200.txt or val.txt or val.csv or val.tsv in .*own'"):
        source.load(task, "train800", 32)


@each("train", [["a.png 0", "b.png 1"], ["a.png 0", "b.png 1", "c.png 0"]])
def test_own_search_never_trains_on_its_validation_images(tmp_path: Path, train: list[str]) -> None:
    task = own_tree(tmp_path / "own", train=train, val=["c.png 0"], test=["d.png 1"])
    source = FolderSource(tmp_path / "own")
    assert source.load(task, "train800", 32).keys == ("a.png", "b.png")
    assert source.load(task, "val200", 32).keys == ("c.png",)
    assert source.count(task, "train800") == 2


def test_synthetic_source() -> None:
    source, task = SyntheticSource(), load_task("dsprites_ori")
    assert (
        source.has(task) and not source.has(load_task("dtd")) and not source.has(load_task("own/folder", num_classes=2))
    )
    assert source.labels(task) == ["synthetic"]
    prints = {
        source.fingerprint(task),
        source.fingerprint(task, ("train800", "val200")),
        source.fingerprint(load_task("dsprites_loc")),
        source.fingerprint(replace(task, splits={**task.splits, "val": "train[90%:]"})),
    }
    assert len(prints) == 4 and source.fingerprint(task) in prints
    with pytest.raises(DataError, match="no generator for task 'folder'; use data=folder"):
        source.load(load_task("own/folder", num_classes=2), "test", 224)


def test_auto_takes_the_tree_then_the_generator(tree: Path, toy: VTABTask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    auto, sprites = AutoSource(tree), load_task("dsprites_loc")
    assert auto.resolve(toy) is auto.folder and auto.fingerprint(toy) == FolderSource(tree).fingerprint(toy)
    assert "data=auto: task 'toy' is read from" in caplog.text
    assert auto.load(toy, "test", 32).provenance["source"] == "folder" and auto.count(toy, "test") == 5
    drawn = AutoSource()
    assert drawn.labels(sprites) == ["synthetic"] and drawn.resolve(sprites) is drawn.synthetic
    with pytest.raises(DataError, match=r"no images for task 'dtd': give a list-file tree with data.root=PATH .*'dtd'"):
        AutoSource().load(load_task("dtd"), "test", 224)


@pytest.mark.parametrize("name", ["dsprites_loc", "svhn", "dtd", "own/folder"])
def test_an_explicit_root_never_falls_back_to_drawings(tree: Path, name: str) -> None:
    """Whether or not the task could be drawn; the error names what was looked for, where, and what is there."""
    task = load_task(name, **({"num_classes": 2, "folders": ["svhm"]} if name == "own/folder" else {}))
    ending = "; without data.root, images are drawn" if name in ("dsprites_loc", "svhn") else ""
    there = f"{'.*' if name == 'svhn' else ''}; there are the folders toy{ending}$"
    with pytest.raises(
        DataError, match=rf"no folder for task '{task.name}' in .*root'.*looked for {task.folders[0]}.*{there}"
    ):
        AutoSource(tree).fingerprint(task)
    for number in range(30):
        (tree / f"more{number:02}").mkdir()
    with pytest.raises(DataError, match=r"there are the folders more00, .*more19, \.\.\."):
        AutoSource(tree).load(task, "test", 32)
    (tree.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no folder in it"):
        AutoSource(tree.parent / "empty").labels(task)


def test_a_damaged_tree_is_not_replaced_by_drawings(tmp_path: Path) -> None:
    (tmp_path / "dsprites_loc").mkdir()
    with pytest.raises(DataError, match=r"train800val200 needs train800val200.txt"):
        AutoSource(tmp_path).fingerprint(load_task("dsprites_loc"))


def test_sources_import_neither_torch_nor_tensorflow() -> None:
    script = (
        "import sys; import headwise.data.sources as s, headwise.data.tasks as t;"
        "task = t.VTABTask(name='x', group='structured', num_classes=16, folders=['x'], num_test=1, builder='dsprites',"
        " splits={'train': 'train', 'val': 'train', 'test': 'train'}, label_rule='dsprites_loc');"
        "s.AutoSource().fingerprint(task); s.SyntheticSource().load(task, 'val200', 224);"
        "print(sorted({'torch', 'lightning', 'tensorflow', 'tensorflow_datasets', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "[]"


@pytest.mark.data
def test_real_eurosat(shared_tree: Path) -> None:
    source, task = FolderSource(shared_tree), load_task("eurosat")
    assert source.labels(task) == ["unofficial split"]
    for split in ("train800val200", "test"):
        pixels = source.load(task, split, 224)
        assert pixels.images.shape == (1000, 64, 64, 3) and pixels.provenance["resize"] == "native"
        assert np.bincount(pixels.labels).tolist() == [100] * 10
        assert all(f"/{task.class_names[label]}_" in key for key, label in zip(pixels.keys, pixels.labels, strict=True))
    first = source.fingerprint(task)
    start = time.perf_counter()
    assert source.fingerprint(task) == first
    assert time.perf_counter() - start < 1, "0.1 s on an idle machine"


@pytest.mark.data
def test_real_caltech(shared_tree: Path) -> None:
    pixels = FolderSource(shared_tree).load(load_task("caltech101"), "val200", 56)
    assert pixels.images.shape == (200, 56, 56, 3) and pixels.provenance["resize"] == "pil_bicubic"
    assert pixels.images.std() > 30

"""A folder of thirty photographs as people have them: every oddity is read, or its file is named."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headwise.data import notices
from headwise.data.found import with_classes
from headwise.data.stores.classfolders import layout
from headwise.data.stores.folder import FolderSource
from headwise.data.tasks import VTABTask
from headwise.errors import DataError

DATASET = {"group": "own", "name": "folder", "num_classes": None, "folders": ["."], "class_names": []}
SPLITS = ("train800val200", "test")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_said", set())


def photographs(root: Path) -> tuple[Path, VTABTask]:
    """Ten images of each of three classes, of which nine are odd."""
    for name in ("cat", "great dog", "K\u00fche"):
        (root / name).mkdir(parents=True)
        for index in range(10):
            _colour().save(root / name / f"{index}.jpg")
    colour = _colour()
    tilted = colour.getexif()
    tilted[0x0112] = 6
    palette = Image.fromarray(RNG.integers(0, 256, (120, 130, 4), dtype=np.uint8)).quantize(16)
    odd = {
        "cat/0.jpg": ("my holiday 1.jpg", colour, {}),
        "cat/1.jpg": ("\u732b \u00e9t\u00e9.png", colour, {}),
        "cat/2.jpg": ("DSC_0001.JPG", colour, {"format": "JPEG"}),
        "cat/3.jpg": ("tilted.jpg", colour, {"exif": tilted}),
        "great dog/0.jpg": ("grey.png", colour.convert("L"), {}),
        "great dog/1.jpg": ("deep.png", Image.fromarray(RNG.integers(0, 1 << 16, (120, 130), dtype=np.uint16)), {}),
        "great dog/2.jpg": ("cmyk.jpg", colour.convert("CMYK"), {}),
        "great dog/3.jpg": ("palette.png", palette, {"transparency": 0}),
        "K\u00fche/0.jpg": ("alpha.webp", colour.convert("RGBA"), {}),
    }
    for old, (new, image, options) in odd.items():
        (root / old).unlink()
        image.save((root / old).with_name(new), **options)
    return root, VTABTask(**with_classes(DATASET, {"root": str(root)}))


def _colour() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (120, 130, 3), dtype=np.uint8))


def test_thirty_odd_photographs_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, task = photographs(tmp_path)
    source = FolderSource(root)
    with caplog.at_level(logging.WARNING):
        train, test = (source.load(task, split, 32) for split in SPLITS)
    assert train.images.shape == (24, 32, 32, 3) and test.images.shape == (6, 32, 32, 3)
    assert task.class_names == ("K\u00fche", "cat", "great dog") and np.bincount(test.labels).tolist() == [2, 2, 2]
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "only 6 test images: an accuracy has a standard error of up to 20.4 points" in said
    assert "1 image turned upright by EXIF" in said and "1 image of more than 8 bits" in said


def test_a_broken_one_is_named_with_a_way_out(tmp_path: Path) -> None:
    root, task = photographs(tmp_path)
    broken = root / "cat" / "7.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    said = rf"image '{broken}' cannot be decoded .*; mend the file or remove it$"
    with pytest.raises(DataError, match=said):
        for split in SPLITS:
            FolderSource(root).load(task, split, 32)


def test_a_run_walks_through_its_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, task = photographs(tmp_path)
    walks: list[Path] = []
    monkeypatch.setattr("headwise.data.stores.folder.layout", lambda folder: walks.append(folder) or layout(folder))
    source = FolderSource(root)
    for split in SPLITS:
        source.load(task, split, 32)
    source.fingerprint(task)
    source.labels(task)
    assert len(walks) == 1


def test_a_part_may_be_a_link(tmp_path: Path) -> None:
    photographs(tmp_path / "far")
    (tmp_path / "near" / "train" / "cat").mkdir(parents=True)
    _colour().save(tmp_path / "near" / "train" / "cat" / "1.png")
    (tmp_path / "near" / "test").symlink_to(tmp_path / "far")
    parts = layout(tmp_path / "near")
    assert set(parts) == {"train", "test"} and len(parts["test"]) == 3

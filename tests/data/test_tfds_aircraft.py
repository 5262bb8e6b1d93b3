"""FGVC-Aircraft: the unpacked archive through our own builder, then through the ordinary reader."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from made_trees import load_task, write_lines
from PIL import Image

from headwise.data.preparing.tfds_aircraft import prepare
from headwise.data.sources import TFDSSource
from headwise.errors import DataError

VARIANTS = ["F/A-18", *(f"variant {i}" for i in range(99))]
COUNTS = {"train": 3, "val": 1, "test": 1}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The archive's layout with images whose red value is their class."""
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    write_lines(data / "variants.txt", VARIANTS)
    number = 0
    for part, count in COUNTS.items():
        rows = []
        for label, variant in enumerate(VARIANTS * count):
            number += 1
            Image.new("RGB", (9, 8), (2 * (label % 100), 0, 0)).save(data / "images" / f"{number:07d}.jpg", quality=100)
            rows.append(f"{number:07d} {variant}")
        write_lines(data / f"images_variant_{part}.txt", rows)
    return tmp_path


def test_written_and_read_back(archive: Path) -> None:
    folder = prepare(archive, archive / "tfds")
    assert folder == archive / "tfds" / "fgvc_aircraft" / "1.0.0"
    source, task = TFDSSource(archive / "tfds"), load_task("fewshot/aircraft", shots=2, draw=1)
    train, test = source.load(task, "train800val200", 8), source.load(task, "test", 8)
    assert np.bincount(train.labels).tolist() == [2] * 100 and sorted(test.labels.tolist()) == list(range(100))
    for pixels in (train, test):
        assert np.abs(pixels.images[:, 4, 4, 0].astype(int) - 2 * pixels.labels).max() <= 2
    assert source.labels(task) == ["own draw"] and source.count(task, "val200") == 100
    other = load_task("fewshot/aircraft", shots=2, draw=0)
    assert source.fingerprint(task) != source.fingerprint(other)
    assert source.fingerprint(task, ("test",)) == source.fingerprint(other, ("test",))
    assert "tensorflow" not in sys.modules


def test_too_few_images_for_the_shots(archive: Path) -> None:
    prepare(archive, archive / "tfds")
    with pytest.raises(DataError, match="shots=4, but class 0 has 3 images"):
        TFDSSource(archive / "tfds").load(load_task("fewshot/aircraft", shots=4, draw=0), "train800", 8)


def test_a_missing_archive_image_or_variant(archive: Path) -> None:
    with pytest.raises(DataError, match=r"no fgvc-aircraft-2013b/data/variants.txt in .*; unpack"):
        prepare(archive / "elsewhere", archive / "tfds")
    data = archive / "fgvc-aircraft-2013b" / "data"
    (data / "images" / "0000001.jpg").unlink()
    with pytest.raises(DataError, match=r"images_variant_train.txt names .*0000001.jpg, which is not there"):
        prepare(archive, archive / "tfds")
    write_lines(data / "images_variant_train.txt", ["0000002 Zeppelin"])
    with pytest.raises(DataError, match="'0000002 Zeppelin' is no 'number variant'"):
        prepare(archive, archive / "tfds")
    assert not TFDSSource(archive / "tfds").has(load_task("fewshot/aircraft", shots=1, draw=0))

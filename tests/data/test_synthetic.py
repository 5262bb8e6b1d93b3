"""Drawn data as a whole: every task loads, slow sets are drawn once as real records, lossy copies say so."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from made_trees import REPO, load_task

from headwise.data.sources import AutoSource, SyntheticSource, TFDSSource
from headwise.data.stores.prepared import MARKER
from headwise.data.synthetic import drawn, records
from headwise.data.synthetic.standin import StandIn
from headwise.errors import DataError
from made_cases import each

CONF = REPO / "conf" / "dataset"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml")) + [
    f"fewshot/{file.stem}" for file in sorted((CONF / "fewshot").glob("*.yaml"))
]
SLOW = ("clevr", "smallnorb", "svhn_cropped")
LOOK_ALIKES = ["clevr_count", "clevr_dist", "dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele", "svhn"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images of the sets that are drawn as a whole."""
    for name in SLOW:
        generator = importlib.import_module(f"headwise.data.synthetic.{name}")
        monkeypatch.setattr(generator, "SIZES", dict.fromkeys(generator.SIZES, 30))


def load(name: str, **changes: object) -> object:
    return load_task(name, **({"shots": 1, "draw": 0} if "/" in name else {}), **changes)


@each("name", NAMES)
def test_every_task_can_be_drawn(name: str) -> None:
    task, source = load(name), SyntheticSource()
    pixels = source.load(task, "test", 40, limit=8)  # type: ignore[arg-type]
    assert len(pixels.images) == len(pixels.labels) == 8 and pixels.images.dtype == np.uint8
    assert pixels.images.shape[-1] == task.channels  # type: ignore[attr-defined]
    assert pixels.labels.min() >= 0 and pixels.labels.max() < task.num_classes  # type: ignore[attr-defined]
    assert source.labels(task) == ["synthetic"] and pixels.provenance["source"].startswith("synthetic:")  # type: ignore[arg-type]


def test_there_are_24() -> None:
    assert len(NAMES) == 24


def test_look_alikes_and_stand_ins() -> None:
    source = SyntheticSource()
    assert [name for name in NAMES if source.has(load(name))] == LOOK_ALIKES  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no generator for task 'folder'; use data=folder data\.root=PATH"):
        source.load(load_task("own/folder", num_classes=2), "test", 8)


def test_stand_ins_are_for_those_who_ask() -> None:
    with pytest.raises(DataError, match="no images for task 'cifar100'"):
        AutoSource().load(load_task("cifar100"), "test", 8)


def test_slow_sets_are_drawn_once_as_real_records(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = importlib.import_module("headwise.data.synthetic.svhn_cropped")
    task, source = load_task("svhn"), SyntheticSource()
    first = source.load(task, "test", 40)
    folder = cache / "synthetic" / "svhn_cropped@1" / "svhn_cropped" / "3.1.0"
    assert (folder / MARKER).is_file() and list(folder.glob("*.array_record*"))
    indices = np.array([int(key) for key in first.keys])
    np.testing.assert_array_equal(first.images, generator.render("test", indices))
    assert first.labels.tolist() == [row["label"] for row in generator.examples("test", indices)]
    assert TFDSSource(folder.parents[1]).labels(task) == ["synthetic"], "whoever reads them is told"
    monkeypatch.setattr(generator, "render", None)
    again = SyntheticSource().load(task, "test", 40)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.keys == again.keys and first.provenance["source"] == "synthetic:svhn_cropped@1"


@pytest.mark.parametrize("name", ["dsprites_loc", "dsprites_ori"])
def test_quick_sets_can_be_records_too(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = importlib.import_module("headwise.data.synthetic.dsprites")
    monkeypatch.setattr(generator, "SIZES", {"train": 300})
    monkeypatch.setattr(drawn, "_order", drawn._order.__wrapped__)
    task, source = load_task(name), SyntheticSource(records=True)
    read, direct = source.load(task, "test", 40), SyntheticSource().load(task, "test", 40)
    np.testing.assert_array_equal(read.images, direct.images)
    assert read.labels.tolist() == direct.labels.tolist() and read.keys == direct.keys
    assert source.fingerprint(task) == SyntheticSource().fingerprint(task)
    assert list((cache / "synthetic" / "dsprites@1" / "dsprites").rglob("*.array_record*"))


@each("name", ["clevr_count", "smallnorb_azi", "svhn"])
def test_a_few_images_are_those_of_the_prepared_set(name: str) -> None:
    task = load_task(name)
    direct, read = (SyntheticSource(records=records).load(task, "test", 40, limit=8) for records in (False, True))
    np.testing.assert_array_equal(direct.images, read.images)
    assert direct.labels.tolist() == read.labels.tolist() and direct.keys == read.keys


def test_an_interrupted_drawing_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = importlib.import_module("headwise.data.synthetic.svhn_cropped")
    task, render = load_task("svhn"), generator.render

    def stop(split: str, indices: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(generator, "render", stop)
    with pytest.raises(KeyboardInterrupt):
        SyntheticSource().load(task, "test", 40)
    assert not list((cache / "synthetic" / "svhn_cropped@1").glob("**/*.json"))
    monkeypatch.setattr(generator, "render", render)
    assert len(SyntheticSource().load(task, "test", 40).labels) == 30


@each("name", LOOK_ALIKES[:2] + LOOK_ALIKES[4:])
def test_records_carry_the_labels_of_the_generator(name: str) -> None:
    """What the label rules make of deserialised features is what they make of the drawn scene."""
    task, source = load_task(name), SyntheticSource()
    generator = importlib.import_module(f"headwise.data.synthetic.{task.builder}")
    read = source.load(task, "test", 40)
    assert read.labels.tolist() == source.all_labels(task, "test").tolist()
    assert read.keys == tuple(
        generator.key("validation" if "clevr" in name else "test", i) for i in _order(source, task)
    )


def _order(source: SyntheticSource, task: object) -> list[int]:
    return [int(i) for _, indices in source._members(task, "test", np.arange(99)) for i in indices]  # type: ignore[arg-type]


@each("name", ["dsprites_loc", "svhn", "eurosat"])
def test_lossy_copies(name: str) -> None:
    task = load_task(name)
    exact, lossy = (SyntheticSource(lossy=lossy) for lossy in (False, True))
    a, b = (source.load(task, "test", 40, limit=8) for source in (exact, lossy))
    assert a.keys == b.keys and a.labels.tolist() == b.labels.tolist()
    difference = np.abs(a.images.astype(int) - b.images)
    assert 0 < difference.mean() < 12 and a.images.shape == b.images.shape
    assert lossy.labels(task) == ["synthetic", "lossy"] and exact.fingerprint(task) != lossy.fingerprint(task)


def test_jpeg_is_that_of_the_list_file_trees() -> None:
    data = records.encoded(np.zeros((16, 16, 3), dtype=np.uint8), "JPEG")
    assert data.startswith(b"\xff\xd8\xff")
    empty = np.zeros((0, 4, 4, 3), dtype=np.uint8)
    assert records.through_jpeg(empty) is empty


def test_stand_ins_are_balanced_and_learnable() -> None:
    """Class means of drawn pixels tell most classes of new images: a stand-in is neither noise nor trivial."""
    task = load_task("eurosat")
    source = SyntheticSource()
    train, test = source.load(task, "train800val200", 40), source.load(task, "test", 40, limit=100)
    assert np.bincount(train.labels).min() > 70

    def colour(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1, 3).mean(axis=1)

    means = np.stack([colour(train.images[train.labels == label]).mean(axis=0) for label in range(10)])
    nearest = np.linalg.norm(colour(test.images)[:, None] - means, axis=2).argmin(axis=1)
    assert (nearest == test.labels).mean() > 0.5
    assert not set(train.keys) & set(test.keys)


def test_stand_ins_repeat() -> None:
    drawn = StandIn(load_task("dtd"))
    indices = np.array([3, 99])
    np.testing.assert_array_equal(drawn.render("train", indices), StandIn(load_task("dtd")).render("train", indices))
    assert drawn.examples("train", indices) == [{"label": 3}, {"label": 5}]
    assert not np.array_equal(drawn.render("train", indices), drawn.render("test", indices))

"""Few-shot sets: draws, published lists, and where the images come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_trees import load_task, write_lines
from PIL import Image

from headwise.data.sources import FolderSource, Pixels, SyntheticSource, TFDSSource
from headwise.data.splits import subset
from headwise.data.stores import fewshot
from headwise.data.synthetic import records
from headwise.data.synthetic.standin import StandIn
from headwise.data.tasks import DRAWS, SHOTS, VTABTask
from headwise.errors import ConfigError, DataError
from made_cases import each

SETS = ("food101", "cars196", "flowers102", "aircraft", "pets")
SOURCE = SyntheticSource()


def few(name: str, shots: int = 4, draw: int = 0) -> VTABTask:
    return load_task(f"fewshot/{name}", shots=shots, draw=draw)


def toy(shots: int = 2, draw: int = 0) -> VTABTask:
    splits = {"train": "train", "val": "validation", "test": "test"}
    return replace(few("pets", shots, draw), num_classes=3, num_test=6, class_names=(), folders=("toy",), splits=splits)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images of three classes below ``images``, lists below ``annotations``."""
    folder = tmp_path / "toy"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for i in range(30):
        Image.new("RGB", (9 + i, 12), (8 * i, 0, 0)).save(folder / "images" / f"{i}.png")
    write_lines(folder / "annotations" / "train_meta.list", [f"{i}.png {i % 3}" for i in range(18)])
    write_lines(folder / "annotations" / "val_meta.list", [f"{i}.png {i % 3}" for i in range(18, 24)])
    write_lines(folder / "annotations" / "test_meta.list", [f"{i}.png {i % 3}" for i in range(24, 30)])
    return tmp_path


@each("name", SETS)
@each("shots", SHOTS)
def test_a_draw_has_exactly_k_images_per_class(name: str, shots: int) -> None:
    task = few(name, shots)
    parts = fewshot.slices(task, "train800")
    labels = np.concatenate([SOURCE.all_labels(part, "test") for part in parts])
    chosen = fewshot.draw(task, labels)
    assert np.bincount(labels[chosen], minlength=task.num_classes).tolist() == [shots] * task.num_classes
    assert (
        len(set(chosen.tolist())) == len(chosen) == SOURCE.count(task, "train800val200") and (np.diff(chosen) > 0).all()
    )


def test_draws_are_fixed_and_independent() -> None:
    labels = np.arange(3000) % 37
    drawn = {(k, d): set(fewshot.draw(few("pets", k, d), labels).tolist()) for k in (8, 16) for d in DRAWS}
    assert drawn == {(k, d): set(fewshot.draw(few("pets", k, d), labels).tolist()) for k in (8, 16) for d in DRAWS}
    assert len({tuple(sorted(members)) for members in drawn.values()}) == 6
    assert len(drawn[8, 0] & drawn[16, 0]) < 100, "8 shots do not lie within 16 shots"
    with pytest.raises(DataError, match=r"'fewshot_pets': shots=16, but class 0 has 10 images"):
        fewshot.draw(few("pets", 16), np.arange(370) % 37)


@each("name", SETS)
def test_training_and_test_images_are_apart(name: str) -> None:
    task = few(name)
    ranges: dict[str, list[tuple[str, int, int]]] = {}
    for split in ("train800", "val200", "test"):
        sizes = {"train": 4000, "validation": 4000, "test": 4000}
        ranges[split] = [fewshot_range(part, sizes) for part in fewshot.slices(task, split)]
    for upstream in {name for runs in ranges.values() for name, _, _ in runs}:
        runs = sorted((first, last) for r in ranges.values() for name, first, last in r if name == upstream)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(runs)), (name, upstream)


def fewshot_range(part: VTABTask, sizes: dict[str, int]) -> tuple[str, int, int]:
    from headwise.data.splits import split_ranges

    ((upstream, first, last),) = split_ranges(part, "test", sizes)
    return upstream, first, last


@each("name", SETS)
def test_each_set_loads(name: str) -> None:
    task = few(name, shots=1, draw=2)
    train, test = SOURCE.load(task, "train800val200", 32, limit=8), SOURCE.load(task, "test", 32, limit=8)
    assert train.images.shape == test.images.shape == (8, 64, 64, 3)
    assert test.labels.max() < task.num_classes and SOURCE.labels(task) == ["synthetic"]
    assert SOURCE.count(task, "train800") == task.num_classes == task.official_count("train800")


def test_fingerprints_tell_draws_apart() -> None:
    prints = {SOURCE.fingerprint(few("pets", k, d)) for k in (1, 2) for d in DRAWS}
    assert len(prints) == 6
    both = {SOURCE.fingerprint(few("pets", 1, d), ("test",)) for d in DRAWS}
    assert len(both) == 1, "the test images are the same"


def test_fingerprints_are_those_of_the_kept_records() -> None:
    assert SOURCE.fingerprint(few("pets", 2, 1))[:16] == "79f4287efe35b790"
    assert SOURCE.fingerprint(few("flowers102", 2, 1), ("train800", "val200"))[:16] == "ce8170c26d72f418"


@fewshot.drawing_few_shots("fingerprint", "labels", "count", "load")
class Numbers:
    """A source of one's own that reads slices and knows nothing of shots: image i of a slice is i, its class i % 3."""

    def count(self, task: VTABTask, split: str) -> int:
        assert task.shots is None
        return 30

    def all_labels(self, task: VTABTask, split: str) -> np.ndarray:
        return np.arange(30) % 3

    def chunks(self, task: VTABTask, split: str, size: int, resize: str, positions: np.ndarray) -> Iterator[Pixels]:
        images = np.broadcast_to(positions[:, None, None, None], (len(positions), 1, 1, 3)).astype(np.uint8)
        keys = tuple(f"{task.splits['test']}/{i}" for i in positions)
        yield Pixels(images, positions % 3, keys, {"resize": "native"})

    def load(self, task: VTABTask, split: str, size: int, resize: str = "", limit: int | None = None) -> Pixels:
        return next(self.chunks(task, split, size, resize, np.arange(30)))

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = ()) -> str:
        return f"{task.splits['test']} {splits}"

    def labels(self, task: VTABTask) -> list[str]:
        return [*self.slice_labels(task), "read"]

    def slice_labels(self, task: VTABTask) -> list[str]:
        return ["numbers"]


def test_few_shots_are_drawn_around_any_source_that_reads_slices() -> None:
    source, several = Numbers(), {"train": "train+validation", "val": "validation", "test": "test"}
    task = replace(toy(), splits=several)
    train = source.load(task, "train800", 1)
    assert np.bincount(train.labels).tolist() == [2, 2, 2] and source.count(task, "train800val200") == 6
    labels = np.concatenate([np.arange(30) % 3] * 2)
    expected = [f"{'validation' if i >= 30 else 'train'}/{i % 30}" for i in fewshot.draw(task, labels)]
    assert list(train.keys) == expected
    assert source.load(task, "test", 1, limit=4).keys == tuple(f"test/{i}" for i in subset(30, 4))
    assert source.labels(task) == ["numbers", "own draw"]
    assert source.fingerprint(task) == fewshot.FewShotSource(source).fingerprint(task)
    plain = replace(task, shots=None, group="own")
    assert source.labels(plain) == ["numbers", "read"] and len(source.load(plain, "test", 1).keys) == 30


def test_sources_do_not_ask_for_shots_themselves() -> None:
    """Whether a set is few-shot is asked where a source is decorated, and where the kind of list files is chosen."""
    folder = Path(fewshot.__file__).parents[1]
    doors = {file.name: file.read_text().count(".shots is") for file in folder.rglob("*.py")}
    assert {name for name, number in doors.items() if number} == {"fewshot.py", "folder.py", "prepare.py", "tasks.py"}
    assert sum(doors[name] for name in ("fewshot.py", "folder.py")) == 2


def test_published_lists_are_used(tree: Path) -> None:
    lists, source = tree / "toy" / "annotations", FolderSource(tree)
    assert source.labels(toy()) == ["own draw"]
    own = source.load(toy(), "train800val200", 8)
    assert np.bincount(own.labels).tolist() == [2, 2, 2]
    assert source.load(toy(draw=1), "train800val200", 8).keys != own.keys
    write_lines(lists / "train_meta.list.num_shot_2.seed_0", [f"{i}.png {i % 3}" for i in (0, 1, 2, 3, 4, 5)])
    pixels = source.load(toy(), "train800val200", 8)
    assert source.labels(toy()) == [] and pixels.keys == tuple(f"images/{i}.png" for i in range(6))
    assert source.labels(toy(draw=1)) == ["own draw"]
    assert source.fingerprint(toy()) != source.fingerprint(toy(draw=1))
    assert source.count(toy(), "test") == 6 and source.count(toy(), "val200") == 6


def test_a_list_may_name_an_image_twice(tree: Path) -> None:
    """The published 1-shot lists of the pets do."""
    rows = [f"{i}.png {i % 3}" for i in (0, 1, 2)]
    write_lines(tree / "toy" / "annotations" / "train_meta.list.num_shot_1.seed_0", rows * 2)
    source = FolderSource(tree)
    assert source.count(toy(shots=1), "train800val200") == 6 and source.labels(toy(shots=1)) == []


def test_missing_lists_are_named(tree: Path) -> None:
    (tree / "toy" / "annotations" / "test_meta.list").unlink()
    with pytest.raises(DataError, match=r"test needs annotations/test_meta.list in .*toy', which is not there"):
        FolderSource(tree).load(toy(), "test", 8)
    (tree / "toy" / "annotations" / "train_meta.list").unlink()
    with pytest.raises(DataError, match=r"train800val200 needs annotations/train_meta.list"):
        FolderSource(tree).load(toy(), "train800val200", 8)


def test_another_test_list_is_unofficial(tree: Path) -> None:
    assert FolderSource(tree).labels(replace(toy(), num_test=7)) == ["own draw", "unofficial split"]


@each(
    "shots, draw, message",
    [
        (None, 0, r"'fewshot_pets': shots must be given; add shots=K to the command, K one of 1, 2, 4, 8, 16"),
        (3, 0, r"shots=3 is not one of the published"),
        (4, 3, r"draw must be one of 0, 1, 2, got 3"),
    ],
)
def test_values_out_of_range(shots: int | None, draw: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task("fewshot/pets", shots=shots, draw=draw)


class Flowers(StandIn):
    """Drawn images under upstream's keys and features."""

    def key(self, split: str, index: int) -> str:
        return f"{split}_{index:05d}.jpg"

    def examples(self, split: str, indices: np.ndarray) -> list[dict[str, object]]:
        rows = super().examples(split, indices)
        return [{**row, "file_name": self.key(split, int(i))} for row, i in zip(rows, indices, strict=True)]


def test_a_pool_of_several_upstream_splits(tmp_path: Path) -> None:
    """Through the real builder: the flowers' training images come from all three of its splits."""
    task = few("flowers102", 2, 1)
    sizes = {"train": 204, "validation": 102, "test": 204}
    records.write(tmp_path, Flowers(task), "oxford_flowers102", task.versions, sizes)
    source = TFDSSource(tmp_path, official=False)
    train, test = source.load(task, "train800", 32), source.load(task, "test", 32)
    assert np.bincount(train.labels).tolist() == [2] * 102
    assert {key.partition("_")[0] for key in train.keys} == {"train", "validation", "test"}
    assert not set(train.keys) & set(test.keys) and source.count(task, "test") == len(test.labels) == 82
    assert source.labels(task) == ["unofficial split", "own draw"]
    assert source.origin(task)["name"] == "oxford_flowers102"
    assert source.fingerprint(task) != source.fingerprint(few("flowers102", 2, 2))

"""The images of a split as one array, in memory or in a file: the same bytes, one copy, whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_trees import load_task, write_lines, write_tree
from PIL import Image

from headwise.data import bulk, notices
from headwise.data.bulk import Bulk
from headwise.data.pixels import Pixels
from headwise.data.sources import AutoSource
from headwise.data.stores import folder
from headwise.data.stores.folder import FolderSource
from headwise.data.tasks import VTABTask
from headwise.data.vtab import VTABDataModule
from headwise.errors import ConfigError, DataError, HeadwiseError
from made_cases import each

SMALL = 1e-6
"""GiB: everything is too much for the memory."""


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "CHUNK", 4)
    monkeypatch.setattr(notices, "_said", set())


def sized(root: Path, sizes: list[int]) -> VTABTask:
    """A task whose test images have these sides, and two training images."""
    (root / "toy").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number, side in enumerate(sizes):
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "toy" / f"{number}.png")
        rows.append(f"{number}.png {number % 3}")
    write_lines(root / "toy" / "test.txt", rows)
    write_lines(root / "toy" / "train800val200.txt", rows[:2])
    return VTABTask(name="toy", group="natural", num_classes=3, folders=["toy"])


SETS = {
    "large": [120] * 10,
    "small": [20] * 10,
    "the network's own size": [32] * 10,
    "small, then of another small size": [20] * 8 + [24, 20],
    "small, then large": [20] * 5 + [120] * 5,
    "large, then small": [120] * 5 + [20] * 5,
    "a last chunk of the network's own size": [20] * 8 + [32, 32],
    "one": [50],
}


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("sizes", SETS.values(), ids=SETS.keys())
def test_in_chunks_as_at_once_in_memory_as_in_a_file(
    tmp_path: Path, sizes: list[int], limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = sized(tmp_path, sizes)
    found = {name: FolderSource(tmp_path, memory).load(task, "test", 32, limit=limit) for name, memory in
             (("memory", 1), ("file", SMALL), ("file again", SMALL))}  # fmt: skip
    monkeypatch.setattr(folder, "CHUNK", 1000)
    expected = FolderSource(tmp_path).load(task, "test", 32, limit=limit)
    for name, pixels in found.items():
        np.testing.assert_array_equal(pixels.images, expected.images, err_msg=name)
        np.testing.assert_array_equal(pixels.labels, expected.labels)
        assert pixels.labels.dtype == np.int64 and pixels.images.dtype == np.uint8
        assert pixels.keys == expected.keys and pixels.provenance == expected.provenance, name
        assert isinstance(pixels.images, np.memmap) is name.startswith("file")


@pytest.mark.parametrize("side", [20, 120])
def test_batches_are_bit_equal(tmp_path: Path, side: int) -> None:
    task = sized(tmp_path, [side] * 10)
    write_lines(tmp_path / "toy" / "train800val200.txt", (tmp_path / "toy" / "test.txt").read_text().splitlines())
    one, two = (VTABDataModule(task, FolderSource(tmp_path, memory), 32, 3, eval_batch_size=4) for memory in (1, SMALL))
    for make in ("train_batches", "test_dataloader", "train_dataloader"):
        for (a, x), (b, y) in zip(getattr(one, make)(), getattr(two, make)(), strict=True):
            assert torch.equal(a, b) and torch.equal(x, y)
            assert a.stride() == b.stride() and a.is_contiguous(), "sums depend on how a tensor lies"
    assert one.train_batches().images.base is not None, "training images are not copied again"
    assert np.shares_memory(one.train_batches().images, one.pixels("train800val200").images)


def test_a_file_is_read_again_not_decoded_and_named_by_content(tmp_path: Path, cache: Path) -> None:
    task = sized(tmp_path / "root", [120] * 10)

    def kept() -> set[str]:
        return {path.name for path in (cache / "pixels").iterdir() if not path.name.startswith(".")}

    source = FolderSource(tmp_path / "root", SMALL)
    first = source.load(task, "test", 32)
    (name,) = kept()
    stamp = (cache / "pixels" / name / "images.npy").stat().st_mtime_ns
    (tmp_path / "root").rename(tmp_path / "moved")
    again = FolderSource(tmp_path / "moved", SMALL).load(task, "test", 32)
    np.testing.assert_array_equal(first.images, again.images)
    assert kept() == {name} and (cache / "pixels" / name / "images.npy").stat().st_mtime_ns == stamp
    moved = FolderSource(tmp_path / "moved", SMALL)
    for number, load in enumerate(
        (
            lambda: moved.load(task, "test", 40),
            lambda: moved.load(task, "test", 32, "pil_bilinear"),
            lambda: moved.load(replace(task, channels=1), "test", 32),
            lambda: moved.load(task, "test", 32, limit=4),
        ),
        start=2,
    ):
        load()
        assert len(kept()) == number
    Image.new("RGB", (120, 120)).save(tmp_path / "moved" / "toy" / "3.png")
    assert moved.load(task, "test", 32).images[3].max() == 0 and len(kept()) == 6


class Decoded:
    """Counts the images that are decoded; more bytes than `worth` are kept for later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, worth: int) -> None:
        self.count = 0
        decode = folder.decode_all

        def counted(files: Any, *arguments: Any, **options: Any) -> Any:
            self.count += len(files)
            return decode(files, *arguments, **options)

        monkeypatch.setattr(bulk, "WORTH", worth)
        monkeypatch.setattr(folder, "decode_all", counted)


@pytest.mark.parametrize("sizes", SETS.values(), ids=SETS.keys())
def test_what_fits_into_memory_is_decoded_by_one_process(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, decoded = sized(tmp_path, sizes), Decoded(monkeypatch, 100)
    first = FolderSource(tmp_path).load(task, "test", 32)
    once = decoded.count
    again = FolderSource(tmp_path).load(task, "test", 32)
    assert decoded.count == once and "kept for later runs" in caplog.text
    np.testing.assert_array_equal(first.images, again.images)
    assert first.images.strides == again.images.strides, "sums depend on how a tensor lies"
    assert first.keys == again.keys and first.provenance == again.provenance
    assert bulk.mapped(again.images) is None and type(again.images) is np.ndarray
    np.testing.assert_array_equal(first.labels, again.labels)


def test_few_images_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    task, decoded = sized(tmp_path, [120] * 10), Decoded(monkeypatch, 10**6)
    for _ in range(2):
        FolderSource(tmp_path).load(task, "test", 32)
    assert decoded.count == 20 and not (cache / "pixels").exists()


@each("free", [0, bulk.MARGIN])
def test_without_room_images_are_decoded_each_time(free: int, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
        patch.setattr(bulk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
        task, decoded = sized(tmp_path / str(free), [120] * 10), Decoded(patch, 100)
        for _ in range(2):
            assert len(FolderSource(tmp_path / str(free)).load(task, "test", 32).images) == 10
    assert decoded.count == 20


def test_decoding_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(bulk.sys.stderr, "isatty", lambda: True, raising=False)
    task, _ = sized(tmp_path, [120] * 10), Decoded(monkeypatch, 100)
    shown: list[int] = []
    progress = "rich.progress.Progress.advance"
    monkeypatch.setattr(progress, lambda self, task, advance: shown.append(advance))
    FolderSource(tmp_path).load(task, "test", 32)
    assert shown == [4, 4, 2]


def test_it_is_said_with_size_and_place(tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Path) -> None:
    source = FolderSource(tmp_path, SMALL)
    task = sized(tmp_path, [120] * 10)
    source.load(task, "test", 32)
    source.load(task, "test", 32)
    (said,) = caplog.messages
    assert said.startswith("task 'toy', test: 10 decoded images are more than data.memory=1e-06 GiB and are kept in ")
    assert str(cache / "pixels") in said and "(0.0 GB); it may be removed" in said


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = sized(tmp_path, [120] * 10)
    usage = type("Usage", (), {"free": bulk.MARGIN})
    monkeypatch.setattr(bulk.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        DataError, match=r"10 decoded images are 0.0 GB, and the disk of .*HEADWISE_CACHE .*data.memory=GIB"
    ):
        FolderSource(tmp_path, SMALL).load(task, "test", 32)
    assert {path.name for path in (cache / "pixels").iterdir()} == {".claims"}
    assert FolderSource(tmp_path, 1).load(task, "test", 32).images.shape == (10, 32, 32, 3)


@pytest.mark.parametrize("where", ["write_array", "write_json"])
def test_what_fails_while_it_is_written_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    task = sized(tmp_path, [120] * 10)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bulk.atomic if where == "write_json" else bulk, where, full)
    with pytest.raises(HeadwiseError, match=r"pixels/[0-9a-f]{32}"):
        FolderSource(tmp_path, SMALL).load(task, "test", 32)
    assert {path.name for path in (cache / "pixels").iterdir()} == {".claims"}
    monkeypatch.undo()
    monkeypatch.setenv("HEADWISE_CACHE", str(cache))
    assert isinstance(FolderSource(tmp_path, SMALL).load(task, "test", 32).images, np.memmap)


def test_left_overs_of_a_killed_writer_are_removed(tmp_path: Path, cache: Path) -> None:
    task = sized(tmp_path, [120] * 10)
    FolderSource(tmp_path, SMALL).load(task, "test", 32)
    (kept,) = (path for path in (cache / "pixels").iterdir() if path.name != ".claims")
    kept.rename(kept.with_name(f".building-{kept.name}-0123abcd"))
    FolderSource(tmp_path, SMALL).load(task, "test", 32)
    assert {path.name for path in (cache / "pixels").iterdir()} == {".claims", kept.name}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": lambda kept: _flip(kept / "images.npy"),
    "cut off": lambda kept: os.truncate(kept / "images.npy", 500),
    "labels": lambda kept: _flip(kept / "labels.npy"),
    "no images": lambda kept: (kept / "images.npy").unlink(),
    "no description": lambda kept: (kept / "meta.json").unlink(),
    "text": lambda kept: (kept / "meta.json").write_text("[1, 2]"),
    "empty": lambda kept: (kept / "meta.json").write_text(""),
    "keys": lambda kept: (kept / "meta.json").write_text((kept / "meta.json").read_text().replace('"0.png",', "")),
}


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_named(tmp_path: Path, cache: Path, damage: Callable[[Path], object]) -> None:
    task = sized(tmp_path, [120] * 10)
    FolderSource(tmp_path, SMALL).load(task, "test", 32)
    (kept,) = (path for path in (cache / "pixels").iterdir() if path.name != ".claims")
    damage(kept)
    with pytest.raises(DataError, match=rf"{kept.name} is damaged \(.*\); remove it and run again"):
        FolderSource(tmp_path, SMALL).load(task, "test", 32)


@each("found", [3, 5])
def test_a_source_that_gives_other_than_it_has(found: int) -> None:
    def chunks() -> Iterator[Pixels]:
        for number in range(found):
            yield Pixels(np.zeros((1, 8, 8, 3), np.uint8), np.array([number]), (str(number),), {"resize": "native"})

    split = Bulk(title="x, test", count=4, size=8, resize="pil_bicubic", channels=3, chunks=chunks, content=lambda: "c")
    for memory in (1.0, SMALL):
        with pytest.raises(DataError, match=f"the source gave {found} of 4"):
            replace(split, memory=memory).load()
    with pytest.raises(DataError, match="there is no image"):
        replace(split, chunks=lambda: iter(())).load()


@pytest.mark.parametrize("memory", [-1, float("nan"), float("inf"), "1", True, None])
def test_memory_is_a_number_of_gib(tmp_path: Path, memory: Any) -> None:
    for kind in (FolderSource, AutoSource):
        with pytest.raises(ConfigError, match=r"memory"):
            kind(tmp_path, memory=memory)


def test_own_images_and_records_take_the_same_way(tmp_path: Path) -> None:
    write_tree(tmp_path / "photos")
    task = load_task("own/folder", num_classes=3)
    one, two = (AutoSource(tmp_path / "photos", memory=memory).load(task, "test", 32) for memory in (1, SMALL))
    assert isinstance(two.images, np.memmap)
    np.testing.assert_array_equal(one.images, two.images)


def test_what_was_read_of_a_file_is_let_go(tmp_path: Path) -> None:
    """The peak of memory does not grow with the set, where the system can say so."""
    if not Path("/proc/self/smaps").is_file():
        pytest.skip("no /proc")
    np.save(tmp_path / "many.npy", np.ones((64, 3, 224, 224), np.uint8))
    images = np.load(tmp_path / "many.npy", mmap_mode="r")

    def resident() -> int:
        text = Path("/proc/self/smaps").read_text().partition("many.npy")[2]
        return int(text.partition("Rss:")[2].split()[0])

    assert images.sum() == images.size and resident() > 5000
    bulk.release(images.transpose(0, 2, 3, 1)[3:])
    assert resident() < 1000
    assert images[5].sum() == 3 * 224 * 224
    bulk.release(np.ones(3))

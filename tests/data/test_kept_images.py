"""Images that are kept for the next run: read once, of one task, and never changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headwise.data import kept
from headwise.data.kept import KeptImages
from headwise.data.pixels import Pixels
from headwise.data.tasks import VTABTask
from made_cases import each

TASK = VTABTask(name="toy", group="natural", num_classes=5, num_test=None, folders=["toy"])


class Source:
    """Counts what is read."""

    def __init__(self, images: Any = None) -> None:
        self.images, self.read = images, []

    def fingerprint(self, task: VTABTask, splits: Any = ()) -> str:
        return "content"

    def labels(self, task: VTABTask) -> list[str]:
        return ["mine"]

    def count(self, task: VTABTask, split: str) -> int:
        return 4

    def load(self, task: VTABTask, split: str, size: int, resize: str = "", limit: int | None = None) -> Pixels:
        self.read.append((task.name, split, size, resize, limit))
        images = np.zeros((4, size, size, 3), np.uint8) if self.images is None else self.images
        return Pixels(images, np.arange(4), (), {"source": "toy"})


def test_every_split_is_read_once_for_all_runs() -> None:
    source, images = Source(), KeptImages()
    for _ in range(3):
        for split in ("train800val200", "test"):
            run = images.of(source, {"root": "a"}, "content")
            assert run.load(TASK, split, 8, "pil_bicubic", None).images.shape == (4, 8, 8, 3)
    assert len(source.read) == 2
    assert (run.labels(TASK), run.count(TASK, "test"), run.fingerprint(TASK)) == (["mine"], 4, "content")


@each(
    "config, content, how",
    [
        ({"root": "b"}, "content", (8, "pil_bicubic", None)),
        ({"root": "a"}, "others", (8, "pil_bicubic", None)),
        ({"root": "a"}, "content", (16, "pil_bicubic", None)),
        ({"root": "a"}, "content", (8, "tf_bilinear", None)),
        ({"root": "a"}, "content", (8, "pil_bicubic", 2)),
    ],
)
def test_other_images_are_others(config: dict[str, str], content: str, how: tuple[Any, ...]) -> None:
    source, images = Source(), KeptImages()
    images.of(source, {"root": "a"}, "content").load(TASK, "test", 8, "pil_bicubic", None)
    images.of(source, config, content).load(TASK, "test", *how)
    assert len(source.read) == 2


def test_images_of_one_task_are_kept() -> None:
    source, images = Source(), KeptImages()
    run = images.of(source, {}, "content")
    for task in (TASK, replace(TASK, name="other"), TASK, replace(TASK, num_classes=4), TASK):
        run.load(task, "test", 8)
        run.load(task, "test", 8)
    assert len(source.read) == 5
    assert len(images._splits) == 1


def test_large_images_are_kept_only_if_they_are_not_in_memory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SMALL", 4 * 8 * 8 * 3 - 1)
    array = np.zeros((4, 8, 8, 3), np.uint8)
    np.save(tmp_path / "images.npy", array)
    on_disk = np.load(tmp_path / "images.npy", mmap_mode="r", allow_pickle=False)
    for given, reads in ((array, 2), (on_disk, 1), (on_disk[1:].transpose(0, 2, 1, 3), 1)):
        source, images = Source(given), KeptImages()
        for _ in range(2):
            images.of(source, {}, "content").load(TASK, "test", 8)
        assert len(source.read) == reads


def test_nobody_can_change_them() -> None:
    pixels = KeptImages().of(Source(), {}, "content").load(TASK, "test", 8)
    for array in (pixels.images, pixels.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1

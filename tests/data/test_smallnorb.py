"""Drawn smallNORB: the grid of views, the separation of toys, and cues that tell views apart."""

from __future__ import annotations

import numpy as np
from made_trees import load_task

from headwise.data import labels
from headwise.data.splits import split_ranges
from headwise.data.synthetic import smallnorb
from made_cases import each

EVERY = np.arange(smallnorb.SIZES["train"])


def view(split: str, kind: int, toy: int, elevation: int, azimuth: int) -> np.ndarray:
    index = np.ravel_multi_index((kind, toy, elevation, azimuth), smallnorb.GRID)
    return smallnorb.render(split, np.array([index]))[0, :, :, 0].astype(float)


def test_every_view_occurs_equally_often() -> None:
    for split in ("train", "test"):
        rows = smallnorb.examples(split, EVERY)
        assert np.bincount([labels.smallnorb_azi(row) for row in rows]).tolist() == [225] * 18
        assert np.bincount([labels.smallnorb_ele(row) for row in rows]).tolist() == [450] * 9
        assert np.bincount([row["label_lighting"] for row in rows], minlength=6).min() > 600


def test_train_and_test_show_different_toys() -> None:
    toys = {split: {row["instance"] for row in smallnorb.examples(split, EVERY)} for split in ("train", "test")}
    assert toys == {"train": {4, 6, 7, 8, 9}, "test": {0, 1, 2, 3, 5}}


def test_validation_comes_from_the_test_toys_as_upstream() -> None:
    task = load_task("smallnorb_azi")
    runs = {split: split_ranges(task, split, smallnorb.SIZES) for split in ("train800", "val200", "test")}
    assert runs == {"train800": [("train", 0, 800)], "val200": [("test", 0, 200)], "test": [("test", 2025, 4050)]}


def test_golden_factors() -> None:
    """Raise REVISION with these: results of other views must not share a fingerprint."""
    assert smallnorb.REVISION == 1
    assert smallnorb.factors(np.array([0, 17, 18, 161, 162, 4049])).tolist() == [
        [0, 0, 0, 0], [0, 0, 0, 17], [0, 0, 1, 0], [0, 0, 8, 17], [0, 1, 0, 0], [4, 4, 8, 17],
    ]  # fmt: skip
    assert [smallnorb.lighting("train", index) for index in range(8)] == [5, 5, 3, 0, 5, 2, 0, 0]


@each("kind", range(5))
def test_front_back_left_and_right_differ(kind: int) -> None:
    """Four quarter turns of one toy: no two views agree, nor mirror each other, beyond noise and light."""
    views = [view("train", kind, 1, 2, azimuth) for azimuth in (0, 4, 9, 13)]
    for i, one in enumerate(views):
        for other in views[i + 1 :]:
            assert np.abs(one - other).mean() > 3 and np.abs(one - other[:, ::-1]).mean() > 3


def test_pixels_repeat_and_toys_differ() -> None:
    first = view("test", 4, 0, 4, 3)
    np.testing.assert_array_equal(first, view("test", 4, 0, 4, 3))
    assert first.shape == (96, 96) and first.std() > 15
    assert np.abs(first - view("train", 4, 0, 4, 3)).mean() > 3

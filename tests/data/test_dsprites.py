"""Golden values: the data set's public factor order, and VTAB-1k's own membership computed from it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from made_trees import load_task

from headwise.data.sources import SyntheticSource
from headwise.data.synthetic import dsprites
from made_cases import each

SOURCE = SyntheticSource()
LOC, ORI = load_task("dsprites_loc"), load_task("dsprites_ori")


def index(shape: int, scale: int, orientation: int, x: int, y: int) -> int:
    return int(np.ravel_multi_index((shape, scale, orientation, x, y), dsprites.FACTORS))


def draw(*indices: int) -> np.ndarray:
    return dsprites.render("train", np.array(indices))[..., 0]


def test_first_keys_and_latents_of_the_official_split() -> None:
    train = SOURCE.load(LOC, "train800", 224)
    val = SOURCE.load(LOC, "val200", 224)
    assert train.keys[:5] == ("16399", "634903", "206287", "470425", "352707")
    assert val.keys[:3] == ("220697", "85843", "84902")
    first = dsprites.latents(np.array([int(key) for key in train.keys[:3]]))
    assert first.tolist() == [[0, 0, 16, 0, 15], [2, 3, 20, 0, 23], [0, 5, 1, 14, 15]]


def test_class_counts_of_the_official_training_set() -> None:
    for task, counts in (
        (ORI, "74 56 75 58 68 55 73 51 79 48 75 50 67 40 78 53"),
        (LOC, "68 53 57 54 60 62 62 63 69 65 63 68 66 60 69 61"),
    ):
        pixels = SOURCE.load(task, "train800val200", 224)
        assert np.bincount(pixels.labels).tolist() == [int(count) for count in counts.split()]
        assert pixels.images.shape == (1000, 64, 64, 1)
        assert pixels.provenance == {"source": "synthetic:dsprites@1", "decoder": "none", "resize": "native"}


def test_train800val200_is_its_two_parts() -> None:
    whole = SOURCE.load(ORI, "train800val200", 224)
    parts = [SOURCE.load(ORI, split, 224) for split in ("train800", "val200")]
    np.testing.assert_array_equal(whole.images, np.concatenate([part.images for part in parts]))
    np.testing.assert_array_equal(whole.labels, np.concatenate([part.labels for part in parts]))


def test_test_split_is_complete_and_apart_from_training() -> None:
    assert SOURCE.count(LOC, "test") == 73_728 == LOC.num_test
    test = SOURCE.load(LOC, "test", 224)
    keys = set(test.keys)
    assert len(keys) == 73_728
    assert not keys & set(SOURCE.load(LOC, "train800val200", 224).keys)
    assert np.bincount(test.labels, minlength=16).min() > 4400


def test_subset_is_fixed_and_nested() -> None:
    small, large = SOURCE.load(LOC, "test", 224, limit=50), SOURCE.load(ORI, "test", 224, limit=500)
    assert len(small.labels) == 50 and len(large.labels) == 500
    assert set(small.keys) <= set(large.keys)
    assert small.keys == SOURCE.load(LOC, "test", 224, limit=50).keys
    assert np.bincount(small.labels, minlength=16).astype(bool).sum() > 10


def test_pixels_are_those_of_this_revision() -> None:
    """Raise REVISION with this hash: results of different pixels must not share a fingerprint."""
    images = SOURCE.load(LOC, "train800val200", 224).images
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    assert (dsprites.REVISION, digest[:16]) == (1, "9f5514f2cdaee7b4")


def test_sprites_are_white_on_black_and_never_cut() -> None:
    images = SOURCE.load(LOC, "test", 224, limit=2000).images
    assert set(np.unique(images)) == {0, 255}
    assert not images[:, [0, 1, 62, 63]].any() and not images[:, :, [0, 1, 62, 63]].any()


def test_square_is_exact_on_the_scale_ladder() -> None:
    for scale in range(6):
        sprite = draw(index(0, scale, 0, 0, 0))[0] > 0
        side = 2 * (5 + scale)
        rows, columns = np.flatnonzero(sprite.any(1)), np.flatnonzero(sprite.any(0))
        assert sprite.sum() == side**2
        assert (rows[0], rows[-1]) == (columns[0], columns[-1]) == (16 - side // 2, 15 + side // 2)


@each("shape", range(3))
def test_areas_follow_the_geometry(shape: int) -> None:
    area = [(2 * 9.6) ** 2, np.pi * 12.8 * 7.2, None][shape]
    areas = [draw(index(shape, 5, o, 7, 9)).astype(bool).sum() for o in range(1, 39)]
    if area is not None:
        assert np.mean(areas) == pytest.approx(area, rel=0.01)
    assert np.std(areas) < 0.02 * np.mean(areas)


def test_position_moves_right_and_down() -> None:
    def centre(image: np.ndarray) -> np.ndarray:
        return np.argwhere(image).mean(axis=0) + 0.5

    for x, y in ((0, 0), (31, 0), (0, 31), (31, 31), (13, 20)):
        expected = np.array([16 + 32 * y / 31, 16 + 32 * x / 31])
        assert np.abs(centre(draw(index(1, 5, 8, x, y))[0]) - expected).max() < 0.3


def test_orientation_turns_counter_clockwise_and_its_ends_coincide() -> None:
    upright, turned = draw(index(2, 5, 0, 0, 0), index(2, 5, 10, 0, 0)) > 0
    rows, columns = upright.sum(axis=1), turned.sum(axis=0)
    assert (rows[[10, 22]] >= [17, 1]).all() and rows[22] < 6, "the tip points down"
    assert (columns[[10, 22]] >= [17, 1]).all() and columns[22] < 6, "a quarter turn later it points to the right"
    for shape in range(3):
        first, last = draw(index(shape, 3, 0, 5, 6), index(shape, 3, 39, 5, 6))
        np.testing.assert_array_equal(first, last)


def test_heart_is_symmetric_and_has_no_hole() -> None:
    heart = draw(index(2, 5, 0, 0, 0))[0] > 0
    np.testing.assert_array_equal(heart[:, 2:30], heart[:, 2:30][:, ::-1])
    for row in heart[15:]:
        filled = np.flatnonzero(row)
        assert len(filled) == 0 or len(filled) == filled[-1] - filled[0] + 1

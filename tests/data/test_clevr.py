"""Golden labels of drawn CLEVR scenes, and what their sampling promises."""

from __future__ import annotations

import hashlib

import numpy as np
from made_trees import load_task

from headwise.data import labels
from headwise.data.splits import record_order
from headwise.data.synthetic import clevr, rays
from made_cases import each

INDICES = np.arange(60)
SCENES = [clevr.scene("train", int(index)) for index in INDICES]
EXAMPLES = clevr.examples("train", INDICES)


def test_keys_are_those_of_upstream() -> None:
    assert (
        clevr.key("train", 43876) == "CLEVR_train_043876.png" and clevr.key("validation", 7) == "CLEVR_val_000007.png"
    )
    first = record_order("train", (clevr.key("train", index) for index in range(70_000)))[:5]
    assert first.tolist() == [43876, 33421, 62025, 21419, 4851], "upstream's own order, with its own number of scenes"


def test_labels_follow_from_the_object_lists() -> None:
    for example, scene in zip(EXAMPLES, SCENES, strict=True):
        assert labels.clevr_count(example) == len(scene.solids) - 3
        depths = [float((scene.camera.place - solid.centre) @ scene.camera.back) for solid in scene.solids]
        np.testing.assert_allclose(example["objects"]["pixel_coords"][:, 2], depths, rtol=1e-5)
        edges, label = labels.CLEVR_DISTANCE_EDGES, labels.clevr_dist(example)
        assert edges[label] < min(depths) <= edges[label + 1]


def test_golden_labels() -> None:
    """Raise REVISION with these: results of other scenes must not share a fingerprint."""
    assert clevr.REVISION == 1
    assert [labels.clevr_count(example) for example in EXAMPLES[:12]] == [3, 5, 0, 5, 7, 2, 6, 2, 4, 6, 0, 5]
    assert [labels.clevr_dist(example) for example in EXAMPLES[:12]] == [0, 2, 5, 1, 0, 0, 0, 3, 0, 1, 2, 2]


def test_objects_keep_their_distances() -> None:
    for scene in SCENES:
        places = np.stack([solid.centre for solid in scene.solids])
        radii = [clevr.RADII[size] for size in scene.objects["size"]]
        assert np.abs(places[:, :2]).max() <= clevr.FIELD
        assert 3 <= len(places) <= 10
        for i in range(len(places)):
            for j in range(i):
                gap = np.linalg.norm(places[i, :2] - places[j, :2]) - radii[i] - radii[j]
                assert gap >= clevr.MIN_GAP - 1e-5


def test_every_object_is_visible() -> None:
    for scene in SCENES[:20]:
        _, owner = rays.first_hits(scene.camera, scene.camera.rays(), scene.solids)
        assert np.bincount(owner[owner >= 0], minlength=len(scene.solids)).min() >= clevr.MIN_PIXELS


def test_classes_are_spread() -> None:
    counts = np.bincount([labels.clevr_count(example) for example in EXAMPLES], minlength=8)
    assert (counts > 0).all() and counts.max() <= 20
    assert len({labels.clevr_dist(example) for example in EXAMPLES}) >= 5


def test_projection_lands_on_the_object() -> None:
    scene = SCENES[0]
    _, owner = rays.first_hits(scene.camera, scene.camera.rays(), scene.solids)
    grid = owner.reshape(clevr.HEIGHT, clevr.WIDTH)
    nearest = int(np.argmin(scene.objects["pixel_coords"][:, 2]))
    column, row, _ = scene.objects["pixel_coords"][nearest]
    assert grid[int(row), int(column)] == nearest


def test_pixels_repeat() -> None:
    first = clevr.render("train", INDICES[:2])
    clevr.scene.cache_clear()
    np.testing.assert_array_equal(first, clevr.render("train", INDICES[:2]))
    assert first.shape == (2, 160, 240, 3) and first.std() > 15
    assert hashlib.sha256(first[0].tobytes()).digest() != hashlib.sha256(first[1].tobytes()).digest()
    assert not np.array_equal(first[0], clevr.render("validation", INDICES[:1])[0])


@each("name", ["clevr_count", "clevr_dist"])
def test_the_slices_hold_what_a_run_needs(name: str) -> None:
    from headwise.data.sources import SyntheticSource

    source, task = SyntheticSource(), load_task(name)
    assert [source.count(task, split) for split in ("train800", "val200", "test")] == [800, 200, 2000]

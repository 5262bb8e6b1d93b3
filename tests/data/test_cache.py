"""The cache gives the very pixels, classes, keys and fingerprints of its source, or refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_tfds import write_set
from made_trees import REPO, load_task, write_tree
from PIL import Image

from headwise.data.preparing import cachebuild
from headwise.data.preparing.cachebuild import build
from headwise.data.sources import AutoSource, FolderSource, TFDSSource
from headwise.data.stores.cache import META, Cache, CacheSource
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError, DataError
from headwise.storage.claims import BusyError, Claim
from made_threads import in_another_thread

SPLITS = ("train800", "val200", "train800val200", "test")
CLEVR = [load_task("clevr_count"), load_task("clevr_dist")]
SPRITES = [load_task("dsprites_loc"), load_task("dsprites_ori")]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for task in (CLEVR[0], SPRITES[0]):
        write_set(root, task, count=20)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Folder of all caches."""
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def source(root: Path) -> TFDSSource:
    return TFDSSource(root, official=False)


@pytest.mark.parametrize(
    ("tasks", "name"), [(CLEVR, "clevr@3.1.0-tfds-40-tf_bilinear"), (SPRITES, "dsprites@2.0.0-tfds-native")]
)
def test_a_cache_is_its_source(source: TFDSSource, store: Path, tasks: list[VTABTask], name: str) -> None:
    folder = build(source, tasks, 40, "tf_bilinear", store)
    assert folder.name == name and {path.name for path in store.iterdir()} == {name, ".claims"}
    cache = CacheSource(store)
    for task in tasks:
        assert cache.has(task) and cache.has_size(task, 40, "tf_bilinear")
        assert cache.labels(task) == source.labels(task) == ["unofficial split"]
        for split in SPLITS:
            one, two = source.load(task, split, 40, "tf_bilinear"), cache.load(task, split, 40, "tf_bilinear")
            np.testing.assert_array_equal(one.images, two.images)
            assert one.labels.tolist() == two.labels.tolist() and one.keys == two.keys
            assert two.provenance == {**one.provenance, "cache": name}
            assert cache.count(task, split) == source.count(task, split)
        for pair in cachebuild.PAIRS:
            assert cache.fingerprint(task, pair) == source.fingerprint(task, pair)
        part, whole = (cache.load(task, "train800val200", 40, "tf_bilinear", limit) for limit in (5, None))
        assert [whole.keys.index(key) for key in part.keys] == sorted(whole.keys.index(key) for key in part.keys)
    assert isinstance(cache.load(tasks[0], "test", 40, "tf_bilinear").images, np.memmap)
    assert sum("train800.npy" in path.name for path in folder.iterdir()) == 1 + len(tasks), "twins share the images"


def test_a_cache_of_a_list_file_tree(tree: Path, toy: VTABTask, tmp_path: Path) -> None:
    source = FolderSource(tree)
    assert build(source, [toy], 32, "pil_bicubic", tmp_path / "c").name == "toy-folder-32-pil_bicubic"
    cache = CacheSource(tmp_path / "c")
    assert cache.fingerprint(toy) == source.fingerprint(toy) and cache.labels(toy) == source.labels(toy)
    for split in SPLITS:
        np.testing.assert_array_equal(cache.load(toy, split, 32).images, source.load(toy, split, 32).images)
    with pytest.raises(ConfigError, match="cache them one by one"):
        build(source, [toy, replace(toy, name="b")], 32, "pil_bicubic", tmp_path / "c")


@pytest.mark.parametrize("change", ["order", "classes", "files"])
def test_a_train_list_of_its_own_is_kept(tree: Path, toy: VTABTask, tmp_path: Path, change: str) -> None:
    file = tree / "toy" / "train800val200.txt"
    rows = file.read_text().splitlines()
    if change == "order":
        rows = rows[1::2] + rows[::2]
    elif change == "classes":
        rows = [f"{row.split()[0]} {2 - int(row.split()[1])}" for row in rows]
    else:
        rows = [row.replace("images/val200", "images/test") for row in rows]
    file.write_text("\n".join(rows) + "\n")
    source = FolderSource(tree)
    build(source, [toy], 32, "pil_bicubic", tmp_path / "c")
    cache = CacheSource(tmp_path / "c")
    assert cache.fingerprint(toy) == source.fingerprint(toy)
    for limit in (None, 3):
        one, two = (images.load(toy, "train800val200", 32, limit=limit) for images in (source, cache))
        np.testing.assert_array_equal(one.images, two.images)
        assert one.labels.tolist() == two.labels.tolist() and one.keys == two.keys
    assert cache.count(toy, "train800val200") == source.count(toy, "train800val200")


def test_a_cache_without_the_train_list_is_refused_and_mended(tree: Path, toy: VTABTask, tmp_path: Path) -> None:
    folder = build(FolderSource(tree), [toy], 32, "pil_bicubic", tmp_path / "c")
    meta = json.loads((folder / META).read_text())
    del meta["splits"]["train800val200"]
    (folder / META).write_text(json.dumps(meta))
    with pytest.raises(DataError, match="does not hold train800, val200, train800val200, test; remove"):
        CacheSource(tmp_path / "c").load(toy, "test", 32)
    build(FolderSource(tree), [toy], 32, "pil_bicubic", tmp_path / "c")
    assert CacheSource(tmp_path / "c").has(toy)


def test_images_of_several_small_sizes_are_all_resized(tmp_path: Path, toy: VTABTask) -> None:
    write_tree(tmp_path / "root" / "toy", size=(48, 48))
    odd = tmp_path / "root" / "toy" / "images" / "test" / "3.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 48, 3), dtype=np.uint8)).save(odd)
    source = FolderSource(tmp_path / "root")
    assert build(source, [toy], 40, "pil_bicubic", tmp_path / "c").name == "toy-folder-40-pil_bicubic"
    loaded = CacheSource(tmp_path / "c").load(toy, "test", 40)
    np.testing.assert_array_equal(loaded.images, source.load(toy, "test", 40).images)


def test_another_size_is_asked_for(source: TFDSSource, root: Path, store: Path) -> None:
    build(source, CLEVR, 40, "tf_bilinear", store)
    cache = CacheSource(store)
    for size, resize in ((40, "pil_bicubic"), (48, "tf_bilinear")):
        with pytest.raises(DataError, match=rf"holds 40-tf_bilinear, the run needs {size}-{resize}; run: python scr"):
            cache.load(CLEVR[0], "test", size, resize)
    auto = AutoSource(root, store, official=False)
    assert auto.resolve(CLEVR[0]) is auto.cache
    assert auto.load(CLEVR[0], "test", 48, "tf_bilinear").images.shape[1] == 48, "the same images, from their source"
    build(source, CLEVR, 48, "tf_bilinear", store)
    assert "cache" in CacheSource(store).load(CLEVR[1], "test", 48, "tf_bilinear").provenance


def test_it_is_built_once(source: TFDSSource, store: Path) -> None:
    said: list[str] = []
    folder = build(source, SPRITES, 224, "pil_bicubic", store, said.append)
    stamp = (folder / META).stat().st_mtime_ns
    assert any(line.startswith("dsprites_loc: test 2 of 2") for line in said)
    assert build(source, SPRITES, 224, "pil_bicubic", store) == folder
    assert (folder / META).stat().st_mtime_ns == stamp


def damage(folder: Path, what: str) -> None:
    file = folder / "test.npy"
    if what == "missing":
        file.unlink()
    elif what == "cut off":
        file.write_bytes(file.read_bytes()[:-1])
    elif what == "changed":
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    elif what == "labels":
        np.save(folder / "labels.dsprites_loc.test.npy", np.array([0, 99]))
    elif what == "keys":
        (folder / "keys.txt").write_text("test 1\n")
    elif what == "meta":
        (folder / META).write_text("{}")
    elif what == "layout":
        meta = json.loads((folder / META).read_text())
        (folder / META).write_text(json.dumps(meta | {"schema": 2}))


@pytest.mark.parametrize("what", ["missing", "cut off", "changed", "labels", "keys", "meta", "layout"])
def test_a_damaged_cache_is_refused_and_mended(source: TFDSSource, store: Path, what: str) -> None:
    folder = build(source, SPRITES, 224, "pil_bicubic", store)
    damage(folder, what)
    with pytest.raises(DataError, match=r"cache .*dsprites@2.0.0-tfds-native: .* prepare it again"):
        CacheSource(store).load(SPRITES[0], "test", 224)
    if what in ("meta", "layout"):
        with pytest.raises(DataError, match="prepare it again"):
            AutoSource(None, store).fingerprint(SPRITES[0])
    if what != "keys":
        build(source, SPRITES, 224, "pil_bicubic", store)
        assert len(CacheSource(store).load(SPRITES[0], "test", 224).labels) == 2


def test_a_foreign_cache_is_refused(source: TFDSSource, store: Path) -> None:
    build(source, SPRITES, 224, "pil_bicubic", store)
    other = replace(SPRITES[0], splits={**SPRITES[0].splits, "test": "train[80%:]"})
    with pytest.raises(DataError, match=r"built for another definition of task 'dsprites_loc'"):
        CacheSource(store).fingerprint(other)
    with pytest.raises(DataError, match=r"no cache of task 'dtd' in .*prepare_vtab.py --tasks dtd"):
        CacheSource(store).fingerprint(load_task("dtd"))
    with pytest.raises(DataError, match=r"no cache of task 'dsprites_loc'"):
        CacheSource(store).fingerprint(replace(SPRITES[0], versions=("3.*.*",)))


def test_no_room_is_an_error_and_leaves_nothing(
    source: TFDSSource, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(source, SPRITES, 224, "pil_bicubic", store)
    monkeypatch.setattr(cachebuild.shutil, "disk_usage", lambda path: _Usage())
    with pytest.raises(DataError, match="is full; free some space"):
        build(source, CLEVR, 40, "tf_bilinear", store)
    monkeypatch.undo()
    assert {path.name for path in store.iterdir()} == {first.name, ".claims"}

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cachebuild, "_save", full)
    with pytest.raises(DataError, match="is full; free some space"):
        build(source, CLEVR, 40, "tf_bilinear", store)
    assert {path.name for path in store.iterdir()} == {first.name, ".claims"}
    assert len(CacheSource(store).load(SPRITES[0], "test", 224).labels) == 2


class _Usage:
    free = 1000


def test_an_interrupted_build_leaves_what_was_complete(
    source: TFDSSource, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves its folder behind; the next one removes it and starts again."""
    script = f"""
import os, sys
sys.path.insert(0, {str(REPO / "tests" / "data")!r})
from pathlib import Path
from made_trees import load_task
from headwise.data.preparing import cachebuild
from headwise.data.sources import TFDSSource
cachebuild.label_file = lambda *args: os._exit(9)
source = TFDSSource({str(source.root)!r}, official=False)
cachebuild.build(source, [load_task("clevr_count"), load_task("clevr_dist")], 40, "tf_bilinear", Path({str(store)!r}))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=REPO).returncode == 9
    assert len(list(store.glob(".building-*"))) == 1 and not CacheSource(store).has(CLEVR[0])
    build(source, CLEVR, 40, "tf_bilinear", store)
    assert not list(store.glob(".building-*")) and CacheSource(store).has(CLEVR[0])


def test_two_builds_at_once(source: TFDSSource, store: Path) -> None:
    with Claim(store / ".claims" / "dsprites@2.0.0-tfds"), pytest.raises(BusyError, match="is claimed by process"):
        in_another_thread(lambda: build(source, SPRITES, 224, "pil_bicubic", store, wait=False))
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(build(source, SPRITES, 224, "pil_bicubic", store)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2 and folders[0] == folders[1]
    Cache.open(folders[0]).check()


def test_auto_takes_the_cache_first(source: TFDSSource, root: Path, store: Path) -> None:
    build(source, SPRITES, 224, "pil_bicubic", store)
    auto = AutoSource(root, store)
    assert auto.resolve(SPRITES[0]) is auto.cache and auto.labels(SPRITES[0]) == ["unofficial split"]
    assert AutoSource(None, store / "none").labels(SPRITES[0]) == ["synthetic"]
    with pytest.raises(DataError, match=r"no images for task 'dsprites_loc'"):
        AutoSource(None, store / "none", synthetic=False).fingerprint(SPRITES[0])


def strange_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """What META may be turned into by somebody else, by what is wrong with it."""
    (task,) = (meta["tasks"][name] for name in meta["tasks"] if name == "dsprites_loc")
    array = meta["splits"]["test"]
    return {
        "a task outside": {**meta, "tasks": {**meta["tasks"], "../../x": task}},
        "a split outside": {**meta, "splits": {**meta["splits"], "../../x": array}},
        "a part outside": {**meta, "tasks": {"dsprites_loc": {**task, "splits": {"../x": array}}}},
        "a kind": {**meta, "kind": "../x"},
        "kind a list": {**meta, "kind": []},
        "no mapping": [],
        "a number": 3,
        "tasks a list": {**meta, "tasks": []},
        "a task a number": {**meta, "tasks": {"dsprites_loc": 3}},
        "objects": {**meta, "splits": {**meta["splits"], "test": {**array, "dtype": "object"}}},
        "a size": {**meta, "splits": {**meta["splits"], "test": {**array, "bytes": "1"}}},
        "a hash": {**meta, "splits": {**meta["splits"], "test": {**array, "sha256": "x"}}},
        "fingerprints": {**meta, "tasks": {"dsprites_loc": {**task, "fingerprints": {"a": 1}}}},
        "labels": {**meta, "tasks": {"dsprites_loc": {**task, "labels": "abc"}}},
        "facts": {**meta, "facts": None},
        "keys": {**meta, "keys": ["a"]},
    }


def test_a_description_by_somebody_else_names_no_file(source: TFDSSource, store: Path) -> None:
    folder = build(source, SPRITES, 224, "pil_bicubic", store)
    meta = json.loads((folder / META).read_text())
    for text in [json.dumps(changed) for changed in strange_meta(meta).values()] + ["[" * 10**5, '{"schema": 1e999}']:
        (folder / META).write_text(text)
        with pytest.raises(DataError, match=r"cache .*dsprites@2.0.0-tfds-native: .*prepare it again") as caught:
            CacheSource(store).load(SPRITES[0], "test", 224)
        assert len(str(caught.value)) < 600
    (folder / META).unlink()
    os.mkfifo(folder / META)
    with pytest.raises(DataError, match="it is a device or a pipe"):
        CacheSource(store).has(SPRITES[0])

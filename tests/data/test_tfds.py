"""Every set is written by upstream's own builder, without TensorFlow, and read back through the product's path."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_tfds import Written, encode, tasks_of_all_builders, to_tfrecord, write_set
from made_trees import REPO, load_task
from PIL import Image

from headwise.data.sources import AutoSource, TFDSSource
from headwise.data.stores.prepared import MARKER, masked_crc32c, tfrecords
from headwise.data.tasks import VTABTask
from headwise.errors import DataError

ALL = tasks_of_all_builders()
QUICK = ("cifar100", "eurosat", "clevr", "kitti", "dsprites", "smallnorb", "caltech101")
COUNTS = {  # of 30 examples per upstream split: train800, val200, test
    "cifar100": (27, 3, 30), "caltech101": (27, 3, 30), "svhn_cropped": (27, 3, 30), "clevr": (27, 3, 30),
    "oxford_iiit_pet": (24, 6, 30), "eurosat": (18, 6, 6), "resisc45": (18, 6, 6), "dsprites": (24, 3, 3),
    "smallnorb": (30, 15, 15), "food101": (24, 6, 30), "cars196": (24, 6, 30),
}  # fmt: skip
NATIVE = {"cifar100": 32, "svhn_cropped": 32, "eurosat": 64, "dsprites": 64, "smallnorb": 96, "patch_camelyon": 96}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Written]]]:
    root = tmp_path_factory.mktemp("prepared")
    return root, {name: write_set(root, ALL[name][0]) for name in QUICK}


@pytest.fixture
def source(prepared: tuple[Path, Any]) -> TFDSSource:
    return TFDSSource(prepared[0], official=False)


def expected_label(task: VTABTask, features: dict[str, Any]) -> int:
    """The class by its definition, written down a second time."""
    objects = features.get("objects", [])
    if task.name == "clevr_count":
        return len(objects) - 3
    if task.name == "clevr_dist":
        nearest = min(np.float32(item["pixel_coords"][2]) for item in objects)
        return [nearest <= edge for edge in (8.0, 8.5, 9.0, 9.5, 10.0, np.inf)].index(True)
    if task.name == "kitti_dist":
        nearest = min((np.float32(item["location"][2]) for item in objects if item["type"] < 3), default=1000.0)
        return [nearest <= edge for edge in (8.0, 20.0, 999.0, np.inf)].index(True)
    if task.label_rule:
        name, bins = {
            "dsprites_loc": ("label_x_position", 2.0), "dsprites_ori": ("label_orientation", 2.5),
            "smallnorb_azi": ("label_azimuth", 1.0), "smallnorb_ele": ("label_elevation", 1.0),
        }[task.name]  # fmt: skip
        return int(features[name] // bins)
    return int(features["label"])


def expected_records(task: VTABTask, split: str, written: dict[str, Written]) -> list[dict[str, Any]]:
    """Features of the members of a split in upstream's order, from the written examples."""
    part = {"train800": "train", "val200": "val", "test": "test"}[split]
    name, _, bounds = task.splits[part].rstrip("]").partition("[")
    made = written[name]
    order = sorted(range(len(made.keys)), key=lambda i: hashlib.md5((name + made.keys[i]).encode()).digest())
    first, _, last = bounds.partition(":")
    positions = [round(int(b.rstrip("%")) * len(order) / 100) if b else d for b, d in ((first, 0), (last, len(order)))]
    return [made.features[i] for i in order[positions[0] : positions[1]]]


def check_set(source: TFDSSource, task: VTABTask, written: dict[str, Written]) -> None:
    lengths = {"train800": 0, "val200": 0, "test": 0}
    for split in lengths:
        expected = expected_records(task, split, written)
        pixels = source.load(task, split, 224)
        lengths[split] = source.count(task, split)
        assert len(pixels.images) == len(expected) == lengths[split]
        assert pixels.labels.tolist() == [expected_label(task, features) for features in expected]
        assert pixels.images.dtype == np.uint8 and pixels.images.shape[3] == task.channels
        side = NATIVE.get(str(task.builder))
        if side:
            assert pixels.images.shape[1:3] == (side, side) and pixels.provenance["resize"] == "native"
            exact = np.stack([features["image"] * task.pixel_scale for features in expected])
            np.testing.assert_array_equal(pixels.images, exact)
        elif task.name not in ("pets", "dmlab"):  # those two are JPEG, where decoding is not the inverse of encoding
            resized = Image.fromarray(expected[0]["image"]).resize((224, 224), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(pixels.images[0], np.asarray(resized))
    assert tuple(lengths.values()) == COUNTS.get(str(task.builder), (30, 30, 30))
    assert source.count(task, "train800val200") == lengths["train800"] + lengths["val200"]
    assert source.labels(task) == ["unofficial split"]


@pytest.mark.parametrize("name", QUICK)
def test_sets_written_by_upstream(prepared: tuple[Path, Any], source: TFDSSource, name: str) -> None:
    for task in ALL[name]:
        check_set(source, task, prepared[1][name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ALL) - set(QUICK)))
def test_every_other_set_written_by_upstream(tmp_path: Path, name: str) -> None:
    task = ALL[name][0]
    written = write_set(tmp_path, task)
    check_set(TFDSSource(tmp_path, official=False), task, written)


def test_there_are_18_builders() -> None:
    assert len(ALL) == 18 and sum(len(tasks) for tasks in ALL.values()) == 21


def test_subset_is_part_of_the_whole(source: TFDSSource) -> None:
    task = ALL["cifar100"][0]
    whole, part = source.load(task, "train800val200", 224), source.load(task, "train800val200", 224, limit=7)
    picked = [whole.keys.index(key) for key in part.keys]
    assert len(picked) == 7 and picked == sorted(picked)
    np.testing.assert_array_equal(part.images, whole.images[picked])


@pytest.mark.parametrize("name", ["cifar100", "eurosat"])
@pytest.mark.parametrize("limit", [None, 7])
def test_more_than_the_memory_may_hold_is_mapped(
    source: TFDSSource, name: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path))
    task = ALL[name][0]
    small = TFDSSource(source.root, official=False, memory=0)
    for _ in range(2):
        one, two = (each.load(task, "train800val200", 224, limit=limit) for each in (source, small))
        assert isinstance(two.images, np.memmap) and one.keys == two.keys and one.provenance == two.provenance
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.labels, two.labels)


def test_chunks_are_the_split(source: TFDSSource) -> None:
    task = ALL["eurosat"][0]
    whole = source.load(task, "train800val200", 224)
    parts = list(source.chunks(task, "train800val200", 224, "pil_bicubic"))
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    assert source.all_labels(task, "train800val200").tolist() == whole.labels.tolist()


def test_tfrecord_directories_give_the_same(prepared: tuple[Path, Any], source: TFDSSource, tmp_path: Path) -> None:
    for name in ("eurosat", "clevr"):
        to_tfrecord(prepared[0], name, tmp_path)
        other, task = TFDSSource(tmp_path, official=False), ALL[name][0]
        for split in ("train800val200", "test"):
            one, two = source.load(task, split, 32), other.load(task, split, 32)
            np.testing.assert_array_equal(one.images, two.images)
            assert one.keys == two.keys and one.labels.tolist() == two.labels.tolist()
        assert other.fingerprint(task) == source.fingerprint(task)
        assert (one.provenance["format"], two.provenance["format"]) == ("array_record", "tfrecord")
        assert other.load(task, "test", 32, limit=2).keys == source.load(task, "test", 32, limit=2).keys


def test_fingerprints_tell_tasks_and_splits_apart(source: TFDSSource) -> None:
    loc, ori = ALL["dsprites"]
    prints = {source.fingerprint(loc), source.fingerprint(ori), source.fingerprint(loc, ("train800", "val200"))}
    assert len(prints) == 3 and source.fingerprint(loc) in prints


def test_an_official_source_with_other_counts_is_an_error(prepared: tuple[Path, Any]) -> None:
    for method in (TFDSSource(prepared[0]).fingerprint, TFDSSource(prepared[0]).labels):
        with pytest.raises(DataError, match=r"not the official set: train: 30 instead of 50000; test: 30 instead of"):
            method(ALL["cifar100"][0])


def test_a_synthetic_directory_says_so(tmp_path: Path) -> None:
    task = ALL["smallnorb"][0]
    write_set(tmp_path, task, count=8)
    marker = tmp_path / "smallnorb" / "2.0.0" / MARKER
    marker.write_text(json.dumps({"generator": "smallnorb", "revision": 3}))
    source = TFDSSource(tmp_path)
    assert source.labels(task) == ["synthetic"]
    assert source.load(task, "test", 224).provenance["source"] == "synthetic:smallnorb@3"
    marker.write_text("{")
    with pytest.raises(DataError, match=r"synthetic.json: is damaged"):
        TFDSSource(tmp_path).labels(task)


def age(folder: Path, version: str) -> Path:
    """Make a prepared directory one of another version."""
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"version": version}))
    return folder.rename(folder.with_name(version))


def test_versions(prepared: tuple[Path, Any], tmp_path: Path) -> None:
    task = load_task("kitti_dist")
    assert TFDSSource(prepared[0], official=False).prepared(task).version == "3.3.0"
    write_set(tmp_path, task, count=6)
    folder = age(tmp_path / "kitti" / "3.3.0", "3.1.0")
    source = TFDSSource(tmp_path, official=False)
    assert source.prepared(task).version == "3.1.0" and source.count(task, "test") == 6
    folder = age(folder, "2.0.0")
    with pytest.raises(DataError, match=r"holds version 2.0.0; accepted: 3.3.0, 3.2.0, 3.1.0"):
        TFDSSource(tmp_path).fingerprint(task)
    folder.rename(folder.with_name("incomplete.ABC_3.1.0"))
    with pytest.raises(DataError, match=r"'kitti' is not prepared in .*prepare_vtab.py --tasks kitti_dist"):
        TFDSSource(tmp_path).fingerprint(task)


def test_an_older_version_needs_no_builder_code(prepared: tuple[Path, Any], tmp_path: Path) -> None:
    """Upstream's code knows only 4.0.0 of the pets; a directory of 3.2.0 is read by what it says of itself."""
    task = ALL["oxford_iiit_pet"][0]
    write_set(tmp_path, task, count=10)
    age(tmp_path / "oxford_iiit_pet" / "4.0.0", "3.2.0")
    pixels = TFDSSource(tmp_path, official=False).load(task, "test", 32)
    assert len(pixels.labels) == 10 and pixels.provenance["builder"] == "oxford_iiit_pet:3.2.0"


def rewrite(folder: Path, builder: str, split: str, change: Any) -> None:
    """Apply ``change`` to the list of records of a tfrecord split."""
    file = folder / f"{builder}-{split}.tfrecord-00000-of-00002"
    data, records = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        records.append(data[: size + 16])
        data = data[size + 16 :]
    file.write_bytes(b"".join(change(records)))


def test_records_out_of_order_are_refused(prepared: tuple[Path, Any], tmp_path: Path) -> None:
    for name in ("cifar100", "clevr"):
        copy = to_tfrecord(prepared[0], name, tmp_path)
        rewrite(copy, name, "train", lambda records: [records[1], records[0], *records[2:]])
        with pytest.raises(DataError, match=r"record \d of 'train' has key .*not the official records"):
            TFDSSource(tmp_path, official=False).load(ALL[name][0], "train800", 32)


def test_damaged_directories(prepared: tuple[Path, Any], tmp_path: Path) -> None:
    task = ALL["eurosat"][0]
    copy = to_tfrecord(prepared[0], "eurosat", tmp_path)
    shard = copy / "eurosat-train.tfrecord-00001-of-00002"
    whole = shard.read_bytes()

    def load() -> None:
        TFDSSource(tmp_path, official=False).load(task, "test", 32)

    shard.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"is cut off in record 14"):
        load()
    shard.write_bytes(b"\1" + whole[1:])
    with pytest.raises(DataError, match=r"record 0 is damaged; prepare the set again"):
        load()
    shard.write_bytes(b"")
    with pytest.raises(DataError, match=r"is missing or empty, it should hold 15 examples"):
        load()
    shard.write_bytes(whole)
    load()
    info = copy / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace('"shardLengths": ["15", "15"]', '"shardLengths": ["15", "16"]'))
    with pytest.raises(DataError, match=r"record 15 is missing"):
        TFDSSource(tmp_path, official=False).load(task, "test", 32)
    info.write_text(text[:-9])
    with pytest.raises(DataError, match=r"dataset_info.json: is damaged"):
        load()
    info.write_text(text.replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(DataError, match=r"format 'riegeli'; readable: array_record, tfrecord"):
        load()


def test_a_damaged_array_record(prepared: tuple[Path, Any], tmp_path: Path) -> None:
    task = ALL["smallnorb"][0]
    write_set(tmp_path, task, count=6)
    file = next((tmp_path / "smallnorb").rglob("smallnorb-test.array_record*"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"split 'test' cannot be read"):
        TFDSSource(tmp_path, official=False).load(task, "test", 32)


def write_images(root: Path, files: list[bytes]) -> VTABTask:
    """Textures with given image files, as upstream would copy them from the archive."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = tfds.builder("dtd", data_dir=root)

    def examples() -> list[tuple[str, dict[str, Any]]]:
        return [(f"f{i}", {"file_name": f"f{i}", "image": io.BytesIO(f), "label": 0}) for i, f in enumerate(files)]

    builder._split_generators = lambda manager: {split: examples() for split in ("train", "validation", "test")}
    builder.download_and_prepare(file_format="array_record")
    return ALL["dtd"][0]


def test_images_of_every_mode_become_rgb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    files = []
    for mode, form in (("RGBA", "PNG"), ("CMYK", "JPEG"), ("P", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("RGB", "PNG")):
        stream = io.BytesIO()
        rgb.convert(mode).save(stream, form)
        files.append(stream.getvalue())
    task = write_images(tmp_path, files)
    pixels = TFDSSource(tmp_path, official=False).load(task, "test", 24)
    assert pixels.images.shape == (6, 20, 30, 3)
    rank = {key: row for row, key in enumerate(pixels.keys)}
    np.testing.assert_array_equal(pixels.images[rank["f0"]], np.asarray(rgb))
    np.testing.assert_array_equal(pixels.images[rank["f5"]], np.asarray(rgb))


def test_empty_and_broken_images(tmp_path: Path) -> None:
    task = write_images(tmp_path, [b"", encode(np.zeros((9, 9, 3), np.uint8)).getvalue()])
    with pytest.raises(DataError, match=r"record \d of 'test': the image is empty \(0 bytes\)"):
        TFDSSource(tmp_path, official=False).load(task, "test", 24)
    write_images(tmp_path / "b", [b"no image"])
    with pytest.raises(DataError, match=r"the image cannot be decoded"):
        TFDSSource(tmp_path / "b", official=False).load(task, "test", 24)


def test_labels_out_of_range(source: TFDSSource) -> None:
    with pytest.raises(DataError, match=r"label \d+ is outside of 0..1"):
        source.load(replace(ALL["cifar100"][0], num_classes=2, class_names=()), "test", 32)


def test_auto_finds_prepared_sets(prepared: tuple[Path, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    auto = AutoSource(prepared[0], official=False)
    assert auto.resolve(ALL["cifar100"][0]) is auto.tfds
    assert "data=auto: task 'cifar100' is read from prepared records in" in caplog.text
    with pytest.raises(DataError, match="not the official set"):
        AutoSource(prepared[0], synthetic=False).fingerprint(ALL["cifar100"][0])
    with pytest.raises(DataError, match="no folder for task 'dtd'"):
        auto.fingerprint(load_task("dtd"))


def test_reading_needs_no_tensorflow_and_counting_no_library(prepared: tuple[Path, Any]) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(REPO / "tests" / "data")!r})
from made_trees import load_task
from headwise.data.sources import AutoSource, TFDSSource
heavy = {{'torch', 'lightning', 'tensorflow', 'tensorflow_datasets', 'timm', 'cv2'}}
task, source = load_task('eurosat'), TFDSSource({str(prepared[0])!r}, official=False)
source.count(task, 'test')
before = sorted(heavy & set(sys.modules))
source.load(task, 'test', 224)
print(before, sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "[] ['tensorflow_datasets']"


def test_checksum_of_tfrecord_frames(tmp_path: Path) -> None:
    """Golden value: CRC-32C of 32 zero bytes is 0x8a9136aa (RFC 3720)."""
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="record 7 is asked for, the files hold 0"):
        list(tfrecords([(tmp_path / "empty", 0)], [7]))


@pytest.mark.slow
def test_training_never_imports_tensorflow(prepared: tuple[Path, Any], tmp_path: Path) -> None:
    """A package of that name lies on the path and would be found: importing it before triton can crash Python."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('TensorFlow was imported')")
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(REPO / "tests" / "data")!r}]
import headwise.runs.experiment, headwise.training.loop
from made_trees import load_task
from headwise.data.sources import TFDSSource
from headwise.data.vtab import VTABDataModule
data = VTABDataModule(load_task("clevr_count"), TFDSSource({str(prepared[0])!r}, official=False), 32, 8)
images, labels = next(iter(data.train_dataloader()))
print(tuple(data.preprocess(images).shape), len(data.test_dataloader()), "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout.strip() == "(8, 3, 32, 32) 1 False", done.stderr[-2000:]

"""Real prepared directories: upstream's own builders with small generated examples in place of their downloads."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from made_trees import REPO, load_task
from PIL import Image

from headwise.data.stores.prepared import masked_crc32c
from headwise.data.tasks import VTABTask

FEWSHOT = {"food101": ("2.*.*", {"train": 30, "validation": 12}), "cars196": ("2.*.*", {"train": 30, "test": 12})}
NUM_OBJECTS = (3, 10)


@dataclass
class Written:
    """What was handed to the builder of one split: key, features (images as arrays), by position of writing."""

    keys: list[str]
    features: list[dict[str, Any]]


def tasks_of_all_builders() -> dict[str, list[VTABTask]]:
    """The 18 upstream builders with the tasks that read them."""
    tasks: dict[str, list[VTABTask]] = {}
    for file in sorted((REPO / "conf" / "dataset").glob("*.yaml")):
        task = load_task(file.stem)
        tasks.setdefault(str(task.builder), []).append(task)
    for name, (version, counts) in FEWSHOT.items():
        train, test = counts
        classes = {"food101": 101, "cars196": 196}[name]
        splits = {"train": f"{train}[:80%]", "val": f"{train}[80%:]", "test": test}
        tasks[name] = [
            VTABTask(
                name=name, group="natural", num_classes=classes, folders=[name], builder=name, versions=[version],
                splits=splits, num_test=counts[test],
            )
        ]  # fmt: skip
    return tasks


def sizes_of(task: VTABTask, count: int = 30) -> dict[str, int]:
    """Upstream splits that a task reads, each with a small number of examples."""
    return dict.fromkeys((text.partition("[")[0] for text in task.splits.values()), count)


def write_set(root: Path, task: VTABTask, count: int = 30, form: str = "array_record") -> dict[str, Written]:
    """Prepare a set through its upstream builder; returns what was written. Only array_record needs no TensorFlow."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    name = f"{task.builder}/{task.config}" if task.config else str(task.builder)
    builder = tfds.builder(name, data_dir=root)
    written = {split: _examples(builder, split, n) for split, n in sizes_of(task, count).items()}
    builder._split_generators = lambda manager: {split: _encoded(builder, made) for split, made in written.items()}
    builder.download_and_prepare(file_format=form)
    return written


def _examples(builder: Any, split: str, count: int) -> Written:
    rng = np.random.default_rng(sum(map(ord, builder.name + split)))
    made = Written([], [])
    for index in range(count):
        features = {name: _value(f, rng, builder.name) for name, f in builder.info.features.items()}
        key = _name_example(builder, split, index, features)
        made.keys.append(key)
        made.features.append(features)
    return made


def _name_example(builder: Any, split: str, index: int, features: dict[str, Any]) -> str:
    """Give an example the key that upstream's builder gives it, and the feature that tells it."""
    name = builder.name
    if name in ("cifar100", "svhn_cropped", "dsprites", "smallnorb"):
        if "id" in features:
            features["id"] = f"{split}_{index:05d}"
        return str(index)
    if name in ("eurosat", "resisc45"):
        label = builder.info.features["label"].int2str(features["label"])
        features["filename"] = f"{label}_{index + 1}.jpg"
        return f"{label}_{label}_{index + 1}.jpg"
    if name == "caltech101":
        features["image/file_name"] = f"image_{index:04d}.jpg"
        return f"Faces/image_{index:04d}.jpg"
    key = {"kitti": f"{index:06d}.png", "patch_camelyon": f"{split}_{index}"}.get(name, f"file_{index:06d}")
    for feature in ("file_name", "filename", "name", "id", "image/file_name"):
        if feature in features:
            features[feature] = key
    return key


def _value(feature: Any, rng: np.random.Generator, builder: str) -> Any:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        height, width, channels = (side or default for side, default in zip(feature.shape, (100, 130, 3), strict=True))
        small = rng.integers(0, 2 if builder == "dsprites" else 256, (5, 5, channels), dtype=np.uint8)
        return small[np.arange(height) * 5 // height][:, np.arange(width) * 5 // width]
    if isinstance(feature, tfds.features.Text):
        return "text"
    if isinstance(feature, tfds.features.ClassLabel):
        return int(rng.integers(feature.num_classes))
    if isinstance(feature, tfds.features.BBoxFeature):
        return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        count = int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1)) if builder == "clevr" else int(rng.integers(4))
        return [{name: _value(f, rng, builder) for name, f in inner.items()} for _ in range(count)]
    if feature.shape:
        return rng.uniform(7, 25 if builder == "kitti" else 12, feature.shape).astype(np.float32)
    return float(rng.uniform(0, 1))


def _encoded(builder: Any, made: Written) -> Iterator[tuple[Any, dict[str, Any]]]:
    numbered = builder.name in ("cifar100", "svhn_cropped", "dsprites", "smallnorb")
    for key, features in zip(made.keys, made.features, strict=True):
        ready = {}
        for name, value in features.items():
            lossy = builder.name in ("oxford_iiit_pet", "dmlab") and name == "image"
            ready[name] = encode(value, "JPEG" if lossy else "PNG") if _is_image(value) else value
        yield int(key) if numbered else key, ready


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8


def encode(image: np.ndarray, form: str = "PNG") -> io.BytesIO:
    """An image file in memory."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(stream, form)
    stream.seek(0)
    return stream


def to_tfrecord(root: Path, builder: str, target: Path) -> Path:
    """Copy a prepared directory with its records in tfrecord files, two shards per split."""
    from array_record.python.array_record_module import ArrayRecordReader

    (folder,) = (path.parent for path in (root / builder).rglob("dataset_info.json"))
    copy = target / folder.relative_to(root)
    copy.mkdir(parents=True)
    info = json.loads((folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        reader = ArrayRecordReader(str(next(folder.glob(f"{builder}-{split['name']}.array_record*"))))
        records = reader.read_all()
        reader.close()
        half = len(records) // 2
        for index, part in enumerate((records[:half], records[half:])):
            frames = b"".join(frame(record) for record in part)
            (copy / f"{builder}-{split['name']}.tfrecord-{index:05d}-of-00002").write_bytes(frames)
        split["shardLengths"] = [str(half), str(len(records) - half)]
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    (copy / "features.json").write_bytes((folder / "features.json").read_bytes())
    return copy


def frame(record: bytes) -> bytes:
    """A record as tfrecord files hold it; the checksum of its content is left out."""
    head = struct.pack("<Q", len(record))
    return head + struct.pack("<I", masked_crc32c(head)) + record + b"\0\0\0\0"

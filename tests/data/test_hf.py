"""Parquet files and folders of Hugging Face's datasets as sources; skipped where the package is not installed."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headwise.data.found import with_classes
from headwise.data.sources import source_of
from headwise.data.stored import facts
from headwise.data.stores import hf
from headwise.data.stores.folder import FolderSource
from headwise.data.stores.hf import DatasetsSource
from headwise.data.stores.labelsets import names_or_count
from headwise.data.stores.shards import Shard
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError, DataError
from headwise.storage import hashes

TARGET = "headwise.data.sources.DatasetsSource"
DATASET = {"group": "own", "name": "folder", "num_classes": None, "folders": ["."], "class_names": []}
needs_package = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
SPLITS = ("train800val200", "test")


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def task_of(root: Path, **fields: Any) -> VTABTask:
    return VTABTask(**with_classes({**DATASET, **fields}, {"root": str(root), "_target_": TARGET}))


def parquet(file: Path, **columns: list[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def rows(first: int, count: int) -> dict[str, list[Any]]:
    images = [{"bytes": png(first + i), "path": f"{i}.png"} for i in range(count)]
    return {"image": images, "label": [("cat", "dog")[i % 2] for i in range(count)]}


@needs_package
def test_parquet_of_bytes_and_of_paths_are_one(tmp_path: Path) -> None:
    parquet(tmp_path / "one" / "data" / "train-00000-of-00001.parquet", **rows(0, 6))
    parquet(tmp_path / "one" / "data" / "test-00000-of-00001.parquet", **rows(10, 4))
    for split, first, count in (("train", 0, 6), ("test", 10, 4)):
        names = [f"images/{first + i}.png" for i in range(count)]
        parquet(tmp_path / "two" / f"{split}.parquet", path=names, target=rows(first, count)["label"])
        (tmp_path / "two" / "images").mkdir(exist_ok=True)
        for i, name in enumerate(names):
            (tmp_path / "two" / name).write_bytes(png(first + i))
    task = task_of(tmp_path / "one")
    assert task.class_names == ("cat", "dog") and task == task_of(tmp_path / "two")
    one, two = (DatasetsSource(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint(task) == two.fingerprint(task) and one.labels(task) == ["own data"]
    for split in SPLITS:
        a, b = one.load(task, split, 16), two.load(task, split, 16)
        assert (a.images == b.images).all() and a.labels.tolist() == b.labels.tolist()
    assert one.load(task, "test", 16).labels.tolist() == [0, 1, 0, 1]
    assert source_of({"_target_": TARGET, "root": str(tmp_path / "one")}).count(task, "train800val200") == 6


@needs_package
def test_what_was_saved_to_disk_is_read_with_its_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["zebra", "ant"])})
    parts = {
        name: datasets.Dataset.from_dict(
            {"img": [{"bytes": png(first + i), "path": None} for i in range(10)], "kind": [i % 2 for i in range(10)]},
            features,
        )
        for name, first in (("train", 0), ("validation", 20), ("test", 40))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "three"))
    task, source = task_of(tmp_path / "three"), DatasetsSource(tmp_path / "three")
    assert task.class_names == ("zebra", "ant")
    assert [source.count(task, split) for split in ("train800", "val200", "test")] == [10, 10, 10]
    assert source.load(task, "test", 16).labels.tolist() == [0, 1] * 5
    parts["train"].save_to_disk(str(tmp_path / "one"))
    source = DatasetsSource(tmp_path / "one")
    assert source.labels(task) == ["own data", "own split"]
    assert [source.count(task, split) for split in SPLITS] == [8, 2]
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../three/train/data-00000-of-00001.arrow"}]
    (tmp_path / "one" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"state\.json: '\.\./three.*' is no file of this folder"):
        DatasetsSource(tmp_path / "one").count(task, "test")


@needs_package
@pytest.mark.parametrize("form", ["names", "columns", "list"])
def test_several_labels(form: str, tmp_path: Path) -> None:
    for part, first in (("train", 0), ("test", 9)):
        images = [{"bytes": png(first + i), "path": None} for i in range(2)]
        labels: dict[str, list[Any]] = {
            "names": {"labels": ["cat|dog", ""]},
            "columns": {"cat": [1, 0], "dog": [True, False]},
            "list": {"tags": [["dog", "cat"], []]},
        }[form]
        parquet(tmp_path / f"{part}.parquet", image=images, **labels)
    task = task_of(tmp_path, multi_label=True)
    assert task.class_names == ("cat", "dog")
    assert DatasetsSource(tmp_path).load(task, "test", 16).labels.tolist() == [[1, 1], [0, 0]]


@needs_package
def test_lists_of_class_labels_have_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "seen": datasets.Sequence(datasets.ClassLabel(names=["zebra", "ant"]))}
    )
    images = [{"bytes": png(i), "path": None} for i in range(10)]
    datasets.Dataset.from_dict({"image": images, "seen": [[1, 0], []] * 5}, features).save_to_disk(str(tmp_path / "d"))
    task, source = task_of(tmp_path / "d", multi_label=True), DatasetsSource(tmp_path / "d")
    assert task.class_names == ("zebra", "ant") and "own split" in source.labels(task)
    labels = source.load(task, "train800val200", 16).labels
    assert labels.shape == (8, 2) and (labels[:, 0] == labels[:, 1]).all()


@needs_package
def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(0))
    root = tmp_path / "root"
    for path, said in (("../secret.png", "leaves the data root"), (str(tmp_path / "secret.png"), "is absolute")):
        parquet(root / "train.parquet", image=[path, path], label=["a", "b"])
        with pytest.raises(DataError, match=said):
            DatasetsSource(root).fingerprint(task_of(root))
    parquet(root / "train.parquet", image=[b"no image", png(1)], label=["a", "b"])
    with pytest.raises(DataError, match=r"train\.parquet, line 1: the image cannot be decoded"):
        DatasetsSource(root).load(task_of(root), "train800val200", 16)
    parquet(root / "train.parquet", photo=[b""], kind=["b"])
    with pytest.raises(DataError, match=r"no columns may be the image .* data\.image=NAME, one of photo, kind"):
        task_of(root)
    (root / "train.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        task_of(root)
    (root / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"holds no \.parquet file"):
        task_of(root)
    (root / "train.parquet").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leaves the data root"):
        task_of(root)


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^data=hf needs the package datasets: pip install 'headwise\[datasets\]'$"):
        DatasetsSource(tmp_path)


def test_a_folder_of_parquet_is_pointed_to_the_right_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Parquet files and saved datasets are read with data=hf"):
        with_classes(DATASET, {"root": str(tmp_path)})
    assert FolderSource(tmp_path)


def class_label(root: Path, names: list[str], labels: list[Any], several: bool = False) -> None:
    """A train.parquet and a test.parquet with a ClassLabel, or lists of them."""
    import datasets

    kind = datasets.ClassLabel(names=names)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Sequence(kind) if several else kind})
    root.mkdir(exist_ok=True)
    for first, part in ((0, "train"), (50, "test")):
        images = [{"bytes": png(first + i), "path": None} for i in range(len(labels))]
        datasets.Dataset.from_dict({"image": images, "label": labels}, features).to_parquet(root / f"{part}.parquet")


@needs_package
def test_numbers_of_class_labels_are_places_also_where_names_are_numbers(tmp_path: Path) -> None:
    class_label(tmp_path / "a", ["1", "2", "0"], [0, 1, 2])
    task = task_of(tmp_path / "a")
    assert task.class_names == ("1", "2", "0")
    assert DatasetsSource(tmp_path / "a").load(task, "test", 16).labels.tolist() == [0, 1, 2]
    class_label(tmp_path / "b", ["1", "2", "0"], [[0, 2], [1]], several=True)
    several = task_of(tmp_path / "b", multi_label=True)
    assert DatasetsSource(tmp_path / "b").load(several, "test", 16).labels.tolist() == [[1, 0, 1], [0, 1, 0]]


@needs_package
@pytest.mark.parametrize("labels", [[0, -1], [[0], [1, -1]]])
def test_a_class_label_of_none_is_refused(labels: list[Any], tmp_path: Path) -> None:
    several = isinstance(labels[0], list)
    class_label(tmp_path, ["a", "b"], labels, several)
    with pytest.raises(DataError, match=r"line 2: column 'label' holds .*-1\]?, which is no class of it"):
        DatasetsSource(tmp_path).fingerprint(task_of(tmp_path, multi_label=several))


@needs_package
@pytest.mark.parametrize("cell", [[0, 1, 1], [0.0, 1.0], [True, False], ["cat", "cat"], ["cat", None]])
def test_lists_that_are_no_classes_are_refused(cell: list[Any], tmp_path: Path) -> None:
    for part in ("train", "test"):
        parquet(tmp_path / f"{part}.parquet", image=[png(1)], labels=[cell])
    with pytest.raises(DataError, match=r"line 1: .* a list has names or numbers of classes, each once"):
        task_of(tmp_path, multi_label=True)


@needs_package
def test_one_number_is_one_of_several_labels(tmp_path: Path) -> None:
    for part in ("train", "test"):
        parquet(tmp_path / f"{part}.parquet", image=[png(1), png(2)], label=[0, 1])
    task = task_of(tmp_path, multi_label=True)
    assert DatasetsSource(tmp_path).load(task, "test", 16).labels.tolist() == [[1, 0], [0, 1]]


@needs_package
def test_images_are_read_again_only_where_a_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1.0)
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
    held, paths, saved = (tmp_path / name for name in ("held", "paths", "saved"))
    parquet(held / "train.parquet", **rows(0, 6))
    (paths / "images").mkdir(parents=True)
    for number in range(6):
        (paths / f"images/{number}.png").write_bytes(png(number))
    parquet(paths / "train.parquet", path=[f"images/{i}.png" for i in range(6)], label=rows(0, 6)["label"])
    datasets.Dataset.from_dict(rows(0, 6)).save_to_disk(str(saved))
    task = task_of(held)
    first = {root: DatasetsSource(root).fingerprint(task) for root in (held, paths, saved)}
    looked: list[int] = []
    monkeypatch.setattr(hf, "facts", lambda content: looked.append(len(content)) or facts(content))
    columns: list[str] = []
    own_rows = Shard.rows
    monkeypatch.setattr(Shard, "rows", lambda self, names: columns.extend(names) or own_rows(self, names))
    assert {root: DatasetsSource(root).fingerprint(task) for root in first} == first
    assert looked == [] and set(columns) == {"label", "path"}, "of cells that hold paths these are looked up"
    (paths / "images/3.png").write_bytes(png(33))
    parquet(held / "train.parquet", **rows(1, 6))
    for root, count in ((paths, 1), (held, 6), (saved, 0)):
        looked.clear()
        assert (DatasetsSource(root).fingerprint(task) != first[root]) == bool(count)
        assert len(looked) == count


@pytest.mark.parametrize("is_left", [True, False])
def test_a_saved_folder_that_was_emptied_is_refused(is_left: bool, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    if is_left:
        folder.mkdir()
    with pytest.raises(DataError, match=r"saved: cannot be read \(.+\)"):
        Shard(folder, {}, 1, table=object()).stamp  # noqa: B018


@needs_package
def test_as_many_names_as_classes_are_given_are_their_names(tmp_path: Path) -> None:
    parquet(tmp_path / "text" / "train.parquet", **rows(0, 10))
    class_label(tmp_path / "places", ["cat", "dog"], [0, 1])
    for root in (tmp_path / "text", tmp_path / "places"):
        task = task_of(root, num_classes=2)
        assert task == task_of(root) and task.class_names == ("cat", "dog")
        with pytest.raises(DataError, match=r"'cat' is no class; .*dataset\.num_classes is left out"):
            DatasetsSource(root).fingerprint(task_of(root, num_classes=3))


@needs_package
@pytest.mark.parametrize("cells", [[[0, 1], [1, 0]], ["0|1", "1|0"]])
def test_two_classes_that_every_image_has_may_be_columns(cells: list[Any], tmp_path: Path) -> None:
    for part in ("train", "test"):
        images = [png(number + 9 * (part == "test")) for number in range(2)]
        parquet(tmp_path / f"{part}.parquet", image=images, labels=cells)
    for fields in ({}, {"class_names": ["cat", "dog"]}):
        with pytest.raises(
            DataError, match=r"every image has both classes \(.*train\.parquet, line 1\); where 0 and 1"
        ):
            DatasetsSource(tmp_path).fingerprint(task_of(tmp_path, multi_label=True, **fields))
    parquet(tmp_path / "test.parquet", image=images, labels=[cells[0], cells[0][:1]])
    assert DatasetsSource(tmp_path).fingerprint(task_of(tmp_path, multi_label=True))


@needs_package
@pytest.mark.parametrize("name", ["cats_{}", "cats-{}-00000-of-00001", "cats.{}", "my cats {}", "{}", "testimony_{}"])
def test_a_part_is_named_after_what_divides_words(name: str, tmp_path: Path) -> None:
    for part, first, count in (("train", 0, 6), ("test", 10, 4)):
        parquet(tmp_path / f"{name.format(part)}.parquet", **rows(first, count))
    task, source = task_of(tmp_path), DatasetsSource(tmp_path)
    assert [source.count(task, split) for split in SPLITS] == [6, 4]
    assert "own split" not in source.labels(task)


@needs_package
def test_a_part_without_rows_is_none(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", **rows(0, 10))
    import pyarrow.parquet as pq

    empty = pq.read_table(tmp_path / "train.parquet").slice(0, 0)
    pq.write_table(empty, tmp_path / "test.parquet")
    task, source = task_of(tmp_path), DatasetsSource(tmp_path)
    assert [source.count(task, split) for split in SPLITS] == [8, 2] and "own split" in source.labels(task)
    parquet(tmp_path / "validation.parquet", **rows(20, 6))
    source = DatasetsSource(tmp_path)
    assert [source.count(task, split) for split in ("train800", "val200", "test")] == [8, 2, 6]
    assert "own split" not in source.labels(task)
    for part in ("train", "validation"):
        pq.write_table(empty, tmp_path / f"{part}.parquet")
    with pytest.raises(DataError, match="holds no row"):
        task_of(tmp_path)


@needs_package
def test_text_that_is_no_path_is_no_image(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", image=["A" * 5000, "B" * 5000], label=["a", "b"])
    with pytest.raises(DataError, match=r"train\.parquet, line 1: .{,400}$"):
        DatasetsSource(tmp_path).fingerprint(task_of(tmp_path))


def test_a_number_of_thousands_of_digits_is_no_class(tmp_path: Path) -> None:
    """Python's own limit on digits is no answer to a user."""
    assert names_or_count({"1", "9" * 5000}, tmp_path)[1] == 10**18

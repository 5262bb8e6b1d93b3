"""Every place that reads a file, each with hostile ones: it refuses them with the project's errors, and nothing runs.

`LOADERS` is closed: a new place that reads fails `test_every_loader_is_known` until it has a line here.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from headwise.artifacts import released
from headwise.artifacts.adapterfolder import read_adapted
from headwise.artifacts.export import load
from headwise.artifacts.peftfolder import read_peft
from headwise.cli import earlier_record
from headwise.commands.arguments import record_file
from headwise.data import bulk, own
from headwise.data.decode import decode
from headwise.data.stored import facts
from headwise.data.stores import prepared
from headwise.data.stores.cache import META, Cache, label_file
from headwise.data.stores.labelsets import read_table
from headwise.data.stores.listfiles import labels_in
from headwise.data.stores.prepared import FEATURES, INFO, MARKER, check_features
from headwise.data.stores.shards import Shard, shards_in
from headwise.errors import HeadwiseError
from headwise.methods._selection import Selected
from headwise.network import hub, reading
from headwise.report import pictures
from headwise.results import reading as runs
from headwise.results.records import Result
from headwise.results.store import PhaseStore, ResultStore
from headwise.runs.ledger import Ledger
from headwise.storage import hashes, plain
from headwise.storage.claims import standing
from headwise.training import address
from made_networks import REPO, network, plain_timm
from made_results import result

READERS = {
    "pq.read_metadata",
    "pq.ParquetFile",
    "datasets.load_from_disk",
    "json.load",
    "json.loads",
    "read_json",
    "plain.read_json",
    "plain.parse",
    "np.load",
    "np.fromfile",
    "load_file",
    "safetensors.load",
    "load",
    "safe_open",
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "yaml.safe_load",
    "yaml.load",
    "OmegaConf.load",
    "csv.reader",
    "csv.DictReader",
    "Image.open",
    "zipfile.ZipFile",
    "tfds.builder_from_directory",
    "tfrecords",
}
"""Calls that turn a file into something else, as they are spelled here."""


class Bomb:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def hostile(marker: Path) -> dict[str, bytes]:
    """Files by what they try; what they would leave is `marker`."""
    bomb = Bomb(marker)
    zipped, arrays, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"x": bomb}, zipped)
    np.savez(arrays, x=np.array([bomb], dtype=object))
    np.save(objects, np.array([bomb], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../escaped", "x")
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    yaml = f"!!python/object/apply:os.mkdir ['{marker}']\n"
    target = json.dumps({"_target_": "os.mkdir", "path": str(marker)})
    return {
        "pickle": pickle.dumps(bomb),
        "torch": zipped.getvalue(),
        "npz": arrays.getvalue(),
        "npy": objects.getvalue(),
        "zip": archive.getvalue(),
        "safetensors too large": len(header).to_bytes(8, "little") + header,
        "safetensors header": (2**62).to_bytes(8, "little"),
        "yaml": yaml.encode(),
        "target": target.encode(),
        "nested": b"[" * 100_000,
        "nested yaml": b"- " * 5_000 + b"x",
        "digits": b'{"x": ' + b"9" * 5000 + b"}",
        "label digits": b"a.png " + b"9" * 5000,
        "NaN": b'{"x": NaN}',
        "not UTF-8": b"\xff\xfe\x00\x80",
        "NUL": b"\x00" * 1000,
        "empty": b"",
        "list": b"[]",
        "text": b"x\n",
        "csv": b"epoch,train_loss,lr\n=1,x,\n1\n" + b'"' * 200_000,
        "PNG": b"\x89PNG\r\n\x1a\n"
        + b"\x00\x00\x00\rIHDR"
        + b"\x7f\xff\xff\xff" * 2
        + b"\x08\x06\x00\x00\x00"
        + b"\x00" * 4,
        "large picture": _picture(),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
    }


@functools.cache
def _picture() -> bytes:
    """A small file of a picture that would fill the memory."""
    out = io.BytesIO()
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        Image.new("1", (20_000, 20_000)).save(out, "PNG")
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return out.getvalue()


def put(folder: Path, name: str, content: bytes) -> Path:
    """A file of this content."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_record(folder: Path, content: bytes) -> None:
    put(folder, "result.json", content)
    load(folder)


def read_store(folder: Path, content: bytes) -> None:
    store = ResultStore(folder, on_bad=lambda error: None)
    file = store.put(result().key, result())
    put(folder, "index.jsonl", content)
    assert len(store.finished()) == 1
    file.write_bytes(content)
    assert list(store.all()) == []


def read_phase(folder: Path, content: bytes) -> None:
    put(folder, "phases/0123456789abcdef/phase.json", content)
    assert PhaseStore(folder, on_bad=lambda error: None).finished("0123456789abcdef") is None


def read_ledger(folder: Path, content: bytes) -> None:
    put(folder, "ledger/0123456789abcdef.json", content)
    assert Ledger(folder).entries() == {}


def read_claim(folder: Path, content: bytes) -> None:
    put(folder, "claim-1", content)
    assert standing(folder)[0] == "held"


def read_hash(folder: Path, content: bytes) -> None:
    file = put(folder, "x", b"x")
    with mock.patch.object(hashes, "SETTLED_SECONDS", -1.0):
        before = hashes.file_sha256(file, folder)
    for note in (folder / "sha256").iterdir():
        note.write_bytes(content)
    assert hashes.file_sha256(file, folder) == before


def read_weights(folder: Path, content: bytes, suffix: str) -> None:
    reading.load_weights(network("vit").model, put(folder, f"x{suffix}", content))


def read_cache(folder: Path, content: bytes) -> None:
    put(folder, META, content)
    Cache.open(folder)


def read_array(folder: Path, content: bytes) -> None:
    file = put(folder, label_file("x", "test"), content)
    entry = {"bytes": len(content), "sha256": hashes.file_sha256(file), "shape": [1], "dtype": "int64"}
    Cache(folder, {}).array(file.name, entry)


def read_planes(folder: Path, content: bytes) -> None:
    file = put(folder, bulk.FILES[0], content)
    entry = {"bytes": len(content), "sha256": hashes.file_sha256(file), "shape": [1, 3, 2, 2], "dtype": "uint8"}
    put(folder, "meta.json", json.dumps({"files": dict.fromkeys(bulk.FILES, entry), "keys": [], "facts": {}}).encode())
    bulk._read(folder)


def read_prepared(folder: Path, content: bytes, name: str) -> None:
    info = {"name": "x", "version": "1.0.0", "splits": [], "fileFormat": "tfrecord"}
    put(folder, f"1.0.0/{INFO}", json.dumps(info).encode())
    put(folder, f"1.0.0/{FEATURES}", b"{}")
    put(folder, f"1.0.0/{name}", content)
    if name == FEATURES:
        check_features(folder / "1.0.0" / FEATURES)
    prepared.read(folder / "1.0.0", "x")


def read_shard(folder: Path, content: bytes) -> None:
    list(prepared.tfrecords([(put(folder, "x", content), 1)], [0]))


def read_facts(folder: Path, content: bytes) -> None:
    own._remembered(put(folder, "x.json", content))


def read_hub(folder: Path, content: bytes) -> None:
    put(folder, "hub/x@32.json", content)
    os.environ["HEADWISE_CACHE"] = str(folder)  # the fixture sets it back
    hub.compare("x", 32, "abc")


def read_curves(folder: Path, content: bytes) -> None:
    pictures.learning_curves([put(folder, "a.csv", content)], ["a"], folder, draw=True)


def read_experiments(folder: Path, content: bytes) -> None:
    put(folder, "conf/experiment/x.yaml", content)
    with pytest.raises(HeadwiseError):
        runs.read(folder / "none", "x", folder)


Check = Callable[[Path, bytes], object]
OURS = "a file of the package or of the project's own configuration"
TEXT = "no file: text that this process holds"
LOADERS: dict[str, Check | str] = {
    "storage/plain.py:json.loads": lambda folder, content: Result.read(put(folder, "result.json", content)),
    "results/records.py:read_json": read_record,
    "results/store.py:plain.parse": read_store,
    "results/store.py:load_json": read_phase,
    "storage/claims.py:read_json": read_claim,
    "storage/hashes.py:read_json": read_hash,
    "runs/ledger.py:load_json": read_ledger,
    "commands/arguments.py:read_json": lambda folder, content: record_file(str(put(folder, "x.json", content))),
    "cli.py:read_json": lambda folder, content: earlier_record(put(folder, "x.json", content), plain.mapping),
    "runs/lifeline.py:json.loads": TEXT,
    "protocol/plan.py:json.loads": TEXT,
    "network/hub.py:read_json": read_hub,
    "training/address.py:load_file": lambda folder, content: address.read_tensors(
        put(folder, "x.safetensors", content)
    ),
    "training/address.py:load": lambda folder, content: address.read_tensors(
        put(folder, "x.safetensors", content), sha256="0" * 64
    ),
    "training/address.py:torch.load": lambda folder, content: _ckpt(folder, content),
    "training/address.py:zipfile.ZipFile": lambda folder, content: _ckpt(folder, content),
    "artifacts/released.py:np.fromfile": lambda folder, content: released.read_bi_lora(
        put(folder, "x.bin", content), released.Layout(rank=4, bits=1)
    ),
    "artifacts/released.py:torch.load": lambda folder, content: released.read_cara(put(folder, "x.pt", content)),
    "methods/_selection.py:torch.load": lambda folder, content: Selected(put(folder, "x.pth", content)),
    "network/reading.py:load_file": lambda folder, content: read_weights(folder, content, ".safetensors"),
    "network/reading.py:torch.load": lambda folder, content: read_weights(folder, content, ".pth"),
    "network/reading.py:zipfile.ZipFile": lambda folder, content: read_weights(folder, content, ".npz"),
    "data/stores/cache.py:plain.read_json": read_cache,
    "data/stores/cache.py:np.load": read_array,
    "data/bulk.py:read_json": lambda folder, content: bulk._read(put(folder, "meta.json", content).parent),
    "data/bulk.py:np.load": lambda folder, content: read_planes(folder, content),
    "data/stores/prepared.py:read_json": lambda folder, content: [
        _refused(read_prepared, folder / name, content, name) for name in (INFO, FEATURES, MARKER)
    ],
    "data/stores/tfds.py:tfrecords": read_shard,
    "data/stores/tfds.py:tfds.builder_from_directory": lambda folder, content: check_features(
        put(folder, FEATURES, content)
    ),
    "data/own.py:read_json": read_facts,
    "data/stored.py:Image.open": lambda folder, content: (
        facts(put(folder, "x.png", content)),
        decode(put(folder, "x.png", content), 3, "here"),
    ),
    "data/preparing/prepare.py:yaml.safe_load": OURS,
    "results/reading.py:yaml.safe_load": read_experiments,
    "comparison/printed.py:csv.DictReader": OURS,
    "protocol/presets.py:csv.DictReader": OURS,
    "methods/_catalog.py:csv.DictReader": OURS,
    "methods/noah.py:csv.DictReader": OURS,
    "results/classes.py:csv.DictReader": lambda folder, content: pictures.confusion(
        put(folder, "x.csv", content), ["a", "b"], folder / "run"
    ),
    "results/curve.py:csv.DictReader": read_curves,
    "runs/tracker.py:Image.open": "pictures that the run itself has drawn a moment before",
    "data/stores/listfiles.py:csv.reader": lambda folder, content: _refused(
        labels_in, put(folder, "train.csv", content)
    ),
    "data/stores/labelsets.py:csv.reader": lambda folder, content: _refused(
        read_table, put(folder, "train.csv", content)
    ),
    "data/stores/shards.py:read_json": lambda folder, content: [
        _refused(shards_in, put(folder / name, name, content).parent) for name in ("dataset_dict.json", "state.json")
    ],
    "data/stores/shards.py:pq.read_metadata": lambda folder, content: _refused(
        shards_in, put(folder, "train.parquet", content).parent
    ),
    "data/stores/shards.py:pq.ParquetFile": lambda folder, content: _refused(
        lambda: list(Shard(put(folder, "x.parquet", content), {}, 1).rows(["image"]))
    ),
    "data/stores/shards.py:datasets.load_from_disk": lambda folder, content: _refused(read_saved, folder, content),
    "artifacts/adapterfolder.py:plain.read_json": lambda folder, content: _refused(
        read_adapted, put(folder, "adapter.json", content).parent
    ),
    "artifacts/peftfolder.py:plain.read_json": lambda folder, content: _refused(
        read_peft, put(folder, "adapter_config.json", content).parent, plain_timm("vit")
    ),
    "network/given.py:yaml.safe_load": OURS,
    "protocol/described.py:OmegaConf.load": OURS,
    "runs/method_page.py:yaml.safe_load": OURS,
    "runs/method_page.py:read_json": OURS,
    "scripts/show_task.py:yaml.safe_load": OURS,
}
"""Every place that reads a file: how to give it one, or why nobody else can."""


def read_saved(folder: Path, content: bytes) -> None:
    """A folder of ``save_to_disk`` whose arrow file holds something else."""
    put(folder, "state.json", b'{"_data_files": [{"filename": "data.arrow"}], "_format_type": null}')
    put(folder, "dataset_info.json", b"{}")
    put(folder, "data.arrow", content)
    shards_in(folder)


def _ckpt(folder: Path, content: bytes) -> None:
    said = address.set_aside(put(folder, "last.ckpt", content))
    assert said is not None
    assert (folder / "last.ckpt.damaged").is_file()


def _refused(check: Callable[..., object], *given: Any) -> None:
    try:
        check(*given)
    except HeadwiseError as error:
        assert "\n" not in str(error).strip()
        assert len(str(error)) < 1500


def found() -> Iterator[str]:
    """Calls of `READERS` in the package, the scripts and train.py, as ``file:call``."""
    package = REPO / "src" / "headwise"
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*.py")}
    files |= {f"scripts/{file.name}": file for file in (REPO / "scripts").glob("*.py")} | {
        "train.py": REPO / "train.py"
    }
    wanted = READERS | {"load_json"}
    last = {call.rpartition(".")[2] for call in wanted}
    for name, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        own_names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            # most calls are of other names: only those that may be meant are spelled out
            end = getattr(node.func, "attr", getattr(node.func, "id", None))
            if end in last and (called := ast.unparse(node.func)) in wanted and called not in own_names:
                yield f"{name}:{called}"


def test_every_loader_is_known() -> None:
    places = set(found())
    assert places - set(LOADERS) == set(), "a new place that reads a file: give it hostile ones here"
    assert set(LOADERS) - places == set(), "a line of a place that is gone"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::Warning")
@pytest.mark.parametrize("place", [place for place, check in LOADERS.items() if not isinstance(check, str)])
def test_no_file_does_anything_but_be_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
    marker = tmp_path / "it ran"
    # what Pillow would hand a PostScript file to
    ghostscript = put(tmp_path / "bin", "gs", f"#!/bin/sh\n: > '{marker}'\n".encode())
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    check = LOADERS[place]
    assert not isinstance(check, str)
    for name, content in hostile(marker).items():
        folder = tmp_path / name
        folder.mkdir()
        _refused(check, folder, content)
        assert not marker.exists(), name
    assert not (tmp_path.parent / "escaped").exists()


def test_the_files_are_what_they_claim_to_be(tmp_path: Path) -> None:
    """Read without care, each of these runs something."""
    marker = tmp_path / "it ran"
    files = hostile(marker)
    pickle.loads(files["pickle"])
    marker.rmdir()
    torch.load(io.BytesIO(files["torch"]), weights_only=False)
    marker.rmdir()
    np.load(io.BytesIO(files["npz"]), allow_pickle=True)["x"]
    marker.rmdir()
    np.load(io.BytesIO(files["npy"]), allow_pickle=True)
    assert marker.is_dir()

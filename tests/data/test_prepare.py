from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_tfds import to_tfrecord, write_set
from made_trees import REPO, load_task, write_tree

from headwise.data.preparing import prepare as module
from headwise.data.preparing.prepare import Place, SetState, choose, missing_by_hand, prepare, read_tasks, status, table
from headwise.data.sources import FolderSource, TFDSSource
from headwise.data.stores.cache import CacheSource
from headwise.errors import ConfigError
from headwise.storage.claims import Claim
from made_scripts import loaded

TASKS = read_tasks(REPO / "conf" / "dataset")
PYTHON = os.environ.get("HEADWISE_PREPARE_PYTHON", sys.executable)
"""A Python that has TensorFlow and the other packages of the extra ``prepare``."""


def by_name(*names: str) -> list[Any]:
    return choose(TASKS, names)


@pytest.fixture(scope="session")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepare")
    write_set(root, load_task("dsprites_loc"), count=20)
    return root


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "records", tmp_path / "caches", 40, official=False)


def test_there_are_24_sets_and_each_says_what_to_do(place: Place) -> None:
    states = [status(task, place) for task in TASKS]
    assert len(states) == 24 and {state.state for state in states} == {"missing", "manual"}
    assert all(state.next for state in states)
    by_hand = {state.task for state in states if state.state == "manual"}
    assert by_hand == {"resisc45", "retinopathy", "fewshot_cars196", "fewshot_aircraft"}
    text = table(states)
    assert "0 of 24 are ready" in text and all(len(line) < 700 for line in text.splitlines())


def test_names_of_tasks() -> None:
    assert [task.name for task in by_name("svhn", "clevr")] == ["svhn", "clevr_count", "clevr_dist"]
    assert [task.name for task in by_name("dsprites_position", "dsprites")] == ["dsprites_loc", "dsprites_ori"]
    assert by_name("all") == TASKS
    with pytest.raises(ConfigError, match=r"unknown task 'cifar10' \(did you mean 'cifar100'\?\)"):
        by_name("cifar10")
    with pytest.raises(ConfigError, match="no task in '/nowhere'"):
        read_tasks(Path("/nowhere"))


def test_manual_files_are_named_until_they_are_there(place: Place) -> None:
    (retinopathy,) = by_name("retinopathy")
    assert missing_by_hand(retinopathy, place) == ["train", "test", "sample", "trainLabels.csv"]
    (state,) = prepare([retinopathy], place, lambda line: None)
    assert state.state == "manual" and "trainLabels.csv" in state.next and str(place.manual) in state.next
    for name in ("train", "test", "sample"):
        (place.manual / name).mkdir(parents=True)
    assert status(retinopathy, place).next.endswith("awaited in " + str(place.manual) + ": trainLabels.csv")


def test_prepared_sets_are_converted_without_tensorflow(sprites: Path, place: Place) -> None:
    place = Place(sprites, place.cache, 40, official=False)
    twins, said = by_name("dsprites"), []
    assert [status(task, place).state for task in twins] == ["missing", "missing"]
    assert "converts, no download" in status(twins[0], place).next
    states = prepare(twins, place, said.append)
    assert [(s.state, s.source) for s in states] == [("ready", "cache of tfds, unofficial split")] * 2 and states[
        0
    ].bytes > 0
    assert any("[1/1] dsprites_loc, dsprites_ori: dsprites_loc: test 2 of 2" in line for line in said)
    assert len(list(place.caches.glob("dsprites*"))) == 1
    said.clear()
    prepare(twins, place, said.append)
    assert len(said) == 2 and all("is ready" in line for line in said), "nothing is done twice"


def test_a_tfrecord_directory_is_converted_as_well(sprites: Path, place: Place) -> None:
    to_tfrecord(sprites, "dsprites", place.records)
    states = prepare(by_name("dsprites_loc"), place, lambda line: None)
    assert states[0].state == "ready"
    other = TFDSSource(sprites, official=False)
    assert CacheSource(place.caches).fingerprint(by_name("dsprites_loc")[0]) == other.fingerprint(
        by_name("dsprites")[0]
    )


def test_a_list_file_tree_is_cached(place: Place) -> None:
    write_tree(place.records / "dtd")
    (state,) = prepare(by_name("dtd"), place, lambda line: None)
    assert (state.state, state.source) == ("ready", "cache of folder, unofficial split")
    (dtd,) = by_name("dtd")
    assert CacheSource(place.caches).fingerprint(dtd) == FolderSource(place.records).fingerprint(dtd)


def test_an_unofficial_split_is_said_before_it_is_one(sprites: Path, place: Place) -> None:
    write_tree(place.records / "dtd")
    (dtd,) = by_name("dtd")
    assert status(dtd, place).source == "list files, unofficial split"
    (place.records / "dtd" / "test.txt").write_text("nonsense\n")
    damaged = status(dtd, place)
    assert damaged.state == "damaged" and "test.txt, line 1" in damaged.next
    records = status(by_name("dsprites_loc")[0], Place(sprites, place.cache, 40, official=False))
    assert records.source.startswith("records ") and records.source.endswith(", unofficial split")


def test_a_dead_address_is_said_where_the_set_is_missing(place: Place) -> None:
    (state,) = [status(task, place) for task in by_name("sun397")]
    assert "404" in state.next and "SUN397.tar.gz" in state.next and "downloads/manual" in state.next


def test_damage_is_seen_and_mended(sprites: Path, place: Place) -> None:
    place = Place(sprites, place.cache, 40, official=False)
    (task,) = by_name("dsprites_loc")
    prepare([task], place, lambda line: None)
    (file,) = place.caches.glob("*/test.npy")
    stamp, data = file.stat().st_mtime_ns, bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stamp, stamp))
    assert status(task, place, verify=True).state == "damaged"
    file.write_bytes(data[:-3])
    state = status(task, place)
    assert state.state == "damaged" and "bytes instead of" in state.next
    assert prepare([task], place, lambda line: None)[0].state == "ready"


def test_counts_must_be_official(sprites: Path, place: Place) -> None:
    (state,) = prepare(by_name("dsprites_loc"), Place(sprites, place.cache, 40), lambda line: None)
    assert state.state == "missing" and "is not the official set: train: 20 instead of 737280" in state.next


def test_a_download_needs_tensorflow(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    (state,) = prepare(by_name("cifar100"), place, lambda line: None)
    assert state.state == "missing" and "pip install -e '.[prepare]'" in state.next


def test_a_full_disk_is_said_before_anything_is_fetched(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage())
    (state,) = prepare(by_name("cifar100"), Place(place.root, place.cache), lambda line: None)
    assert "has 0.0 GB free, about 0.3 GB are needed" in state.next


class Usage:
    free = 1000


def test_two_preparations_at_once(sprites: Path, place: Place) -> None:
    other = f"""
import sys, time
sys.path.insert(0, {str(REPO / "src")!r})
from pathlib import Path
from headwise.storage.claims import Claim
with Claim(Path({str(place.records / ".claims" / "dsprites")!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            to_tfrecord(sprites, "dsprites", place.records)
            (state,) = prepare(by_name("dsprites_loc"), place, lambda line: None)
            assert state.state == "missing" and f"is claimed by process {process.pid}" in state.next
        finally:
            process.kill()
    assert prepare(by_name("dsprites_loc"), place, lambda line: None)[0].state == "ready", "it died"
    with Claim(place.records / ".claims" / "dsprites"):
        pass


def test_command_line(
    sprites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path))
    main, arguments = loaded("prepare_vtab").main, ["--root", str(sprites), "--json", str(tmp_path / "s.json")]
    assert main(["--status", *arguments]) == 0
    assert len(json.loads((tmp_path / "s.json").read_text())) == 24
    assert main(["--tasks", "dsprites_loc", "--unofficial", *arguments]) == 0
    assert SetState(**json.loads((tmp_path / "s.json").read_text())[0]).state == "ready"
    assert "1 of 1 are ready" in capsys.readouterr().out
    assert main(["--tasks", "dtd", *arguments]) == 1
    assert main(["--tasks", "dtd", "--resize", "bicubic", *arguments]) == 1
    assert "unknown resize 'bicubic'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])


def has_tensorflow() -> bool:
    code = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('tensorflow', 'scipy', 'yaml'))))"
    return subprocess.run([PYTHON, "-c", code]).returncode == 0


@pytest.mark.slow
def test_sets_from_their_archives_with_tensorflow(tmp_path: Path) -> None:
    """Downloads are replaced by archives of the real layout; extraction, builders and records are upstream's."""
    if not has_tensorflow():
        pytest.skip(f"{PYTHON} has no TensorFlow; set HEADWISE_PREPARE_PYTHON")
    driver = [PYTHON, str(REPO / "tests" / "data" / "prepare_fake.py"), str(tmp_path / "r"), str(tmp_path / "c")]
    environment = {**os.environ, "HEADWISE_CACHE": str(tmp_path / "h"), "TF_CPP_MIN_LOG_LEVEL": "3"}

    first = subprocess.run([*driver, "--checksums"], capture_output=True, text=True, env=environment)
    assert first.returncode == 0, first.stderr[-2000:]
    (state,) = json.loads((tmp_path / "r" / "states.json").read_text())
    assert state["state"] == "missing" and "NonMatchingChecksumError" in state["next"]

    done = subprocess.run(driver, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    states = json.loads((tmp_path / "r" / "states.json").read_text())
    assert [state["state"] for state in states] == ["ready"] * 4, done.stdout

    source, cache = TFDSSource(tmp_path / "r", official=False), CacheSource(tmp_path / "c")
    sizes = {"cifar100": (36, 4, 20), "svhn": (36, 4, 20), "eurosat": (24, 8, 8), "resisc45": (12, 4, 4)}
    for name, counts in sizes.items():
        (task,) = by_name(name)
        assert source.fingerprint(task) == cache.fingerprint(task)
        for split, count in zip(("train800", "val200", "test"), counts, strict=True):
            one, two = source.load(task, split, 40), cache.load(task, split, 40)
            assert len(one.labels) == count
            np.testing.assert_array_equal(one.images, two.images)
            assert one.labels.tolist() == two.labels.tolist()
    (svhn,) = by_name("svhn")
    pixels = source.load(svhn, "test", 40)
    assert [int(key) % 10 for key in pixels.keys] == [(label - 1) % 10 for label in pixels.labels]


@pytest.mark.slow
def test_tfrecord_files_of_tensorflow_itself(tmp_path: Path) -> None:
    if not has_tensorflow():
        pytest.skip(f"{PYTHON} has no TensorFlow; set HEADWISE_PREPARE_PYTHON")
    driver = [PYTHON, str(REPO / "tests" / "data" / "prepare_fake.py"), str(tmp_path / "tf"), "-", "--tfrecord"]
    done = subprocess.run(driver, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = TFDSSource(tmp_path / "tf", official=False), TFDSSource(_made(tmp_path / "ours"), official=False)
    for name in ("smallnorb_azi", "clevr_count"):
        task = load_task(name)
        write_set(ours.root, task)
        assert theirs.prepared(task).format == "tfrecord" and ours.prepared(task).format == "array_record"
        assert theirs.fingerprint(task) == ours.fingerprint(task)
        one, two = theirs.load(task, "test", 40), ours.load(task, "test", 40)
        np.testing.assert_array_equal(one.images, two.images)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder

"""The store of results and the store of phases."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from headwise.errors import ConfigError, ResultConflict
from headwise.results.fingerprint import fingerprint
from headwise.results.store import PhaseStore, Result, ResultError, ResultStore, RunKey
from headwise.storage.claims import BusyError
from made_cases import each
from made_results import KEY, full, phase, result, write
from made_threads import in_another_thread

FINGERPRINT = "0123456789abcdef"


def test_put_then_get(tmp_path):
    store = ResultStore(tmp_path)
    assert store.get(KEY, result().identity) is None
    written = full()
    path = store.put(KEY, written)
    assert path == KEY.path(tmp_path) / "result.json"
    assert store.get(KEY, full().identity) == written
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
    assert json.loads(path.read_text())["config"]["method"]["lr"] == 1.0


def test_put_again_is_allowed_for_the_same_configuration(tmp_path):
    store = ResultStore(tmp_path)
    store.put(KEY, result())
    store.put(KEY, result(labels=["subset"]))
    assert store.get(KEY, result().identity).labels == ["subset"]


def test_another_configuration_is_a_conflict_that_names_the_keys(tmp_path):
    store = ResultStore(tmp_path)
    store.put(KEY, result())
    with pytest.raises(
        ResultConflict, match=r"seed-0.result\.json holds another .* stored vs asked: method\.rank: 8 vs 16\."
    ):
        store.get(KEY, result(rank=16).identity)
    with pytest.raises(ResultConflict, match=r"method\.rank: 8 vs 16"):
        store.put(KEY, result(rank=16))
    assert store.get(KEY, result().identity).fingerprint == fingerprint(result().identity)


def test_a_long_conflict_is_cut(tmp_path):
    store = ResultStore(tmp_path)
    store.put(KEY, Result(key=KEY, identity={f"k{i}": 0 for i in range(30)}, phases=[phase()]))
    with pytest.raises(ResultConflict, match="and 18 more"):
        store.get(KEY, {f"k{i}": 1 for i in range(30)})


def test_put_under_another_key_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="may not be stored under"):
        ResultStore(tmp_path).put(dataclasses.replace(KEY, seed=1), result())


def test_put_of_what_json_cannot_hold_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"result\.machine\.x is of type set"):
        ResultStore(tmp_path).put(KEY, result(machine={"x": {1}}))
    assert not list(tmp_path.rglob("*.json*"))


def test_interrupted_put_leaves_no_result(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("headwise.storage.atomic.flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ResultStore(tmp_path).put(KEY, result())
    assert not list(KEY.path(tmp_path).iterdir())
    assert ResultStore(tmp_path).get(KEY, result().identity) is None


def test_damaged_result_counts_as_missing_and_is_reported(tmp_path):
    bad = []
    store = ResultStore(tmp_path, on_bad=bad.append)
    store.put(KEY, result())
    other = dataclasses.replace(KEY, seed=1)
    path = write(other.path(tmp_path) / "result.json", '{"method": "lo')
    assert store.get(other, {}) is None
    assert [r.key for r in store.all()] == [KEY]
    assert list(store.finished()) == [KEY]
    assert {error.path for error in bad} == {path}
    store.put(other, result(other))
    assert [r.key.seed for r in store.all()] == [0, 1]


def test_a_result_that_the_system_does_not_give_counts_as_missing(tmp_path, monkeypatch):
    bad: list[ResultError] = []
    store = ResultStore(tmp_path, on_bad=bad.append)
    path = store.put(KEY, result())
    (tmp_path / "index.jsonl").unlink()

    def stale(self, *arguments, **options):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(type(path), "read_text", stale)
    assert list(store.all()) == []
    assert store.finished() == {}
    assert [error.path for error in bad] == [path, path]
    assert "it cannot be read (Stale file handle)" in str(bad[0])


def test_an_index_that_may_not_be_written_is_no_error(tmp_path, monkeypatch):
    store = ResultStore(tmp_path)
    store.put(KEY, result())
    stale = [{"path": f"{n}", "stamp": [], "fingerprint": "", "request": ""} for n in range(200)]
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, stale)))

    def refused(*arguments):
        raise PermissionError("not yours")

    monkeypatch.setattr("headwise.storage.atomic.write_text", refused)
    assert list(store.finished()) == [KEY]


def test_damaged_result_is_logged_by_default(tmp_path, caplog):
    write(KEY.path(tmp_path) / "result.json", "{")
    assert list(ResultStore(tmp_path).all()) == []
    assert "result.json is not a usable record" in caplog.text


def test_all_follows_the_folders(tmp_path):
    store = ResultStore(tmp_path)
    assert list(store.all()) == []
    store.put(KEY, result())
    (tmp_path / "runs").rename(tmp_path / "renamed")
    assert [r.key.name for r in store.all("renamed")] == ["renamed"]
    assert list(store.all("runs")) == []
    assert list(store.all("../x")) == []
    assert [key.name for key in store.finished()] == ["renamed"]


def test_result_that_lies_elsewhere_than_it_says_is_reported(tmp_path):
    bad = []
    store = ResultStore(tmp_path, on_bad=bad.append)
    store.put(KEY, result())
    (tmp_path / "runs" / "lora").rename(tmp_path / "runs" / "dora")
    assert list(store.all()) == []
    assert "not where it lies" in str(bad[0])


# ------------------------------------------------------------------------------------------------------------- index


def test_index_serves_what_it_knows_and_finds_what_it_does_not(tmp_path, monkeypatch):
    store = ResultStore(tmp_path)
    store.put(KEY, result(request="asked"))
    reads = []
    read = Result.read
    monkeypatch.setattr(Result, "read", lambda path: reads.append(path) or read(path))
    (line,) = store.finished().values()
    assert (line.key, line.fingerprint, line.request) == (KEY, result().fingerprint, "asked")
    assert reads == []
    (tmp_path / "index.jsonl").unlink()
    assert list(store.finished()) == [KEY]
    assert len(reads) == 1
    assert list(store.finished()) == [KEY]
    assert len(reads) == 1


def test_index_never_outlives_the_truth(tmp_path):
    store = ResultStore(tmp_path)
    path = store.put(KEY, result())
    path.unlink()
    assert store.finished() == {}
    store.put(KEY, result(rank=16))
    assert store.finished()[KEY].fingerprint == result(rank=16).fingerprint


def test_torn_and_foreign_lines_of_the_index_are_skipped(tmp_path):
    store = ResultStore(tmp_path)
    store.put(KEY, result())
    with (tmp_path / "index.jsonl").open("a") as index:
        index.write('[]\n3\n{"path": "x"}\n{"path": "runs/lo')
    other = dataclasses.replace(KEY, seed=1)
    store.put(other, result(other))
    assert list(store.finished()) == [KEY, other]


def test_index_is_rebuilt_when_most_of_it_is_stale(tmp_path):
    store = ResultStore(tmp_path)
    store.put(KEY, result())
    with (tmp_path / "index.jsonl").open("a") as index:
        for i in range(200):
            index.write(json.dumps({"path": str(i), "stamp": [0, 0], "fingerprint": "", "request": ""}) + "\n")
    assert list(store.finished()) == [KEY]
    assert len((tmp_path / "index.jsonl").read_text().splitlines()) == 1
    assert list(store.finished()) == [KEY]


def test_a_finished_run_is_found_by_what_asked_for_it_last(tmp_path):
    store = ResultStore(tmp_path)
    stored = result(request="first")
    store.put(KEY, stored)
    assert store.finished()[KEY].request == "first"
    store.recognise(stored, "second")
    store.recognise(stored, "second")
    assert store.finished()[KEY].request == "second"
    assert len((tmp_path / "index.jsonl").read_text().split()) < 30
    store.rebuild()
    assert store.finished()[KEY].request == "second"
    store.put(KEY, result(request="third", labels=["subset"]))
    assert store.finished()[KEY].request == "third"
    store.recognise(result(RunKey("runs", "lora", "svhn", "base", 9)), "none")


def test_many_writers_share_the_index(tmp_path):
    def work(start):
        for seed in range(start, start + 20):
            key = dataclasses.replace(KEY, seed=seed)
            ResultStore(tmp_path).put(key, result(key))

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines() if line]
    assert len(lines) == 80
    assert len(ResultStore(tmp_path).finished()) == 80


def test_two_thousand_results_are_listed_fast(tmp_path):
    config = {f"group{i}": {f"key{j}": j * 0.1 for j in range(20)} for i in range(20)}
    raw = result(config=config, provenance={"weights": "w"}).to_json()
    for method in range(35):
        for dataset in range(19):
            for seed in range(3):
                key = RunKey("runs", f"m{method}", f"d{dataset}", "base", seed)
                fields = {"method": key.method, "dataset": key.dataset, "seed": seed}
                write(key.path(tmp_path) / "result.json", json.dumps({**raw, **fields}))
    store = ResultStore(tmp_path)
    began = time.monotonic()
    assert len(list(store.all())) == 1995
    read = time.monotonic()
    assert len(store.finished()) == 1995
    indexed = time.monotonic()
    assert len(store.finished()) == 1995
    again = time.monotonic()
    print(f"all {read - began:.2f} s, first index {indexed - read:.2f} s, from index {again - indexed:.2f} s")
    assert read - began < 10
    assert again - indexed < 10


# ------------------------------------------------------------------------------------------------------------ phases


@each("bad", ["", "..", "../../x", "abc", "ABCDEF0123", "x" * 16, "0" * 65])
def test_phase_folder_is_named_by_hex_digits_only(tmp_path, bad):
    with pytest.raises(ConfigError, match="8 to 64 hex digits"):
        PhaseStore(tmp_path).path(bad)


def test_phase_is_finished_once_its_record_is_written(tmp_path):
    store = PhaseStore(tmp_path)
    assert store.path(FINGERPRINT) == tmp_path / "phases" / FINGERPRINT
    assert store.finished(FINGERPRINT) is None
    store.finish(FINGERPRINT, phase(extra={"lr": 1.0}))
    assert store.finished(FINGERPRINT) == phase(extra={"lr": 1.0}, fingerprint=FINGERPRINT)


def test_damaged_phase_counts_as_unfinished_and_is_reported(tmp_path):
    bad = []
    store = PhaseStore(tmp_path, on_bad=bad.append)
    path = write(store.path(FINGERPRINT) / "phase.json", '{"label": "x"')
    assert store.finished(FINGERPRINT) is None
    assert bad[0].path == path


def test_a_store_takes_over_the_finished_phases_of_another(tmp_path):
    old, new = PhaseStore(tmp_path), PhaseStore(tmp_path / "again")
    for store, accuracy in ((old, 10.0), (new, 20.0)):
        write(store.path(FINGERPRINT) / "phase.safetensors", f"tensors {accuracy}")
        store.finish(FINGERPRINT, phase(accuracy=accuracy))
    write(new.path(FINGERPRINT) / "claim-1", "{}")
    write(new.path("f" * 16) / "last.ckpt", "of an unfinished one")
    old.adopt(new)
    assert old.finished(FINGERPRINT).accuracy == 20.0
    assert (old.path(FINGERPRINT) / "phase.safetensors").read_text() == "tensors 20.0"
    assert {path.name for path in old.path(FINGERPRINT).iterdir()} == {"phase.json", "phase.safetensors"}
    assert not (tmp_path / "again").exists()
    assert not old.path("f" * 16).exists()


def test_claim_of_a_finished_phase_is_not_held(tmp_path):
    store = PhaseStore(tmp_path, heartbeat=0.1, expiry=1)
    with store.claim(FINGERPRINT) as claim:
        assert claim.held
        with pytest.raises(BusyError, match=FINGERPRINT):
            in_another_thread(lambda: store.claim(FINGERPRINT, wait=False).__enter__())
        store.finish(FINGERPRINT, phase())
    assert [p.name for p in store.path(FINGERPRINT).iterdir()] == ["phase.json"]
    with store.claim(FINGERPRINT) as claim:
        assert not claim.held


TRAINER = """
import sys, time
from headwise.results.store import PhaseResult, PhaseStore
store = PhaseStore(sys.argv[1], heartbeat=0.1, expiry=3600)
with store.claim(sys.argv[2]) as claim:
    print("held" if claim.held else "finished", flush=True)
    time.sleep(float(sys.argv[3]))
    result = PhaseResult(label="x", accuracy=50, num_tunable=1, num_head=1, stored_bytes=1, seconds=float(sys.argv[3]))
    store.finish(sys.argv[2], result)
"""


def trainer(root, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", TRAINER, str(root), FINGERPRINT, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_worker_waits_for_the_first(tmp_path):
    process, waits = trainer(tmp_path, 0.5), []
    store = PhaseStore(tmp_path, heartbeat=0.1, expiry=3600)
    with store.claim(FINGERPRINT, on_wait=waits.append) as claim:
        assert not claim.held
    assert store.finished(FINGERPRINT).seconds == 0.5
    assert waits[0]["pid"] == process.pid
    process.communicate(timeout=10)


def test_a_killed_worker_is_succeeded(tmp_path):
    process = trainer(tmp_path, 60)
    os.kill(process.pid, signal.SIGKILL)
    store = PhaseStore(tmp_path, heartbeat=0.1, expiry=3600)
    with store.claim(FINGERPRINT) as claim:
        assert claim.held
        store.finish(FINGERPRINT, phase())
    process.communicate(timeout=10)
    assert store.finished(FINGERPRINT).label == "lora"


def test_reading_results_needs_no_other_package(tmp_path):
    ResultStore(tmp_path).put(KEY, result())
    code = (
        "import sys; from headwise.results.store import ResultStore; from headwise.results import provenance; "
        "print(len(list(ResultStore(sys.argv[1]).all())), "
        "*[m for m in ('torch', 'numpy', 'pandas', 'hydra', 'omegaconf', 'lightning') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1"]


def test_results_of_the_same_task_and_seed(tmp_path) -> None:
    store = ResultStore(tmp_path)
    keys = [RunKey("a", "lora", "svhn", "base", 0), RunKey("b", "hs", "svhn", "e9", 0)]
    others = [RunKey("a", "lora", "svhn", "base", 1), RunKey("a", "lora", "dtd", "base", 0)]
    for key in keys + others:
        store.put(key, result(key))
    assert [found.key for found in store.alike(keys[0])] == keys

"""Keys and records: what a run leaves behind, to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from headwise.errors import ConfigError
from headwise.results.records import load_json
from headwise.results.store import Result, ResultError, RunKey
from made_cases import each
from made_results import KEY, full, phase, write


def test_key_names_its_folder(tmp_path):
    path = KEY.path(tmp_path)
    assert path == tmp_path / "runs" / "lora" / "svhn" / "base" / "seed-0"
    assert RunKey.of(path) == KEY


@each("part", ["name", "method", "dataset", "variant"])
@each("bad", ["", ".", "..", "a/b", "a\\b", "../x", "a..b", " a", ".hidden", "a\nb", "a\0", "x" * 201, 3])
def test_key_refuses_what_could_leave_its_folder(part, bad):
    with pytest.raises(ConfigError, match=rf"^{part} of a run"):
        dataclasses.replace(KEY, **{part: bad})


@each("bad", [-1, "0", 0.0, True, None])
def test_key_refuses_a_seed_that_is_no_count(bad):
    with pytest.raises(ConfigError, match="seed of a run must be an integer >= 0"):
        dataclasses.replace(KEY, seed=bad)


@each("name", ["phases", "ledger"])
def test_key_refuses_the_names_of_the_stores(name):
    with pytest.raises(ConfigError, match=f"may not be '{name}'"):
        dataclasses.replace(KEY, name=name)


@each("folder", ["x", "runs/lora/svhn/base/0", "runs/lora/svhn/base/seed-x", "lora/svhn/seed-1"])
def test_key_is_read_only_from_a_run_folder(tmp_path, folder):
    with pytest.raises(ConfigError):
        RunKey.of(Path(folder))


def test_result_round_trips_through_json(tmp_path):
    assert Result.read(write(tmp_path / "r.json", json.dumps(full().to_json()))) == full()


def test_a_step_takes_its_share_of_the_time():
    assert phase(seconds=12.0, steps=48).seconds_per_step == 0.25
    assert phase(seconds=0.0).seconds_per_step is None


def test_result_json_has_the_promised_keys():
    raw = full().to_json()
    assert {"method", "dataset", "seed", "fingerprint", "labels", "phases", "provenance"} <= raw.keys()
    assert (raw["method"], raw["dataset"], raw["seed"]) == ("lora", "svhn", 0)
    assert {"label", "accuracy", "num_tunable", "num_head", "stored_bytes", "seconds"} <= raw["phases"][0].keys()


def test_fields_of_a_later_version_are_skipped(tmp_path):
    raw = full().to_json()
    raw["carbon"] = 1
    raw["phases"][0]["flops"] = 2
    assert Result.read(write(tmp_path / "r.json", json.dumps(raw))) == full()


def test_fields_that_may_be_absent_have_defaults(tmp_path):
    raw = full().to_json()
    for name in ("config", "versions", "git", "machine", "request", "identity"):
        del raw[name]
    raw["phases"] = [{"label": "x", "accuracy": 1, "num_tunable": 1, "num_head": 1, "stored_bytes": 1, "seconds": 1}]
    assert Result.read(write(tmp_path / "r.json", json.dumps(raw))).phases[0].epochs == 0


def damaged_texts() -> dict[str, str]:
    raw = full().to_json()
    texts = {"": "not JSON", "{": "not JSON", "[]": "", "null": "", "3": "", json.dumps(raw)[:200]: "not JSON"}
    for name in ("method", "dataset", "seed", "fingerprint", "labels", "phases", "provenance"):
        texts[json.dumps({k: v for k, v in raw.items() if k != name})] = f"lacks {name}"
    for name in ("label", "accuracy", "num_tunable", "num_head", "stored_bytes", "seconds"):
        cut = {k: v for k, v in raw["phases"][0].items() if k != name}
        texts[json.dumps({**raw, "phases": [cut]})] = f"lacks {name}"
    texts[json.dumps({**raw, "phases": []})] = "at least one phase"
    texts[json.dumps({**raw, "phases": [{**raw["phases"][0], "accuracy": 101}]})] = r"accuracy .* 0\.\.100, got 101"
    texts[json.dumps({**raw, "phases": [{**raw["phases"][0], "accuracy": "91"}]})] = "accuracy .* got '91'"
    place = {"stage": 0, "block": 0, "proj": "q"}
    for row in (
        3,
        {"active": [1]},
        {**place, "active": 3, "score": None},
        {**place, "active": [], "score": None},
        {**place, "active": [1, 0], "score": [0.5]},
        {**place, "active": [1], "score": 0.5},
    ):
        gated = {**raw["phases"][0], "extra": {"gate": {"mode": "heart"}, "heads": [row]}}
        texts[json.dumps({**raw, "phases": [gated]})] = ""
    texts[json.dumps({**raw, "seed": "x"})] = "seed of a run"
    texts[json.dumps({**raw, "dataset": "../x"})] = "dataset of a run"
    return texts


@each("text, why", damaged_texts().items())
def test_damaged_record_names_its_file(tmp_path, text, why):
    path = write(tmp_path / "result.json", text)
    with pytest.raises(ResultError, match=rf"result\.json is not a usable record: .*{why}") as caught:
        Result.read(path)
    assert caught.value.path == path


def test_binary_record_names_its_file(tmp_path):
    (tmp_path / "result.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultError, match="not text"):
        Result.read(tmp_path / "result.json")


@each(
    "bad",
    [
        {"accuracy": float("nan")},
        {"accuracy": -1},
        {"num_tunable": 1.5},
        {"seconds": None},
        {"epochs": -1},
        {"peak_memory": -1},
    ],
)
def test_phase_refuses_impossible_values(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        phase(**bad)


def test_a_record_that_the_system_does_not_give_names_its_file(tmp_path):
    path = tmp_path / "result.json"
    path.symlink_to(path)
    with pytest.raises(ResultError, match=r"result.json is not a usable record: it cannot be read \(Too many levels"):
        load_json(path)
    with pytest.raises(FileNotFoundError):
        load_json(tmp_path / "none.json")

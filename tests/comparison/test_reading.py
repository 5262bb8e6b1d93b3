"""Finished runs by name, and the errors of every script that asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwise.errors import ConfigError
from headwise.results.reading import others, read, runs
from headwise.results.store import ResultStore
from made_results import run, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = ResultStore(tmp_path / "outputs")
    for result in (run(), run(seed=1), run(name="table1")):
        store.put(result.key, result)
    for folder in ("phases", "multirun", "begun"):
        (store.root / folder).mkdir()
    return store.root


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    write(tmp_path / "repo" / "conf" / "experiment" / "hs_table1.yaml", "name: table1\n")
    write(tmp_path / "repo" / "conf" / "experiment" / "heart_table1.yaml", "seed: 0\n")
    write(tmp_path / "repo" / "conf" / "experiment" / "broken.yaml", "a: [\n")
    return tmp_path / "repo"


def test_all_or_by_name(root: Path) -> None:
    assert len(read(root).results) == 3
    found = read(root, "runs")
    assert (found.name, len(found.results), found.notes) == ("runs", 2, [])
    assert runs(root) == {"runs", "table1", "begun"}


def test_the_others_are_those_that_have_not_been_read(root: Path) -> None:
    assert [result.key.name for result in others(root, ["runs"])()] == ["table1"]
    assert others(root, [None])() == []
    assert len(others(root, ["table1"])()) == 2


def test_an_experiment_knows_the_name_of_its_runs(root: Path, repo: Path) -> None:
    found = read(root, "hs_table1", repo)
    assert (found.name, len(found.results)) == ("table1", 1)


def test_damaged_records_are_named_and_count_as_missing(root: Path) -> None:
    (root / "runs/lora/svhn/base/seed-1/result.json").write_text('{"half')
    found = read(root, "runs")
    assert len(found.results) == 1
    assert found.damaged == ["runs/lora/svhn/base/seed-1/result.json"]
    assert found.notes == ["1 damaged record(s) count as missing: runs/lora/svhn/base/seed-1/result.json."]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "tabel1",
            r"no such name \(did you mean 'table1'\?\); allowed: .*begun, broken, heart_table1, hs_table1, runs",
        ),
        ("heart_table1", r"no finished run of 'heart_table1' under .*; run python train.py experiment=heart_table1"),
        ("broken", r"run python train.py experiment=broken"),
        ("begun", r"no finished run of 'begun' under .*; run the command that began it"),
    ],
)
def test_names_without_runs(root: Path, repo: Path, given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(root, given, repo)


def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished run under .*nowhere; is --root right\?"):
        read(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no finished run of 'x' under .*: no such name"):
        read(tmp_path / "nowhere", "x")


def test_only_damaged_ones(root: Path) -> None:
    for file in root.glob("table1/*/*/*/*/result.json"):
        file.write_text("[]")
    with pytest.raises(
        ConfigError, match=r"no finished run of 'table1' .*; 1 damaged record\(s\) count as missing: table1/"
    ):
        read(root, "table1")

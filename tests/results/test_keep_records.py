"""Records that are kept: whole for tables, without folders of the machine, and not overwritten by other runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from headwise.comparison.tables import tables
from headwise.report.formats import render
from headwise.results.store import ResultStore
from made_results import run
from made_scripts import loaded


@pytest.fixture
def keep() -> Any:
    return loaded("keep_records")


def stored(root: Path) -> ResultStore:
    store = ResultStore(root)
    for seed in (0, 1):
        made = run("lora", seed=seed, accuracy=(80.0 + seed,))
        config = {**made.config, "data": {"root": "/home/me/vtab"}, "backbone": {"weights": "/home/me/w.npz"}, "x": [1]}
        store.put(made.key, dataclasses.replace(made, config=config))
    return store


def test_tables_of_kept_records_are_the_same(keep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = stored(tmp_path / "outputs")
    arguments = ["runs", "--root", str(tmp_path / "outputs"), "--to", str(tmp_path / "kept")]
    assert keep.main(arguments) == keep.main(arguments) == 0
    assert "kept: 2 records of runs" in capsys.readouterr().out
    found, kept = (list(s.all("runs")) for s in (store, ResultStore(tmp_path / "kept")))
    assert render(tables(kept), "md") == render(tables(found), "md")
    assert [r.fingerprint for r in kept] == [r.fingerprint for r in found]
    text = "".join(file.read_text() for file in (tmp_path / "kept").rglob("*") if file.is_file())
    assert "/home/me" not in text
    assert '"w.npz"' in text
    assert not (tmp_path / "kept" / "index.jsonl").exists()


def test_another_run_in_its_place_is_refused(keep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path / "outputs")
    other = run("lora", seed=0, recipe={"rank": 99})
    ResultStore(tmp_path / "kept").put(other.key, other)
    assert keep.main(["runs", "--root", str(tmp_path / "outputs"), "--to", str(tmp_path / "kept")]) == 1
    assert "holds another configuration" in capsys.readouterr().err
    assert keep.main(["nothing", "--root", str(tmp_path / "outputs")]) == 1
    assert "no finished run of 'nothing'" in capsys.readouterr().err

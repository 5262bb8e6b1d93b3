"""A sweep that is killed: run again, it gives the same tables (benchmarks/kill_sweep.py with fewer moments)."""

from __future__ import annotations

import importlib
import json

import pytest

from made_networks import REPO


@pytest.fixture(scope="module")
def kill_sweep():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "benchmarks"))
        yield importlib.import_module("kill_sweep")


@pytest.mark.slow
def test_the_tables_of_a_killed_sweep(kill_sweep, tmp_path):
    record = tmp_path / "kill.json"
    assert kill_sweep.main(["--moments", "4", "--work", str(tmp_path / "work"), "--json", str(record)]) == 0
    found = json.loads(record.read_text())
    assert len(found["moments"]) == 5
    assert found["files_that_differ"] == found["orphans"] == []
    assert found["files_compared"] > 8


def test_the_moments_are_what_they_should_be(kill_sweep):
    kinds = [kind for kind, *_ in kill_sweep.MOMENTS]
    assert len(kinds) == 9, "and one table"
    assert kinds.count("phase 2") == 3
    assert kinds.count("Heart-LoRA after its mask") == 2
    assert "adalora" in kill_sweep.SWEEP[1]

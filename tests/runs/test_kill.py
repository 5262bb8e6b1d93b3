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
    options = ["--launcher", "pair", "--moments", "4", "--work", str(tmp_path / "work"), "--json", str(record)]
    assert kill_sweep.main(options) == 0
    check(json.loads(record.read_text()), ["pair"], 5)


def check(found, launchers, kills):
    """What a record of kills must say."""
    assert sorted(kill["launcher"] for kill in found["kills"]) == [name for name in launchers for _ in range(kills)]
    for kill in found["kills"]:
        assert kill["processes_killed"] and kill["tensors_byte_equal"] and kill["rerun_equal"], kill
        assert kill["files_of_what_was_hit"] > 0
    assert sorted(one["launcher"] for one in found["launchers"]) == launchers
    for one in found["launchers"]:
        assert one["files_that_differ"] == []
        assert one["files_compared"] > 8
        assert not one["orphans"] or one["launcher"] == "ray_local", "agents of Ray take their time"


def test_the_kept_record():
    """15: ten kills with each of three launchers."""
    record = json.loads((REPO / "docs" / "results" / "kill.json").read_text())
    check(record, ["pair", "processes", "ray_local"], 10)


def test_what_differs_is_told(kill_sweep):
    held = {"1": ["runs/a"]}
    moment = kill_sweep.Moment("phase 2", "", "", True, 0.0, {"second": 1, "killed": 1, "held": held, "after": ""})
    moment.tensors = {"runs/a/x": "1", "runs/b/x": "2"}
    before = {**moment.tensors, "runs/a/y": "3"}
    told = moment.record("pair", before, before)
    assert told["tensors_byte_equal"] and told["rerun_equal"] and told["files_of_what_was_hit"] == 2
    assert moment.record("pair", before, {**before, "runs/b/x": "0"})["rerun_equal"]
    assert not moment.record("pair", before, {**before, "runs/a/y": "0"})["rerun_equal"]
    moment.tensors["runs/b/x"] = "0"
    assert not moment.record("pair", before, before)["tensors_byte_equal"]
    moment.hit["held"] = {"1": []}
    assert moment.record("pair", before, before)["files_of_what_was_hit"] == 3


def test_other_launchers_of_a_record_stay(kill_sweep):
    def one(launcher, second):
        return {"launcher": launcher, "seconds": second, "moments": [{"launcher": launcher, "second": second}]}

    first = kill_sweep.told(0, 1.0, [one("ray_local", 1), one("pair", 2)], {})
    both = kill_sweep.told(0, 1.0, [one("ray_local", 3)], first)
    assert both["kills"] == [{"launcher": "pair", "second": 2}, {"launcher": "ray_local", "second": 3}]
    assert [(line["launcher"], line["seconds"]) for line in both["launchers"]] == [("pair", 2), ("ray_local", 3)]
    assert len(kill_sweep.told(0, 1.0, [one("pair", 3)], {**first, "sweep": ["other"]})["kills"]) == 1


def test_the_moments_are_what_they_should_be(kill_sweep):
    kinds = [kind for kind, *_ in kill_sweep.MOMENTS]
    assert len(kinds) == 9, "and one table"
    assert kinds.count("phase 2") == 3
    assert kinds.count("Heart-LoRA after its mask") == 2
    assert "adalora" in kill_sweep.SWEEP[1]

"""What a method's configuration becomes before its run is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwise.methods._evolution import Evolution
from headwise.protocol.filling import fill_method, with_own_fields
from headwise.schema.source import literal_of_target
from headwise.updates.consistency import Consistency
from headwise.updates.gate import Gate
from made_networks import REPO

NOAH = "headwise.methods.noah.NOAH"


def test_one_walk_fills_gates_fields_and_published_values_of_every_method() -> None:
    method = {
        "label": "both",
        "gate": None,
        "first": {"_target_": NOAH, "label": "noah", "search": "evolution", "default": 3, "consistency": None},
        "heads": {"label": "cara", "gate": "heart", "scale": "published", "consistency": "pace"},
    }
    filled, published = fill_method(method, "cifar100", {"count": 3, "ratio": None, "warmup": 0.1})
    assert filled == {
        "label": "both",
        "first": {"_target_": NOAH, "label": "noah", "search": Evolution().spec(), "default": 3},
        "heads": {"label": "cara", "gate": Gate(count=3).spec(), "scale": 0.1, "consistency": Consistency().spec()},
    }
    assert [entry["key"] for entry in published] == ["method.heads.scale"]
    assert method["first"]["search"] == "evolution"  # type: ignore[index]
    assert fill_method(filled, "cifar100", None)[0] == filled


def test_a_field_is_written_out_for_the_class_that_says_so_and_no_other() -> None:
    assert with_own_fields({"_target_": NOAH, "search": {"population": 60}}) == {
        "_target_": NOAH,
        "search": Evolution(population=60).spec(),
    }
    for node in ({"_target_": NOAH, "search": None}, {"_target_": "headwise.methods.lora.LoRA", "search": "mine"}):
        assert with_own_fields(node) == node
    assert with_own_fields({"search": "mine"}) == {"search": "mine"}
    assert with_own_fields({"_target_": "no_such_module.Method", "search": "x"})["search"] == "x"


def test_a_method_of_ones_own_inherits_or_names_its_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_written.py").write_text(
        "from headwise.methods.noah import NOAH\n"
        "class Longer(NOAH):\n    pass\n"
        "class Other(NOAH):\n    written = {}\n"
        "class Computed(NOAH):\n    written = dict(search='x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert literal_of_target("mine_written.Longer", "written") == {"search": "headwise.methods._evolution.Evolution"}
    assert literal_of_target("mine_written.Other", "written") == {}
    assert literal_of_target("mine_written.Computed", "written") is None


def test_the_methods_of_kept_records_are_filled_already() -> None:
    for file in sorted((REPO / "docs" / "results" / "records").glob("**/result.json")):
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
        assert fill_method(config["method"], config["dataset"]["name"], config["ne"]) == (config["method"], [])

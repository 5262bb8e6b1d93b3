"""Values per task: one table, defaults below, the command line above."""

from __future__ import annotations

from typing import Any

import pytest

from headwise.errors import ConfigError
from headwise.protocol.pertask import fill_protocol, fill_tasks
from made_cases import each

TABLE = {
    "default": {"lora": {"dropout": 0.1, "scale": 2}},
    "svhn": {"lora": {"scale": 10}, "cara": {"scale": 100, "mean": 1.5}},
}


def config(method: dict[str, Any], task: str = "svhn", table: Any = TABLE, **protocol: Any) -> dict[str, Any]:
    return {"method": method, "dataset": {"name": task}, "protocol": protocol, "per_task": table}


def lora() -> dict[str, Any]:
    return {"label": "lora", "scale": 1, "dropout": 0.0, "lr": None}


def test_the_tasks_row_goes_over_the_default() -> None:
    assert fill_tasks(config(lora())) == {**lora(), "scale": 10, "dropout": 0.1}
    assert fill_tasks(config(lora(), "pets")) == {**lora(), "scale": 2, "dropout": 0.1}


def test_other_methods_and_no_table_change_nothing() -> None:
    assert fill_tasks(config({"label": "ssf", "std": 1})) == {"label": "ssf", "std": 1}
    assert fill_tasks(config(lora(), table=None)) == lora()
    assert fill_tasks(config(lora(), per_task=False)) == lora()


def test_phases_take_the_values_of_their_own_labels() -> None:
    phases = {"label": "hs_cara", "first": {"label": "cara", "scale": 1, "mean": 1}, "heads": {"label": "head_lora"}}
    assert fill_tasks(config(phases))["first"] == {"label": "cara", "scale": 100, "mean": 1.5}
    assert phases["first"]["scale"] == 1, "the given configuration is left as it is"


def test_a_field_within_a_field() -> None:
    peft = {"label": "fourierft", "adapter_lr": 0.3, "config": {"n_frequency": 3000}}
    table = {"default": {"fourierft": {"config.n_frequency": 13107, "adapter_lr": None}}}
    assert fill_tasks(config(peft, table=table)) == {
        "label": "fourierft",
        "adapter_lr": None,
        "config": {"n_frequency": 13107},
    }
    assert peft["config"] == {"n_frequency": 3000}


def test_the_command_line_stands() -> None:
    assert fill_tasks(config(lora()), ["method.scale"])["scale"] == 1
    phases = {"label": "hs", "first": {"label": "cara", "scale": 1, "mean": 1}}
    assert fill_tasks(config(phases), {"method.first.scale"})["first"] == {"label": "cara", "scale": 1, "mean": 1.5}


@each(
    "table, message",
    [
        ({"svhn": {"lora": {"scales": 1}}}, r"per_task.svhn.lora: unknown field 'scales' \(did you mean 'scale'\?\)"),
        ({"svhn": {"lora": {"config.r": 1}}}, "per_task.svhn.lora: unknown field 'config.r'"),
        ({"svhn": [1]}, r"per_task.svhn is a table of methods, got \[1\]"),
        ({"default": {"lora": 3}}, "per_task.default.lora is a table of the method's fields, got 3"),
    ],
)
def test_bad_tables(table: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fill_tasks(config(lora(), table=table))


OWN = {"normalize": "none", "lr": 0.001, "search": {"scale": [1, 10]}, "epochs": 3}
ROWS = {"default": {"noah": {"protocol.normalize": "imagenet", "dropout": 0.2}, "lora": {"dropout": 0.1}}}


def noah() -> dict[str, Any]:
    return {"label": "noah", "dropout": 0.0}


def test_a_table_may_measure_one_method_in_another_way() -> None:
    """Issue line 29: a row of a paper's table with inputs of its own."""
    given = config(noah(), table=ROWS, **OWN)
    assert fill_protocol(given) == {**OWN, "normalize": "imagenet"}
    assert fill_tasks(given) == {"label": "noah", "dropout": 0.2}, "fields of the method are where they were"
    assert given["protocol"] == OWN, "the given configuration is left as it is"
    assert fill_protocol(config(lora(), table=ROWS, **OWN)) == OWN
    assert fill_protocol(config(noah(), table=ROWS, per_task=False, **OWN)) == {**OWN, "per_task": False}
    two = {"label": "hs_noah", "first": noah(), "heads": {"label": "head_lora"}}
    assert fill_protocol(config(two, table=ROWS, **OWN)) == OWN, "a run has one protocol, that of its own label"


@each("given", ["protocol", "protocol.search", "protocol.search.fields", "protocol.search.fields.rank"])
def test_a_protocol_of_the_command_line_stands(given: str) -> None:
    table = {"default": {"fact_tt": {"protocol.search.fields": {"rank": [8, 16]}}}}
    fact = {"label": "fact_tt", "rank": 16}
    found = fill_protocol(config(fact, table=table, **OWN))["search"]
    assert found == {"scale": [1, 10], "fields": {"rank": [8, 16]}}
    assert fill_protocol(config(fact, table=table, **OWN), [given]) == OWN
    assert fill_protocol(config(fact, table=table, **OWN), ["protocol.lr"])["search"] == found


def test_a_part_that_the_protocol_lacks_is_left_out() -> None:
    table = {"default": {"fact_tt": {"protocol.search.fields": {"rank": [8]}}}}
    off = {**OWN, "search": None}
    assert fill_protocol(config({"label": "fact_tt"}, table=table, **off)) == off


@each(
    "fields, message",
    [
        ({"protocol.normalise": 1}, r"per_task.default.lora: unknown field 'protocol.normalise' .*'normalize'"),
        ({"protocol.serch.ne": [1]}, r"per_task.default.lora: unknown field 'protocol.serch.ne' .*'search'"),
        ({"protocol.lr.ne": 1}, "lr of 'protocol.lr.ne' is a value, not a part"),
        ({"protocol.epochs": 1}, "protocol.epochs may not be set here; a method's epochs are its own field"),
        ({"protocol.per_task": True}, "protocol.per_task may not be set here"),
    ],
)
def test_bad_fields_of_the_protocol(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fill_protocol(config(lora(), table={"default": {"lora": fields}}, **OWN))

"""Values per task: one table, defaults below, the command line above."""

from __future__ import annotations

from typing import Any

import pytest

from headwise.errors import ConfigError
from headwise.pertask import fill_tasks

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


@pytest.mark.parametrize(
    ("table", "message"),
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

"""Configs of peft by its source alone: peft's own classes agree, and every field refuses what it cannot be."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import peft
import pytest

from headwise.errors import ConfigError
from headwise.schema.peftfields import RANGES, STARTS, UNSUPPORTED, check_peft, configs, fields_of_config
from made_cases import each

FIELDS = [(target, field) for target in configs() for field in dataclasses.fields(getattr(peft, target[5:]))]
NUMBERS = [
    (target, field.name)
    for target, field in FIELDS
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]


def check(target: str, **values: Any) -> None:
    check_peft({"_target_": target, **values}, lambda name: f"config.{name}")


def test_the_source_tells_all_configs() -> None:
    there = {f"peft.{name}" for name in dir(peft) if name.endswith("Config")}
    assert set(configs()) == there
    assert len(configs()) > 40


@each("target", configs())
def test_the_source_tells_all_fields(target: str) -> None:
    fields = fields_of_config(target)
    kind = getattr(peft, target[5:])
    assert {field.name for field in dataclasses.fields(kind) if field.init} == set(fields.types) - {"_target_"}
    assert not fields.is_open


@each("target", [target for target in configs() if target != "peft.TrainableTokensConfig"])
def test_what_a_config_has_by_itself_passes(target: str) -> None:
    never = [pattern for pattern, asked, _ in UNSUPPORTED if asked is None]
    for _, field in (pair for pair in FIELDS if pair[0] == target):
        is_taken = field.init and not any(re.fullmatch(pattern, field.name) for pattern in never)
        if is_taken and isinstance(field.default, int | float | str) and type(field.default) in (bool, int, float, str):
            check(target, **{field.name: field.default})


def test_every_row_is_of_a_field_that_there_is() -> None:
    names = {field.name for _, field in FIELDS} | {f"{target[5:]}.{field.name}" for target, field in FIELDS}
    rows = [pattern for pattern, *_ in (*RANGES, *UNSUPPORTED)]
    assert [row for row in rows if not any(re.fullmatch(row, name) for name in names)] == []
    for start in STARTS:
        if "[" in start:
            assert start in str(dict(vars(peft.LoraConfig)["__annotations__"])["init_lora_weights"])


@each("target, name", NUMBERS)
def test_a_number_is_nothing_else(target: str, name: str) -> None:
    for wrong in ("abc", "1", [1], {"a": 1}, True, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=rf"config\.{name}\b"):
            check(target, **{name: wrong})
    with pytest.raises(ConfigError, match=rf"unknown key config\.{name}x.*did you mean '{name}'"):
        check(target, **{f"{name}x": 1})


@each(
    "name, right, wrong",
    [
        ("r", (1, 64), (0, -1, 1.0, None)),
        ("lora_alpha", (1, 0.5, -3), (0, 0.0, None)),
        ("lora_dropout", (0, 0.5), (-0.1, 1, 1.5)),
        ("init_lora_weights", (True, "gaussian", "pissa_niter_4", "lora_ga"), ("Gausian", "pissa_niter_0", 3, "eva")),
        ("bias", ("none",), ("all", "nothing", None)),
        ("target_modules", (["q"], "all-linear", None), (3, [3], {"q": 1})),
        ("rank_pattern", ({"q": 3}, None), ({"q": 0}, {"q": "a"}, [], 3)),
        ("alpha_pattern", ({"q": 0.5},), ({"q": 0},)),
        ("layers_to_transform", (1, [1, 2], None), ("abc", [0.5])),
        ("use_bdlora", ({"_target_": "peft.BdLoraConfig", "nblocks": 2}, None), (3, {"_target_": "builtins.dict"})),
        ("runtime_config", ({"_target_": "peft.LoraRuntimeConfig"},), (3, None)),
        ("loftq_config", ({"loftq_bits": 4}, {"_target_": "peft.LoftQConfig"}), (3, {"_target_": "peft.LoraModel"})),
    ],
)
def test_what_a_field_of_lora_may_be(name: str, right: tuple[Any, ...], wrong: tuple[Any, ...]) -> None:
    for value in right:
        check("peft.LoraConfig", **{name: value})
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"config\.{name}"):
            check("peft.LoraConfig", **{name: value})


def test_what_is_unsupported_says_why() -> None:
    for name, given in (("revision", "main"), ("modules_to_save", ["head"]), ("eva_config", {}), ("peft_type", "LORA")):
        with pytest.raises(ConfigError, match=rf"config\.{name}: .* is not supported: .*; leave it out"):
            check("peft.LoraConfig", **{name: given})
        check("peft.LoraConfig", **{name: None})

"""Ranges that optuna draws from: ends, edges, repeatability, halving, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from headwise.errors import ConfigError
from headwise.methods.base import Method
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.lora import LoRA
from headwise.protocol import ranges
from headwise.protocol.ranges import Range
from headwise.protocol.recipe import Protocol
from headwise.protocol.search import check_search, search, settle
from headwise.protocol.space import Space
from headwise.results.records import PhaseResult
from headwise.runs.experiment import obtained, plan_run
from made_cases import each
from made_networks import compose_config

LR = {"low": 0.0001, "high": 0.1, "log": True}


def at_best(best: float) -> tuple[list[Any], Any]:
    """An accuracy that falls with the distance of log10(lr) from a best one."""
    tried: list[Any] = []

    def attempt(methods: Sequence[Method], seed: int | None = None) -> PhaseResult:
        method: Any = methods[-1]
        tried.append(method)
        accuracy = 90 - 10 * abs(math.log10((method.lr or best) / best))
        numbers = {"num_tunable": 1, "num_head": 1, "stored_bytes": 1, "seconds": 1.0}
        return PhaseResult(label="x", accuracy=accuracy, fingerprint=f"{len(tried):016x}", **numbers)  # type: ignore[arg-type]

    return tried, attempt


def space_of(**given: Any) -> Space:
    return Space.of(given)


def test_rates_between_two_ends_are_drawn_and_the_best_is_taken() -> None:
    tried, attempt = at_best(0.004)
    outcome = search(LoRA(label="x", rank=8), [], space_of(fields={"lr": LR}, trials=25), attempt, 5)
    rates = [method.lr for method in tried]
    assert len(rates) == len(set(rates)) == 25
    assert all(LR["low"] <= rate <= LR["high"] for rate in rates)
    assert outcome.method.lr == min(rates, key=lambda rate: abs(math.log10(rate / 0.004)))
    assert abs(math.log10(outcome.method.lr / 0.004)) < 0.1
    report = outcome.report()
    assert report["num_trials"] == 25 and report["edges"] == [] and report["searched"] == ["lr"]


def test_later_draws_learn_from_earlier_ones() -> None:
    early, late = [], []
    for seed in range(5):
        tried, attempt = at_best(0.004)
        search(LoRA(label="x", rank=8), [], space_of(fields={"lr": LR}, trials=40, seed=seed), attempt, 5)
        away = [abs(math.log10(method.lr / 0.004)) for method in tried]
        early += away[:10]  # drawn before anything is known
        late += away[-10:]
    assert sum(late) < 0.6 * sum(early)


def test_the_same_search_draws_the_same() -> None:
    rates = []
    for seed in (0, 0, 1):
        tried, attempt = at_best(0.01)
        search(LoRA(label="x", rank=8), [], space_of(fields={"lr": LR}, trials=12, seed=seed), attempt, 5)
        rates.append([method.lr for method in tried])
    assert rates[0] == rates[1] != rates[2]


def test_halving_trains_the_better_half_of_the_draws_for_longer() -> None:
    tried, attempt = at_best(0.01)
    outcome = search(LoRA(label="x", rank=8), [], space_of(fields={"lr": LR}, trials=8, halving=2), attempt, 8)
    assert [method.epochs for method in tried] == [1] * 8 + [2] * 4 + [4] * 2
    assert outcome.chosen.share == 0.5, "as with a grid, the last round is one of half the epochs"


def test_lists_and_scales_are_drawn_beside_ranges() -> None:
    tried, attempt = at_best(0.01)
    fields = {"lr": LR, "rank": {"low": 2, "high": 16}, "targets": [["q"], ["q", "v"]]}
    search(BiLoRA(label="x"), [], space_of(fields=fields, scale=[1, 10], trials=20), attempt, 5)
    assert {method.scale for method in tried} == {1, 10}
    assert {tuple(method.targets) for method in tried} == {("q",), ("q", "v")}
    ranks = {method.rank for method in tried}
    assert all(type(rank) is int and 2 <= rank <= 16 for rank in ranks) and len(ranks) > 4


def test_a_draw_made_twice_is_trained_once() -> None:
    tried, attempt = at_best(0.01)
    outcome = search(LoRA(label="x", rank=8), [], space_of(fields={"rank": [2, 4]}, trials=6), attempt, 5)
    assert len(tried) == len(outcome.trials) == 2


def test_heads_are_chosen_at_what_was_drawn() -> None:
    tried, attempt = at_best(0.01)
    method = BiLoRA(label="x", gate={"count": 1})
    outcome = search(method, [], space_of(fields={"lr": LR}, ne=[1, 3], trials=4), attempt, 5)
    assert len(tried) == 6 and len({method.lr for method in tried[4:]}) == 1
    assert outcome.method.lr == tried[-1].lr


def test_every_phase_draws_for_itself() -> None:
    tried, attempt = at_best(0.01)
    methods = [LoRA(label="a", rank=8), LoRA(label="b", rank=2)]
    _, facts = settle(methods, ["first", "second"], space_of(fields={"every.lr": LR}, trials=5), attempt, 5)
    assert [method.label for method in tried] == ["a"] * 5 + ["b"] * 5
    assert all(facts[index]["search"]["num_trials"] == 5 for index in (0, 1))


def test_values_near_an_end_are_edges() -> None:
    rates = Range.of(LR, "here")
    assert rates.is_edge(0.00012) and rates.is_edge(0.09) and not rates.is_edge(0.0002) and not rates.is_edge(0.01)
    assert Range(1, 8).is_edge(8) and not Range(1, 8).is_edge(7)
    assert Range(0.5, 1.0).is_edge(0.52) and not Range(0.5, 1.0).is_edge(0.53)


@each("low, high, beside", [(0.0, 1.0, 0.94), (0, 8, 7)])
def test_a_range_from_0_has_one_end(low: float, high: float, beside: float) -> None:
    tried = Range(low, high)
    assert [tried.is_edge(value) for value in (low, beside, high)] == [False, False, True], "below 0 nothing lies"


@each(
    "given, message",
    [
        ({"fields": {"lr": LR}}, "protocol.search.fields.lr is a range: protocol.search.trials says how many"),
        ({"ne": [1], "trials": 5}, "protocol.search.trials: there is no scale and no field to draw"),
        ({"fields": {"lr": LR}, "trials": 1}, "protocol.search.trials must be a whole number of at least 2, got 1"),
        ({"fields": {"lr": {"lo": 1}}, "trials": 5}, "unknown key protocol.search.fields.lr.lo (did you mean 'low'?)"),
        (
            {"fields": {"lr": {"low": 1}}, "trials": 5},
            "lr: a range is two numbers, {low: 0.001, high: 0.1}, got {low: 1}",
        ),
        ({"fields": {"lr": {"low": 1, "high": float("nan")}}, "trials": 5}, "a range is two numbers"),
        ({"fields": {"lr": {"low": True, "high": 2}}, "trials": 5}, "a range is two numbers"),
        ({"fields": {"lr": {"low": 2, "high": 1}}, "trials": 5}, "low must be below high"),
        ({"fields": {"lr": {"low": 0, "high": 1, "log": True}}, "trials": 5}, "low above 0 with log"),
        ({"fields": {"lr": {"low": 0.1, "high": 1, "log": "yes"}}, "trials": 5}, "log true or false"),
    ],
)
def test_what_is_no_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Protocol(search=given)


def test_ends_that_the_method_refuses_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank"):
        check_search(LoRA(label="x", rank=8), {"fields": {"rank": {"low": 0, "high": 4}}, "trials": 4}, 5)


def test_values_between_the_ends_that_the_method_refuses_are_refused() -> None:
    method, fields = LoRA(label="x", rank=8, epochs=4), {"cycles": {"low": 1, "high": 4}}
    with pytest.raises(ConfigError, match=re.escape("fields.cycles: of this range 3 is refused: cycles of method 'x'")):
        check_search(method, {"fields": fields, "trials": 4}, 5)
    check_search(method, {"fields": {"cycles": {"low": 1, "high": 2}}, "trials": 2}, 5)


def test_such_a_search_leaves_no_folder(tmp_path: Path) -> None:
    words = ["dataset=dsprites_loc", "data=synthetic", "backbone=vit_tiny_random", "method=lora", "trainer=cpu"]
    space = "{fields: {rank: {low: -1, high: 3}}, trials: 2}"
    with pytest.raises(ConfigError, match="rank of method 'lora' must be a whole number of at least 1, got -1"):
        obtained(compose_config(*words, f"root={tmp_path}", f"+protocol.search={space}"))
    assert not any(tmp_path.iterdir())


@each(
    "given, number",
    [
        ({"fields": {"rank": [2, 4], "dropout": [0.0, 0.1]}, "scale": [1, 2]}, 8),
        ({"fields": {"rank": {"low": 2, "high": 4}}}, 3),
        ({"fields": {"rank": {"low": 2, "high": 4}, "lr": LR}}, None),
    ],
)
def test_trials_that_there_are_not_are_said_before_the_first(given: dict[str, Any], number: int | None) -> None:
    said: list[str] = []
    _, attempt = at_best(0.01)
    settle([LoRA(label="x", rank=8)], [""], space_of(**given, trials=9), attempt, 5, said.append)
    line = f"of 9 trials at most {number} are trained: there are no more combinations"
    assert said[0].startswith("search 1: ") if number is None else said[0] == line


def test_lines_of_a_search_name_what_is_searched() -> None:
    said: list[str] = []
    _, attempt = at_best(0.01)
    search(LoRA(label="x", rank=8), [], space_of(fields={"lr": [0.1, 0.01]}), attempt, 2, said.append)
    assert said[0] == "search 1: lr=0.1: 80.00 % of the images of val200"
    for epochs, words in ((2, "1 epoch"), (4, "2 epochs")):
        said.clear()
        space = space_of(fields={"lr": [0.1, 0.01]}, halving=2)
        search(LoRA(label="x", rank=8), [], space, attempt, epochs, said.append)
        assert said[0] == f"search 1: lr=0.1: 80.00 % of the images of val200 after {words}"
    said.clear()
    search(LoRA(label="x", rank=8), [], space_of(scale=[0.1, 1]), attempt, 2, said.append)
    assert said[0].startswith("search 1: scale=0.1: ")
    noise = space_of(fields={"consistency": [None, {"lam": 1.0, "sigma": 0.5}]})
    search(LoRA(label="x", rank=8), [], noise, attempt, 2, said.append)
    assert said[-2].startswith("search 1: consistency=null: ")
    assert "consistency={mode: 'pace', " in said[-1] and ", lam: 1.0, " in said[-1]


def test_the_record_says_whose_draws_they_are() -> None:
    _, attempt = at_best(0.01)
    method = LoRA(label="x", rank=8)
    assert search(method, [], space_of(fields={"lr": LR}, trials=2), attempt, 5).report()["optuna"] == version("optuna")
    assert "optuna" not in search(method, [], space_of(fields={"lr": [0.1, 0.2]}), attempt, 5).report()


def test_without_optuna_the_extra_is_named_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "find_spec", lambda name: None)
    words = ["dataset=dsprites_loc", "data=synthetic", "backbone=vit_tiny_random", "method=lora", "trainer=cpu"]
    with pytest.raises(ConfigError, match=re.escape("needs the package optuna: pip install -e '.[search]'")):
        plan_run(compose_config(*words, f"root={tmp_path}", "+protocol.search={scale: [1, 2], trials: 2}"))
    assert not any(tmp_path.iterdir())

from __future__ import annotations

import re
from typing import Any

import pytest
from hydra.utils import instantiate

from headwise.errors import ConfigError
from headwise.protocol.filling import fill_gates
from headwise.runs.experiment import plan_run
from headwise.updates.gate import Gate
from made_cases import each
from made_networks import compose_config

NE3 = {"count": 3, "ratio": None}


def test_what_a_configuration_means() -> None:
    assert Gate.of(None, NE3) is None
    assert Gate.of("heart", NE3) == Gate(count=3)
    assert Gate.of({"scope": "layer"}, NE3) == Gate(count=3, scope="layer")
    assert Gate.of("heart", {**NE3, "warmup": 4}) == Gate(count=3, warmup=4)
    assert Gate.of({"warmup": 2}, {**NE3, "warmup": 4}) == Gate(count=3, warmup=2)
    assert Gate.of({"ratio": 0.5, "count": None}, NE3) == Gate(ratio=0.5)
    assert Gate.of({"count": 3, "ratio": None, "budget": 40}, NE3) == Gate(budget=40)
    gate = Gate(count=1)
    assert Gate.of(gate) is gate
    assert Gate.of(gate.spec()) == gate


def test_gates_of_a_method_are_written_out() -> None:
    method = {"label": "hs", "first": {"rank": 8, "gate": None}, "heads": {"rank": 2, "gate": "heart"}}
    filled = fill_gates(method, NE3)
    assert filled == {"label": "hs", "first": {"rank": 8}, "heads": {"rank": 2, "gate": Gate(count=3).spec()}}
    assert fill_gates(filled, {"count": 1, "ratio": None}) == filled


@each(
    "given, message",
    [
        ("hart", "unknown gate.mode 'hart' (did you mean 'heart'?); allowed: front, heart, random"),
        ({"scores": "taylor_neg"}, "unknown field gate.scores (did you mean 'score'?)"),
        ({"score": "taylor"}, "allowed: grad_l2, taylor_abs, taylor_neg, taylor_pos, weight_l2"),
        ({"scope": "all"}, "unknown gate.scope 'all'"),
        ({"score_data": "val"}, "unknown gate.score_data 'val'"),
        ({"count": -1}, "gate.count must be a whole number of at least 0, got -1"),
        ({"count": 1.5}, "gate.count must be a whole number of at least 0, got 1.5"),
        ({"count": None, "ratio": 1.0}, "gate.ratio must be in [0, 1), got 1.0"),
        ({"count": None, "ratio": -0.1}, "in [0, 1), got -0.1"),
        ({"count": 1, "ratio": 0.5}, "one of count, ratio and budget, got ['count', 'ratio']"),
        ({"budget": 0}, "gate.budget must be a whole number of at least 1, got 0"),
        ({"budget": 5, "mode": "front"}, "gate.mode=front does not know"),
        ({"warmup": 0}, "gate.warmup must be a whole number of epochs, or a fraction of the run in (0, 1), got 0"),
        ({"warmup": 2.5}, "got 2.5"),
        (3, "gate must be null, a mode (heart, front, random) or its fields, got 3"),
    ],
)
def test_bad_input(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Gate.of(given, NE3)


def test_amount_must_be_given() -> None:
    with pytest.raises(ConfigError, match="got none; choose one with ne=ne3"):
        Gate.of("heart")


def test_heads_off() -> None:
    assert [Gate(count=n).num_off(12) for n in (0, 1, 11)] == [0, 1, 11]
    assert [Gate(ratio=0.25).num_off(heads) for heads in (4, 8, 16, 32)] == [1, 2, 4, 8]
    assert [Gate(ratio=0.5).num_off(heads) for heads in (4, 12, 3)] == [2, 6, 1]
    assert Gate(ratio=0.0).num_off(4) == 0
    with pytest.raises(ConfigError, match=r"must leave a head on: 0..11 for 12 heads, got 12"):
        Gate(count=12).num_off(12)
    with pytest.raises(ConfigError, match=r"gate.ratio=0.1 of 6 heads rounds to nothing; the least is 0.1667"):
        Gate(ratio=0.1).num_off(6)


def test_warmup() -> None:
    assert [Gate(count=1).warmup_epochs(epochs) for epochs in (100, 20, 3)] == [10, 2, 1]
    assert Gate(count=1, warmup=4).warmup_epochs(20) == 4
    with pytest.raises(ConfigError, match=r"gate.warmup=20 is 20 of 20 epoch\(s\): at least one must follow"):
        Gate(count=1, warmup=20).warmup_epochs(20)
    with pytest.raises(ConfigError, match=r"is 1 of 1 epoch"):
        Gate(count=1).warmup_epochs(1)


def test_what_is_scored() -> None:
    assert Gate(count=1).is_scored
    assert Gate(budget=3).is_scored
    assert not Gate(count=0).is_scored
    assert not Gate(ratio=0.0).is_scored
    assert not Gate(count=1, mode="front").is_scored


TINY = ("backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu")


def test_the_gate_of_hs_lora_from_the_command_line() -> None:
    short, long = (
        plan_run(compose_config(*TINY, "method=hs_lora", gate, "ne=ne3"))
        for gate in ("method.heads.gate=heart", "+gate@method.heads.gate=heart")
    )
    assert short.config["method"]["heads"]["gate"] == Gate(count=3).spec()
    assert "gate" not in short.config["method"]["first"]
    assert short.identity == long.identity
    assert plan_run(compose_config(*TINY, "method=heart/hs", "ne=ne3")).identity == short.identity


def test_no_gate_is_no_part_of_a_run() -> None:
    plain, other = (plan_run(compose_config(*TINY, "method=lora", ne)) for ne in ("ne=ne1", "ne=ne3"))
    assert "gate" not in plain.config["method"]
    assert plain.identity == other.identity


@each(
    "override, message",
    [
        ("method.gate=hart", "unknown gate.mode 'hart' (did you mean 'heart'?)"),
        ("method.gate={mode: heart, score: taylor}", "unknown gate.score 'taylor'"),
        ("method.gate={mode: heart, warmup: 0}", "got 0"),
    ],
)
def test_a_wrong_gate_is_found_before_anything_heavy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_run(compose_config(*TINY, "method=lora", override))


@each("name", ["front", "random", "layer", "fp32", "hs"])
def test_variants_are_configured(name: str) -> None:
    cfg = compose_config(*TINY, f"method=heart/{name}", "ne=ne1")
    method = instantiate(plan_run(cfg).config["method"], _convert_="all")
    gate = Gate.of(method.phases()[-1].gate)
    assert gate is not None
    assert (gate.mode, gate.count) == (name if name in ("front", "random") else "heart", 1)
    assert gate.scope == ("layer" if name == "layer" else "global")


def test_what_moved_is_still_found_in_its_old_place() -> None:
    from headwise.updates import gate

    assert gate.fill_gates is fill_gates  # type: ignore[attr-defined]

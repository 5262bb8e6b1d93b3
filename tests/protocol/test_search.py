from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from headwise.errors import ConfigError
from headwise.methods.base import Method
from headwise.methods.baselines import Linear
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.methods.pissa import PiSSA
from headwise.protocol.recipe import Protocol
from headwise.protocol.search import Space, search
from headwise.results.records import PhaseResult
from headwise.runs.experiment import run
from made_networks import compose_config

HEART = BiLoRA(label="heart", gate={"count": 1})


def measure(table: Callable[[Method], float]) -> tuple[list[Method], Callable[[Sequence[Method]], PhaseResult]]:
    tried: list[Method] = []

    def attempt(methods: Sequence[Method]) -> PhaseResult:
        tried.append(methods[-1])
        return PhaseResult(
            label="x",
            accuracy=table(methods[-1]),
            num_tunable=1,
            num_head=1,
            stored_bytes=1,
            seconds=1.0,
            fingerprint=f"{len(tried):016x}",
        )

    return tried, attempt


def gate_of(method: Method) -> dict[str, Any]:
    assert isinstance(method.gate, dict)
    return method.gate


def test_scale_first_then_heads_and_scores() -> None:
    def table(method: Any) -> float:
        gate = gate_of(method)
        return (
            {0.1: 50.0, 1.0: 60.0}[method.scale] + {0: 0, 1: 5, 3: 2}[gate["count"]] + (gate["score"] == "taylor_pos")
        )

    tried, attempt = measure(table)
    space = Space(scale=[1.0, 0.1], ne=[3, 1], score=["taylor_neg", "taylor_pos"])
    found = search([LoRA(label="first", rank=2), HEART], space, attempt)
    assert [(m.scale, gate_of(m)["count"]) for m in tried] == [(0.1, 0), (1, 0), (1, 1), (1, 1), (1, 3), (1, 3)]  # type: ignore[attr-defined]
    assert len(found.methods) == 2
    chosen = found.methods[-1]
    assert (chosen.scale, gate_of(chosen)["count"], gate_of(chosen)["score"]) == (1.0, 1, "taylor_pos")
    report = found.report()
    assert report["num_trials"] == len(report["trials"]) == 6
    assert report["chosen"] == {
        "scale": 1.0,
        "ne": 1,
        "score": "taylor_pos",
        "accuracy": 66.0,
        "fingerprint": f"{4:016x}",
    }
    assert json.loads(json.dumps(report)) == report


def test_ties_go_to_fewer_heads_off_then_to_the_smaller_scale() -> None:
    tried, attempt = measure(lambda method: 50.0)
    found = search([HEART], Space(scale=[10, 0.1, 1], ne=[1, 3], score=["taylor_neg"]), attempt)
    assert found.methods[0].scale == 0.1
    assert gate_of(found.methods[0])["count"] == 0
    assert len(tried) == 5


def test_shares_of_heads() -> None:
    tried, attempt = measure(lambda method: 50.0 + (gate_of(method)["ratio"] or 0.0))
    found = search([HEART], Space(ne=[0.25, 0.5]), attempt)
    assert [(gate_of(m)["count"], gate_of(m)["ratio"]) for m in tried] == [(0, None), (None, 0.25), (None, 0.5)]
    assert gate_of(found.methods[0])["ratio"] == 0.5


def test_scale_alone_needs_no_gate() -> None:
    tried, attempt = measure(lambda method: 50.0)
    found = search([BiLoRA(label="bi")], Space(scale=[10, 1]), attempt)
    assert found.chosen.ne is None
    assert [m.scale for m in tried] == [1, 10]  # type: ignore[attr-defined]
    assert found.methods[0] == BiLoRA(label="bi", scale=1)


def test_other_fields_are_tried_with_every_scale() -> None:
    """Issue line 29: FacT's rank is searched."""
    tried, attempt = measure(lambda method: 50.0 + method.rank - method.scale)  # type: ignore[attr-defined]
    found = search([LoRA(label="x", rank=1)], Space(scale=[1, 2], fields={"rank": [4, 8]}), attempt)
    assert [(m.rank, m.scale) for m in tried] == [(4, 1), (4, 2), (8, 1), (8, 2)]  # type: ignore[attr-defined]
    assert (found.methods[0].rank, found.methods[0].scale) == (8, 1)
    assert found.report()["chosen"]["fields"] == {"rank": 8}
    _, attempt = measure(lambda method: 50.0)
    assert search([LoRA(label="x", rank=1)], Space(fields={"rank": [8, 4]}), attempt).methods[0].rank == 8


def test_a_field_that_a_method_lacks() -> None:
    space = Space(scale=[1], fields={"prompts": [1, 5]}, optional=True)
    assert space.within(LoRA(label="x", rank=1)) == Space(scale=[1], optional=True)
    assert Space(fields={"rank": [1]}, optional=True).within(Linear(label="linear")) is None
    _, attempt = measure(lambda method: 50.0)
    with pytest.raises(
        ConfigError, match=re.escape("protocol.search.fields: method x has no 'rang' (did you mean 'rank'?)")
    ):
        search([LoRA(label="x", rank=1)], Space(fields={"rang": [1]}), attempt)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fields": [1]}, "protocol.search.fields must be a mapping, got [1]"),
        ({"fields": {"rank": 8}}, "protocol.search.fields.rank is a list of different values, got 8"),
        ({"fields": {"rank": []}}, "protocol.search.fields.rank is a list of different values, got []"),
        ({"fields": {"rank": [8, 8]}}, "protocol.search.fields.rank is a list of different values, got [8, 8]"),
        (
            {"fields": {"scale": [1]}},
            "protocol.search.fields.scale may not be set here; scales are protocol.search.scale",
        ),
        ({"scales": [1]}, "unknown key protocol.search.scales (did you mean 'scale'?)"),
        ({"scale": 1}, "protocol.search.scale must be a list of different values, numbers other than 0, got 1"),
        ({"ne": [1, 1]}, "a list of different values, whole numbers, or shares below 1, got [1, 1]"),
        ({"ne": [1.5]}, "whole numbers, or shares below 1, got [1.5]"),
        ({"ne": [-1]}, "got [-1]"),
        ({"score": ["taylor"]}, "unknown protocol.search.score 'taylor'"),
        ({"scale": []}, "protocol.search names nothing to try; allowed: scale, ne, score"),
    ],
)
def test_bad_space(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Protocol(search=given)


def test_methods_that_cannot_be_searched() -> None:
    _, attempt = measure(lambda method: 50.0)
    with pytest.raises(ConfigError, match=r"protocol\.search\.ne: method h has no gate; add gate=heart"):
        search([HeadLoRA(label="h", rank=2)], Space(ne=[1]), attempt)


def test_what_does_not_apply_is_left_out_where_that_is_allowed() -> None:
    space = Space(scale=[1, 10], ne=[1], score=["taylor_neg"], optional=True)
    assert space.within(HEART) == space
    assert space.within(BiLoRA(label="bi")) == Space(scale=[1, 10], optional=True)
    assert space.within(PiSSA(label="p", rank=2)) == Space(scale=[1, 10], optional=True)
    assert space.within(Linear(label="linear")) is None
    assert Space(ne=[1]).within(Linear(label="linear")) == Space(ne=[1]), "search() refuses it"
    with pytest.raises(ConfigError, match=r"protocol\.search\.optional must be true or false, got 1"):
        Protocol(search={"scale": [1], "optional": 1})
    with pytest.raises(ConfigError, match="names nothing to try"):
        Protocol(search={"optional": True})


def test_fixed_masks_are_not_tried_with_every_score() -> None:
    tried, attempt = measure(lambda method: 50.0)
    front = dataclasses.replace(HEART, gate={**gate_of(HEART), "mode": "front"})
    search([front], Space(ne=[1, 3], score=["taylor_pos", "taylor_neg"]), attempt)
    assert [gate_of(method)["count"] for method in tried] == [0, 1, 3]


def test_search_protocol() -> None:
    protocol = Protocol(search={"scale": [1]}, select="best_test", test_images=5, epochs=7)
    trial = protocol.for_search()
    assert (trial.train_split, trial.eval_split, trial.select, trial.epochs) == ("train800", "val200", "last", 7)
    assert trial.search is trial.test_images is None


def test_a_run_searches_then_trains_on_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole runs: trials on 800 and 200, one warm-up for all heads and scores, then 1000 and the test set."""
    cfg = compose_config(
        "method=heart_lora",
        "backbone=vit_tiny_random",
        "dataset=dsprites_loc",
        "data=synthetic",
        "protocol=search",
        "protocol.epochs=2",
        "protocol.batch_size=400",
        "protocol.test_images=64",
        "protocol.search.scale=[1,10]",
        "protocol.search.ne=[1]",
        "protocol.search.score=[taylor_pos,taylor_neg]",
        "trainer=cpu",
        "trainer.threads=1",
        "trainer.progress=false",
        f"root={tmp_path}",
    )
    run(cfg)
    (file,) = tmp_path.glob("runs/heart_lora/*/*/seed-0/result.json")
    record = json.loads(file.read_text())
    found = record["phases"][-1]["extra"]["search"]
    assert found["num_trials"] == len(found["trials"]) == 4
    assert (found["train_split"], found["eval_split"]) == ("train800", "val200")
    phases = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("phases/*/phase.json")}
    assert {trial["fingerprint"] for trial in found["trials"]} <= set(phases)
    assert all(phases[trial["fingerprint"]]["num_test"] == 200 for trial in found["trials"])
    assert record["phases"][-1]["num_test"] == 64
    assert record["phases"][-1]["method"]["scale"] == found["chosen"]["scale"]
    warmups = [phase for phase in phases.values() if phase["label"] == "heart_lora warm-up"]
    assert len(warmups) == 1 + (found["chosen"]["ne"] == 1)
    gated = found["chosen"]["ne"] == 1
    assert (file.parent / "heads.png").is_file()
    lines = (file.parent / "heads.csv").read_text().splitlines()
    assert lines[0] == "phase,stage,block,proj,head,score,active"
    assert len(lines) == 1 + 2 * 2 * 4
    assert sum(line.endswith(",0") for line in lines) == (4 if gated else 0)
    capsys.readouterr()
    run(cfg)
    assert "already finished" in capsys.readouterr().out


def test_the_space_of_the_configuration() -> None:
    cfg = compose_config("method=heart_lora", "protocol=search")
    space = Space.of({key: list(values) for key, values in cfg.protocol.search.items()})
    assert dataclasses.asdict(space) == {
        "scale": [0.01, 0.1, 1, 10, 100],
        "ne": [1, 3, 6],
        "score": ["taylor_pos", "taylor_neg", "taylor_abs"],
        "fields": {},
        "optional": False,
    }

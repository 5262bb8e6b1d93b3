from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headwise.errors import ConfigError
from headwise.methods.base import Method
from headwise.methods.baselines import Linear
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.hs_lora import HeadLoRA, Longer, TwoPhase
from headwise.methods.lora import LoRA
from headwise.methods.pissa import PiSSA
from headwise.protocol.recipe import Protocol
from headwise.protocol.search import check_search, search, settle
from headwise.protocol.space import Space, check_choices, phase_names
from headwise.results.records import PhaseResult
from headwise.runs.experiment import obtained, run
from made_cases import each
from made_networks import compose_config
from made_words import QUIET, TINY

HEART = BiLoRA(label="heart", gate={"count": 1})
SLOW = replace(HEART, gate={"count": 1, "warmup": 2})
TWICE = LoRA(label="twice", rank=1, epochs=4, cycles=2)
LR = {"low": 0.001, "high": 0.1}


def measure(table: Callable[[Method], float]) -> tuple[list[Method], Callable[..., PhaseResult]]:
    tried: list[Method] = []

    def attempt(methods: Sequence[Method], seed: int | None = None) -> PhaseResult:
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
    found = search(HEART, [LoRA(label="first", rank=2)], space, attempt, 5)
    assert [(m.scale, gate_of(m)["count"]) for m in tried] == [(0.1, 0), (1, 0), (1, 1), (1, 1), (1, 3), (1, 3)]  # type: ignore[attr-defined]
    chosen = found.method
    assert (chosen.scale, gate_of(chosen)["count"], gate_of(chosen)["score"]) == (1.0, 1, "taylor_pos")
    report = found.report()
    assert report["num_trials"] == len(report["trials"]) == 6
    assert report["searched"] == ["scale", "ne", "score"]
    assert report["edges"] == ["scale"]
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
    found = search(HEART, [], Space(scale=[10, 0.1, 1], ne=[1, 3], score=["taylor_neg"]), attempt, 5)
    assert found.method.scale == 0.1
    assert gate_of(found.method)["count"] == 0
    assert len(tried) == 5


def test_shares_of_heads() -> None:
    tried, attempt = measure(lambda method: 50.0 + (gate_of(method)["ratio"] or 0.0))
    found = search(HEART, [], Space(ne=[0.25, 0.5]), attempt, 5)
    assert [(gate_of(m)["count"], gate_of(m)["ratio"]) for m in tried] == [(0, None), (None, 0.25), (None, 0.5)]
    assert gate_of(found.method)["ratio"] == 0.5


def test_scale_alone_needs_no_gate() -> None:
    tried, attempt = measure(lambda method: 50.0)
    found = search(BiLoRA(label="bi"), [], Space(scale=[10, 1]), attempt, 5)
    assert found.chosen.ne is None
    assert [m.scale for m in tried] == [1, 10]  # type: ignore[attr-defined]
    assert found.method == BiLoRA(label="bi", scale=1)


def test_other_fields_are_tried_with_every_scale() -> None:
    """Issue line 29: FacT's rank is searched."""
    tried, attempt = measure(lambda method: 50.0 + method.rank - method.scale)  # type: ignore[attr-defined]
    found = search(LoRA(label="x", rank=1), [], Space(scale=[1, 2], fields={"rank": [4, 8]}), attempt, 5)
    assert [(m.rank, m.scale) for m in tried] == [(4, 1), (4, 2), (8, 1), (8, 2)]  # type: ignore[attr-defined]
    assert (found.method.rank, found.method.scale) == (8, 1)
    assert found.report()["chosen"]["fields"] == {"rank": 8}
    _, attempt = measure(lambda method: 50.0)
    assert search(LoRA(label="x", rank=1), [], Space(fields={"rank": [8, 4]}), attempt, 5).method.rank == 8


def test_noise_is_searched_as_a_field_of_any_phase() -> None:
    tries = [{"lam": lam, "sigma": sigma} for lam in (0.1, 1.0) for sigma in (0.5, 1.0)]
    (space,) = Space.of({"fields": {"every.consistency": tries}}).by_phase([""])
    tried, attempt = measure(lambda method: 50.0 + 10 * method.consistency["lam"] - method.consistency["sigma"])  # type: ignore[index, call-overload]
    found = search(LoRA(label="x", rank=1), [], space, attempt, 5)
    assert len(tried) == 4
    assert (found.method.consistency["lam"], found.method.consistency["sigma"]) == (1.0, 0.5)
    json.dumps(found.report())


def test_a_field_that_a_method_lacks() -> None:
    space = Space(scale=[1], fields={"prompts": [1, 5]}, optional=True)
    assert space.within(LoRA(label="x", rank=1)) == Space(scale=[1], optional=True)
    assert Space(fields={"rank": [1]}, optional=True).within(Linear(label="linear")) is None
    with pytest.raises(
        ConfigError, match=re.escape("protocol.search.fields: method x has no 'rang' (did you mean 'rank'?)")
    ):
        check_choices(Space(fields={"rang": [1]}), LoRA(label="x", rank=1))


@each(
    "given, message",
    [
        ({"fields": [1]}, "protocol.search.fields must be a mapping, got [1]"),
        ({"fields": {"heads.rank": 8}}, "protocol.search.fields.heads.rank is a list of different values, got 8"),
        ({"fields": {"every.gate": [1]}}, "protocol.search.fields.every.gate may not be set here; heads off are"),
        ({"fields": {"heads.epochs": [1, 2]}, "halving": 2}, "protocol.search.fields names epochs, which"),
        ({"fields": {".lr": [1]}}, "protocol.search.fields..lr is neither FIELD nor PHASE.FIELD"),
        ({"fields": {"every.": [1]}}, "protocol.search.fields.every. is neither FIELD nor PHASE.FIELD"),
        ({"fields": {"heads.gate.count": [1]}}, "protocol.search.fields.heads.gate.count is neither FIELD nor"),
        ({"fields": {"every.checkpoint": ["a"]}}, "protocol.search.fields.every.checkpoint may not be set here; it is"),
        ({"fields": {"revision": [1, 2]}}, "protocol.search.fields.revision may not be set here; it names the code"),
        ({"scale": [1], "seed": -1}, "protocol.search.seed must be a whole number in 0..4294967295, got -1"),
        ({"scale": [1], "halving": 1}, "protocol.search.halving must be a whole number of at least 2, got 1"),
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
    with pytest.raises(ConfigError, match=r"protocol\.search\.ne: method h has no gate; add method.gate=heart"):
        check_choices(Space(ne=[1]), HeadLoRA(label="h", rank=2))


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
    front = replace(HEART, gate={**gate_of(HEART), "mode": "front"})
    search(front, [], Space(ne=[1, 3], score=["taylor_pos", "taylor_neg"]), attempt, 5)
    assert [gate_of(method)["count"] for method in tried] == [0, 1, 3]


def test_search_protocol() -> None:
    protocol = Protocol(search={"scale": [1]}, select="best_test", test_images=5, epochs=7)
    trial = protocol.for_search()
    assert (trial.train_split, trial.eval_split, trial.select, trial.epochs) == ("train800", "val200", "last", 7)
    assert trial.search is trial.test_images is None


TWO = TwoPhase(label="two", first=LoRA(label="a", rank=2), heads=HeadLoRA(label="b", rank=1))


def settled(method: Any, space: Space, attempt: Callable[..., PhaseResult]) -> tuple[tuple[Any, ...], dict[int, Any]]:
    return settle(method.phases(), phase_names(method), space, attempt, 8)


def test_each_phase_chooses_on_what_the_one_before_it_chose() -> None:
    best = {"a": 0.01, "b": 0.003}
    tried: list[list[tuple[str, float | None]]] = []

    def attempt(methods: Sequence[Method], seed: int | None) -> PhaseResult:
        tried.append([(method.label, method.lr) for method in methods])
        accuracy = 60.0 if methods[-1].lr == best[methods[-1].label] else 50.0
        costs = {"num_tunable": 1, "num_head": 1, "stored_bytes": 1, "seconds": 1.0}
        return PhaseResult(label="x", accuracy=accuracy, fingerprint=f"{len(tried):016x}", **costs)

    methods, facts = settled(TWO, Space(fields={"every.lr": [0.003, 0.01]}), attempt)
    assert tried == [
        [("a", 0.003)],
        [("a", 0.01)],
        [("a", 0.01), ("b", 0.003)],
        [("a", 0.01), ("b", 0.01)],
    ]
    assert [method.lr for method in methods] == [0.01, 0.003]
    assert {index: fact["search"]["num_trials"] for index, fact in facts.items()} == {0: 2, 1: 2}


@each("key, searched", [("lr", [1]), ("heads.lr", [1]), ("first.lr", [0]), ("every.lr", [0, 1]), ("first.scale", [0])])
def test_fields_of_named_phases(key: str, searched: list[int]) -> None:
    _, attempt = measure(lambda method: 50.0)
    methods, facts = settled(TWO, Space(fields={key: [0.5, 0.25]}), attempt)
    assert sorted(facts) == searched
    name = key.rpartition(".")[2]
    first = 0.25 if name == "scale" else 0.5  # of equal scales the smaller
    assert [getattr(method, name) == first for method in methods] == [index in searched for index in range(2)]


def test_names_of_phases() -> None:
    assert phase_names(TWO) == ["first", "heads"]
    assert phase_names(Longer(label="long", first=LoRA(label="a", rank=2), epochs=4)) == ["first"]
    assert phase_names(HEART) == [""]


@each(
    "space",
    [
        Space(fields={"every.lr": [0.1], "heads.lr": [0.2]}),
        Space(fields={"lr": [0.1], "heads.lr": [0.2]}),
        Space(scale=[1.0], fields={"heads.scale": [2.0]}),
        Space(scale=[1.0], fields={"every.scale": [2.0]}),
    ],
)
def test_a_field_of_a_phase_is_named_once(space: Space) -> None:
    tried, attempt = measure(lambda method: 50.0)
    with pytest.raises(ConfigError, match=r"fields\.(heads|every)\.\w+: (lr|scale) of phase 2 is named twice"):
        settled(TWO, space, attempt)
    assert tried == []


def test_what_is_left_out_is_said() -> None:
    said: list[str] = []
    space = Space(scale=[1.0], ne=[1], fields={"haeds.lr": [0.1], "every.prompts": [1]}, optional=True)
    settle(TWO.phases(), phase_names(TWO), space, attempt_of(), 8, said.append)
    left_out = [line for line in said if "left out" in line]
    assert left_out == [
        "phase 1 a: left out of the search, since the method has none: prompts",
        "phase 2 b: left out of the search, since the method has none: ne, prompts",
        "left out of the search, since the method has no such phase: haeds.lr",
    ]


def test_a_phase_that_a_method_lacks() -> None:
    tried, attempt = measure(lambda method: 50.0)
    with pytest.raises(ConfigError, match=re.escape("has no phase 'head' (did you mean 'heads'?)")):
        settled(TWO, Space(fields={"head.lr": [0.1]}), attempt)
    with pytest.raises(ConfigError, match=re.escape("has no phase 'heads'")):
        settled(HEART, Space(fields={"heads.lr": [0.1]}), attempt)
    assert settled(HEART, Space(fields={"heads.lr": [0.1]}, optional=True), attempt) == ((HEART,), {})
    assert tried == []


def test_values_that_a_method_does_not_take_are_refused_before_anything_is_tried() -> None:
    tried, attempt = measure(lambda method: 50.0)
    for key, value in (("first.lr", -1.0), ("heads.rank", 0), ("every.dropout", 1.5)):
        with pytest.raises(ConfigError, match=rf"{key.rpartition('.')[2]} of method '\w' must be"):
            settled(TWO, Space(fields={key: [value]}), attempt)
    assert tried == []


def test_the_order_of_fields_decides_nothing() -> None:
    """They have one fingerprint, so they are one search."""
    grids = {"lr": [0.2, 0.1], "rank": [1, 3, 2]}
    chosen = [
        search(LoRA(label="x", rank=1), [], Space(fields={name: grids[name] for name in names}), attempt_of(), 8).method
        for names in (("lr", "rank"), ("rank", "lr"))
    ]
    assert chosen[0] == chosen[1]


@each("name", ["spec", "phases", "__class__", "merges"])
def test_what_is_no_field_of_a_method(name: str) -> None:
    with pytest.raises(ConfigError, match=f"method x has no '{name}'"):
        check_choices(Space(fields={name: [1]}), LoRA(label="x", rank=1))
    assert Space(fields={name: [1]}, optional=True).within(LoRA(label="x", rank=1)) is None


def test_shares_are_those_that_were_trained() -> None:
    _, attempt = measure(lambda method: 50.0)
    outcome = search(LoRA(label="x", rank=1), [], Space(fields={"rank": [1, 2, 3, 4]}, halving=2), attempt, 2)
    assert {trial.share for trial in outcome.trials} == {0.5}, "a quarter of two epochs is one"


def test_halving_trains_the_better_ones_longer() -> None:
    tried, attempt = measure(lambda method: 50.0 + method.rank + (method.epochs or 8))  # type: ignore[attr-defined]
    outcome = search(LoRA(label="x", rank=1), [], Space(fields={"rank": [1, 2, 3, 4]}, halving=2), attempt, 8)
    assert [(m.rank, m.epochs) for m in tried] == [(1, 2), (2, 2), (3, 2), (4, 2), (4, 4), (3, 4)]  # type: ignore[attr-defined]
    assert (outcome.method.rank, outcome.method.epochs) == (4, None)
    trials = outcome.report()["trials"]
    assert [trial["share"] for trial in trials] == [0.25] * 4 + [0.5] * 2
    assert outcome.report()["chosen"]["share"] == 0.5
    assert all("share" not in trial.plain() for trial in search(HEART, [], Space(scale=[1, 2]), attempt_of(), 8).trials)


@each(
    "method, given, message",
    [
        (SLOW, {"scale": [1, 10], "halving": 2}, "heart for 2 of 4 epochs at first: gate.warmup=2 is 2 of 2 epoch(s)"),
        (SLOW, {"ne": [1, 3, 5], "halving": 2}, "heart for 1 of 4 epochs at first: gate.warmup=2 is 2 of 1 epoch(s)"),
        (SLOW, {"fields": {"epochs": [4, 2]}}, "heart for 2 epochs: gate.warmup=2 is 2 of 2 epoch(s)"),
        (SLOW, {"fields": {"epochs": {"low": 1, "high": 8}}, "trials": 2}, "heart for 1 epoch: gate.warmup=2 is"),
        (TWICE, {"fields": {"lr": [0.1, 0.2, 0.3]}, "halving": 2}, "twice for 1 of 4 epochs at first: cycles of"),
        (TWICE, {"fields": {"lr": LR}, "trials": 4, "halving": 4}, "twice for 1 of 4 epochs at first: cycles of"),
    ],
)
def test_epochs_of_trials_that_a_method_cannot_take_are_refused(
    method: Method, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"trials of {message}")) as caught:
        check_search(method, given, 4)
    assert "\n" not in str(caught.value)
    assert ("protocol.search.halving" in str(caught.value)) == ("halving" in given)


def test_trials_have_the_epochs_that_a_warm_up_needs() -> None:
    tried, attempt = measure(lambda method: 50.0)
    settle([HEART], [""], Space.of({"scale": [1, 10], "ne": [1], "halving": 2}), attempt, 6)
    assert {method.epochs for method in tried} == {3}, "with every head on there is no warm-up"


def test_a_warm_up_that_does_not_fit_leaves_no_folder(tmp_path: Path) -> None:
    words = ["dataset=dsprites_loc", "data=synthetic", "backbone=vit_tiny_random", "trainer=cpu", f"root={tmp_path}"]
    halved = ["method=heart_lora", "ne=ne1", "protocol.epochs=3", "+protocol.search={scale: [1, 10], halving: 3}"]
    with pytest.raises(ConfigError, match=re.escape("halving=3 trains trials of heart_lora for 1 of 3 epochs")):
        obtained(compose_config(*words, *halved))
    for more in ([], ["+protocol.search={ne: [1]}"]):
        with pytest.raises(ConfigError, match=re.escape("is 1 of 1 epoch(s): at least one must follow")):
            obtained(compose_config(*words, "method=heart_lora", "ne=ne1", "protocol.epochs=1", *more))
    assert not any(tmp_path.iterdir())


def attempt_of() -> Callable[..., PhaseResult]:
    return measure(lambda method: 50.0)[1]


@each("values, edges", [([1, 2, 3], []), ([2, 3], ["rank"]), ([1, 2], ["rank"]), ([2], [])])
def test_a_value_at_the_end_of_what_was_tried_is_an_edge(values: list[int], edges: list[str]) -> None:
    _, attempt = measure(lambda method: float(method.rank == 2))  # type: ignore[attr-defined]
    outcome = search(LoRA(label="x", rank=1), [], Space(fields={"rank": values, "label": ["x", "y"]}), attempt, 8)
    assert (outcome.method.rank, outcome.report()["edges"]) == (2, edges)


@each("best, edges", [(0, []), (1, []), (3, ["ne"])])
def test_heads_off_have_one_end(best: int, edges: list[str]) -> None:
    _, attempt = measure(lambda method: float(gate_of(method)["count"] == best))
    outcome = search(HEART, [], Space(ne=[1, 3], score=["taylor_pos"], fields={"dropout": [0.0, 0.5]}), attempt, 8)
    report = outcome.report()
    assert (report["chosen"]["ne"], report["edges"]) == (best, edges), "of no dropout there is no less either"
    assert report["searched"] == ["ne", "score", "dropout"]
    alone = search(HEART, [], Space(ne=[0], fields={"dropout": [0.1]}), attempt, 8).report()
    assert (alone["chosen"]["ne"], alone["edges"]) == (None, []), "heads are left as they are"


@each("halving, num, shares", [(None, 5, [1]), (2, 1, [1]), (3, 9, [1 / 9, 1 / 3]), (4, 3, [1 / 4])])
def test_epochs_of_rounds(halving: int | None, num: int, shares: list[float]) -> None:
    assert Space(scale=[1], halving=halving).shares(num) == shares


def test_one_search_serves_all_seeds_unless_asked_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def searched(root: str, seed: int, *words: str) -> dict[str, Any]:
        run(
            compose_config(
                "method=hs_lora",
                "rank={global:2,head:1}",
                *TINY,
                "+protocol.search={fields:{every.lr:[0.001,0.01]}}",
                *QUIET,
                f"seed={seed}",
                f"root={tmp_path / root}",
                *words,
            )
        )
        (file,) = (tmp_path / root).glob(f"runs/**/seed-{seed}/result.json")
        record: dict[str, Any] = json.loads(file.read_text())
        return record

    records = [searched("shared", seed) for seed in range(2)]
    first, second = ([phase["extra"]["search"] for phase in record["phases"]] for record in records)
    assert first == second
    assert [search["seed"] for search in first] == [0, 0]
    # of each seed two phases; of the search two first phases, and two second ones over the chosen first
    assert len(list(tmp_path.glob("shared/phases/*/phase.json"))) == 2 * 2 + 4
    own = searched("own", 1, "+protocol.search.seed=null")
    assert [phase["extra"]["search"]["seed"] for phase in own["phases"]] == [None, None]
    trials = {trial["fingerprint"] for phase in own["phases"] for trial in phase["extra"]["search"]["trials"]}
    assert not trials & {trial["fingerprint"] for search in first for trial in search["trials"]}


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
        "trials": None,
        "optional": False,
        "seed": 0,
        "halving": None,
        "images": None,
    }

"""One address for what gives one number: gates that do nothing, and fields of a gate that cannot change a number."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from headwise.methods.adapters import Adapters
from headwise.methods.base import Method
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.lora import LoRA
from headwise.methods.spt_lora import SPTLoRA
from headwise.methods.vpt import VPT
from headwise.protocol.plan import plan_run
from headwise.protocol.recipe import Protocol
from headwise.results.fingerprint import fingerprint
from headwise.results.records import PhaseResult, Result
from headwise.results.store import PhaseStore, ResultStore
from headwise.schema.effective import DEFAULTS, LATER, effective, effective_gate
from headwise.schema.source import literal_of_target
from headwise.training.address import chain
from headwise.training.loop import TENSORS
from headwise.updates.gate import Gate
from headwise.updates.heads import choose, fixed
from made_cases import each
from made_networks import CONF, compose_config, network
from made_runs import trained

METHODS = sorted((CONF / "method").rglob("*.yaml"))
PLAIN = ["backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu"]


@each("file", METHODS)
def test_a_field_that_came_later_is_no_part_of_a_run_where_it_does_nothing(file: Path) -> None:
    node = yaml.safe_load(file.read_text())
    target = str(node.get("_target_", ""))
    later = {**LATER, **(literal_of_target(target, "later") or {})}
    added = {name: value for name, value in later.items() if name not in node}
    assert effective({"method": {**node, **added}}) == effective({"method": node})
    assert effective({"method": {"first": {**node, **added}}}) == effective({"method": {"first": node}})


@each("kind", [LoRA, Adapters, VPT, SPTLoRA])
def test_what_is_declared_is_read_from_the_source_and_is_the_default(kind: Any) -> None:
    assert literal_of_target(f"{kind.__module__}.{kind.__name__}", "later") == kind.later
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    assert {name: defaults[name] for name in kind.later} == kind.later
    assert kind.later


@each(
    "method, word",
    [
        ("lora", "+method.lr_ratio=1"),
        ("lora", "+method.freeze_a=false"),
        ("lora", "+method.cycles=1"),
        ("lora", "+method.consistency={sigma: 0}"),
        ("lora", "+method.consistency={mode: fast, sigma: 0, lam: 0}"),
        ("hs_lora", "+method.first.lr_ratio=1.0"),
        ("hs_lora", "+method.heads.consistency={sigma: 0.0}"),
        ("houlsby_b8", "+method.norm=false"),
        ("spt_lora", "+method.drop_path=0"),
        ("vpt_deep", "+method.bound=width"),
    ],
)
def test_it_is_the_same_run(method: str, word: str) -> None:
    plain, more = (plan_run(compose_config(*PLAIN, f"method={method}", *words)) for words in ([], [word]))
    assert more.identity == plain.identity
    assert [phase.spec() for phase in more.build_method().phases()] == [
        phase.spec() for phase in plain.build_method().phases()
    ]


@each("recipe", ["{mode: lazy, sigma: 0}", "{mode: fast, sigma: 0}", "{sigma: 0.1}", "{lam: 0}"])
def test_noise_that_does_something_is_another_run(recipe: str) -> None:
    words = [*PLAIN, "method=lora"]
    plain, more = (plan_run(compose_config(*words, *more)) for more in ([], [f"+method.consistency={recipe}"]))
    assert more.identity != plain.identity


NOTHING: list[dict[str, Any]] = [
    {"count": 0},
    {"ratio": 0.0},
    {"count": 0, "mode": "front"},
    {"count": 0, "mode": "random"},
    {"ratio": 0.0, "mode": "random", "scope": "layer"},
    {"count": 0, "scope": "layer", "score": "taylor_pos", "warmup": 3, "pooled": True, "score_data": "last_batch"},
]
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"count": 1, "mode": "front"}, {"score": "taylor_pos"}),
    ({"count": 1, "mode": "front"}, {"score_data": "last_batch"}),
    ({"count": 1, "mode": "front"}, {"warmup": 2}),
    ({"count": 1, "mode": "front"}, {"scope": "layer"}),
    ({"count": 1, "mode": "front"}, {"pooled": True}),
    ({"count": 1, "mode": "random"}, {"score": "grad_l2"}),
    ({"count": 1, "mode": "random"}, {"score_data": "last_batch"}),
    ({"count": 1, "mode": "random"}, {"warmup": 2}),
    ({"count": 1, "score": "weight_l2"}, {"score_data": "last_batch"}),
    ({"count": 1}, {"scope": "stage"}),
    ({"count": 1, "mode": "random"}, {"scope": "stage"}),
    ({"budget": 5}, {"scope": "layer"}),
]
OTHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"count": 1}, {"count": 2}),
    ({"count": 1}, {"score": "taylor_pos"}),
    ({"count": 1}, {"score_data": "last_batch"}),
    ({"count": 1}, {"warmup": 2}),
    ({"count": 1}, {"scope": "layer"}),
    ({"count": 1}, {"pooled": True}),
    ({"count": 1}, {"mode": "random"}),
    ({"count": 1, "mode": "random"}, {"scope": "layer"}),
    ({"count": 1, "mode": "random"}, {"pooled": True}),
    ({"budget": 5}, {"pooled": True}),
    ({"budget": 5}, {"budget": 6}),
]


def lora(gate: Any = None, label: str = "x") -> Method:
    return BiLoRA(label=label, rank=5, gate=gate)


def address(gate: Any) -> Any:
    return chain([lora(gate)], {"toy": 1}, 3)


def train(gate: Any, folder: Path, label: str = "x") -> PhaseResult:
    recipe = Protocol(epochs=3, batch_size=16, lr=1e-2, drop_path=0.1)
    (result,) = trained(network("vit"), [lora(gate, label)], folder, recipe)
    return result


def numbers(result: PhaseResult, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    tensors = load_file(PhaseStore(folder).path(result.fingerprint) / TENSORS)
    return (result.accuracy, result.train_loss, result.stored_bytes, result.sha256), tensors


def test_defaults_are_those_of_the_gate() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Gate)}
    assert {name: fields[name] for name in DEFAULTS} == DEFAULTS


@each("gate", NOTHING)
def test_a_gate_that_does_nothing_is_no_part_of_an_address(gate: dict[str, Any]) -> None:
    assert Gate(**gate).effective() is None
    assert address(gate) == address(None)
    assert lora(gate).spec() == lora().spec()


@each("gate, change", SAME)
def test_a_field_that_cannot_change_a_number_is_no_part_of_an_address(
    gate: dict[str, Any], change: dict[str, Any]
) -> None:
    assert address({**gate, **change}) == address(gate)
    assert effective_gate(Gate(**gate).spec()) == Gate(**gate).spec(), "what has defaults keeps its address"


@each("gate, change", OTHER)
def test_a_field_that_can_is(gate: dict[str, Any], change: dict[str, Any]) -> None:
    assert address({**gate, **change})[0].phase != address(gate)[0].phase


MASKED = [(*pair, family) for pair in SAME if "warmup" not in pair[1] for family in ("vit", "swin")]


# a budget is for networks of one stage
@each("gate, change, family", [case for case in MASKED if case[2] == "vit" or "budget" not in case[0]])
def test_masks_are_the_same(gate: dict[str, Any], change: dict[str, Any], family: str) -> None:
    """By the fields as they were given, whatever the effective form says."""
    masks = []
    sites = [site for site in network(family).sites if site.proj in "qv"]
    if family == "swin":
        gate = {**{k: v for k, v in gate.items() if k != "count"}, "ratio": 0.5}
    for fields in (gate, {**gate, **change}):
        made = Gate(**fields)
        torch.manual_seed(0)
        scores = {site: torch.randn(site.num_heads) for site in sites}
        masks.append(choose(made, scores) if made.mode == "heart" else fixed(made, dict.fromkeys(sites)))
    assert all(torch.equal(mask, masks[1][site]) for site, mask in masks[0].items())


def test_bi_lora_and_heart_lora_without_heads_off_are_one(tmp_path: Path) -> None:
    """Trained apart they are the same bits; in one store the second is taken, and says of the gate what it asked."""
    alone = {}
    for number, gate in enumerate([None, *NOTHING[:5]]):
        result = train(gate, tmp_path / str(number))
        alone[number] = numbers(result, tmp_path / str(number))
        assert alone[number][0] == alone[0][0]
        assert all(torch.equal(tensor, alone[0][1][name]) for name, tensor in alone[number][1].items())
        assert result.active_heads == (None if gate is None else 4)
        again = train(None if gate else {"count": 0}, tmp_path / str(number), label="other")
        assert (again.label, again.fingerprint, again.seconds) == ("other", result.fingerprint, result.seconds)
        assert again.active_heads == (4 if gate is None else None)
        assert again.masks == [] if gate else len(again.masks) == 4
        assert (again.gate == {}) == (gate is not None)


@each("change", [{"score_data": "last_batch"}, {"scope": "stage"}])
def test_weights_are_scored_after_the_last_step_whatever_is_passed(change: dict[str, Any], tmp_path: Path) -> None:
    gate = {"count": 2, "score": "weight_l2", "warmup": 1}
    made = [numbers(train(g, tmp_path / str(n)), tmp_path / str(n)) for n, g in enumerate([gate, {**gate, **change}])]
    assert made[0][0] == made[1][0]


TINY = ("backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu")


def identity(*overrides: str) -> dict[str, Any]:
    return plan_run(compose_config(*TINY, *overrides)).identity


def test_runs_without_heads_off_are_one_configuration() -> None:
    """Issue 14, A2: bi_lora and heart_lora, front, random, layer at ne0."""
    plain = identity("method=bi_lora")
    for method in ("heart_lora", "heart/front", "heart/random", "heart/layer"):
        assert identity(f"method={method}", "ne=ne0") == plain
        assert identity(f"method={method}", "ne=ne1") != plain
    assert identity("method=hs_lora", "method.heads.gate=heart", "ne=ne0") == identity("method=hs_lora")
    searched = "+protocol.search={ne: [1], optional: true}"
    assert identity("method=heart_lora", "ne=ne0", searched) != identity("method=bi_lora", searched)
    scaled = "+protocol.search={scale: [1]}"
    assert identity("method=heart_lora", "ne=ne0", scaled) == identity("method=bi_lora", scaled)


def test_a_record_of_before_is_recognised(tmp_path: Path) -> None:
    """Its identity spells out what does not matter, and its hash is of that."""
    now = plan_run(compose_config(*TINY, "method=heart_lora", "ne=ne0", f"root={tmp_path}"))
    old = {**now.identity, "method": {**now.identity["method"], "gate": Gate(count=0).spec()}}
    assert effective(old) == now.identity
    phase = train({"count": 0}, tmp_path / "x")
    record = Result(key=now.key, identity=old, phases=[phase]).to_json()
    assert record["fingerprint"] == fingerprint(old) != fingerprint(now.identity)
    file = now.folder / "result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record))
    store = ResultStore(tmp_path)
    found = store.get(now.key, now.identity)
    assert found is not None
    assert found.fingerprint == fingerprint(now.identity)
    assert store.place(now.key, now.identity) == now.key

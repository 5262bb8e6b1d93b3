"""from=RUN_DIR: a finished run's phases come first, and the new run stands on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import headwise
from headwise.artifacts.export import evaluate
from headwise.artifacts.published import write_hub
from headwise.comparison.controls import EQUAL_SIZE, matches
from headwise.errors import CheckpointError, ConfigError
from headwise.protocol.earlier import Earlier
from headwise.results.store import Result
from headwise.runs.experiment import obtained, plan_run
from made_networks import compose_config

BASE = ["backbone=vit_tiny_random", "data=synthetic", "protocol=smoke", "trainer=cpu", "trainer.threads=1"]
BASE += ["trainer.progress=false", "rank=r4", "logger.pictures=false"]
LOC = [*BASE, "dataset=dsprites_loc"]


def trained(*words: str) -> tuple[Result, Path]:
    cfg = compose_config(*words)
    result = obtained(cfg)
    assert isinstance(result, Result)
    return result, result.key.path(Path(cfg.root))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(*LOC, "method=lora", f"root={tmp_path_factory.mktemp('first')}")[1]


def test_going_on_per_head_is_the_second_phase_of_hs_lora(first: Path, tmp_path: Path) -> None:
    whole, there = trained(*LOC, "method=hs_lora", f"root={tmp_path}")
    on, here = trained(*LOC, "method=head_lora", f"from={first}", f"root={tmp_path}")
    assert [phase.label for phase in on.phases] == ["lora", "head_lora"]
    assert [phase.accuracy for phase in on.phases] == [phase.accuracy for phase in whole.phases]
    one, other = (load_file(folder / "phase-2.safetensors") for folder in (there, here))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert "continued" in on.labels
    assert on.provenance["from"]["run"].startswith("runs/lora/") and on.provenance["from"]["phases"] == 1
    assert str(first) not in json.dumps(on.identity)
    again = obtained(compose_config(*LOC, "method=head_lora", f"from={first}", f"root={tmp_path}"))
    assert again is not None and again.created == on.created, "it is finished"


def test_the_runs_that_a_table_asks_for_are_its_controls(first: Path, tmp_path: Path) -> None:
    on, _ = trained(*LOC, "method=head_lora", f"from={first}", f"root={tmp_path}")
    words = {EQUAL_SIZE: ["method=matched_lora", f"from={first}"]}
    words |= {"longer P1": ["method=lora", f"protocol.epochs={on.epochs}"]}
    words |= {"longer P2": ["method=head_lora", f"protocol.epochs={on.epochs}", "name=long"]}
    controls = {kind: trained(*LOC, *chosen, f"root={tmp_path}")[0] for kind, chosen in words.items()}
    found = {match.against: match.other for match in matches([on], [on, *controls.values()])}
    assert {kind: found.get(kind) for kind in controls} == {kind: control.key for kind, control in controls.items()}


def test_another_task_has_a_classifier_of_its_own_and_does_not_test_what_was_before(
    first: Path, tmp_path: Path
) -> None:
    on, here = trained(*BASE, "dataset=clevr_count", "method=lora", f"from={first}", f"root={tmp_path}")
    before, own = on.phases
    assert before.accuracy is None and own.accuracy is not None
    assert on.tested == [own] and before.num_tunable > 0
    head = load_file(here / "phase-1.safetensors")["head.weight"]
    assert head.shape[0] == 8 and load_file(first / "phase-1.safetensors")["head.weight"].shape[0] == 16
    (retest,) = evaluate(here)
    assert retest.measured == pytest.approx(own.accuracy)
    assert retest.number == 2, "the run's own numbers, also of phases that are not tested again"


def test_a_chain_of_three_keeps_every_link(first: Path, tmp_path: Path) -> None:
    _, second = trained(*LOC, "method=head_lora", f"from={first}", f"root={tmp_path}")
    third, here = trained(*LOC, "method=lora", f"from={second}", f"root={tmp_path}", "method.targets=[o]")
    assert [phase.label for phase in third.phases] == ["lora", "head_lora", "lora"]
    assert [one.measured for one in evaluate(here)] == [pytest.approx(phase.accuracy) for phase in third.phases]
    assert third.provenance["from"]["phases"] == 2


def test_a_search_chooses_for_the_new_phases_alone_on_images_that_were_not_trained_on(
    first: Path, tmp_path: Path
) -> None:
    _, apart = trained(*LOC, "method=lora", "protocol.train_split=train800", "name=apart", f"root={tmp_path}")
    words = ["method=lora", "+protocol.search={fields:{lr:[0.001,0.01]}}", f"root={tmp_path}"]
    on, _ = trained(*LOC, *words, f"from={apart}")
    assert [phase.num_trials for phase in on.phases] == [0, 2]
    assert "would choose on val200, which is part of it" in refused(first, tmp_path, *words, f"from={first}")
    _, mid = trained(*LOC, "method=head_lora", "protocol.train_split=train800", f"from={first}", f"root={tmp_path}/mid")
    for more in (words, ["protocol.train_split=train800", "protocol.eval_split=val200", f"root={tmp_path}"]):
        said = refused(first, tmp_path, *more, f"from={mid}")
        assert "has trained on train800val200 of dsprites_loc" in said, "one link further back"
    other, _ = trained(*BASE, "dataset=dsprites_ori", *words, f"from={first}")
    assert other.phases[1].num_trials == 2, "another task's images"


def test_stamps_and_costs_of_what_was_before_stay(first: Path, tmp_path: Path) -> None:
    words = ["protocol.select=best_test", "protocol.select_every=1", f"root={tmp_path}"]
    before, folder = trained(*LOC, "method=lora", *words)
    on, _ = trained(*LOC, "method=head_lora", f"from={folder}", f"root={tmp_path}")
    assert "TEST-SELECTED" in before.labels and set(before.labels) < set(on.labels)
    assert on.epochs == 2 * before.epochs and on.phases[0].seconds == before.phases[0].seconds


def test_masks_of_a_scored_gate_are_gone_on_from(tmp_path: Path) -> None:
    words = ["method=heart_lora", "ne=half", f"root={tmp_path}"]
    before, folder = trained(*LOC, *words)
    on, here = trained(*LOC, "method=lora_xs", "method.rank=2", f"from={folder}", f"root={tmp_path}")
    assert on.phases[0].accuracy == before.phases[0].accuracy
    assert on.phases[0].active_heads == before.phases[0].active_heads
    assert [one.measured for one in evaluate(here)] == [pytest.approx(phase.accuracy) for phase in on.phases]


def test_runs_from_other_runs_are_other_runs(first: Path, tmp_path: Path) -> None:
    _, other = trained(*LOC, "method=lora", "seed=1", f"root={tmp_path}")
    words = [*LOC, "method=head_lora", f"root={tmp_path}"]
    plans = [plan_run(compose_config(*words, *more)) for more in ([], [f"from={first}"], [f"from={other}"])]
    assert len({json.dumps(plan.identity, sort_keys=True) for plan in plans}) == 3
    assert "from" not in plans[0].identity


def test_the_same_run_elsewhere_is_the_same(first: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in first.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    one, other = (Earlier.of({"from": str(folder)}) for folder in (first, copy))
    assert one is not None and other is not None and one.content == other.content


def refused(first: Path, tmp_path: Path, *words: str, **values: Any) -> str:
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        obtained(compose_config(*LOC, "method=lora", f"root={tmp_path}", *words))
    return str(caught.value)


def test_what_cannot_be_gone_on_from_is_refused(first: Path, tmp_path: Path) -> None:
    said = refused(first, tmp_path, f"from={first.parent}")
    assert "no finished run in" in said and f"did you mean {first}" in said
    said = refused(first, tmp_path, f"from={first}", "backbone.seed=3")
    assert said.startswith(f"from={first} stands on another network than this run: backbone.seed: 0 vs 3")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in first.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "phase-1.safetensors").write_bytes(b"x")
    assert "phase-1.safetensors is missing, or not the file that" in refused(first, tmp_path, f"from={damaged}")
    (damaged / "phase-1.safetensors").unlink()
    assert "phase-1.safetensors is missing, or not the file that" in refused(first, tmp_path, f"from={damaged}")
    (damaged / "phase-1.safetensors").write_bytes((first / "phase-1.safetensors").read_bytes())
    record = json.loads((first / "result.json").read_text())
    record["phases"][0]["sha256"] = None
    (damaged / "result.json").write_text(json.dumps(record))
    assert "phase 1 is of older code" in refused(first, tmp_path, f"from={damaged}")
    record["phases"][0] |= {"sha256": "0" * 64, "extra": {"plan": {"x": [1]}}}
    (damaged / "result.json").write_text(json.dumps(record))
    assert "was laid out by a look at its images" in refused(first, tmp_path, f"from={damaged}")
    record["phases"][0] |= {"extra": {}, "method": {"_target_": "os.system"}}
    (damaged / "result.json").write_text(json.dumps(record))
    assert "os.system" in refused(first, tmp_path, f"from={damaged}")


def test_the_library_takes_it_as_well(first: Path, tmp_path: Path) -> None:
    fixed = {"backbone": "vit_tiny_random", "data": "synthetic", "protocol": "smoke", "trainer": "cpu", "rank": "r4"}
    result = headwise.train(
        method="head_lora", dataset="dsprites_loc", **{"from": str(first)}, root=str(tmp_path), **fixed
    )
    assert len(result.phases) == 2


def test_a_card_of_a_chain_says_no_place(first: Path, tmp_path: Path) -> None:
    _, here = trained(*LOC, "method=head_lora", f"from={first}", f"root={tmp_path}")
    write_hub(headwise.load(here), tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert str(first) not in card and "checkpoint" not in card

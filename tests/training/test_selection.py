"""An epoch may be chosen only when the network is what the method makes of it: masks set, ranks fixed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headwise.methods.base import Method
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.dylora import DyLoRA
from headwise.methods.lora import LoRA
from headwise.methods.noah import Supernet
from headwise.methods.peft_bridge import PeftMethod
from headwise.protocol.plan import plan_run
from headwise.protocol.recipe import Protocol
from headwise.results.records import PhaseResult, ResultError
from headwise.results.store import PhaseStore
from headwise.runs.experiment import run
from headwise.training.loop import TENSORS, Saver
from headwise.training.selection import TestSelection
from made_cases import each
from made_networks import compose_config, network
from made_runs import trained
from made_words import QUIET, TINY

BEST = Protocol(epochs=4, batch_size=16, lr=1e-2, drop_path=0.1, select="best_test", select_every=1)
ADALORA = {
    "_target_": "peft.AdaLoraConfig",
    "init_r": 4,
    "target_r": 2,
    "tinit": 0.1,
    "tfinal": 0.4,
    "deltaT": 1,
}


def falling(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make every look at the test set worse than the one before; gives the epochs of the looks."""
    looks: list[int] = []
    look = TestSelection.on_train_epoch_end

    def worse(self: TestSelection, trainer: Any, pl_module: Any) -> None:
        before = self.epoch, self.accuracy, self.best
        self.accuracy = -1.0
        look(self, trainer, pl_module)
        if self.accuracy == -1.0:
            self.accuracy = before[1]
            return
        looks.append(trainer.current_epoch + 1)
        if before[2] is not None:
            self.epoch, self.accuracy, self.best = before

    monkeypatch.setattr(TestSelection, "on_train_epoch_end", worse)
    return looks


def train(method: Method, folder: Path, protocol: Protocol = BEST) -> PhaseResult:
    (result,) = trained(network("vit"), [method], folder, protocol)
    return result


@each("scope", ["global", "layer"])
@each("score_data", ["full_pass", "last_batch"])
def test_no_epoch_from_before_the_mask(
    score_data: str, scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm-up of two epochs ends before the third, which is the first that may be looked at."""
    looks = falling(monkeypatch)
    gate = {"count": 3, "warmup": 2, "score_data": score_data, "scope": scope}
    result = train(BiLoRA(label="heart", rank=5, gate=gate), tmp_path)
    assert looks == [3, 4]
    assert result.extra["selected"]["epoch"] == 3
    assert result.extra["selected"]["first"] == 3
    assert result.extra["selected"]["accuracy"] == pytest.approx(result.accuracy)
    assert result.active_heads == 1


def test_no_epoch_from_before_the_ranks_are_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = falling(monkeypatch)
    protocol = dataclasses.replace(BEST, epochs=10)
    result = train(PeftMethod(label="adalora", config=ADALORA), tmp_path, protocol)
    assert looks == [6, 7, 8, 9, 10], "the last 40 % of the steps keep their ranks"
    ranks = result.extra["ranks"].values()
    assert sum(ranks) == 2 * len(ranks)
    assert result.extra["selected"]["epoch"] == 6


@each(
    "make, first",
    [
        (lambda: LoRA(label="x", rank=2), 1),
        (lambda: DyLoRA(label="x", rank=2), 1),
        (lambda: LoRA(label="x", rank=2, gate={"count": 0}), 1),
        (lambda: LoRA(label="x", rank=2, gate={"mode": "front", "count": 1}), 1),
        (lambda: LoRA(label="x", rank=2, gate={"mode": "random", "count": 1}), 1),
        (lambda: LoRA(label="x", rank=2, gate={"count": 1, "warmup": 10}), 11),
        (lambda: LoRA(label="x", rank=2, gate={"count": 1, "warmup": 0.25}), 6),
        (lambda: LoRA(label="x", rank=2, gate={"budget": 4, "warmup": 1}), 2),
        (lambda: Supernet(label="x", search={"sizes": [2]}), 20),
    ],
)
def test_what_methods_declare(make: Callable[[], Method], first: int) -> None:
    installed = make().install(network("vit"))
    assert installed.final_from(20, 15) == first


def test_from_the_start_where_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = falling(monkeypatch)
    result = train(LoRA(label="lora", rank=2), tmp_path)
    assert looks == [1, 2, 3, 4]
    assert result.extra["selected"]["epoch"] == 1
    last = train(LoRA(label="lora", rank=2), tmp_path / "last", dataclasses.replace(BEST, select="last"))
    assert "selected" not in last.extra


@each("method", [LoRA(label="lora", rank=2), BiLoRA(label="bi", rank=5)])
def test_what_is_stored_is_the_chosen_epoch(method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the tensors as they trained on."""
    falling(monkeypatch)
    kept: list[dict[str, Any]] = []
    save = Saver.on_train_epoch_end

    def keep(self: Any, trainer: Any, pl_module: Any) -> None:
        save(self, trainer, pl_module)
        kept.append({name: t.detach().cpu().clone() for name, t in pl_module.installed.packed().items()})

    monkeypatch.setattr(Saver, "on_train_epoch_end", keep)
    result = train(method, tmp_path)
    stored = load_file(PhaseStore(tmp_path).path(result.fingerprint) / TENSORS)
    assert stored.keys() == kept[0].keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in kept[0].items())
    assert not torch.equal(stored["head.weight"], kept[-1]["head.weight"])
    assert result.accuracy == pytest.approx(result.extra["selected"]["accuracy"])


def test_a_stopped_run_takes_the_same_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the epoch that is taken in the end, or before it."""
    falling(monkeypatch)
    method = BiLoRA(label="heart", rank=5, gate={"count": 2, "warmup": 1})
    whole = train(method, tmp_path / "whole")
    file = TENSORS
    save = Saver.on_train_epoch_end
    for stop in (0, 1, 2):
        with monkeypatch.context() as patch:

            def fail(self: Any, trainer: Any, pl_module: Any, stop: int = stop) -> None:
                save(self, trainer, pl_module)
                if trainer.current_epoch == stop:
                    raise RuntimeError("power cut")

            patch.setattr(Saver, "on_train_epoch_end", fail)
            with pytest.raises(RuntimeError, match="power cut"):
                train(method, tmp_path / str(stop))
        resumed = train(method, tmp_path / str(stop))
        assert resumed.extra["selected"] == whole.extra["selected"]
        assert resumed.extra["selected"]["epoch"] == 2
        places = [
            PhaseStore(root).path(whole.fingerprint) / file for root in (tmp_path / str(stop), tmp_path / "whole")
        ]
        assert places[0].read_bytes() == places[1].read_bytes()


def test_a_checkpoint_that_says_no_usable_epoch_leaves_the_choice_open() -> None:
    best = {"x": torch.ones(1)}
    for state in ({"best": best, "accuracy": 0.9}, {"best": best, "accuracy": 0.9, "epoch": 2}):
        selection = TestSelection(BEST, first=3)
        selection.load_state_dict(state)
        assert (selection.best, selection.epoch) == (None, None)
        assert selection.accuracy < 0


def test_a_record_with_all_heads_on_is_no_record_of_heads_off(tmp_path: Path) -> None:
    """What older code stored where an epoch of the warm-up won: it counts as missing, so it is made again."""
    result = train(BiLoRA(label="heart", rank=5, gate={"count": 3, "warmup": 1}), tmp_path)
    record = result.to_json()
    for row in record["extra"]["heads"]:
        row["active"] = [1, 1, 1, 1]
    with pytest.raises(ResultError, match=r"was to switch 3 of the heads off, and all are on"):
        PhaseResult.from_json(record, tmp_path / "phase.json")
    (tmp_path / "phases" / result.fingerprint / "phase.json").write_text(json.dumps(record))
    bad: list[ResultError] = []
    assert PhaseStore(tmp_path, on_bad=bad.append).finished(result.fingerprint) is None
    assert len(bad) == 1


TOY = (
    "method=heart_lora",
    *TINY,
    "protocol.epochs=3",
    "protocol.select=best_test",
    "protocol.select_every=1",
    "ne=ne3",
    "ne.warmup=1",
    *QUIET,
)


@each(
    "overrides, expected",
    [
        (("method=lora",), 2),
        (("method=lora", "protocol.select=last"), None),
        (("method=lora", "trainer=gpu"), None),
        (("method=adalora", "trainer=gpu"), 2),
        (("method=adalora", "trainer=gpu", "protocol.select=last"), None),
    ],
)
def test_identity_tells_choices_of_older_code_apart(overrides: tuple[str, ...], expected: int | None) -> None:
    """Only where the number that older code stored may be another one."""
    plan = plan_run(compose_config(*TOY, *overrides))
    assert plan.identity["protocol"].get("choice") == expected
    trial = plan.protocol.for_search()
    assert "choice" not in plan.ground(trial)["protocol"]
    assert plan.ground(plan.protocol)["protocol"].get("choice") == expected


def test_a_trial_on_some_images_is_no_phase_of_the_run() -> None:
    """Where the run's own splits are those of a search, the number of images alone tells the two apart."""
    splits = ("protocol.train_split=train800", "protocol.eval_split=val200", "protocol.test_images=null")
    search = "+protocol.search={fields: {lr: [0.001, 0.01]}, images: %d}"
    plans = [plan_run(compose_config(*TOY, *splits, search % count)) for count in (8, 9)]
    grounds = [plan.ground(plan.protocol.for_search()) for plan in plans]
    assert [ground["protocol"]["test_images"] for ground in grounds] == [8, 9]
    assert grounds[0]["data"] == plans[0].ground(plans[0].protocol)["data"]
    assert plans[0].ground(plans[0].protocol)["protocol"]["test_images"] is None


def test_the_split_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 14, A6: what is measured on val200 is not said to be of the test images."""
    run(compose_config(*TOY, "protocol.eval_split=val200", "protocol.train_split=train800", f"root={tmp_path}"))
    said = capsys.readouterr().out
    assert "% of 32 images of val200 (epoch " in said
    assert "test images" not in said


def test_six_seeds_store_the_mask_they_chose(tmp_path: Path) -> None:
    """Issue 14, A1: every stored mask has exactly three heads off, and the record says the epoch."""
    for seed in range(6):
        run(compose_config(*TOY, f"seed={seed}", f"root={tmp_path}"))
    files = list(tmp_path.glob("runs/heart_lora/*/*/seed-*/result.json"))
    assert len(files) == 6
    for file in files:
        (phase,) = json.loads(file.read_text())["phases"]
        assert [row["active"].count(0) for row in phase["extra"]["heads"]] == [3] * len(phase["extra"]["heads"])
        assert phase["extra"]["selected"]["epoch"] in (2, 3)
        tensors = load_file(file.parent / "phase-1.safetensors")
        masks = [tensor.tolist() for name, tensor in tensors.items() if name.endswith("active")]
        assert len(masks) == len(phase["extra"]["heads"])
        assert all(bits.bit_count() == 1 for (bits,) in masks), "a bit for every one of the four heads that is on"

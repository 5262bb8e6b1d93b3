"""Trackers: what was written is read back from the files of wandb and TensorBoard, offline."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from headwise.errors import ConfigError
from headwise.results.store import Result, ResultStore
from headwise.runs.experiment import obtained, plan_run, run
from headwise.runs.tracker import Tracker, summary, tracked
from made_cases import each
from made_networks import compose_config
from made_results import run as made_run
from made_words import TINY

FAST = [*TINY, "trainer=cpu"]
FAST += ["trainer.threads=1", "trainer.progress=false", "rank=r4"]
HEADER, BLOCK = 7, 32768


def records(file: Path) -> Iterator[Any]:
    """Records of a .wandb file, which is a log of LevelDB's form: blocks of 32 KiB, parts with length and type."""
    data, place, parts = file.read_bytes(), HEADER, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # too little is left of the block for a header
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_back(root: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """The run, its history without wandb's own numbers, and its summary, of the one wandb run below a root."""
    (file,) = root.glob("wandb/offline-run-*/*.wandb")
    # wandb's own process may write the last records a moment after its library has finished the run
    while not any(record.WhichOneof("record_type") == "exit" for record in records(file)):
        time.sleep(0.05)
    history: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    started: Any = None
    for record in records(file):
        if record.WhichOneof("record_type") == "run":
            started = record.run
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if row:
            history.append({name: value for name, value in row.items() if not name.startswith("_")})
        facts |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update}
    return started, history, facts


def test_two_phases_are_one_run_of_wandb_with_one_rising_step(tmp_path: Path) -> None:
    result = obtained(compose_config(*FAST, "method=hs_lora", "protocol.epochs=2", "logger=wandb", f"root={tmp_path}"))
    assert isinstance(result, Result)
    started, history, facts = read_back(tmp_path)
    rows = [row for row in history if any("train_loss" in name for name in row)]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == sum(phase.steps for phase in result.phases)
    assert [name for row in rows for name in row if "loss" in name] == ["phase1/train_loss"] * 2 + [
        "phase2/train_loss"
    ] * 2
    assert rows[-1]["phase2/train_loss"] == pytest.approx(result.phases[1].train_loss)
    assert any(name.startswith("curve/") for row in history for name in row), "the picture"
    assert facts["accuracy"] == facts["phase2/accuracy"] == result.phases[-1].accuracy
    assert facts["phase2/gain"] == pytest.approx(result.phases[1].accuracy - result.phases[0].accuracy)  # type: ignore[operator]
    assert facts["parameters"] == sum(phase.num_tunable for phase in result.phases)
    assert set(result.labels) <= set(started.tags) and "hs_lora" in started.tags
    assert (started.run_group, started.display_name) == ("runs", "hs_lora/dsprites_loc/base/0")


def test_a_run_whose_phases_are_stored_is_tracked_as_well(tmp_path: Path) -> None:
    words = [*FAST, "method=hs_lora", f"root={tmp_path}"]
    first = obtained(compose_config(*words))
    assert isinstance(first, Result)
    (tmp_path / "runs/hs_lora/dsprites_loc/base/seed-0/result.json").unlink()
    (tmp_path / "index.jsonl").unlink(missing_ok=True)
    run(compose_config(*words, "logger=wandb"))
    _, history, facts = read_back(tmp_path)
    assert {name for row in history for name in row if "loss" in name} == {"phase1/train_loss", "phase2/train_loss"}
    assert facts["accuracy"] == first.phases[-1].accuracy


def test_tensorboard_shows_the_same(tmp_path: Path) -> None:
    result = obtained(compose_config(*FAST, "method=hs_lora", "logger=tensorboard", f"root={tmp_path}"))
    assert isinstance(result, Result)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "runs/hs_lora/dsprites_loc/base/seed-0/tensorboard"))
    events.Reload()
    first, second = (events.Scalars(f"phase{number}/train_loss") for number in (1, 2))
    steps = [event.step for event in (*first, *second)]
    assert len(first) == len(second) == 2 and steps == sorted(set(steps))
    assert steps[1::2] == [result.phases[0].steps, result.phases[0].steps + result.phases[1].steps]
    (accuracy,) = events.Scalars("accuracy")
    assert accuracy.value == pytest.approx(result.phases[-1].accuracy)
    assert "curve" in events.Tags()["images"]
    (labels,) = events.Tensors("labels/text_summary")
    assert all(label.encode() in labels.tensor_proto.string_val[0] for label in result.labels)


class Heard(Tracker):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def write(self, values: Any, step: int) -> None:
        self.steps.append(step)


def test_epochs_told_again_after_a_resume_keep_their_steps() -> None:
    tracker = Heard()
    for phase, steps in ((1, (16, 32)), (2, (8, 16)), (2, (8, 16, 24))):
        for step in steps:
            tracker.epoch(phase, {"step": step, "train_loss": 1.0, "lr": 0.1})
    assert tracker.steps == [16, 32, 40, 48, 40, 48, 56]


def test_phases_that_begin_again_in_smaller_parts_begin_at_zero() -> None:
    tracker = Heard()
    for phase in (1, 2, 1, 2):
        tracker.epoch(phase, {"step": 5, "train_loss": 1.0, "lr": 0.1})
    assert tracker.steps == [5, 10, 5, 10]


def test_gains_over_controls_are_in_the_summary() -> None:
    own = made_run("hs_lora", accuracy=(60.0, 64.0))
    facts = summary(own, [])
    assert (facts["phase2/gain"], facts["accuracy"]) == (4.0, 64.0)
    assert [value for name, value in facts.items() if name.startswith("gain over")] == [4.0], "its own first phase"


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    plan = plan_run(compose_config(*FAST, "method=lora", "logger=tensorboard", f"root={tmp_path}"))
    with pytest.raises(ConfigError, match="logger=tensorboard needs the package tensorboard"):
        tracked(plan).__enter__()


class Fake:
    """A run of wandb's that only listens."""

    tags: tuple[str, ...] = ()

    def __init__(self, seen: dict[str, Any]) -> None:
        self.seen, self.summary = seen, {}

    def define_metric(self, *args: Any, **kwargs: Any) -> None: ...

    def log(self, values: Any) -> None: ...

    def finish(self, exit_code: int) -> None:
        self.seen["exit_code"] = exit_code


@each("error", [None, ValueError, KeyboardInterrupt])
def test_the_tracker_gets_one_run_a_job_in_the_sweeps_group_and_its_true_exit_code(
    error: type[BaseException] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("wandb.init", lambda **options: seen.update(options) or Fake(seen))
    plan = plan_run(compose_config(*FAST, "method=lora", "logger=wandb", f"root={tmp_path}", "name=table1", "seed=3"))
    with contextlib.suppress(error or ArithmeticError), tracked(plan):
        if error is not None:
            raise error
    assert seen["exit_code"] == (0 if error is None else 1)
    assert (seen["group"], seen["name"]) == ("table1", "lora/dsprites_loc/base/3")
    assert (seen["mode"], seen["resume"]) == ("offline", "allow")
    assert seen["dir"] == str(tmp_path)


def test_the_same_run_has_the_same_id_in_every_process_and_another_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("wandb.init", lambda **options: seen.append(options["id"]) or Fake({}))
    for words in ([], [], ["seed=1"], ["protocol.lr=0.5", "variant=base"], ["+logger.id=mine"]):
        with tracked(plan_run(compose_config(*FAST, "method=lora", "logger=wandb", f"root={tmp_path}", *words))):
            pass
    assert seen[0] == seen[1] and len(set(seen)) == 4 and seen[-1] == "mine"


@each(
    "answer, says",
    [
        (False, "wandb knows no key"),
        (wandb.errors.AuthenticationError("a key of 40\ncharacters"), "a key of 40 characters"),
    ],
)
def test_an_online_tracker_without_a_key_is_refused_at_once(
    answer: bool | Exception, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def login(prompt: bool) -> bool:
        assert not prompt
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("wandb.login", login)
    plan = plan_run(compose_config(*FAST, "method=lora", "logger=wandb", "logger.offline=false", f"root={tmp_path}"))
    with pytest.raises(ConfigError, match=f"logger.offline=false: {says}; run `wandb login`") as caught:
        tracked(plan).__enter__()
    assert "\n" not in str(caught.value)


def test_the_tracker_learns_that_a_result_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("wandb.init", lambda **options: Fake(seen))
    monkeypatch.setattr(ResultStore, "put", full)
    with pytest.raises(OSError, match="no space left"):
        run(compose_config(*FAST, "method=lora", "logger=wandb", f"root={tmp_path}"))
    assert seen["exit_code"] == 1

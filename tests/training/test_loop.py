"""Phases: exact resume, sharing by content, what stops a run, and what a checkpoint holds."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from headwise.errors import CheckpointError, ConfigError, Interrupted, NonFiniteLoss
from headwise.methods.base import Installed, Method
from headwise.methods.hs_lora import HeadLoRA, TwoPhase
from headwise.methods.lora import LoRA
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import Protocol
from headwise.results.store import PhaseResult, PhaseStore
from headwise.storage.claims import BusyError, Claim
from headwise.training import address, loop
from headwise.training.loop import CHECKPOINT, TENSORS, Machine, PhaseModule, chain, read_tensors
from headwise.training.selection import TestSelection
from made_cases import each
from made_networks import CLASSES, composed_method, images, logits, spec, toy_data
from made_runs import trained

RECIPE = Protocol(name="test", epochs=4, lr=1e-2, drop_path=0.2)
LORA = LoRA(label="lora", rank=4)
HEADS = HeadLoRA(label="heads", rank=2, dropout=0.1)


@pytest.fixture(autouse=True)
def quiet() -> None:
    loop.hush()


@pytest.fixture(autouse=True)
def as_on_a_terminal() -> Iterator[None]:
    """SIGHUP ends a process, even where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def run(
    root: Path,
    methods: Sequence[Method] = (HEADS,),
    protocol: Protocol = RECIPE,
    seed: int = 0,
    said: list[str] | None = None,
) -> tuple[Backbone, list[PhaseResult]]:
    net, say = spec("vit").build(protocol.drop_path), ([] if said is None else said).append
    ground = {"seed": seed}
    return net, trained(net, methods, root, protocol, data=toy_data(seed), ground=ground, seed=seed, say=say)


def timeless(result: PhaseResult) -> PhaseResult:
    return dataclasses.replace(result, seconds=0.0, images_per_second=None, peak_memory=None)


def folder_of(root: Path) -> Path:
    (folder,) = (root / "phases").iterdir()
    return folder


def rows(root: Path) -> list[dict[str, str]]:
    with (folder_of(root) / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PhaseResult]:
    """A phase of four epochs that nothing interrupted, with dropout and drop-path."""
    root = tmp_path_factory.mktemp("whole")
    loop.hush()
    return root, run(root)[1][0]


def after_epoch(error: type[BaseException]) -> tuple[type, str, Callable[..., Any]]:
    """Fail once the second epoch is saved."""
    saved = loop.Saver.on_train_epoch_end

    def fail(self: Any, trainer: Any, module: Any) -> None:
        saved(self, trainer, module)
        if trainer.current_epoch == 1:
            raise error("power cut")

    return loop.Saver, "on_train_epoch_end", fail


def within_epoch(error: type[BaseException]) -> tuple[type, str, Callable[..., Any]]:
    """Fail at the second step of the third epoch."""
    step = PhaseModule.training_step

    def fail(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 2 and batch_idx == 1:
            raise error("power cut")
        return step(self, batch, batch_idx)

    return PhaseModule, "training_step", fail


@pytest.mark.parametrize(
    ("when", "error", "seen"),
    [
        (after_epoch, RuntimeError, RuntimeError),
        (within_epoch, RuntimeError, RuntimeError),
        (within_epoch, KeyboardInterrupt, Interrupted),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(
    when: Callable[..., Any],
    error: type[BaseException],
    seen: type[BaseException],
    whole: tuple[Path, PhaseResult],
    tmp_path: Path,
) -> None:
    root, uninterrupted = whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*when(error))
        with pytest.raises(seen):
            run(tmp_path)
    folder = folder_of(tmp_path)
    assert (folder / CHECKPOINT).is_file()
    assert not (folder / "phase.json").exists()
    assert not (folder / TENSORS).exists()
    said: list[str] = []
    _, (resumed,) = run(tmp_path, said=said)
    assert any("resuming after its last saved epoch" in line for line in said)
    assert timeless(resumed) == timeless(uninterrupted)
    assert (folder / TENSORS).read_bytes() == (folder_of(root) / TENSORS).read_bytes()
    assert rows(tmp_path) == rows(root)
    assert sorted(file.name for file in folder.iterdir()) == ["confusion.csv", "metrics.csv", "phase.json", TENSORS]


class Clock:
    """Time that goes on by what a test says: so much an epoch, so much a checkpoint."""

    def __init__(self, patch: pytest.MonkeyPatch, epoch: float, checkpoint: float) -> None:
        self.now, self.saved = 1000.0, []
        begin, save = PhaseModule.on_train_epoch_start, L.Trainer.save_checkpoint

        def start(module: Any) -> None:
            self.now += epoch
            begin(module)

        def write(trainer: Any, part: Path) -> None:
            self.now += checkpoint
            self.saved.append(trainer.current_epoch + 1)
            save(trainer, part)

        patch.setattr(PhaseModule, "on_train_epoch_start", start)
        patch.setattr(L.Trainer, "save_checkpoint", write)
        patch.setattr(address, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.mark.parametrize(
    ("epoch", "checkpoint", "saved"),
    [
        (60.0, 0.01, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),  # a long epoch is never lost
        (1.0, 0.01, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),  # nor one beside which a checkpoint is nothing
        (0.01, 0.01, [1, 10]),
        (2.0, 0.1, [1, 4, 7, 10]),  # one in fifty seconds is for checkpoints
        (11.0, 5.0, [1, 4, 7, 10]),  # but no more than half a minute may be lost
    ],
)
def test_short_epochs_are_not_all_saved_and_the_last_always_is(
    epoch: float, checkpoint: float, saved: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, epoch, checkpoint)

    def fail(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(PhaseStore, "finish", fail)
    with pytest.raises(RuntimeError):
        run(tmp_path, protocol=dataclasses.replace(RECIPE, epochs=10))
    assert clock.saved == saved


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_was_killed_between_checkpoints_resumes_to_the_same_bits(
    at: int, whole: tuple[Path, PhaseResult], tmp_path: Path
) -> None:
    def dies(module: Any) -> None:
        if module.current_epoch == at:
            raise RuntimeError("power cut")
        begin(module)

    begin = PhaseModule.on_train_epoch_start
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch, 0.0, 1.0)
        begin = PhaseModule.on_train_epoch_start
        patch.setattr(PhaseModule, "on_train_epoch_start", dies)
        with pytest.raises(RuntimeError):
            run(tmp_path)
    assert clock.saved == [1]
    _, (resumed,) = run(tmp_path)
    assert timeless(resumed) == timeless(whole[1])
    assert (folder_of(tmp_path) / TENSORS).read_bytes() == (folder_of(whole[0]) / TENSORS).read_bytes()
    assert rows(tmp_path) == rows(whole[0])


def test_a_run_killed_after_its_last_epoch_is_only_tested(whole: tuple[Path, PhaseResult], tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("power cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseStore, "finish", fail)
        with pytest.raises(RuntimeError):
            run(tmp_path)
    _, (resumed,) = run(tmp_path)
    assert timeless(resumed) == timeless(whole[1])
    assert (folder_of(tmp_path) / TENSORS).read_bytes() == (folder_of(whole[0]) / TENSORS).read_bytes()


def test_choosing_on_the_test_set_is_never_worse(whole: tuple[Path, PhaseResult], tmp_path: Path) -> None:
    _, (chosen,) = run(tmp_path, protocol=dataclasses.replace(RECIPE, select="best_test", select_every=1))
    assert chosen.accuracy >= whole[1].accuracy


def test_the_test_set_is_looked_at_as_the_protocol_says() -> None:
    def looks(**changes: Any) -> list[int]:
        protocol = dataclasses.replace(RECIPE, select="best_test", **changes)
        selection = TestSelection(protocol)
        return [epoch for epoch in range(1, 13) if selection._due(epoch)]

    assert looks(select_every=5) == [5, 10]
    assert looks(select_every=5, select_after=5) == [6, 11]


def test_training_may_go_on_in_evaluation_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    step = PhaseModule.training_step

    def watch(self: Any, batch: Any, batch_idx: int) -> Any:
        modes.append(self.net.training)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PhaseModule, "training_step", watch)
    recipe = dataclasses.replace(RECIPE, eval_mode_after=1, select="best_test", select_every=1)
    run(tmp_path, protocol=recipe)
    half = len(modes) // RECIPE.epochs
    assert modes == [True] * half + [False] * (len(modes) - half)


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*within_epoch(KeyboardInterrupt))
        with pytest.raises(Interrupted, match="what was saved stays: run the same command to resume"):
            run(tmp_path)


def test_a_checkpoint_holds_the_methods_tensors_only(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*after_epoch(RuntimeError))
        with pytest.raises(RuntimeError):
            run(tmp_path)
    checkpoint = torch.load(folder_of(tmp_path) / CHECKPOINT, weights_only=True)
    net = spec("vit").build()
    net.new_head(CLASSES)
    assert set(checkpoint["state_dict"]) == set(HEADS.install(net).state())
    assert (folder_of(tmp_path) / CHECKPOINT).stat().st_size < 200_000


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*after_epoch(RuntimeError))
        with pytest.raises(RuntimeError):
            run(tmp_path)
    file = folder_of(tmp_path) / CHECKPOINT
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["s9.b0.q.A"] = checkpoint["state_dict"].pop("s0.b0.q.A")
    torch.save(checkpoint, file)
    with pytest.raises(CheckpointError, match=r"missing \['s0.b0.q.A'\].*unexpected \['s9.b0.q.A'\]"):
        run(tmp_path)


def test_a_diverged_run_stops_and_keeps_its_last_epoch(tmp_path: Path) -> None:
    wild = dataclasses.replace(RECIPE, lr=1e12, schedule="constant", warmup=0.0)
    with pytest.raises(NonFiniteLoss, match=r"the loss became (nan|inf) at epoch \d, step \d.*lower protocol.lr"):
        run(tmp_path, protocol=wild)
    assert (folder_of(tmp_path) / CHECKPOINT).is_file()
    assert not (folder_of(tmp_path) / "phase.json").exists()


def test_what_a_finished_phase_says(whole: tuple[Path, PhaseResult]) -> None:
    root, result = whole
    assert (result.label, result.epochs, result.steps, result.num_test) == ("heads", 4, 8, 20)
    assert result.num_tunable == 2 * 2 * 2 * (4 * 48 + 48)
    assert result.num_head == 49 * CLASSES
    assert result.stored_bytes == 4 * result.num_tunable
    assert 0 <= result.accuracy <= 100
    assert result.peak_memory is None or result.peak_memory > 2**20
    tensors = read_tensors(folder_of(root) / TENSORS)
    assert sum(tensor.nbytes for tensor in tensors.values()) == 4 * (result.num_tunable + result.num_head)
    history = rows(root)
    assert [(row["epoch"], row["step"]) for row in history] == [("1", "2"), ("2", "4"), ("3", "6"), ("4", "8")]
    assert float(history[-1]["train_loss"]) == result.train_loss
    assert PhaseStore(root).finished(result.fingerprint) == result


def test_the_accuracy_is_that_of_the_merged_network(tmp_path: Path) -> None:
    net, results = run(tmp_path, [LORA, HEADS])
    data = toy_data()
    ((batch, labels),) = list(data.test_dataloader())
    right = (logits(net, data.preprocess(batch)).argmax(1) == labels).float().mean()
    assert results[-1].accuracy == pytest.approx(100 * right.item())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_a_seed_decides_every_number(whole: tuple[Path, PhaseResult], tmp_path: Path) -> None:
    root, first = whole
    _, (again,) = run(tmp_path / "again")
    assert timeless(again) == timeless(first)
    assert (folder_of(tmp_path / "again") / TENSORS).read_bytes() == (folder_of(root) / TENSORS).read_bytes()
    _, (other,) = run(tmp_path / "other", seed=1)
    assert other.train_loss != first.train_loss
    assert other.fingerprint != first.fingerprint


def test_earlier_random_numbers_do_not_matter(whole: tuple[Path, PhaseResult], tmp_path: Path) -> None:
    torch.manual_seed(99)
    assert timeless(run(tmp_path)[1][0]) == timeless(whole[1])


def test_a_first_phase_is_trained_once(tmp_path: Path) -> None:
    short = dataclasses.replace(RECIPE, epochs=1)
    said: list[str] = []
    _, (alone,) = run(tmp_path, [LORA], short, said=said)
    two_phase = TwoPhase(label="hs", first=dataclasses.replace(LORA, label="another name"), heads=HEADS)
    _, (first, _) = run(tmp_path, two_phase.phases(), short, said=said)
    assert first == alone
    assert [line for line in said if "already trained" in line] == [
        f"phase 1/2 another name: already trained, taken from {alone.fingerprint}"
    ]
    net, (_, second) = run(tmp_path, two_phase.phases(), short)
    trained, (_, fresh) = run(tmp_path / "elsewhere", two_phase.phases(), short)
    assert timeless(second) == timeless(fresh)
    assert torch.equal(logits(net, images()), logits(trained, images()))
    assert len(list((tmp_path / "phases").iterdir())) == 2


def test_a_later_phase_that_does_not_fit_is_refused_before_the_first_trains(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.12 for s0\.b0\.q with 4 row group\(s\), got 13"):
        run(tmp_path, (LORA, HeadLoRA(label="heads", rank=13)))
    assert not list(tmp_path.rglob("*"))


def test_addresses_follow_content() -> None:
    ground = {"seed": 0, "backbone": {"weights": "abc"}}

    def address(methods: Sequence[Method] = (LORA, HEADS), ground: dict[str, Any] = ground, epochs: int = 4) -> Any:
        return chain(methods, ground, epochs)

    base = address()
    assert address() == base
    assert len({a.phase for a in base}) == 2
    assert address([dataclasses.replace(LORA, label="x"), HEADS]) == base
    assert address([dataclasses.replace(LORA, epochs=4), HEADS]) == base
    for changed in (
        address(ground={**ground, "seed": 1}),
        address(ground={**ground, "backbone": {"weights": "abd"}}),
        address(epochs=5),
        address([dataclasses.replace(LORA, rank=8), HEADS]),
        address([dataclasses.replace(LORA, revision=2), HEADS]),
        address([dataclasses.replace(LORA, epochs=5), HEADS]),
    ):
        assert not {a.phase for a in changed} & {a.phase for a in base}
    second = address([LORA, dataclasses.replace(HEADS, rank=3)])
    assert second[0] == base[0]
    assert second[1] != base[1]


def test_a_phase_may_start_from_a_saved_one(whole: tuple[Path, PhaseResult], tmp_path: Path) -> None:
    root, trained = whole
    file = folder_of(root) / TENSORS
    _, (taken,) = run(tmp_path, [dataclasses.replace(HEADS, checkpoint=str(file))])
    assert (taken.accuracy, taken.epochs) == (trained.accuracy, 0)
    assert taken.fingerprint != trained.fingerprint


def test_a_damaged_phase_is_named(tmp_path: Path) -> None:
    short = dataclasses.replace(RECIPE, epochs=1)
    run(tmp_path, [LORA], short)
    file = folder_of(tmp_path) / TENSORS
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"phase.safetensors cannot be read .*delete its folder and run again"):
        run(tmp_path, [LORA], short)


def test_the_optimiser_follows_protocol_and_method() -> None:
    net = spec("vit").build()
    net.new_head(CLASSES)
    installed = HEADS.install(net)

    def module(protocol: Protocol, lr: float | None = None) -> PhaseModule:
        options: dict[str, Any] = {"epochs": 3, "steps_per_epoch": 4, "seed_parts": (0,)}
        return PhaseModule(net, installed, protocol, lambda x: x, lr=lr, **options)

    for protocol, lr in ((RECIPE, None), (dataclasses.replace(RECIPE, schedule="r0_legacy"), 0.5)):
        made = module(protocol, lr).configure_optimizers()
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        assert made["lr_scheduler"]["interval"] == "step"
        wanted = protocol.learning_rate(3, 4, lr)
        for step in range(12):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted(step))
            optimizer.step()
            schedule.step()
    (group,) = module(dataclasses.replace(RECIPE, weight_decay=0.25)).configure_optimizers()["optimizer"].param_groups
    assert group["weight_decay"] == 0.25
    sgd = module(dataclasses.replace(RECIPE, optimizer="sgd")).configure_optimizers()["optimizer"]
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.9


LONG = dataclasses.replace(HEADS, epochs=4, cycles=2)
"""The schedule of two epochs, twice."""


def test_a_restarted_schedule_runs_once_more_with_its_warmup() -> None:
    net = spec("vit").build()
    net.new_head(CLASSES)
    options: dict[str, Any] = {"epochs": 6, "steps_per_epoch": 4, "seed_parts": (0,), "cycles": 2}
    made = PhaseModule(net, LONG.install(net), RECIPE, lambda x: x, **options).configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    wanted = RECIPE.learning_rate(3, 4)
    for step in range(24):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted(step % 12))
        optimizer.step()
        schedule.step()


def test_a_restart_is_the_short_run_and_then_a_fresh_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[tuple[int, dict[str, torch.Tensor], set[float]]] = []
    ended = loop.Saver.on_train_epoch_end

    def watch(self: Any, trainer: Any, module: Any) -> None:
        ended(self, trainer, module)
        steps = {float(state["step"]) for state in trainer.optimizers[0].state.values()}
        tensors = {name: tensor.detach().clone() for name, tensor in module.installed.state().items()}
        states.append((trainer.current_epoch, tensors, steps))

    monkeypatch.setattr(loop.Saver, "on_train_epoch_end", watch)
    (result,) = run(tmp_path / "long", [LONG])[1]
    long = list(states)
    states.clear()
    run(tmp_path / "short", [dataclasses.replace(HEADS, epochs=2)])
    assert [steps for _, _, steps in long] == [{2.0}, {4.0}, {2.0}, {4.0}]  # counted anew from the second cycle on
    for (_, first, _), (_, second, _) in zip(long, states, strict=False):
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert result.epochs == 4
    assert result.extra["warmup_steps"] == RECIPE.warmup_count(4)
    assert result.method["cycles"] == 2
    assert "cycles" not in HEADS.spec()  # addresses of what was trained before are what they were


@pytest.mark.parametrize("when", [after_epoch, within_epoch], ids=["at the restart", "after it"])
def test_a_restarted_run_resumes_to_the_same_bits(when: Callable[..., Any], tmp_path: Path) -> None:
    (uninterrupted,) = run(tmp_path / "whole", [LONG])[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*when(RuntimeError))
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path / "killed", [LONG])
    (resumed,) = run(tmp_path / "killed", [LONG])[1]
    assert timeless(resumed) == timeless(uninterrupted)


@each("epochs, given", [(3, 3), (None, None)])
def test_cycles_must_divide_the_epochs(epochs: int | None, given: int | None) -> None:
    with pytest.raises(
        ConfigError, match=rf"cycles of method 'heads' must divide its epochs, got 2 for {given} epochs"
    ):
        dataclasses.replace(HEADS, epochs=epochs, cycles=2)


def test_weights_are_left_where_they_were(tmp_path: Path) -> None:
    """What is not trained is bit-identical after two phases, but for what merging added."""
    net, _ = run(tmp_path, [LORA, HEADS], dataclasses.replace(RECIPE, epochs=1))
    before, after = spec("vit").build().model.state_dict(), net.model.state_dict()
    touched = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert touched == {f"blocks.{block}.attn.qkv.{proj}.weight" for block in range(2) for proj in "qv"}


def test_written_tensors_are_whole_or_absent(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T}
    loop.write_tensors(tmp_path / "deep" / "t.safetensors", tensors)
    assert torch.equal(read_tensors(tmp_path / "deep" / "t.safetensors")["a"], tensors["a"])
    with pytest.raises(AttributeError):
        loop.write_tensors(tmp_path / "t.safetensors", {**tensors, "b": "no tensor"})  # type: ignore[dict-item]
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]


@pytest.mark.parametrize(
    ("precision", "accelerator", "supported", "said"),
    [
        ("bf16", "cpu", False, True),
        ("bf16", "cpu", True, False),
        ("fp32", "cpu", False, False),
        ("bf16", "gpu", False, False),
    ],
)
def test_bf16_on_a_processor_without_it_is_called_slow(precision, accelerator, supported, said, monkeypatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    caution = Machine(accelerator=accelerator).caution(precision)
    assert (caution is not None and "protocol.precision=fp32 is many times faster" in caution) == said


def test_only_tf32_multiplies_as_tf32() -> None:
    """Runs of one process differ in it: the switches are torch's, and are set anew for each."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    for precision in ("tf32", "bf16", "tf32", "fp32"):
        Machine().place(torch.nn.Linear(1, 1), precision)  # type: ignore[arg-type]
        assert [switch.allow_tf32 for switch in switches] == [precision == "tf32"] * 2


def test_the_network_is_back_on_its_device_after_lightning_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def told(what: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            events.append(what)
            return original(*args, **kwargs)

        return call

    for kind, name in (
        (SingleDeviceStrategy, "teardown"),
        (Backbone, "to"),
        (Installed, "packed"),
        (Installed, "merge"),
    ):
        monkeypatch.setattr(kind, name, told(name, getattr(kind, name)))
    run(tmp_path)
    events = events[events.index("teardown") :]
    assert events[:3] == ["teardown", "to", "packed"]  # trained
    assert events[events.index("teardown", 1) :] == ["teardown", "to", "packed", "merge"]  # tested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", ["third epoch", "first test batch", "last test batch"])
def test_a_signal_in_training_or_test_is_no_success(
    place: str, number: int, whole: tuple[Path, PhaseResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed terminal (SIGHUP) stops a run like a polite kill, and no handler of it stays behind."""
    name = "training_step" if place == "third epoch" else "test_step"
    step, seen = getattr(PhaseModule, name), 0

    def stop(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal seen
        seen += 1
        if self.current_epoch == 2 if place == "third epoch" else seen == 1 or place == "last test batch":
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PhaseModule, name, stop)
        with pytest.raises(Interrupted, match="run the same command to resume"):
            run(tmp_path)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    assert not (folder_of(tmp_path) / "phase.json").exists()
    _, (resumed,) = run(tmp_path)
    assert timeless(resumed) == timeless(whole[1])


def test_nohup_is_left_alone(whole: tuple[Path, PhaseResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PhaseModule.training_step

    def close(self: Any, batch: Any, batch_idx: int) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PhaseModule, "training_step", close)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert timeless(run(tmp_path)[1][0]) == timeless(whole[1])
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_lost_its_claim_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PhaseModule.training_step

    def overtaken(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 2:
            monkeypatch.setattr(Claim, "lost", True)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PhaseModule, "training_step", overtaken)
    monkeypatch.setattr(address, "PERIOD", 0.0)  # every epoch is saved
    with pytest.raises(BusyError, match="was taken over by another process"):
        run(tmp_path)
    checkpoint = torch.load(folder_of(tmp_path) / CHECKPOINT, weights_only=True)
    assert checkpoint["epoch"] == 1
    assert not (folder_of(tmp_path) / "phase.json").exists()


@pytest.mark.parametrize("name", ["ssf", "spt_lora", "full", "pissa", "adalora"])
def test_a_second_phase_that_4_bits_do_not_carry_is_refused_before_the_first(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"4 bits|reads the dense base weight|which peft cannot adapt"):
        run(tmp_path, [composed_method("qlora"), composed_method(name)])
    assert not list(tmp_path.glob("phases/*/*"))


def test_a_gpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    machine = Machine(accelerator="gpu")
    assert machine.devices == [0]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"finds no GPU it can use .* trainer.accelerator=cpu"):
            _ = machine.device

"""Losses that are not finite: noticed in the step on a CPU, together on a GPU, before the epoch's checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from headwise.errors import NonFiniteLoss
from headwise.training import module as training
from headwise.training.module import PhaseModule

STEPS = 70


class Elsewhere:
    """A loss on a device that is not a CPU, which counts how often it is read."""

    device = torch.device("cuda")

    def __init__(self, value: float) -> None:
        self.value = value


def watched(losses: list[float], monkeypatch: pytest.MonkeyPatch, on_gpu: bool = True) -> tuple[int, str]:
    """Steps that begin before the error, and its text; a module without a network, whose losses these are."""
    reads = [0]

    class Stacked(list):  # type: ignore[type-arg]
        def tolist(self) -> list[float]:
            reads[0] += 1
            return [loss.value for loss in self]

    if on_gpu:
        monkeypatch.setattr(training.torch, "stack", Stacked)
    module = PhaseModule.__new__(PhaseModule)
    torch.nn.Module.__init__(module)
    module._unread, module.steps_per_epoch = [], STEPS
    step = [0]
    monkeypatch.setattr(PhaseModule, "global_step", property(lambda self: step[0]))
    monkeypatch.setattr(PhaseModule, "current_epoch", property(lambda self: 0))
    for index, value in enumerate(losses):
        step[0] = index
        try:
            module._watch(Elsewhere(value) if on_gpu else torch.tensor(value), index)  # type: ignore[arg-type]
        except NonFiniteLoss as error:
            return index, str(error)
    return reads[0], ""


def test_a_gpu_is_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched([1.0] * STEPS, monkeypatch) == (3, ""), "after 32 and 64 steps and at the epoch's end"


def test_the_first_bad_step_is_named_though_it_is_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, text = watched([1.0] * 40 + [math.nan] * 30, monkeypatch)
    assert seen == 63
    assert "the loss became nan at epoch 1, step 40;" in text


def test_the_last_step_is_read_before_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, text = watched([1.0] * (STEPS - 1) + [math.inf], monkeypatch)
    assert (seen, "inf at epoch 1, step 69;" in text) == (STEPS - 1, True)


def test_a_cpu_stops_in_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched([1.0] * 5 + [math.nan] * 5, monkeypatch, on_gpu=False)[0] == 5

"""What methods need of the optimiser: no decay where it would harm, learning rates of their own, AdaLoRA's helpers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headwise.methods.base import Installed
from headwise.protocol.recipe import Protocol
from headwise.training.loop import PhaseModule
from made_cases import each
from made_networks import batches, composed_method, network
from made_runs import train

LR, DECAY = 1e-3, 1e-2


def optimizer(name: str) -> tuple[Installed, Any]:
    """A method of conf/, installed, and what its phase optimises with."""
    net, method = network("vit"), composed_method(name)
    installed = method.install(net, method.prepare(net, batches(), 20))
    recipe = Protocol(name="test", epochs=4, lr=LR, weight_decay=DECAY)
    parts: dict[str, Any] = {"epochs": 4, "steps_per_epoch": 5, "seed_parts": (0,)}
    return installed, PhaseModule(net, installed, recipe, lambda x: x, **parts).configure_optimizers()


def settings(installed: Installed, optimizers: Any, key: str) -> dict[str, float]:
    """One setting of the optimiser, by the name of the tensor."""
    groups = optimizers["optimizer"].param_groups
    found = {id(tensor): group[key] for group in groups for tensor in group["params"]}
    return {name: found[id(tensor)] for name, tensor in installed.trainable().items()}


@each(
    "name, undecayed",
    [
        ("ssf", ("part.scale", "part.shift")),
        ("dora", ("magnitude",)),
        ("peft_dora", ("lora_magnitude_vector.default.weight",)),
        ("lora", ()),
        ("fourierft", ()),
        ("qlora", ()),
    ],
)
def test_scales_and_magnitudes_are_not_decayed(name: str, undecayed: tuple[str, ...]) -> None:
    installed, optimizers = optimizer(name)
    decay = settings(installed, optimizers, "weight_decay")
    endings = tuple(ending.rpartition("part.")[2] for ending in undecayed)
    spared = {name for name, value in decay.items() if value == 0.0}
    assert spared == {name for name in installed.adapter() if name.endswith(endings) and endings}
    assert bool(spared) == bool(undecayed)
    assert set(decay.values()) <= {0.0, DECAY}
    before = {name: tensor.detach().clone() for name, tensor in installed.trainable().items()}
    for tensor in installed.trainable().values():
        tensor.grad = torch.zeros_like(tensor)
    optimizers["optimizer"].step()  # of zero gradients: nothing moves but by decay
    moved = {name for name, tensor in installed.trainable().items() if not torch.equal(tensor, before[name])}
    assert "head.weight" in moved
    assert not moved & spared


def test_fourierft_has_a_learning_rate_of_its_own_and_the_head_keeps_its() -> None:
    installed, optimizers = optimizer("fourierft")
    schedule = optimizers["lr_scheduler"]["scheduler"]
    shape, peak = [], 0.0
    for _ in range(20):
        rates = settings(installed, optimizers, "lr")
        (own,) = {rate for name, rate in rates.items() if not name.startswith("head.")}
        (head,) = {rate for name, rate in rates.items() if name.startswith("head.")}
        assert own == pytest.approx(0.3 / LR * head)  # the same shape over the run
        peak = max(peak, own)
        shape.append(head)
        optimizers["optimizer"].step()
        schedule.step()
    assert peak == pytest.approx(0.3)
    assert len(set(shape)) > 10
    assert set(settings(*optimizer("adalora"), "lr").values()) == {settings(*optimizer("lora"), "lr")["head.weight"]}


def test_lora_plus_trains_b_faster_and_lora_fa_b_alone() -> None:
    installed, optimizers = optimizer("lora_plus")
    rates = settings(installed, optimizers, "lr")
    assert {name for name, rate in rates.items() if rate == pytest.approx(16 * rates["head.weight"])} == {
        name for name in rates if name.endswith(".B")
    }
    assert {rate for name, rate in rates.items() if not name.endswith(".B")} == {rates["head.weight"]}
    assert "rate" not in optimizers["optimizer"].param_groups[-1]
    frozen, _ = optimizer("lora_fa")
    assert {name.rpartition(".")[2] for name in frozen.adapter()} == {"B"}
    assert {name.rpartition(".")[2] for name in frozen.packed()} == {"A", "B", "weight", "bias"}


def test_they_take_the_phases_own_rate_too(tmp_path: Path) -> None:
    ends = {}
    for ratio in (1.0, 16.0):
        method = dataclasses.replace(composed_method("lora_plus"), lr_ratio=ratio, lr=1e-4)
        _, (file,) = train(network("vit"), [method], tmp_path, epochs=1, lr=LR, schedule="constant", warmup=0.0)
        ends[ratio] = load_file(str(file))["s0.b0.q.B"]
    assert 10 < float(ends[16.0].abs().mean() / ends[1.0].abs().mean()) < 20


def test_fourierft_moves_by_its_own_rate_in_a_real_fit(tmp_path: Path) -> None:
    ends = []
    for rate in (0.3, None):
        method = dataclasses.replace(composed_method("fourierft"), adapter_lr=rate)
        _, (file,) = train(network("vit"), [method], tmp_path, epochs=2, lr=LR, schedule="constant", warmup=0.0)
        ends.append(load_file(str(file)))
    fast, slow = (end["s0.b0.q.fourierft_spectrum.default"] for end in ends)
    assert 0.1 < float((fast - slow).abs().mean()) < 4 * 0.3 + 0.01
    assert float((ends[0]["head.weight"] - ends[1]["head.weight"]).abs().max()) < 4 * 2 * LR + 1e-6


def orthogonality(file: Path) -> float:
    """Largest distance of P' P and Q Q' of the kept ranks from the identity."""
    worst = 0.0
    for name, tensor in load_file(str(file)).items():
        if ".lora_A." in name or ".lora_B." in name:
            rows = tensor if ".lora_A." in name else tensor.T
            if len(rows):
                worst = max(worst, float((rows @ rows.T - torch.eye(len(rows))).abs().max()))
    return worst


def test_adalora_allocates_and_is_penalised_in_a_real_fit(tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 5.0):
        recipe = composed_method("adalora")
        method = dataclasses.replace(recipe, config={**recipe.config, "orth_reg_weight": weight, "deltaT": 1})
        options = {"epochs": 5, "lr": 1e-1, "schedule": "constant", "warmup": 0.0}
        (phase,), (file,) = train(network("vit"), [method], tmp_path, **options)
        assert sum(phase.extra["ranks"].values()) == 8 * 2 * 3
        found[weight] = orthogonality(file)
    assert found[5.0] < 0.7 * found[0.0]

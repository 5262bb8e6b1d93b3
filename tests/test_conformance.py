"""What every method must do, whatever it is: each conf/method/*.yaml on a tiny ViT and a tiny Swin, phase by phase."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_networks import (
    CLASSES,
    CONF,
    NETWORKS,
    TOY_TASK,
    batches,
    composed_method,
    distance,
    images,
    logits,
    network,
    perturb,
    plain_timm,
    toy_data,
)
from torch import Tensor, nn

from headwise.adapted import AdaptedLinear, BesideLinear, Delta
from headwise.backbone import Backbone
from headwise.errors import CheckpointError, ConfigError
from headwise.methods.base import Installed, Method, Plan
from headwise.methods.hs_lora import HeadLoRA
from headwise.protocol import Protocol
from headwise.results import PhaseStore
from headwise.training import Machine, PhaseModule, hush, read_tensors, run_phases, write_tensors

METHODS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))
RECIPE = Protocol(name="test", epochs=2, lr=1e-2, lr_start=1e-2, schedule="constant", warmup=0.0, drop_path=0.0)
STEPS = 20
X = images()


@dataclass(frozen=True)
class Phase:
    """One phase of a method, and the network it finds: earlier phases perturbed and merged. Never changed."""

    method: Method
    base: Backbone
    plan: Plan | None

    def install(self, seed: int = 0) -> tuple[Backbone, Installed]:
        net = copy.deepcopy(self.base)
        torch.manual_seed(seed)
        return net, self.method.install(net, copy.deepcopy(self.plan))

    def installed_and_moved(self) -> tuple[Backbone, Installed]:
        """Installed, with every tunable tensor somewhere else than where it started."""
        net, installed = self.install()
        perturb(list(installed.trainable().values()))
        return net.eval(), installed


@functools.cache
def phases_of(name: str, family: str) -> tuple[Phase, ...]:
    net, phases = network(family), []
    for method in composed_method(name).phases():
        if family not in method.networks:
            with pytest.raises(ConfigError):
                method.install(net, method.prepare(net, batches(), STEPS))
            return ()
        torch.manual_seed(0)
        plan = method.prepare(net, batches(), STEPS)
        phase = Phase(method, copy.deepcopy(net), plan if plan is None else json.loads(json.dumps(plan)))
        phases.append(phase)
        net, installed = phase.installed_and_moved()
        installed.merge()
    return tuple(phases)


@pytest.fixture(params=[f"{name}-{family}" for name in METHODS for family in NETWORKS])
def phases(request: pytest.FixtureRequest) -> tuple[Phase, ...]:
    name, _, family = request.param.rpartition("-")
    found = phases_of(name, family)
    if not found:
        pytest.skip(f"{name} declares that it is not defined for {family}")
    return found


def loss_of(net: Backbone, installed: Installed, x: Tensor = X) -> Tensor:
    loss = F.cross_entropy(net(x), torch.arange(len(x)) % CLASSES)
    penalty = installed.penalty()
    return loss if penalty is None else loss + penalty


def optimizer_of(net: Backbone, installed: Installed) -> torch.optim.Optimizer:
    module = PhaseModule(
        net, installed, RECIPE, lambda x: x, num_classes=CLASSES, epochs=2, steps_per_epoch=1, seed_parts=(0,)
    )
    return module.configure_optimizers()["optimizer"]


def train(net: Backbone, installed: Installed, steps: int) -> None:
    """Optimiser steps; the gradients of the last one stay."""
    optimizer = optimizer_of(net, installed)
    installed.set_mode()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net, installed).backward()
        optimizer.step()


Shapes = list[tuple[int, int, int]]


def weights(net: Backbone, *targets: str) -> Shapes:
    """(O, I, H) of each projection."""
    return [(*base.shape, site.num_heads) for site, base in net.bases(targets).items()]


def timm_parameters(net: Backbone, ending: str = "") -> int:
    plain = plain_timm(family_of(net)).named_parameters()
    return sum(p.numel() for name, p in plain if name.endswith(ending) and not name.startswith("head."))


def matched_rank(outputs: int, inputs: int, heads: int) -> int:
    return round(3 * (heads * inputs + outputs) / (inputs + outputs))


COUNTS: dict[str, Callable[[Backbone], int]] = {
    "linear": lambda net: 0,
    "full": lambda net: timm_parameters(net),
    "bitfit": lambda net: timm_parameters(net, ".bias"),
    "lora": lambda net: sum(4 * (i + o) for o, i, _ in weights(net, "q", "v")),
    "head_lora": lambda net: sum(3 * (h * i + o) for o, i, h in weights(net, "q", "v")),
    "matched_lora": lambda net: sum(matched_rank(o, i, h) * (i + o) for o, i, h in weights(net, "q", "v")),
    "pissa": lambda net: sum(4 * (i + o) for o, i, _ in weights(net, "q", "k", "v")),
    "dora": lambda net: sum(4 * (i + o) + o for o, i, _ in weights(net, "q", "k", "v")),
    "peft_adalora": lambda net: sum(16 * (i + o + 1) for o, i, _ in weights(net, "q", "k", "v")),
}
COUNTS |= {f"peft_{name}": COUNTS[name] for name in ("lora", "dora", "pissa")}
"""Tunable parameters without the head, in closed form, by the label of a phase (rank 4, 3 per head)."""


def test_count(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        label = phase.method.label
        assert label in COUNTS, f"write the closed form of {label!r} into COUNTS, from the method's docstring"
        _, installed = phase.install()
        assert sum(tensor.numel() for tensor in installed.adapter().values()) == COUNTS[label](phase.base), label


def family_of(net: Backbone) -> str:
    return "vit" if hasattr(net.model, "blocks") else "swin"


def tensors_of(net: Backbone) -> dict[str, Tensor]:
    return net.state_dict(keep_vars=True)


def leftovers(net: Backbone) -> list[str]:
    kinds = (Delta, AdaptedLinear, BesideLinear)
    return [name for name, module in net.named_modules() if isinstance(module, kinds)]


def grouped(installed: Installed) -> dict[str, list[Tensor]]:
    """Tunable tensors by owner; those of the network or a library by the first three parts of their names."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in installed.trainable().items():
        owner = next((owner for owner in installed.owners if name.startswith(f"{owner}.")), None)
        groups.setdefault(owner or ".".join(name.split(".")[:3]), []).append(tensor)
    return groups


def test_identity(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        net, _ = phase.install()
        change, allowed = distance(logits(net, X), logits(phase.base, X)), phase.method.identity_tolerance
        assert change <= allowed, phase.method.label
        if allowed > Method.identity_tolerance:
            assert change > Method.identity_tolerance, f"{phase.method.label} declares a start off zero but has none"


def test_reach(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        net, installed = phase.installed_and_moved()
        before = logits(net, X)
        for owner, tensors in grouped(installed).items():
            kept = [tensor.detach().clone() for tensor in tensors]
            perturb(tensors, 0.1, seed=2)
            assert distance(logits(net, X), before) > 1e-6, f"{phase.method.label}: {owner} has no effect"
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.data.copy_(value)
        assert torch.equal(logits(net, X), before)


def test_frozen(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        net, installed = phase.install()
        tunable = {id(tensor): name for name, tensor in installed.trainable().items()}
        assert {id(p) for p in net.parameters() if p.requires_grad} == set(tunable)
        groups = [id(p) for group in installed.param_groups(1e-4) for p in group["params"]]
        assert sorted(groups) == sorted(tunable)
        before = {name: tensor.detach().clone() for name, tensor in tensors_of(net).items()}
        train(net, installed, 2)
        changed = [name for name, tensor in tensors_of(net).items() if not torch.equal(tensor, before[name])]
        assert changed
        assert [name for name in changed if id(tensors_of(net)[name]) not in tunable] == []


def test_gradient(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        net, installed = phase.install()
        train(net, installed, 1)
        for name, tensor in installed.trainable().items():
            assert tensor.grad is not None, name
            assert torch.isfinite(tensor.grad).all(), name
        train(net, installed, 1)
        for name, tensor in installed.trainable().items():
            assert tensor.ndim < 2 or tensor.grad.any(), f"{name} is a matrix that never gets a gradient"


def gated_rows(delta: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters of the delta's own whose leading axes run over the projection's output rows, seen as (O, ...)."""
    num_rows = delta.site.num_rows
    for name, parameter in delta.named_parameters(recurse=False):
        if parameter.shape[0] == num_rows:
            yield name, parameter.grad
        elif parameter.ndim == 3 and parameter.shape[0] * parameter.shape[1] == num_rows:
            yield name, parameter.grad.flatten(0, 1)


def test_masked_rows_get_no_gradient(phases: tuple[Phase, ...]) -> None:
    gated = 0
    for phase in phases:
        net, installed = phase.installed_and_moved()
        deltas = [
            module
            for owner in installed.owners.values()
            for module in owner.modules()
            if hasattr(module, "active") and hasattr(module, "site")
        ]
        for delta in deltas:
            delta.active[::2] = 0.0
        installed.set_mode()
        loss_of(net, installed).backward()
        for delta in deltas:
            off = delta.site.rows(delta.active) == 0
            for name, grad in gated_rows(delta):
                gated += 1
                assert not grad[off].any(), f"{delta.site.key}.{name}"
                assert grad[~off].any(), f"{delta.site.key}.{name}"
    if not gated:
        pytest.skip("no head gates")


def test_merge(phases: tuple[Phase, ...]) -> None:
    merges = True
    for phase in phases:
        net, installed = phase.installed_and_moved()
        before = logits(net, X)
        installed.merge()
        assert distance(logits(net, X), before) <= 1e-5
        assert not any(parameter.requires_grad for parameter in net.parameters())
        merges = merges and phase.method.merges
        if not merges:
            continue
        assert leftovers(net) == []
        plain = plain_timm(family_of(net))
        plain.load_state_dict(net.export_state_dict(), strict=True)
        assert distance(logits(plain, X), before) <= 1e-5


def test_save_and_load(phases: tuple[Phase, ...], tmp_path: Path) -> None:
    for index, phase in enumerate(phases):
        net, installed = phase.installed_and_moved()
        file = tmp_path / f"{index}.safetensors"
        write_tensors(file, installed.packed())
        stored = read_tensors(file)
        assert set(stored) == set(installed.packed())
        fresh, again = phase.install()
        assert not torch.equal(logits(fresh, X), logits(net, X))
        again.unpack(stored)
        assert torch.equal(logits(fresh.eval(), X), logits(net, X))


def test_foreign_checkpoint(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        _, installed = phase.installed_and_moved()
        for tensors, load in ((installed.packed(), installed.unpack), (installed.state(), installed.load)):
            refuse(load, tensors, phase)
        (other,) = phases_of("head_lora", "vit")
        foreign = other.install()[1]
        if set(foreign.packed()) != set(installed.packed()):
            with pytest.raises(CheckpointError, match=r"another network or method: missing \["):
                installed.unpack(foreign.packed())


def refuse(load: Callable[[Mapping[str, Tensor]], None], tensors: dict[str, Tensor], phase: Phase) -> None:
    name = next(iter(tensors))
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(CheckpointError, match="missing .*" + name):
        load(rest)
    with pytest.raises(CheckpointError, match="unexpected .*stranger"):
        load({**tensors, "stranger": tensors[name]})
    with pytest.raises(CheckpointError, match=name.rpartition(".")[2] + " is "):
        load({**rest, name: torch.zeros(*tensors[name].shape, 2, dtype=tensors[name].dtype)})


def test_another_phase_stands_on_it(phases: tuple[Phase, ...]) -> None:
    head_lora = HeadLoRA(label="heads", rank=2)
    for phase in phases:
        for second in (head_lora, phase.method):
            net, below = phase.installed_and_moved()
            before = logits(net, X)
            below.merge()
            plan = second.prepare(net, batches(), STEPS)
            above = second.install(net, plan)
            assert distance(logits(net, X), before) <= max(1e-5, second.identity_tolerance)
            train(net, above, 2)
            after = logits(net, X)
            assert distance(after, before) > 1e-5
            above.merge()
            assert distance(logits(net, X), after) <= 1e-5


def test_the_loop_repeats_it_from_its_files(phases: tuple[Phase, ...], tmp_path: Path) -> None:
    methods = [dataclasses.replace(phase.method, epochs=RECIPE.epochs) for phase in phases]

    hush()

    def run() -> tuple[Backbone, list[Any]]:
        net = copy.deepcopy(phases[0].base)
        results = run_phases(
            net,
            methods,
            toy_data(batch_size=16),
            RECIPE,
            PhaseStore(tmp_path),
            {},
            seed=0,
            machine=Machine(threads=1, progress=False),
            say=lambda line: None,
        )
        return net, results

    trained, first = run()
    restored, second = run()
    assert first == second
    assert [result.num_head for result in first] == [(trained.head.in_features + 1) * TOY_TASK.num_classes] * len(methods)
    assert all(result.stored_bytes >= 0 and result.steps == 4 for result in first)
    assert torch.equal(logits(trained, X), logits(restored, X))


def test_copy_is_isolated(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        net, installed = phase.installed_and_moved()
        before = logits(net, X)
        twin = copy.deepcopy(net)
        assert torch.equal(logits(twin, X), before)
        perturb([p for p in twin.parameters() if p.requires_grad], seed=3)
        moved = logits(twin, X)
        assert not torch.equal(moved, before)
        assert torch.equal(logits(net, X), before)
        perturb(list(installed.trainable().values()), seed=4)
        assert torch.equal(logits(twin, X), moved)


@pytest.mark.slow
def test_compile(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        net, _ = phase.installed_and_moved()
        torch.compiler.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert distance(compiled(X), net(X)) <= 1e-5

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
from torch import Tensor, nn

from headwise.adapted import AdaptedLinear, BesideLinear, Delta
from headwise.backbone import Backbone
from headwise.errors import CheckpointError, ConfigError
from headwise.methods.base import Installed, Method, Plan
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.peft_bridge import PeftMethod
from headwise.methods.spt_lora import unpack_entries
from headwise.protocol import Protocol
from headwise.results import PhaseStore
from headwise.training import Machine, PhaseModule, hush, read_tensors, run_phases, write_tensors
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

METHODS = sorted(file.relative_to(CONF / "method").with_suffix("").as_posix() for file in CONF.glob("method/**/*.yaml"))
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


def loaded(request: pytest.FixtureRequest) -> tuple[Phase, ...]:
    name, _, family = request.param.rpartition("-")
    found = phases_of(name, family)
    if not found:
        pytest.skip(f"{name} declares that it is not defined for {family}")
    return found


@pytest.fixture(params=[f"{name}-{family}" for name in METHODS for family in NETWORKS])
def phases(request: pytest.FixtureRequest) -> tuple[Phase, ...]:
    return loaded(request)


@pytest.fixture(params=[f"{name}-vit" for name in METHODS])
def vit_phases(request: pytest.FixtureRequest) -> tuple[Phase, ...]:
    return loaded(request)


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


Shape = tuple[int, int, int, int]


def stages(phase: Phase) -> list[Shape]:
    """(blocks L, width C, heads H, head width e) of each stage."""
    queries = [site for site in phase.base.sites if site.proj == "q"]
    sizes = sorted({site.stage: (site.num_rows, site.num_heads, site.head_dim) for site in queries}.items())
    return [(sum(site.stage == stage for site in queries), *size) for stage, size in sizes]


def per_block(cost: Callable[[int], int]) -> Callable[[Phase], int]:
    """A number of parameters for each block, as a function of its width C."""
    return lambda phase: sum(num * cost(width) for num, width, _, _ in stages(phase))


def per_weight(cost: Callable[[int, int, int], int], *targets: str) -> Callable[[Phase], int]:
    """A number of parameters for each projection, as a function of O, I and H."""
    return lambda phase: sum(cost(o, i, h) for o, i, h in weights(phase.base, *targets))


def compacter(phase: Phase) -> int:
    return per_block(lambda c: 2 * 2 * (c + 32))(phase) + 4**3


def fact_tt(phase: Phase) -> int:
    return sum(2 * d * 16 + 12 * num * 16**2 for num, d, _, _ in stages(phase))


def fact_tk(phase: Phase) -> int:
    return sum(2 * d * 32 + 12 * num * 32 + 32**3 for num, d, _, _ in stages(phase))


def cara(phase: Phase) -> int:
    parts = [((3 * num + d + h + e + 1) + (9 * num + 2 * d + 1), d) for num, d, h, e in stages(phase)]
    return sum(32 * components + 6 * d for components, d in parts)


def ssf(phase: Phase) -> int:
    plain = plain_timm(family_of(phase.base)).named_modules()
    kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d)
    found = [module for name, module in plain if isinstance(module, kinds) and not name.startswith("head")]
    return sum(module.weight.shape[0] * (1 if module.bias is None else 2) for module in found)


def noah(phase: Phase) -> int:
    subnet, _ = phase.method.sizes(2)
    sizes = zip(subnet["prompt_tokens"], subnet["lora_rank"], subnet["adapter_width"], strict=True)
    return sum(48 * p + 4 * 48 * r + 2 * 48 * w + w + 48 for p, r, w in sizes)


def spt_lora(phase: Phase) -> int:
    plan, parameters = phase.plan, dict(phase.base.model.named_parameters())
    sides = {site.key: sum(base.shape) for site, base in phase.base.bases(phase.method.targets).items()}
    structured = sum(8 * sides[key] for key in plan["structured"])
    sparse = sum(len(unpack_entries(text)) for text in plan["sparse"].values())
    held = [*plan["vectors"], *(name for name in ("cls_token",) if name in parameters)]
    return structured + sparse + sum(parameters[name].numel() for name in held)


def lora(rank: int, *targets: str) -> Callable[[Phase], int]:
    return per_weight(lambda o, i, _: rank * (i + o), *targets)


COUNTS: dict[str, Callable[[Phase], int]] = {
    "adaptformer": per_block(lambda c: 2 * c * 8),
    "bi_adaptformer": per_block(lambda c: 2 * c * 32),
    "bi_lora": lora(32, "q", "v"),
    "bitfit": lambda phase: timm_parameters(phase.base, ".bias"),
    "cara": cara,
    "compacter": compacter,
    "dora": per_weight(lambda o, i, _: 4 * (i + o) + o, "q", "k", "v"),
    "dylora": lora(8, "q", "v"),
    "fact_tk": fact_tk,
    "fact_tt": fact_tt,
    "full": lambda phase: timm_parameters(phase.base),
    "head_lora": per_weight(lambda o, i, h: 3 * (h * i + o), "q", "v"),
    "heart_fp32": lora(8, "q", "v"),
    "heart_lora": lora(32, "q", "v"),
    "houlsby_b8": per_block(lambda c: 2 * (2 * c * 8 + 8 + c)),
    "linear": lambda phase: 0,
    "lora": lora(4, "q", "v"),
    "matched_lora": per_weight(lambda o, i, h: matched_rank(o, i, h) * (i + o), "q", "v"),
    "mora": per_weight(lambda o, i, _: (int((8 * (i + o)) ** 0.5 + 0.5) // 2 * 2) ** 2, "q", "v"),
    "noah": noah,
    "peft_adalora": per_weight(lambda o, i, _: 16 * (i + o + 1), "q", "k", "v"),
    "pfeiffer": per_block(lambda c: 2 * c * 8),
    "pissa": lora(4, "q", "k", "v"),
    "repadapter": per_block(lambda c: 2 * (c * 8 + 8 + c * 8 // 2 + c)),
    "spt_lora": spt_lora,
    "ssf": ssf,
    "vpt_adapter_rf256": per_block(lambda c: 2 * c * 3 + 3 + c),
    "vpt_adapter_rf64": per_block(lambda c: 2 * c * 12 + 12 + c),
    "vpt_deep": per_block(lambda c: 10 * c),
    "vpt_shallow": lambda phase: 10 * stages(phase)[0][1],
}
COUNTS |= {f"peft_{name}": COUNTS[name] for name in ("lora", "dora", "pissa")}
COUNTS |= {f"heart_{name}": COUNTS["heart_lora"] for name in ("front", "layer", "random")}
"""Tunable parameters without the head, in closed form, by the label of a phase (rank 4, 3 per head)."""


def test_count(phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        label = phase.method.label
        assert label in COUNTS, f"write the closed form of {label!r} into COUNTS, from the method's docstring"
        _, installed = phase.install()
        assert sum(tensor.numel() for tensor in installed.adapter().values()) == COUNTS[label](phase), label


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


def half_switched_off(installed: Installed) -> list[Delta]:
    """Switch every second head off; the deltas that have heads."""
    deltas = [owner for owner in installed.owners.values() if isinstance(owner, Delta) and hasattr(owner, "active")]
    deltas = [delta for delta in deltas if len(delta.active) > 1]
    for delta in deltas:
        delta.switch((torch.arange(len(delta.active)) % 2).float())
    return deltas


def per_head(delta: Delta) -> Iterator[tuple[str, Tensor]]:
    """Gradients of the parameters that are cut into one piece per head, (H, ...)."""
    quantizer = getattr(delta, "quantizer", None)
    if quantizer is not None and quantizer.stats == "all":
        return  # heads that are off still take part in the mean and deviation that all heads share
    for name, parameter in delta.named_parameters():
        if name in delta.by_head:
            assert parameter.grad is not None
            yield name, parameter.grad.reshape(len(delta.active), -1)


def test_masked_rows_get_no_gradient(phases: tuple[Phase, ...]) -> None:
    gated = 0
    for phase in phases:
        net, installed = phase.installed_and_moved()
        deltas = half_switched_off(installed)
        installed.set_mode()
        loss_of(net, installed).backward()
        for delta in deltas:
            for name, grad in per_head(delta):
                gated += 1
                assert not grad[delta.active == 0].any(), f"{delta.site.key}.{name}"
                assert grad[delta.active == 1].any(), f"{delta.site.key}.{name}"
    if not gated:
        pytest.skip("no head gates")


def test_masked_heads_are_left_out_of_files_and_merges(phases: tuple[Phase, ...]) -> None:
    gated = 0
    for phase in phases:
        net, installed = phase.installed_and_moved()
        full, size = logits(net, X), installed.stored_bytes()
        deltas = half_switched_off(installed)
        if not deltas:
            continue
        gated += 1
        before = logits(net, X)
        assert not torch.equal(before, full)
        if any(delta.by_head for delta in deltas):
            assert installed.stored_bytes() < size
        fresh, again = phase.install()
        again.unpack(installed.packed())
        assert torch.equal(logits(fresh, X), before)
        installed.merge()
        assert distance(logits(net, X), before) <= 1e-5
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
    with pytest.raises(CheckpointError, match=r"unexpected .*stranger"):
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


def test_the_loop_repeats_it_from_its_files(vit_phases: tuple[Phase, ...], tmp_path: Path) -> None:
    methods = [dataclasses.replace(phase.method, epochs=RECIPE.epochs) for phase in vit_phases]

    hush()

    def run() -> tuple[Backbone, list[Any]]:
        net = copy.deepcopy(vit_phases[0].base)
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
    assert [result.num_head for result in first] == [(trained.head.in_features + 1) * TOY_TASK.num_classes] * len(
        methods
    )
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
        whole = not isinstance(phase.method, PeftMethod)  # peft's own layers may break the graph
        compiled = torch.compile(net, fullgraph=whole, backend="aot_eager")
        with torch.no_grad():
            assert distance(compiled(X), net(X)) <= 1e-5

"""What every method must do, whatever it is: each conf/method/*.yaml on a tiny ViT, phase by phase.

A method takes the checks one after the other, and all that fail are told: one of each class all of `CHECKS`, its
variants those of `CORE`. On a tiny Swin those of `FEW` take them; what else another attention could break is in
test_families.py. With ``-m slow`` every method takes all.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from headwise.errors import CheckpointError, ConfigError
from headwise.methods.base import Installed, Method
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.methods.peft_bridge import PeftMethod
from headwise.network.backbone import Backbone
from headwise.network.nf4 import FourBit
from headwise.training.loop import read_tensors, write_tensors
from headwise.training.module import reseed
from headwise.updates.adapted import Delta
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site
from made_networks import (
    TOY_TASK,
    batches,
    distance,
    logits,
    perturb,
    plain_timm,
    toy_data,
)
from made_phases import (
    FEW,
    KINDS,
    METHODS,
    RECIPE,
    STEPS,
    Phase,
    X,
    declared_count,
    family_of,
    leftovers,
    loss_of,
    phases_of,
    tensors_of,
    train,
)
from made_runs import trained


def check_count(phases: tuple[Phase, ...], folder: Path) -> None:
    for phase in phases:
        _, installed = phase.install()
        counted = sum(tensor.numel() for tensor in installed.adapter().values())
        assert counted == declared_count(phase), phase.method.label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Larger(LoRA):
    """Installs another rank than it declares."""

    def build(self, site: Site, base: Tensor) -> Delta:
        return LowRank(site, base, self.rank + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circular(LoRA):
    """Counts what it installs."""

    def count(self, net: Backbone) -> int:
        return sum(tensor.numel() for tensor in self.install(copy.deepcopy(net)).adapter().values())


def test_a_wrong_count_and_one_that_is_no_closed_form_fail(tmp_path: Path) -> None:
    (phase,) = phases_of("lora", "vit")
    for wrong, said in ((Larger, "larger"), (Circular, r"count\(\) of 'circular' builds a")):
        changed = dataclasses.replace(phase, method=wrong(label=wrong.__name__.lower(), rank=4))
        with pytest.raises(ExceptionGroup) as caught:
            run_checks((changed,), (check_count,), tmp_path / said[:6])
        with pytest.raises(AssertionError, match=said):
            raise caught.value.exceptions[0]
    with pytest.raises(NotImplementedError, match="Method does not declare how many parameters it trains"):
        Method(label="mine").count(phase.base)


def grouped(installed: Installed) -> dict[str, list[Tensor]]:
    """Tunable tensors by owner; those of the network or a library by the first three parts of their names."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in installed.trainable().items():
        owner = next((owner for owner in installed.owners if name.startswith(f"{owner}.")), None)
        groups.setdefault(owner or ".".join(name.split(".")[:3]), []).append(tensor)
    return groups


def check_identity(phases: tuple[Phase, ...], folder: Path) -> None:
    for phase in phases:
        net, _ = phase.install()
        change, allowed = distance(logits(net, X), logits(phase.base, X)), phase.method.identity_tolerance
        assert change <= allowed, phase.method.label
        if allowed > Method.identity_tolerance and change <= Method.identity_tolerance:  # Compacter is off by 1e-6
            moved = distance(logits(net.double(), X.double()), logits(copy.deepcopy(phase.base).double(), X.double()))
            assert moved > 1e-9, f"{phase.method.label} declares a start off zero but has none"


def check_reach(phases: tuple[Phase, ...], folder: Path) -> None:
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


def check_frozen(phases: tuple[Phase, ...], folder: Path) -> None:
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


def check_gradient(phases: tuple[Phase, ...], folder: Path) -> None:
    for phase in phases:
        net, installed = phase.install()
        train(net, installed, 1)
        for name, tensor in installed.trainable().items():
            assert tensor.grad is not None, name
            assert torch.isfinite(tensor.grad).all(), name
        train(net, installed, 1)  # the gradients after one step: an update that is zero on both sides has none
        for name, tensor in installed.trainable().items():
            needless = name.endswith(".k.bias")  # softmax takes it out
            assert needless or tensor.grad.any(), f"{name} gets no gradient after one step"


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
            yield name, delta.head_parts(parameter.grad)


def check_masked_rows_get_no_gradient(phases: tuple[Phase, ...], folder: Path) -> None:
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


def check_masked_heads_are_left_out_of_files_and_merges(phases: tuple[Phase, ...], folder: Path) -> None:
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


def gradients_of(net: Backbone, tunable: Sequence[Tensor], narrow: bool = False) -> list[Tensor]:
    """Of one step with the same random numbers at every call; zero where none flows. Autocast ends before backward."""
    reseed(0, "step")
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss = net(X).float().square().sum()
    return list(torch.autograd.grad(loss, tunable, allow_unused=True, materialize_grads=True))


def check_checkpointing_changes_no_gradient(phases: tuple[Phase, ...], folder: Path) -> None:
    """Blocks that are computed again draw the same dropout, and whatever a method draws itself."""
    for phase in phases:
        net, installed = phase.installed_and_moved()
        installed.set_mode()
        tunable = list(installed.trainable().values())
        gradients = gradients_of(net, tunable)
        net.set_checkpointing()
        for before, after in zip(gradients, gradients_of(net, tunable), strict=True):
            assert torch.equal(before, after), phase.method.label


def check_bf16(phases: tuple[Phase, ...], folder: Path) -> None:
    """Under autocast, as protocol.precision=bf16 trains, a step has the gradients of float32 but for rounding."""
    for phase in phases:
        net, installed = phase.installed_and_moved()
        installed.set_mode()
        tunable = list(installed.trainable().values())
        found = []
        for narrow in (False, True):
            found.append(torch.cat([part.flatten() for part in gradients_of(net, tunable, narrow)]))
        assert torch.cosine_similarity(*found, dim=0) > 0.99, phase.method.label


def check_merge(phases: tuple[Phase, ...], folder: Path) -> None:
    merges = True
    for phase in phases:
        net, installed = phase.installed_and_moved()
        before = logits(net, X)
        installed.merge()
        assert distance(logits(net, X), before) <= 1e-5
        assert not any(parameter.requires_grad for parameter in net.parameters())
        merges = merges and phase.method.merges
        if not merges:
            with pytest.raises(CheckpointError, match=r"for which timm's network has no place") as refused:
                net.export_state_dict()
            assert ("4-bit" in str(refused.value)) == any(isinstance(module, FourBit) for module in net.modules())
            continue
        assert leftovers(net) == []
        plain = plain_timm(family_of(net))
        plain.load_state_dict(net.export_state_dict(), strict=True)
        assert distance(logits(plain, X), before) <= 1e-5


def check_save_and_load(phases: tuple[Phase, ...], folder: Path) -> None:
    for index, phase in enumerate(phases):
        net, installed = phase.installed_and_moved()
        file = folder / f"{index}.safetensors"
        write_tensors(file, installed.packed())
        stored = read_tensors(file)
        assert set(stored) == set(installed.packed())
        fresh, again = phase.install()
        assert not torch.equal(logits(fresh, X), logits(net, X))
        again.unpack(stored)
        assert torch.equal(logits(fresh.eval(), X), logits(net, X))


def check_foreign_checkpoint(phases: tuple[Phase, ...], folder: Path) -> None:
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


def check_another_phase_stands_on_it(phases: tuple[Phase, ...], folder: Path) -> None:
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


def check_the_loop_repeats_it_from_its_files(phases: tuple[Phase, ...], folder: Path) -> None:
    methods = [dataclasses.replace(phase.method, epochs=RECIPE.epochs) for phase in phases]

    def run() -> tuple[Backbone, list[Any]]:
        net = copy.deepcopy(phases[0].base)
        return net, trained(net, methods, folder, RECIPE, data=toy_data(batch_size=16), ground={})

    ran, first = run()
    restored, second = run()
    assert first == second
    assert [result.num_head for result in first] == [(ran.head.in_features + 1) * TOY_TASK.num_classes] * len(methods)
    assert all(result.stored_bytes >= 0 and result.steps == 4 for result in first)
    assert torch.equal(logits(ran, X), logits(restored, X))


def in_float64(phase: Phase) -> tuple[Backbone, Installed]:
    net = copy.deepcopy(phase.base).double()
    torch.manual_seed(0)
    return net, phase.method.install(net, copy.deepcopy(phase.plan))


PEFT_REFUSES_FLOAT64 = {
    "peft_pissa": "under float32, float16, or bfloat16",
    "peft_olora": "Unsupported data type for the base layer. Got torch.float64",
    "peft_psoft": "PSOFT init requires float32/float16/bfloat16",
}
PEFT_COMPUTES_IN_FLOAT32 = {"peft_c3a"}
"""Whatever the network is in: its Fourier transforms."""


def check_in_a_float64_network_everything_is_float64(phases: tuple[Phase, ...], folder: Path) -> None:
    """B12: no start, forward, stored value or merged weight passes through a narrower type."""
    x = X.double()
    for phase in phases:
        if phase.method.label in PEFT_COMPUTES_IN_FLOAT32:
            pytest.skip("peft computes its update in float32")
        if phase.method.label in PEFT_REFUSES_FLOAT64:
            with pytest.raises(ConfigError, match=PEFT_REFUSES_FLOAT64[phase.method.label]):
                in_float64(phase)
            continue
        net, installed = in_float64(phase)
        exact = phase.method.identity_tolerance == Method.identity_tolerance
        assert distance(logits(net, x), logits(copy.deepcopy(phase.base).double(), x)) <= (1e-13 if exact else 10.0)
        if phase.method.label != "qlora":  # what stands beside 4 bits stays in float32
            assert {tensor.dtype for tensor in installed.trainable().values()} == {torch.float64}
        loss_of(net.train(), installed, x).backward()
        net.eval()
        perturb(list(installed.trainable().values()))
        moved = logits(net, x)
        again, restored = in_float64(phase)
        restored.unpack(installed.packed())
        assert torch.equal(logits(again, x), moved)
        installed.merge()
        assert distance(logits(net, x), moved) <= 1e-13


def check_what_float32_stored_is_read_in_float64(phases: tuple[Phase, ...], folder: Path) -> None:
    for phase in phases:
        if phase.method.label in PEFT_REFUSES_FLOAT64:
            continue
        net, installed = phase.installed_and_moved()
        wide, restored = in_float64(phase)
        restored.unpack(installed.packed())
        assert distance(logits(wide, X.double()), logits(net, X)) <= 1e-5


def check_copy_is_isolated(phases: tuple[Phase, ...], folder: Path) -> None:
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


def check_compile(phases: tuple[Phase, ...], folder: Path) -> None:
    """Compiled blocks train with the same gradients, dropout as it is drawn uncompiled, and in one graph each."""
    for phase in phases:
        net, installed = phase.installed_and_moved()
        installed.set_mode()
        tunable = list(installed.trainable().values())
        gradients = gradients_of(net, tunable)
        torch.compiler.reset()
        counters.clear()
        may_break = isinstance(phase.method, PeftMethod)  # peft's own layers may break the graph, which dynamo says
        with warnings.catch_warnings():
            if may_break:
                warnings.filterwarnings("ignore", "Dynamo ", UserWarning)
            with net.compiled("aot_eager"):
                compiled = gradients_of(net, tunable)
        assert counters["stats"]["unique_graphs"], "nothing was compiled"
        assert may_break or not counters["graph_break"], phase.method.label
        for before, after in zip(gradients, compiled, strict=True):
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


Check = Callable[[tuple[Phase, ...], Path], None]
CORE: tuple[Check, ...] = (
    check_count,
    check_identity,
    check_reach,
    check_frozen,
    check_gradient,
    check_bf16,
    check_merge,
    check_save_and_load,
)
"""Of every method, also of a variant of another."""
MORE: tuple[Check, ...] = (
    check_masked_rows_get_no_gradient,
    check_masked_heads_are_left_out_of_files_and_merges,
    check_checkpointing_changes_no_gradient,
    check_foreign_checkpoint,
    check_another_phase_stands_on_it,
    check_copy_is_isolated,
)
VIT: tuple[Check, ...] = (
    check_the_loop_repeats_it_from_its_files,
    check_in_a_float64_network_everything_is_float64,
    check_what_float32_stored_is_read_in_float64,
)
"""That have nothing to do with the network."""
CHECKS = {"vit": (*CORE, *MORE, *VIT), "swin": (*CORE, *MORE)}


def run_checks(phases: tuple[Phase, ...], checks: Sequence[Check], folder: Path) -> list[Check]:
    """Those that found something to check.

    Raises:
        ExceptionGroup: of all that failed, each with a note of which it was.
    """
    ran, failed = [], []
    for check in checks:
        (place := folder / check.__name__).mkdir(parents=True)
        try:
            check(phases, place)
            ran.append(check)
        except pytest.skip.Exception:
            pass
        except Exception as error:
            error.add_note(f"{check.__name__} of {phases[0].method.label}")
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(checks)} checks", failed)
    return ran


CASES = [f"{name}-vit" for name in METHODS] + [f"{name}-swin" for name in FEW]


@pytest.mark.parametrize("case", CASES)
def test_a_method(case: str, tmp_path: Path) -> None:
    name, _, family = case.rpartition("-")
    if not (phases := phases_of(name, family)):
        pytest.skip(f"{name} declares that it is not defined for {family}")
    checks = CHECKS[family] if name in KINDS else CORE
    ran = run_checks(phases, checks, tmp_path)
    assert set(CORE) <= set(ran) and len(ran) >= len(checks) - 3, "only gates and float64 may be nothing to a method"
    assert name != "hs_lora" or len(ran) == len(checks)


@pytest.mark.slow
@pytest.mark.parametrize("family", CHECKS)
def test_every_method_passes_every_check(family: str, tmp_path: Path) -> None:
    failed = []
    for number, name in enumerate(METHODS):
        if phases := phases_of(name, family):
            try:
                run_checks(phases, (*CHECKS[family], check_compile), tmp_path / str(number))
            except ExceptionGroup as error:
                error.add_note(name)
                failed.append(error)
    if failed:
        raise ExceptionGroup(family, failed)

"""Methods unfolded into phases on tiny networks, and steps of training, for the tests that every method must pass."""

from __future__ import annotations

import copy
import functools
import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import Protocol
from headwise.training.loop import PhaseModule
from headwise.updates.adapted import AdaptedLinear, Delta
from headwise.wrappers.settling import BesideLinear
from made_networks import CLASSES, CONF, FURTHER, batches, composed_method, images, network, perturb

RECIPE = Protocol(name="test", epochs=2, lr=1e-2, lr_start=1e-2, schedule="constant", warmup=0.0, drop_path=0.0)
STEPS = 20
METHODS = sorted(file.relative_to(CONF / "method").with_suffix("").as_posix() for file in CONF.glob("method/**/*.yaml"))
FEW = ("lora", "hs_lora", "heart_lora", "qkv/fused", "adaptformer", "convpass", "repadapter", "ssf", "bitfit", "full")
FEW += ("vpt_deep", "peft_lora")
"""One of each way that a method takes hold of a network."""
_CLASSES = {
    name: re.search(r"^_target_: (\S+)", (CONF / "method" / f"{name}.yaml").read_text(), re.MULTILINE)
    for name in sorted(METHODS, key=lambda name: ("/" in name, name), reverse=True)
}
KINDS = sorted({*FEW, *{found[1]: name for name, found in _CLASSES.items() if found}.values()})
"""The first of each class, and those; the others are variants of them."""
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
    return unfolded(composed_method(name), family)


def unfolded(method: Any, family: str) -> tuple[Phase, ...]:
    """The phases of a method on a tiny network; none where it declares that it is not defined for it."""
    net, phases = network(family), []
    for part in method.phases():
        if FURTHER.get(family, (family,))[0] not in part.networks:
            with pytest.raises(ConfigError, match=f"method '{part.label}' is defined for networks with"):
                part.install(net, part.prepare(net, batches(), STEPS))
            return ()
        torch.manual_seed(0)
        plan = part.prepare(net, batches(), STEPS)
        phase = Phase(part, copy.deepcopy(net), plan if plan is None else json.loads(json.dumps(plan)))
        phases.append(phase)
        net, installed = phase.installed_and_moved()
        installed.merge()
    return tuple(phases)


def loss_of(net: Backbone, installed: Installed, x: Tensor = X) -> Tensor:
    loss = F.cross_entropy(net(x), torch.arange(len(x)) % CLASSES)
    penalty = installed.penalty()
    return loss if penalty is None else loss + penalty


def optimizer_of(net: Backbone, installed: Installed) -> torch.optim.Optimizer:
    module = PhaseModule(net, installed, RECIPE, lambda x: x, epochs=2, steps_per_epoch=1, seed_parts=(0,))
    return module.configure_optimizers()["optimizer"]


def train(net: Backbone, installed: Installed, steps: int) -> None:
    """Optimiser steps; the gradients of the last one stay."""
    optimizer = optimizer_of(net, installed)
    installed.set_mode()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net, installed).backward()
        optimizer.step()


def family_of(net: Backbone) -> str:
    """vit or swin, or the name of one of `FURTHER`."""
    name = net.provenance["name"]
    return name if name in FURTHER else "vit" if hasattr(net.model, "blocks") else "swin"


def declared_count(phase: Phase) -> int:
    """Tunable parameters by the method's own closed form, which may build no module to find out."""

    def refuse(self: nn.Module, *args: object, **options: object) -> None:
        raise AssertionError(f"count() of {phase.method.label!r} builds a {type(self).__name__}: state a closed form")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__init__", refuse)
        return phase.method.count(phase.base, *(() if phase.plan is None else (phase.plan,)))


def tensors_of(net: Backbone) -> dict[str, Tensor]:
    return net.state_dict(keep_vars=True)


def leftovers(net: Backbone) -> list[str]:
    kinds = (Delta, AdaptedLinear, BesideLinear)
    return [name for name, module in net.named_modules() if isinstance(module, kinds)]

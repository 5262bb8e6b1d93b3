"""Methods unfolded into phases on tiny networks, and steps of training, for the tests that every method must pass."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import Protocol
from headwise.training.loop import PhaseModule
from made_networks import CLASSES, batches, composed_method, images, network, perturb

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
    return unfolded(composed_method(name), family)


def unfolded(method: Any, family: str) -> tuple[Phase, ...]:
    """The phases of a method on a tiny network; none where it declares that it is not defined for it."""
    net, phases = network(family), []
    for part in method.phases():
        if family not in part.networks:
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
    """vit or swin."""
    return "vit" if hasattr(net.model, "blocks") else "swin"

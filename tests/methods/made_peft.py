"""peft as an oracle: the same projection adapted by peft and by us, with copied weights."""

from __future__ import annotations

from typing import Any

import torch
from peft import inject_adapter_in_model
from torch import Tensor, nn

from headwise.updates.adapted import AdaptedLinear, Delta
from headwise.updates.sites import Site

HEADS, WIDTH, INPUTS = 4, 48, 40
SITE = Site(0, 0, "q", HEADS, WIDTH // HEADS)
O_SITE = Site(0, 0, "o", HEADS, INPUTS // HEADS, "input")


def distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a.detach() - b.detach()).abs().max())


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(INPUTS, WIDTH).requires_grad_(False)


def peft_layer(config: Any, seed: int = 0) -> Any:
    """The projection of `linear`, adapted by peft."""
    model = nn.ModuleDict({"q": linear(seed), "other": nn.Identity()})
    return inject_adapter_in_model(config, model)["q"]


def ours(delta: Delta, seed: int = 0) -> AdaptedLinear:
    """The projection of `linear`, adapted by us."""
    return AdaptedLinear.around(linear(seed), delta)


def pass_through(module: nn.Module, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Output and gradient of the input of a random batch under a random linear loss; fills the parameters' as well."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 7, INPUTS, generator=generator, requires_grad=True)
    y = module(x)
    (y * torch.randn(y.shape, generator=generator)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad

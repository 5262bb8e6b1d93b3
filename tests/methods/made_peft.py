"""peft as an oracle: the same projection adapted by peft and by us, with copied weights."""

from __future__ import annotations

import functools
from typing import Any

import torch
from peft import inject_adapter_in_model
from torch import Tensor, nn

from headwise.methods.base import Method
from headwise.network.backbone import Backbone, BackboneSpec
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


@functools.cache
def _spec() -> BackboneSpec:
    return BackboneSpec(name="vit_b16", timm_name="vit_base_patch16_224", weights="none")


def vit_b16() -> Backbone:
    """ViT-B/16 with shapes only."""
    with torch.device("meta"):
        net = _spec().build()
        net.new_head(10)
    return net


def count(method: Method) -> int:
    """Tunable parameters on ViT-B/16 without the head."""
    return sum(tensor.numel() for tensor in method.install(vit_b16()).adapter().values())

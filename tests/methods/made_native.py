"""What the tests of single methods share: methods from conf/, and counts on ViT-B/16 without its weights."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from headwise.methods.base import Installed
from headwise.network.backbone import Backbone, BackboneSpec
from made_networks import CLASSES, compose_config, images

X = images()


@functools.cache
def build(name: str, *overrides: str) -> Any:
    """conf/method/<name>.yaml as it stands, with overrides."""
    cfg = compose_config(f"method={name}", *overrides)
    try:
        return instantiate(OmegaConf.to_container(cfg, resolve=True)["method"], _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error from None


@functools.cache
def _vit_b16() -> Backbone:
    cfg = compose_config("backbone=vit_b16_in21k", "backbone.weights=none")
    spec = BackboneSpec(**OmegaConf.to_container(cfg.backbone, resolve=True))  # type: ignore[arg-type]
    with torch.device("meta"):
        net = spec.build()
        net.new_head(10)
    return net


def vit_b16() -> Backbone:
    """ViT-B/16 with shapes only."""
    return copy.deepcopy(_vit_b16())


def count(method: Any) -> int:
    """Tunable parameters of a method on ViT-B/16 without the head."""
    with torch.device("meta"):
        installed = method.install(vit_b16())
    return sum(tensor.numel() for tensor in installed.adapter().values())


def array(tensor: Tensor) -> Any:
    """As numpy, in double precision."""
    return tensor.detach().double().numpy()


def step(net: Backbone, installed: Installed, lr: float = 1e-2) -> None:
    """One optimiser step; gradients stay."""
    optimizer = torch.optim.AdamW(installed.param_groups(0.0), lr=lr)
    installed.set_mode()
    F.cross_entropy(net(X), torch.arange(len(X)) % CLASSES).backward()
    optimizer.step()
    net.eval()

"""q, k and v of every family taken apart and put back: values, names, biases that stand beside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

from headwise.errors import CheckpointError, ConfigError
from headwise.network.backbone import Backbone
from headwise.network.given import around, plain_of
from headwise.network.kept import KeptNetwork
from headwise.network.projections import LAYOUTS, take_apart
from headwise.updates.qkv import SplitQKV
from made_cases import each
from made_networks import CLASSES, distance, images, logits, perturb

X = images()
SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 4}
NAMES = {
    "fused": ("vit_small_patch16_rope_224", {}),  # rotary, one linear with bias
    "beside": ("eva02_tiny_patch14_224", {}),
    "apart": ("eva02_base_patch14_224", {}),  # three linears, k without bias; a gated MLP of two more
    "unbiased": ("vit_small_patch16_dinov3", {}),
    "pooled": ("vit_pe_core_tiny_patch16_384", {}),  # attention pooling
    "shared": ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "init_values": 0.1}),
    "normed": ("vit_relpos_small_patch16_224", {}),
}


def model_of(kind: str) -> Any:
    name, more = NAMES[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, img_size=32, num_classes=CLASSES, **SMALL, **more).eval()
    perturb(list(model.parameters()), 0.05)
    return model


def splits(net: nn.Module) -> list[SplitQKV]:
    return [module for module in net.modules() if isinstance(module, SplitQKV)]


@each("kind", NAMES)
def test_a_network_is_the_same_apart_and_put_back(kind: str) -> None:
    model = model_of(kind)
    net = around(model)
    assert splits(net)[0].layout == (kind if kind in LAYOUTS else "beside" if kind == "shared" else "fused")
    assert distance(logits(net, X), logits(model, X)) <= 1e-5
    plain = plain_of(net)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [type(module) for module in plain.modules()] == [type(module) for module in model.modules()]
    assert distance(logits(plain, X), logits(model, X)) == 0
    assert distance(logits(copy.deepcopy(net), X), logits(KeptNetwork(net).give(), X)) == 0


def test_a_missing_bias_is_zero_and_cannot_train() -> None:
    net = around(model_of("beside"))
    split = splits(net)[0]
    q, k, v = split.parts
    assert k.bias is None and q.bias is not None and v.bias is not None
    x = torch.randn(2, 3, 48)
    whole = torch.cat([part(x) for part in (q, k, v)], dim=-1)
    torch.testing.assert_close(split(x), whole)
    net.requires_grad_(False)
    q.bias.requires_grad_(True)
    split(x).sum().backward()
    assert torch.equal(q.bias.grad, torch.full((48,), 6.0)) and v.bias.grad is None
    torch.testing.assert_close(split.double()(x.double()).float(), whole)


def test_a_bias_without_a_place_is_not_exported() -> None:
    net = around(model_of("beside"))
    split = splits(net)[0]
    split.k.bias = nn.Parameter(torch.ones(48))
    split.join()
    with pytest.raises(CheckpointError, match=r"blocks.0.attn.qkv.k has a bias, for which timm's network has no place"):
        net.export_state_dict()


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.num_heads = nn.Linear(8, 24), 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.qkv.weight)


def test_an_attention_of_ones_own_that_reads_the_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attention Reads reads .qkv.weight itself, so an adapted projection would"):
        take_apart(Reads())
    with pytest.raises(ConfigError, match="attention Linear has no projections of q, k and v to adapt; allowed: timm"):
        take_apart(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"attention .* does not divide q, k and v into the same heads"):
        Backbone(timm.create_model("hiera_tiny_224", img_size=64), 64, (0.5,) * 3, (0.5,) * 3)

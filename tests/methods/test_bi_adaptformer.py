"""Bi-AdaptFormer and the 1-bit head: sizes, exact storage."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from made_native import array

from headwise.errors import CheckpointError, ConfigError
from headwise.methods.base import Installed, Method
from headwise.methods.bi_adaptformer import BiAdaptFormer
from headwise.methods.bi_lora import BiLoRA
from headwise.updates.quantize import Quantizer
from headwise.wrappers.bottleneck import Bottleneck
from headwise.wrappers.quantized import QuantizedBottleneck, QuantizedLinear
from made_cases import each
from made_networks import CLASSES, distance, images, logits, network, perturb

METHODS: dict[str, Method] = {
    "bi_adaptformer": BiAdaptFormer(label="a", hidden=5),
    "with 1-bit head": BiAdaptFormer(label="a", hidden=5, head_bits=1),
    "bi_lora with 1-bit head": BiLoRA(label="b", rank=5, head_bits=1),
}


def test_size_on_vit_b() -> None:
    """12 blocks of two 768 x 32 matrices: 73,920 bytes as published."""
    torch.manual_seed(0)
    part = QuantizedBottleneck(Bottleneck(768, 32), Quantizer(1))
    assert 12 * sum(tensor.nbytes for tensor in part.pack().values()) == 73_920
    assert list(part.pack()) == ["down.codes", "down.stats", "up.codes", "up.stats"]


def installed(method: Method, family: str = "vit") -> tuple[Any, Installed]:
    net = network(family)
    torch.manual_seed(0)
    found = method.install(net)
    perturb(list(found.trainable().values()))
    return net.eval(), found


def one_bit(latent: torch.Tensor) -> Any:
    """0.67449 deviations above or below the mean; the deviation over n - 1."""
    w = array(latent)
    return w.mean() + w.std(ddof=1) * np.where(w > w.mean(), 1.0, -1.0) * NormalDist().inv_cdf(0.75)


def test_the_branch_is_a_bottleneck_of_one_bit_matrices() -> None:
    net, found = installed(BiAdaptFormer(label="a", hidden=5, scale=0.7))
    block, part = net.model.blocks[1], found.owners["s0.b1.adaptformer"].part
    down, up = one_bit(part.down.weight), one_bit(part.up.weight)
    x = torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        middle = x + block.inner.attn(block.inner.norm1(x))
        branch = 0.7 * np.maximum(array(middle) @ down.T, 0.0) @ up.T
        np.testing.assert_allclose(array(block(x)), array(block.inner(x)) + branch, atol=1e-5)


@each("family", ["vit", "swin"])
@each("method", METHODS.values())
def test_what_is_stored_gives_the_same_logits(method: Method, family: str) -> None:
    net, found = installed(method, family)
    stored = found.packed()
    fresh = network(family)
    torch.manual_seed(1)
    again = method.install(fresh)
    again.unpack(stored)
    before = logits(net, images())
    assert torch.equal(logits(fresh.eval(), images()), before)
    again.merge()
    assert distance(logits(fresh, images()), before) <= 1e-5
    assert type(fresh.head) is torch.nn.Linear
    assert not any(parameter.requires_grad for parameter in fresh.parameters())


def test_the_head_is_stored_in_bits_and_not_counted_as_adapter() -> None:
    _, found = installed(METHODS["bi_lora with 1-bit head"])
    _, plain = installed(BiLoRA(label="b", rank=5))
    stored = found.packed()
    assert {name for name in stored if name.startswith("head.")} == {"head.codes", "head.stats"}
    assert stored["head.codes"].nbytes == -(-CLASSES * 48 // 8)
    assert found.stored_bytes() == plain.stored_bytes()
    assert list(found.head()) == ["head.weight"]


def test_a_quantised_layer_learns_from_a_constant_start() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4)
    torch.nn.init.zeros_(linear.weight)
    layer = QuantizedLinear(linear, Quantizer(1))
    layer(torch.randn(3, 6)).square().sum().backward()
    assert layer.weight.grad is not None
    assert len(torch.unique(layer.weight.grad)) > 6
    with pytest.raises(CheckpointError, match=r"codes is \(4,\) in the file, \(3,\) here"):
        layer.unpack({"codes": torch.zeros(4, dtype=torch.uint8), "stats": torch.zeros(2)})


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="bits of method 'a' must be one of 1, 2, 4, 8, got 3"):
        BiAdaptFormer(label="a", bits=3)
    with pytest.raises(ConfigError, match="got 5"):
        BiLoRA(label="b", head_bits=5)
    with pytest.raises(ConfigError, match="does not choose projections"):
        BiAdaptFormer(label="a", targets=("q",))
    with pytest.raises(ConfigError, match="has no gate on its heads"):
        BiAdaptFormer(label="a", gate={"count": 1})

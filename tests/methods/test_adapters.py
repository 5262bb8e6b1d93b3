"""Serial adapters: counts, closed form in numpy, starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made_native import X, array, build, count, step

from headwise.errors import ConfigError
from headwise.methods.hs_lora import HeadLoRA
from made_networks import distance, logits, network, perturb

ERF = np.vectorize(math.erf)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("houlsby_b8", (), 313_536),
        ("houlsby_b8", ("method.train_ln=true",), 313_536 + 12 * 4 * 768),
        ("pfeiffer", (), 147_456),
        ("pfeiffer", ("method.bias=true",), 156_768),
        ("vpt_adapter_rf256", (), 64_548),
        ("vpt_adapter_rf64", (), 230_544),
    ],
)
def test_count_on_vit_b16(name: str, overrides: tuple[str, ...], expected: int) -> None:
    assert count(build(name, *overrides)) == expected


@pytest.mark.parametrize("place", ["attn", "mlp"])
def test_output_is_y_plus_bottleneck_of_y(place: str) -> None:
    net = network("vit")
    installed = build("houlsby_b8").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    module, part = net.model.get_submodule(f"blocks.1.{place}"), installed.owners[f"s0.b1.adapter_{place}"]
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        y = array(module.inner(x))
        z = y @ array(part.down.weight).T + array(part.down.bias)
        hidden = z * 0.5 * (1.0 + ERF(z / math.sqrt(2.0)))
        expected = y + hidden @ array(part.up.weight).T + array(part.up.bias)
        np.testing.assert_allclose(array(module(x)), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["houlsby_b8", "pfeiffer", "vpt_adapter_rf256"])
def test_every_matrix_learns_after_one_step(name: str) -> None:
    net = network("vit")
    installed = build(name).install(net)
    step(net, installed)
    net.zero_grad()
    step(net, installed)
    assert all(tensor.grad.any() for tensor in installed.adapter().values())


def test_layer_norms_train_when_asked() -> None:
    net = network("vit")
    before = net.model.blocks[0].norm1.weight.clone()
    installed = build("houlsby_b8", "method.train_ln=true").install(net)
    step(net, installed)
    assert not torch.equal(net.model.blocks[0].norm1.weight, before)


def test_heads_train_over_frozen_adapters() -> None:
    net = network("vit")
    installed = build("houlsby_b8").install(net)
    step(net, installed)
    before = logits(net, X)
    installed.merge()
    heads = HeadLoRA(label="heads", rank=2).install(net)
    assert distance(logits(net, X), before) <= 1e-6
    step(net, heads)
    assert not any(tensor.requires_grad for tensor in installed.adapter().values())
    after = logits(net, X)
    heads.merge()
    assert distance(logits(net, X), after) <= 1e-5


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"unknown adapter placement 'houlsbi' .did you mean 'houlsby'"):
        build("houlsby_b8", "method.placement=houlsbi")
    with pytest.raises(ConfigError, match=r"unknown adapter init 'zero'.*allowed: houlsby, lora"):
        build("houlsby_b8", "method.init=zero")

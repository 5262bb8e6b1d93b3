"""AdaptFormer: closed form in numpy, place beside drop-path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_native import X, array, build
from torch import nn

from headwise.errors import ConfigError
from made_cases import each
from made_networks import network, perturb


def branch(part: Any, x: Any) -> Any:
    hidden = np.maximum(x @ array(part.down.weight).T + array(part.down.bias), 0.0)
    return part.scale * (hidden @ array(part.up.weight).T + array(part.up.bias))


@each("family", ["vit", "swin"])
def test_the_branch_reads_the_residual_without_norm_and_stands_outside_drop_path(family: str) -> None:
    net = network(family)
    installed = build("adaptformer", "method.bias=true", "method.scale=0.7").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    stage, index, path = net.blocks[-1]
    block: Any = net.model.get_submodule(path)
    inner, part = block.inner, installed.owners[f"s{stage}.b{index}.adaptformer"]
    width = part.down.in_features
    x = torch.randn(2, 17, width) if family == "vit" else torch.randn(2, *inner.input_resolution, width)
    with torch.no_grad():
        attention = inner._attn if family == "swin" else inner.attn
        middle = x + attention(inner.norm1(x))
        expected = array(inner(x)) + branch(part, array(middle))
        np.testing.assert_allclose(array(block(x)), expected, atol=1e-5)
        inner.drop_path2 = nn.Threshold(1e9, 0.0)  # drops the whole MLP branch
        np.testing.assert_allclose(array(block(x)), array(middle) + branch(part, array(middle)), atol=1e-5)


def test_after_the_phase_it_stays_without_dropout() -> None:
    net = network("vit")
    installed = build("adaptformer", "method.dropout=0.9").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    net.train()
    assert not torch.equal(net(X), net(X))
    installed.merge()
    net.train()
    assert torch.equal(net(X), net(X))


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"hidden width must be in 1\.\.48, got 64"):
        build("adaptformer", "method.hidden=64").install(network("vit"))
    with pytest.raises(ConfigError, match="does not choose projections"):
        build("adaptformer", "method.targets=[q]")

"""Compacter: the layers against numpy's Kronecker product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_native import array, build

from headwise.errors import ConfigError
from made_networks import network, perturb


def dense(layer: Any) -> np.ndarray:
    rule, s, t = array(layer.rule.A), array(layer.s), array(layer.t)
    return sum(np.kron(rule[i], np.outer(s[i], t[i])) for i in range(len(rule)))


def test_output_is_the_sum_of_kronecker_products() -> None:
    net = network("vit")
    installed = build("compacter", "method.bias=true").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    part = installed.owners["s0.b1.compacter_mlp"]
    y = torch.randn(2, 5, 48)
    z = array(y) @ dense(part.down) + array(part.down.bias)
    hidden = 0.5 * z * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))
    expected = hidden @ dense(part.up) + array(part.up.bias)
    np.testing.assert_allclose(array(part(y)), expected, atol=1e-5)
    module = net.model.get_submodule("blocks.1.mlp")
    with torch.no_grad():
        torch.testing.assert_close(module(y), module.inner(y) + part(module.inner(y)))


def test_one_rule_for_all_layers() -> None:
    installed = build("compacter").install(network("vit"))
    rules = {id(m.rule.A) for owner in installed.owners.values() for m in owner.modules() if hasattr(m, "rule")}
    assert len(rules) == 1
    assert [name for name in installed.packed() if name.endswith("A")] == ["shared.A"]


def test_refuses() -> None:
    with pytest.raises(ConfigError, match="terms must divide the 30 outputs of a Compacter layer, got 4"):
        build("compacter", "method.hidden=30").install(network("vit"))
    with pytest.raises(ConfigError, match="std of method 'compacter' must be a number above 0"):
        build("compacter", "method.std=0")

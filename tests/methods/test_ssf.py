"""SSF: folding against numpy, decay, places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_native import X, array, build

from headwise.errors import ConfigError
from headwise.methods.ssf import SSF
from made_networks import distance, logits, network


def test_folded_weights_are_diag_gamma_w() -> None:
    net = network("vit")
    plain = network("vit").model.state_dict()
    torch.manual_seed(0)
    installed = SSF(label="ssf", std=0.3).install(net)
    before = logits(net, X)
    parts = {name: (array(part.scale), array(part.shift)) for name, part in installed.owners.items()}
    installed.merge()
    merged = net.model.state_dict()
    for owner, module in (
        ("s0.b1.norm1", "blocks.1.norm1"),
        ("s0.b1.mlp.fc1", "blocks.1.mlp.fc1"),
        ("patch_embed.proj", "patch_embed.proj"),
        ("norm", "norm"),
    ):
        gamma, beta = parts[owner]
        weight, bias = array(plain[f"{module}.weight"]), array(plain[f"{module}.bias"])
        expected = (weight.reshape(len(gamma), -1) * gamma[:, None]).reshape(weight.shape)
        np.testing.assert_allclose(array(merged[f"{module}.weight"]), expected, atol=1e-6)
        np.testing.assert_allclose(array(merged[f"{module}.bias"]), gamma * bias + beta, atol=1e-6)
    gamma, beta = parts["s0.b0.attn.qkv"]
    for index, proj in enumerate("qkv"):
        rows = slice(48 * index, 48 * (index + 1))
        weight = array(plain[f"blocks.0.attn.qkv.{proj}.weight"])
        np.testing.assert_allclose(
            array(merged[f"blocks.0.attn.qkv.{proj}.weight"]), gamma[rows, None] * weight, atol=1e-6
        )
    assert distance(logits(net, X), before) <= 1e-5


def test_the_head_is_left_alone_and_layers_without_bias_get_no_shift() -> None:
    installed = build("ssf").install(network("swin"))
    assert not [name for name in installed.owners if name.startswith("head")]
    assert installed.owners["layers.1.downsample.reduction"].shift is None
    assert installed.owners["layers.1.downsample.norm"].shift is not None


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"does not choose projections, got targets=\['q'\]; allowed: \[\]"):
        SSF(label="ssf", targets=("q",))
    for std in (-1, float("nan")):
        with pytest.raises(ConfigError, match=f"std of method 'ssf' must be a number of at least 0, got {std}"):
            SSF(label="ssf", std=std)
    net = network("vit")
    build("mora", "method.rank=1").install(net)
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn\.qkv\.q already carries a delta"):
        build("ssf").install(net)

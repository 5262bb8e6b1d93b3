"""RepAdapter: count, forward and folding against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_native import X, array, build, count, vit_b16

from headwise.errors import ConfigError
from made_networks import distance, logits, network, perturb


def test_count_on_vit_b16() -> None:
    assert count(build("repadapter")) == 239_808
    with torch.device("meta"):
        installed = build("repadapter").install(vit_b16())
    assert sum(t.numel() for t in installed.adapter().values() if t.ndim > 1) == 221_184


def test_folds_as_the_paper_says() -> None:
    net, plain = network("vit"), network("vit").model.state_dict()
    installed = build("repadapter", "method.scale=0.5").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    part = installed.owners["s0.b1.before_qkv"]
    down, b_down = array(part.down.weight), array(part.down.bias)
    up, b_up = np.zeros((48, 8)), array(part.bias)
    up[:24, :4], up[24:, 4:] = array(part.up)[0], array(part.up)[1]
    before = logits(net, X)
    z = torch.randn(2, 3, 48)
    expected = array(z) + 0.5 * ((array(z) @ down.T + b_down) @ up.T + b_up)
    np.testing.assert_allclose(array(part(z)), expected, atol=1e-5)
    installed.merge()
    assert distance(logits(net, X), before) <= 1e-5
    merged = net.model.state_dict()
    for proj in "qkv":
        weight = array(plain[f"blocks.1.attn.qkv.{proj}.weight"])
        bias = array(plain[f"blocks.1.attn.qkv.{proj}.bias"])
        np.testing.assert_allclose(
            array(merged[f"blocks.1.attn.qkv.{proj}.weight"]), weight @ (np.eye(48) + 0.5 * up @ down), atol=1e-5
        )
        np.testing.assert_allclose(
            array(merged[f"blocks.1.attn.qkv.{proj}.bias"]), bias + 0.5 * weight @ (up @ b_down + b_up), atol=1e-5
        )


def test_the_adapter_before_fc1_folds_the_same_way() -> None:
    net, plain = network("vit"), network("vit").model.state_dict()
    installed = build("repadapter", "method.scale=0.5").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    part = installed.owners["s0.b0.before_fc1"]
    up = np.zeros((48, 8))
    up[:24, :4], up[24:, 4:] = array(part.up)[0], array(part.up)[1]
    shift = up @ array(part.down.bias) + array(part.bias)
    installed.merge()
    merged = net.model.state_dict()
    weight, bias = (array(plain[f"blocks.0.mlp.fc1.{name}"]) for name in ("weight", "bias"))
    folded = weight @ (np.eye(48) + 0.5 * up @ array(part.down.weight))
    np.testing.assert_allclose(array(merged["blocks.0.mlp.fc1.weight"]), folded, atol=1e-5)
    np.testing.assert_allclose(array(merged["blocks.0.mlp.fc1.bias"]), bias + 0.5 * weight @ shift, atol=1e-5)


def test_q_k_and_v_see_one_dropout_mask() -> None:
    net = network("vit")
    installed = build("repadapter", "method.dropout=0.5").install(net)
    perturb(list(installed.adapter().values()), 0.5)
    wrapper = net.model.get_submodule("blocks.0.attn.qkv")
    wrapper.train()
    for _, part in wrapper.inner.named_children():
        torch.nn.init.eye_(part.weight)
        torch.nn.init.zeros_(part.bias)
    q, k, v = wrapper(torch.randn(2, 5, 48)).chunk(3, -1)
    torch.testing.assert_close(q, k)
    torch.testing.assert_close(q, v)


def test_refuses() -> None:
    with pytest.raises(ConfigError, match="groups must divide the width 48 and the hidden width 8, got 5"):
        build("repadapter", "method.groups=5").install(network("vit"))
    net = network("vit")
    net.model.get_submodule("blocks.0.mlp.fc1").register_parameter("bias", None)
    with pytest.raises(ConfigError, match=r"s0\.b0\.mlp\.fc1 of VisionTransformer has none"):
        build("repadapter").install(net)

"""CaRA: both tensors against tensorly, bias, dropout on the weight, merge, gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorly as tl
import torch
from made_native import X, array, build

from headwise.errors import ConfigError
from headwise.methods.base import Installed
from headwise.network.backbone import Backbone
from headwise.updates.sites import PROJECTIONS
from made_networks import distance, logits, network, perturb


def moved(*overrides: str) -> tuple[Backbone, Installed]:
    net = network("vit")
    installed = build("cara", "method.rank=5", "method.scale=0.5", *overrides).install(net)
    perturb(list(installed.adapter().values()), 0.3)
    return net, installed


def test_updates_are_slices_of_the_cp_tensors() -> None:
    _, installed = moved()
    tl.set_backend("numpy")
    attention, rest = installed.owners["s0.b0.q"].shared, installed.owners["s0.b0.o"].shared
    A = [array(getattr(attention, name)) for name in ("A1", "A2", "A3", "A4")]
    assert [a.shape for a in A] == [(6, 5), (48, 5), (4, 5), (12, 5)]
    T = tl.cp_to_tensor((array(attention.components), A))
    P = [array(getattr(rest, name)) for name in ("P1", "P2", "P3")]
    assert [p.shape for p in P] == [(18, 5), (48, 5), (48, 5)]
    S = tl.cp_to_tensor((array(rest.components), P))
    base = torch.zeros(1)
    for block in (0, 1):
        for k, proj in enumerate("qkv"):
            expected = 0.5 * T[3 * block + k].reshape(48, 48).T  # T is (in, heads, channels)
            np.testing.assert_allclose(array(installed.owners[f"s0.b{block}.{proj}"].weight(base)), expected, atol=1e-5)
        slots = S[9 * block : 9 * block + 9]
        for proj, expected in (
            ("o", slots[0]),
            ("fc1", slots[1:5].reshape(192, 48)),
            ("fc2", slots[5:9].reshape(192, 48).T),
        ):
            found = array(installed.owners[f"s0.b{block}.{proj}"].weight(base))
            np.testing.assert_allclose(found, 0.5 * expected, atol=1e-5)


def test_biases_are_shared_by_all_blocks_and_merge() -> None:
    net, installed = moved()
    plain = network("vit").model.state_dict()
    biases = {proj: array(b) for proj, b in installed.owners["s0.b0.o"].shared.biases.items()}
    before = logits(net, X)
    installed.merge()
    assert distance(logits(net, X), before) <= 1e-5
    merged = net.model.state_dict()
    for proj, path in (("o", "attn.proj"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")):
        for block in (0, 1):
            change = array(merged[f"blocks.{block}.{path}.bias"]) - array(plain[f"blocks.{block}.{path}.bias"])
            np.testing.assert_allclose(change, 0.5 * biases[proj], atol=1e-6)
    for proj in "qkv":
        key = f"blocks.0.attn.qkv.{proj}.bias"
        assert torch.equal(merged[key], plain[key])


def test_dropout_is_on_the_weight_in_training_only() -> None:
    net, installed = moved("method.dropout=0.5")
    delta: Any = installed.owners["s0.b0.fc1"]
    base = torch.zeros(1)
    clean = delta.eval().weight(base)
    delta.train()
    dropped = delta.weight(base)
    zero = dropped == 0
    assert 0.4 < zero.float().mean() < 0.6
    torch.testing.assert_close(dropped[~zero], 2.0 * clean[~zero])
    before = logits(net, X)
    net.train()
    installed.merge()
    assert distance(logits(net, X), before) <= 1e-5


def test_without_dropout_it_trains_by_its_factors() -> None:
    """No dense update, and the same numbers as with one, in double precision and in all six projections."""
    net, installed = moved("method.dropout=0")
    net.double()
    x, tensors = X.double(), list(installed.adapter().values())
    found = torch.autograd.grad(net(x).square().sum(), tensors)
    deltas: list[Any] = [installed.owners[f"s0.b{block}.{proj}"] for block in (0, 1) for proj in PROJECTIONS]
    assert all(delta.is_structured and not delta.is_dense for delta in deltas)
    for delta in deltas:
        base = torch.zeros((), dtype=torch.float64)
        down, up, *_ = delta.factors()
        torch.testing.assert_close(up[0] @ down[0], delta.weight(base))
    for delta in deltas:
        delta.dropout = 1e-300  # none that drops, and yet one
    assert all(delta.is_dense and delta.factors() is None for delta in deltas)
    wanted = torch.autograd.grad(net.eval()(x).square().sum(), tensors)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_component_weights() -> None:
    torch.manual_seed(0)
    ones = build("cara").install(network("vit")).owners["s0.b0.q"].shared.components
    assert bool((ones == 1).all())
    drawn = build("cara", "method.mean=3", "method.std=0.01").install(network("vit")).owners["s0.b0.q"].shared
    assert 0 < (drawn.components - 3).abs().max() < 0.1
    whole = build("cara", "method.mean=2").install(network("vit")).owners["s0.b0.q"].shared.components
    assert whole.is_floating_point() and bool((whole == 2).all())


def test_a_gate_turns_whole_heads_off() -> None:
    _, installed = moved("method.targets=[q,k,v]", "+method.gate={mode: front, count: 1}")
    delta: Any = installed.owners["s0.b1.v"]
    assert delta.active.tolist() == [0, 1, 1, 1]
    weight = delta.weight(torch.zeros(1))
    assert not weight[:12].any()
    assert weight[12:].any(1).all()
    with pytest.raises(ConfigError, match="has no heads to gate"):
        moved("+method.gate={mode: front, count: 1}")


def test_refuses() -> None:
    with pytest.raises(ConfigError, match="rank of method 'cara' must be a whole number of at least 1, got 0"):
        build("cara", "method.rank=0")
    with pytest.raises(ConfigError, match=r"mean and std of method 'cara' are both 0: .* never learns"):
        build("cara", "method.mean=0", "method.std=0")
    with pytest.raises(ConfigError, match="std of method 'cara' must be a number of at least 0, got nan"):
        build("cara", "method.std=nan")
    net = network("vit")
    net.linear(net.sites[3]).register_parameter("bias", None)
    with pytest.raises(ConfigError, match=r"s0\.b0\.o has no bias"):
        build("cara").install(net)

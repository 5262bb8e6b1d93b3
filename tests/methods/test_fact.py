"""FacT: both factorings against the original's order of operations and tensorly's contractions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorly as tl
import torch
from made_native import array, build
from tensorly.tenalg import mode_dot
from torch import nn

from headwise.errors import ConfigError
from made_cases import each
from made_networks import network, perturb

X = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(3))


def moved(name: str) -> tuple[Any, dict[str, Any]]:
    net = network("vit")
    installed = build(name, "method.rank=3", "method.scale=0.5").install(net)
    perturb(list(installed.adapter().values()), 0.5)
    return net, dict(installed.owners)


def wide_input() -> np.ndarray:
    return array(torch.randn(3, 5, 192, generator=torch.Generator().manual_seed(4)))


def update(delta: Any, x: np.ndarray) -> np.ndarray:
    return x @ array(delta.weight(torch.zeros(delta.num_outs * 48, delta.num_ins * 48))).T


def test_tt_equals_the_originals_steps() -> None:
    """hidden = Sigma(U x), cut or joined in four, then V."""
    _, owners = moved("fact_tt")
    U, V = array(owners["s0.b1.q"].shared.U), array(owners["s0.b1.q"].shared.V)
    x, h = array(X), wide_input()
    q, fc1, fc2 = (owners[f"s0.b1.{proj}"] for proj in ("q", "fc1", "fc2"))
    np.testing.assert_allclose(update(q, x), 0.5 * (x @ U.T @ array(q.S).T) @ V.T, atol=1e-5)
    hidden = (x @ U.T @ array(fc1.S).T).reshape(3, 5, 4, 3)
    np.testing.assert_allclose(update(fc1, x), 0.5 * (hidden @ V.T).reshape(3, 5, 192), atol=1e-5)
    joined = (h.reshape(3, 5, 4, 48) @ U.T).reshape(3, 5, 12)
    np.testing.assert_allclose(update(fc2, h), 0.5 * (joined @ array(fc2.S).T) @ V.T, atol=1e-5)


def test_tk_equals_the_originals_steps() -> None:
    """hidden = U x times the core contracted with the slots; for the MLP read as (r, 4 r) and cut in four."""
    _, owners = moved("fact_tk")
    q, v, fc1, fc2 = (owners[f"s0.b1.{proj}"] for proj in ("q", "v", "fc1", "fc2"))
    U, V = array(q.shared.U), array(q.shared.V)
    core, slots = array(q.core.core), array(q.core.slots)
    tl.set_backend("numpy")
    x, h = array(X), wide_input()
    for delta, slot in ((q, 12), (v, 14)):
        middle = mode_dot(core, slots[:, slot], mode=2)
        np.testing.assert_allclose(update(delta, x), 0.5 * (x @ U.T @ middle) @ V.T, atol=1e-5)
    up = mode_dot(core, slots[:, 16:20].T, mode=2).reshape(3, 12)
    hidden = (x @ U.T @ up).reshape(3, 5, 4, 3)
    np.testing.assert_allclose(update(fc1, x), 0.5 * (hidden @ V.T).reshape(3, 5, 192), atol=1e-5)
    down = mode_dot(core, slots[:, 20:24].T, mode=2).reshape(3, 12)
    joined = (h.reshape(3, 5, 4, 48) @ U.T).reshape(3, 5, 12)
    np.testing.assert_allclose(update(fc2, h), 0.5 * (joined @ down.T) @ V.T, atol=1e-5)


@each("name", ["fact_tt", "fact_tk"])
def test_square_updates_are_slices_of_one_tensor_of_tensorly(name: str) -> None:
    """(inputs, slots, outputs) as a tensor train, and as a Tucker tensor; q, k, v and o of both blocks."""
    _, owners = moved(name)
    tl.set_backend("numpy")
    keys = [(f"s0.b{block}.{proj}", 12 * block + slot) for block in (0, 1) for slot, proj in enumerate("qkvo")]
    shared = owners["s0.b0.q"].shared
    U, V = array(shared.U), array(shared.V)
    if name == "fact_tt":
        middles = np.stack([array(owners[key].S).T for key, _ in keys], axis=1)
        whole = tl.tt_to_tensor([U.T[None], middles, V.T[..., None]])
    else:
        core = owners["s0.b0.q"].core
        slots = array(core.slots)[:, [slot for _, slot in keys]]
        whole = tl.tucker_to_tensor((array(core.core), [U.T, V, slots.T])).transpose(0, 2, 1)
    assert whole.shape == (48, 8, 48)
    for index, (key, _) in enumerate(keys):
        found = array(owners[key].weight(torch.zeros(48, 48)))
        np.testing.assert_allclose(found, 0.5 * whole[:, index].T, atol=1e-5)


@each("name", ["fact_tt", "fact_tk"])
def test_factors_are_saved_and_trained_once(name: str) -> None:
    installed = build(name, "method.rank=3").install(network("vit"))
    packed = installed.packed()
    assert [key for key in packed if key.endswith("shared.U")] == ["s0.b0.q.shared.U"]
    assert len(set(map(id, installed.trainable().values()))) == len(installed.trainable())


def test_dropout_acts_behind_s() -> None:
    net = network("vit")
    build("fact_tt", "method.rank=3", "method.dropout=0.25").install(net)
    linear: Any = net.model.get_submodule("blocks.0.attn.proj")
    nn.init.ones_(linear.delta.shared.V)
    linear.train()
    x = torch.randn(4000, 48)
    hidden = linear.delta.factors()
    out = linear(x) - nn.functional.linear(x, linear.weight, linear.bias)
    clean = x @ hidden.down[0].T
    kept = out[:, 0].detach()
    combos = torch.stack([(clean * torch.tensor(m)).sum(1) / 0.75 for m in np.ndindex(2, 2, 2)])
    assert ((combos - kept).abs().min(0).values < 1e-4).all()


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"rank of FacT must be in 1\.\.48, got 64"):
        build("fact_tt", "method.rank=64").install(network("vit"))
    with pytest.raises(ConfigError, match="dropout of method 'fact_tk' must be in"):
        build("fact_tk", "method.dropout=1.5").install(network("vit"))
    with pytest.raises(ConfigError, match="target 'qkv' matches no projection"):
        build("fact_tt", "method.targets=[qkv]").install(network("vit"))

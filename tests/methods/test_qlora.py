"""QLoRA: what is held in 4 bits, what trains, and what stands on it afterwards."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_native import array
from torch import nn

from headwise.errors import CheckpointError, ConfigError
from headwise.methods.base import Method
from headwise.methods.dylora import DyLoRA
from headwise.methods.hs_lora import TwoPhase
from headwise.methods.lora import LoRA
from headwise.methods.qlora import QLoRA
from headwise.network.nf4 import BLOCK, VALUES, FourBit, NF4Linear
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.qkv import SplitQKV
from headwise.wrappers.settling import BesideLinear
from made_cases import each
from made_networks import composed_method, distance, images, logits, network, perturb
from made_runs import train

X = images()
FAMILIES = ["vit", "swin"]


@each("family", FAMILIES)
def test_every_projection_is_held_in_4_bits_and_nothing_else(family: str) -> None:
    net = network(family)
    storages = [module._weight for module in net.modules() if isinstance(module, SplitQKV)]
    dense = [weakref.ref(tensor) for tensor in (*(net.linear(site).weight for site in net.sites), *storages)]
    del storages
    others = {name for name, module in net.model.named_modules() if isinstance(module, nn.Linear)}
    others -= {net.path(site).removeprefix("model.") for site in net.sites}
    installed = composed_method("qlora").install(net)
    held = [module for module in net.modules() if isinstance(module, FourBit)]
    assert len(held) == len(net.sites)
    assert {name for name, module in net.model.named_modules() if isinstance(module, nn.Linear)} == others
    gc.collect()
    assert [reference() for reference in dense] == [None] * len(dense)
    weights = sum(layer.in_features * layer.out_features for layer in held)
    base = installed.report()["base"]
    assert base["weights"] == weights
    assert base["bytes"] == sum(layer.num_bytes for layer in held)
    assert base["float32_bytes"] == 4 * weights
    assert 4.1 < 8 * base["bytes"] / weights < 4.3


@each("family", FAMILIES)
def test_it_starts_as_the_network_of_the_dequantised_weights(family: str) -> None:
    net, plain = network(family), network(family)
    composed_method("qlora").install(net)
    for site in plain.sites:
        plain.linear(site).weight.data.copy_(net.bases([site.proj])[site])
    assert distance(logits(net, X), logits(plain, X)) < 1e-5
    assert distance(logits(net, X), logits(network(family), X)) > 1e-3


def test_output_against_dense_numpy() -> None:
    """Blocks of 64 weights, row by row, as the nearest of the 16 values of the paper times their largest magnitude."""
    net, plain = network("vit"), network("vit")
    installed = QLoRA(label="qlora", rank=4, scale=0.5, double=False).install(net)
    perturb(list(installed.adapter().values()), 0.3)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(5))
    for site in (site for site in net.sites if site.key in ("s0.b0.q", "s0.b1.v", "s0.b1.o")):
        linear: Any = plain.linear(site)
        weight = array(linear.weight)
        cut = weight.reshape(-1, BLOCK)
        largest = np.abs(cut).max(1, keepdims=True)
        held = np.array(VALUES)[np.abs(cut[..., None] / largest[..., None] - np.array(VALUES)).argmin(-1)] * largest
        dense = held.reshape(weight.shape)
        if site.key in installed.owners:
            delta: Any = installed.owners[site.key]
            dense = dense + 0.5 * array(delta.B)[0] @ array(delta.A)[0]
        expected = array(x) @ dense.T + array(linear.bias)
        np.testing.assert_allclose(array(net.linear(site)(x)), expected, atol=1e-5)


def test_training_changes_the_adapter_only_and_a_second_phase_stands_beside(tmp_path: Path) -> None:
    both = TwoPhase(label="hs", first=composed_method("qlora"), heads=composed_method("head_lora"))
    net = network("vit")
    phases, files = train(net, both.phases(), tmp_path)
    assert [phase.num_tunable for phase in phases] == [2 * 2 * 4 * 96, 2 * 2 * 3 * (4 * 48 + 48)]
    assert phases[0].stored_bytes == 4 * phases[0].num_tunable
    assert phases[0].extra["base"]["weights"] == 2 * 12 * 48 * 48
    fresh = network("vit")
    start = fresh.state_dict()
    composed_method("qlora").install(fresh)
    codes = {site: module for site in fresh.sites if isinstance(module := fresh.linear(site), FourBit)}
    for site, module in codes.items():
        now = net.linear(site)
        assert isinstance(module, NF4Linear) and isinstance(now, NF4Linear)
        assert torch.equal(now.codes, module.codes)
    q = net.linear(net.sites[0])
    assert isinstance(q, BesideLinear) and isinstance(q.module, BesideLinear) and isinstance(q.module.module, FourBit)
    names = [name for name in start if name in net.state_dict() and "head" not in name]
    assert "model.blocks.0.norm1.weight" in names
    assert all(torch.equal(start[name], net.state_dict()[name]) for name in names)
    again = network("vit")
    repeated, _ = train(again, both.phases(), tmp_path)  # both phases from the store
    assert repeated == phases
    assert torch.equal(logits(again, X), logits(net, X))
    assert len(files) == 2


def test_what_is_settled_no_longer_drops() -> None:
    net = network("vit")
    installed = QLoRA(label="qlora", rank=4, dropout=0.5).install(net)
    perturb(list(installed.trainable().values()))
    net.train()
    with torch.no_grad():
        assert not torch.equal(net(X), net(X))
        installed.merge()
        net.train()
        assert torch.equal(net(X), net(X))


def test_it_cannot_be_exported_and_says_so() -> None:
    net = network("vit")
    installed = composed_method("qlora").install(net)
    with pytest.raises(CheckpointError, match=r"4-bit projection.*use headwise\.load\(run_dir\)"):
        installed.merge()
        net.export_state_dict()


@each(
    "name, message",
    [
        ("pissa", "reads the dense base weight"),
        ("dora", "reads the dense base weight"),
        ("cara", "updates the bias too, which needs a dense projection"),
        ("peft_lora", "s0.b0.q is a BesideLinear, which peft cannot adapt"),
    ],
)
def test_methods_that_need_a_dense_weight_are_refused(name: str, message: str) -> None:
    net = network("vit")
    composed_method("qlora").install(net).merge()
    with pytest.raises(ConfigError, match=message):
        composed_method(name).install(net)


def test_it_does_not_quantise_under_another_update() -> None:
    net = network("vit")
    LoRA(label="lora", rank=2).install(net)
    assert isinstance(net.linear(net.sites[0]), AdaptedLinear)
    with pytest.raises(ConfigError, match=r"s0\.b0\.q already carries a delta; merge it before"):
        composed_method("qlora").install(net)
    with pytest.raises(ConfigError, match="unknown 4-bit base 'fp4'"):
        QLoRA(label="qlora", rank=4, base="fp4").install(network("vit"))
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.48 for s0\.b0\.q with 1 row group\(s\), got 49"):
        QLoRA(label="qlora", rank=49).install(network("vit"))


def test_bitsandbytes_as_the_base() -> None:
    pytest.importorskip("bitsandbytes")
    nets = [network("vit") for _ in range(2)]
    for net, base in zip(nets, ("nf4", "bitsandbytes"), strict=True):
        torch.manual_seed(0)
        installed = QLoRA(label="qlora", rank=4, base=base).install(net)
        perturb(list(installed.trainable().values()))
        assert all(isinstance(net.linear(s), FourBit | BesideLinear) for s in net.sites)
        net(X).sum().backward()
    assert distance(logits(nets[0], X), logits(nets[1], X)) < 0.05


def beside(second: Method) -> tuple[Any, Any]:
    """A tiny ViT in 4 bits that carries `second`, moved, in training mode."""
    net = network("vit")
    QLoRA(label="qlora", rank=4).install(net).merge()
    installed: Any = second.install(net)
    perturb(list(installed.trainable().values()), 0.2)
    return net.train(), installed


@each("frozen", [False, True])
def test_dylora_beside_4_bits_works_at_the_drawn_rank(frozen: bool) -> None:
    net, installed = beside(DyLoRA(label="dylora", rank=8, alpha=8.0, frozen=frozen))
    outputs = []
    for rank in (1, 3, 8):
        installed.more[0].drawn.rank = rank  # type: ignore[attr-defined]
        net.zero_grad()
        y = net(X)
        y.sum().backward()
        outputs.append(y.detach())
        (grad,) = installed.owners["s0.b0.q"].A.grad
        touched = (grad != 0).any(1).nonzero().flatten().tolist()
        assert touched == ([rank - 1] if frozen else list(range(rank)))
    assert distance(outputs[0], outputs[1]) > 1e-3 < distance(outputs[1], outputs[2])
    assert distance(logits(net, X), outputs[2]) < 1e-5


@each("name", ["fact_tt", "fact_tk", "lora"])
def test_dropout_beside_4_bits(name: str) -> None:
    net, _ = beside(dataclasses.replace(composed_method(name), dropout=0.5))
    with torch.no_grad():
        assert distance(net(X), net(X)) > 1e-3
        net.eval()
        assert torch.equal(net(X), net(X))

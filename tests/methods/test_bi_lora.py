"""Bi-LoRA: sizes of the paper, exact storage, and what its options change."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from made_native import array
from torch import Tensor

from headwise.errors import CheckpointError, ConfigError
from headwise.methods.base import Installed
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.lora import LoRA
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site
from made_cases import each
from made_networks import distance, images, logits, network, perturb

VIT_B = [Site(0, block, proj, 12, 64) for block in range(12) for proj in "qv"]
MIB = 2**20


def stored_bytes(off: int, **options: Any) -> int:
    """Bytes of q and v of ViT-B/16 with `off` heads off in each."""
    method = BiLoRA(label="bi", **options)
    base = torch.zeros(768, 768)
    active = (torch.arange(12) >= off).float()
    total = 0
    for site in VIT_B:
        delta = method.build(site, base)
        delta.switch(active)
        total += sum(tensor.nbytes for tensor in delta.pack().values())
    return total


def test_sizes_on_vit_b() -> None:
    """147,840 bytes as published (0.1410 MiB); heads that are off leave out their rows of B only."""
    assert stored_bytes(0) == 147_840
    sizes = {off: stored_bytes(off) for off in (1, 3, 6)}
    assert {off: size / MIB for off, size in sizes.items()} == pytest.approx({1: 0.135, 3: 0.123, 6: 0.106}, abs=5e-4)
    for off, size in sizes.items():
        mask = 2 * len(VIT_B)
        assert size == 147_840 - len(VIT_B) * off * 64 * 32 // 8 + mask


@each("options, expected", [({"rank": 1}, 4_992), ({"bits": 2}, 295_296), ({"bits": 32}, None)])
def test_sizes_of_variants(options: dict[str, Any], expected: int | None) -> None:
    """Rank 1: 4,992 bytes as published; 32 bits: 4 bytes for each of 1,179,648 numbers."""
    assert stored_bytes(0, **options) == (expected or 4 * 1_179_648)


def test_start() -> None:
    """A as nn.Linear (std 0.0208, quantised 0.0141), B normal 0.001 cut at 0.002 (std 0.00088, quantised 0.00059)."""
    torch.manual_seed(0)
    delta = BiLoRA(label="bi").build(VIT_B[0], torch.zeros(768, 768))
    assert isinstance(delta, LowRank)
    delta.requires_grad_(False)
    assert float(delta.A.std()) == pytest.approx(0.0208, abs=2e-4)
    assert float(delta.B.std()) == pytest.approx(0.00088, abs=1e-5)
    assert float(delta.B.abs().max()) <= 0.002
    down, up = delta.values()
    assert float(down.abs().mean()) == pytest.approx(0.0141, abs=2e-4)
    assert float(up.abs().mean()) == pytest.approx(0.00059, abs=1e-5)


def installed(method: BiLoRA, off: int = 0) -> tuple[Any, Installed]:
    net = network("vit")
    torch.manual_seed(0)
    found = method.install(net)
    perturb(list(found.trainable().values()))
    for delta in found.owners.values():
        assert isinstance(delta, LowRank)
        delta.switch((torch.arange(4) >= off).float())
    return net.eval(), found


@each("options", [{"bits": 1}, {"bits": 2, "codebook": "kmeans"}, {"bits": 8}, {"bits": 32}])
@each("stats", ["all", "active_rows"])
@each("off", [0, 1, 3])
def test_what_is_stored_gives_the_same_logits(options: dict[str, Any], stats: str, off: int) -> None:
    method = BiLoRA(label="bi", rank=5, stats=stats, **options)
    net, found = installed(method, off)
    stored = found.packed()
    fresh, again = installed(method)
    again.unpack(stored)
    assert torch.equal(logits(fresh, images()), logits(net, images()))
    packed = again.packed()
    assert packed.keys() == stored.keys()
    assert all(torch.equal(packed[name], tensor) for name, tensor in stored.items())
    again.merge()
    assert distance(logits(fresh, images()), logits(net, images())) <= 1e-5


def test_a_stored_file_of_another_shape_is_refused() -> None:
    method = BiLoRA(label="bi", rank=5)
    _, found = installed(method, 1)
    stored = found.packed()
    name = "s0.b0.q.B.codes"
    for broken, message in (
        ({**stored, name: stored[name][:-1]}, r"B.codes is \(22,\) in the file, \(23,\) here"),
        ({**stored, "s0.b0.q.A.stats": torch.zeros(3)}, r"A.stats is \(3,\) in the file, \(2,\) here"),
        ({key: tensor for key, tensor in stored.items() if key != name}, f"missing .*{name}"),
    ):
        with pytest.raises(CheckpointError, match=message):
            refuse(method, broken)


def refuse(method: BiLoRA, tensors: Mapping[str, Tensor]) -> None:
    installed(method)[1].unpack(tensors)


def test_32_bits_is_lora() -> None:
    nets = []
    for method in (BiLoRA(label="bi", rank=4, bits=32, dropout=0.0), LoRA(label="lora", rank=4)):
        net = network("vit")
        torch.manual_seed(0)
        perturb(list(method.install(net).trainable().values()))
        nets.append(logits(net, images()))
    assert torch.equal(*nets)


def one_bit(latent: Tensor) -> Any:
    """0.67449 deviations above or below the mean; the deviation over n - 1."""
    w = array(latent)
    return w.mean() + w.std(ddof=1) * np.where(w > w.mean(), 1.0, -1.0) * NormalDist().inv_cdf(0.75)


def test_update_is_the_product_of_one_bit_factors() -> None:
    net, found = installed(BiLoRA(label="bi", rank=5, scale=2.0))
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(5))
    for block in (0, 1):
        for proj in "qv":
            site = next(site for site in net.sites if site.key == f"s0.b{block}.{proj}")
            linear, delta = net.linear(site), found.owners[site.key]
            update = 2.0 * one_bit(delta.B[0]) @ one_bit(delta.A[0])
            np.testing.assert_allclose(array(delta.weight(linear.weight)), update, atol=1e-5)
            expected = array(x) @ (array(linear.weight) + update).T + array(linear.bias)
            np.testing.assert_allclose(array(linear(x)), expected, atol=1e-5)


def test_gradient_reaches_the_latents_through_the_fused_path() -> None:
    """The fused linear with quantised factors against autograd on the dense update."""
    method = BiLoRA(label="bi", rank=5, dropout=0.0, scale=2.0)
    (net, fused), (plain, dense) = installed(method), installed(method)
    x = images()
    for site in plain.sites:
        linear = plain.linear(site)
        if isinstance(linear, AdaptedLinear):
            plain.replace(site, Dense(linear))
    for installation, network_ in ((fused, net), (dense, plain)):
        network_(x).square().sum().backward()
        assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in installation.adapter().values())
    for name, tensor in fused.adapter().items():
        expected = dense.adapter()[name].grad
        assert distance(tensor.grad, expected) <= 1e-4 * float(expected.abs().max())


class Dense(torch.nn.Module):
    """W x + (dense update) x by ordinary operations."""

    def __init__(self, linear: AdaptedLinear) -> None:
        super().__init__()
        self.linear, self.delta = linear, linear.delta

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        return torch.nn.functional.linear(x, weight + self.delta.weight(weight), self.linear.bias)


def test_statistics_of_active_rows_free_the_others() -> None:
    """With ``all`` a head that is off still pulls the scale of the others; with ``active_rows`` it gets no gradient."""
    for stats, reaches in (("all", True), ("active_rows", False)):
        net, found = installed(BiLoRA(label="bi", rank=5, dropout=0.0, stats=stats), off=2)
        net(images()).square().sum().backward()
        delta = found.owners["s0.b0.v"]
        assert isinstance(delta, LowRank)
        assert delta.B.grad is not None
        assert bool(delta.B.grad[0, :24].any()) == reaches
        assert bool(delta.B.grad[0, 24:].any())


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="bits of method 'bi' must be one of 1, 2, 4, 8, 32, got 3"):
        BiLoRA(label="bi", bits=3)
    with pytest.raises(ConfigError, match="unknown codebook 'median'"):
        BiLoRA(label="bi", codebook="median")
    with pytest.raises(ConfigError, match="unknown stats 'rows'"):
        BiLoRA(label="bi", stats="rows")

"""LoRA-GA: the paper's formula in numpy, the first step, storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_native import array, build, vit_b16

from headwise.errors import ConfigError
from headwise.methods.lora_ga import LoRAGA, gradient_start
from made_networks import batches, distance, images, logits, network


def lora_ga(**fields: Any) -> LoRAGA:
    return LoRAGA(**{"label": "lora_ga", "rank": 4, **fields})


def gradients(net: Any, sites: list[Any]) -> list[Any]:
    """Mean over the batches, in numpy."""
    weights = [net.linear(site).weight.requires_grad_(True) for site in sites]
    net.train()
    rows = [torch.autograd.grad(F.cross_entropy(net(x), y), weights) for x, y in batches()()]
    return [np.mean([array(row[index]) for row in rows], axis=0) for index in range(len(sites))]


def test_starts_by_the_papers_formula_and_at_the_pretrained_network() -> None:
    net, method = network("vit"), lora_ga(scale=2.0, gamma=9.0)
    before, flags = logits(net, images()), [p.requires_grad for p in net.parameters()]
    plan = method.prepare(net, batches(), 10)
    assert plan == {"batches": len(list(batches()())), "images": sum(len(y) for _, y in batches()())}
    assert not net.training
    assert [p.requires_grad for p in net.parameters()] == flags
    installed = method.install(net, plan)
    assert distance(logits(net, images()), before) <= 1e-5
    plain = network("vit")
    sites = [site for site in plain.sites if site.proj in ("q", "v")]
    for site, gradient in zip(sites, gradients(plain, sites), strict=True):
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        factor = gradient.shape[0] ** 0.25 / 9.0**0.5
        delta: Any = installed.owners[site.key]
        down, up = array(delta.A)[0], array(delta.B)[0]
        assert delta.constant == 2.0
        np.testing.assert_allclose(np.linalg.norm(down, axis=1), factor, rtol=1e-5)
        np.testing.assert_allclose(np.abs(np.sum(down * right[:4], axis=1)), factor, rtol=1e-3)
        np.testing.assert_allclose(np.abs(np.sum(up * left[:, 4:8], axis=0)), factor, rtol=1e-2)


def test_the_first_step_goes_along_the_gradient() -> None:
    """B dA + dB A, with dB = G A' and dA = B' G, is the best approximation of the gradient of rank 2 R."""
    torch.manual_seed(0)
    gradient = torch.randn(24, 16, dtype=torch.float64)
    down, up = gradient_start(gradient, 3, gamma=16.0)
    step = (up @ up.T @ gradient + gradient @ down.T @ down) / (24**0.5 / 16.0)
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    torch.testing.assert_close(step, (left[:, :6] * values[:6]) @ right[:6])


def test_count_and_refusals() -> None:
    method = build("lora_ga", "rank=r16")
    assert method.count(network("vit")) == 2 * 2 * 16 * (48 + 48)
    assert method.count(vit_b16()) == 12 * 2 * 16 * (768 + 768) == 589_824
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.24 for s0\.b0\.q: LoRA-GA starts from 2 r"):
        lora_ga(rank=25).rehearse(network("vit"))
    with pytest.raises(ConfigError, match="needs the plan that its prepare"):
        lora_ga().install(network("vit"))

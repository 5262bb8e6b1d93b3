"""MLAE: its formula, its masks, and what it merges."""

from __future__ import annotations

import numpy as np
import torch
from made_native import array
from torch import nn

from headwise.methods.mlae import MLAE, ExpertsDelta
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.sites import Site
from made_networks import perturb

SITE = Site(0, 0, "q", 2, 4, 8)


def moved(drop: float) -> tuple[nn.Linear, ExpertsDelta, AdaptedLinear]:
    torch.manual_seed(0)
    linear = nn.Linear(6, 8)
    delta = ExpertsDelta(SITE, linear.weight, 3, 2.0, drop)
    assert torch.equal(delta.coefficients, torch.full((3,), 2.0))
    assert not delta.weight(linear.weight).any()
    perturb(list(delta.parameters()), 0.5)
    return linear, delta, AdaptedLinear.around(linear, delta)


def test_every_expert_is_a_rank_one_matrix_with_its_coefficient() -> None:
    linear, delta, layer = moved(0.5)
    down, up, weights = (array(t) for t in (delta.A[0], delta.B[0], delta.coefficients))
    expected = sum(weights[j] * np.outer(up[:, j], down[j]) for j in range(3))
    np.testing.assert_allclose(array(delta.weight(linear.weight)), expected, atol=1e-6)
    x = torch.randn(5, 6)
    plain = array(x) @ (array(linear.weight) + expected).T + array(linear.bias)
    np.testing.assert_allclose(array(layer.eval()(x)), plain, atol=1e-5)
    np.testing.assert_allclose(array(layer.train().merged()(x)), plain, atol=1e-5)


def test_in_training_whole_experts_are_left_out() -> None:
    linear, delta, layer = moved(0.5)
    x, seen = torch.randn(5, 6), set()
    parts = [(delta.coefficients[j] * torch.outer(delta.B[0, :, j], delta.A[0, j])).detach() for j in range(3)]
    with torch.no_grad():
        for seed in range(40):
            torch.manual_seed(seed)
            added = layer(x) - nn.functional.linear(x, linear.weight, linear.bias)
            masks = [
                bits
                for bits in np.ndindex(2, 2, 2)
                if torch.allclose(added, x @ sum(2.0 * b * p for b, p in zip(bits, parts, strict=True)).T, atol=1e-5)
            ]
            assert len(masks) == 1
            seen.add(masks[0])
    assert len(seen) > 4


def test_its_defaults() -> None:
    assert MLAE(label="mlae", rank=8).targets == ("q", "k", "v")

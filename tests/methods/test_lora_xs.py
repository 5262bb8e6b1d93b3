"""LoRA-XS: the formula in numpy, the start, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_native import array, build
from torch import nn

from headwise.errors import ConfigError
from headwise.methods.lora_xs import LoRAXSDelta
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.sites import Site
from made_networks import network, perturb

SITE = Site(0, 0, "q", 4, 12)


def linear() -> nn.Linear:
    """A frozen projection from 40 inputs to 4 heads of 12."""
    torch.manual_seed(0)
    return nn.Linear(40, 48).requires_grad_(False)


def test_the_formula() -> None:
    """By an eigendecomposition of W' W: its eigenvectors are V, and B R A is U_r R U_r' W."""
    weight = array(linear().weight)
    delta = LoRAXSDelta(SITE, linear().weight, rank=5, scale=0.7)
    perturb([delta.R], 0.5)
    left = np.linalg.eigh(weight @ weight.T)[1][:, ::-1][:, :5]
    signs = np.sign((left * array(delta.B[0])).sum(0))  # eigenvectors are unique up to their sign only
    left = left * signs
    expected = 0.7 * left @ array(delta.R) @ left.T @ weight
    np.testing.assert_allclose(array(delta.weight(linear().weight)), expected, atol=1e-5)
    x = torch.randn(3, weight.shape[1])
    y = array(x) @ (weight + expected).T + array(linear().bias)
    np.testing.assert_allclose(array(AdaptedLinear.around(linear(), delta)(x)), y, atol=1e-5)


def test_the_start_is_a_normal_of_std_1e_5() -> None:
    base = linear().weight
    values = torch.cat([LoRAXSDelta(SITE, base, rank=20).R.detach().flatten() for _ in range(20)])
    assert float(values.std()) == pytest.approx(1e-5, rel=0.05)


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.48 for s0\.b0\.q"):
        build("lora_xs", "method.rank=49").install(network("vit"))

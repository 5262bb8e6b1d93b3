"""HydraLoRA: its formula token by token, and that it stays beside its projection."""

from __future__ import annotations

import numpy as np
import torch
from made_native import array
from torch import nn

from headwise.methods.hydra_lora import HydraLoRA, RoutedDelta
from headwise.updates.sites import Site
from headwise.wrappers.settling import BesideLinear
from made_networks import images, logits, network, perturb

SITE = Site(0, 0, "q", 2, 4, 8)


def test_every_token_has_its_own_mixture_of_experts() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 8)
    delta = RoutedDelta(SITE, linear.weight, 2, 3, scale=1.5)
    x = torch.randn(4, 5, 6)
    assert not delta(x, linear.weight).any()
    perturb(list(delta.parameters()), 0.5)
    added = array(BesideLinear(linear, delta)(x) - linear(x))
    down, up, router = array(delta.A), array(delta.B), array(delta.router)
    for place in np.ndindex(4, 5):
        token = array(x)[place]
        scores = np.exp(router @ token)
        expected = 1.5 * sum(scores[i] / scores.sum() * (up[i] @ (down @ token)) for i in range(3))
        np.testing.assert_allclose(added[place], expected, atol=1e-5)


def test_it_stays_in_place_and_freezes() -> None:
    net = network("vit")
    installed = HydraLoRA(label="hydra", rank=2, num_experts=2).install(net)
    perturb(list(installed.adapter().values()), 0.1)
    before = logits(net, images())
    installed.merge()
    assert torch.equal(logits(net, images()), before)
    assert any(isinstance(module, BesideLinear) and module.settled for module in net.modules())

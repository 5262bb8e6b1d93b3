"""BOFT against peft, whose CUDA extension only lays blocks on a diagonal; and what a butterfly must keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_peft import SITE, distance, linear, ours, pass_through, peft_layer
from peft import BOFTConfig
from peft.tuners.boft import layer as boft_layer
from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods.boft import BOFT, ButterflyDelta
from made_cases import each
from made_networks import network


class StandIn:
    """What the extension computes: (N, D, b, b) to (N, D b, D b), and the gradient back."""

    def forward(self, blocks: Tensor) -> list[Tensor]:
        return [torch.stack([torch.block_diag(*each) for each in blocks])]

    def backward(self, grad: Tensor, blocks: Tensor) -> list[Tensor]:
        size = blocks.shape[-1]
        cut = grad.unflatten(1, (-1, size)).unflatten(3, (-1, size))  # (N, D, b, D, b)
        return [cut.diagonal(dim1=1, dim2=3).movedim(-1, 1)]


def pair(monkeypatch: pytest.MonkeyPatch, block: int, factors: int) -> tuple[Any, Any]:
    """peft's layer and ours with the same skew matrices and scales, drawn."""
    monkeypatch.setattr(boft_layer, "_FBD_CUDA", StandIn())
    config = BOFTConfig(boft_block_size=block, boft_n_butterfly_factor=factors, target_modules=["q"])
    theirs, delta = peft_layer(config), ButterflyDelta(SITE, linear().weight, block, factors)
    generator = torch.Generator().manual_seed(1)
    delta.Q.data = 0.3 * torch.randn(delta.Q.shape, generator=generator)
    delta.c.data += 0.1 * torch.randn(delta.c.shape, generator=generator)
    upper = torch.triu_indices(block, block, offset=1)
    full = torch.zeros(*delta.Q.shape[:2], block, block)
    full[..., upper[0], upper[1]] = 2 * delta.Q.data  # peft takes half of what is left without its transpose
    theirs.boft_R["default"].data.copy_(full)
    theirs.boft_s["default"].data.copy_(delta.c.data.unsqueeze(1))
    return theirs, ours(delta)


@each("block, factors", [(4, 1), (4, 2), (2, 3)])
def test_it_computes_what_peft_does(monkeypatch: pytest.MonkeyPatch, block: int, factors: int) -> None:
    theirs, mine = pair(monkeypatch, block, factors)
    (y, grad), (expected, expected_grad) = pass_through(mine), pass_through(theirs)
    assert distance(y, linear()(torch.zeros(40))) > 0.1
    assert distance(y, expected) < 1e-5
    assert distance(grad, expected_grad) < 1e-5


def test_columns_keep_their_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    _, mine = pair(monkeypatch, 4, 2)
    base, turned = linear().weight, mine.merged().weight / mine.delta.c.unsqueeze(1)
    assert distance(turned, base) > 0.01
    assert distance(turned @ turned.T, base @ base.T) < 1e-5


def test_an_input_meets_as_many_others_as_the_butterfly_is_wide() -> None:
    for factors in (1, 2, 3):
        delta = ButterflyDelta(SITE, torch.eye(16), 4, factors)
        delta.Q.data.normal_(generator=torch.Generator().manual_seed(0))
        met = (delta.weight(torch.eye(16)) + torch.eye(16)).abs() > 1e-6
        assert set(met.sum(0).tolist()) == {4 * 2 ** (factors - 1)}


def test_what_does_not_fit_is_refused() -> None:
    for options in ({"block": 5}, {"block": 16, "factors": 3}, {"block": 3, "factors": 2}):
        with pytest.raises(ConfigError, match="must divide its 48 inputs"):
            BOFT(label="boft", **options).install(network("vit"))

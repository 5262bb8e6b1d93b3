"""NF4 layers: the published codebook, exact round trips, error bounds, what is kept, and bitsandbytes as an oracle."""

from __future__ import annotations

import copy
import itertools
import sys
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.network.nf4 import (
    BLOCK,
    VALUES,
    BitsAndBytesLinear,
    NF4Linear,
    dequantize,
    four_bit,
    magnitudes,
    quantize,
)
from made_cases import each


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(outputs: int = 48, inputs: int = 40, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def blocks(weight: Tensor) -> Tensor:
    return F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)


def test_values_are_the_quantiles_of_the_paper() -> None:
    """QLoRA, appendix E: equal shares of a normal up to 0.9677083, seven below zero, eight above, scaled to 1."""
    top = 0.9677083
    above = [NormalDist().inv_cdf(top + (0.5 - top) * k / 8) for k in range(8)]
    below = [-NormalDist().inv_cdf(top + (0.5 - top) * k / 7) for k in range(7)]
    largest = max(above)
    assert sorted([*above, 0.0, *below]) == pytest.approx([value * largest for value in VALUES], abs=1e-6)


@each("double", [False, True])
def test_what_the_codebook_can_say_is_kept_exactly(double: bool) -> None:
    codes = torch.randint(16, (96, BLOCK), generator=torch.Generator().manual_seed(0))
    codes[:, 0] = 15
    scales = torch.full((96, 1), 0.03) if double else normal(96, 1).abs() + 0.1
    weight = torch.tensor(VALUES)[codes] * scales
    stored = quantize(weight, double)
    assert torch.equal(dequantize(stored, weight.shape), weight)
    low, high = stored.codes & 15, stored.codes >> 4
    assert torch.equal(torch.stack([low, high], 1).view(96, BLOCK), codes.to(torch.uint8))


@each("shape", [(48, 48), (7, 13), (1, 1), (130, 257)])
@each("double", [False, True])
def test_error_is_bounded(shape: tuple[int, int], double: bool) -> None:
    """Half the widest gap of the codebook, in units of the block's magnitude, and the error of that magnitude."""
    weight = normal(*shape) * torch.linspace(0.01, 3.0, shape[0])[:, None]
    weight.view(-1)[:BLOCK] = 0.0
    stored = quantize(weight, double)
    exact, used = blocks(weight).abs().amax(1), magnitudes(stored)
    gap = max(high - low for low, high in itertools.pairwise(VALUES)) / 2
    error = (blocks(weight) - blocks(dequantize(stored, shape))).abs()
    assert (error <= (gap * exact + (used - exact).abs())[:, None] + 1e-6).all()
    if double:
        unit = stored.spread[1:].repeat_interleave(256)[: len(exact)]
        assert ((used - exact).abs() <= unit / 16 + 1e-6).all()
    else:
        assert torch.equal(used, exact)
        assert not dequantize(stored, shape).view(-1)[:BLOCK].any()


def test_bytes_per_weight() -> None:
    layers = [NF4Linear(nn.Linear(768, 768), double) for double in (False, True)]
    codes, scales = 768 * 768 // 2, 768 * 768 // BLOCK
    assert [layer.num_bytes for layer in layers] == [codes + 4 * scales, codes + scales + 4 * (1 + scales // 256)]
    assert [round(8 * layer.num_bytes / 768**2, 3) for layer in layers] == [4.5, 4.127]


@each("bias", [False, True])
def test_it_is_a_linear_of_its_dense_weight(bias: bool) -> None:
    layer = NF4Linear(linear(bias=bias))
    outputs = []
    for weight in (None, layer.dense()):
        x = normal(2, 3, 40).requires_grad_()
        if layer.bias is not None:
            layer.bias.requires_grad_().grad = None
        y = layer(x) if weight is None else F.linear(x, weight, layer.bias)
        (y * normal(2, 3, 48, seed=1)).sum().backward()
        assert x.grad is not None
        outputs.append([y.detach(), x.grad, *([layer.bias.grad] if layer.bias is not None else [])])
    for ours, plain in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_no_dense_weight_is_kept_for_the_backward_pass() -> None:
    layer, kept = NF4Linear(linear()), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(normal(2, 40).requires_grad_())
    assert kept
    assert max(tensor.numel() for tensor in kept if tensor.is_floating_point()) < 48 * 40


def test_types_follow_the_input_and_autocast() -> None:
    layer, x = NF4Linear(linear()), normal(2, 40)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.03)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_unknown_and_missing_bases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"unknown 4-bit base 'nf5' \(did you mean 'nf4'\?\); allowed: bitsandbytes"):
        four_bit(linear(), "nf5")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"needs that package .* or take base=nf4"):
        four_bit(linear(), "bitsandbytes")


@each("double", [False, True])
def test_bitsandbytes_holds_the_same_weights(double: bool) -> None:
    pytest.importorskip("bitsandbytes")
    ours, theirs = (four_bit(linear(), kind, double) for kind in ("nf4", "bitsandbytes"))
    coarse = 0.03 if double else 1e-7  # the magnitudes' 8-bit floats are of another kind there
    assert (ours.dense() - theirs.dense()).abs().max() <= coarse * ours.dense().abs().max()
    results = []
    for layer in (ours, theirs, copy.deepcopy(theirs)):
        x = normal(2, 3, 40).requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(y, F.linear(x, layer.dense(), linear().bias), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(x.grad, layer.dense().sum(0).expand(2, 3, -1), rtol=1e-4, atol=1e-5)
        results.append(y.detach())
    assert torch.equal(results[1], results[2])
    assert theirs.num_bytes == ours.num_bytes


def test_the_magnitudes_of_bitsandbytes_move_with_its_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    class State:
        def to(self, device: torch.device) -> None:
            self.device = device

    library = SimpleNamespace(
        functional=SimpleNamespace(
            quantize_4bit=lambda weight, **_: (weight.to(torch.uint8), State()), dequantize_4bit=lambda *_: None
        ),
        matmul_4bit=lambda *_: None,
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    layer = four_bit(linear(), "bitsandbytes")
    assert isinstance(layer, BitsAndBytesLinear)
    nn.Sequential(layer).to("meta")
    assert layer.packed.device == layer.state.device == torch.device("meta")

"""DoRA: agreement with peft, the constant norm, no decay of magnitudes, and sizes."""

from __future__ import annotations

import torch
from made_peft import SITE, distance, linear, ours, pass_through, peft_layer
from peft import LoraConfig

from headwise.methods.dora import DoRADelta
from made_networks import perturb


def test_agrees_with_peft_forward_and_backward() -> None:
    theirs = peft_layer(LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["q"]))
    magnitude = theirs.lora_magnitude_vector["default"].weight
    delta = DoRADelta(SITE, linear().weight, rank=4, scale=1.5)
    assert distance(delta.magnitude, magnitude) < 1e-6
    adapted = ours(delta)
    perturb([delta.A, delta.B, delta.magnitude], size=0.1)
    theirs.lora_A["default"].weight.data.copy_(delta.A.data[0])
    theirs.lora_B["default"].weight.data.copy_(delta.B.data[0])
    magnitude.data.copy_(delta.magnitude.data)
    (y, gx), (z, gz) = pass_through(adapted), pass_through(theirs)
    assert distance(y, z) < 1e-5
    assert distance(gx, gz) < 1e-5
    assert delta.A.grad is not None and delta.B.grad is not None and delta.magnitude.grad is not None
    assert distance(delta.A.grad[0], theirs.lora_A["default"].weight.grad) < 1e-5
    assert distance(delta.B.grad[0], theirs.lora_B["default"].weight.grad) < 1e-5
    assert distance(delta.magnitude.grad, magnitude.grad) < 1e-5


def test_norm_equals_that_of_the_dense_weight_and_carries_no_gradient() -> None:
    weight = linear().weight
    delta = DoRADelta(SITE, weight, rank=4, scale=3.0)
    perturb([delta.A, delta.B], size=0.3)
    dense = (weight.double() + 3.0 * delta.B[0].double() @ delta.A[0].double()).norm(dim=1).detach()
    assert float((delta.norm(weight) / dense - 1.0).abs().max()) < 1e-6
    assert not delta.norm(weight).requires_grad


def test_rows_of_the_adapted_weight_have_the_trained_magnitudes() -> None:
    weight = linear().weight
    delta = DoRADelta(SITE, weight, rank=4)
    perturb([delta.A, delta.B], size=0.3)
    assert distance((weight + delta.weight(weight)).norm(dim=1), delta.magnitude) < 1e-5


def test_masked_heads_are_pretrained_heads() -> None:
    weight = linear().weight
    delta = DoRADelta(SITE, weight, rank=4)
    perturb([delta.A, delta.B, delta.magnitude], size=0.1)
    delta.active[2] = 0.0
    adapted = ours(delta)
    y, _ = pass_through(adapted)
    plain, _ = pass_through(linear().requires_grad_(True))
    rows = slice(2 * SITE.head_dim, 3 * SITE.head_dim)
    assert distance(y[..., rows], plain[..., rows]) < 1e-6
    assert distance(y[..., : rows.start], plain[..., : rows.start]) > 1e-2
    assert delta.magnitude.grad is not None and delta.B.grad is not None
    assert not delta.magnitude.grad[rows].any() and not delta.B.grad[0, rows].any()
    assert distance(adapted.merged()(torch.eye(40)), adapted(torch.eye(40))) < 1e-5


def test_magnitudes_are_not_rounded_in_bfloat16() -> None:
    delta = DoRADelta(SITE, linear().weight, rank=4)
    adapted, x = ours(delta), torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    adapted.bias = None

    def narrow() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y: torch.Tensor = adapted(x)
        assert y.dtype == torch.bfloat16
        return y.double()

    before = narrow()
    delta.magnitude.data.mul_(1.0059)  # bfloat16 has 1.0 and 1.0078
    ratio = (narrow() * before).sum() / before.square().sum()
    assert abs(float(ratio) - 1.0059) < 5e-4

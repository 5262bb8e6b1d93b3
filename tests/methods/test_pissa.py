"""PiSSA: agreement with peft, the start, storage, and sizes."""

from __future__ import annotations

import pytest
import torch
from made_peft import SITE, distance, linear, ours, pass_through, peft_layer
from peft import LoraConfig

from headwise.errors import ConfigError
from headwise.methods.pissa import PiSSA, pissa_delta
from made_cases import each
from made_networks import images, logits, network, perturb


@each("alpha, scale", [(4, 1.0), (8, 2.0)])
def test_agrees_with_peft_forward_and_backward(alpha: int, scale: float) -> None:
    theirs = peft_layer(LoraConfig(r=4, lora_alpha=alpha, init_lora_weights="pissa", target_modules=["q"]))
    down, up = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    delta = pissa_delta(SITE, linear().weight, rank=4, scale=scale)
    assert distance(delta.B0[0] @ delta.A0[0], up @ down) < 1e-5
    for mine, other in ((delta.A, down), (delta.B, up), (delta.A0, down), (delta.B0, up)):
        mine.data.copy_(other.data[None])  # singular vectors are unique up to their sign only
    adapted = ours(delta)
    perturb([delta.A, delta.B])
    down.data.copy_(delta.A.data[0])
    up.data.copy_(delta.B.data[0])
    (y, gx), (z, gz) = pass_through(adapted), pass_through(theirs)
    assert distance(y, z) < 1e-5
    assert distance(gx, gz) < 1e-5
    assert delta.A.grad is not None and delta.B.grad is not None
    assert distance(delta.A.grad[0], down.grad) < 1e-4
    assert distance(delta.B.grad[0], up.grad) < 1e-4


def test_start_is_the_best_low_rank_approximation() -> None:
    weight = linear().weight
    delta = pissa_delta(SITE, weight, rank=5)
    rest = weight - delta.B0[0] @ delta.A0[0]
    values = torch.linalg.svdvals(weight)
    assert float(rest.norm()) == pytest.approx(float(values[5:].norm()), rel=1e-5)
    assert float(delta.weight(weight).detach().abs().max()) < 1e-6


def test_masked_heads_are_pretrained_heads() -> None:
    weight = linear().weight
    delta = pissa_delta(SITE, weight, rank=4)
    perturb([delta.A, delta.B])
    delta.active[1] = 0.0
    update = delta.weight(weight).unflatten(0, (4, -1))
    assert not update[1].any() and update[0].any()
    pass_through(ours(delta))
    assert delta.B.grad is not None
    assert not delta.B.grad[0].unflatten(0, (4, -1))[1].any()


def test_stores_the_start_and_reloads_exactly() -> None:
    method = PiSSA(label="pissa", rank=4)
    net, x = network("vit"), images()
    installed = method.install(net)
    perturb(list(installed.trainable().values()))
    stored, want = installed.packed(), logits(net, x)
    assert {name.rpartition(".")[2] for name in stored if name.startswith("s0.b0.q")} == {"A", "B", "A0", "B0"}
    assert installed.stored_bytes() == 2 * 4 * sum(t.numel() for t in installed.adapter().values())
    again = network("vit")
    reloaded = method.install(again)
    for delta in reloaded.owners.values():  # as if another machine had found other singular vectors
        delta.A0.mul_(-1.0)
        delta.B0.mul_(0.5)
    reloaded.unpack(stored)
    assert distance(logits(again, x), want) == 0.0


def test_refuses_a_scale_that_is_not_positive() -> None:
    with pytest.raises(ConfigError, match=r"scale must be positive for s0\.b0\.q, got -1\.0"):
        PiSSA(label="pissa", rank=4, scale=-1.0).install(network("vit"))

"""LoRA: agreement with peft, sizes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from made_peft import SITE, distance, linear, ours, pass_through, peft_layer
from peft import LoraConfig

from headwise.errors import ConfigError
from headwise.methods.adaptformer import AdaptFormer
from headwise.methods.fact import FacT
from headwise.methods.lora import LoRA
from headwise.methods.repadapter import RepAdapter
from headwise.updates.lowrank import LowRank
from made_cases import each
from made_networks import images, logits, network, perturb


def test_agrees_with_peft_forward_and_backward() -> None:
    theirs = peft_layer(LoraConfig(r=4, lora_alpha=6, target_modules=["q"]))
    delta = LowRank(SITE, linear().weight, rank=4, scale=1.5)
    mine = ours(delta)
    perturb([delta.A, delta.B])
    theirs.lora_A["default"].weight.data.copy_(delta.A.data[0])
    theirs.lora_B["default"].weight.data.copy_(delta.B.data[0])
    (y, gx), (z, gz) = pass_through(mine), pass_through(theirs)
    assert distance(y, z) < 1e-5
    assert distance(gx, gz) < 1e-5
    assert delta.A.grad is not None and delta.B.grad is not None
    assert distance(delta.A.grad[0], theirs.lora_A["default"].weight.grad) < 1e-5
    assert distance(delta.B.grad[0], theirs.lora_B["default"].weight.grad) < 1e-5
    assert distance(mine.merged().weight - linear().weight, theirs.get_delta_weight("default")) < 1e-6


def test_starts_as_peft_draws_it() -> None:
    delta = LowRank(SITE, linear().weight, rank=4)
    bound = linear().weight.shape[1] ** -0.5
    down = delta.A.detach()
    assert float(down.abs().max()) <= bound
    assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.2)
    assert not delta.B.any()


def test_fused_shares_a_between_projections_and_stores_it_once() -> None:
    net = network("vit")
    installed = LoRA(label="lora", rank=4, targets=["q", "k", "v"], fused=True).install(net)
    stored = installed.packed()
    assert sum(name.endswith(".A") for name in stored) == 2
    perturb(list(installed.trainable().values()))
    want, stored = logits(net, images()), installed.packed()
    again = network("vit")
    LoRA(label="lora", rank=4, targets=["q", "k", "v"], fused=True).install(again).unpack(stored)
    assert distance(logits(again, images()), want) == 0.0


def test_refuses_a_rank_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.48 for s0\.b0\.q with 1 row group\(s\), got 49"):
        LoRA(label="lora", rank=49).install(network("vit"))


@each("scale", [0, 0.0, float("nan"), float("inf")])
@each("kind", [LoRA, FacT, RepAdapter, AdaptFormer])
def test_refuses_a_scale_that_trains_nothing(kind: Any, scale: float) -> None:
    sizes = {FacT: {"kind": "tt", "rank": 4}, LoRA: {"rank": 4}}.get(kind, {"hidden": 4})
    with pytest.raises(ConfigError, match=f"scale of method 'x' must be a finite number other than 0, got {scale}"):
        kind(label="x", scale=scale, **sizes)


def test_refuses_fused_without_all_three_projections() -> None:
    with pytest.raises(ConfigError, match=r"fused LoRA adapts q, k and v together, got targets=\['q', 'v'\]"):
        LoRA(label="lora", rank=4, fused=True).install(network("vit"))


def test_lora_keeps_its_address_beside_lora_plus_and_lora_fa() -> None:
    """Results of before they were fields must be recognised."""
    plain = LoRA(label="lora", rank=4).spec()
    assert not {"lr_ratio", "freeze_a"} & plain.keys()
    assert LoRA(label="a", rank=4, lr_ratio=16).spec() == {**plain, "lr_ratio": 16}
    assert LoRA(label="a", rank=4, freeze_a=True).spec() == {**plain, "freeze_a": True}


def test_a_frozen_a_is_shared_stored_and_never_trained() -> None:
    net = network("vit")
    installed = LoRA(label="fa", rank=4, targets=("q", "k", "v"), fused=True, freeze_a=True).install(net)
    down = installed.owners["s0.b0.q"].A
    assert all(installed.owners[f"s0.b0.{name}"].A is down for name in "kv")
    assert not down.requires_grad
    assert {name for name in installed.packed() if name.endswith(".A")} == {"s0.b0.q.A", "s0.b1.q.A"}

"""Head-Specific LoRA: agreement with peft's block-diagonal LoRA, sizes, and two phases over any first phase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from made_peft import HEADS, INPUTS, O_SITE, SITE, WIDTH, distance, linear, ours, pass_through, peft_layer
from omegaconf import OmegaConf
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig
from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods.hs_lora import HeadLoRA, TwoPhase
from headwise.protocol.filling import fill_gates
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site
from headwise.wrappers.settling import BesideLinear
from headwise.wrappers.wrapping import Wrapper
from made_cases import each
from made_networks import SIZES, compose_config, composed_method, images, logits, network, perturb
from made_phases import FEW
from made_runs import train

RANK = 3


def stacked(blocks: Tensor) -> Tensor:
    """(H, n, R) as (H n, R)."""
    return blocks.flatten(0, 1)


def beside(blocks: Tensor) -> Tensor:
    """(H, O, R) as (O, H R)."""
    return torch.cat(tuple(blocks), dim=1)


@each(
    "site, blocks, wide",
    [
        (SITE, BdLoraConfig(target_modules_bd_b=["q"], nblocks=HEADS), stacked),
        (O_SITE, BdLoraConfig(target_modules_bd_a=["q"], nblocks=HEADS), beside),
    ],
)
def test_agrees_with_pefts_block_diagonal_lora_forward_and_backward(
    site: Site, blocks: BdLoraConfig, wide: Callable[[Tensor], Tensor]
) -> None:
    rank = HEADS * RANK
    theirs = peft_layer(LoraConfig(r=rank, lora_alpha=rank, use_bdlora=blocks, target_modules=["q"]))
    down, up = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    delta = LowRank(site, linear().weight, rank=RANK, groups=HEADS)
    mine = ours(delta)
    perturb([delta.A, delta.B])
    assert {down.shape, up.shape} == {stacked(delta.A).shape, wide(delta.B).shape}
    down.data.copy_(stacked(delta.A.data))
    up.data.copy_(wide(delta.B.data))
    (y, gx), (z, gz) = pass_through(mine), pass_through(theirs)
    assert distance(y, z) < 1e-5
    assert distance(gx, gz) < 1e-5
    assert delta.A.grad is not None and delta.B.grad is not None
    assert distance(stacked(delta.A.grad), down.grad) < 1e-5
    assert distance(wide(delta.B.grad), up.grad) < 1e-5


def test_on_o_a_head_reads_its_columns_alone() -> None:
    weight = linear().weight
    torch.manual_seed(0)
    delta = LowRank(O_SITE, weight, rank=RANK, groups=HEADS, scale=2.0)
    assert delta.A.shape == (HEADS, RANK, INPUTS // HEADS)
    assert delta.B.shape == (HEADS, WIDTH, RANK)
    assert 0.9 * (INPUTS // HEADS) ** -0.5 < float(delta.A.detach().abs().max()) <= (INPUTS // HEADS) ** -0.5
    assert not delta.B.any()
    perturb([delta.A, delta.B], size=0.5)
    want = torch.cat([2.0 * up @ down for up, down in zip(delta.B, delta.A, strict=True)], dim=1)
    assert distance(delta.weight(weight), want) < 1e-5
    parts = O_SITE.head_parts(want)
    delta.switch(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    left = O_SITE.head_parts(delta.weight(weight))
    assert [bool(part.any()) for part in left] == [True, False, True, False]
    assert distance(left[::2], parts[::2]) < 1e-5


def test_on_o_a_rank_is_bounded_by_the_columns_of_a_head() -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.10 for s0\.b0\.o with 4 column group\(s\), got 11"):
        LowRank(O_SITE, linear().weight, rank=11, groups=HEADS)


def test_rank_per_head_is_bounded_by_the_rows_of_a_head() -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.12 for s0\.b0\.q with 4 row group\(s\), got 13"):
        HeadLoRA(label="heads", rank=13).install(network("vit"))


FIRST = [name for name in FEW if "/" not in name and not name.startswith("hs_")]
"""Of one phase, one of each way to take hold of a network."""


@pytest.mark.parametrize("first", FIRST)
def test_second_phase_stands_on_every_kind_by_merging_or_by_freezing(first: str, tmp_path: Path) -> None:
    cfg = compose_config("method=hs_lora", f"method@method.first={first}", "rank=r4", "ne=quarter", *sizes_of(first))
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    both = instantiate(fill_gates(plain["method"], plain["ne"]), _convert_="all")
    net, x = network("vit"), images()
    phases, _ = train(net, both.phases(), tmp_path, epochs=2)
    assert [phase.label for phase in phases] == [first, "head_lora"]
    assert phases[1].num_tunable == 2 * 2 * 3 * (4 * 48 + 48)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    left = [module for module in net.modules() if isinstance(module, Wrapper | BesideLinear | AdaptedLinear)]
    assert bool(left) != both.first.merges
    again = network("vit")
    repeated, _ = train(again, both.phases(), tmp_path, epochs=2)  # both phases from the store
    assert [phase.accuracy for phase in repeated] == [phase.accuracy for phase in phases]
    assert distance(logits(again, x), logits(net, x)) < 1e-6


def sizes_of(first: str) -> list[str]:
    """Overrides of a first phase that tiny networks need."""
    return [override.replace("method.", "method.first.", 1) for override in SIZES.get(first, ())]


def test_phases_must_be_single() -> None:
    heads = composed_method("head_lora")
    with pytest.raises(ConfigError, match=r"method\.first must be a single-phase method, got TwoPhase"):
        TwoPhase(label="hs", first=composed_method("hs_lora"), heads=heads)


@each("target", ["fc1", "fc2"])
def test_projections_without_heads_are_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=rf"s0.b0.{target} has no heads; .* q, k, v, o"):
        HeadLoRA(label="head_lora", rank=2, targets=(target,)).install(network("vit"))

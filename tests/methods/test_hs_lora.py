"""Head-Specific LoRA: agreement with peft's block-diagonal LoRA, sizes, and two phases over any first phase."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_peft import HEADS, SITE, count, distance, linear, ours, pass_through, peft_layer
from made_runs import train
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig

from headwise.errors import ConfigError
from headwise.lowrank import LowRank
from headwise.methods.hs_lora import HeadLoRA, TwoPhase
from made_networks import composed_method, images, logits, network, perturb

RANK = 3


def test_agrees_with_pefts_block_diagonal_lora_forward_and_backward() -> None:
    blocks = BdLoraConfig(target_modules_bd_b=["q"], nblocks=HEADS)
    rank = HEADS * RANK
    theirs = peft_layer(LoraConfig(r=rank, lora_alpha=rank, use_bdlora=blocks, target_modules=["q"]))
    down, up = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    delta = LowRank(SITE, linear().weight, rank=RANK, groups=HEADS)
    mine = ours(delta)
    perturb([delta.A, delta.B])
    down.data.copy_(delta.A.data.flatten(0, 1))
    up.data.copy_(delta.B.data.flatten(0, 1))
    (y, gx), (z, gz) = pass_through(mine), pass_through(theirs)
    assert distance(y, z) < 1e-5
    assert distance(gx, gz) < 1e-5
    assert delta.A.grad is not None and delta.B.grad is not None
    assert distance(delta.A.grad.flatten(0, 1), down.grad) < 1e-5
    assert distance(delta.B.grad.flatten(0, 1), up.grad) < 1e-5


def test_equals_lora_with_a_block_diagonal_b() -> None:
    weight = linear().weight
    delta = LowRank(SITE, weight, rank=RANK, groups=HEADS, scale=2.0)
    perturb([delta.A, delta.B], size=0.5)
    want = torch.cat([2.0 * up @ down for up, down in zip(delta.B, delta.A, strict=True)])
    assert distance(delta.weight(weight), want) < 1e-6
    assert int(torch.linalg.matrix_rank(want)) == HEADS * RANK


@pytest.mark.parametrize(
    ("rank", "targets", "expected"),
    [(2, "qv", 479_232), (3, "qv", 718_848), (2, "qkv", 718_848), (3, "qkv", 1_078_272)],
)
def test_count_on_vit_b16(rank: int, targets: str, expected: int) -> None:
    assert count(HeadLoRA(label="heads", rank=rank, targets=tuple(targets))) == expected
    assert expected == 12 * len(targets) * rank * (12 * 768 + 768)


def test_rank_per_head_is_bounded_by_the_rows_of_a_head() -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.12 for s0\.b0\.q with 4 row group\(s\), got 13"):
        HeadLoRA(label="heads", rank=13).install(network("vit"))


@pytest.mark.parametrize(
    "first",
    ["lora", "pissa", "dora", "linear", "bitfit", "full", "peft_lora", "peft_dora", "peft_pissa", "adalora"],
)
def test_second_phase_stands_on_any_first(first: str, tmp_path: Path) -> None:
    both = TwoPhase(label="hs", first=composed_method(first), heads=composed_method("head_lora"))
    net, x = network("vit"), images()
    phases, _ = train(net, both.phases(), tmp_path)
    assert [phase.label for phase in phases] == [first, "head_lora"]
    assert phases[1].num_tunable == 2 * 2 * 3 * (4 * 48 + 48)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    again = network("vit")
    repeated, _ = train(again, both.phases(), tmp_path)  # both phases from the store
    assert [phase.accuracy for phase in repeated] == [phase.accuracy for phase in phases]
    assert distance(logits(again, x), logits(net, x)) < 1e-6


def test_phases_must_be_single() -> None:
    heads = composed_method("head_lora")
    with pytest.raises(ConfigError, match=r"method\.first must be a single-phase method, got TwoPhase"):
        TwoPhase(label="hs", first=composed_method("hs_lora"), heads=heads)

"""Controls of HS-LoRA: blocks of random rows, and both updates in one phase."""

from __future__ import annotations

import pytest
import torch
from made_native import vit_b16
from made_peft import HEADS, O_SITE, SITE, distance, linear, ours, pass_through

from headwise.errors import ConfigError
from headwise.methods.hs_controls import JointLoRA, PermutedLoRA, PermutedRows, SharedAndHeads
from headwise.methods.hs_lora import HeadLoRA, MatchedLoRA, ScaledHeadLoRA, matched_ranks
from headwise.methods.lora import LoRA
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site
from made_cases import each
from made_networks import network, perturb

RANK = 3


@each("site", [SITE, O_SITE])
def test_random_rows_are_the_blocks_in_another_order(site: Site) -> None:
    weight = linear().weight
    delta = PermutedRows(site, weight, RANK, 2.0, 0.0)
    perturb([delta.A, delta.B], size=0.5)
    axis = 1 if site is O_SITE else 0
    blocks = torch.cat([2.0 * up @ down for up, down in zip(delta.B, delta.A, strict=True)], dim=axis)
    assert distance(delta.weight(weight), blocks.index_select(axis, delta.order.long())) < 1e-5
    assert sorted(delta.order.tolist()) == list(range(weight.shape[axis])) != delta.order.tolist()
    # a group takes as many rows as a head has, and they lie apart
    groups = delta.order.long() // site.head_dim
    assert torch.bincount(groups).tolist() == [site.head_dim] * HEADS
    assert all(len(set(head.tolist())) > 1 for head in groups.view(HEADS, -1))


@each("site", [SITE, O_SITE])
def test_random_rows_in_the_order_of_heads_are_per_head_updates(site: Site) -> None:
    weight = linear().weight
    delta, heads = PermutedRows(site, weight, RANK, 1.0, 0.0), LowRank(site, weight, RANK, groups=HEADS)
    delta.order.copy_(torch.arange(len(delta.order)))
    perturb([delta.A, delta.B])
    heads.load_state_dict({name: tensor for name, tensor in delta.state_dict().items() if name != "order"})
    for mine, theirs in zip(pass_through(ours(delta)), pass_through(ours(heads)), strict=True):
        assert distance(mine, theirs) < 1e-5
    for name in ("A", "B"):
        assert distance(delta.get_parameter(name).grad, heads.get_parameter(name).grad) < 1e-5


def test_each_seed_draws_its_rows_and_a_file_brings_them_back() -> None:
    weight = linear().weight
    first, second = (PermutedRows(SITE, weight, RANK, 1.0, 0.0) for _ in range(2))
    assert first.order.tolist() != second.order.tolist()
    perturb([first.A, first.B])
    second.unpack(first.pack())
    assert torch.equal(first.weight(weight), second.weight(weight))


@each("site", [SITE, O_SITE])
def test_both_updates_in_one_phase_are_their_sum(site: Site) -> None:
    weight = linear().weight
    shared, heads = LowRank(site, weight, 5, scale=2.0), LowRank(site, weight, RANK, groups=HEADS, scale=2.0)
    perturb([shared.A, shared.B, heads.A, heads.B], size=0.5)
    joint = SharedAndHeads(shared, heads)
    factors = joint.factors()
    dense = shared.weight(weight) + heads.weight(weight)
    assert distance(joint.weight(weight), dense) == 0
    assert distance(factors.up[0] @ factors.down[0], dense) < 1e-5
    y, grad_x = pass_through(ours(joint))
    base = linear()
    base.weight.data += dense
    for mine, theirs in zip((y, grad_x), pass_through(base), strict=True):
        assert distance(mine, theirs) < 1e-5
    assert all(parameter.grad is not None for parameter in joint.parameters())


@each("targets", ["qv", "o", "qkvo"])
@each("family", ["vit", "swin"])
def test_sizes_are_those_of_what_they_stand_against(family: str, targets: str) -> None:
    net, on = network(family), tuple(targets)
    heads = HeadLoRA(label="h", rank=2, targets=on).count(net)
    assert PermutedLoRA(label="p", rank=2, targets=on).count(net) == heads
    joint = JointLoRA(label="j", rank=4, head_rank=2, targets=on)
    assert joint.count(net) == heads + LoRA(label="l", rank=4, targets=on).count(net)
    largest = max(sum(base.shape) for base in net.bases(on).values())
    # whole ranks make up for each other from layer to layer: at most half a rank is left of each target
    assert abs(MatchedLoRA(label="m", head_rank=2, targets=on).count(net) - heads) <= len(on) * largest / 2


@each("rank, ranks", [(1, {6, 7}), (2, {13}), (3, {19, 20})])
def test_the_scale_makes_steps_as_large_as_those_of_lora_of_equal_size(rank: int, ranks: set[int]) -> None:
    """s r / r' on ViT-B/16, r = r' (12 * 768 + 768) / (768 + 768) = 6.5 r' on average."""
    net = vit_b16()
    bases = net.bases(("q", "v", "o"))
    scaled = ScaledHeadLoRA(label="s", rank=rank, scale=2.0, targets=("q", "v", "o"))
    plain = MatchedLoRA(label="m", head_rank=rank, targets=("q", "v", "o")).build_all(bases)
    scales = {delta.constant for delta in scaled.build_all(bases).values()}
    assert scales == {2.0 * r / rank for r in ranks}
    assert {delta.B.shape[-1] for delta in plain.values()} == ranks
    assert scaled.count(net) == HeadLoRA(label="h", rank=rank, targets=("q", "v", "o")).count(net)


@each("site", [SITE, O_SITE])
def test_a_scaled_update_is_the_update_of_heads_times_the_ratio_of_ranks(site: Site) -> None:
    weight = linear().weight
    (scaled,) = ScaledHeadLoRA(label="s", rank=RANK).build_all({site: weight}).values()
    (rank,) = matched_ranks(RANK, {site: (weight.shape[0], weight.shape[1])}).values()
    heads = LowRank(site, weight, RANK, groups=HEADS)
    perturb([scaled.A, scaled.B])
    heads.load_state_dict(scaled.state_dict())
    assert distance(scaled.weight(weight), heads.weight(weight) * rank / RANK) < 1e-6


@each("method", [PermutedLoRA(label="x", rank=1), JointLoRA(label="x", rank=1, head_rank=1)])
def test_rows_of_no_head_are_refused(method: PermutedLoRA | JointLoRA) -> None:
    net = network("vit")
    site = next(site for site in net.sites if site.proj == "fc1")
    with pytest.raises(ConfigError, match=r"updates what heads own, and s0\.b0\.fc1 has no heads"):
        method.build(site, net.linear(site).weight)

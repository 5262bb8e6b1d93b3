"""LowRank: heads as rows, the gate, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headwise.errors import ConfigError
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.lowrank import LowRank, runs_of
from headwise.updates.sites import Site
from headwise.wrappers.settling import BesideLinear
from made_cases import each

SITE = Site(0, 0, "q", 4, 3)
BASE = torch.zeros(12, 8)
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def moved(rank: int = 2, groups: int = 1, **options: float) -> LowRank:
    torch.manual_seed(0)
    delta = LowRank(SITE, BASE, rank, groups, **options)
    nn.init.normal_(delta.B)
    return delta


@each("groups", [1, 4])
def test_row_order(groups: int) -> None:
    """B is one on the rows of head 2 only: no other head may move."""
    delta = moved(groups=groups)
    delta.B.data.zero_()
    delta.B.data.view(12, -1)[6:9] = 1.0
    update = delta.weight(BASE).view(4, 3, 8).abs().sum((1, 2))
    assert update.nonzero().flatten().tolist() == [2]


@each("groups", [1, 2, 4, 12])
def test_the_dense_update_is_block_rows_of_b_a(groups: int) -> None:
    delta = moved(1, groups, scale=0.5)
    dense = delta.weight(BASE).view(groups, 12 // groups, 8)
    for group in range(groups):
        torch.testing.assert_close(dense[group], 0.5 * delta.B[group] @ delta.A[group])
    torch.testing.assert_close(delta(X, BASE), X @ delta.weight(BASE).T)


def test_one_group_per_head_is_lora_with_a_block_diagonal_b() -> None:
    heads = moved(2, 4)
    lora = moved(8, 1)
    lora.A.data.copy_(heads.A.flatten(0, 1)[None])
    lora.B.data.copy_(torch.block_diag(*heads.B.detach())[None])
    torch.testing.assert_close(lora.weight(BASE), heads.weight(BASE))


def test_it_starts_as_the_identity() -> None:
    delta = LowRank(SITE, BASE, 2, 4)
    assert not delta.weight(BASE).any()
    assert delta.A.abs().max() <= 8**-0.5
    assert delta.A.std() > 0.5 * 8**-0.5 / 3**0.5


@each("groups", [1, 4])
def test_the_gate_equals_zeroed_rows(groups: int) -> None:
    gated, zeroed = moved(groups=groups), moved(groups=groups)
    gated.switch(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    zeroed.B.data.view(4, 3, -1)[1::2] = 0.0
    assert torch.equal(gated.weight(BASE), zeroed.weight(BASE))
    linear = nn.Linear(8, 12).requires_grad_(False)
    for one, other in ((gated, zeroed),):
        a, b = AdaptedLinear.around(linear, one), AdaptedLinear.around(linear, other)
        assert torch.equal(a(X), b(X))
        assert torch.equal(a.merged().weight, b.merged().weight)


@each("groups", [1, 4])
@each("dropout", [0.0, 0.3])
def test_the_gradient_of_a_masked_head_is_exactly_zero(groups: int, dropout: float) -> None:
    delta = moved(groups=groups, dropout=dropout)
    delta.switch(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    linear = AdaptedLinear.around(nn.Linear(8, 12).requires_grad_(False), delta)
    linear(X).square().sum().backward()
    assert delta.B.grad is not None
    per_head = delta.B.grad.view(4, -1).abs().sum(1)
    assert per_head[[0, 3]].tolist() == [0.0, 0.0]
    assert per_head[[1, 2]].min() > 0
    if groups == 4:
        assert delta.A.grad is not None
        assert delta.A.grad[[0, 3]].abs().max() == 0


def test_a_switched_head_comes_back_unchanged() -> None:
    delta = moved(groups=4)
    before = delta.weight(BASE)
    delta.switch(torch.zeros(4))
    assert not delta.weight(BASE).any()
    delta.switch(torch.ones(4))
    assert torch.equal(delta.weight(BASE), before)


def test_the_mask_survives_a_state_dict() -> None:
    delta, fresh = moved(groups=4), LowRank(SITE, BASE, 2, 4)
    delta.switch(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    fresh.load_state_dict(delta.state_dict())
    assert torch.equal(fresh.weight(BASE), delta.weight(BASE))
    linear = nn.Linear(8, 12)
    assert torch.equal(AdaptedLinear.around(linear, fresh)(X), AdaptedLinear.around(linear, delta)(X))


def test_masked_heads_are_not_stored() -> None:
    delta, fresh = moved(groups=4), LowRank(SITE, BASE, 2, 4)
    full = {name: tuple(tensor.shape) for name, tensor in delta.pack().items()}
    assert full == {"A": (4, 2, 8), "B": (4, 3, 2)}
    delta.switch(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    stored = delta.pack()
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        "A": (2, 2, 8),
        "B": (2, 3, 2),
        "active": (1,),
    }
    fresh.unpack(stored)
    assert fresh.active.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert torch.equal(fresh.weight(BASE), delta.weight(BASE))


def test_dropout_is_off_in_evaluation() -> None:
    linear = AdaptedLinear.around(nn.Linear(8, 12).requires_grad_(False), moved(dropout=0.5))
    assert not torch.equal(linear(X), linear(X))
    linear.eval()
    assert torch.equal(linear(X), linear(X))
    torch.testing.assert_close(linear(X), linear.merged()(X))


def test_it_serves_a_base_without_a_dense_weight() -> None:
    inner, delta = nn.Sequential(nn.Linear(8, 12)), moved()
    beside = BesideLinear(inner, delta)
    torch.testing.assert_close(beside(X), AdaptedLinear.around(inner[0], delta)(X))


@each(
    "rank, groups, message",
    [
        (0, 1, r"rank must be in 1\.\.8 for s0\.b0\.q with 1 row group\(s\), got 0"),
        (-1, 1, "got -1"),
        (9, 1, r"rank must be in 1\.\.8"),
        (4, 4, r"rank must be in 1\.\.3 for s0\.b0\.q with 4 row group\(s\), got 4"),
        (True, 1, "got True"),
        (2.0, 1, r"got 2\.0"),
        (2, 5, "groups must divide the 12 rows of s0.b0.q, got 5"),
        (2, 0, "groups must divide"),
    ],
)
def test_ranks_and_groups_out_of_range(rank: int, groups: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LowRank(SITE, BASE, rank, groups)


@each("dropout", [-0.1, 1.0])
def test_dropout_out_of_range(dropout: float) -> None:
    with pytest.raises(ConfigError, match=r"dropout must be in \[0, 1\) for s0.b0.q"):
        LowRank(SITE, BASE, 2, dropout=dropout)


@each(
    "on, runs",
    [
        ([], ()),
        ([False, False], ()),
        ([True, True], ((0, 2),)),
        ([True, False, True, True], ((0, 1), (2, 4))),
        ([False, True, False], ((1, 2),)),
    ],
)
def test_runs(on: list[bool], runs: tuple[tuple[int, int], ...]) -> None:
    assert runs_of(on) == runs

"""SplitQKV: three linears over one storage, and what may happen to them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from headwise.updates.adapted import AdaptedLinear
from headwise.updates.lowrank import LowRank
from headwise.updates.qkv import SplitQKV
from headwise.updates.sites import Site
from made_cases import each

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
SITE = Site(0, 0, "q", 2, 3)


def fused(bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(6, 18, bias)


def adapted(split: SplitQKV, name: str) -> LowRank:
    delta = LowRank(SITE, getattr(split, name).weight, 2)
    nn.init.normal_(delta.B)
    setattr(split, name, AdaptedLinear.around(getattr(split, name), delta))
    split.join()
    return delta


@each("bias", [True, False])
def test_the_split_projection_is_the_fused_one(bias: bool) -> None:
    qkv = fused(bias)
    split = SplitQKV(qkv)
    assert torch.equal(split(X), qkv(X))
    for index, name in enumerate("qkv"):
        assert torch.equal(getattr(split, name).weight, qkv.weight[6 * index : 6 * index + 6])
        torch.testing.assert_close(getattr(split, name)(X), qkv(X)[..., 6 * index : 6 * index + 6])


def test_the_split_is_a_copy() -> None:
    qkv = fused()
    before = qkv.weight.clone()
    SplitQKV(qkv).q.weight.data.zero_()
    assert torch.equal(qkv.weight, before)


@each("change", ["to", "deepcopy", "load", "assign", "half_and_back"])
def test_the_storage_stays_joined(change: str) -> None:
    split = SplitQKV(fused().requires_grad_(False))
    other = SplitQKV(fused(seed=1).requires_grad_(False))
    wanted = split
    if change == "to":
        split = split.to(torch.float64).to(torch.float32)
    elif change == "deepcopy":
        split = copy.deepcopy(split)
    elif change == "half_and_back":
        split = wanted = split.bfloat16().float()
    else:
        split.load_state_dict(other.state_dict(), assign=change == "assign")
        wanted = other
    y = split(X)
    assert split._is_joined()
    assert torch.equal(y, wanted(X))
    split.v.weight.data.mul_(2.0)  # a view: the fused projection sees it without being told
    torch.testing.assert_close(split(X)[..., 12:], split.v(X))


def test_a_copy_is_isolated() -> None:
    split = SplitQKV(fused())
    twin = copy.deepcopy(split)
    before = split(X)
    twin.q.weight.data.zero_()
    assert torch.equal(split(X), before)
    assert not torch.equal(twin(X), before)


@each("names", ["q", "qv", "qkv"])
def test_adapted_children_equal_each_alone(names: str) -> None:
    split = SplitQKV(fused().requires_grad_(False))
    for name in names:
        adapted(split, name)
    alone = torch.cat([part(X) for part in split.parts], dim=-1)
    torch.testing.assert_close(split(X), alone, atol=1e-6, rtol=1e-5)


def test_replaced_children_are_called_one_by_one() -> None:
    split = SplitQKV(fused())
    before = split(X)
    split.k = nn.Sequential(split.k)
    split.join()
    torch.testing.assert_close(split(X), before)
    split.k = split.k[0]
    split.join()
    assert torch.equal(split(X), before)


@each("trains", ["weight", "bias"])
def test_a_child_that_trains_gets_its_gradient(trains: str) -> None:
    qkv = fused()
    split = SplitQKV(qkv.requires_grad_(False)).requires_grad_(False)
    getattr(split.k, trains).requires_grad_()
    split(X).square().sum().backward()
    qkv.requires_grad_()
    qkv(X).square().sum().backward()
    torch.testing.assert_close(getattr(split.k, trains).grad, getattr(qkv, trains).grad[6:12])
    assert split.q.weight.grad is None


def test_an_optimiser_step_on_a_child_is_seen() -> None:
    split = SplitQKV(fused())
    optimizer = torch.optim.SGD(split.parameters(), lr=0.1)
    split(X).square().sum().backward()
    before = split(X).detach()
    optimizer.step()
    assert split._is_joined()
    torch.testing.assert_close(split(X), torch.cat([part(X) for part in split.parts], dim=-1))
    assert not torch.equal(split(X), before)


def test_training_weight_and_update_together() -> None:
    split = SplitQKV(fused())
    delta = adapted(split, "q")
    split(X).square().sum().backward()
    assert delta.B.grad is not None
    assert split.q.weight.grad is not None
    torch.testing.assert_close(split(X)[..., :6], split.q(X))


def test_the_names_are_those_of_three_linears() -> None:
    assert set(SplitQKV(fused()).state_dict()) == {f"{n}.{kind}" for n in "qkv" for kind in ("weight", "bias")}

"""AdaptedLinear: one delta on one projection, merged exactly, whatever the delta defines."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import CheckpointError, ConfigError
from headwise.network.nf4 import NF4Linear
from headwise.updates.adapted import AdaptedLinear, Delta, Factors, adapted_linear
from headwise.wrappers.settling import BesideLinear
from made_cases import each

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Dense(Delta):
    """Only what a new method must write."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))

    def weight(self, base: Tensor) -> Tensor:
        return self.values * base.abs().mean()


class Structured(Delta):
    """Factors, a row scale and a bias."""

    def __init__(self, scaled: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.A = nn.Parameter(torch.randn(1, 2, 6, generator=generator))
        self.B = nn.Parameter(torch.randn(1, 4, 2, generator=generator))
        self.c = nn.Parameter(1 + torch.rand(4, generator=generator))
        self.shift = nn.Parameter(torch.randn(4, generator=generator))
        self.scaled = scaled

    def factors(self) -> Factors:
        return Factors(self.A, self.B)

    def scale(self, base: Tensor) -> Tensor | None:
        return self.c if self.scaled else None

    def weight(self, base: Tensor) -> Tensor:
        update = (self.B @ self.A)[0]
        return self.c[:, None] * (base + update) - base if self.scaled else update

    def bias(self, weight: Tensor, bias: Tensor) -> Tensor:
        return self.shift


class Loose(Delta):
    """An update of the output with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(3)))

    def weight(self, base: Tensor) -> Tensor:
        return self.values

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        return x @ self.values.T


def linear(bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(6, 4, bias).requires_grad_(False)


DELTAS = {"dense": Dense, "structured": Structured, "unscaled": lambda: Structured(False), "loose": Loose}


@each("bias", [True, False])
@each("name", DELTAS)
def test_forward_is_the_merged_linear(name: str, bias: bool) -> None:
    adapted = AdaptedLinear.around(linear(bias), DELTAS[name]())
    merged = adapted.merged()
    assert type(merged) is nn.Linear
    assert (merged.bias is not None) == bias
    torch.testing.assert_close(adapted(X), merged(X), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(adapted(X), linear(bias)(X))
    assert not any(parameter.requires_grad for parameter in merged.parameters())


@each("name", DELTAS)
def test_every_parameter_of_a_delta_learns(name: str) -> None:
    adapted = AdaptedLinear.around(linear(), DELTAS[name]())
    adapted(X).square().sum().backward()
    for key, parameter in adapted.delta.named_parameters():
        if not (name == "unscaled" and key == "c"):
            assert parameter.grad is not None
            assert parameter.grad.any(), key
    assert adapted.weight.grad is None


def test_projections_stacked_by_rows_equal_each_alone() -> None:
    parts = [
        AdaptedLinear.around(linear(seed=0), Dense()),
        linear(seed=1),
        AdaptedLinear.around(linear(seed=2), Structured()),
        AdaptedLinear.around(linear(seed=3), Loose()),
    ]
    weight = torch.cat([part.weight for part in parts])
    bias = torch.cat([part.bias for part in parts])
    stacked = adapted_linear(X, weight, bias, parts)
    torch.testing.assert_close(stacked, torch.cat([part(X) for part in parts], dim=-1), atol=1e-6, rtol=1e-5)


def test_merging_leaves_the_base_alone() -> None:
    base = linear()
    weight = base.weight.clone()
    AdaptedLinear.around(base, Dense()).merged()
    assert torch.equal(base.weight, weight)


def test_the_base_keeps_its_parameters_and_names() -> None:
    base = linear()
    adapted = AdaptedLinear.around(base, Dense())
    assert adapted.weight is base.weight
    assert set(adapted.state_dict()) == {"weight", "bias", "delta.values"}
    assert not AdaptedLinear.around(linear().eval(), Dense()).training


def test_half_precision_is_merged_in_single() -> None:
    base, delta = linear().bfloat16(), Dense()
    delta.values.data.mul_(2.0**-9)
    merged = AdaptedLinear.around(base, delta).merged()
    assert merged.weight.dtype == torch.bfloat16
    exact = base.weight.float() + delta.weight(base.weight.float())
    assert torch.equal(merged.weight, exact.bfloat16())


def test_copies_are_isolated() -> None:
    adapted = AdaptedLinear.around(linear(), Dense())
    twin = copy.deepcopy(adapted)
    before = adapted(X)
    twin.delta.values.data.zero_()
    assert torch.equal(adapted(X), before)
    assert not torch.equal(twin(X), before)


def test_a_second_delta_is_refused() -> None:
    with pytest.raises(ConfigError, match="already carries a delta; merge it before"):
        AdaptedLinear.around(AdaptedLinear.around(linear(), Dense()), Dense())


def test_a_delta_that_reads_the_base_needs_one() -> None:
    with pytest.raises(ConfigError, match="Dense reads the dense base weight"):
        BesideLinear(nn.Identity(), Dense())


def test_a_delta_must_say_what_it_adds() -> None:
    with pytest.raises(NotImplementedError, match=r"Delta must define weight\(base\)"):
        Delta().weight(X)


def test_unpack_checks_shapes() -> None:
    delta = Dense()
    with pytest.raises(CheckpointError, match=r"values is \(3, 6\) in the file, \(4, 6\) here"):
        delta.unpack({"values": torch.zeros(3, 6)})
    stored = {name: tensor + 1 for name, tensor in delta.pack().items()}
    delta.unpack(stored)
    assert torch.equal(delta.values, stored["values"])


class Tiny(Delta):
    """A dense update of about 2^exponent times the weight."""

    def __init__(self, exponent: int, width: int = 128) -> None:
        super().__init__()
        draw = torch.randn(width, width, generator=torch.Generator().manual_seed(4))
        self.values = nn.Parameter(draw * 2.0**exponent / width**0.5)

    def weight(self, base: Tensor) -> Tensor:
        return self.values


class TinyLoose(Tiny):
    """The same with a forward of its own."""

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        return F.linear(x, self.values)


def wide_linear(seed: int) -> nn.Linear:
    """(128, 128), its weight exact in bfloat16: whatever is added to it below half a step is rounded away."""
    torch.manual_seed(seed)
    layer = nn.Linear(128, 128).requires_grad_(False)
    layer.weight.data = torch.randn(128, 128).div_(128**0.5).bfloat16().float()
    return layer


@each("kind", [Tiny, TinyLoose])
@each("exponent", [-8, -11, -13])
def test_small_updates_do_not_vanish_in_bfloat16(kind: type[Tiny], exponent: int) -> None:
    """On average over many entries the output moves by as much as the update says, down to 1e-4 of the weight."""
    x = torch.randn(2048, 128, generator=torch.Generator().manual_seed(5))
    delta = kind(exponent)
    wanted = F.linear(x, delta.values).detach()
    with torch.autocast("cpu", torch.bfloat16):
        updated, base = (AdaptedLinear.around(wide_linear(0), d)(x) for d in (delta, kind(-100)))
    assert updated.dtype == torch.bfloat16
    moved = ((updated - base).double() * wanted).sum() / wanted.square().sum()
    assert 0.9 < moved < 1.1


@each("kinds", [(Tiny, None, Tiny), (Tiny, TinyLoose, None), (TinyLoose, None, None)])
def test_autocast_agrees_with_single_precision(kinds: tuple[type[Tiny] | None, ...]) -> None:
    plain = [wide_linear(seed) for seed in range(3)]
    parts = [p if kind is None else AdaptedLinear.around(p, kind(-3)) for p, kind in zip(plain, kinds, strict=True)]
    deltas = [part.delta.values for part in parts if isinstance(part, AdaptedLinear)]
    weight, bias = torch.cat([p.weight for p in plain]), torch.cat([p.bias for p in plain])
    x = torch.randn(256, 128, generator=torch.Generator().manual_seed(5)).requires_grad_()
    exact = adapted_linear(x, weight, bias, parts)
    with torch.autocast("cpu", torch.bfloat16):
        rough = adapted_linear(x, weight, bias, parts)
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.03)
    g = torch.randn(exact.shape, generator=torch.Generator().manual_seed(6))
    wanted = torch.autograd.grad(exact, [x, *deltas], g)
    for got, want in zip(torch.autograd.grad(rough, [x, *deltas], g.bfloat16()), wanted, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.02 * want.norm()


@each("exponent", [-8, -13])
def test_small_updates_beside_four_bits_do_not_vanish_in_bfloat16(exponent: int) -> None:
    x = torch.randn(2048, 128, generator=torch.Generator().manual_seed(5))
    delta, other, none = TinyLoose(exponent), TinyLoose(exponent), TinyLoose(-100)
    for tiny in (delta, other, none):
        tiny.reads_base = False
    base = NF4Linear(wide_linear(0))
    wanted = 2 * F.linear(x, delta.values).detach()
    with torch.autocast("cpu", torch.bfloat16):
        updated = BesideLinear(BesideLinear(base, delta), other)(x)
        moved = (updated - BesideLinear(base, none)(x)).double()
    assert 0.9 < (moved * wanted).sum() / wanted.square().sum() < 1.1


def test_beside_four_bits_is_the_sum() -> None:
    x = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(5)).requires_grad_()
    delta = TinyLoose(-3)
    delta.reads_base = False
    base = NF4Linear(wide_linear(0))
    y, expected = BesideLinear(base, delta)(x), base(x) + F.linear(x, delta.values)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(6))
    wanted = torch.autograd.grad(expected, [x, delta.values], g)
    for got, want in zip(torch.autograd.grad(y, [x, delta.values], g), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)

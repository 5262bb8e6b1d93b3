"""Singular directions: answers that are known, signs and equal values that must not matter, bands that hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from headwise.analysis.bands import COVERAGE, band
from headwise.updates.directions import (
    effective_rank,
    kept,
    random_like,
    ranks,
    rounding_of,
    singular,
    spaces,
    spectrum,
)
from made_cases import each


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthogonal(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator(seed)))[0]


def weights(num_rows: int = 12, num_inputs: int = 20, seed: int = 0) -> Tensor:
    """A matrix with singular values that stand well apart."""
    rank = min(num_rows, num_inputs)
    values = torch.linspace(5, 1, rank)
    return (orthogonal(num_rows, seed)[:, :rank] * values) @ orthogonal(num_inputs, seed + 1)[:rank]


def test_no_update_keeps_everything() -> None:
    before = singular(weights())
    for side in (before.left, before.right):
        found = kept(side, side * torch.tensor([1.0, -1.0]).repeat(6), 8)
        assert torch.allclose(found.match, torch.ones(())), "a vector has no sign"
        assert torch.allclose(found.overlap, torch.ones(4))
        assert torch.allclose(found.angle, torch.zeros(4), atol=0.1)


def test_a_rotation_of_the_inputs_turns_the_right_side_only() -> None:
    before, after = singular(weights()), singular(weights() @ orthogonal(20, 5))
    left, right = kept(before.left, after.left, 8), kept(before.right, after.right, 8)
    assert torch.allclose(left.match, torch.ones(()), atol=1e-4)
    assert torch.allclose(left.overlap, torch.ones(4), atol=1e-4)
    assert right.match < 0.5 and float(right.overlap[-1]) < 0.75 and float(right.angle[-1]) > 45


def test_a_rotation_by_a_known_angle_is_read_as_such() -> None:
    turn = torch.eye(20)
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    turn[0, 0], turn[0, 19], turn[19, 0], turn[19, 19] = cos, -sin, sin, cos
    plain = torch.diag_embed(torch.linspace(5, 1, 12))
    before = torch.cat([plain, torch.zeros(12, 8)], dim=1)
    right = kept(singular(before).right, singular(before @ turn).right, 8)
    assert torch.allclose(right.angle, torch.full((4,), 30.0), atol=0.01), "one direction of each space is turned"
    assert torch.allclose(right.overlap, torch.tensor([1 - (1 - cos**2) / rank for rank in (1, 2, 4, 8)]), atol=1e-5)
    assert right.match == pytest.approx((cos + 7) / 8, abs=1e-5)


def test_equal_singular_values_change_no_space() -> None:
    values = torch.tensor([5.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0])
    left, right = orthogonal(8, 1), orthogonal(8, 2)
    mix = torch.block_diag(orthogonal(4, 3), orthogonal(4, 4))
    found = kept(left, left @ mix, 8)
    assert torch.allclose(found.overlap[[2, 3]], torch.ones(2), atol=1e-5), "ranks 4 and 8 end where values differ"
    assert found.match < 0.9, "single vectors are another choice of the same"
    assert torch.allclose((left * values) @ right.T, (left @ mix * values) @ (right @ mix).T, atol=1e-4)


def test_effective_rank() -> None:
    values = torch.stack([torch.ones(6), torch.tensor([3.0, 0, 0, 0, 0, 0]), torch.zeros(6)])
    assert effective_rank(values).tolist() == pytest.approx([6, 1, 0], abs=1e-5)
    assert float(effective_rank(7 * torch.tensor([2.0, 1.0]))) == pytest.approx(
        math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    )


def test_spaces_are_those_of_the_rows() -> None:
    thin = torch.randn(2, 5, 3, generator=generator()) @ torch.randn(2, 3, 20, generator=generator(1))
    thin[1] = 0
    bases = spaces(
        thin + 1e-7 * torch.randn(2, 5, 20, generator=generator(2)) * torch.tensor([1.0, 0.0])[:, None, None]
    )
    assert bases.shape == (2, 20, 3), "rounding is no direction"
    assert torch.allclose(thin[0] @ bases[0] @ bases[0].T, thin[0], atol=1e-4)
    assert not bases[1].any()


@each("smallest", [0.1, 1e-3, 2e-4])
@each("shape", [(64, 384), (384, 384), (16, 128)])
def test_the_rank_of_a_change_is_that_of_what_was_added(smallest: float, shape: tuple[int, int]) -> None:
    """A change is a difference of float32 weights: its rounding is no direction, a small direction is one."""
    values = 0.3 * torch.logspace(0, math.log10(smallest), 6)
    before = torch.randn(shape, generator=generator(5)) / shape[1] ** 0.5
    change = (before + random_like(values, shape, generator())) - before
    rounding = rounding_of(before)
    assert int((spectrum(change, rounding) > 0).sum()) == 6
    bases = spaces(change.double(), rounding)
    assert bases.shape[-1] == 6 and torch.allclose(change.double() @ bases @ bases.mT, change.double(), atol=1e-5)
    nothing = (before + 1e-9 * random_like(values, shape, generator())) - before
    assert not spaces(nothing, rounding).any() and not spectrum(nothing, rounding).any(), "rounding alone"


def test_ranks_are_powers_of_two_and_the_last() -> None:
    assert [ranks(1), ranks(8), ranks(12)] == [[1], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_a_random_update_has_the_size_and_spectrum_asked_for_and_no_direction() -> None:
    values = torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.0, 1.0]])
    drawn = random_like(values, (6, 9), generator())
    assert torch.allclose(torch.linalg.svdvals(drawn)[:, :3], values, atol=1e-5)
    many = torch.stack([random_like(values[0], (6, 9), generator(seed)) for seed in range(400)])
    assert float(many.mean(0).abs().max()) < 0.15
    energy = many.square().mean(0) / 10 * 54
    assert float((energy - 1).abs().max()) < 0.5, "every entry is as large on average"


def test_a_band_holds_as_many_further_draws_as_it_says() -> None:
    numbers = torch.randn(11, 4000, generator=generator())
    inside = band(numbers[:10]).holds(numbers[10]).float().mean()
    assert float(inside) == pytest.approx(COVERAGE, abs=0.015)


def test_a_random_update_falls_in_its_band() -> None:
    before = torch.stack([weights(seed=seed) for seed in range(0, 120, 3)])
    values = torch.tensor([2.0, 1.0, 0.5]).expand(40, 3)
    first = singular(before)

    def measured(seed: int) -> Tensor:
        after = singular(before + random_like(values, (12, 20), generator(seed)))
        left, right = kept(first.left, after.left, 8), kept(first.right, after.right, 8)
        return torch.stack([left.match, right.match, *left.overlap.unbind(-1), *right.overlap.unbind(-1)])

    null = band(torch.stack([measured(seed) for seed in range(20)]))
    assert float(null.holds(measured(99)).float().mean()) == pytest.approx(COVERAGE, abs=0.05)
    turned = singular(before @ orthogonal(20, 5))
    right = kept(first.right, turned.right, 8)
    assert not null.holds(torch.stack([right.match] * 10))[1].any(), "what is no random update lies outside"

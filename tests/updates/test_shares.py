"""What updates share: orthogonal ones share nothing, equal ones everything, random ones what chance gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headwise.updates.directions import random_factors, random_like, spaces
from headwise.updates.shares import between, between_heads, spanned
from made_cases import each

HEADS, ROWS, WIDTH, RANK = 4, 6, 24, 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def axes(*columns: int) -> Tensor:
    return torch.eye(WIDTH)[list(columns)]


def test_heads_of_one_shared_factor_share_all() -> None:
    found = between_heads(normal(HEADS, ROWS, RANK) @ normal(RANK, WIDTH, seed=1))
    assert torch.allclose(found.shared, torch.ones(HEADS, dtype=torch.double), atol=1e-5)
    assert torch.allclose(found.own, torch.zeros(HEADS, dtype=torch.double), atol=1e-5)
    assert torch.allclose(found.overlap.diagonal(), torch.ones(HEADS, dtype=torch.double))


def test_orthogonal_heads_share_nothing() -> None:
    update = torch.stack([normal(ROWS, RANK, seed=h) @ axes(2 * h, 2 * h + 1) for h in range(HEADS)])
    found = between_heads(update)
    assert torch.allclose(found.shared, torch.zeros(HEADS, dtype=torch.double), atol=1e-6)
    assert torch.allclose(found.own, torch.ones(HEADS, dtype=torch.double), atol=1e-5)
    assert torch.allclose(found.overlap, torch.eye(HEADS, dtype=torch.double), atol=1e-6)


def test_shares_are_shares_of_energy() -> None:
    """Heads 0 and 1 have one direction in common, with 9/10 of head 0's energy and 1/2 of head 1's; 2 is apart."""
    column = torch.eye(ROWS)[:, :1]
    other = torch.eye(ROWS)[:, 1:2]
    heads = [column @ axes(0) * 3 + other @ axes(1), column @ axes(0) + other @ axes(2), column @ axes(3)]
    found = between_heads(torch.stack([*heads, torch.zeros(ROWS, WIDTH)]))
    assert found.shared[:3].tolist() == pytest.approx([0.45, 0.25, 0.0], abs=1e-5)
    assert found.own[:3].tolist() == pytest.approx([0.1, 0.5, 1.0], abs=1e-5)
    assert float(found.overlap[0, 1]) == pytest.approx(9 / (82 * 2) ** 0.5, abs=1e-5)
    assert bool(found.shared[3].isnan() & found.own[3].isnan() & found.overlap[3].isnan().all()), (
        "a head without update"
    )
    assert torch.equal(found.overlap[:3, :3].isnan(), torch.zeros(3, 3, dtype=torch.bool))


def test_a_head_that_is_alone_shares_nothing_and_has_nothing_of_its_own() -> None:
    alone = torch.zeros(HEADS, ROWS, WIDTH)
    alone[2] = normal(ROWS, WIDTH)
    found = between_heads(alone)
    assert bool(found.shared.isnan().all() and found.own.isnan().all()), "there is nothing to compare it with"


def test_a_small_direction_is_one_of_the_row_space() -> None:
    whole = normal(ROWS, 1) @ axes(0)
    small = normal(ROWS, 1) @ axes(0) + 3e-4 * normal(ROWS, 1, seed=1) @ axes(1)
    found = between_heads(torch.stack([small, normal(ROWS, 1) @ axes(1), whole]))
    assert float(found.shared[1]) == pytest.approx(0.5, abs=1e-6), "the first reads it, if hardly"


def test_what_is_outside_the_others_is_what_a_projection_leaves() -> None:
    update = normal(3, HEADS, ROWS, RANK, seed=3) @ normal(3, HEADS, RANK, WIDTH, seed=4)
    found = between_heads(update)
    for layer in range(3):
        for head in range(HEADS):
            rest = torch.cat([update[layer, other] for other in range(HEADS) if other != head])
            basis = torch.linalg.svd(rest.double(), full_matrices=False)[2][: RANK * (HEADS - 1)]
            mine = update[layer, head].double()
            left = (mine - mine @ basis.T @ basis).square().sum() / mine.square().sum()
            assert float(found.own[layer, head]) == pytest.approx(float(left), abs=1e-4)


def test_random_heads_share_what_chance_gives() -> None:
    values = torch.tensor([1.0, 1.0]).expand(200, HEADS, RANK)
    found = between_heads(random_like(values, (ROWS, WIDTH), torch.Generator().manual_seed(0)))
    assert float(found.shared.mean()) == pytest.approx(RANK / WIDTH, abs=0.01)
    assert float(found.own.mean()) == pytest.approx(1 - (HEADS - 1) * RANK / WIDTH, abs=0.01)


def test_signs_and_scale_do_not_matter() -> None:
    update = normal(HEADS, ROWS, WIDTH)
    changed = update * torch.tensor([1.0, -3.0, 1e-2, 1.0])[:, None, None]
    for one, other in zip(between_heads(update), between_heads(changed), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_orthogonal_updates_read_as_orthogonal_and_equal_ones_as_equal() -> None:
    first = normal(ROWS, RANK) @ axes(0, 1)
    apart = normal(ROWS, RANK, seed=1) @ axes(2, 3)
    found = between(spanned(first), apart)
    assert (float(found.cosine), float(found.rows)) == pytest.approx((0, 0), abs=1e-6)
    same = between(spanned(first), -2 * first)
    assert (float(same.cosine), float(same.rows), float(same.columns)) == pytest.approx((-1, 1, 1), abs=1e-6)
    turned = between(spanned(first), first @ axes(*range(2, WIDTH), 0, 1))
    assert (float(turned.rows), float(turned.columns)) == pytest.approx((0, 1), abs=1e-6)
    assert (
        between(spanned(torch.zeros(ROWS, WIDTH)), first).rows.isnan()
        and between(spanned(first), first * 0).rows.isnan()
    )


def test_factors_are_compared_as_what_they_make() -> None:
    generator = torch.Generator().manual_seed(0)
    first = spanned(random_like(torch.tensor([[0.5, 0.2]] * 3), (12, 20), generator))
    left, right = random_factors(torch.tensor([[0.3, 0.2, 0.1]] * 3), (12, 20), generator)
    for one, other in zip(between(first, left @ right.mT), between(first, left, right), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@each("shape", [(12, 5), (5, 12), (4, 40), (40, 4)])
def test_row_spaces_of_any_shape(shape: tuple[int, int]) -> None:
    weights = random_like(torch.tensor([[1.0, 0.3]] * 2), shape, torch.Generator().manual_seed(1))
    bases = spaces(weights)
    assert bases.shape == (2, shape[1], 2)
    assert torch.allclose(weights @ bases @ bases.mT, weights, atol=1e-5)
    assert torch.allclose(bases.mT @ bases, torch.eye(2).expand(2, 2, 2), atol=1e-5)

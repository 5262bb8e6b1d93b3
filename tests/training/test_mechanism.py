"""What records say of where updates lie: planted answers, and what has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headwise.training.mechanism import measures
from headwise.updates.sites import Site

SITE = Site(0, 0, "q", 4, 3)
WEIGHT = torch.eye(12)
BASES = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]


def update(*directions: int | None) -> dict[Site, Tensor]:
    """Each head moves along one direction of the inputs, or not at all."""
    rows = torch.zeros(4, 3, 12)
    for head, direction in enumerate(directions):
        if direction is not None:
            rows[head, 0] = 0.1 * BASES[direction]
    return {SITE: rows.flatten(0, 1)}


def test_heads_along_one_direction_share_all_of_it() -> None:
    found = measures({SITE: WEIGHT}, update(0, 0, 0, 0), {})
    assert found == {"shared": pytest.approx(1.0, abs=1e-5), "own": pytest.approx(0.0, abs=1e-5)}


def test_heads_along_directions_of_their_own_share_nothing() -> None:
    found = measures({SITE: WEIGHT}, update(0, 1, 2, 3), {})
    assert found == {"shared": pytest.approx(0.0, abs=1e-5), "own": pytest.approx(1.0, abs=1e-5)}


def test_a_second_update_is_set_against_the_heads_own_first() -> None:
    first = update(0, 1, 2, 3)
    found = measures({SITE: WEIGHT + first[SITE]}, update(0, 1, 5, 6), first)
    assert found["rows"] == pytest.approx(0.5, abs=1e-5)
    assert found["columns"] == pytest.approx(1.0, abs=1e-5), "all write the head's first output"


def test_heads_without_an_update_do_not_count() -> None:
    found = measures({SITE: WEIGHT}, update(0, None, 0, None), {})
    assert found["shared"] == pytest.approx(1.0, abs=1e-5)


def test_of_one_head_or_of_nothing_nothing_is_said() -> None:
    assert measures({SITE: WEIGHT}, update(0, None, None, None), {}) == {}
    assert measures({SITE: WEIGHT}, {}, update(0, 1, 2, 3)) == {}

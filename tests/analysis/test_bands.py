"""The one band of all nulls: it holds what it says, stays within what is possible, and leaves out what is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headwise.analysis.bands import COSINE, COVERAGE, FREE, POSITIVE, SHARE, band, percentiles
from made_cases import each


@each("number", [2, 3, 12])
@each("bounds, middle", [(FREE, 0.0), (SHARE, 0.95), (COSINE, 0.0), (POSITIVE, 3.0), ((0.0, 90.0), 80.0)])
def test_a_band_holds_as_many_further_draws_as_it_says(number: int, bounds: tuple[float, float], middle: float) -> None:
    size = 0.02 * (1 if math.isinf(bounds[1]) else bounds[1] - bounds[0])
    draws = middle + size * torch.randn(number + 1, 4000, generator=torch.Generator().manual_seed(0)).clamp(-2.4, 2.4)
    found = band(draws[:-1], bounds)
    assert float(found.holds(draws[-1]).double().mean()) == pytest.approx(COVERAGE, abs=0.02)
    assert bool((found.low >= bounds[0]).all() and (found.high <= bounds[1]).all()), "no end is impossible"
    assert bool((found.low <= found.mean).all() and (found.mean <= found.high).all())


def test_what_is_exact_lies_outside_of_a_band_that_only_comes_near() -> None:
    found = band(torch.tensor([0.93, 0.99, 0.96]), SHARE)
    assert float(found.low) > 0.0 and float(found.high) < 1.0
    assert found.place(torch.tensor(1.0), 4) == "above" and found.place(torch.tensor(0.97), 4) == "within"
    assert band(torch.ones(3), SHARE).place(torch.tensor(1.0), 4) == "within", "draws are exact as well"


def test_numbers_that_are_shown_alike_are_not_told_apart() -> None:
    found = band(1.0 - torch.tensor([1e-9, 2e-9, 3e-9], dtype=torch.float64), SHARE)
    value = torch.tensor(1.0 - 2e-5)
    assert not found.holds(value) and found.place(value, 3) == "within" and found.place(value, 5) == "below"


def test_what_is_not_there_is_nowhere() -> None:
    found = band(torch.tensor([0.1, 0.2, 0.3]))
    assert found.place(torch.tensor(torch.nan), 4) is None and not found.holds(torch.tensor(torch.nan))
    assert band(torch.full((3,), torch.nan)).place(torch.tensor(0.5), 4) is None


def test_many_draws_give_their_band_themselves() -> None:
    drawn = np.random.default_rng(0).normal(size=100_000)
    assert percentiles(drawn) == pytest.approx((-1.96, 1.96), abs=0.03)

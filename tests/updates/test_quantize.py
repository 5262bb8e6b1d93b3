"""The quantiser against Bi-LoRA's published code: values, gradient, storage."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from headwise.errors import CheckpointError, ConfigError
from headwise.updates.quantize import EPSILON, Codes, Quantizer, codebook, pack_codes, unpack_codes
from made_cases import each

PUBLISHED = {
    1: [0.67449],
    2: [0.37775, 1.26572],
    4: [0.10555, 0.31904, 0.54007, 0.77519, 1.03401, 1.33311, 1.70774, 2.26549],
}


def matrix(rows: int = 24, columns: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02 + 0.003


@each("bits", [1, 2, 4])
def test_codebook_is_the_published_one(bits: int) -> None:
    values, thresholds = codebook(bits)
    half = len(values) // 2
    assert [round(value, 5) for value in values[half:]] == PUBLISHED[bits]
    assert values[:half] == pytest.approx([-value for value in reversed(values[half:])])
    middles = [(low + high) / 2 for low, high in itertools.pairwise(values)]
    assert thresholds == pytest.approx(middles, abs=1e-6)
    if bits == 2:
        assert thresholds[2] == pytest.approx(0.82174, abs=1e-5)


def test_eight_bits_are_as_far_as_500_rounds_come() -> None:
    values, thresholds = codebook(8)
    assert (len(values), len(thresholds)) == (256, 255)
    assert values[-1] == pytest.approx(2.810, abs=1e-3)


def test_kmeans_is_the_least_squares_quantiser() -> None:
    """Lloyd and Max: 1 bit sqrt(2 / pi), 2 bits 0.4528 and 1.510."""
    assert codebook(1, "kmeans")[0][1] == pytest.approx((2 / torch.pi) ** 0.5)
    assert codebook(2, "kmeans")[0][2:] == pytest.approx((0.4528, 1.510), abs=1e-3)


@each("kind, absolute, square", [("kmedians", 0.4734, 0.379), ("kmeans", 0.4829, 0.364)])
def test_error_on_normal_entries(kind: str, absolute: float, square: float) -> None:
    x = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(3))
    error = Quantizer(1, kind)(x) - x
    assert float(error.abs().mean()) == pytest.approx(absolute, abs=2e-3)
    assert float(error.square().mean()) == pytest.approx(square, abs=2e-3)


@each("bits", [1, 2, 4, 8])
def test_values_are_the_nearest_of_the_codebook(bits: int) -> None:
    w = matrix()
    values = torch.tensor(codebook(bits)[0])
    mean, deviation = w.mean(), w.std()
    standard = (w - mean) / (deviation + EPSILON)
    nearest = values[(standard[..., None] - values).abs().argmin(-1)]
    found = Quantizer(bits)(w)
    wrong = (found - (nearest * deviation + mean)).abs() > 1e-7
    assert wrong.sum() <= (8 if bits == 8 else 0)  # at 8 bits the published thresholds lag the values by one round
    assert len(torch.unique(found)) <= 2**bits


def test_an_entry_on_a_threshold_takes_the_lower_value() -> None:
    w = torch.tensor([[-1.0, 0.0, 1.0]])
    low, middle, high = Quantizer(1)(w)[0]
    assert middle == low < high


@each("bits", [1, 2, 4])
def test_gradient_is_the_closed_form(bits: int) -> None:
    """dL/dw_i = g_i + (dsd/dw_i) sum_j g_j (q_j - wn_j), dsd/dw_i = (w_i - mu) / ((n - 1) sd); straight through q."""
    w = matrix().double().requires_grad_()
    g = matrix(seed=1).double()
    quantizer = Quantizer(bits)
    (found,) = torch.autograd.grad((quantizer(w) * g).sum(), w)
    with torch.no_grad():
        mean, deviation = w.mean(), w.std()
        standard = (w - mean) / (deviation + EPSILON)
        q = (quantizer(w) - mean) / deviation
        slope = (w - mean) / ((w.numel() - 1) * deviation)
        damped = deviation / (deviation + EPSILON)
        expected = damped * g + (1 - damped) * g.mean() + slope * (g * (q - standard * damped)).sum()
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    limit = g + slope * (g * (q - (w - mean) / deviation)).sum()
    assert torch.allclose(found, limit.detach(), rtol=0, atol=1e-4)


def test_a_constant_matrix_has_the_same_gradient_everywhere() -> None:
    """Why B may not start at zero: it would stay constant."""
    w = torch.full((3, 4), 0.1).requires_grad_()
    (grad,) = torch.autograd.grad((Quantizer(1)(w) * matrix(3, 4)).sum(), w)
    assert not torch.isfinite(grad).all() or torch.allclose(grad, grad.mean().expand_as(grad))


def test_statistics_over_active_rows() -> None:
    w = matrix()
    rows = torch.arange(24) < 12
    w[~rows] += 5.0
    assert Quantizer(1).statistics(w, rows)[0] > 2.0
    some = Quantizer(1, stats="active_rows")
    assert torch.equal(some.statistics(w, rows)[0], w[:12].mean())
    assert torch.equal(some(w, rows)[:12], some(w[:12]))


@each("bits", [1, 2, 4, 8])
@each("count", [1, 8, 13])
def test_packed_codes_round_trip(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    stored = pack_codes(codes, bits)
    assert stored.shape == (-(-count * bits // 8),)
    assert torch.equal(unpack_codes(stored, bits, count), codes)


def test_first_code_is_in_the_lowest_bits() -> None:
    assert pack_codes(torch.tensor([1, 0, 0, 1]), 1).tolist() == [0b1001]
    assert pack_codes(torch.tensor([1, 2, 3, 0, 2]), 2).tolist() == [0b00111001, 0b10]


@each("bits", [1, 2, 4, 8])
@each("stats", ["all", "active_rows"])
def test_stored_matrix_is_exact(bits: int, stats: str) -> None:
    w = matrix()
    rows = torch.arange(24) % 3 > 0
    quantizer = Quantizer(bits, stats=stats)
    whole = quantizer.pack(w, rows)
    assert torch.equal(quantizer.unpack(whole, w.shape), quantizer(w, rows))
    some = quantizer.pack(w, rows, rows)
    assert torch.equal(quantizer.unpack(some, (16, 7)), quantizer(w, rows)[rows])
    assert some.stats.nbytes == 8
    assert len(some.codes) == -(-16 * 7 * bits // 8)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"a codebook has 1, 2, 4 or 8 bits, got 3"):
        Quantizer(3)
    with pytest.raises(ConfigError, match=r"unknown codebook 'kmean' \(did you mean 'kmeans'\?\)"):
        Quantizer(1, "kmean")
    with pytest.raises(ConfigError, match=r"unknown stats 'some'.*all"):
        Quantizer(1, stats="some")
    with pytest.raises(CheckpointError, match=r"10 codes of 1 bit\(s\) take 2 bytes, got \(3,\)"):
        Quantizer(1).unpack(Codes(torch.zeros(3, dtype=torch.uint8), torch.zeros(2)), (2, 5))

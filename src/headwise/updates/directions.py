"""Singular directions of weights before and after an update, and random updates to set beside. Pure functions.

A singular vector has no sign, and of equal singular values no vectors of its own: what survives both is the space that
the leading vectors span. Everything here takes a batch of matrices, (..., O, I).

Legend: O/I features, K min(O, I), R rank, N draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps
"""Of the precision that weights are kept in, whatever is computed of them."""
WIDE = 4
"""Inputs for one row, from which on a matrix is decomposed through the products of its rows."""
_TINY = 1e-30


class Singular(NamedTuple):
    """Leading singular vectors, largest first: left (..., O, K), values (..., K), right (..., I, K)."""

    left: Tensor
    values: Tensor
    right: Tensor


def singular(weights: Tensor) -> Singular:
    """The singular value decomposition of a batch of matrices.

    Of long ones, such as heads, whose rows are few, through the products of the shorter side: in float64 as exact as
    what they are taken of, and several times as fast.
    """
    num_rows, num_inputs = weights.shape[-2:]
    if num_rows > num_inputs:
        turned = singular(weights.mT)
        return Singular(turned.right, turned.values, turned.left)
    if WIDE * num_rows > num_inputs:
        left, values, right = torch.linalg.svd(weights, full_matrices=False)
        return Singular(left, values, right.mT)
    # W W^T has the squares of the singular values: float32 would lose the smaller half of its digits
    double = weights.double()
    energies, vectors = torch.linalg.eigh(double @ double.mT)
    # eigh gives the smallest first, and rounding may leave an energy below zero
    left, values = vectors.flip(-1), energies.clamp(min=0.0).sqrt().flip(-1)
    right = double.mT @ left / values[..., None, :].clamp(min=_TINY)
    return Singular(*(tensor.to(weights.dtype) for tensor in (left, values, right)))


def rounding_of(weights: Tensor) -> Tensor:
    """What rounding alone can add to singular values of a change of these weights, (...): (..., O, I) are its before.

    The change is a difference of float32 weights, each rounded by at most `EPSILON` of itself.
    """
    return EPSILON * weights.norm(dim=(-2, -1))


def _is_there(values: Tensor, shape: Sequence[int], rounding: Tensor | None = None) -> Tensor:
    """Which singular values are no rounding, (..., K): the numerical rank, as of ``numpy.linalg.matrix_rank``.

    Args:
        values: largest first.
        shape: (O, I) of the matrices.
        rounding: see `rounding_of`, (...); None where the matrices are no change of weights.
    """
    least = EPSILON * max(shape) * values[..., :1].clamp(min=_TINY)
    return values > (least if rounding is None else torch.maximum(least, rounding.to(values)[..., None]))


def spectrum(weights: Tensor, rounding: Tensor | None = None) -> Tensor:
    """Singular values, largest first, (..., K); those that are rounding alone are 0, see `rounding_of`."""
    shorter = weights.double() if weights.shape[-2] <= weights.shape[-1] else weights.double().mT
    energies: Tensor = torch.linalg.eigvalsh(shorter @ shorter.mT)
    values = energies.clamp(min=0.0).sqrt().flip(-1).to(weights.dtype)
    return torch.where(_is_there(values, weights.shape[-2:], rounding), values, torch.zeros_like(values))


@dataclass(frozen=True)
class Kept:
    """How much of the singular directions an update leaves where they were, of one side, (...) each.

    Attributes:
        match: mean over the leading vectors of the absolute cosine between the i-th before and the i-th after.
        overlap: by rank, (..., R): the mean squared cosine of the principal angles between the two spaces of that many
            leading vectors. 1 is the same space; random spaces of rank r in n dimensions have r / n.
        angle: by rank, (..., R): the largest principal angle, degrees.
    """

    match: Tensor
    overlap: Tensor
    angle: Tensor


def ranks(leading: int) -> list[int]:
    """Powers of two up to the number of leading vectors, and that number."""
    return sorted({*(2**power for power in range(leading.bit_length()) if 2**power <= leading), leading})


def cosines(before: Tensor, after: Tensor, leading: int) -> Tensor:
    """Between leading vectors before (rows) and after (columns), (..., leading, leading), for vectors (..., n, K)."""
    return before[..., :leading].mT @ after[..., :leading]


def kept(before: Tensor, after: Tensor, leading: int) -> Kept:
    """Compare the leading vectors of one side, (..., n, K) both: orthonormal columns, by falling singular value."""
    table = cosines(before, after, leading)
    # entry (r, r) of the sums both ways is the energy of the leading r x r cosines: every rank in one pass
    energy = table.square().cumsum(-1).cumsum(-2)
    overlap = torch.stack([energy[..., rank - 1, rank - 1] / rank for rank in ranks(leading)], dim=-1)
    # the least singular value of the cosines is the cosine of the largest angle; rounding may lift it above 1
    angles = [
        torch.linalg.svdvals(table[..., :rank, :rank])[..., -1].clamp(max=1.0).acos().rad2deg()
        for rank in ranks(leading)
    ]
    return Kept(table.diagonal(dim1=-2, dim2=-1).abs().mean(-1), overlap, torch.stack(angles, dim=-1))


def effective_rank(values: Tensor) -> Tensor:
    """exp of the entropy of the shares of energy, (...) of singular values (..., K): from 1 to K; 0 of no update."""
    energy = values.double().square()
    shares = energy / energy.sum(-1, keepdim=True).clamp(min=_TINY)
    entropy = torch.special.entr(shares).sum(-1)
    return torch.where(energy.sum(-1) > _TINY, entropy.exp(), torch.zeros_like(entropy)).to(values.dtype)


def spaces(weights: Tensor, rounding: Tensor | None = None) -> Tensor:
    """Orthonormal bases of row spaces of (..., O, I): (..., I, R), R the largest rank, zero beyond a matrix's own rank.

    Directions that are no more than `rounding` are left out, see `rounding_of`.
    """
    _, values, right = singular(weights)
    is_there = _is_there(values, weights.shape[-2:], rounding)
    rank = max(1, int(is_there.sum(-1).max()))
    return torch.where(is_there[..., None, :rank], right[..., :rank], torch.zeros((), dtype=right.dtype))


def random_factors(values: Tensor, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors of random matrices with given singular values, so of given size: both sides uniform over all directions.

    Args:
        values: (..., K), at most as many as the shorter side.
        shape: (O, I) of each.
        generator: of the draw.

    Returns:
        (..., O, R) with the singular values in it, and (..., I, R), orthonormal: the matrix is the first times the
        second turned.
    """
    rank = max(1, int(_is_there(values, shape).sum(-1).max()))
    sides = []
    for length in shape:
        # the orthogonal factor of a normal matrix is uniform once its signs are fixed by the other factor's diagonal
        q, r = torch.linalg.qr(torch.randn(*values.shape[:-1], length, rank, generator=generator))
        sides.append(q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :])
    return sides[0] * values[..., None, :rank], sides[1]


def random_like(values: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """The matrices of `random_factors`, (..., O, I)."""
    left, right = random_factors(values, shape, generator)
    return left @ right.mT

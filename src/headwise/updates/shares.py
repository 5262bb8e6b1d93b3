"""What updates share: between heads of one update, and between two updates. Pure functions, in float64.

Legend: O/I features, H heads, e rows of a head, R rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from headwise.updates.directions import spaces

_TINY = 1e-30
_RIDGE = 1e-6
"""Added to products of directions so that directions which heads share can be inverted; far below what is shown."""


class Heads(NamedTuple):
    """Between the heads of one update. NaN where a head has no update, or no other head has one.

    Attributes:
        overlap: of each pair, (..., H, H): |D_g D_h'|^2 / (|D_g D_g'| |D_h D_h'|), Frobenius norms: 0 where the rows
            of the two updates are orthogonal, 1 where both weigh the inputs' directions alike.
        shared: of each head, (..., H): the share of its update's energy that lies in the row space of another head,
            mean of the others. 1 where all heads move along the same inputs.
        own: of each head, (..., H): the share outside of everything that the other heads' row spaces span together.
    """

    overlap: Tensor
    shared: Tensor
    own: Tensor


def between_heads(updates: Tensor, rounding: Tensor | None = None) -> Heads:
    """Compare the heads of updates, (..., H, e, I), with what is rounding in them, see `spaces`, (..., H)."""
    updates = updates.double()
    size = updates.norm(dim=(-2, -1))
    is_there = size > 1e-6 * size.amax(-1, keepdim=True).clamp(min=_TINY)
    unit = updates / size.clamp(min=_TINY)[..., None, None]
    grams = torch.einsum("...gei,...hfi->...ghef", unit, unit).square().sum((-2, -1))  # |D_g D_h'|^2
    norms = grams.diagonal(dim1=-2, dim2=-1).clamp(min=_TINY).sqrt()
    both = is_there[..., :, None] & is_there[..., None, :]
    overlap = (grams / (norms[..., :, None] * norms[..., None, :])).where(both, torch.nan)

    bases = spaces(updates, rounding)  # (..., H, I, R)
    inside = torch.einsum("...gei,...hir->...gher", unit, bases).square().sum((-2, -1))  # energy of g in h's space
    others = both & ~torch.eye(updates.shape[-3], dtype=torch.bool)
    shared = (inside * others).sum(-1) / others.sum(-1)
    compared = others.any(-1)
    return Heads(overlap, shared.where(compared, torch.nan), _own(unit, bases).where(compared, torch.nan))


def _own(unit: Tensor, bases: Tensor) -> Tensor:
    """Energy of each head outside of the others' span, (..., H).

    The inverse of a diagonal block of G^-1, G the products of all directions, is that block of G less its projection
    on all others: what is left of a head's directions.
    """
    num_heads, rank = bases.shape[-3], bases.shape[-1]
    every = bases.movedim(-3, -2).flatten(-2)  # (..., I, H R)
    gram = every.mT @ every + _RIDGE * torch.eye(num_heads * rank, dtype=every.dtype)
    blocks = _inverse(gram).unflatten(-1, (num_heads, rank)).unflatten(-3, (num_heads, rank))
    rest = _inverse(torch.einsum("...hrhs->...hrs", blocks)) - _RIDGE * torch.eye(rank, dtype=every.dtype)
    along = unit @ bases  # (..., H, e, R)
    return torch.einsum("...her,...hrs,...hes->...h", along, rest, along).clamp(0.0, 1.0)


def _inverse(products: Tensor) -> Tensor:
    """Of positive definite matrices."""
    return torch.cholesky_inverse(torch.linalg.cholesky(products))


class Between(NamedTuple):
    """Between two updates of the same matrices, (...) each. NaN where one of them is nothing.

    Attributes:
        cosine: of the two as vectors; 0 where they are orthogonal in sum.
        rows: share of the second's energy in the row space of the first (inputs that it reads too).
        columns: share of the second's energy in the column space of the first (outputs that it writes too).
    """

    cosine: Tensor
    rows: Tensor
    columns: Tensor


class Spaces(NamedTuple):
    """An update, of length 1, with its spaces: unit (..., O, I), rows (..., I, R), columns (..., O, R)."""

    unit: Tensor
    rows: Tensor
    columns: Tensor


def spanned(update: Tensor, rounding: Tensor | None = None) -> Spaces:
    """An update, (..., O, I), with its spaces, see `spaces`; of nothing everything is zero."""
    update = update.double()
    unit = update / update.norm(dim=(-2, -1), keepdim=True).clamp(min=_TINY)
    return Spaces(unit, spaces(update, rounding), spaces(update.mT, rounding))


def between(first: Spaces, left: Tensor, right: Tensor | None = None) -> Between:
    """Compare a second update with a first.

    Args:
        first: of (..., O, I).
        left: the second, (..., O, I), or its left factor, (..., O, R).
        right: its right factor, (..., I, R), orthonormal: the update is left right^T, which is never formed.
    """
    size = left.double().norm(dim=(-2, -1), keepdim=True)
    unit = left.double() / size.clamp(min=_TINY)
    is_there = (size[..., 0, 0] > _TINY) & (first.unit.norm(dim=(-2, -1)) > 0.5)
    before, rows = first.unit, first.rows
    if right is not None:
        before, rows = before @ right.double(), right.double().mT @ rows
    shares = (
        (before * unit).sum((-2, -1)),
        (unit @ rows).square().sum((-2, -1)),
        (first.columns.mT @ unit).square().sum((-2, -1)),
    )
    return Between(*(value.where(is_there, torch.nan) for value in shares))

"""A frozen linear with block-row low-rank updates, as one fused autograd function.

Backward never forms a dense weight gradient, and of full-size activations only x is saved. Two ways, by precision
(both exact in real arithmetic): float32 and wider without dropout use ``W + B A``, formed anew in each direction, in
one GEMM; narrower types, where a small update would round away inside W, and a dropped hidden keep ``A x`` apart and
accumulate ``B`` into the rows in place: in narrower types before ``W x``, or it would round away inside that.

The hidden is held transposed, (K, N): its pieces by block and group are then contiguous, and the thin products, whose
cost is what an update costs, run at the speed of large ones.

Legend: N = batch x tokens, I/O features, G groups, R rank, K = sum of G * R over the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDE = (torch.float32, torch.float64)


class Block(NamedTuple):
    """Low-rank update of the output rows ``first_row .. first_row + O``.

    Attributes:
        first_row: where the block starts in the stacked weight.
        down: A, (G, R, I).
        up: B, (G, O // G, R).
        dropout: probability with which an entry of the hidden, A x, is dropped.
    """

    first_row: int
    down: Tensor
    up: Tensor
    dropout: float = 0.0


def lowrank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Sequence[Block]) -> Tensor:
    """``weight x + bias`` with ``B[g] A[g] x`` added to the rows of every group g of every block.

    Args:
        x: (..., I).
        weight: (O, I). A gradient for it is formed only when it requires one.
        bias: (O,) or None.
        blocks: low-rank updates of disjoint row ranges; empty means a plain linear.

    Returns:
        (..., O), in x's type, or autocast's where it is on.
    """
    if not blocks:
        return F.linear(x, weight, bias)
    if weight.requires_grad:  # fine-tuned together with its update: leave it to autograd
        return F.linear(x, weight, bias) + _branch(x, weight.shape[0], blocks)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        blocks = [block._replace(down=block.down.to(dtype), up=block.up.to(dtype)) for block in blocks]
    flat = x.reshape(-1, x.shape[-1])
    masks = [_hidden_mask(flat, block) for block in blocks]
    wide = flat.dtype in _WIDE and all(mask is None for mask in masks)
    rows = tuple(block.first_row for block in blocks)
    factors = [tensor for block in blocks for tensor in (block.down, block.up)]
    with torch.autocast(device, enabled=False):
        y = _Fused.apply(flat, weight, bias, rows, wide, *masks, *factors)
    return y.view(*x.shape[:-1], weight.shape[0])


def _branch(x: Tensor, num_rows: int, blocks: Sequence[Block]) -> Tensor:
    """The updates alone, (..., O), by ordinary autograd operations."""
    y = x.new_zeros(1)
    for block in blocks:
        hidden = torch.einsum("...i,gri->...gr", x, block.down)
        hidden = F.dropout(hidden, block.dropout) if block.dropout else hidden
        update = torch.einsum("...gr,gor->...go", hidden, block.up).flatten(-2)
        y = y + F.pad(update, (block.first_row, num_rows - block.first_row - update.shape[-1]))
    return y


def _hidden_mask(x: Tensor, block: Block) -> Tensor | None:
    """Inverted dropout mask of the hidden, (G * R, N), or None without dropout."""
    if not block.dropout:
        return None
    keep = 1.0 - block.dropout
    mask = torch.empty(block.down.shape[0] * block.down.shape[1], x.shape[0], dtype=x.dtype, device=x.device)
    return mask.bernoulli_(keep).div_(keep)


class _Fused(torch.autograd.Function):
    """Forward and backward of `lowrank_linear`; arguments after `wide` are the masks, then A and B of each block."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: tuple[int, ...], wide: bool, *rest: Any
    ) -> Tensor:
        masks, downs, ups = _unpack(rest, len(rows))
        hidden: Tensor | None = None
        if wide:
            y = F.linear(x, _merged(weight, rows, downs, ups), bias)
        else:
            narrow = x.dtype not in _WIDE
            y = x.new_zeros(x.shape[0], weight.shape[0]) if narrow else F.linear(x, weight, bias)
            hidden = _stacked(downs) @ x.T
            for row, mask, up, part in zip(rows, masks, ups, _pieces(hidden, ups), strict=True):
                if mask is not None:
                    part.mul_(mask)
                full = _block_diagonal(up)
                y[:, row : row + full.shape[0]].addmm_(part.T, full.T)
            if narrow:  # W x last: a small update is then rounded once, together with it, instead of away
                y.addmm_(x, weight.T)
                y = y if bias is None else y.add_(bias)
        ctx.rows = rows
        ctx.save_for_backward(x, weight, hidden, *rest)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, hidden, *rest = ctx.saved_tensors
        masks, downs, ups = _unpack(rest, len(ctx.rows))
        wide = hidden is None
        if hidden is None:
            hidden = _stacked(downs) @ x.T
        grad_hidden = torch.empty_like(hidden)
        grad_ups: list[Tensor] = []
        pieces = zip(ctx.rows, masks, ups, _pieces(hidden, ups), _pieces(grad_hidden, ups), strict=True)
        for row, mask, up, part, grad_part in pieces:
            groups, width, rank = up.shape
            grad_rows = grad[:, row : row + groups * width]
            by_group = grad_rows.unflatten(1, (groups, width)).transpose(0, 1)
            grad_ups.append(torch.bmm(part.view(groups, rank, -1), by_group).transpose(1, 2))
            grad_part.copy_(_block_diagonal(up).T @ grad_rows.T)
            if mask is not None:
                grad_part.mul_(mask)
        grad_downs = [piece.view_as(down) for piece, down in zip(_pieces(grad_hidden @ x, ups), downs, strict=True)]
        grad_x = None
        if ctx.needs_input_grad[0]:
            if wide:
                grad_x = grad @ _merged(weight, ctx.rows, downs, ups)
            else:
                grad_x = (grad @ weight).addmm_(grad_hidden.T, _stacked(downs))
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        grad_factors = [tensor for pair in zip(grad_downs, grad_ups, strict=True) for tensor in pair]
        return (grad_x, None, grad_bias, None, None, *([None] * len(masks)), *grad_factors)


def _unpack(rest: Sequence[Any], count: int) -> tuple[Sequence[Any], Sequence[Tensor], Sequence[Tensor]]:
    """Masks, A and B of `count` blocks."""
    return rest[:count], rest[count::2], rest[count + 1 :: 2]


def _stacked(downs: Sequence[Tensor]) -> Tensor:
    """Every A as one (K, I) matrix."""
    return torch.cat([down.flatten(0, 1) for down in downs])


def _pieces(stacked: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each block's rows, (G * R, ...), of a (K, ...) matrix."""
    return stacked.split([up.shape[0] * up.shape[2] for up in ups])


def _merged(weight: Tensor, rows: Sequence[int], downs: Sequence[Tensor], ups: Sequence[Tensor]) -> Tensor:
    """``W + B A``, (O, I); far smaller than the activations, so forming it costs little and it is not kept."""
    merged = weight.clone()
    for row, down, up in zip(rows, downs, ups, strict=True):
        groups, width, _ = up.shape
        merged[row : row + groups * width].view(groups, width, -1).baddbmm_(up, down)
    return merged


def _block_diagonal(up: Tensor) -> Tensor:
    """B as one (O, G * R) matrix; one GEMM on it beats G thin ones."""
    groups, width, rank = up.shape
    if groups == 1:
        return up[0]
    full = up.new_zeros(groups, width, groups, rank)
    full.diagonal(dim1=0, dim2=2).copy_(up.permute(1, 2, 0))
    return full.view(groups * width, groups * rank)

"""A frozen linear with block-row low-rank updates, as one fused autograd function.

Forward is one GEMM on the stacked weight; backward never forms a dense weight gradient. Two ways, by precision
(both exact in real arithmetic): float32 and wider without dropout use ``W + B A``; narrower types, where a small
update would round away inside W, and a dropped hidden use one GEMM on the stacked rows ``[W; A]`` and then
accumulate ``B``.

Legend: N = batch x tokens, I/O features, G groups, R rank, K = sum of G * R over the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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
    wide = flat.dtype in (torch.float32, torch.float64) and all(mask is None for mask in masks)
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
    """Inverted dropout mask of the hidden, (N, G * R), or None without dropout."""
    if not block.dropout:
        return None
    keep = 1.0 - block.dropout
    mask = torch.empty(x.shape[0], block.down.shape[0] * block.down.shape[1], dtype=x.dtype, device=x.device)
    return mask.bernoulli_(keep).div_(keep)


class _Fused(torch.autograd.Function):
    """Forward and backward of `lowrank_linear`; arguments after `wide` are the masks, then A and B of each block."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: tuple[int, ...], wide: bool, *rest: Any
    ) -> Tensor:
        count = len(rows)
        masks, factors = rest[:count], rest[count:]
        downs, ups = factors[0::2], factors[1::2]
        hidden: Tensor | None = None
        if wide:
            merged = weight.clone()
            for row, down, up in zip(rows, downs, ups, strict=True):
                groups, width, _ = up.shape
                merged[row : row + groups * width].view(groups, width, -1).baddbmm_(up, down)
            y = F.linear(x, merged, bias)
        else:
            stacked = torch.cat([weight, *(down.flatten(0, 1) for down in downs)])
            num_rows = weight.shape[0]
            if bias is not None:
                bias = F.pad(bias, (0, stacked.shape[0] - num_rows))
            both = F.linear(x, stacked, bias)
            y, hidden = both[:, :num_rows], both[:, num_rows:].contiguous()
            column = 0
            for row, mask, up in zip(rows, masks, ups, strict=True):
                groups, width, rank = up.shape
                part = hidden[:, column : column + groups * rank]
                if mask is not None:
                    part.mul_(mask)
                _accumulate(y[:, row : row + groups * width], part, up)
                column += groups * rank
        ctx.rows, ctx.count, ctx.has_hidden = rows, count, hidden is not None
        ctx.save_for_backward(x, weight, hidden, *masks, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, hidden, *rest = ctx.saved_tensors
        masks, factors = rest[: ctx.count], rest[ctx.count :]
        downs, ups = factors[0::2], factors[1::2]
        all_downs = torch.cat([down.flatten(0, 1) for down in downs])
        if hidden is None:
            hidden = x @ all_downs.T
        grad_hidden = torch.empty_like(hidden)
        grad_ups: list[Tensor] = []
        column = 0
        for row, mask, up in zip(ctx.rows, masks, ups, strict=True):
            groups, width, rank = up.shape
            columns = slice(column, column + groups * rank)
            rows_of = grad[:, row : row + groups * width]
            grad_ups.append(_grad_up(rows_of, hidden[:, columns], up.shape))
            _grad_hidden(grad_hidden[:, columns], rows_of, up)
            if mask is not None:
                grad_hidden[:, columns].mul_(mask)
            column += groups * rank
        grad_down = grad_hidden.T @ x
        grad_downs = [
            piece.view_as(down)
            for piece, down in zip(grad_down.split([d.shape[0] * d.shape[1] for d in downs]), downs, strict=True)
        ]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_hidden, all_downs)
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        grad_factors = [tensor for pair in zip(grad_downs, grad_ups, strict=True) for tensor in pair]
        return (grad_x, None, grad_bias, None, None, *([None] * ctx.count), *grad_factors)


def _accumulate(y: Tensor, hidden: Tensor, up: Tensor) -> None:
    """Add ``hidden[g] B[g]^T`` to y (N, O) in place; hidden (N, G * R)."""
    if up.shape[0] == 1:
        y.addmm_(hidden, up[0].T)
    else:
        y.addmm_(hidden, _block_diagonal(up).T)


def _grad_hidden(out: Tensor, grad: Tensor, up: Tensor) -> None:
    """Write the gradient of the hidden, (N, G * R), from that of the rows, (N, O)."""
    out.copy_(grad @ (up[0] if up.shape[0] == 1 else _block_diagonal(up)))


def _grad_up(grad: Tensor, hidden: Tensor, shape: torch.Size) -> Tensor:
    """Gradient of B, (G, O // G, R), from grad (N, O) and hidden (N, G * R)."""
    groups, width, rank = shape
    if groups == 1:
        return (grad.T @ hidden).unsqueeze(0)
    return torch.bmm(
        grad.view(-1, groups, width).permute(1, 2, 0), hidden.reshape(-1, groups, rank).transpose(0, 1)
    )


def _block_diagonal(up: Tensor) -> Tensor:
    """B as one (O, G * R) matrix; one GEMM on it beats G thin ones."""
    groups, width, rank = up.shape
    full = up.new_zeros(groups, width, groups, rank)
    index = torch.arange(groups, device=up.device)
    full[index, :, index] = up
    return full.view(groups * width, groups * rank)

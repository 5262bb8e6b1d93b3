"""A frozen linear with block-row low-rank and dense updates, as one fused autograd function.

Backward never forms a dense gradient of W. Of full-size activations only x is saved, and where a row scale trains the
output before it. Two ways, by precision (both exact in real arithmetic): float32 and wider without dropout use ``W + B
A``, formed anew in each direction, in one GEMM; narrower types, where a small update would round away inside W, and a
dropped hidden keep ``A x`` apart and accumulate ``B`` into the rows in place: in narrower types before ``W x``, or it
would round away inside that. A dense update D likewise: ``W + D`` in wide types, ``D x`` and then ``W x`` in narrow
ones, whose backward may use ``W + D``: there a rounded update only adds to the rounding of the gradient. A row scale c
stands outside of this, but for wide types, where it is moved to what is small: the gradients of rows take it in W + B
A, B and dL/dB, never in dL/dy, but for `start`.

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


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """The type that what a method adds has beside a tensor of the network: the same, in narrow types float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


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


class Dense(NamedTuple):
    """Dense update of the output rows ``first_row .. first_row + O``.

    Attributes:
        first_row: where it starts in the stacked weight.
        weight: D, (O, I).
    """

    first_row: int
    weight: Tensor


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    blocks: Sequence[Block],
    dense: Sequence[Dense] = (),
    start: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """``weight x + bias`` with ``B[g] A[g] x`` added to the rows of every group g of every block, ``D x`` to D's.

    With a scale c all but the bias is scaled: ``c (W x + ...) + bias``.

    Args:
        x: (..., I).
        weight: (O, I). A gradient for it is formed only when it requires one.
        bias: (O,) or None.
        blocks: low-rank updates of disjoint row ranges.
        dense: dense updates of disjoint row ranges.
        start: further update of the output, (..., O); with no update of any kind this is a plain linear.
        scale: c, (O,), or None for 1.

    Returns:
        (..., O), in x's type, or autocast's where it is on.
    """
    wide = _is_wide(x, weight, blocks)
    if scale is not None and not wide:
        y = lowrank_linear(x, weight, None, blocks, dense, start)
        y = (y * scale).to(y.dtype)  # rounding the scale would shift every token alike
        return y if bias is None else y + bias.to(y.dtype)
    if not blocks and not dense and start is None and scale is None:
        return F.linear(x, weight, bias)
    if weight.requires_grad:  # fine-tuned together with its update: leave it to autograd
        y = F.linear(x, weight, bias) + _branch(x, weight.shape[0], blocks, dense)
        return y if start is None else y + start.to(y.dtype)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        blocks = [block._replace(down=block.down.to(dtype), up=block.up.to(dtype)) for block in blocks]
        dense = [update._replace(weight=update.weight.to(dtype)) for update in dense]
    flat = x.reshape(-1, x.shape[-1])
    if start is not None:
        start = start.to(flat.dtype).reshape(flat.shape[0], -1)
    masks = [_hidden_mask(flat, block) for block in blocks]
    scale = None if scale is None else scale.to(flat.dtype)
    rows = tuple(block.first_row for block in blocks)
    dense_rows = tuple(update.first_row for update in dense)
    factors = [tensor for block in blocks for tensor in (block.down, block.up)]
    if torch.compiler.is_compiling():  # which takes no tensor twice, and projections may share their A
        factors = [tensor.view_as(tensor) for tensor in factors]
    updates = [update.weight for update in dense]
    with torch.autocast(device, enabled=False):
        y = _Fused.apply(flat, weight, bias, start, scale, rows, dense_rows, wide, *masks, *factors, *updates)
    return y.view(*x.shape[:-1], weight.shape[0])


def _is_wide(x: Tensor, weight: Tensor, blocks: Sequence[Block]) -> bool:
    """Whether the update is added to a frozen weight before the product."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return dtype in _WIDE and not weight.requires_grad and not any(block.dropout for block in blocks)


def _branch(x: Tensor, num_rows: int, blocks: Sequence[Block], dense: Sequence[Dense]) -> Tensor:
    """The updates alone, (..., O), by ordinary autograd operations."""
    # one zero that broadcasts: the first sum then makes the output, instead of filling it before
    y = x.new_zeros(1)
    for block in blocks:
        hidden = torch.einsum("...i,gri->...gr", x, block.down)
        hidden = F.dropout(hidden, block.dropout) if block.dropout else hidden
        update = torch.einsum("...gr,gor->...go", hidden, block.up).flatten(-2)
        y = y + F.pad(update, (block.first_row, num_rows - block.first_row - update.shape[-1]))
    for row, added in dense:
        y = y + F.pad(F.linear(x, added), (row, num_rows - row - added.shape[0]))
    return y


def _hidden_mask(x: Tensor, block: Block) -> Tensor | None:
    """Inverted dropout mask of the hidden, (G * R, N), or None without dropout."""
    if not block.dropout:
        return None
    keep = 1.0 - block.dropout
    mask = torch.empty(block.down.shape[0] * block.down.shape[1], x.shape[0], dtype=x.dtype, device=x.device)
    return mask.bernoulli_(keep).div_(keep)


class _Fused(torch.autograd.Function):
    """Forward and backward of `lowrank_linear`; after `wide` come the masks, A and B of each block, and each D."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        start: Tensor | None,
        scale: Tensor | None,
        rows: tuple[int, ...],
        dense_rows: tuple[int, ...],
        wide: bool,
        *rest: Any,
    ) -> Tensor:
        masks, downs, ups, updates = _unpack(rest, len(rows))
        ctx.rows, ctx.wide = rows, wide
        ctx.dense_rows = [(row, row + len(update)) for row, update in zip(dense_rows, updates, strict=True)]
        narrow = x.dtype not in _WIDE
        kept = weight
        unscaled: Tensor | None = None
        if narrow:
            y = _begun(x, weight.shape[0], start, dense_rows, updates)
        else:
            merged = _plus(weight, dense_rows, updates)
            if sum(map(len, updates)) == len(weight):  # W + D is as large as D, and backward needs nothing else of it
                kept, rest = merged, rest[: len(rest) - len(updates)]
            merged = _merged(merged, rows, downs, ups) if wide else merged
            y = F.linear(x, merged, bias if scale is None else None)
            y = y if start is None else y.add_(start)
        if scale is not None:
            unscaled = y if ctx.needs_input_grad[4] else None
            y = y * scale if bias is None else torch.addcmul(bias, y, scale)
        # A x of every block in one product, (K, N); in wide types B A is inside W and no hidden is formed
        hidden = None if wide or not rows else _stacked(downs) @ x.T
        if hidden is not None:
            for row, mask, up, part in zip(rows, masks, ups, _pieces(hidden, ups), strict=True):
                if mask is not None:
                    part.mul_(mask)
                full = _block_diagonal(up)
                y[:, row : row + full.shape[0]].addmm_(part.T, full.T)
        if narrow:  # W x last: a small update is then rounded once, together with it, instead of away
            y.addmm_(x, weight.T)
            y = y if bias is None else y.add_(bias)
        ctx.save_for_backward(x, kept, hidden, scale, unscaled, *rest)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, hidden, scale, unscaled, *rest = ctx.saved_tensors
        masks, downs, ups, updates = _unpack(rest, len(ctx.rows))
        grad_downs, grad_ups, grad_x = [], [], None
        if ctx.rows:
            # dL/dB = (dL/dy) (A x)^T and dL/d(A x) = B^T (dL/dy), block by block: (O, G R) and (K, N)
            hidden = _stacked(downs) @ x.T if hidden is None else hidden
            grad_hidden = torch.empty_like(hidden)
            pieces = zip(ctx.rows, masks, ups, _pieces(hidden, ups), _pieces(grad_hidden, ups), strict=True)
            for row, mask, up, part, grad_part in pieces:
                groups, width, rank = up.shape
                grad_rows = grad[:, row : row + groups * width]
                by_group = grad_rows.unflatten(1, (groups, width)).transpose(0, 1)
                grad_up = torch.bmm(part.view(groups, rank, -1), by_group).transpose(1, 2)
                grad_ups.append(_scaled(grad_up, scale, row))
                grad_part.copy_(_block_diagonal(_scaled(up, scale, row)).T @ grad_rows.T)
                if mask is not None:
                    grad_part.mul_(mask)
            # dL/dA = dL/d(A x) x^T for all blocks at once, (K, I), cut into each block's (G, R, I)
            grad_stacked = _pieces(grad_hidden @ x, ups)
            grad_downs = [piece.view_as(down) for piece, down in zip(grad_stacked, downs, strict=True)]
        if ctx.needs_input_grad[0]:  # dL/dx = (W + D + B A)^T dL/dy, (N, I)
            merged = _plus(weight, [row for row, _ in ctx.dense_rows], updates)
            if ctx.wide:
                grad_x = grad @ _scaled(_merged(merged, ctx.rows, downs, ups), scale)
            else:
                grad_x = grad @ merged
                grad_x = grad_x.addmm_(grad_hidden.T, _stacked(downs)) if ctx.rows else grad_x
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        grad_start = (grad if scale is None else grad * scale) if ctx.needs_input_grad[3] else None
        grad_scale = (grad * unscaled).sum(0) if ctx.needs_input_grad[4] else None
        grad_factors = [tensor for pair in zip(grad_downs, grad_ups, strict=True) for tensor in pair]
        grad_dense = [_scaled(grad[:, row:end].T @ x, scale, row) for row, end in ctx.dense_rows]
        # rows, dense_rows and wide are no tensors, and the masks are drawn, not trained
        none = [None] * (3 + len(masks))
        return (grad_x, None, grad_bias, grad_start, grad_scale, *none, *grad_factors, *grad_dense)


def _unpack(
    rest: Sequence[Any], count: int
) -> tuple[Sequence[Any], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Masks, A and B of `count` blocks, and each D."""
    end = 3 * count
    return rest[:count], rest[count:end:2], rest[count + 1 : end : 2], rest[end:]


def _begun(x: Tensor, num_rows: int, start: Tensor | None, rows: Sequence[int], updates: Sequence[Tensor]) -> Tensor:
    """``start`` with every ``D x`` added, (N, O), to which the rest is added in place."""
    # one D over all rows: its product is the output so far, with no zeros to fill first
    if start is None and len(updates) == 1 and len(updates[0]) == num_rows:
        return x @ updates[0].T
    y = x.new_zeros(x.shape[0], num_rows) if start is None else start.clone()
    for row, update in zip(rows, updates, strict=True):
        y[:, row : row + len(update)].addmm_(x, update.T)
    return y


def _plus(weight: Tensor, rows: Sequence[int], updates: Sequence[Tensor]) -> Tensor:
    """``W + D``, (O, I); W itself where there is no D."""
    if not updates:
        return weight
    if len(updates) == 1 and len(updates[0]) == len(weight):
        return weight + updates[0]
    weight = weight.clone()
    for row, update in zip(rows, updates, strict=True):
        weight[row : row + len(update)] += update
    return weight


def _stacked(downs: Sequence[Tensor]) -> Tensor:
    """Every A as one (K, I) matrix."""
    return torch.cat([down.flatten(0, 1) for down in downs])


def _pieces(stacked: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each block's rows, (G * R, ...), of a (K, ...) matrix."""
    return stacked.split([up.shape[0] * up.shape[2] for up in ups])


def _merged(weight: Tensor, rows: Sequence[int], downs: Sequence[Tensor], ups: Sequence[Tensor]) -> Tensor:
    """``W + B A``, (O, I); far smaller than the activations, so forming it costs little and it is not kept."""
    merged = weight.clone()  # the rows of each block, seen as (G, O // G, I), take B[g] A[g] in place
    for row, down, up in zip(rows, downs, ups, strict=True):
        groups, width, _ = up.shape
        merged[row : row + groups * width].view(groups, width, -1).baddbmm_(up, down)
    return merged


def _scaled(rows: Tensor, scale: Tensor | None, first: int = 0) -> Tensor:
    """Rows (..., I) of a weight, the first of them number `first`, times their scale."""
    if scale is None:
        return rows
    shape = rows.shape[:-1]
    return rows * scale[first : first + shape.numel()].view(*shape, 1)


def _block_diagonal(up: Tensor) -> Tensor:
    """B as one (O, G * R) matrix; one GEMM on it beats G thin ones."""
    groups, width, rank = up.shape
    if groups == 1:
        return up[0]
    full = up.new_zeros(groups, width, groups, rank)
    full.diagonal(dim1=0, dim2=2).copy_(up.permute(1, 2, 0))
    return full.view(groups * width, groups * rank)

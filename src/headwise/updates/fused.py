"""A frozen linear with block-row low-rank and dense updates, as fused autograd functions.

Backward never forms a dense gradient of W. Of full-size activations only x is saved, and where a row scale trains the
output before it. Two ways, by precision, both exact in real arithmetic:

- `_Merged`, in float32 and wider without dropout: ``W + B A``, formed anew in each direction, in one GEMM. A row scale
  c is moved to what is small: the gradients of rows take it in W + B A, B and dL/dB, never in dL/dy, but for `start`.
- `_Beside`, in narrower types, where a small update would round away inside W, and for a dropped hidden: ``[W | B]`` on
  ``[x | A x]``, one GEMM again, whose accumulator sums the update with W x before either is rounded. What an update
  costs where matrix units are fast is passes over memory: this takes one more over x, and none over the output. A
  dense update D gives ``D x``, to which the rest is added; backward may use ``W + D``, whose rounding only adds to that
  of the gradient. A row scale stands outside. ``[W | B]`` is kept for backward, as autocast keeps its copy of W.

Legend: N = batch x tokens, I/O features, G groups, R rank, K = sum of G * R over the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDE = (torch.float32, torch.float64)
_TILE = 32
"""Matrix units take so many entries at once: K is filled up with zeros to a multiple, or the last tile costs extra."""


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
        weight: (O, I), rounded to x's type where that is narrower. A gradient for it is formed only when it requires
            one.
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
        x, weight = x.to(dtype), weight.to(dtype) if wide else weight
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
        if wide:
            y = _Merged.apply(flat, weight, bias, start, scale, rows, dense_rows, *factors, *updates)
        else:
            y = _Beside.apply(flat, weight, bias, start, rows, dense_rows, *masks, *factors, *updates)
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


class _Merged(torch.autograd.Function):
    """`lowrank_linear` by ``c (W + D + B A)``; after `dense_rows` come A and B of each block, and each D."""

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
        *rest: Tensor,
    ) -> Tensor:
        downs, ups, updates = _unpack(rest, len(rows))
        ctx.rows, ctx.dense_rows = rows, _ranges(dense_rows, updates)
        kept = dense = _plus(weight, dense_rows, updates)
        if sum(map(len, updates)) == len(weight):  # W + D is as large as D, and backward needs nothing else of it
            rest = rest[: len(rest) - len(updates)]
        else:
            kept = weight
        y = F.linear(x, _merged(dense, rows, downs, ups), bias if scale is None else None)
        y = y if start is None else y.add_(start)
        unscaled = y if ctx.needs_input_grad[4] else None
        if scale is not None:
            y = y * scale if bias is None else torch.addcmul(bias, y, scale)
        ctx.save_for_backward(x, kept, scale, unscaled, *rest)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, scale, unscaled, *rest = ctx.saved_tensors
        downs, ups, updates = _unpack(rest, len(ctx.rows))
        grad_downs, grad_ups, grad_x = [], [], None
        if ctx.rows:
            # dL/dB = (dL/dy) (A x)^T and dL/d(A x) = B^T (dL/dy), block by block: (O, G R) and (K, N), transposed so
            # that the pieces of blocks and groups are contiguous, and their thin products as fast as large ones
            hidden = _stacked(downs) @ x.T
            grad_hidden = torch.empty_like(hidden)
            for row, up, part, grad_part in zip(
                ctx.rows, ups, _pieces(hidden, ups), _pieces(grad_hidden, ups), strict=True
            ):
                groups, width, rank = up.shape
                grad_rows = grad[:, row : row + groups * width]
                by_group = grad_rows.unflatten(1, (groups, width)).transpose(0, 1)
                grad_up = torch.bmm(part.view(groups, rank, -1), by_group).transpose(1, 2)
                grad_ups.append(_scaled(grad_up, scale, row))
                grad_part.copy_(_block_diagonal(_scaled(up, scale, row)).T @ grad_rows.T)
            # dL/dA = dL/d(A x) x^T for all blocks at once, (K, I), cut into each block's (G, R, I)
            grad_stacked = _pieces(grad_hidden @ x, ups)
            grad_downs = [piece.view_as(down) for piece, down in zip(grad_stacked, downs, strict=True)]
        if ctx.needs_input_grad[0]:  # dL/dx = (W + D + B A)^T dL/dy, (N, I)
            merged = _merged(_plus(weight, [row for row, _ in ctx.dense_rows], updates), ctx.rows, downs, ups)
            grad_x = grad @ _scaled(merged, scale)
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        grad_start = (grad if scale is None else grad * scale) if ctx.needs_input_grad[3] else None
        grad_scale = (grad * unscaled).sum(0) if ctx.needs_input_grad[4] else None
        grad_factors = [tensor for pair in zip(grad_downs, grad_ups, strict=True) for tensor in pair]
        grad_dense = [_scaled(grad[:, row:end].T @ x, scale, row) for row, end in ctx.dense_rows]
        return (grad_x, None, grad_bias, grad_start, grad_scale, None, None, *grad_factors, *grad_dense)


class _Beside(torch.autograd.Function):
    """`lowrank_linear` by ``[W | B] [x | A x]``; after `dense_rows` come the masks, A and B of each block, each D."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        start: Tensor | None,
        rows: tuple[int, ...],
        dense_rows: tuple[int, ...],
        *rest: Any,
    ) -> Tensor:
        masks, factors = rest[: len(rows)], rest[len(rows) :]
        downs, ups, updates = _unpack(factors, len(rows))
        ctx.rows, ctx.dense_rows = rows, _ranges(dense_rows, updates)
        y = _begun(x, len(weight), start, dense_rows, updates)
        if rows:
            hidden = x @ _stacked(downs, _TILE).T  # A x of every block in one product, (N, K)
            for mask, part in zip(masks, _pieces(hidden, ups, 1), strict=True):
                if mask is not None:
                    part.mul_(mask.T)
            x = torch.cat([x, hidden], dim=1)
        weight = _beside(weight, rows, ups, x.dtype)
        if y is None:
            y = F.linear(x, weight, bias)
        else:  # W x last: a small update is then rounded once, together with it, instead of away
            y = y.addmm_(x, weight.T)
            y = y if bias is None else y.add_(bias)
        ctx.save_for_backward(x, weight, *rest)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, *rest = ctx.saved_tensors
        masks, factors = rest[: len(ctx.rows)], rest[len(ctx.rows) :]
        downs, ups, updates = _unpack(factors, len(ctx.rows))
        num_inputs = downs[0].shape[-1] if downs else x.shape[1]
        x, hidden = x[:, :num_inputs], x[:, num_inputs:]
        grad_downs, grad_ups, grad_x = [], [], None
        if ctx.needs_input_grad[0]:
            # (W + D)^T dL/dy and dL/d(A x) = B^T dL/dy in one product, (N, I + K)
            both = grad @ _plus(weight, [row for row, _ in ctx.dense_rows], updates)
            grad_x, grad_hidden = both[:, :num_inputs], both[:, num_inputs:]
        elif ctx.rows:
            grad_hidden = grad @ weight[:, num_inputs:]
        if ctx.rows:
            for mask, part in zip(masks, _pieces(grad_hidden, ups, 1), strict=True):
                if mask is not None:
                    part.mul_(mask.T)
            if grad_x is not None:
                grad_x = torch.addmm(grad_x, grad_hidden, _stacked(downs, _TILE))
            # transposed, (K, N), thin products run at the speed of large ones, and copying what is thin costs little
            grad_stacked = _pieces(grad_hidden.T.contiguous() @ x, ups)  # dL/dA = dL/d(A x) x^T, (K, I)
            grad_downs = [piece.view_as(down) for piece, down in zip(grad_stacked, downs, strict=True)]
            for row, up, part in zip(ctx.rows, ups, _pieces(hidden.T.contiguous(), ups), strict=True):
                groups, width, rank = up.shape
                # of (A x) (dL/dy)^T, (G R, O), dL/dB is what a group has in common with itself
                pairs = (part @ grad[:, row : row + groups * width]).view(groups, rank, groups, width)
                grad_ups.append(pairs.diagonal(dim1=0, dim2=2).permute(2, 1, 0))
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        grad_start = grad if ctx.needs_input_grad[3] else None
        grad_factors = [tensor for pair in zip(grad_downs, grad_ups, strict=True) for tensor in pair]
        grad_dense = [grad[:, row:end].T @ x for row, end in ctx.dense_rows]
        # rows and dense_rows are no tensors, and the masks are drawn, not trained
        none = [None] * (2 + len(masks))
        return (grad_x, None, grad_bias, grad_start, *none, *grad_factors, *grad_dense)


def _unpack(rest: Sequence[Tensor], count: int) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """A and B of `count` blocks, and each D."""
    end = 2 * count
    return rest[:end:2], rest[1:end:2], rest[end:]


def _ranges(rows: Sequence[int], updates: Sequence[Tensor]) -> list[tuple[int, int]]:
    """First row and last + 1 of every D."""
    return [(row, row + len(update)) for row, update in zip(rows, updates, strict=True)]


def _begun(
    x: Tensor, num_rows: int, start: Tensor | None, rows: Sequence[int], updates: Sequence[Tensor]
) -> Tensor | None:
    """``start`` with every ``D x`` added, (N, O), to which the rest is added in place; None without either."""
    if start is None and not updates:
        return None
    # one D over all rows: its product is the output so far, with no zeros to fill first
    if start is None and len(updates) == 1 and len(updates[0]) == num_rows:
        return x @ updates[0].T
    y = x.new_zeros(x.shape[0], num_rows) if start is None else start.clone()
    for row, update in zip(rows, updates, strict=True):
        y[:, row : row + len(update)].addmm_(x, update.T)
    return y


def _beside(weight: Tensor, rows: Sequence[int], ups: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``[W | B]``, (O, I + K), in `dtype`: the B of each block in its rows, zero elsewhere."""
    if not rows:
        return weight.to(dtype)
    num_rows, num_inputs = weight.shape
    num_hidden = sum(up.shape[0] * up.shape[2] for up in ups)
    whole = weight.new_empty(num_rows, num_inputs + num_hidden + -num_hidden % _TILE, dtype=dtype)
    whole[:, :num_inputs] = weight
    whole[:, num_inputs:] = 0
    column = num_inputs
    for row, up in zip(rows, ups, strict=True):
        full = _block_diagonal(up)
        whole[row : row + full.shape[0], column : column + full.shape[1]] = full
        column += full.shape[1]
    return whole


def _plus(weight: Tensor, rows: Sequence[int], updates: Sequence[Tensor]) -> Tensor:
    """``W + D``, (O, I), or ``[W + D | B]``, (O, I + K); `weight` itself where there is no D."""
    if not updates:
        return weight
    if len(updates) == 1 and updates[0].shape == weight.shape:
        return weight + updates[0]
    weight = weight.clone()
    for row, update in zip(rows, updates, strict=True):
        weight[row : row + len(update), : update.shape[1]] += update
    return weight


def _stacked(downs: Sequence[Tensor], multiple: int = 1) -> Tensor:
    """Every A as one (K, I) matrix, with rows of zeros up to a multiple."""
    parts = [down.flatten(0, 1) for down in downs]
    missing = -sum(map(len, parts)) % multiple
    return torch.cat([*parts, parts[0].new_zeros(missing, parts[0].shape[1])] if missing else parts)


def _pieces(stacked: Tensor, ups: Sequence[Tensor], dim: int = 0) -> tuple[Tensor, ...]:
    """Each block's rows, (G * R, ...), of a (K, ...) matrix, or its columns; K may be filled up."""
    sizes = [up.shape[0] * up.shape[2] for up in ups]
    return stacked.narrow(dim, 0, sum(sizes)).split(sizes, dim)


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

"""The one mechanism for weight updates: a frozen projection that carries a Delta.

Legend: B batch, T tokens, I/O features, H heads, G groups, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import CheckpointError, ConfigError
from headwise.updates.fused import Block, Dense, at_least_float32, lowrank_linear
from headwise.updates.noise import Noise
from headwise.updates.quantize import pack_codes, unpack_codes
from headwise.updates.sites import Site


class Factors(NamedTuple):
    """A block-row low-rank update: rows of group g get ``B[g] @ A[g]``.

    Attributes:
        down: A, (G, R, I).
        up: B, (G, O // G, R).
        dropout: probability with which the hidden, A x, is dropped in training.
        runs: (first, last + 1) of the groups that are computed at all; None for every group.
    """

    down: Tensor
    up: Tensor
    dropout: float = 0.0
    runs: tuple[tuple[int, int], ...] | None = None


class Delta(nn.Module):
    """An update of one frozen projection: y = W x + b + delta(x). A new method needs only `weight`.

    Attributes:
        reads_base: whether the update depends on the base weight; one that does not also serves a quantised base.
        undecayed: names of parameters that get no weight decay.
        rates: by name of a parameter, the factor of its learning rate beside the phase's.
        optional: names that a stored file may lack (see `pack`).
        by_head: names of tensors that are cut into one equal piece per head, in order: (H, ...), or (1, ...) along the
            side that the heads divide, the rows of B or the columns of A. A head that is off is left out of the stored
            file. A delta with heads has a buffer ``active``, (H,), 1 where the head is on.
        site: the projection of a delta with heads (see `have_heads`).
        noise: on the change that it makes, while a training step runs that asks for it; else None.
    """

    reads_base: bool = True
    undecayed: tuple[str, ...] = ()
    rates: Mapping[str, float] = {}
    optional: tuple[str, ...] = ()
    by_head: tuple[str, ...] = ()
    noise: Noise | None = None
    site: Site

    def weight(self, base: Tensor) -> Tensor:
        """Dense update, same shape as base (O, I). Used for merging; differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define weight(base)")

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """Update of the output, (..., O), for x (..., I); by `factors` if there are any."""
        factors = self.factors()
        if factors is None:
            return F.linear(x, self.weight(base))
        # the thin side first, (..., G, R): B A, (O, I), is never formed
        hidden = torch.einsum("...i,gri->...gr", x, factors.down.to(x.dtype))
        hidden = F.dropout(hidden, factors.dropout, self.training)
        return torch.einsum("...gr,gor->...go", hidden, factors.up.to(x.dtype)).flatten(-2)

    def change(self, x: Tensor, base: Tensor, bias: Tensor | None = None) -> Tensor:
        """All that it adds to the output, (..., O), for x (..., I): scale and bias included, and the noise.

        Args:
            x: (..., I), the samples along the first axis.
            base: (O, I).
            bias: of the projection, (O,), or None.
        """
        # of a row scale c the change is (diag(c) (W + B A) - W) x, which is what `weight` gives
        added = self(x, base) if self.scale(base) is None else F.linear(x, self.weight(base))
        shift = None if bias is None else self.bias(base, bias)
        added = added if shift is None else added + shift.to(added.dtype)
        return added if self.acting is None else self.acting(added)

    @property
    def acting(self) -> Noise | None:
        """The noise where it acts: in training mode, like dropout."""
        return self.noise if self.training else None

    def factors(self) -> Factors | None:
        """A and B if weight(base) is block-row B A, or its scaled form (see `scale`), else None."""
        return None

    def scale(self, base: Tensor) -> Tensor | None:
        """Row scale c, (O,), of the adapted weight ``diag(c) (base + B A)`` (DoRA, SSF), or None for 1."""
        return None

    def bias(self, weight: Tensor, bias: Tensor) -> Tensor | None:
        """Update of the bias, (O,), or None. Merged like the weight. By default that of `have_bias_entries`."""
        if "bias_values" not in self._parameters:
            return None
        values = self.get_parameter("bias_values")
        return torch.zeros_like(bias).index_put((self.get_buffer("bias_entries").long(),), values.to(bias.dtype))

    @property
    def updates_bias(self) -> bool:
        """Whether `bias` is ever more than None."""
        return type(self).bias is not Delta.bias or "bias_values" in self._parameters

    def have_bias_entries(self, entries: Tensor, base: Tensor) -> None:
        """Let the bias train at `entries`, (n,) integers: values, (n,), zero at the start, are added there."""
        self.register_parameter("bias_values", nn.Parameter(torch.zeros(len(entries), device=base.device)))
        self.register_buffer("bias_entries", entries.to(device=base.device, dtype=torch.int32))

    def pack(self) -> dict[str, Tensor]:
        """What is stored when the phase is over; where heads are off, their pieces are left out and a bit mask says so.

        ``active`` is then (ceil(H / 8),) uint8, head 0 in the lowest bit; without it every head is on.
        """
        stored = dict(self.state_dict())
        active = stored.pop("active", None)
        if active is None or bool(active.all()):
            return stored
        on = active.bool()
        kept = {name: _take(stored[name], on, self.site) for name in self.by_head}
        return {**stored, **kept, "active": pack_codes(on, 1)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `pack` stored. Names outside `optional` are checked by the caller.

        Raises:
            CheckpointError: if a tensor has another shape.
        """
        own = self.state_dict(keep_vars=True)
        tensors = dict(tensors)
        if "active" in own:
            bits, on = tensors.pop("active", None), own["active"]
            # `pack` writes no mask where every head is on
            on.data.copy_(torch.ones_like(on) if bits is None else unpack_codes(bits.to(on.device), 1, len(on)))
            if bits is not None:
                for name in set(self.by_head) & set(tensors):
                    tensors[name] = _put(tensors[name], on.bool(), own[name], name, self.site)
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise CheckpointError(f"{name} is {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} here")
            own[name].data.copy_(tensor)
        self.refresh()

    def have_heads(self, site: Site, base: Tensor, columns: bool = False) -> None:
        """Give the delta a switch for each head of its projection, all on: the buffer ``active``.

        Args:
            site: the projection.
            base: its weight, (O, I).
            columns: whether the delta can switch input columns off, which is what a head of o owns. Without, o has one
                switch, for all of its rows, and `HeadMasking` refuses it.
        """
        if site.head_axis == "input" and not columns:
            site = replace(site, num_heads=1, head_dim=base.shape[0], head_axis=None)
        self.site = site
        self.register_buffer("active", torch.ones(site.num_heads, device=base.device))
        self.optional = (*self.optional, "active")  # where all heads are on, nothing of it is stored

    @property
    def has_heads(self) -> bool:
        """Whether `have_heads` was called."""
        return "active" in self._buffers

    def gate(self) -> Tensor:
        """The switch of every output row, (O,), or of every input column, (I,), where heads own columns."""
        return self.site.rows(self.get_buffer("active"))

    def gated(self, down: Tensor, up: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """A and B of an update ``constant * B A``, each group's, with the heads' switches in the one that they divide.

        Args:
            down: A, (G, R, I), of o in G > 1 groups (G, R, I // G).
            up: B, (G, O // G, R), of o (G, O, R).
            constant: factor of the update.
        """
        if self.site.head_axis == "input":
            return down * self.gate().view(len(down), 1, -1), up * constant
        return down, up * (self.gate().view(*up.shape[:2], 1) * constant)

    def head_parts(self, tensor: Tensor) -> Tensor:
        """One of the tensors in `by_head`, or its gradient, cut by head, (H, ...)."""
        return (tensor.mT if _has_columns(tensor, self.site) else tensor).reshape(self.site.num_heads, -1)

    def switch(self, active: Tensor) -> None:
        """Switch heads on (1) and off (0): (H,), copied into the buffer ``active``."""
        with torch.no_grad():
            self.get_buffer("active").copy_(active)
        self.refresh()

    def refresh(self) -> None:
        """Bring up to date what is derived from buffers; called whenever they were set or restored."""

    @property
    def is_structured(self) -> bool:
        """Whether the update is given by `factors` and `scale`, so that no dense weight is formed in training."""
        return type(self).factors is not Delta.factors or type(self).scale is not Delta.scale

    @property
    def is_dense(self) -> bool:
        """Whether `forward` is the default one: the update may then be added to the weight before one GEMM."""
        return not self.is_structured and type(self).forward is Delta.forward


class AdaptedLinear(nn.Linear):
    """A frozen nn.Linear plus one Delta. Keeps the base's parameter names, so pretrained weights still load."""

    delta: Delta

    @classmethod
    def around(cls, linear: nn.Linear, delta: Delta) -> Self:
        """Carry `delta` on `linear`, sharing its Parameters; the delta gets the linear's type, at least float32.

        Raises:
            ConfigError: if the projection already carries a delta (a phase ends by merging).
        """
        if isinstance(linear, AdaptedLinear):
            raise ConfigError("this projection already carries a delta; merge it before installing another")
        # past nn.Linear's constructor, which would allocate a second weight and draw it from the random state
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.delta = delta.to(at_least_float32(linear.weight))
        self.train(linear.training)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Output of the adapted projection, (..., O), for x (..., I)."""
        return adapted_linear(x, self.weight, self.bias, [self])

    def adapted_bias(self) -> Tensor | None:
        """The bias plus the delta's update of it, (O,)."""
        if self.bias is None:
            return None
        # under noise it is part of the change
        update = self.delta.bias(self.weight, self.bias) if self.delta.acting is None else None
        return self.bias if update is None else self.bias + update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain nn.Linear with the update folded in; the update is formed in at least float32."""
        dtype = at_least_float32(self.weight)
        # on meta nothing is allocated or drawn: both tensors are set below
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        base = self.weight.to(dtype)
        weight = (base + self.delta.weight(base)).to(self.weight.dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            bias = self.adapted_bias()
            linear.bias = nn.Parameter(self.bias if bias is None else bias.clone(), requires_grad=False)
        return linear.train(self.training)


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, parts: Sequence[nn.Linear]) -> Tensor:
    """One projection, or several stacked by rows, with whatever deltas they carry.

    Low-rank and dense updates are fused with the GEMM on `weight`; any other delta adds its output to its rows. In
    narrow types every update is summed before W x is added, so that a small one does not round away.

    Args:
        x: (..., I).
        weight: the parts' weights stacked, (sum of O, I).
        bias: the parts' biases stacked, base values only, (sum of O,), or None.
        parts: nn.Linear or AdaptedLinear, in row order.

    Returns:
        (..., sum of O).
    """
    adapted = [part for part in parts if isinstance(part, AdaptedLinear)]
    if bias is not None and any(part.delta.updates_bias for part in adapted):
        bias = torch.cat([_bias_of(part) for part in parts])

    blocks: list[Block] = []
    dense: list[Dense] = []
    scales: list[tuple[int, Tensor]] = []
    loose: list[tuple[int, Tensor]] = []
    row = 0
    for part in parts:  # q, k and v of a fused projection, or one linear; `row` is where its outputs begin
        if isinstance(part, AdaptedLinear) and part.delta.acting is not None:
            loose.append((row, part.delta.change(x, part.weight, part.bias)))
        elif isinstance(part, AdaptedLinear) and part.delta.is_structured:
            factors = part.delta.factors()
            if factors is not None:
                dropout = factors.dropout if part.delta.training else 0.0
                blocks += _blocks(row, factors, dropout)
            scale = part.delta.scale(part.weight)
            if scale is not None:
                scales.append((row, scale))
        elif isinstance(part, AdaptedLinear) and part.delta.is_dense:
            dense.append(Dense(row, part.delta.weight(part.weight)))
        elif isinstance(part, AdaptedLinear):
            loose.append((row, part.delta(x, part.weight)))
        row += part.out_features

    start = _side_by_side(loose, weight.shape[0]) if loose else None
    scale = _side_by_side(scales, weight.shape[0], 1.0) if scales else None
    return lowrank_linear(x, weight, bias, blocks, dense, start, scale)  # diag(c) (W + B A) x + b


def _blocks(row: int, factors: Factors, dropout: float) -> list[Block]:
    """The update of one projection that starts at `row`, one block for each run of groups that are computed."""
    down, up = factors.down, factors.up
    if factors.runs is None:
        return [Block(row, down, up, dropout)]
    width = up.shape[1]  # output rows of a group: B is (G, O // G, R)
    return [Block(row + first * width, down[first:end], up[first:end], dropout) for first, end in factors.runs]


def _take(tensor: Tensor, on: Tensor, site: Site) -> Tensor:
    """The pieces of the heads that are on, side by side: (O, ...) as (O', ...), (1, O, R) as (1, O', R)."""
    if _has_columns(tensor, site):  # (1, R, I) as (1, R, I')
        return _take(tensor.mT, on, replace(site, head_axis="output")).mT.contiguous()
    kept = tensor.reshape(len(on), -1)[on]
    return kept.view(1, -1, *tensor.shape[2:]) if tensor.shape[0] == 1 else kept.view(-1, *tensor.shape[1:])


def _put(kept: Tensor, on: Tensor, like: Tensor, name: str, site: Site) -> Tensor:
    """What `_take` took at its place in a tensor shaped as `like`, zero elsewhere."""
    expected = _take(like, on, site).shape
    if kept.shape != expected:
        raise CheckpointError(
            f"{name} is {tuple(kept.shape)} in the file, {tuple(expected)} with the heads that are on"
        )
    turned = _has_columns(like, site)
    kept, shape = (kept.mT, like.mT.shape) if turned else (kept, like.shape)
    # a row for each head, whatever its tensor's shape: the mask of heads then indexes rows
    full = like.new_zeros(len(on), like.numel() // len(on))
    full[on] = kept.to(like).reshape(-1, full.shape[1])
    return full.view(shape).mT if turned else full.view(shape)


def _has_columns(tensor: Tensor, site: Site) -> bool:
    """Whether the heads' pieces of a tensor, (1, R, I), are columns: A, shared by the heads of o."""
    return site.head_axis == "input" and len(tensor) == 1


def _bias_of(part: nn.Linear) -> Tensor:
    bias = part.adapted_bias() if isinstance(part, AdaptedLinear) else part.bias
    return part.weight.new_zeros(part.out_features) if bias is None else bias


def _side_by_side(pieces: Sequence[tuple[int, Tensor]], num_rows: int, fill: float = 0.0) -> Tensor:
    """Pieces (..., O') at their rows, `fill` elsewhere: (..., num_rows)."""
    # one piece that covers every row needs no copy
    if pieces[0][1].shape[-1] == num_rows:
        return pieces[0][1]
    whole: list[Tensor] = []
    row = 0
    # an empty piece behind the last row makes the filling after the last real one
    for first, piece in (*pieces, (num_rows, pieces[0][1][..., :0])):
        whole += [piece.new_full((*piece.shape[:-1], first - row), fill), piece]
        row = first + piece.shape[-1]
    return torch.cat(whole, dim=-1)

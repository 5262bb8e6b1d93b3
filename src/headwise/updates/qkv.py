"""SplitQKV: timm's fused qkv projection as three linears over one storage, still one GEMM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from headwise.updates.adapted import AdaptedLinear, adapted_linear
from headwise.updates.sites import QKV

_PLAIN = (nn.Linear, AdaptedLinear)


class SplitQKV(nn.Module):
    """Stands where timm's ``attn.qkv`` was; children q, k and v are ordinary linears.

    The three weights are row views of one (3 d, d) storage, so the projection stays one GEMM. Children that a library
    has replaced by modules of its own are called one by one and their outputs concatenated. Some of the biases may be
    missing, as that of k is in EVA, BEiT and Swin-V2; it then is zero.

    Attributes:
        shared: whether other networks hold the same parameters, which then keep their place.
    """

    layout = "fused"
    """How timm's network holds the three, of `headwise.network.projections.LAYOUTS`."""
    shared = False

    def __init__(self, qkv: nn.Linear) -> None:
        super().__init__()
        biases = [None] * 3 if qkv.bias is None else qkv.bias.chunk(3)
        self._hold(list(zip(qkv.weight.chunk(3), biases, strict=True)))

    @classmethod
    def of(cls, parts: Sequence[tuple[Tensor, Tensor | None]], layout: str) -> Self:
        """Copy projections that are no one linear.

        Args:
            parts: weight (d, I) and bias (d,), or None, of q, k and v.
            layout: how the network held them, of `headwise.network.projections.LAYOUTS`.
        """
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.layout = layout
        self._hold(parts)
        return self

    def _hold(self, parts: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        for name, (weight, bias) in zip(QKV, parts, strict=True):
            child = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
            child.weight = nn.Parameter(weight.detach().clone())
            if bias is not None:
                child.bias = nn.Parameter(bias.detach().clone())
            self.add_module(name, child)
        self._weight: Tensor
        self._bias: Tensor | None
        self.join()
        self.register_load_state_dict_post_hook(_joined)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The children in row order."""
        return tuple(getattr(self, name) for name in QKV)

    @torch.no_grad()
    def join(self, apart: bool = False) -> None:
        """Lay the children's weights and biases out in one storage again, after any of them was replaced.

        What lies there already stays: networks that share their parameters share this storage as well.

        Args:
            apart: leave frozen parameters where they are, and take new ones; else what they hold moves.
        """
        parts = self._linears()
        if parts is None:
            self._weight, self._bias = torch.empty(0, 0), None  # it would keep alive what a 4-bit projection replaced
            return
        self._weight = cast(Tensor, _stacked(parts, "weight", apart))
        self._bias = _stacked(parts, "bias", apart)

    def child_replaced(self) -> None:
        """Join the children again, after one of them was replaced."""
        self.join(apart=self.shared)

    def _linears(self) -> tuple[nn.Linear, ...] | None:
        """The children if all are of this project's kinds, None where a library has replaced one."""
        parts = self.parts
        return parts if all(type(part) in _PLAIN for part in parts) else None  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.join()
        return self

    def _is_joined(self) -> bool:
        # copying and moving a network may give the three storages of their own; then the one GEMM would read stale rows
        row_bytes = self._weight.element_size() * self._weight.shape[1]
        start = self._weight.data_ptr()
        for part in self.parts:
            weight: Any = part.weight
            if weight.data_ptr() != start:
                return False
            start += weight.shape[0] * row_bytes
        return True

    def forward(self, x: Tensor) -> Tensor:
        """q, k and v side by side, (..., 3 d), for x (..., d)."""
        parts = self._linears()
        if parts is None:
            return torch.cat([part(x) for part in self.parts], dim=-1)
        if not torch.compiler.is_compiling() and not self._is_joined():
            self.join()
        weight, bias = self._weight, self._bias  # (3 d, d) and (3 d,); autograd does not see the parts behind them
        if any(part.weight.requires_grad for part in parts):
            weight = torch.cat([part.weight for part in parts])
        if any(part.bias is not None and part.bias.requires_grad for part in parts):
            bias = _side_by_side(parts)
        return adapted_linear(x, weight, bias, parts)


def _side_by_side(parts: Sequence[nn.Linear]) -> Tensor | None:
    """The biases, (3 d,), zero where there is none; None where there is none at all."""
    if all(part.bias is None for part in parts):
        return None
    return torch.cat([part.weight.new_zeros(part.out_features) if part.bias is None else part.bias for part in parts])


def _stacked(linears: Sequence[nn.Linear], name: str, apart: bool) -> Tensor | None:
    """The linears' weights or biases as one tensor, whose rows they are from now on; a new one if they were not.

    Rows of a bias that is missing are zero; None where all are.
    """
    given: list[nn.Parameter | None] = [getattr(linear, name) for linear in linears]
    parts = [part for part in given if part is not None]
    if not parts:
        return None
    first = parts[0]
    size = first.numel() * first.element_size()
    if len(parts) == len(given) and all(
        part.is_contiguous()
        and part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.data_ptr() == first.data_ptr() + index * size
        for index, part in enumerate(parts)
    ):
        # they lie side by side already: a view over all of them, and nothing is copied
        return first.detach().as_strided((len(parts) * len(first), *first.shape[1:]), first.stride())
    whole = torch.cat([torch.zeros_like(first) if part is None else part.detach() for part in given])
    if apart and len(parts) < len(given):
        return whole  # other networks hold these biases, and with a gap between them they cannot be found lying here
    for linear, part, rows in zip(linears, given, whole.chunk(len(given)), strict=True):
        if part is None:
            continue
        if apart and not part.requires_grad:
            setattr(linear, name, nn.Parameter(rows, requires_grad=False))
        else:
            part.data = rows
    return whole


def _joined(module: nn.Module, _: object) -> None:
    """After weights were loaded; a function of the module, which a copy and a pickle of the network can hold."""
    if isinstance(module, SplitQKV):
        module.join()

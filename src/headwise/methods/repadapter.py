"""RepAdapter (Luo et al., arXiv:2302.08106): a linear adapter before q, k, v and before fc1 that folds into them.

z <- z + s (W_B drop(W_A z + b_A) + b_B), W_B in g groups: outputs of group i see the hidden units of group i only.
Merged: W <- W (I + s W_B W_A), b <- b + s W (W_B b_A + b_B).

Legend: C channels, h hidden, g groups.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._structural import blocks, install_parts, per_block, place
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate, is_whole
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.fused import at_least_float32
from headwise.updates.qkv import SplitQKV
from headwise.updates.sites import QKV
from headwise.wrappers.wrapping import Corrected, unwrapped, with_affine


class InputAdapter(nn.Module):
    """z + s (W_B drop(W_A z + b_A) + b_B). Parameters: C h + h + C h / g + C."""

    def __init__(self, width: int, hidden: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        if not is_whole(hidden, width):
            raise ConfigError(f"RepAdapter's hidden width must be in 1..{width}, got {hidden}")
        if groups < 1 or width % groups or hidden % groups:
            raise ConfigError(f"groups must divide the width {width} and the hidden width {hidden}, got {groups}")
        self.down = nn.Linear(width, hidden)
        self.up = nn.Parameter(torch.zeros(groups, width // groups, hidden // groups))
        self.bias = nn.Parameter(torch.zeros(width))
        self.drop = nn.Dropout(dropout)
        self.scale = float(scale)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, z: Tensor) -> Tensor:
        """The adapted input, same shape as z (..., C)."""
        hidden = self.drop(self.down(z)).unflatten(-1, (self.up.shape[0], -1))
        return z + self.scale * (torch.einsum("...gh,goh->...go", hidden, self.up).flatten(-2) + self.bias)

    def folded(self, linear: Any) -> nn.Module:
        """`linear` with the adapter before it folded in."""
        up = torch.block_diag(*self.up)
        weight, dtype = linear.weight, at_least_float32(linear.weight)
        wide = weight.to(dtype)
        # W (z + s U D z) = (W + s W U D) z: with U block-diagonal, (C, h), the fold is two products
        update = self.scale * ((wide @ up.to(dtype)) @ self.down.weight.to(dtype))
        shift = self.scale * (wide @ (up @ self.down.bias + self.bias).to(dtype))
        return with_affine(linear, wide + update, linear.bias + shift)


class Before(Corrected):
    """inner(adapter(z)) for a linear, or for q, k and v together: one transform, one dropout mask."""

    part: InputAdapter

    def forward(self, x: Tensor) -> Tensor:
        """Output of the inner module for the adapted input."""
        adapted = self.part(x)
        return self.inner(adapted if self.noise is None else x + self.disturbed(adapted - x))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The inner module with the adapter folded into its weights and biases."""
        if not isinstance(self.inner, SplitQKV):
            return self.part.folded(self.inner)
        for proj, linear in zip(QKV, self.inner.parts, strict=True):
            setattr(self.inner, proj, self.part.folded(linear))
        # q, k and v are new tensors now, and one GEMM needs them in one storage
        self.inner.join()
        return self.inner


@dataclass(frozen=True, kw_only=True)
class RepAdapter(Method):
    """Two input adapters per block; merges. W_A Xavier uniform, the rest zero: the start is the identity.

    Parameters: C h + h + C h / g + C per adapter; ViT-B/16, h = 8, g = 2: 239,808 (221,184 of them in matrices).

    Licence: No licence (luogen1996/RepAdapter), not read.
    Not for: One scale for every task: the authors choose it per task, and their values are not included.

    Attributes:
        hidden: h, in 1 .. C.
        groups: g; divides C and h.
        scale: s, constant; searched in {0.1 .. 10} per task by the paper.
        dropout: of the hidden, in [0, 1).
    """

    targets: Sequence[str] = ()
    networks: ClassVar[tuple[str, ...]] = ("vit", "swin")
    hidden: Count
    groups: Count = 2
    scale: Factor = 1.0
    dropout: Rate = 0.1

    def count(self, net: Backbone) -> int:
        hidden, groups = self.hidden, self.groups
        return per_block(net, lambda c: 2 * (c * hidden + hidden + c * hidden // groups + c))

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap qkv and fc1 of every block; ConfigError for wrong sizes, another update in place, or no bias."""
        parts: dict[str, nn.Module] = {}
        for key, path, block in blocks(net):
            own: Any = unwrapped(block)
            for name, inner in (("attn.qkv", unwrapped(own.attn).qkv), ("mlp.fc1", unwrapped(own.mlp).fc1)):
                linears: tuple[Any, ...] = inner.parts if isinstance(inner, SplitQKV) else (inner,)
                for linear in linears:
                    if not isinstance(linear, nn.Linear) or isinstance(linear, AdaptedLinear):
                        raise ConfigError(
                            f"{key}.{name} is a {type(linear).__name__}; RepAdapter folds into plain linears"
                        )
                    if linear.bias is None:
                        raise ConfigError(
                            f"method {self.label!r} is defined for networks with a bias at q, k, v and fc1 to fold its "
                            f"own into; {key}.{name} of {type(net.model).__name__} has none"
                        )
                width = linears[0].weight.shape[1]
                part = InputAdapter(width, self.hidden, self.groups, self.scale, self.dropout)
                parts[f"{key}.before_{name.rpartition('.')[2]}"] = part
                place(net, f"{path}.{name}", functools.partial(Before, part=part))
        return install_parts(net, parts)

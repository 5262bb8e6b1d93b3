"""MoRA (Jiang et al., arXiv:2405.12130): one square matrix per projection between two fixed maps.

y = W x + f_dec(M f_comp(x)), M (m, m) zero at the start, m = floor(sqrt((I + O) r) + 0.5), even for type 6. Both maps
are linear, so the update is a dense matrix and merges.

Legend: I/O features, m side of M, J = ceil(I / m) chunks of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods.base import Method, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count
from headwise.updates.adapted import Delta
from headwise.updates.sites import Site

TYPES = (1, 6)


def side_of(num_inputs: int, num_outputs: int, rank: int, kind: int) -> int:
    """m, the side with about as many entries as LoRA of rank r has parameters."""
    side = math.floor(math.sqrt((num_inputs + num_outputs) * rank) + 0.5)
    return side // 2 * 2 if kind == 6 else side


class MoRADelta(Delta):
    """Type 1 (sharing): inputs congruent modulo m are summed, outputs tiled. Type 6 (rotation): the input is cut into J
    chunks, chunk j rotated by the angles j * 10000^(-2 i / m) (rotate-half form), and M applied to each.

    The last, partial chunk is filled with the first inputs again; outputs are cut or tiled to O.
    """  # noqa: D205

    reads_base = False
    cos: Tensor
    sin: Tensor

    def __init__(self, site: Site, base: Tensor, rank: int, kind: int) -> None:
        """Build M of one projection; ConfigError for an unknown type, or m not in 2 .. min(I, O)."""
        super().__init__()
        num_outputs, num_inputs = base.shape
        if kind not in TYPES:
            raise ConfigError(f"MoRA's type must be one of {TYPES}, got {kind}")
        side = side_of(num_inputs, num_outputs, rank, kind)
        if not 2 <= side <= min(base.shape):
            raise ConfigError(
                f"rank must give a matrix of side 2..{min(base.shape)} for {site.key} {tuple(base.shape)}, "
                f"got rank {rank}, side {side}"
            )
        self.kind, self.shape = kind, (num_outputs, num_inputs)
        self.M = nn.Parameter(torch.zeros(side, side, device=base.device))
        if kind == 6:
            speed = 10000.0 ** -(torch.arange(0, side, 2, device=base.device) / side)
            angle = torch.arange(-(-num_inputs // side), device=base.device)[:, None] * speed.repeat(2)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)

    def turned(self) -> Tensor:
        """M times the rotation of each chunk, (J, m, m); type 6."""
        half = self.M.shape[0] // 2
        # a rotation adds sin times (-x2, x1), the halves of a chunk: seen from x, M's halves change places instead
        crossed = self.M * self.sin[:, None]
        return self.M * self.cos[:, None] + torch.cat([crossed[..., half:], -crossed[..., :half]], dim=-1)

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """Update of the output, (..., O), chunk by chunk: m / O of the arithmetic of the dense update."""
        num_outputs, num_inputs = self.shape
        side = self.M.shape[0]
        gate = self.gate().to(x.dtype) if self.has_heads else None
        if gate is not None and self.site.head_axis == "input":
            x, gate = x * gate, None
        whole = torch.cat([x, x[..., : -num_inputs % side]], dim=-1).unflatten(-1, (-1, side))
        if self.kind == 1:
            y = F.linear(whole.sum(-2), self.M.to(x.dtype))
        else:
            y = torch.einsum("...ji,joi->...jo", whole, self.turned().to(x.dtype)).flatten(-2)
        y = torch.cat([y] * -(-num_outputs // y.shape[-1]), dim=-1)[..., :num_outputs]
        return y if gate is None else y * gate

    def weight(self, base: Tensor) -> Tensor:
        num_outputs, num_inputs = self.shape
        side, chunks = self.M.shape[0], -(-num_inputs // self.M.shape[0])
        rows = torch.arange(num_outputs, device=self.M.device)
        if self.kind == 1:
            padded = self.M.repeat(1, chunks)[rows % side]
        else:
            padded = torch.block_diag(*self.turned())[rows % (chunks * side)]
        dense = padded[:, :num_inputs]
        if extra := chunks * side - num_inputs:
            # inputs that fill up the last chunk are read twice, so both of their columns count
            dense = dense + F.pad(padded[:, num_inputs:], (0, num_inputs - extra))
        if self.has_heads:
            dense = dense * (self.gate() if self.site.head_axis == "input" else self.gate().unsqueeze(1))
        return dense.to(base.dtype)


@dataclass(frozen=True, kw_only=True)
class MoRA(Method):
    """A square update of about LoRA's size, on q and v as LoRA. Starts at the identity; merges; no scale, no dropout.

    A gate multiplies a head's rows of the update, of o its columns; M serves all heads and is stored whole.

    Parameters: m^2 per projection; ViT-B/16, q and v, r = 8: type 6 (m = 110) 290,400, type 1 (m = 111) 295,704.

    Licence: No licence file found (kongds/MoRA, which carries a copy of peft).
    Not for: Tuning a scale: it has none. Fast steps: a dense gradient is formed.

    Attributes:
        rank: r, whose LoRA size M matches.
        type: 6 (rotation, advised for small ranks) or 1 (sharing).
    """

    rank: Count
    type: int = 6

    gateable: ClassVar[bool] = True

    def count(self, net: Backbone) -> int:
        even = 2 if self.type == 6 else 1
        # the nearest whole square root of LoRA's size; a rotation by pairs needs an even one
        return per_projection(
            net, self.targets, lambda o, i, _: (int((self.rank * (i + o)) ** 0.5 + 0.5) // even * even) ** 2
        )

    def build(self, site: Site, base: Tensor) -> Delta:
        """The delta with the square matrix of one projection."""
        delta = MoRADelta(site, base, self.rank, self.type)
        if site.head_axis is not None:
            delta.have_heads(site, base, columns=True)
        return delta

"""StartedDelta: a low-rank update that counts from where it started (PiSSA, LoRA-GA).

Legend: I/O features, R rank, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headwise.updates.adapted import Delta, Factors
from headwise.updates.sites import Site


class StartedDelta(Delta):
    """gate * s (B A - B0 A0): the start s B0 A0 is taken out of the weight again, so that training starts at it.

    The papers train A and B beside the residual W - s B0 A0. Subtracting the frozen start instead leaves W untouched
    and is the same function; as ``[B, -B0] [A; A0]`` it is a low-rank update of rank 2 R. A and B start as copies.

    The stored file holds A, B, A0 and B0, twice the trained size: another machine's SVD would give a start that differs
    by rounding, and by more where singular values lie close together.
    """

    A0: Tensor
    B0: Tensor

    def __init__(self, site: Site, base: Tensor, down: Tensor, up: Tensor, scale: float = 1.0) -> None:
        """Hold the start A0 = `down`, (R, I), B0 = `up`, (O, R), of a projection with weight `base`, (O, I)."""
        super().__init__()
        self.have_heads(site, base, columns=True)
        self.by_head = ("A", "A0") if site.head_axis == "input" else ("B", "B0")
        self.constant = float(scale)
        self.register_buffer("A0", down.unsqueeze(0).contiguous())
        self.register_buffer("B0", up.unsqueeze(0).contiguous())
        self.A = nn.Parameter(self.A0.clone())
        self.B = nn.Parameter(self.B0.clone())

    def factors(self) -> Factors:
        """``[A; A0]``, (1, 2 R, I), and the scaled ``[B, -B0]``, (1, O, 2 R), one of them gated."""
        both = torch.cat([self.A, self.A0], dim=1), torch.cat([self.B, -self.B0], dim=2)
        return Factors(*self.gated(*both, self.constant))

    def weight(self, base: Tensor) -> Tensor:
        down, up, *_ = self.factors()
        return (up[0] @ down[0]).to(base.dtype)

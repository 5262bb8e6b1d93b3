"""FacT (Jie and Deng, arXiv:2212.03145): the updates of all projections as one tensor, factored over the whole model.

Every update is dW = s V S U with U (r, d) and V (d, r) shared by all blocks and S (r, r) of its own: free in FacT-TT
(tensor train), contracted from a shared core in FacT-TK (Tucker). fc1 (m d outputs) is m such updates below each other,
fc2 (m d inputs) is V [S_1 .. S_m] applied to U x_1 .. U x_m, its input cut into m parts.

The papers define it on ViT, where all blocks have one width. On Swin each stage has factors of its own.

Legend: d width, m = MLP width / d, r rank, P slots (1 per q, k, v, o; m per fc1, fc2), L blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError, check_choice
from headwise.methods._stages import by_stage, common_width
from headwise.methods.base import Method
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate, is_whole
from headwise.updates.adapted import Delta, Factors
from headwise.updates.sites import PROJECTIONS, Site

KINDS = ("tt", "tk")


class Shared(nn.Module):
    """U and V of one width: U uniform as a linear layer's, V zero."""

    def __init__(self, base: Tensor, width: int, rank: int) -> None:
        super().__init__()
        if not is_whole(rank, width):
            raise ConfigError(f"rank of FacT must be in 1..{width}, got {rank}")
        self.U = nn.Parameter(torch.empty(rank, width, device=base.device).uniform_(-(width**-0.5), width**-0.5))
        self.V = nn.Parameter(torch.zeros(width, rank, device=base.device))


class Core(nn.Module):
    """Tucker core (r, r, r) and slot factors (r, P), Xavier uniform."""

    def __init__(self, base: Tensor, rank: int, num_slots: int) -> None:
        super().__init__()
        self.core = nn.Parameter(torch.empty(rank, rank, rank, device=base.device))
        self.slots = nn.Parameter(torch.empty(rank, num_slots, device=base.device))
        nn.init.xavier_uniform_(self.core)
        nn.init.xavier_uniform_(self.slots)


class FacTDelta(Delta):
    """One projection's update, low-rank: B = s V, A = S U by parts; dropout acts on A x."""

    reads_base = False

    def __init__(self, base: Tensor, shared: Shared, scale: float, dropout: float) -> None:
        super().__init__()
        self.shared = shared
        self.constant, self.dropout = float(scale), float(dropout)
        width = min(base.shape)
        self.num_outs, self.num_ins = base.shape[0] // width, base.shape[1] // width

    def middle(self) -> Tensor:
        """S of every part, (outputs / d, inputs / d, r, r), acting on U x from the left."""
        raise NotImplementedError

    def factors(self) -> Factors:
        """A (outputs / d, r, I) and B (outputs / d, d, r)."""
        # S U of every part, (outputs / d, r, inputs / d, d); parts of one input side by side make A (outputs / d, r, I)
        down = torch.einsum("gjab,bd->gajd", self.middle(), self.shared.U).flatten(2)
        if self.has_heads:  # of q, k, v and o, which are a single part
            return Factors(*self.gated(down, self.shared.V.unsqueeze(0), self.constant), self.dropout)
        up = (self.constant * self.shared.V).expand(self.num_outs, -1, -1)
        return Factors(down, up, self.dropout)

    def weight(self, base: Tensor) -> Tensor:
        down, up = self.factors()[:2]
        return torch.bmm(up, down).flatten(0, 1).to(base.dtype)


class TTDelta(FacTDelta):
    """S is a parameter, drawn as a linear layer's of the same shape: (m r, r) for fc1, (r, m r) for fc2."""

    def __init__(self, base: Tensor, shared: Shared, scale: float, dropout: float) -> None:
        super().__init__(base, shared, scale, dropout)
        rank = shared.U.shape[0]
        bound = (self.num_ins * rank) ** -0.5
        shape = (self.num_outs * rank, self.num_ins * rank)
        self.S = nn.Parameter(torch.empty(shape, device=base.device).uniform_(-bound, bound))

    def middle(self) -> Tensor:
        """The parts of S, cut from the one parameter, (outputs / d, inputs / d, r, r)."""
        rank = self.shared.U.shape[0]
        return self.S.view(self.num_outs, rank, self.num_ins, rank).transpose(1, 2)


class TKDelta(FacTDelta):
    """S is contracted from the shared core and the slots of this projection.

    With row vectors, hidden = (U x) M, M = core . slot (r, r). For fc1 and fc2 the (r, r, m) contraction is read as
    (r, m r), the slot running fastest, and then cut into m blocks of consecutive columns (as the original code does, so
    slots interleave); fc2 uses the transpose.
    """

    def __init__(self, base: Tensor, shared: Shared, core: Core, first: int, scale: float, dropout: float) -> None:
        super().__init__(base, shared, scale, dropout)
        self.core, self.first = core, first

    def middle(self) -> Tensor:
        """The parts of S, contracted from the core, (outputs / d, inputs / d, r, r)."""
        num_slots = self.num_outs * self.num_ins
        mixed = self.core.core @ self.core.slots[:, self.first : self.first + num_slots]
        rank = mixed.shape[0]
        parts = mixed.reshape(rank, num_slots, rank)  # (r, m r) cut into m blocks of columns: (in, part, out)
        if self.num_ins > 1:
            return parts.transpose(0, 1).unsqueeze(0)
        return parts.permute(1, 2, 0).unsqueeze(1)


@dataclass(frozen=True, kw_only=True)
class FacT(Method):
    """U and V shared by all blocks; S free (FacT-TT) or from a shared core (FacT-TK). V is zero, so the start is the
    identity; merges. A gate (targets q, k, v, o only) multiplies a head's rows of V, of o its columns of U.

    Parameters: 2 d r and P L r^2 (TT), P L r + r^3 (TK). ViT-B/16, all six projections (P = 12): TT r = 16 61,440,
    r = 8 21,504, r = 4 8,448; TK r = 32 86,528, r = 16 30,976.

    Licence: MIT (JieShibo/PETL-ViT).
    Not for: Blocks of several widths, which share less. One scale for every task: the authors choose it per task.

    Attributes:
        kind: tt or tk.
        rank: r, in 1 .. d.
        scale: s, constant; searched in {0.01 .. 100} per task by the paper.
        dropout: of the hidden after S, in [0, 1); 0.1 in the paper.
    """  # noqa: D205

    targets: Sequence[str] = PROJECTIONS
    kind: str
    rank: Count
    scale: Factor = 1.0
    dropout: Rate = 0.1

    gateable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind of FacT", self.kind, KINDS)

    def count(self, net: Backbone) -> int:
        """In each stage U and V, 2 d r, and S: r^2 per slot (TT), or r per slot and a core of r^3 (TK)."""
        total, bases = 0, net.bases(self.targets)
        for sites in by_stage(bases):
            width = min(bases[sites[0]].shape)
            slots = sum(bases[site].numel() for site in sites) // width**2  # squares of d that the weights make
            middle = slots * self.rank**2 if self.kind == "tt" else slots * self.rank + self.rank**3
            total += 2 * width * self.rank + middle
        return total

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """One `Shared` per stage, for TK one `Core` as well; ConfigError for a rank or widths that do not fit."""
        deltas: dict[Site, Delta] = {}
        for sites in by_stage(bases):
            first, width = bases[sites[0]], common_width("FacT", sites, bases)
            shared = Shared(first, width, self.rank)
            if self.kind == "tt":
                deltas |= {site: TTDelta(bases[site], shared, self.scale, self.dropout) for site in sites}
                continue
            # slots of the Tucker core in network order: one, or m for fc1 and fc2; `offset` is a projection's first
            slots = [max(bases[site].shape) // width for site in sites]
            core = Core(first, self.rank, sum(slots))
            for site, offset in zip(sites, itertools.accumulate(slots, initial=0), strict=False):
                deltas[site] = TKDelta(bases[site], shared, core, offset, self.scale, self.dropout)
        for site, delta in deltas.items():
            if site.head_axis is not None:
                delta.have_heads(site, bases[site], columns=True)
        return deltas

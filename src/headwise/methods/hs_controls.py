"""Controls that separate what HS-LoRA's second phase brings: blocks without heads, and one phase instead of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.methods.base import Method, check_heads, per_head, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate
from headwise.updates.adapted import Delta, Factors
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site


def side_by_side(parts: Sequence[Factors]) -> Factors:
    """Several block-row updates of one projection, (G, R, I) and (G, O // G, R) each, as a single one of one group.

    It is (1, K, I) and (1, O, K), K the sum over the parts of G R, with zeros where a group does not reach; the first
    part gives the dropout.
    """
    down = torch.cat([part.down.flatten(0, 1) for part in parts])
    up = torch.cat([torch.block_diag(*part.up) for part in parts], dim=1)
    return Factors(down[None], up[None], parts[0].dropout)


class PermutedRows(LowRank):
    """A `LowRank` of several groups whose rows, of o columns, are drawn at random over the projection.

    The draw is torch's present random state, so that each seed has groups of its own; it is stored with the factors.
    """

    order: Tensor

    def __init__(self, site: Site, base: Tensor, rank: int, scale: float, dropout: float) -> None:
        super().__init__(site, base, rank, groups=site.num_heads, scale=scale, dropout=dropout)
        # row i of the projection gets row order[i] of the blocks, of o column i column order[i]
        order = torch.randperm(site.num_rows).to(device=base.device, dtype=torch.int32)
        self.register_buffer("order", order)

    def factors(self) -> Factors:
        """A (1, G R, I) and B (1, O, G R); B's rows, of o A's columns, are not zero in one group each."""
        down, up, dropout, _ = side_by_side([super().factors()])
        order = self.order.long()
        return Factors(down[..., order], up, dropout) if self.in_columns else Factors(down, up[:, order], dropout)


@dataclass(frozen=True, kw_only=True)
class PermutedLoRA(Method):
    """Control of per-head updates: as many groups of as many rows, drawn at random instead of head by head.

    If it does as well as per-head updates, the blocks do the work and not the heads.
    Parameters: those of per-head updates, r' (H I + O) per projection.

    Licence: None needed: it is this project's.
    Not for: Results of their own: it is a control of per-head updates.

    Attributes:
        rank: r' per group, in 1 .. head_dim.
        scale: s, constant.
        dropout: of the hidden, in [0, 1).
    """

    rank: Count
    scale: Factor = 1.0
    dropout: Rate = 0.0

    def count(self, net: Backbone) -> int:
        """r' (H I + O) per projection, of o r' (H O + I)."""
        return per_head(net, self.targets, self.rank)

    def build(self, site: Site, base: Tensor) -> Delta:
        """One group of random rows per head, of o of columns; ConfigError for fc1 and fc2, which have no heads."""
        check_heads(self, site)
        return PermutedRows(site, base, self.rank, self.scale, self.dropout)


class SharedAndHeads(Delta):
    """The sum of a shared and of per-head low-rank updates of one projection."""

    reads_base = False

    def __init__(self, shared: LowRank, heads: LowRank) -> None:
        super().__init__()
        self.shared, self.heads = shared, heads

    def factors(self) -> Factors:
        """A (1, R + H r', I) and B (1, O, R + H r')."""
        return side_by_side([self.shared.factors(), self.heads.factors()])

    def weight(self, base: Tensor) -> Tensor:
        return self.shared.weight(base) + self.heads.weight(base)


@dataclass(frozen=True, kw_only=True)
class JointLoRA(Method):
    """Control of two phases: the shared and the per-head update of HS-LoRA over LoRA, trained together in one phase.

    Parameters: those of both phases, r (I + O) + r' (H I + O) per projection.

    Licence: None needed: it is this project's.
    Not for: Results of their own: it is a control of two phases.

    Attributes:
        rank: r of the shared update.
        head_rank: r' per head, in 1 .. head_dim.
        scale: s of both, constant.
        dropout: of the hidden, in [0, 1).
    """

    rank: Count
    head_rank: Count
    scale: Factor = 1.0
    dropout: Rate = 0.0

    def count(self, net: Backbone) -> int:
        """r (I + O) + r' (H I + O) per projection, of o r (I + O) + r' (H O + I)."""
        shared = per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o))
        return shared + per_head(net, self.targets, self.head_rank)

    def build(self, site: Site, base: Tensor) -> Delta:
        """Both updates of one projection; ConfigError for fc1 and fc2, which have no heads."""
        check_heads(self, site)
        shared, heads = (
            LowRank(site, base, rank, groups=groups, scale=self.scale, dropout=self.dropout)
            for rank, groups in ((self.rank, 1), (self.head_rank, site.num_heads))
        )
        return SharedAndHeads(shared, heads)

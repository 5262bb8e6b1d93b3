"""CaRA (Veeramacheneni et al., ICML 2025): all updates of the model as two CP-decomposed tensors.

Attention: T[k, c, h, e] = sum_p lambda1_p A1[3 l + k, p] A2[c, p] A3[h, p] A4[e, p], added to the rows (h, e) of q, k
and v (k = 0, 1, 2) of block l. o, fc1, fc2: blocks S[o, c] = sum_p lambda2_p P1[j, p] P2[o, p] P3[c, p], one for o, m
below each other for fc1, m below each other and transposed for fc2; and one bias per kind of projection, shared by all
blocks. Everything is multiplied by s. A2 and P2 start at zero: the identity.

The paper defines it on ViT. On Swin each stage has factors of its own.

Legend: L blocks, d width, H heads, e channels of a head, m = MLP width / d, R components.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._stages import by_stage, common_width
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import AtLeast0, Count, Factor, Rate
from headwise.updates.adapted import Delta, Factors
from headwise.updates.sites import PROJECTIONS, QKV, Site


class AttentionFactors(nn.Module):
    """A1 (3 L, R), A2 (d, R), A3 (H, R), A4 (e, R), lambda1 (R,)."""

    def __init__(self, num_slots: int, width: int, heads: int, head_dim: int, rank: int, draw: Tensor) -> None:
        super().__init__()
        self.A1 = nn.Parameter(torch.empty(num_slots, rank))
        self.A2 = nn.Parameter(torch.zeros(width, rank))
        self.A3 = nn.Parameter(torch.empty(heads, rank))
        self.A4 = nn.Parameter(torch.empty(head_dim, rank))
        self.components = nn.Parameter(draw)
        nn.init.xavier_normal_(self.A1)
        nn.init.orthogonal_(self.A3)
        nn.init.orthogonal_(self.A4)

    def sides(self, slot: int) -> tuple[Tensor, Tensor]:
        """U, (H e, R), and V, (d, R), of the update U V^T of q, k or v."""
        heads = torch.einsum("hp,ep->hep", self.A3, self.A4).flatten(0, 1)
        return heads * (self.components * self.A1[slot]), self.A2


class ProjectionFactors(nn.Module):
    """P1 ((1 + 2 m) L, R), P2 (d, R), P3 (d, R), lambda2 (R,), and a bias of each kind of projection."""

    def __init__(self, num_slots: int, width: int, biases: Mapping[str, int], rank: int, draw: Tensor) -> None:
        super().__init__()
        self.P1 = nn.Parameter(torch.empty(num_slots, rank))
        self.P2 = nn.Parameter(torch.zeros(width, rank))
        self.P3 = nn.Parameter(torch.empty(width, rank))
        self.components = nn.Parameter(draw)
        self.biases = nn.ParameterDict({proj: nn.Parameter(torch.zeros(size)) for proj, size in biases.items()})
        nn.init.xavier_normal_(self.P1)
        nn.init.orthogonal_(self.P3)

    def sides(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """U, (count d, R), and V, (d, R), of S = U V^T of `count` slots below each other."""
        left = torch.einsum("jp,op->jop", self.P1[first : first + count] * self.components, self.P2)
        return left.flatten(0, 1), self.P3


class CaRADelta(Delta):
    """The update of one projection: low-rank, or dense where dropout acts on the materialised weight in training."""

    reads_base = False
    optional = ("active",)

    def __init__(
        self,
        site: Site,
        factors: AttentionFactors | ProjectionFactors,
        first: int,
        count: int,
        s: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.site, self.shared, self.first, self.count = site, factors, first, count
        self.constant, self.dropout = float(s), float(dropout)
        if isinstance(factors, AttentionFactors):
            self.register_buffer("active", torch.ones(site.num_heads, device=factors.A1.device))

    @property
    def is_structured(self) -> bool:
        """Without dropout: entries that are dropped one by one leave a matrix of full rank."""
        return not self.dropout

    def sides(self) -> tuple[Tensor, Tensor]:
        """U, s times over, and V of the update U V^T, of fc2 V U^T, with every head on."""
        if isinstance(self.shared, AttentionFactors):
            left, right = self.shared.sides(self.first)
        else:
            left, right = self.shared.sides(self.first, self.count)
        return left * self.constant, right

    def rows_on(self) -> Tensor | None:
        """The switch of every row of q, k and v, (O, 1)."""
        return self.site.rows(self.get_buffer("active")).unsqueeze(1) if self.has_heads else None

    def factors(self) -> Factors | None:
        """V^T as A and U as B; of fc2 U^T as A and V as B."""
        if self.dropout:
            return None
        left, right = self.sides()
        up, down = (right, left.T) if self.site.proj == "fc2" else (left, right.T)
        on = self.rows_on()
        return Factors(down.unsqueeze(0), (up if on is None else up * on).unsqueeze(0))

    def weight(self, base: Tensor) -> Tensor:
        """Dense update, (O, I); with dropout only while training records gradients, so that merging never drops."""
        left, right = self.sides()
        dense, on = left @ right.T, self.rows_on()
        # fc2 reads m d inputs: its m blocks, (m d, d) below each other, lie side by side as (d, m d)
        dense = dense.T if self.site.proj == "fc2" else dense
        dense = dense if on is None else dense * on
        # the authors drop entries of the (O, I) update itself; a merge forms it without gradients and must keep all
        if self.training and self.dropout and torch.is_grad_enabled():
            dense = F.dropout(dense, self.dropout)
        return dense.to(base.dtype)

    def bias(self, weight: Tensor, bias: Tensor) -> Tensor | None:
        """s times the shared bias of this kind of projection, (O,); None for q, k, v."""
        if isinstance(self.shared, AttentionFactors):
            return None
        return self.constant * self.shared.biases[self.site.proj].to(bias.dtype)


@dataclass(frozen=True, kw_only=True)
class CaRA(Method):
    """Two CP tensors of R components over q, k, v and o, fc1, fc2; merges.

    Parameters: (3 L + d + H + e + 1) R + ((1 + 2 m) L + 2 d + 1) R + (2 + m) d; ViT-B/16: 2,526 R + 4,608, 85,440 at
    R = 32. A gate (targets q, k, v only) multiplies the whole update of a head.

    Licence: Apache-2.0 (BonnBytes/CaRA).
    Not for: One scale for every task: the authors choose scale, mean, std and seed per task. Fast steps: 1.7 times
    the frozen network's, but with `dropout` 0, which forms no dense update, 1.15 times.

    Attributes:
        rank: R, at least 1; 32 in the authors' code.
        scale: s, constant; chosen from {0.1 .. 100} per task by the authors.
        mean, std: of the component weights lambda at the start; exactly `mean` where std is 0.
        dropout: of the materialised update, in [0, 1).
    """

    targets: Sequence[str] = PROJECTIONS
    rank: Count
    scale: Factor = 1.0
    mean: float = 1.0
    std: AtLeast0 = 0.0
    dropout: Rate = 0.1
    gateable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mean and not self.std:
            raise ConfigError(
                f"mean and std of method {self.label!r} are both 0: an update that is zero on both sides never learns"
            )

    def count(self, net: Backbone) -> int:
        """In each stage R components of two tensors, each with its weight, and the biases, as the class says."""
        total, bases = 0, net.bases(self.targets)
        for sites in by_stage(bases):
            heads, rest = ([s for s in sites if (s.proj in QKV) == wanted] for wanted in (True, False))
            if heads:
                first = heads[0]
                sides = len(heads) + bases[first].shape[1] + first.num_heads + first.head_dim  # 3 L, d, H, e
                total += self.rank * (sides + 1)
            if rest:
                width = min(bases[rest[0]].shape)
                slots = sum(bases[site].numel() for site in rest) // width**2  # 1 + 2 m in each block
                total += self.rank * (slots + 2 * width + 1)
                total += sum({site.proj: bases[site].shape[0] for site in rest}.values())
        return total

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """As any method of deltas.

        Raises:
            ConfigError: where o, fc1 or fc2 has no bias to add to, or the MLP's width is no multiple of the block's.
        """
        for site in net.sites:
            if site.proj in self.targets and site.proj not in QKV and getattr(net.linear(site), "bias", None) is None:
                raise ConfigError(f"{site.key} has no bias; CaRA adds one to every o, fc1 and fc2")
        return super().install(net, plan)

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """Two factor sets per stage, one delta per projection."""
        deltas: dict[Site, Delta] = {}
        for sites in by_stage(bases):
            deltas |= self._stage({site: bases[site] for site in sites})
        return {site: deltas[site] for site in bases}

    def _stage(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        deltas: dict[Site, Delta] = {}
        # q, k and v have heads as an axis of their tensor, (3 L, d, H, e); the others have blocks of (d, d)
        heads = [site for site in bases if site.proj in QKV]
        rest = [site for site in bases if site.proj not in QKV]
        if heads:
            first = heads[0]
            base = bases[first]
            attention = AttentionFactors(
                len(heads), base.shape[1], first.num_heads, first.head_dim, self.rank, self._draw()
            ).to(base.device)
            for slot, site in enumerate(heads):
                deltas[site] = CaRADelta(site, attention, slot, 1, self.scale, self.dropout)
        if rest:
            width = common_width("CaRA", rest, bases)
            counts = [max(bases[site].shape) // width for site in rest]
            biases = {site.proj: bases[site].shape[0] for site in rest}
            factors = ProjectionFactors(sum(counts), width, biases, self.rank, self._draw()).to(bases[rest[0]].device)
            for site, slot, count in zip(rest, itertools.accumulate(counts, initial=0), counts, strict=False):
                deltas[site] = CaRADelta(site, factors, slot, count, self.scale, self.dropout)
        return deltas

    def _draw(self) -> Tensor:
        mean = float(self.mean)
        return torch.empty(self.rank).normal_(mean, self.std) if self.std else torch.full((self.rank,), mean)

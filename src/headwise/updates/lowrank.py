"""LowRank: the idea of both papers in one class.

Legend: I/O features, H heads, G groups, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.schema.kinds import is_whole
from headwise.updates.adapted import Delta, Factors
from headwise.updates.quantize import Coded, Quantizer, pack_codes, unpack_codes
from headwise.updates.sites import Site


def check_rank(site: Site, base: Tensor, rank: int, groups: int = 1) -> None:
    """Check the rank of each of `groups` equal groups of the rows of a weight, (O, I), or of the columns of o.

    Raises:
        ConfigError: if it is not in 1 .. min(O // groups, I), of o min(O, I // groups), or the groups do not divide the
            rows.
    """
    (own, other), side = (base.shape, "row") if site.head_axis != "input" else (reversed(base.shape), "column")
    if groups < 1 or own % groups:
        raise ConfigError(f"groups must divide the {own} {side}s of {site.key}, got {groups}")
    largest = min(own // groups, other)
    if not is_whole(rank, largest):
        raise ConfigError(f"rank must be in 1..{largest} for {site.key} with {groups} {side} group(s), got {rank}")


def kaiming_(down: Tensor) -> None:
    """Draw A, (..., I), as nn.Linear draws its weight: Kaiming uniform with a = sqrt(5)."""
    # with a = sqrt(5) the gain is 1 / sqrt(3), so the bound gain sqrt(3 / I) is 1 / sqrt(I)
    bound = down.shape[-1] ** -0.5
    nn.init.uniform_(down, -bound, bound)


class LowRank(Delta):
    """gate * blocks(s B_g A_g): one group is LoRA, a group per head is Head-Specific LoRA, a 0/1 gate is Heart-LoRA.

    With G = 1 this is LoRA (Hu et al., arXiv:2106.09685); with G = num_heads, HS-LoRA sec. 4.4 (A (H, r', d),
    B (H, d_h, r')); the gate is Heart-LoRA's mask (Eq. 6), one value per head on the update, never on the weight. With
    a quantiser, A and B are replaced by their quantised values wherever they are used (Bi-LoRA).

    The blocks are rows of q, k and v and columns of o, whose heads own inputs: there A_g, (R, I // G), reads the inputs
    of its group alone and B_g, (O, R), reaches every row, a block-diagonal A and a dense B. A gate then switches
    columns, but for a quantised update, which has none on o.

    A is Kaiming uniform per group (the nn.Linear default), B is zero, so the start is the identity. Quantised, B is
    normal with std 0.001 cut at 0.002, since a constant matrix would never learn, and the start is slightly off.
    Parameters: R * (G * I + O), on o R * (G * O + I).
    """

    reads_base = False
    active: Tensor

    def __init__(
        self,
        site: Site,
        base: Tensor,
        rank: int,
        groups: int = 1,
        scale: float = 1.0,
        dropout: float = 0.0,
        quantizer: Quantizer | None = None,
    ) -> None:
        """Build the factors of one projection.

        Args:
            site: the projection, for its heads.
            base: its weight, (O, I).
            rank: per group, in 1 .. min(O // groups, I), of o in 1 .. min(O, I // groups).
            groups: of rows; divides O. On o of columns; divides I.
            scale: s, constant.
            dropout: of the hidden A x, in [0, 1).
            quantizer: of A and B, each with one mean and deviation; None keeps them as they are.

        Raises:
            ConfigError: for a rank, group count or dropout out of range.
        """
        super().__init__()
        check_rank(site, base, rank, groups)
        num_rows, num_inputs = base.shape
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1) for {site.key}, got {dropout}")
        self.have_heads(site, base, columns=quantizer is None)
        self.constant, self.dropout = float(scale), float(dropout)
        self.quantizer = quantizer
        self.coded = {} if quantizer is None else {"A": Coded(quantizer), "B": Coded(quantizer)}
        self.in_columns = self.site.head_axis == "input" and groups > 1
        if self.in_columns:
            num_inputs //= groups
        else:
            num_rows //= groups
        self.A = nn.Parameter(torch.empty(groups, rank, num_inputs, device=base.device))
        self.B = nn.Parameter(torch.zeros(groups, num_rows, rank, device=base.device))
        kaiming_(self.A)
        if quantizer is not None:  # quantised, a constant matrix has no deviation and stays constant
            nn.init.trunc_normal_(self.B, std=0.001, a=-0.002, b=0.002)
        # with a factor pair per head (HS-LoRA) a head that is off takes its A along; a shared A stays (Heart-LoRA)
        self.is_per_head = groups == site.num_heads > 1
        self.by_head = ("A", "B") if self.is_per_head else ("A",) if self.site.head_axis == "input" else ("B",)
        self.runs: tuple[tuple[int, int], ...] | None = None
        # `runs` follows from the buffer ``active``, which loading replaces behind its back
        self.register_load_state_dict_post_hook(_refreshed)

    def freeze_down(self) -> None:
        """Hold A as it was drawn: it is stored, since it is random, but does not train."""
        drawn = self.A.detach()
        # the name must be free before a buffer takes it; stored files then have A under the same name
        del self.A
        self.register_buffer("A", drawn)

    def refresh(self) -> None:
        """Find the runs of heads that are on; with a factor pair per head the others are not computed at all."""
        for matrix in self.coded.values():
            matrix.stored = None  # other heads, or other latent values, have other codes
        on = self.active.bool().tolist()
        self.runs = runs_of(on) if self.is_per_head and not self.in_columns and not all(on) else None

    def factors(self) -> Factors:
        """A (G, R, I) and the scaled, gated B (G, O // G, R), both quantised if there is a quantiser.

        Groups of columns are one group of rows, A (1, G R, I) with zeros where a group does not read, B (1, O, G R).
        """
        down, up = self.gated(*self.values(), self.constant)
        if self.in_columns:
            down, up = torch.block_diag(*down).unsqueeze(0), torch.cat(tuple(up), dim=1).unsqueeze(0)
        return Factors(down, up, self.dropout, self.runs)

    def values(self) -> tuple[Tensor, Tensor]:
        """A and B as they are used: quantised if there is a quantiser; after `unpack` they already are."""
        if not self.coded:
            return self.A, self.B
        return self.coded["A"].value(self.A), self.coded["B"].value(self.B, self.site.rows(self.active).bool())

    def pack(self) -> dict[str, Tensor]:
        """As `Delta.pack`; quantised factors as codes and (mean, deviation), of B without the rows of heads off."""
        if not self.coded:
            return super().pack()
        on = self.active.bool()
        rows = self.site.rows(on)
        stored = self.coded["A"].pack(self.A, "A.")
        if bool(on.all()):
            return stored | self.coded["B"].pack(self.B, "B.", rows)
        return stored | self.coded["B"].pack(self.B, "B.", rows, rows) | {"active": pack_codes(on, 1)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """As `Delta.unpack`; A and B then hold the stored codes' values, which are not quantised again."""
        if not self.coded:
            super().unpack(tensors)
            return
        on = torch.ones_like(self.active, dtype=torch.bool)
        if "active" in tensors:
            on = unpack_codes(tensors["active"].to(on.device), 1, len(on)).bool()
        # before the codes are read: `refresh` forgets those of the heads that were on until now
        self.switch(on.to(self.active))
        rows = self.site.rows(on)
        up = self.B.data.view(-1, self.B.shape[-1])  # (O, R), a row for each output
        self.A.data.copy_(self.coded["A"].unpack(tensors, self.A, "A."))
        kept = self.coded["B"].unpack(tensors, up[rows], "B.")
        # rows of heads that are off are not in the file, and must not keep what they were drawn with
        up.zero_()
        up[rows] = kept.to(up)

    def weight(self, base: Tensor) -> Tensor:
        """Dense update, (O, I)."""
        down, up, *_ = self.factors()
        return torch.bmm(up, down).flatten(0, 1).to(base.dtype)


def runs_of(on: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """Stretches of True as (first, last + 1)."""
    edges = [index for index in range(len(on) + 1) if (index < len(on) and on[index]) != (index > 0 and on[index - 1])]
    return tuple(zip(edges[0::2], edges[1::2], strict=True))


def _refreshed(module: nn.Module, _: object) -> None:
    """After weights were loaded; a function of the module, which a copy and a pickle of the network can hold."""
    if isinstance(module, LowRank):
        module.refresh()

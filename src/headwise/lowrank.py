"""LowRank: the idea of both papers in one class.

Legend: I/O features, H heads, G groups, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headwise.adapted import Delta, Factors
from headwise.errors import ConfigError
from headwise.sites import Site


class LowRank(Delta):
    """gate * blockrows(s B_g A_g): one group is LoRA, a group per head is Head-Specific LoRA, a 0/1 gate is Heart-LoRA.

    With G = 1 this is LoRA (Hu et al., arXiv:2106.09685); with G = num_heads, HS-LoRA sec. 4.4 (A (H, r', d),
    B (H, d_h, r')); the gate is Heart-LoRA's mask (Eq. 6), one value per head on the update, never on the weight.

    A is Kaiming uniform per group (the nn.Linear default), B is zero, so the start is the identity.
    Parameters: R * (G * I + O).
    """

    reads_base = False
    optional = ("active",)
    active: Tensor

    def __init__(
        self, site: Site, base: Tensor, rank: int, groups: int = 1, scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        """Build the factors of one projection.

        Args:
            site: the projection, for its heads.
            base: its weight, (O, I).
            rank: per group, in 1 .. min(O // groups, I).
            groups: row groups; divides O.
            scale: s, constant.
            dropout: of the hidden A x, in [0, 1).

        Raises:
            ConfigError: for a rank, group count or dropout out of range.
        """
        super().__init__()
        num_rows, num_inputs = base.shape
        if groups < 1 or num_rows % groups:
            raise ConfigError(f"groups must divide the {num_rows} rows of {site.key}, got {groups}")
        largest = min(num_rows // groups, num_inputs)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
            raise ConfigError(f"rank must be in 1..{largest} for {site.key} with {groups} row group(s), got {rank}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1) for {site.key}, got {dropout}")
        self.site, self.constant, self.dropout = site, float(scale), float(dropout)
        self.A = nn.Parameter(torch.empty(groups, rank, num_inputs, device=base.device))
        self.B = nn.Parameter(torch.zeros(groups, num_rows // groups, rank, device=base.device))
        nn.init.uniform_(self.A, -(num_inputs**-0.5), num_inputs**-0.5)  # Kaiming uniform with a = sqrt(5)
        self.register_buffer("active", torch.ones(site.num_heads, device=base.device))

    def factors(self) -> Factors:
        """A (G, R, I) and the scaled, gated B (G, O // G, R)."""
        gate = self.site.rows(self.active).view(*self.B.shape[:2], 1)
        return Factors(self.A, self.B * (gate * self.constant), self.dropout)

    def pack(self) -> dict[str, Tensor]:
        """The factors; the mask only where a head is off."""
        stored = dict(self.state_dict())
        if bool(self.active.all()):
            del stored["active"]
        return stored

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """The update alone, (..., O); the path of bases without a dense weight."""
        down, up, dropout = self.factors()
        hidden = torch.einsum("...i,gri->...gr", x, down.to(x.dtype))
        hidden = nn.functional.dropout(hidden, dropout, self.training)
        return torch.einsum("...gr,gor->...go", hidden, up.to(x.dtype)).flatten(-2)

    def weight(self, base: Tensor) -> Tensor:
        """Dense update, (O, I)."""
        down, up, _ = self.factors()
        return torch.bmm(up, down).flatten(0, 1).to(base.dtype)

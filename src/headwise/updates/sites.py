"""Sites: the address of one projection of one block, and how its sides divide into heads. Pure values, no modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from headwise.errors import ConfigError, suggest
from headwise.schema.kinds import PROJECTIONS

__all__ = ["HEADED", "PROJECTIONS", "QKV", "Site", "select"]

QKV = ("q", "k", "v")
HEADED = (*QKV, "o")
"""The projections that heads own a part of: rows of q, k and v, columns of o."""


@dataclass(frozen=True, order=True)
class Site:
    """One projection of one block, independent of how the backbone stores it.

    Attributes:
        stage: 0 for ViT; Swin has four.
        block: 0-based within the stage.
        proj: one of `PROJECTIONS`.
        num_heads: heads that own a part of the projection; 1 for fc1 and fc2. Differs by stage in Swin.
        head_dim: consecutive output rows of one head, or input columns (see `head_axis`).
        head_axis: the side that divides into heads: the ``output`` of q, k and v, the ``input`` of o, which reads the
            heads' outputs side by side; None for fc1 and fc2, which have no heads.
    """

    stage: int
    block: int
    proj: str
    num_heads: int
    head_dim: int
    head_axis: Literal["output", "input"] | None = "output"

    @property
    def key(self) -> str:
        """Name of the site in files: ``s0.b3.q``."""
        return f"s{self.stage}.b{self.block}.{self.proj}"

    @property
    def num_rows(self) -> int:
        """Length of the side that the heads divide, that of the output without heads; o with heads is square."""
        return self.num_heads * self.head_dim

    def rows(self, per_head: Tensor) -> Tensor:
        """Spread one value per head, (H,), over the output rows, or o's input columns, (H * head_dim,)."""
        return per_head.repeat_interleave(self.head_dim)

    def head_parts(self, weight: Tensor) -> Tensor:
        """What each head owns of a weight, (O, I): (H, head_dim, I), of o (H, head_dim, O), its columns as rows."""
        rows = weight.mT if self.head_axis == "input" else weight
        return rows.unflatten(-2, (self.num_heads, -1))

    def per_head_size(self, shape: Sequence[int]) -> int:
        """Parameters of an update of rank 1 for every head of a weight of shape (O, I): H I + O, of o H O + I."""
        own, other = reversed(shape) if self.head_axis == "input" else shape
        return self.num_heads * other + own


def select(sites: Iterable[Site], targets: Sequence[str]) -> tuple[Site, ...]:
    """The sites of `targets`, in network order; ConfigError for none, or a target that names no projection here."""
    sites = tuple(sites)
    available = {site.proj for site in sites}
    if not targets:
        raise ConfigError(f"targets is empty{suggest('', available)}")
    for target in targets:
        if target not in available:
            raise ConfigError(f"target {target!r} matches no projection of this backbone{suggest(target, available)}")
    return tuple(site for site in sites if site.proj in targets)

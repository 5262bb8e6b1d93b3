"""Sites: the address of one projection of one block, and how its rows divide into heads. Pure values, no modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from headwise.errors import ConfigError, suggest
from headwise.schema.kinds import PROJECTIONS

__all__ = ["PROJECTIONS", "QKV", "Site", "select"]

QKV = ("q", "k", "v")


@dataclass(frozen=True, order=True)
class Site:
    """One projection of one block, independent of how the backbone stores it.

    Attributes:
        stage: 0 for ViT; Swin has four.
        block: 0-based within the stage.
        proj: one of `PROJECTIONS`.
        num_heads: row groups of the projection; 1 for o, fc1 and fc2. Differs by stage in Swin.
        head_dim: consecutive output rows of one head.
    """

    stage: int
    block: int
    proj: str
    num_heads: int
    head_dim: int

    @property
    def key(self) -> str:
        """Name of the site in files: ``s0.b3.q``."""
        return f"s{self.stage}.b{self.block}.{self.proj}"

    @property
    def num_rows(self) -> int:
        """Output rows of the projection."""
        return self.num_heads * self.head_dim

    def rows(self, per_head: Tensor) -> Tensor:
        """Spread one value per head, (H,), over the projection's output rows, (H * head_dim,)."""
        return per_head.repeat_interleave(self.head_dim)


def select(sites: Iterable[Site], targets: Sequence[str]) -> tuple[Site, ...]:
    """The sites whose projection is one of `targets`, in network order.

    Raises:
        ConfigError: if `targets` is empty, or one of them names no projection of this network.
    """
    sites = tuple(sites)
    available = {site.proj for site in sites}
    if not targets:
        raise ConfigError(f"targets is empty{suggest('', available)}")
    for target in targets:
        if target not in available:
            raise ConfigError(f"target {target!r} matches no projection of this backbone{suggest(target, available)}")
    return tuple(site for site in sites if site.proj in targets)

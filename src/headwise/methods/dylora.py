"""DyLoRA (Valipour et al., EACL 2023, arXiv:2210.07558): LoRA that works at every rank up to R.

Each step draws one b in 1 .. R for all layers: y = W x + (alpha / b) B[:, :b] A[:b] x. Evaluated and merged at one
chosen b.

Legend: I/O features, R largest rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods.base import Installed, Method, Plan, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Seed, is_whole
from headwise.updates.adapted import Delta, Factors
from headwise.updates.lowrank import kaiming_
from headwise.updates.sites import Site


@dataclass
class DrawnRank:
    """The rank of the present step, shared by all deltas; None outside training."""

    rank: int | None = field(default=None)


class TruncatedLowRank(Delta):
    """(alpha / b) B[:, :b] A[:b], A Kaiming uniform, B zero. Parameters: R (I + O)."""

    reads_base = False

    def __init__(
        self, site: Site, base: Tensor, rank: int, alpha: float, infer: int, frozen: bool, drawn: DrawnRank
    ) -> None:
        super().__init__()
        largest = min(base.shape)
        if not is_whole(rank, largest):
            raise ConfigError(f"rank must be in 1..{largest} for {site.key}, got {rank}")
        self.alpha, self.infer, self.frozen, self.drawn = alpha, infer, frozen, drawn
        self.A = nn.Parameter(torch.empty(1, rank, base.shape[1], device=base.device))
        self.B = nn.Parameter(torch.zeros(1, base.shape[0], rank, device=base.device))
        kaiming_(self.A)

    def cut(self, rank: int, frozen: bool) -> tuple[Tensor, Tensor]:
        """A (1, b, I) and the scaled B (1, O, b); with `frozen`, only their last row and column carry gradient."""
        down, up = self.A[:, :rank], self.B[..., :rank]
        if frozen:
            # rows before the last took their turn in steps of a smaller rank; here they are held
            down = torch.cat([down[:, :-1].detach(), down[:, -1:]], dim=1)
            up = torch.cat([up[..., :-1].detach(), up[..., -1:]], dim=2)
        return down, up * (self.alpha / rank)

    def factors(self) -> Factors:
        """At the rank drawn for this step in training (R before the first draw), at the chosen one otherwise."""
        if not self.training:
            return Factors(*self.cut(self.infer, False))
        rank = self.drawn.rank
        return Factors(*self.cut(self.A.shape[1] if rank is None else rank, self.frozen and rank is not None))

    def weight(self, base: Tensor) -> Tensor:
        """Dense update at the chosen rank, (O, I)."""
        down, up = self.cut(self.infer, False)
        return (up[0] @ down[0]).to(base.dtype)


class RankSampling(L.Callback):
    """Draws the rank of every step, uniform in 1 .. R, from the step's number and a seed alone.

    No other random number is touched, and a resumed run draws the same ranks.
    """

    def __init__(self, drawn: DrawnRank, largest: int, seed: int) -> None:
        self.drawn, self.largest, self.seed = drawn, largest, seed

    def draw(self, step: int) -> int:
        """The rank of optimiser step `step`."""
        # a prime far above the steps of a run keeps the draws of two seeds apart
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return int(torch.randint(1, self.largest + 1, (), generator=generator))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Let all deltas work at the rank of this step."""
        self.drawn.rank = self.draw(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave no drawn rank behind: the deltas go back to the chosen one."""
        self.drawn.rank = None


@dataclass(frozen=True, kw_only=True)
class DyLoRA(Method):
    """LoRA trained at all ranks 1 .. R at once. B is zero, so the start is the identity; merges at the chosen rank.

    Parameters: R (I + O) per projection; ViT-B/16, q and v, R = 8: 294,912.

    Licence: Not established (huawei-noah/KD-NLP).
    Not for: One known rank: plain LoRA of that rank trains it in every step.

    Attributes:
        rank: R, the largest, in 1 .. min(O, I).
        inference_rank: b of evaluation and merging, in 1 .. R; None takes R.
        alpha: scale times b; None takes R, so that the largest rank has scale 1.
        frozen: whether a step trains only row b of A and column b of B, the ones before being held.
        seed: of the draws, at least 0.
    """

    rank: int
    inference_rank: Count | None = None
    alpha: Factor | None = None
    frozen: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inference_rank is not None and not 1 <= self.inference_rank <= self.rank:
            raise ConfigError(
                f"inference_rank of method {self.label!r} must be in 1..{self.rank}, got {self.inference_rank}"
            )

    def count(self, net: Backbone) -> int:
        return per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o))

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """Deltas that look at the same drawn rank."""
        drawn = DrawnRank()
        alpha = float(self.rank if self.alpha is None else self.alpha)
        infer = self.inference_rank or self.rank
        return {
            site: TruncatedLowRank(site, base, self.rank, alpha, infer, self.frozen, drawn)
            for site, base in bases.items()
        }

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """As any method of deltas, with the sampling of ranks."""
        installed = super().install(net, plan)
        first: Any = next(iter(installed.owners.values()))
        installed.more = [RankSampling(first.drawn, self.rank, self.seed)]
        installed.facts = {"inference_rank": self.inference_rank or self.rank}  # at which it is tested and merged
        return installed

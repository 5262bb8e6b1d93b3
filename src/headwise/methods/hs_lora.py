"""Head-Specific LoRA, alone and as the second phase of two (HS-LoRA, sec. 4.2 to 4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods.base import Method, check_heads, per_head
from headwise.network.backbone import Backbone
from headwise.schema.kinds import SAME_SIZE, Count, Factor, Rate, Text
from headwise.updates.adapted import Delta
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site


@dataclass(frozen=True, kw_only=True)
class HeadLoRA(Method):
    """A private low-rank update B_i A_i for the rows of each head i (HS-LoRA sec. 4.2).

    Equal to LoRA of rank H r' with a dense A and a block-diagonal B. On o, which the paper leaves out, for the columns
    of each head: a block-diagonal A and a dense B. The paper leaves init, scale and dropout open: A
    is Kaiming uniform per head, B zero, scale 1, dropout 0.
    Parameters: r' * (H * I + O) per projection, r' * (H * O + I) of o: 9,984 r' on ViT-B/16.

    Formula: W_i + s B_i A_i for the rows W_i, (d_h, I), of each head i; A_i (r', I), B_i (d_h, r').
    Source: HS-LoRA sec. 4.2.
    Licence: No code is published.
    Not for: MLPs: fc1 and fc2 have no heads. Claims about heads without its controls of equal size.

    Attributes:
        rank: r' per head, in 1 .. head_dim.
        scale: s, constant.
        dropout: of the hidden, in [0, 1).
    """

    rank: Count
    scale: Factor = 1.0
    dropout: Rate = 0.0

    gateable: ClassVar[bool] = True

    def count(self, net: Backbone) -> int:
        return per_head(net, self.targets, self.rank)

    def build(self, site: Site, base: Tensor) -> Delta:
        """One group of rows per head, of o one of columns; ConfigError for fc1 and fc2, which have no heads."""
        check_heads(self, site)
        return LowRank(site, base, self.rank, groups=site.num_heads, scale=self.scale, dropout=self.dropout)


@dataclass(frozen=True, kw_only=True)
class TwoPhase:
    """Any shared update first, then per-head updates over the merged weights (HS-LoRA sec. 4.3).

    Formula: W1 = W + s B A (or any other first phase), merged; then W1_i + s B_i A_i for the rows of each head i.
    Source: HS-LoRA sec. 4.3 and 4.4.
    Licence: No code is published.
    Not for: Claims from its gain alone: two phases also train longer; the hs_control methods tell what the second
    brings.

    Attributes:
        label: names the run's folder and the table's row.
        first: Phase 1, any single-phase method.
        heads: Phase 2.
        revision: of the composition itself.
    """

    label: Text
    first: Method
    heads: Method
    revision: Count = 1

    def __post_init__(self) -> None:
        for name, part in (("first", self.first), ("heads", self.heads)):
            if not isinstance(part, Method) or len(part.phases()) != 1:
                raise ConfigError(
                    f"method.{name} must be a single-phase method, got {type(part).__name__}; "
                    "choose one with method@method.first=lora"
                )

    def phases(self) -> tuple[Method, ...]:
        """Phase 1, then Phase 2."""
        return (*self.first.phases(), *self.heads.phases())


@dataclass(frozen=True, kw_only=True)
class Longer:
    """Control of equal length: Phase 1 alone for the epochs of both phases.

    A second phase also begins its schedule anew, with a warm-up and a fresh optimiser. With two cycles so does this
    one, and trains on the same factors: it has the parameters of Phase 1.

    Licence: None needed: it is this project's.
    Not for: Results of their own: it is a control of equal training time.

    Attributes:
        label: names the run's folder and the table's row.
        first: Phase 1 of the comparison.
        epochs: of both phases together.
        cycles: times that the schedule runs over them, see `Method`.
        revision: of the composition itself.
    """

    label: Text
    first: Method
    epochs: Count
    cycles: Count = 1
    revision: Count = 1

    def phases(self) -> tuple[Method, ...]:
        """One long phase."""
        return (replace(self.first, epochs=self.epochs, cycles=self.cycles),)


@dataclass(frozen=True, kw_only=True)
class MatchedLoRA(Method):
    """Control of equal size: plain LoRA with as many parameters as `HeadLoRA` of rank r' has.

    r = r' (H I + O) / (I + O) on average; where that is not whole, neighbouring layers of a target take the whole ranks
    around it, so that all of them together have the size: 6 and 7 at r' = 1 on ViT-B/16, 13 everywhere at r' = 2. Where
    few projections leave more than 0.5 % between the two, it is refused.

    Licence: None needed: it is this project's.
    Not for: Results of their own: it is a control of equal size.

    Attributes:
        head_rank: r' of the per-head update it stands against.
        scale: s, constant.
        dropout: of the hidden, in [0, 1).
    """

    head_rank: Count
    scale: Factor = 1.0
    dropout: Rate = 0.0

    def count(self, net: Backbone) -> int:
        """r (I + O) per projection, all together as many as `HeadLoRA` has, to within one rank of one projection."""
        shapes = {site: (base.shape[0], base.shape[1]) for site, base in net.bases(self.targets).items()}
        ranks = matched_ranks(self.head_rank, shapes)
        return sum(ranks[site] * sum(shape) for site, shape in shapes.items())

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """One group of rows each, of the matched ranks; ConfigError if whole ranks cannot have the size."""
        shapes = {site: (base.shape[0], base.shape[1]) for site, base in bases.items()}
        if abs(off := _off(self.head_rank, shapes)) > SAME_SIZE:
            equal = [str(rank) for rank in range(1, 65) if abs(_off(rank, shapes)) <= SAME_SIZE]
            raise ConfigError(
                f"{self.label!r} cannot match per-head updates of rank {self.head_rank} on "
                f"{', '.join(site.key for site in shapes)}: whole ranks have {100 * off:+.1f} % parameters, allowed is "
                f"{100 * SAME_SIZE:g} %; ranks per head that can be matched: {', '.join(equal[:4]) or 'none'}"
            )
        ranks = matched_ranks(self.head_rank, shapes)
        return {
            site: LowRank(site, base, ranks[site], groups=1, scale=self.scale, dropout=self.dropout)
            for site, base in bases.items()
        }


@dataclass(frozen=True, kw_only=True)
class ScaledHeadLoRA(Method):
    """Control of equal steps: `HeadLoRA` whose updates move as far as those of `MatchedLoRA` at the same rate.

    The hypothesis: a step of Adam changes every entry of A and B by about the rate, so an update of rank r moves r
    times as far as one of rank 1; docs/results.md tests it, and finds much less. Plain LoRA of equal size has a larger
    rank than each head; here the scale makes up for it: s r / r', r the rank of `MatchedLoRA` in the same layer, 6.5 s
    on q and v of ViT-B/16 at r' = 2.
    Parameters: those of per-head updates, r' (H I + O) per projection, of o r' (H O + I).

    Licence: None needed: it is this project's.
    Not for: Results of their own: it is a control of equal steps.

    Attributes:
        rank: r' per head, in 1 .. head_dim.
        scale: s of the plain LoRA that it stands beside, constant.
        dropout: of the hidden, in [0, 1).
    """

    rank: Count
    scale: Factor = 1.0
    dropout: Rate = 0.0

    def count(self, net: Backbone) -> int:
        return per_head(net, self.targets, self.rank)

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """One group per head, of the scales that plain LoRA's ranks give; ConfigError for what has no heads."""
        for site in bases:
            check_heads(self, site)
        ranks = matched_ranks(self.rank, {site: (base.shape[0], base.shape[1]) for site, base in bases.items()})
        return {
            site: LowRank(
                site,
                base,
                self.rank,
                groups=site.num_heads,
                scale=self.scale * ranks[site] / self.rank,
                dropout=self.dropout,
            )
            for site, base in bases.items()
        }


def matched_ranks(head_rank: int, shapes: Mapping[Site, tuple[int, int]]) -> dict[Site, int]:
    """Ranks of plain LoRA with the parameters of per-head updates of rank r', all projections together.

    `shapes` are (O, I). What a whole rank leaves over or takes too much is made up for by the next layer of the target.
    """
    ranks: dict[Site, int] = {}
    due = 0  # parameters that the layers so far should have and do not
    # one kind of projection after the other, so that what is due passes between neighbours of one shape
    for site in sorted(shapes, key=lambda site: (site.proj, site.stage, site.block)):
        due += head_rank * site.per_head_size(shapes[site])
        cost = sum(shapes[site])
        ranks[site] = max(1, round(due / cost))
        due -= ranks[site] * cost
    return ranks


def _off(head_rank: int, shapes: Mapping[Site, tuple[int, int]]) -> float:
    """By which share plain LoRA of the matched ranks has more parameters than per-head updates."""
    ranks = matched_ranks(head_rank, shapes)
    wanted = sum(head_rank * site.per_head_size(shape) for site, shape in shapes.items())
    return sum(ranks[site] * sum(shape) for site, shape in shapes.items()) / wanted - 1

"""Consistency: noise on what a method adds, and equal answers under two draws of it (PACE). Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from headwise.errors import ConfigError
from headwise.schema.check import check_fields, mode_or_fields
from headwise.schema.kinds import AtLeast0, Count, Whole

Mode = Literal["pace", "lazy", "fast"]
MODES = get_args(Mode)


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """PACE (Ni, Zhang and Koniusz, NeurIPS 2024, arXiv:2409.17137), for the updates of any method.

    In training the change that an update or an inserted part makes is multiplied by 1 + sigma_b n, n standard normal,
    drawn for each sample and channel and equal for all tokens. Two passes over a batch, which share all other masks
    (drop-path, dropout), give logits f1 and f2; the loss is CE(f1, y) + lam ||f1 - f2||^2, the square summed over the
    classes and averaged over the samples. What is tested, scored and merged is free of noise.

    sigma_b falls linearly with depth: sigma (L + 1 - b) / (L + 1 - spare) in block b of L, from 0, and 0 in the first
    `spare` blocks; the classifier counts as block L and its logits get the noise of the last place.

    Read in the authors' code (MaxwellYaoNi/PACE, MIT: Vision/pace/pace_ops.py at commit 2f51f44, Vision/train.py at
    13d47de). Here the draws of Swin are per image; there the first axis of a window's tokens counts, so each window has
    its own. Their drop-path divides the masks by their mean, which is left out. The two passes are one after the other
    here, and one batch of twice the size there.

    Attributes:
        mode: ``pace``; ``lazy`` compares in every `every`-th step only, on half of the batch; ``fast`` has one pass and
            compares with the logits that the same images had in the epoch before, zero in the first.
        lam: weight of the term, at least 0; 0 is noise alone, in one pass. The authors choose it and sigma per task
            (1 and 1.2 on CIFAR-100); lazy wants a larger lam, fast a larger sigma and a smaller lam.
        sigma: of the noise in the first block that has any, at least 0; 0 is training as it was.
        every: steps from one comparison to the next, in mode lazy.
        spare: blocks at the front without noise; None: one on a ViT, none on a network of stages, as the authors.
        head: whether the logits get noise as well, as in the authors' code.
    """

    mode: Mode = "pace"
    lam: AtLeast0 = 1.0
    sigma: AtLeast0 = 1.0
    every: Count = 1
    spare: Whole | None = None
    head: bool = True

    def __post_init__(self) -> None:
        check_fields(self, lambda name: f"consistency.{name}")
        if self.every > 1 and self.mode != "lazy":
            raise ConfigError(
                f"consistency.every={self.every} is read in mode lazy only, got mode={self.mode}; allowed: every=1, or "
                "mode=lazy"
            )

    @classmethod
    def of(cls, given: Self | Mapping[str, Any] | str | None) -> Self | None:
        """What a mode (``pace``) or fields mean, None for none; ConfigError for what is unknown or out of range."""
        if given is None or isinstance(given, cls):
            return given
        return cls(**mode_or_fields(cls, "consistency", given, MODES))

    def spec(self) -> dict[str, Any]:
        """All fields, plain."""
        return asdict(self)

    def sigmas(self, num_blocks: int, num_stages: int) -> list[float]:
        """Deviation of the noise at each of L blocks and, last, at the logits, (L + 1,); one stage means a ViT.

        ConfigError if no block would have noise.
        """
        spare = self.spare if self.spare is not None else int(num_stages == 1 and num_blocks > 1)
        if spare >= num_blocks:
            raise ConfigError(
                f"consistency.spare leaves no block with noise, got {spare}; allowed: 0..{num_blocks - 1} of "
                f"{num_blocks} blocks"
            )
        share = [(num_blocks + 1 - block) / (num_blocks + 1 - spare) for block in range(spare, num_blocks + 1)]
        whole = [0.0] * spare + [self.sigma * part for part in share]
        return whole if self.head else [*whole[:-1], 0.0]

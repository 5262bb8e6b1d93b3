"""Gate: which heads of an update are switched off, and when. Plain data, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from headwise.errors import ConfigError
from headwise.schema.check import check_fields, mode_or_fields
from headwise.schema.effective import effective_gate
from headwise.schema.kinds import Count, Rate, Warmup, Whole

Mode = Literal["heart", "front", "random"]
Score = Literal["taylor_pos", "taylor_neg", "taylor_abs", "weight_l2", "grad_l2"]
Scope = Literal["global", "layer", "stage"]
ScoreData = Literal["full_pass", "last_batch"]

MODES, SCORES, SCOPES, SCORE_DATA = map(get_args, (Mode, Score, Scope, ScoreData))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Heart-LoRA's choice of heads (sec. 3): train, score each head once, switch the least responsive off, go on.

    Attributes:
        mode: ``heart`` scores at the end of the warm-up; ``front`` switches the first heads off from the start,
            ``random`` random ones (controls without scores).
        count: heads off in every layer, n_e, in 0 .. heads - 1; only where all layers have as many heads.
        ratio: share of each layer's heads instead, in [0, 1), rounded down (the paper on Swin).
        budget: heads that stay on in all layers together, for each projection, instead of as many in every layer.
        score: ``taylor_pos`` dL/dgate (the paper's Eq. 5 as printed; a head that lowers the loss has a negative one),
            ``taylor_neg`` its opposite, so that the least useful heads go, ``taylor_abs`` its size, ``weight_l2`` and
            ``grad_l2`` norms of the head's rows of B and of their gradient.
        scope: ``global`` adds scores over the layers and switches the same heads off in each; ``layer`` chooses in each
            layer alone (the paper's dagger). On a network of several stages global is by ``stage``: they never mix.
        score_data: ``full_pass`` is the mean loss over the training images, without dropout; ``last_batch`` what the
            last training step before the choice left behind.
        pooled: one choice for all projections together instead of one for each.
        warmup: epochs before the choice; below 1, a fraction of the run in whole epochs, at least one.
    """

    mode: Mode = "heart"
    count: Whole | None = None
    ratio: Rate | None = None
    budget: Count | None = None
    score: Score = "taylor_neg"
    scope: Scope = "global"
    score_data: ScoreData = "full_pass"
    pooled: bool = False
    warmup: Warmup = 0.1

    def __post_init__(self) -> None:
        check_fields(self, lambda name: f"gate.{name}")
        amounts = [name for name in ("count", "ratio", "budget") if getattr(self, name) is not None]
        if len(amounts) != 1:
            raise ConfigError(
                f"a gate takes one of count, ratio and budget, got {amounts or 'none'}; choose one with ne=ne3"
            )
        if self.budget is not None and self.mode != "heart":
            raise ConfigError(f"gate.budget keeps the best heads, which gate.mode={self.mode} does not know; use count")

    @classmethod
    def of(cls, given: Self | Mapping[str, Any] | str | None, ne: Mapping[str, Any] | None = None) -> Self | None:
        """The gate that a configuration means; None for none.

        Args:
            given: a mode (``heart``), or fields of a gate; where they say no amount, `ne` does.
            ne: ``count`` or ``ratio``, and ``warmup``, as in conf/ne.

        Raises:
            ConfigError: for an unknown field or a value out of range.
        """
        if given is None or isinstance(given, cls):
            return given
        values = mode_or_fields(cls, "gate", given, MODES)
        if values.get("budget") is not None:
            values.update(count=None, ratio=None)
        elif values.get("count") is None and values.get("ratio") is None:
            values.update({name: value for name, value in (ne or {}).items() if values.get(name) is None})
        return cls(**values)

    def spec(self) -> dict[str, Any]:
        """All fields, plain."""
        return asdict(self)

    def effective(self) -> Self | None:
        """This gate without what cannot change a number; None if it switches nothing off."""
        values = effective_gate(self.spec())
        return None if values is None else type(self)(**values)

    @property
    def is_scored(self) -> bool:
        """Whether heads are scored during training: not for fixed masks, nor where none is to go."""
        return self.mode == "heart" and self.count != 0 and self.ratio != 0.0

    def num_off(self, num_heads: int) -> int:
        """Heads to switch off in a layer of `num_heads`; ConfigError if none stays on, or a ratio rounds to nothing."""
        if self.count is not None:
            if self.count >= num_heads:
                raise ConfigError(
                    f"gate.count must leave a head on: 0..{num_heads - 1} for {num_heads} heads, got {self.count}"
                )
            return self.count
        if self.ratio is None:
            return 0
        # a share such as 0.29 of 100 comes out as 28.999... in binary, and would switch one head too few off
        off = math.floor(self.ratio * num_heads + 1e-9)
        if off == 0 and self.ratio > 0:
            raise ConfigError(
                f"gate.ratio={self.ratio} of {num_heads} heads rounds to nothing; the least is {1 / num_heads:.4g}"
            )
        return off

    def warmup_epochs(self, epochs: int) -> int:
        """Whole epochs before the choice, of a run of `epochs`; the warm-up of the rate is the protocol's.

        Another rule gives other numbers under the same ``warmup``: results of before are told apart by an entry in
        `headwise.protocol.revisions`.

        Raises:
            ConfigError: if no epoch would be left after it.
        """
        count = int(self.warmup) if self.warmup >= 1 else max(1, round(self.warmup * epochs))
        if count >= epochs:
            raise ConfigError(
                f"gate.warmup={self.warmup} is {count} of {epochs} epoch(s): at least one must follow; "
                "lower gate.warmup or raise the epochs"
            )
        return count

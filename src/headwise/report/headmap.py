"""Scores and masks of heads, read once for every form: the page's picture, the run's picture and both CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]
"""Of each projection ``stage, block, proj, active, score``, as a phase's record has them."""
COLUMNS = ("stage", "block", "projection", "head", "score", "active")


@dataclass(frozen=True)
class HeadMap:
    """One projection in all layers.

    Attributes:
        name: of the projection.
        layers: names of its rows; the stage is said where there are several.
        scores: of each layer those of its heads; None where nothing was scored.
        active: of each layer 1 for a head that is on, 0 for one that is off.
    """

    name: str
    layers: list[str]
    scores: list[list[float] | None]
    active: list[list[int]]

    @property
    def num_heads(self) -> int:
        """The most that a layer has: stages of a Swin differ."""
        return max(map(len, self.active))

    @property
    def largest(self) -> float:
        """The largest size of a score, 1 without any: colours are over it."""
        return max((abs(score) for scores in self.scores for score in scores or ()), default=0.0) or 1.0


def head_maps(rows: Rows) -> list[HeadMap]:
    """Return the projections of a phase, in the order of its record."""
    names = dict.fromkeys(str(row["proj"]) for row in rows)
    return [_head_map(name, [row for row in rows if row["proj"] == name]) for name in names]


def _head_map(name: str, rows: Rows) -> HeadMap:
    layers = layer_names([(row["stage"], row["block"]) for row in rows])
    scores = [[float(score) for score in row["score"]] if row["score"] else None for row in rows]
    return HeadMap(name, layers, scores, [list(row["active"]) for row in rows])


def layer_names(places: Sequence[tuple[int, int]]) -> list[str]:
    """Names of layers, stage and block of each: ``block``, or ``stage.block`` where they are of several stages."""
    several = len({stage for stage, _ in places}) > 1
    return [f"{stage}.{block}" if several else str(block) for stage, block in places]


def lines(rows: Rows) -> list[list[Any]]:
    """Return a line per projection and head, of `COLUMNS`."""
    return [
        [row["stage"], row["block"], row["proj"], head, row["score"][head] if row["score"] else None, active]
        for row in rows
        for head, active in enumerate(row["active"])
    ]

"""Kind ``subspaces`` (HS-LoRA, Figures 2 and 3): which singular directions an update turned, whole and per head.

Everything is set beside random updates. Of directions the random update of a matrix has that matrix's own singular
values; of sizes and ranks of heads it has those of the whole projection, which it spreads over all heads alike.

Legend: L layers, O/I features, H heads, e rows of a head, K leading vectors, R ranks, N draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from headwise.analysis.bands import POSITIVE, SHARE, Band, Bounds, band
from headwise.analysis.changes import Change, Group, by_head, changes
from headwise.analysis.drawing import draw
from headwise.analysis.kinds import Options
from headwise.analysis.made import Analysis
from headwise.artifacts.saved import SavedRun
from headwise.errors import ConfigError
from headwise.updates.directions import (
    Singular,
    effective_rank,
    kept,
    random_factors,
    random_like,
    ranks,
    rounding_of,
    singular,
    spectrum,
)

SIDES = ("left", "right")
SIZES = ("size", "relative")
"""Measures that a head without an update has too; all others it has not: no update has no directions."""
BOUNDS: dict[str, Bounds] = {"match": SHARE, "overlap": SHARE, "angle": (0.0, 90.0)}
"""By the last word of a measure's name; the others are positive."""


@dataclass(frozen=True)
class Measured:
    """A measure of matrices and the same of random updates: value (...), draws (N, ...), NaN where there is none."""

    value: Tensor
    draws: Tensor
    bounds: Bounds

    @property
    def null(self) -> Band:
        """The band of each matrix."""
        return band(self.draws, self.bounds)

    @property
    def num_there(self) -> int:
        return int((~self.value.isnan()).sum())

    def mean(self, dims: Sequence[int] | None = None) -> Measured:
        """Of what is there, over these dimensions of the matrices, or all, draw by draw."""
        over = tuple(range(self.value.ndim) if dims is None else dims)
        return Measured(self.value.nanmean(over), self.draws.nanmean(tuple(dim + 1 for dim in over)), self.bounds)


@dataclass(frozen=True)
class Part:
    """One projection of all layers that changed, whole (L,) or by head (L, H).

    Attributes:
        group: which projection of which layers.
        is_whole: or by head.
        ranks: of ``overlap``.
        measures: by name: ``size`` (Frobenius norm), ``relative`` (to the weight), ``effective_rank``, and of each side
            ``<side>_match`` (...), ``<side>_overlap`` and ``<side>_angle`` (..., R), see `Kept`. Of a head without an
            update all but its size are NaN.
        shown: place in the group of the layer that changed most.
        first, tuned, random: decompositions of that layer: before, after, after a random update.
    """

    group: Group
    is_whole: bool
    ranks: list[int]
    measures: dict[str, Measured]
    shown: int
    first: Singular
    tuned: Singular
    random: Singular


def analyse(runs: Sequence[SavedRun], options: Options) -> Analysis:
    """Make the analysis of one run."""
    if len(runs) != 1:
        raise ConfigError(f"subspaces looks at one run, got {len(runs)}; give one folder")
    change = changes(runs[0], options.weights)[-1]
    pieces = list(parts(change, options.draws, options.seed))
    key = runs[0].result.key
    return Analysis(
        "subspaces",
        f"Singular directions before and after {key.method} on {key.dataset} ({change.label})",
        {"matrices": _matrices(pieces), "overlap_by_rank": _by_rank(pieces)},
        draw(pieces),
        [sentence for part in pieces for sentence in _sentences(part)] + [_explained(pieces)],
    )


def parts(change: Change, draws: int, seed: int) -> Iterator[Part]:
    """Measure every changed projection, whole and by head."""
    for group in change.groups():
        for is_whole in (True, False):
            yield _part(change, group, is_whole, draws, torch.Generator().manual_seed(seed))


def _part(change: Change, group: Group, is_whole: bool, draws: int, generator: torch.Generator) -> Part:
    before, update = change.of(group)
    live = torch.ones(len(before), dtype=torch.bool) if is_whole else change.live(group)
    shown = int((update.flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).argmax())
    cut: Callable[[Tensor], Tensor] = (lambda x: x) if is_whole else (lambda x: by_head(x, group.num_heads))
    leading = before.shape[-2] // group.num_heads
    whole_values = spectrum(update, rounding_of(before))  # (L, K)
    values = whole_values if is_whole else spectrum(cut(update), rounding_of(cut(before)))
    first = singular(cut(before))
    tuned = singular(cut(before + update))
    found = _of_live({**_sizes(cut(update), values, cut(before)), **_sides(first, tuned, leading)}, live)
    collected: dict[str, list[Tensor]] = {name: [] for name in found}
    examples: list[Singular] = []
    for _ in range(draws):
        turned = singular(cut(before) + random_like(values, cut(update).shape[-2:], generator))
        # sizes and ranks of rows are those of the rows of the left factor: the right one is orthonormal
        spread = cut(random_factors(whole_values, update.shape[-2:], generator)[0])
        drawn = {**_sizes(spread, spectrum(spread), cut(before)), **_sides(first, turned, leading)}
        for name, value in _of_live(drawn, live).items():
            collected[name].append(value)
        examples += [] if examples else [_one(turned, shown)]
    measures = {
        name: Measured(value, torch.stack(collected[name]), BOUNDS.get(name.split("_")[-1], POSITIVE))
        for name, value in found.items()
    }
    return Part(group, is_whole, ranks(leading), measures, shown, _one(first, shown), _one(tuned, shown), *examples)


def _of_live(measures: dict[str, Tensor], live: Tensor) -> dict[str, Tensor]:
    """The measures, all but sizes NaN where there is no update."""
    return {
        name: value
        if name in SIZES
        else value.where(live.view(*live.shape, *[1] * (value.ndim - live.ndim)), torch.nan)
        for name, value in measures.items()
    }


def _one(layers: Singular, layer: int) -> Singular:
    return Singular(*(tensor[layer] for tensor in layers))


def _sizes(update: Tensor, values: Tensor, before: Tensor) -> dict[str, Tensor]:
    size = update.norm(dim=(-2, -1))
    return {"size": size, "relative": size / before.norm(dim=(-2, -1)), "effective_rank": effective_rank(values)}


def _sides(first: Singular, after: Singular, leading: int) -> dict[str, Tensor]:
    measures: dict[str, Tensor] = {}
    for side in SIDES:
        one = kept(getattr(first, side), getattr(after, side), leading)
        measures |= {f"{side}_match": one.match, f"{side}_overlap": one.overlap, f"{side}_angle": one.angle}
    return measures


def _rows(part: Part) -> Iterator[tuple[dict[str, Any], tuple[int, ...]]]:
    """What names each matrix, and its place in the measures."""
    for layer in range(len(part.group.sites)):
        if part.is_whole:
            yield {**part.group.named(layer), "head": "whole"}, (layer,)
        else:
            for head in range(part.group.num_heads):
                yield {**part.group.named(layer), "head": str(head)}, (layer, head)


def _matrices(pieces: Sequence[Part]) -> pd.DataFrame:
    """A line per matrix: each measure of it, and its null."""
    names = ("size", "relative", "effective_rank", "left_match", "right_match")
    lines = []
    for part in pieces:
        nulls = {name: part.measures[name].null for name in names}
        for named, place in _rows(part):
            line = {**named, "draws": len(part.measures["size"].draws)}
            for name, null in nulls.items():
                line[name] = float(part.measures[name].value[place])
                line |= null.columns(name, place)
            lines.append(line)
    return pd.DataFrame(lines)


def _by_rank(pieces: Sequence[Part]) -> pd.DataFrame:
    """A line per matrix, side and rank."""
    lines = []
    for part in pieces:
        nulls = {side: part.measures[f"{side}_overlap"].null for side in SIDES}
        wide = {side: part.measures[f"{side}_angle"].null for side in SIDES}
        for named, place in _rows(part):
            for side in SIDES:
                overlap, angle = (part.measures[f"{side}_{name}"].value[place] for name in ("overlap", "angle"))
                for at, rank in enumerate(part.ranks):
                    line = {**named, "side": side, "rank": rank, "overlap": float(overlap[at])}
                    line |= nulls[side].columns("overlap", (*place, at))
                    line |= {"largest_angle": float(angle[at])}
                    line |= wide[side].columns("largest_angle", (*place, at))
                    lines.append(line)
    return pd.DataFrame(lines)


def verdict(value: float, null: Band, digits: int = 4) -> str:
    """A number beside its band: ``0.9312, as a random update's 0.9207 (0.9013 to 0.9401)``."""
    place = {"within": "as", None: "beside"}.get(where := null.place(torch.tensor(value), digits), where)
    mean, low, high = (f"{float(end):.{digits}f}" for end in null)
    return f"{value:.{digits}f}, {place} a random update's {mean} ({low} to {high})"


def _sentences(part: Part) -> list[str]:
    what = f"{part.group.name}, {'whole matrices' if part.is_whole else 'each head'}"
    said = []
    rank, size = part.measures["effective_rank"], part.measures["size"]
    absent = rank.value.numel() - rank.num_there
    left_out = f" ({absent} without an update are left out)" if absent else ""
    for side in SIDES:
        measured = part.measures[f"{side}_match"]
        inside = int(measured.null.holds(measured.value).sum())
        mean = measured.mean()
        said.append(
            f"{what}: matching {side} singular vectors have a mean absolute cosine of "
            f"{verdict(float(mean.value), mean.null)}; {inside} of {measured.num_there} lie in their own "
            f"bands{left_out}."
        )
    mean = rank.mean()
    if part.is_whole:
        return [*said, f"{what}: the update has an effective rank of {float(mean.value):.1f} on average."]
    largest = size.value.flatten().argmax()
    layer, head = divmod(int(largest), size.value.shape[1])
    above = int((size.value > size.null.high).sum())
    said.append(f"{what}: the update has an effective rank of {verdict(float(mean.value), mean.null, 1)}{left_out}.")
    said.append(
        f"{what}: the largest update is that of layer {part.group.layers[layer]}, head {head}; {above} of "
        f"{size.value.numel()} heads have a larger one than the same energy spread at random."
    )
    return said


def _explained(pieces: Sequence[Part]) -> str:
    draws = len(pieces[0].measures["size"].draws)
    leading = ", ".join(str(number) for number in sorted({part.ranks[-1] for part in pieces}))
    return (
        f"Leading vectors are as many as a head has rows ({leading}). Bands hold 95 % of further random updates: of "
        f"directions with each matrix's own singular values, of sizes and ranks of heads with those of the "
        f"whole (n = {draws} draws each): one number in twenty lies outside by chance."
    )

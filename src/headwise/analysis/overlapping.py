"""Kind ``overlap``: do the heads of an update share their directions, and is a second phase orthogonal to the first?

Two kinds of random updates stand beside the heads of one update: ``apart`` draws each head by itself, with its own
singular values; ``joint`` draws the whole projection with its singular values, so that heads share a low-rank factor
as those of plain LoRA do by construction. Beside a second phase stands a random update with its singular values.

Legend: L layers, O/I features, H heads, N draws.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from headwise.analysis import style
from headwise.analysis.bands import COSINE, SHARE, Band, Bounds, band
from headwise.analysis.changes import Change, Group, by_head, changes, names_of
from headwise.analysis.kinds import Options
from headwise.analysis.made import Analysis
from headwise.analysis.mechanism import Gains
from headwise.artifacts.saved import SavedRun
from headwise.results.records import Result
from headwise.updates.directions import random_factors, rounding_of, spectrum
from headwise.updates.shares import Between, Heads, between, between_heads, spanned

MOST_ROWS = 8
"""Of a picture: phases and projections."""
RANDOM_ORDERS = 1000
"""Behind the band of a correlation over runs."""
BESIDE = ("apart", "joint")
SHARES = {"shared": "in another head's row space", "own": "outside all other heads'"}
AGAINST = {"cosine": "cosine", "rows": "in the first's row space", "columns": "in the first's column space"}
BOUNDS: dict[str, Bounds] = {"cosine": COSINE}
"""Of measures that are no shares."""


@dataclass(frozen=True)
class Within:
    """The heads of one update.

    Attributes:
        label: of the phase. group: which projection of which layers.
        heads: what was measured, (L, H, ...).
        random: the same of random updates, (N, L, H, ...), by kind.
    """

    label: str
    group: Group
    heads: Heads
    random: dict[str, Heads]

    def null(self, name: str, kind: str, dims: int | None = None) -> Band:
        """The band of a measure, or of its mean over all but the first `dims` dimensions, of what is there."""
        return band(_draws(self.random[kind], name, dims), SHARE)


@dataclass(frozen=True)
class Across:
    """Two updates of one projection: whole (L, 1), or by head (L, H).

    Attributes:
        labels: of the two phases. group: which projection of which layers. is_whole: or by head.
        measured: energies and cosine.
        random: the same with a random second update, (N, L, ...).
    """

    labels: tuple[str, str]
    group: Group
    is_whole: bool
    measured: Between
    random: Between

    def null(self, name: str, dims: int | None = None) -> Band:
        """As `Within.null`."""
        return band(_draws(self.random, name, dims), BOUNDS.get(name, SHARE))


def analyse(runs: Sequence[SavedRun], options: Options) -> Analysis:
    """Make the analysis of one run or several."""
    within: list[tuple[str, Within]] = []
    across: list[tuple[str, Across]] = []
    for run, name in zip(runs, names_of(runs), strict=True):
        phases = [change for change in changes(run, options.weights) if change.label != "all phases"]
        for change in phases:
            within += [(name, one) for one in heads_of(change, options)]
        for first, second in itertools.pairwise(phases):
            across += [(name, one) for one in between_phases(first, second, options)]
    tables = {"heads": _heads_table(within), "pairs": _pairs_table(within)}
    figures: dict[str, Figure] = {}
    for number, name in enumerate(dict.fromkeys(name for name, _ in within), start=1):
        end = f"_{number}" if len(runs) > 1 else ""
        mine, two = [one for of, one in within if of == name], [one for of, one in across if of == name]
        figures |= style.parted(f"pairs{end}", mine, functools.partial(_pairs, name), MOST_ROWS)
        figures |= style.parted(f"shares{end}", mine, functools.partial(_shares, name), MOST_ROWS)
        figures |= style.parted(f"phases{end}", two, functools.partial(_phases, name), MOST_ROWS)
    gains = _gains({name: run.result for run, name in zip(runs, names_of(runs), strict=True)}, within, across)
    if across:
        tables["phases"] = _phases_table(across)
    if len(gains.table):
        tables["gains"] = gains.table
        figures |= gains.figures()
    said = [_said_within(name, one, len(runs) > 1) for name, one in within]
    said += [_said_across(name, one, len(runs) > 1) for name, one in across]
    said += gains.sentences(RANDOM_ORDERS, options.seed)
    said.append(
        f"Bands hold 95 % of further random updates (n = {options.draws} draws each): {'; '.join(_NULLS)}. "
        "In them one number in twenty lies outside by chance."
    )
    title = "What heads share, and what a second phase adds" if across else "What the heads of an update share"
    return Analysis("overlap", title, tables, figures, said)


_NULLS = (
    "apart, every head drawn by itself with its own singular values",
    "joint, the whole projection drawn with its singular values, whose rows the heads divide",
    "between phases, the second drawn with its singular values",
)


def heads_of(change: Change, options: Options) -> Iterator[Within]:
    """Measure the heads of every changed projection."""
    for group in change.groups():
        before, update = change.of(group)
        num_heads = group.num_heads
        cut, rounding = by_head(update, num_heads), rounding_of(by_head(before, num_heads))
        cut = cut.where(change.live(group)[..., None, None], torch.zeros(()))
        values = {"apart": spectrum(cut, rounding), "joint": spectrum(update, rounding_of(before))}
        drawn: dict[str, Heads] = {}
        for kind in BESIDE:
            generator = torch.Generator().manual_seed(options.seed)
            shape = cut.shape[-2:] if kind == "apart" else update.shape[-2:]
            draws = []
            for _ in range(options.draws):
                left, right = random_factors(values[kind], shape, generator)
                draws.append(between_heads(_turned(left, right) if kind == "apart" else by_head(left, num_heads)))
            drawn[kind] = Heads(*(torch.stack(parts) for parts in zip(*draws, strict=True)))
        yield Within(change.label, group, between_heads(cut, rounding), drawn)


def _turned(left: Tensor, right: Tensor) -> Tensor:
    """Random heads, (..., H, e, R) times (..., H, I, R) turned, in coordinates of what all reach together.

    Angles and sizes are the same in fewer inputs, which a decomposition is quick in.
    """
    num_heads, rank = right.shape[-3], right.shape[-1]
    if num_heads * rank >= right.shape[-2]:
        return left @ right.mT
    together = torch.linalg.qr(right.movedim(-3, -2).flatten(-2), mode="r")[1]  # (..., H R, H R)
    return left @ together.unflatten(-1, (num_heads, rank)).movedim(-2, -3).mT


def between_phases(first: Change, second: Change, options: Options) -> Iterator[Across]:
    """Compare what two phases did to every projection that both changed."""
    changed = set(first.changed)
    for group in (group.among(changed) for group in second.groups()):
        if not group.sites:
            continue
        (start_one, one), (start_two, two) = (change.of(group) for change in (first, second))
        for is_whole in (True, False):
            weights, before, weights_two, after = (
                x[:, None] if is_whole else by_head(x, group.num_heads) for x in (start_one, one, start_two, two)
            )
            if not is_whole:
                before, after = (
                    x.where(change.live(group)[..., None, None], torch.zeros(()))
                    for x, change in ((before, first), (after, second))
                )
            start, values = spanned(before, rounding_of(weights)), spectrum(after, rounding_of(weights_two))
            generator = torch.Generator().manual_seed(options.seed)
            shape = after.shape[-2:]
            drawn = [between(start, *random_factors(values, shape, generator)) for _ in range(options.draws)]
            random = Between(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))
            labels = (first.label, second.label)
            yield Across(labels, group, is_whole, between(start, after), random)


def _gains(
    results: Mapping[str, Result], within: Sequence[tuple[str, Within]], across: Sequence[tuple[str, Across]]
) -> Gains:
    """Gains of the runs' second phases beside the means of their heads, all projections together."""
    heads = {
        run: [
            _pooled([getattr(one.heads, name) for of, one in within if (of, one.label) == (run, label)])
            for name in SHARES
        ]
        for run, label in {run: one.labels[1] for run, one in across}.items()
    }
    spaces = {
        run: [
            _pooled([getattr(one.measured, name) for of, one in across if of == run and not one.is_whole])
            for name in ("rows", "columns")
        ]
        for run in heads
    }
    return Gains.of(results, heads, spaces)


def _pooled(values: Sequence[Tensor]) -> float:
    """Mean of everything that is there."""
    return float(torch.cat([value.flatten() for value in values]).nanmean()) if values else float("nan")


def _heads_table(entries: Sequence[tuple[str, Within]]) -> pd.DataFrame:
    lines: list[dict[str, Any]] = []
    for run, one in entries:
        nulls = {(name, kind): one.null(name, kind) for name in SHARES for kind in BESIDE}
        for place in np.ndindex(tuple(one.heads.shared.shape)):
            line: dict[str, Any] = {"run": run, "phase": one.label, **one.group.named(place[0]), "head": place[1]}
            for name in SHARES:
                line[name] = float(getattr(one.heads, name)[place])
                for kind in BESIDE:
                    line |= nulls[name, kind].columns(f"{name}_{kind}", place)
            lines.append(line)
    return pd.DataFrame(lines)


def _pairs_table(entries: Sequence[tuple[str, Within]]) -> pd.DataFrame:
    lines: list[dict[str, Any]] = []
    for run, one in entries:
        nulls = {kind: one.null("overlap", kind) for kind in BESIDE}
        for layer, head, other in np.ndindex(tuple(one.heads.overlap.shape)):
            if head < other:
                line: dict[str, Any] = {"run": run, "phase": one.label, **one.group.named(layer)}
                line |= {"head": head, "other": other}
                line["overlap"] = float(one.heads.overlap[layer, head, other])
                for kind in BESIDE:
                    line |= nulls[kind].columns(f"overlap_{kind}", (layer, head, other))
                lines.append(line)
    return pd.DataFrame(lines)


def _phases_table(entries: Sequence[tuple[str, Across]]) -> pd.DataFrame:
    lines: list[dict[str, Any]] = []
    for run, one in entries:
        nulls = {name: one.null(name) for name in AGAINST}
        for place in np.ndindex(tuple(one.measured.cosine.shape)):
            line: dict[str, Any] = {"run": run, "first": one.labels[0], "second": one.labels[1]}
            line |= {**one.group.named(place[0]), "head": "whole" if one.is_whole else str(place[1])}
            for name, null in nulls.items():
                line[name] = float(getattr(one.measured, name)[place])
                line |= null.columns(name, place)
            lines.append(line)
    return pd.DataFrame(lines)


def _draws(random: Heads | Between, name: str, dims: int | None) -> Tensor:
    draws: Tensor = getattr(random, name)
    return draws if dims is None else _mean(draws, dims + 1)


def _mean(values: Tensor, dims: int) -> Tensor:
    """Mean over all but the first `dims` dimensions, of what is there."""
    return values.flatten(dims).nanmean(-1) if values.ndim > dims else values


def _said(value: Tensor, null: Band) -> str:
    return f"{float(null.mean):.3f} ({float(null.low):.3f} to {float(null.high):.3f}), {null.place(value, 3)} it"


def _said_within(run: str, one: Within, with_run: bool) -> str:
    shared, own = _mean(one.heads.shared, 0), _mean(one.heads.own, 0)
    what = f"{f'{run}: ' if with_run else ''}{one.label}, {one.group.name}"
    there = int((~one.heads.shared.isnan()).sum())
    if not there:
        return f"{what}: no layer has two heads with an update, which it needs to compare them."
    beside = [f"{kind} random heads {_said(shared, one.null('shared', kind, 0))}" for kind in BESIDE]
    absent = one.heads.shared.numel() - there
    left_out = f"; {absent} heads without an update, or alone in their layer, are left out" if absent else ""
    return (
        f"{what}: {float(shared):.3f} of a head's energy lies "
        f"in another head's row space ({'; '.join(beside)}), {float(own):.3f} outside all others' ({BESIDE[0]} "
        f"{_said(own, one.null('own', 'apart', 0))}){left_out}."
    )


def _said_across(run: str, one: Across, with_run: bool) -> str:
    what = (
        f"{f'{run}: ' if with_run else ''}{one.labels[1]} after {one.labels[0]}, {one.group.name}, "
        f"{'whole matrices' if one.is_whole else 'each head'}"
    )
    absent = int(one.measured.cosine.isnan().sum())
    if absent == one.measured.cosine.numel():
        return f"{what}: no head was changed by both phases."
    parts = [
        f"{said} {float(value):.3f}, random {_said(value, one.null(name, 0))}"
        for name, said in AGAINST.items()
        for value in [_mean(getattr(one.measured, name), 0)]
    ]
    left_out = f"; {absent} heads that one of the two left alone are left out" if absent else ""
    return f"{what}, energy of the second: {'; '.join(parts)}{left_out}."


def _pairs(run: str, entries: Sequence[Within]) -> Figure:
    """Overlap of each pair of heads, mean of the layers: measured, and both kinds of random."""
    title = f"Overlap of the heads' updates, mean of the layers ({run})"
    with style.picture(len(entries), 3, panel=(2.2, 2.2), title=title) as (figure, axes):
        image: Any = None
        for row, one in zip(axes, entries, strict=True):
            shown = [("measured", one.heads.overlap.nanmean(0))]
            shown += [(f"random, {kind}", one.random[kind].overlap.flatten(0, 1).nanmean(0)) for kind in BESIDE]
            for axis, (said, values) in zip(row, shown, strict=True):
                image = axis.imshow(values.numpy(), cmap=style.SEQUENTIAL, vmin=0, vmax=1)
                style.hatched(axis, values.isnan(), style.ABSENT_WORDS)
                axis.set(title=f"{one.label}, {one.group.name}: {said}", xlabel="head")
                style.bare(axis)
            row[0].set_ylabel("head")
        figure.colorbar(image, ax=axes, label="overlap", shrink=0.7)
    return figure


def _shares(run: str, entries: Sequence[Within]) -> Figure:
    """Energy that heads share, and that is each one's own, layer by layer."""
    title = f"What heads share, mean of the heads ({run})"
    with style.picture(len(entries), 2, panel=(3.6, 1.5), title=title, sharey=True) as (figure, axes):
        for row, one in zip(axes, entries, strict=True):
            for axis, (name, said) in zip(row, SHARES.items(), strict=True):
                x = range(len(one.group.layers))
                for number, kind in enumerate(BESIDE, start=1):
                    style.banded(axis, x, None, one.null(name, kind, 1), number, f"random, {kind}")
                style.banded(axis, x, _mean(getattr(one.heads, name), 1), None, 0, "measured")
                style.layer_ticks(axis, one.group.layers)
                axis.set(title=f"{one.label}, {one.group.name}: {said}", ylim=(-0.03, 1.03), xlabel="layer")
                axis.grid(axis="y")
            row[0].set_ylabel("share of a head's energy")
    return figure


def _phases(run: str, entries: Sequence[Across]) -> Figure:
    """How much of the second phase lies where the first did, layer by layer."""
    title = f"{entries[0].labels[1]} after {entries[0].labels[0]}: is the second orthogonal? ({run})"
    with style.picture(len(entries), 3, panel=(3.0, 1.5), title=title) as (figure, axes):
        for row, one in zip(axes, entries, strict=True):
            for axis, (name, said) in zip(row, AGAINST.items(), strict=True):
                x = range(len(one.group.layers))
                style.banded(axis, x, None, one.null(name, 1), 1, "random second phase (95 %)")
                style.banded(axis, x, _mean(getattr(one.measured, name), 1), None, 0, "measured")
                style.layer_ticks(axis, one.group.layers)
                axis.set(title=f"{one.group.name}, {'whole' if one.is_whole else 'heads'}: {said}", xlabel="layer")
                axis.grid(axis="y")
                if name == "cosine":
                    largest = max(0.1, *(abs(end) for end in axis.get_ylim()))
                    axis.set_ylim(-largest, largest)
                else:
                    axis.set_ylim(-0.03, 1.03)
            row[0].set_ylabel("cosine")
            row[1].set_ylabel("share of energy")
    return figure

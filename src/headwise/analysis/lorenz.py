"""How much accuracy a single head's update carries alone, and how it adds up: the head-level Lorenz curve of a task.

Legend: U updates of heads, N images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from headwise.analysis import style
from headwise.analysis.bands import Band, band
from headwise.analysis.changes import names_of, same_network
from headwise.analysis.made import Analysis
from headwise.analysis.opened import head_columns, images_of, unscored
from headwise.analysis.responsive_pictures import maps
from headwise.analysis.switches import Batch, HeadUpdate, Outcome, Switches, cumulative, toggled
from headwise.artifacts.saved import SavedRun

if TYPE_CHECKING:
    from headwise.analysis.kinds import Options

POINTS = 12
"""Numbers of heads at which a curve is measured, beside none and all."""
SHARE = 0.9


@dataclass(frozen=True)
class Carried:
    """What heads' updates of one run carry.

    Attributes:
        updates: (U,), in network order.
        live: those of them that are not nothing.
        none: all of them off; the classifier and what else was trained stay.
        alone: each alone on, (U, N).
        chooses: images that the order of the heads is chosen on, (N,); the curves are measured on the others.
        first: in words, where the one lies that carries most alone on the former.
        gain: points of accuracy that it adds alone on the latter.
        counts: how many are on, ascending from 0 to all that are not nothing.
        best, worst: accuracy, percent, with the best first, or the worst, (counts,).
        random: of random orders, (orders, counts).
    """

    name: str
    updates: tuple[HeadUpdate, ...]
    live: Collection[HeadUpdate]
    none: Outcome
    alone: Outcome
    chooses: Tensor
    first: str
    gain: float
    counts: list[int]
    best: NDArray[np.float64]
    worst: NDArray[np.float64]
    random: NDArray[np.float64]

    @property
    def num_measured(self) -> int:
        """Images behind the curves."""
        return int((~self.chooses).sum())

    @property
    def band(self) -> Band:
        """Where the curve of one more random order falls, percent, (counts,) each."""
        return band(torch.from_numpy(self.random), (0.0, 100.0), 0.5 / self.num_measured)

    def needed(self, curve: NDArray[np.float64]) -> int:
        """The least measured number of heads that reach `SHARE` of what all together gain; all if they gain nothing."""
        first, last = float(curve[0]), float(curve[-1])
        if last <= first:
            return self.counts[-1]
        reached = curve >= first + SHARE * (last - first)
        return self.counts[int(np.argmax(reached))]


def analyse(runs: Sequence[SavedRun], options: Options) -> Analysis:
    """Measure every head's update of every run alone, then all of them in three orders."""
    same_network(runs, "heads")
    runs_carried = [_measure(run, name, options) for run, name in zip(runs, names_of(runs), strict=True)]
    table = pd.concat([_alone(one, run) for one, run in zip(runs_carried, runs, strict=True)], ignore_index=True)
    tables = {"alone": table, "curves": pd.concat([_curves(one) for one in runs_carried], ignore_index=True)}
    figures = {
        **curves(runs_carried, "curves"),
        **maps(table, ["gain"], "Accuracy that one head's update adds alone, all others off (points)", "alone"),
    }
    title = "How much of what was learned lies in few heads"
    return Analysis(
        "heads", title, tables, figures, [line for one in runs_carried for line in _sentences(one, options)]
    )


def _measure(run: SavedRun, name: str, options: Options) -> Carried:
    switches = unscored(run, options)
    images = images_of(run, switches.net, options, kind="heads")
    switches.suffix.check(next(iter(images))[0])
    return carried(switches, images, name, options.draws, options.seed)


def half(labels: Tensor) -> Tensor:
    """Which images are of the first half, (N,): every second one of each class."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[labels.argsort(stable=True)[::2]] = True
    return chosen


@dataclass(frozen=True)
class _Among:
    """Those images of batches, read again at each pass, that are wanted, (N,)."""

    batches: Iterable[Batch]
    wanted: Tensor

    def __iter__(self) -> Iterator[Batch]:
        start = 0
        for images, labels in self.batches:
            own = self.wanted[start : start + len(labels)]
            start += len(labels)
            if own.any():
                yield images[own], labels[own]


def carried(switches: Switches, batches: Iterable[Batch], name: str, orders: int, seed: int) -> Carried:
    """Measure what the heads of one network carry.

    Args:
        batches: of two images or more in random order, given again at each pass; the order of the heads is chosen on
            half of every class, the curves are measured on the rest, so that luck in the choice does not raise them.
    """
    updates = switches.updates
    none, alone = toggled(switches, batches, (), updates)
    chosen = half(torch.cat([labels for _, labels in batches]))
    measured = _Among(batches, ~chosen)
    # by accuracy, and of equal ones by loss: on few images many are equal
    chooses = Outcome(alone.loss[:, chosen], alone.correct[:, chosen])
    ranked = np.lexsort((chooses.mean_loss.numpy(), -chooses.accuracy.numpy()))
    order = [int(place) for place in ranked if updates[place] in switches.live]
    counts = counted(len(order))
    random = np.random.default_rng(seed)
    drawn = [random.permutation(order).tolist() for _ in range(orders)]
    rows = [
        cumulative(switches, measured, [updates[place] for place in places], counts).accuracy.numpy()
        for places in (order, order[::-1], *drawn)
    ]
    first, gain = switches.words(updates[order[0]]), float(rows[0][1] - rows[0][0])
    return Carried(
        name, updates, switches.live, none, alone, chosen, first, gain, counts, rows[0], rows[1], np.stack(rows[2:])
    )


def counted(total: int) -> list[int]:
    """Numbers of heads at which a curve is measured: dense at first, where it bends."""
    steps = np.unique(np.rint(np.geomspace(1, total, min(POINTS, total))).astype(int))
    return [0, *steps.tolist()]


def _alone(heads: Carried, run: SavedRun) -> pd.DataFrame:
    gain = heads.alone.accuracy - heads.none.accuracy
    saved = heads.none.mean_loss - heads.alone.mean_loss
    return pd.DataFrame(
        {
            **head_columns(run, heads.name, heads.updates, heads.live),
            "gain": gain.tolist(),
            "loss_saved": saved.tolist(),
            "images": heads.alone.loss.shape[-1],
        }
    )


def _curves(heads: Carried) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": heads.name,
            "heads_on": heads.counts,
            "share_on": [count / heads.counts[-1] for count in heads.counts],
            "best_first": heads.best,
            "worst_first": heads.worst,
            **{f"random_{end}": values.numpy() for end, values in heads.band._asdict().items()},
            "orders": len(heads.random),
            "images": heads.num_measured,
        }
    )


def curves(several: Sequence[Carried], name: str) -> dict[str, Figure]:
    """A panel per run: accuracy by the share of heads' updates that are on, in three orders; pictures by name."""
    values = np.concatenate([np.ravel(one) for c in several for one in (c.best, c.worst, *c.band)])
    room = 0.05 * (float(np.ptp(values)) or 1.0)
    limits = float(values.min()) - room, float(values.max()) + room
    return style.parted(name, several, lambda part: _curves_of(part, limits))


def _curves_of(several: Sequence[Carried], limits: tuple[float, float]) -> Figure:
    size, title = (2.7, 2.1), "What the heads' updates carry together"
    beside = style.across(len(several), size[0])
    with style.picture(-(-len(several) // beside), beside, panel=size, title=title, sharey=True) as (made, axes):
        for axis, one in zip(axes.flat, several, strict=False):
            share = np.array(one.counts) / one.counts[-1] * 100
            mean, low, high = (end.numpy() for end in one.band)
            axis.fill_between(share, low, high, color=style.NULL, alpha=0.3, linewidth=0)
            axis.plot(share, mean, color=style.NULL, linestyle="--", label="random order (band: 95 %)")
            axis.plot(share, one.best, color=style.COLORS[0], marker="o", label="best alone first")
            axis.plot(share, one.worst, color=style.COLORS[1], marker="s", label="worst alone first")
            axis.set(title=one.name, xlabel=f"heads' updates that are on (% of {one.counts[-1]})", ylim=limits)
            axis.grid(axis="y")
        for axis in axes.flat[len(several) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy (%)")
    return made


def _sentences(heads: Carried, options: Options) -> list[str]:
    total, last = heads.counts[-1], float(heads.best[-1])
    random = [heads.needed(row) for row in heads.random]
    lines = [
        f"{heads.name}: with no head's update on (classifier and all else as trained) accuracy is "
        f"{float(heads.best[0]):.1f} %, with all {total} it is {last:.1f} % ({heads.num_measured} images of "
        f"{options.split}, as all that follows).",
        f"{heads.name}: the best single update, {heads.first}, adds {heads.gain:+.1f} points alone. Best first (both "
        f"chosen on {int(heads.chooses.sum())} other images), "
        f"{heads.needed(heads.best)} of {total} updates give {SHARE:.0%} of the whole gain; worst first "
        f"{heads.needed(heads.worst)}; {len(random)} random orders {np.mean(random):.0f} on average, {min(random)} to "
        f"{max(random)}.",
    ]
    if last <= float(heads.best[0]):
        lines.append(f"{heads.name}: all updates together gain nothing on these images: nothing to share out.")
    return lines

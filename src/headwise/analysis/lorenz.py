"""How much accuracy a single head's update carries alone, and how it adds up: the head-level Lorenz curve of a task.

Legend: U updates of heads, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headwise.analysis.changes import names_of, same_network
from headwise.analysis.directions import Band, band
from headwise.analysis.made import Analysis
from headwise.analysis.opened import head_columns, images_of, unscored
from headwise.analysis.responsive_pictures import maps
from headwise.analysis.style import COLORS, NULL, figure, styled
from headwise.analysis.switches import Batch, HeadUpdate, Outcome, Switches, cumulative, toggled
from headwise.artifacts.saved import SavedRun

if TYPE_CHECKING:
    from headwise.analysis.kinds import Options

POINTS = 12
"""Numbers of heads at which a curve is measured, beside none and all."""
MOST_ORDERS = 10
"""Random orders at most: each is a curve of forward passes."""
SHARE = 0.9


@dataclass(frozen=True)
class Carried:
    """What heads' updates of one run carry.

    Attributes:
        name: of the run.
        updates: (U,), in network order.
        none: all of them off; the classifier and what else was trained stay.
        alone: each alone on, (U, N).
        first: in words, where the one lies that carries most alone.
        num_measured: images behind the curves; the order was chosen on others, if there was more than one batch.
        counts: how many are on, ascending from 0 to all that are not nothing.
        best, worst: accuracy, percent, with the best first, or the worst, (counts,).
        random: of random orders, (orders, counts).
    """

    name: str
    updates: tuple[HeadUpdate, ...]
    none: Outcome
    alone: Outcome
    first: str
    num_measured: int
    counts: list[int]
    best: NDArray[np.float64]
    worst: NDArray[np.float64]
    random: NDArray[np.float64]

    @property
    def band(self) -> Band:
        """Where the curve of one more random order falls, percent, (counts,) each."""
        drawn = band(torch.from_numpy(self.random))
        return Band(*(end.clamp(0.0, 100.0) for end in drawn))

    def needed(self, curve: NDArray[np.float64], share: float = SHARE) -> int:
        """The least measured number of heads that reach a share of what all together gain; all if they gain nothing."""
        first, last = float(curve[0]), float(curve[-1])
        if last <= first:
            return self.counts[-1]
        reached = curve >= first + share * (last - first)
        return self.counts[int(np.argmax(reached))]


def analyse(runs: Sequence[SavedRun], options: Options) -> Analysis:
    """Measure every head's update of every run alone, then all of them in three orders."""
    same_network(runs, "heads")
    runs_carried = [_measure(run, name, options) for run, name in zip(runs, names_of(runs), strict=True)]
    table = pd.concat([_alone(one, run) for one, run in zip(runs_carried, runs, strict=True)], ignore_index=True)
    tables = {"alone": table, "curves": pd.concat([_curves(one) for one in runs_carried], ignore_index=True)}
    figures = {
        "curves": curves(runs_carried),
        "alone": maps(table, ["gain"], "Accuracy that one head's update adds alone, all others off (points)"),
    }
    title = "How much of what was learned lies in few heads"
    return Analysis(
        "heads", title, tables, figures, [line for one in runs_carried for line in _sentences(one, options)]
    )


def _measure(run: SavedRun, name: str, options: Options) -> Carried:
    switches = unscored(run, options)
    images = images_of(run, switches.net, options)
    switches.suffix.check(next(iter(images))[0])
    return carried(switches, list(images), name, min(options.draws, MOST_ORDERS), options.seed)


def carried(switches: Switches, batches: Sequence[Batch], name: str, orders: int, seed: int) -> Carried:
    """Measure what the heads of one network carry.

    Args:
        switches: of the network.
        batches: of the images; the order of the heads is chosen on every other one, the curves are measured on the
            rest, so that luck in the choice does not raise them. With a single batch both are of the same images.
        name: of the run.
        orders: random orders.
        seed: of them.
    """
    updates = switches.updates
    none, alone = toggled(switches, batches, (), updates)
    chosen = torch.cat([torch.full((len(labels),), place % 2 == 0) for place, (_, labels) in enumerate(batches)])
    measured = batches[1::2] or batches
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
    first = switches.words(updates[int(alone.accuracy.argmax())])
    num_measured = sum(len(labels) for _, labels in measured)
    return Carried(name, updates, none, alone, first, num_measured, counts, rows[0], rows[1], np.stack(rows[2:]))


def counted(total: int) -> list[int]:
    """Numbers of heads at which a curve is measured: dense at first, where it bends."""
    steps = np.unique(np.rint(np.geomspace(1, total, min(POINTS, total))).astype(int))
    return [0, *steps.tolist()]


def _alone(heads: Carried, run: SavedRun) -> pd.DataFrame:
    gain = heads.alone.accuracy - heads.none.accuracy
    saved = heads.none.mean_loss - heads.alone.mean_loss
    return pd.DataFrame(
        {
            **head_columns(run, heads.name, heads.updates),
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


def curves(several: Sequence[Carried]) -> Figure:
    """A panel per run: accuracy by the share of heads' updates that are on, in three orders."""
    beside = min(len(several), 3)
    lines = -(-len(several) // beside)
    with styled():
        made, axes = figure(lines, beside, size=(max(4.6, 3.3 * beside), 2.9 * lines + 0.9), sharey=True)
        for axis, one in zip(axes.flat, several, strict=False):
            share = np.array(one.counts) / one.counts[-1] * 100
            mean, low, high = (end.numpy() for end in one.band)
            axis.fill_between(share, low, high, color=NULL, alpha=0.3, linewidth=0)
            axis.plot(share, mean, color=NULL, linestyle="--", label="random order (band: 95 %)")
            axis.plot(share, one.best, color=COLORS[0], marker="o", label="best alone first")
            axis.plot(share, one.worst, color=COLORS[1], marker="s", label="worst alone first")
            axis.set_title(one.name)
            axis.set_xlabel(f"heads' updates that are on (% of {one.counts[-1]})")
            axis.grid(axis="y")
        for axis in axes.flat[len(several) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy (%)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3 if beside > 1 else 2)
        made.suptitle("What the heads' updates carry together")
    return made


def _sentences(heads: Carried, options: Options) -> list[str]:
    total, last, images = heads.counts[-1], float(heads.best[-1]), heads.alone.loss.shape[-1]
    chosen = f"chosen on the other {images - heads.num_measured}" if heads.num_measured < images else "of the same"
    random = [heads.needed(row) for row in heads.random]
    gain = float(heads.alone.accuracy.max() - heads.none.accuracy)
    lines = [
        f"{heads.name}: with no head's update on (classifier and all else as trained) accuracy is "
        f"{float(heads.none.accuracy):.1f} %, with all {total} it is {last:.1f} % "
        f"(the former on {images} images of {options.split}, the latter and the curves on {heads.num_measured}).",
        f"{heads.name}: the best single update, {heads.first}, adds "
        f"{gain:+.1f} points alone, the best of {total} by luck or not. Best first ({chosen} images), "
        f"{heads.needed(heads.best)} of {total} updates give {SHARE:.0%} of the whole gain; worst first "
        f"{heads.needed(heads.worst)}; {len(random)} random orders {np.mean(random):.0f} on average, {min(random)} to "
        f"{max(random)}.",
    ]
    if last <= float(heads.best[0]):
        lines.append(f"{heads.name}: all updates together gain nothing on these images: nothing to share out.")
    return lines

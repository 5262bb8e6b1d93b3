"""How much accuracy a single head's update carries alone, and how it adds up: the head-level Lorenz curve of a task.

Legend: U updates of heads, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headwise.analysis.agreement import BAND
from headwise.analysis.changes import same_network
from headwise.analysis.ground import names_of
from headwise.analysis.made import Analysis
from headwise.analysis.opened import images_of, unscored
from headwise.analysis.responsive_pictures import maps
from headwise.analysis.style import COLORS, NULL, figure, styled
from headwise.analysis.switches import HeadUpdate, Outcome, cumulative, toggled
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
        counts: how many are on, ascending from 0 to U.
        best, worst: accuracy, percent, with the best first, or the worst, (counts,).
        random: of random orders, (orders, counts).
    """

    name: str
    updates: tuple[HeadUpdate, ...]
    none: Outcome
    alone: Outcome
    counts: list[int]
    best: NDArray[np.float64]
    worst: NDArray[np.float64]
    random: NDArray[np.float64]

    def needed(self, curve: NDArray[np.float64], share: float = SHARE) -> int:
        """The least measured number of heads that reach a share of what all together gain; U if they gain nothing."""
        first, last = float(curve[0]), float(curve[-1])
        if last <= first:
            return self.counts[-1]
        reached = curve >= first + share * (last - first)
        return self.counts[int(np.argmax(reached))]


def analyse(runs: Sequence[SavedRun], options: Options) -> Analysis:
    """Measure every head's update of every run alone, then all of them in three orders."""
    if len(runs) > 1:
        same_network(runs, "heads")
    found = [_measure(run, name, options) for run, name in zip(runs, names_of(runs), strict=True)]
    table = pd.concat([_alone(one, run) for one, run in zip(found, runs, strict=True)], ignore_index=True)
    tables = {"alone": table, "curves": pd.concat([_curves(one) for one in found], ignore_index=True)}
    figures = {
        "curves": curves(found),
        "alone": maps(table, ["gain"], "Accuracy that one head's update adds alone, all others off (points)"),
    }
    title = "How much of what was learned lies in few heads"
    return Analysis("heads", title, tables, figures, [line for one in found for line in _sentences(one, options)])


def _measure(run: SavedRun, name: str, options: Options) -> Carried:
    switches = unscored(run, options)
    images = images_of(run, switches.net, options)
    switches.suffix.check(next(iter(images))[0])
    return carried(switches, list(images), name, min(options.draws, MOST_ORDERS), options.seed)


def carried(switches: Any, batches: Sequence[Any], name: str, orders: int, seed: int) -> Carried:
    """Measure what the heads of one network carry.

    Args:
        switches: a `headwise.analysis.switches.Switches`.
        batches: of the images.
        name: of the run.
        orders: random orders.
        seed: of them.
    """
    updates = switches.updates
    none, alone = toggled(switches, batches, (), updates)
    # by accuracy, and of equal ones by loss: on few images many are equal
    order = np.lexsort((alone.mean_loss.numpy(), -alone.accuracy.numpy()))
    counts = counted(len(updates))
    random = np.random.default_rng(seed)
    drawn = [random.permutation(len(updates)) for _ in range(orders)]
    rows = [
        cumulative(switches, batches, [updates[place] for place in places], counts).accuracy.numpy()
        for places in (order, order[::-1], *drawn)
    ]
    return Carried(name, updates, none, alone, counts, rows[0], rows[1], np.stack(rows[2:]))


def counted(total: int) -> list[int]:
    """Numbers of heads at which a curve is measured: dense at first, where it bends."""
    steps = np.unique(np.rint(np.geomspace(1, total, min(POINTS, total))).astype(int))
    return [0, *steps.tolist()]


def _alone(found: Carried, run: SavedRun) -> pd.DataFrame:
    gain = found.alone.accuracy - found.none.accuracy
    saved = found.none.mean_loss - found.alone.mean_loss
    return pd.DataFrame(
        {
            "run": found.name,
            "dataset": run.result.key.dataset,
            "seed": run.result.key.seed,
            "stage": [update.site.stage for update in found.updates],
            "block": [update.site.block for update in found.updates],
            "projection": [update.site.proj for update in found.updates],
            "head": [update.head for update in found.updates],
            "heads": [update.site.num_heads for update in found.updates],
            "gate": 1,
            "gain": gain.tolist(),
            "loss_saved": saved.tolist(),
            "images": found.alone.loss.shape[-1],
        }
    )


def _curves(found: Carried) -> pd.DataFrame:
    low, high = np.percentile(found.random, BAND, axis=0)
    return pd.DataFrame(
        {
            "run": found.name,
            "heads_on": found.counts,
            "share_on": [count / len(found.updates) for count in found.counts],
            "best_first": found.best,
            "worst_first": found.worst,
            "random_mean": found.random.mean(axis=0),
            "random_low": low,
            "random_high": high,
            "orders": len(found.random),
        }
    )


def curves(found: Sequence[Carried]) -> Figure:
    """A panel per run: accuracy by the share of heads' updates that are on, in three orders."""
    beside = min(len(found), 3)
    lines = -(-len(found) // beside)
    with styled():
        made, axes = figure(lines, beside, size=(max(4.6, 3.3 * beside), 2.9 * lines + 0.9), sharey=True)
        for axis, one in zip(axes.flat, found, strict=False):
            share = np.array(one.counts) / len(one.updates) * 100
            low, high = np.percentile(one.random, BAND, axis=0)
            axis.fill_between(share, low, high, color=NULL, alpha=0.3, linewidth=0)
            axis.plot(share, one.random.mean(axis=0), color=NULL, linestyle="--", label="random order (band: 95 %)")
            axis.plot(share, one.best, color=COLORS[0], marker="o", label="best alone first")
            axis.plot(share, one.worst, color=COLORS[1], marker="s", label="worst alone first")
            axis.set_title(one.name)
            axis.set_xlabel(f"heads' updates that are on (% of {len(one.updates)})")
            axis.grid(axis="y")
        for axis in axes.flat[len(found) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy (%)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3 if beside > 1 else 2)
        made.suptitle("What the heads' updates carry together")
    return made


def _sentences(found: Carried, options: Options) -> list[str]:
    total, last = len(found.updates), float(found.best[-1])
    random = [found.needed(row) for row in found.random]
    first = int(torch.argmax(found.alone.accuracy))
    best = found.updates[first]
    gain = float(found.alone.accuracy[first] - found.none.accuracy)
    low, high = np.percentile(random, BAND)
    lines = [
        f"{found.name}: with no head's update on (classifier and all else as trained) accuracy is "
        f"{float(found.none.accuracy):.1f} %, with all {total} it is {last:.1f} % "
        f"({found.alone.loss.shape[-1]} images of {options.split}).",
        f"{found.name}: the best single update, head {best.head} of {best.site.proj} in layer {best.site.block}, adds "
        f"{gain:+.1f} points alone. Best first, {found.needed(found.best)} of {total} updates give {SHARE:.0%} of the "
        f"whole gain; worst first {found.needed(found.worst)}; {len(random)} random orders {np.mean(random):.0f} on "
        f"average, {low:.0f} to {high:.0f}.",
    ]
    if last <= float(found.best[0]):
        lines.append(f"{found.name}: all updates together gain nothing on these images: nothing to share out.")
    return lines

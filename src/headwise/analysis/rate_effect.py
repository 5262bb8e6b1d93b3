"""Kind ``rates``: the training loss over learning rate and rank. Does a rate move shared and per-head updates alike?

With Adam every entry of B moves by about the rate, whatever the rank r is. A row of the update, the sum of r such
entries, moves by rate x r if they agree, by rate x sqrt(r) if they do not; r is the rank that one row sees, of per-head
updates that of a head. So the loss is fitted as one curve of second order over log(rate) + a log(r), with a free power
a, and with a step c by which per-head updates lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import optimize

from headwise.analysis import style
from headwise.analysis.bands import percentiles
from headwise.analysis.kinds import Options, Recorded
from headwise.analysis.made import Analysis
from headwise.comparison.comparable import recorded
from headwise.comparison.recipes import class_of
from headwise.errors import ConfigError
from headwise.results.fingerprint import differences, few
from headwise.results.records import Result

SHARED = "shared"
STRUCTURES = {"LoRA": SHARED, "HeadLoRA": "per head"}
"""By the class of a method, how its updates divide the rows."""
AXES = {"rate": 0.0, "rate x sqrt(rank)": 0.5, "rate x rank": 1.0}
"""What the loss could depend on, by the power a of the rank."""
LEAST = 12
"""Runs that a fit of five numbers needs."""
DRAWS = 1000
"""Resamples of the runs behind an interval."""


@dataclass(frozen=True)
class Fit:
    """The loss as a curve of second order over log10(rate) + a log10(rank) + c [apart].

    Attributes:
        power: a.
        apart: c, of per-head updates: as if their rate were 10^c times as large.
        deviation: of the runs from the curve, root mean square, nats.
        explained: share of the variance.
    """

    power: float
    apart: float
    deviation: float
    explained: float


def analyse(runs: Sequence[Recorded], options: Options) -> Analysis:
    """Make the analysis of runs that differ in seed, rate, rank and structure alone."""
    table = pd.DataFrame([_row(run.result) for run in runs]).sort_values(["structure", "rank", "rate"])
    grounds = [_ground(run.result) for run in runs]
    for other in grounds[1:]:
        if apart := differences(grounds[0], other):
            raise ConfigError(f"losses of runs that differ in more than rate and rank are no one curve: {few(apart)}")
    for name in ("rate", "rank"):
        if table[name].nunique() < 3:
            raise ConfigError(f"rates needs runs at three values of the {name} or more, got {table[name].nunique()}")
    if len(table) < LEAST:
        raise ConfigError(f"rates needs {LEAST} runs or more, got {len(table)}")
    if missing := set(STRUCTURES.values()) - set(table["structure"]):
        raise ConfigError(f"rates compares shared and per-head updates, got none of {', '.join(missing)}")
    fits = {name: fit(table, power) for name, power in AXES.items()} | {"fitted": fit(table)}
    draws = np.random.default_rng(options.seed)
    again = [fit(table.iloc[draws.integers(len(table), size=len(table))]) for _ in range(DRAWS)]
    ends = {name: percentiles([getattr(one, name) for one in again]) for name in ("power", "apart")}
    numbers = pd.DataFrame([{"over": name, **vars(one)} for name, one in fits.items()])
    return Analysis(
        "rates",
        "Training loss over learning rate and rank",
        {"runs": table, "fits": numbers},
        {"rates": _draw(table, fits)},
        _sentences(table, fits, ends),
    )


def _row(result: Result) -> dict[str, Any]:
    """What is drawn of a run; refused for two phases, another structure, or want of a rate or a loss."""
    phase, kind = result.phases[-1], class_of(result.phases[-1].method)
    if len(result.phases) > 1 or kind not in STRUCTURES:
        raise ConfigError(f"rates draws runs of one phase of {', '.join(STRUCTURES)}; {result.key} is none")
    protocol = recorded(result, "protocol")
    rate = phase.method.get("lr") or (protocol.get("lr") if isinstance(protocol, Mapping) else None)
    if rate is None or phase.train_loss is None:
        raise ConfigError(f"the record of {result.key} has no learning rate or no training loss")
    return {
        "task": result.key.dataset,
        "structure": STRUCTURES[kind],
        "rank": int(phase.method["rank"]),
        "rate": float(rate) * float(phase.method.get("scale") or 1.0),
        "seed": result.key.seed,
        "steps": phase.steps,
        "loss": phase.train_loss,
        "accuracy": phase.accuracy,
    }


def _ground(result: Result) -> dict[str, Any]:
    """What runs of one curve share: everything that a loss depends on but seed, rate, rank and structure."""
    phase, protocol = result.phases[-1], recorded(result, "protocol")
    free = ("_target_", "label", "rank", "lr", "scale", "epochs", "revision")
    return {
        "task": result.key.dataset,
        "weights": recorded(result, "weights"),
        "data": recorded(result, "data"),
        "protocol": {name: value for name, value in protocol.items() if name != "lr"},
        "method": {name: value for name, value in phase.method.items() if name not in free and value},
        "steps": phase.steps,
    }


def fit(table: pd.DataFrame, power: float | None = None) -> Fit:
    """The curve through runs.

    Args:
        table: with the columns rate, rank, structure and loss.
        power: of the rank; found if left out. A power that is given has no step between structures.
    """
    rate, rank = (np.log10(table[name].to_numpy(float)) for name in ("rate", "rank"))
    apart = (table["structure"] != SHARED).to_numpy(float)
    loss = table["loss"].to_numpy(float)

    def missed(found: NDArray[Any]) -> NDArray[Any]:
        x = rate + found[0] * rank + found[1] * apart
        terms = np.stack([np.ones_like(x), x, x**2], axis=1)
        return loss - terms @ np.linalg.lstsq(terms, loss, rcond=None)[0]

    free = power is None
    found = optimize.least_squares(missed, (0.5, 0.0)).x if free else np.array([power, 0.0])
    rest = missed(found)
    explained = 1.0 - float(rest @ rest) / float(((loss - loss.mean()) ** 2).sum())
    return Fit(float(found[0]), float(found[1]), float(np.sqrt(np.mean(rest**2))), explained)


def _draw(table: pd.DataFrame, fits: Mapping[str, Fit]) -> Figure:
    """A panel per axis: a shape per structure, a shade per rank."""
    title = f"Training loss after {int(table['steps'].max())} steps"
    ranks = sorted(set(table["rank"]))
    with style.picture(1, len(fits), panel=(2.6, 2.6), title=title, sharey=True) as (made, axes):
        image: Any = None
        for axis, (name, one) in zip(axes[0], fits.items(), strict=True):
            for marker, (structure, part) in zip(style.MARKERS, table.groupby("structure", sort=False), strict=False):
                x = part["rate"] * part["rank"] ** one.power * 10 ** (one.apart * (structure != SHARED))
                image = axis.scatter(
                    x,
                    part["loss"],
                    c=np.log2(part["rank"]),
                    vmin=math.log2(ranks[0]),
                    vmax=math.log2(ranks[-1]),
                    cmap=style.SEQUENTIAL,
                    marker=marker,
                    s=26,
                    edgecolors=style.INK if structure == SHARED else "none",
                    linewidths=0.6,
                    label=structure,
                )
            axis.set_xscale("log")
            axis.set_title(f"{one.explained:.0%} explained")
            words = {"fitted": f"rate x rank^{one.power:.2f}, per head x {10**one.apart:.2g}"}
            axis.set_xlabel(words.get(name, name))
            axis.grid(axis="y")
        axes[0, 0].set_ylabel("mean cross-entropy of the last epoch, nats")
        bar = made.colorbar(image, ax=axes, pad=0.01, label="rank")
        bar.set_ticks([math.log2(rank) for rank in ranks], labels=[str(rank) for rank in ranks])
    return made


def _sentences(table: pd.DataFrame, fits: Mapping[str, Fit], ends: Mapping[str, tuple[float, float]]) -> list[str]:
    best = fits["fitted"]
    (low, high), (near, far) = ends["power"], ends["apart"]
    lines = [
        f"The loss of {len(table)} runs is best explained by the rate times the rank to the power of {best.power:.2f} "
        f"({low:.2f} to {high:.2f}): {best.explained:.1%} of its variance, {best.deviation:.3f} nats left.",
        f"Per-head updates of a rank learn as shared ones of that rank at {10**best.apart:.2f} times the rate "
        f"({10**near:.2f} to {10**far:.2f}).",
    ]
    lines += [
        f"Over {name} alone, shared and per head on one curve: {fits[name].explained:.1%} explained, "
        f"{fits[name].deviation:.3f} nats left."
        for name in AXES
    ]
    lowest = table.loc[table.groupby("structure")["loss"].idxmin()]
    lines += [
        f"Lowest loss, {row.structure}: {row.loss:.3f} at rank {row.rank}, rate {row.rate:g}; {row.accuracy:.1f} % of "
        "the test images."
        for row in lowest.itertuples()
    ]
    lines.append(f"Intervals hold 95 % of {DRAWS} resamples of the runs; they say nothing of other tasks or networks.")
    return lines

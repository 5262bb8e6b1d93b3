"""Part of kind ``overlap``: what the second phases of several runs gained, against where their updates lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headwise.analysis import style
from headwise.analysis.agreement import agreement
from headwise.results.records import Result

MEASURES = {
    "shared": "energy in another head's row space",
    "own": "energy outside all other heads'",
    "rows": "energy in the first's row space",
    "columns": "energy in the first's column space",
}
LEAST = 4
"""Runs of a task from which on a rank correlation can be beyond chance."""


@dataclass(frozen=True)
class Gains:
    """One row per run of two phases: its gain in points, and the means of `MEASURES` over its heads."""

    table: pd.DataFrame

    @classmethod
    def of(
        cls, results: Mapping[str, Result], within: Mapping[str, Sequence[float]], across: Mapping[str, Sequence[float]]
    ) -> Gains:
        """Gather them by the run's name.

        Of second phases `within` has the means of shared and own over the heads, `across` those of rows and columns.
        """
        lines = []
        for name in across:
            tested = results[name].tested
            if len(tested) < 2:
                continue
            gain = float(tested[-1].accuracy or 0.0) - float(tested[-2].accuracy or 0.0)
            measures = dict(zip(MEASURES, (*within[name], *across[name]), strict=True))
            lines.append({"run": name, "task": results[name].key.dataset, "gain": gain, **measures})
        return cls(pd.DataFrame(lines))

    def figures(self) -> dict[str, Figure]:
        """Gain over each measure, a shape per task; of two runs or more."""
        if len(self.table) < 2:
            return {}
        title = "Gain of the second phase over the first, and where its update lies"
        tasks = list(dict.fromkeys(self.table["task"]))
        with style.picture(1, len(MEASURES), panel=(2.3, 2.1), title=title, sharey=True) as (figure, axes):
            for axis, (name, words) in zip(axes[0], MEASURES.items(), strict=True):
                for number, task in enumerate(tasks):
                    part = self.table[self.table["task"] == task]
                    axis.plot(part[name], part["gain"], **{**style.look(number), "linestyle": "none"}, label=task)
                axis.axhline(0, color=style.NULL, linewidth=0.8)
                axis.set_xlabel(words)
                axis.grid(axis="y")
            axes[0, 0].set_ylabel("gain, points")
        return {"gains": figure}

    def sentences(self, draws: int, seed: int) -> list[str]:
        """Rank correlations with the gain over the runs of each task, against random orders; tasks are never mixed."""
        lines = []
        for task, there in self.table.dropna().groupby("task", sort=False) if len(self.table) else ():
            gain, said = there["gain"].to_numpy(float), []
            for name, words in MEASURES.items() if len(there) >= LEAST else ():
                found = agreement(there[name].to_numpy(float), gain, 1, draws, seed)
                if not np.isnan(found.spearman):
                    said.append(f"{words} {found.spearman:+.2f} (random orders {found.low:+.2f} to {found.high:+.2f})")
            if said:
                of = f"the {len(there)} runs on {task}"
                lines.append(f"Rank correlation of the second phase's gain over {of}: {'; '.join(said)}.")
        return lines

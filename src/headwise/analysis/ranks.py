"""Kind ``ranking``: methods ranked over tasks, and a critical-difference diagram (Demsar, JMLR 2006)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from headwise.analysis import style
from headwise.analysis.kinds import Options, Recorded
from headwise.analysis.made import Analysis
from headwise.comparison.comparable import ordered, places, settings
from headwise.comparison.ranking import Ranking, rank, said, scores, unequal_seeds
from headwise.comparison.tables import frame
from headwise.errors import ConfigError
from headwise.results.fingerprint import differences, few
from headwise.results.provenance import versions

_ROW = 0.26
"""Height of a method's line, inches."""


def analyse(runs: Sequence[Recorded], options: Options) -> Analysis:
    """Rank the methods of runs that share weights and protocol, all on the same tasks."""
    split = settings(ordered(run.result for run in runs if run.result.tested))
    if not split:
        raise ConfigError(f"a ranking is of test accuracies, and none of the {len(runs)} runs has one")
    if len(split) > 1:
        apart = few(differences(split[0].shared, split[1].shared))
        raise ConfigError(f"a ranking needs runs of one setting, got {len(split)}: {apart}")
    results = split[0].results
    lines = frame(results, places(results, common=split[0].common)[0])
    table = scores(lines)
    made = rank(table)
    sentences = [*said(made), *unequal_seeds(lines)]
    if made.distance is not None:
        sentences.append(f"Tested by autorank {versions(['autorank'])['autorank']}.")
    ranks = pd.DataFrame({"method": list(made.ranks), "mean rank": list(made.ranks.values())})
    ranks["mean accuracy"] = ranks["method"].map(table.mean())
    whole = ranks.assign(tasks=made.num_tasks, p=made.p, critical_difference=made.distance)
    tables = {"ranks": whole, "accuracies": table.rename_axis(columns=None, index="task").reset_index()}
    return Analysis("ranking", "Methods ranked over tasks", tables, {"ranking": _drawn(made)}, sentences)


def _drawn(made: Ranking) -> Figure:
    """A line per method, best above, its mean rank as a dot; bars at the right join what is not told apart."""
    names, ranks = list(made.ranks), list(made.ranks.values())
    groups = made.alike if made.p is not None else []
    with style.picture(panel=(4.6, _ROW * (len(names) + 2))) as (figure, axes):
        axis = axes[0, 0]
        axis.plot(ranks, range(len(names)), "o", color=style.COLORS[0])
        axis.hlines(range(len(names)), 1, ranks, color=style.RULE, linewidth=0.8, zorder=0)
        for number, group in enumerate(groups):
            ends = [names.index(group[0]), names.index(group[-1])]
            label = "not told apart" if number == 0 else None
            axis.plot([len(names) + 0.3 + 0.2 * number] * 2, ends, color=style.INK, linewidth=3, label=label)
        if made.distance is not None:
            axis.plot([1, 1 + made.distance], [-1.2, -1.2], "|-", color=style.COLORS[1], label="critical difference")
        right = max(len(names) + 0.5 + 0.2 * len(groups), 1.2 + (made.distance or 0.0))
        axis.set_xlim(0.8, right)
        axis.set_ylim(len(names) - 0.5, -1.8 if made.distance is not None else -0.5)
        axis.set_yticks(range(len(names)), names)
        step = -(-len(names) // 12)  # more numbers than that would run into each other
        axis.set_xticks([1, *range(1 + step, len(names) + 1, step)])
        axis.set_xlabel(f"mean rank over {made.tasks} (1 is best)")
    return figure

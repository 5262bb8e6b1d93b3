"""The averages that papers print, formed in one place for our results and for published rows. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headwise.results.records import FEWSHOT, FEWSHOT_SETS, GROUP_SIZES

SIZES = {FEWSHOT: FEWSHOT_SETS, **GROUP_SIZES}
"""Of each group that has a mean of its own, the number of its tasks."""


def averages(groups: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return every average that the values of each group's tasks suffice for.

    An average over part of its tasks would not be comparable: a group that lacks one has no mean, and without all 19
    tasks of VTAB-1k there is none over the whole.
    """
    whole = {name: values for name, values in groups.items() if len(values) == SIZES.get(name)}
    means = {f"mean_{name}": sum(values) / len(values) for name, values in whole.items()}
    if GROUP_SIZES.keys() <= whole.keys():
        means["mean_groups"] = sum(means[f"mean_{name}"] for name in GROUP_SIZES) / len(GROUP_SIZES)
        means["mean_19"] = sum(sum(whole[name]) for name in GROUP_SIZES) / sum(GROUP_SIZES.values())
    return means

"""Which results may be compared: what a table's results share, and the row and column of each. Standard library only.

Results that were made with other weights or another protocol stand in another table; other images of a task stand in
another column; seeds that do not share one configuration stand in another row. The draws of a few-shot set count as
seeds do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headwise.protocol.pertask import OTHERS
from headwise.protocol.revisions import changed_since
from headwise.protocol.variants import BASE, beside_common, common_choices, simplest
from headwise.results.fingerprint import canonical, differences, few, fingerprint, leaves
from headwise.results.records import ACCURACY, Result, RunKey

NEUTRAL = {"augment": "none"}
"""Options of the data that change nothing at this value: a record that lacks them says the same."""
WHOLE = {"method", "backbone", "dataset", "data", "protocol", "trainer", "seed"}
"""Parts of an identity that says everything; results of equal ones are one configuration."""
LOADING = ("labels", "source", "splits", "resize")
SCALING = ("mean", "std")
UNRECORDED = "(not recorded)"
Places = Mapping[RunKey, tuple[str, str]]
"""Where each result stands: its row and its column."""


@dataclass
class Setting:
    """What results must share to stand in one table, and those that do."""

    shared: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    common: Sequence[str] = ()
    """Choices that every result of every setting made: no row is named by them."""


def ordered(results: Iterable[Result]) -> list[Result]:
    """Return results in the order of their keys, each configuration under one variant.

    Seeds that were asked for in other words, or named by older rules, lie in several folders. They are one
    configuration, and the simplest of its variants names it; a run that lies there twice counts once. The same run
    under two names stays in the rows of both: without it one of them would lack cells that were made.
    """
    in_order = sorted(results, key=lambda result: result.key)
    variants: dict[Hashable, set[str]] = {}
    for result in in_order:
        variants.setdefault(_configuration(result), set()).add(result.key.variant)
    unique: dict[tuple[RunKey, str], Result] = {}
    for result in in_order:
        key = replace(result.key, variant=simplest(variants[_configuration(result)]))
        unique.setdefault((key, result.fingerprint), replace(result, key=key))
    return sorted(unique.values(), key=lambda result: result.key)


def _configuration(result: Result) -> Hashable:
    """What results share that differ in nothing but the seed; the key's folder where a record does not say it all."""
    key = result.key
    options = fingerprint({**result.identity, "seed": None}) if result.identity.keys() >= WHOLE else key.variant
    return key.name, key.method, key.dataset, options


def by_row(results: Iterable[Result], where: Places) -> dict[str, list[Result]]:
    """Return the results of each row, both in the order in which they come."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(where[result.key][0], []).append(result)
    return rows


def distinct(results: Iterable[Result]) -> list[Result]:
    """Return results in the order of their keys, without copies under another run name."""
    seen: dict[tuple[str, str, str], Result] = {}
    for result in ordered(results):
        seen.setdefault((result.fingerprint, result.key.method, result.key.variant), result)
    return list(seen.values())


def settings(results: Sequence[Result], pool: bool = False) -> list[Setting]:
    """Split results by weights and protocol, the largest part first.

    The protocol is the experiment's: what it sets for one method alone parts no table, `measured_otherwise` says it.
    """
    split: dict[str, Setting] = {}
    common = shared_choices(results)
    for result in results:
        shared = {"weights": recorded(result, "weights"), "protocol": asked_protocol(result)}
        split.setdefault("" if pool else fingerprint(shared), Setting(shared, common=common)).results.append(result)
    return sorted(split.values(), key=lambda setting: -len(setting.results))


def asked_protocol(result: Result) -> Any:
    """Return the protocol of the experiment that a result belongs to, without what is set for its method alone."""
    return result.config.get(OTHERS) or recorded(result, "protocol")


def measured_otherwise(results: Iterable[Result], where: Places) -> list[str]:
    """Say of each row that its experiment measures in another way than the rest, what is different."""
    rows: dict[str, dict[str, None]] = {}
    for result in results:
        if others := result.config.get(OTHERS):
            own, rest = (leaves(canonical(part), "") for part in (recorded(result, "protocol"), others))
            # several tasks of a row mostly give the same line: the keys of a dict are a set that keeps its order
            for name in sorted(name for name in {*own, *rest} if own.get(name) != rest.get(name)):
                here, there = (json.dumps(part.get(name)) for part in (own, rest))
                rows.setdefault(where[result.key][0], {})[f"{name} {here}, elsewhere {there}"] = None
    return [f"The experiment measures {row} in its own way: {few(list(lines))}." for row, lines in sorted(rows.items())]


def tuned(results: Sequence[Result], where: Places) -> list[str]:
    """Say how many trials on the validation images stand behind a run of each row, and which rows had none.

    Values at the end of what was tried are counted, over phases and runs.
    """
    rows: dict[str, set[int]] = {}
    for result in results:
        rows.setdefault(where[result.key][0], set()).add(sum(phase.num_trials for phase in result.phases))
    if not any(map(any, rows.values())):
        return []
    counts = [f"{row} {' or '.join(map(str, sorted(seen)))}" for row, seen in sorted(rows.items()) if any(seen)]
    untuned = [row if len(seen) == 1 else f"{row} (some runs)" for row, seen in sorted(rows.items()) if 0 in seen]
    ends: dict[str, int] = {}
    for phase, row in ((phase, where[result.key][0]) for result in results for phase in result.phases):
        for name in phase.edges:
            ends[f"{row} {name}"] = ends.get(f"{row} {name}", 0) + 1
    edges = ", ".join(f"{what} ({count})" for what, count in sorted(ends.items()))
    edge = f"At the end of what was tried, beyond which a better value may lie: {edges}." if edges else ""
    note = f"UNTUNED beside rows that were: {', '.join(untuned)}." if untuned else ""
    return [f"Trials on the validation images behind a run: {', '.join(counts)}.", *filter(None, [edge, note])]


def made_by_older_code(results: Iterable[Result], name_of: Callable[[Result], str]) -> list[str]:
    """Say which rows were made before their method's numbers changed, and what changed."""
    rows: dict[str, dict[str, None]] = {}
    for result in results:
        for why in changed_since(result.identity.get("method")):
            rows.setdefault(name_of(result), {})[why] = None
    lines = [f"{row} ({'; '.join(whys)})" for row, whys in sorted(rows.items())]
    return [f"OLDER CODE, whose numbers have changed since: {', '.join(lines)}."] if lines else []


def shared_choices(results: Iterable[Result]) -> list[str]:
    """Return the choices that name no row because all made them; none where there is only one row."""
    rows = sorted({(result.key.method, result.key.variant) for result in results})
    return common_choices(variant for _, variant in rows) if len(rows) > 1 else []


def recorded(result: Result, part: str) -> Any:
    """Return ``weights``, ``protocol`` or ``data`` of a result.

    Of the data only what decides a number: where images came from and which splits this very process had to load (none
    where all phases were found finished) are left out; their content is in the data's own fingerprint.
    """
    value = result.provenance.get(part, UNRECORDED)
    if part == "data" and isinstance(value, Mapping):
        return {name: child for name, child in value.items() if name not in LOADING and NEUTRAL.get(name) != child}
    return value


def places(results: Sequence[Result], pool: bool = False, common: Sequence[str] = ()) -> tuple[Places, list[str]]:
    """Return the row and column of each result, and notes on what was kept apart.

    A column is a task, numbered ``svhn [2]`` where its images differ; a row is a method and its variant (without
    the `common` choices), numbered where the results of one cell do not share one configuration (seeds apart).
    """
    notes: list[str] = []
    # a label is named by what differs from its experiment's default, so that it may mean another run in each one
    several = len({result.key.name for result in results}) > 1
    columns = _apart(results, lambda r: (_column(r), _draw(r)), _images, "data", notes, pool)
    rows = _apart(
        results,
        # settings are compared within one column and draw: between tasks they may differ, and `varied` says so
        lambda r: (_row(r, several, common), ", ".join(filter(None, (columns[r.key], _draw(r))))),
        lambda r: _without_seed(r.identity),
        "",
        notes,
        pool,
    )
    return {result.key: (rows[result.key], columns[result.key]) for result in results}, notes


def _column(result: Result) -> str:
    """The task, and what its numbers are where that is no accuracy."""
    return result.key.dataset if result.metric == ACCURACY else f"{result.key.dataset} ({result.metric})"


def _images(result: Result) -> Any:
    """What is recorded of the images; how inputs are normalised is the protocol's, by which tables are parted."""
    value = recorded(result, "data")
    return {name: child for name, child in value.items() if name not in SCALING} if isinstance(value, dict) else value


def varied(results: Iterable[Result], where: Places) -> list[str]:
    """Say which settings of a row's method and trainer are not the same for all of its tasks: an average mixes them."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        parts = {part: _without_seed(result.identity.get(part)) for part in ("method", "trainer")}
        rows.setdefault(where[result.key][0], {}).setdefault(fingerprint(parts), parts)
    notes = []
    for row, kinds in sorted(rows.items()):
        flat = [leaves(canonical(kind), "") for kind in kinds.values()]
        values = {
            name: sorted({json.dumps(kind[name]) if name in kind else "(absent)" for kind in flat}, key=_by_size)
            for name in sorted(set().union(*flat))
        }
        if lines := [f"{name}: {', '.join(choices)}" for name, choices in values.items() if len(choices) > 1]:
            notes.append(f"Settings of {row} differ between its tasks: {few(lines)}.")
    return notes


def _by_size(text: str) -> tuple[float, str]:
    try:
        # the values are JSON: numbers come first, by their size, and words after them
        return float(text), ""
    except ValueError:
        return math.inf, text


def natural(text: str) -> list[tuple[str, float]]:
    """Key of an order in which ``shots2`` comes before ``shots16``, ``lr0.003`` before ``lr0.01``."""
    return [(word, float(number or 0)) for word, number in re.findall(r"(\D*)(\d*\.?\d*)", text)]


def _draw(result: Result) -> str:
    """Which images of a few-shot set were drawn: other shots and other draws are meant to differ."""
    return "" if result.shots is None else f"{result.shots} shots, draw {result.repeat[1]}"


def _row(result: Result, with_name: bool, common: Sequence[str]) -> str:
    row = named(result, common)
    return f"{result.key.name}: {row}" if with_name else row


def named(result: Result, common: Sequence[str]) -> str:
    """Return a run's method, with its variant in brackets if that has more than the draw and the `common` choices."""
    drawn = [] if result.shots is None else [f"draw{result.repeat[1]}"]
    variant = beside_common(result.key.variant, [*common, *drawn])
    return result.key.method if variant == BASE else f"{result.key.method} ({variant})"


def _without_seed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_seed(child) for name, child in value.items() if name != "seed"}
    return value


def _apart(
    results: Sequence[Result],
    label: Callable[[Result], tuple[str, str]],
    content: Callable[[Result], Any],
    what: str,
    notes: list[str],
    pool: bool,
) -> dict[RunKey, str]:
    """Give each result its label, numbered ``x [2]`` where results of one label and cell differ in content."""
    contents: dict[tuple[str, str], list[Any]] = {}
    names = {}
    for result in results:
        name, cell = label(result)
        kinds = contents.setdefault((name, cell), [])
        if (value := content(result)) not in kinds:
            kinds.append(value)
        # results come in the order of their keys, so that the same one keeps the plain name every time
        number = kinds.index(value) + 1
        names[result.key] = name if number == 1 or pool else f"{name} [{number}]"
    for (name, cell), kinds in contents.items():
        place = f" on {cell}" if cell else ""
        for number, kind in enumerate(kinds[1:], start=2):
            lines = differences({what: kinds[0]}, {what: kind}) if what else differences(kinds[0], kind)
            joined = "are pooled although they differ" if pool else f"are kept apart as {name} [{number}]"
            notes.append(f"Results of {name}{place} {joined}: {few(lines)}.")
    return names

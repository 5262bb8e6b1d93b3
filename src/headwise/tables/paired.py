"""Differences between runs that belong together, seed by seed, and what they say together. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from headwise.errors import ConfigError, suggest
from headwise.results.fingerprint import fingerprint
from headwise.results.records import PhaseResult, Result
from headwise.tables.comparable import Places, epochs, group, recorded, tested

LINE = ["row", "phase", "column", "group", "seed", "value"]
CONTRAST = ["row", "phase", "mean", "low", "high", "wins", "ties", "losses", "tasks", "pairs"]
EQUAL_SIZE = "equal-size LoRA"
CONTROLS = {"longer P1": "hs_control_long", EQUAL_SIZE: "hs_control_lora", "longer P2": "hs_control_head"}
"""Kinds of control of a two-phase run, and the configuration that makes it."""
RESAMPLES, LEVEL = 10_000, 0.95
FEWEST = 6
"""Pairs below which nothing is called clear: five of five would not pass a sign test at 5 %."""
_BATCH = 200_000


def line(result: Result, where: Places, phase: str, value: float | None) -> dict[str, Any]:
    """Return one line of a table's data, of the columns `LINE`."""
    row, column = where[result.key]
    return dict(zip(LINE, (row, phase, column, group(result), result.key.seed, value), strict=True))


def pair(results: Sequence[Result], where: Places, every: Sequence[Result]) -> pd.DataFrame:
    """Return the differences of head-wise runs to their controls, seed by seed.

    A two-phase run is compared with its own Phase 1; with each of its two methods alone (longer P1, longer P2): a
    one-phase run of the same task, seed, weights, images and protocol, whose epochs are those of both phases together;
    and with plain LoRA of as many parameters after the very same Phase 1, for as many epochs (equal-size LoRA).
    A one-phase run of per-head updates is compared with plain LoRA of as many parameters, for as many epochs.

    Args:
        results: head-wise runs are sought here.
        where: their rows and columns.
        every: controls are sought here.
    Returns:
        Lines of the columns `LINE`; ``phase`` says which difference, ``value`` is in percentage points.
    """
    asked = [result for result in results if len(tested(result)) > 1 or is_per_head(result)]
    wanted = {result.key.dataset for result in asked}
    alone: dict[str, float] = {}
    equal_size: dict[tuple[str, int], float] = {}
    for result in every:
        phases = tested(result)
        if result.key.dataset not in wanted or not phases or phases[-1].accuracy is None:
            continue
        if len(phases) == 1:
            alone.setdefault(_matched(result, phases[0].method), phases[0].accuracy)
        elif is_size_control(phases):
            equal_size.setdefault((phases[0].fingerprint, epochs(result)), phases[-1].accuracy)
    lines = []
    for result in asked:
        phases = tested(result)
        first, last = phases[0], phases[-1]
        if len(phases) == 1:
            others = {EQUAL_SIZE: alone.get(_matched(result, _shared_twin(last.method)))}
        else:
            others = {"P1": first.accuracy, "longer P1": alone.get(_matched(result, first.method))}
            if not is_size_control(phases):
                others[EQUAL_SIZE] = equal_size.get((first.fingerprint, epochs(result)))
                others["longer P2"] = alone.get(_matched(result, last.method))
        for name, other in others.items():
            if other is not None and last.accuracy is not None:
                lines.append(line(result, where, f"P{len(phases)} - {name}", last.accuracy - other))
    return pd.DataFrame(lines, columns=LINE)


def is_size_control(phases: Sequence[PhaseResult]) -> bool:
    """Whether a run is Phase 1 followed by plain LoRA of the size that per-head updates would have."""
    return len(phases) == 2 and str(phases[1].method.get("_target_", "")).endswith(".MatchedLoRA")


def is_per_head(result: Result) -> bool:
    """Whether a run is one tested phase of per-head updates."""
    phases = tested(result)
    return len(phases) == 1 and str(phases[0].method.get("_target_", "")).endswith(".HeadLoRA")


def _shared_twin(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of plain LoRA that has as many parameters as these per-head updates."""
    kind = str(spec["_target_"]).replace(".HeadLoRA", ".MatchedLoRA")
    rest = {name: value for name, value in spec.items() if name != "rank"}
    return {**rest, "_target_": kind, "head_rank": spec.get("rank")}


def uncontrolled(results: Sequence[Result], where: Places, paired: pd.DataFrame) -> list[str]:
    """Say which two-phase rows lack a control, and how to make it."""
    notes = []
    for kind, method in CONTROLS.items():
        have = set(paired[paired["phase"].str.endswith(kind)][["row", "column"]].itertuples(index=False, name=None))
        two_phase = {where[r.key] for r in results if len(tested(r)) == 2 and not is_size_control(tested(r))}
        if missing := sorted(two_phase - have):
            rows = ", ".join(f"{row} on {column}" for row, column in missing)
            notes.append(
                f"NO CONTROL ({kind}) for {rows}: its gain over P1 proves little; run method={method} as well."
            )
    return notes


def _matched(result: Result, method: Mapping[str, Any]) -> str:
    """Hash of what a run and a one-phase control of this method share; the epochs are those of all phases."""
    protocol = recorded(result, "protocol")
    if isinstance(protocol, Mapping):
        protocol = {name: value for name, value in protocol.items() if name != "epochs"}
    spec = {name: value for name, value in method.items() if name not in ("label", "epochs")}
    return fingerprint(
        {
            "dataset": result.key.dataset,
            "seed": result.key.seed,
            "weights": recorded(result, "weights"),
            "data": recorded(result, "data"),
            "protocol": protocol,
            "method": spec or result.fingerprint,  # without a recorded method nothing matches
            "epochs": epochs(result),
        }
    )


@dataclass(frozen=True)
class Contrast:
    """What paired differences say together, in percentage points.

    Attributes:
        mean: over the tasks, of each task's mean over its seeds.
        low, high: 95 % bootstrap interval of the mean; None from a single pair.
        wins, ties, losses: pairs above, at and below zero.
        tasks, pairs: how many.
    """

    mean: float
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    tasks: int
    pairs: int


def contrast(differences: Mapping[str, Iterable[float]]) -> Contrast:
    """Sum up paired differences.

    Args:
        differences: task -> differences of its seeds, percentage points; at least one in all.
    """
    tasks = [sorted(float(value) for value in differences[name]) for name in sorted(differences)]
    tasks = [values for values in tasks if values]
    every = [value for values in tasks for value in values]
    interval = bootstrap(tasks)
    return Contrast(
        mean=float(np.mean([np.mean(values) for values in tasks])),
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        wins=sum(value > 0 for value in every),
        ties=sum(value == 0 for value in every),
        losses=sum(value < 0 for value in every),
        tasks=len(tasks),
        pairs=len(every),
    )


def bootstrap(
    tasks: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the mean over tasks, resampling tasks, then the seeds of each task drawn.

    With one task only its seeds are drawn again. Few tasks or seeds give too narrow an interval.

    Args:
        tasks: the values of each task's seeds.
        resamples: how often; the draws are those of `seed`.
    Returns:
        The ends that leave out 2.5 % on either side; None for fewer than two values.
    """
    if sum(len(values) for values in tasks) < 2:
        return None
    counts = np.array([len(values) for values in tasks])
    most = int(counts.max())
    table = np.zeros((len(tasks), most))
    for place, values in enumerate(tasks):
        table[place, : len(values)] = values
    rng = np.random.default_rng(seed)
    step = max(1, _BATCH // (len(tasks) * most))
    means = []
    for start in range(0, resamples, step):
        shape = (min(step, resamples - start), len(tasks))
        drawn = rng.integers(len(tasks), size=shape)
        width = counts[drawn][..., None]
        seeds = (rng.random((*shape, most)) * width).astype(np.intp)
        kept = np.arange(most) < width
        sums = np.where(kept, table[drawn[..., None], seeds], 0.0).sum(-1)
        means.append((sums / width[..., 0]).mean(-1))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


def contrasts(lines: pd.DataFrame) -> pd.DataFrame:
    """Return a `Contrast` for each row and kind of difference.

    Args:
        lines: of the columns `LINE`, as `pair` gives them.
    Returns:
        One line each, of the columns `CONTRAST`.
    """
    made = []
    for (row, phase), part in lines.groupby(["row", "phase"]):
        found = contrast({str(column): values["value"] for column, values in part.groupby("column")})
        made.append({"row": row, "phase": phase, **vars(found)})
    frame = pd.DataFrame(made, columns=CONTRAST)
    return frame.astype({"low": float, "high": float})


def answers(found: pd.DataFrame, two_phase: Iterable[str]) -> list[str]:
    """Say of each row with head-wise updates whether it is better than its controls.

    Yes, where the interval of every control lies above zero; no, where one lies below; else it is not shown, as with a
    control missing or fewer than `FEWEST` pairs.

    Args:
        found: as `contrasts` gives it.
        two_phase: rows that have a second phase and are no control themselves.
    """
    by_row: dict[tuple[str, bool], dict[str, Any]] = {(row, True): {} for row in two_phase}
    for one in found.itertuples():
        phase, _, kind = one.phase.partition(" - ")
        if phase == "P1" and kind == EQUAL_SIZE:
            by_row[one.row, False] = {kind: one}
        elif (one.row, True) in by_row and kind in CONTROLS:
            by_row[one.row, True][kind] = one
    lines = []
    for (row, is_second), kinds in sorted(by_row.items()):
        controls = list(CONTROLS) if is_second else [EQUAL_SIZE]
        signs = [_sign(kinds[kind]) if kind in kinds else 0 for kind in controls]
        answer = "No" if min(signs) < 0 else "Yes" if min(signs) > 0 else "Not shown"
        parts = [_against(kind, kinds.get(kind)) for kind in controls]
        asked = f"Are the per-head updates of {row} better than shared ones of their size"
        if is_second:
            asked = f"Is the second phase of {row} better than its controls"
        lines.append(f"{asked}? {answer}: {', '.join(parts)}.")
    return lines


def _sign(found: Any) -> int:
    """1 or -1 where the interval leaves out zero and the pairs are not too few, else 0."""
    if found.pairs < FEWEST or pd.isna(found.low):
        return 0
    return int(found.low > 0) - int(found.high < 0)


def _against(kind: str, found: Any) -> str:
    if found is None:
        return f"no run of {kind}"
    interval = "" if pd.isna(found.low) else f"{found.low:+.2f} to {found.high:+.2f}, "
    return f"{found.mean:+.2f} against {kind} ({interval}{found.pairs} pairs)"


def against(lines: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return the differences of two rows of one table, task by task and seed by seed.

    Args:
        lines: of the columns `LINE`, of accuracies.
        first, second: rows as the table names them, ``lora`` or ``heart_lora (ne3)``; with ``:P1`` of that tested
            phase, else of the last.
    Returns:
        Lines of the columns `LINE`, of the first row; empty where they share no task and seed.
    Raises:
        ConfigError: if a row or phase does not exist, or both are the same.
    """
    (one, row, phase), (other, *name) = chosen(lines, first), chosen(lines, second)
    if [row, phase] == name:
        raise ConfigError(f"{first!r} and {second!r} are the same runs; name two that differ")
    cell = ["column", "group", "seed"]
    one, other = (part.groupby(cell, as_index=False)["value"].mean() for part in (one, other))
    joined = one.merge(other, on=cell, suffixes=("", "_other"))
    joined["value"] -= joined["value_other"]
    joined["row"], joined["phase"] = row, f"{phase} - {' '.join(name)}"
    return joined[LINE]


def chosen(lines: pd.DataFrame, given: str) -> tuple[pd.DataFrame, str, str]:
    """Return the lines of a row's phase, the row, and the phase.

    Args:
        lines: of the columns `LINE`.
        given: as for `against`.
    Raises:
        ConfigError: if there is none, or several variants; lists what there is.
    """
    row, wanted = _split(given)
    rows = sorted(set(lines["row"]))
    if row not in rows:
        variants = [name for name in rows if re.sub(r" [(\[].*", "", name) == row]
        if len(variants) != 1:
            what = "several variants" if variants else "no finished run"
            raise ConfigError(f"{row!r} has {what} here{suggest(row, variants or rows)}")
        (row,) = variants
    part = lines[lines["row"] == row]
    phases = sorted(set(part["phase"]))
    if wanted and wanted not in phases:
        raise ConfigError(f"{row!r} has no tested phase {wanted!r}{suggest(wanted, phases)}")
    phase = wanted or phases[-1]
    return part[part["phase"] == phase], row, phase


def _split(given: str) -> tuple[str, str]:
    found = re.fullmatch(r"(.+):(P\d+)", given)
    return (found[1], found[2]) if found else (given, "")

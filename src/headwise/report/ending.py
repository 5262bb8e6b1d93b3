"""What a run prints when it has ended: its phases, what its controls say, and the verdict. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from headwise.comparison import cells
from headwise.comparison.comparable import places
from headwise.comparison.controls import HEADS, KINDS, PHASE, controls_of, lacking, matches
from headwise.comparison.verdicts import judged
from headwise.results.classes import said
from headwise.results.records import MAP, PhaseResult, Result, RunKey
from headwise.results.store import ResultStore


def around(result: Result, store: ResultStore) -> list[Result]:
    """Read what a run may be measured by: its task and seed, then the other seeds of it and of its controls.

    A whole experiment is not read: that would take longer than many a run.
    """
    wanted = {kind for kinds in controls_of(result).values() for kind in kinds}
    if not wanted:
        return []
    # by key: a run of the same task may be read twice, as a neighbour and as another seed
    gathered = {other.key: other for other in store.alike(result.key)}
    for own in store.repeats(result.key):
        matched = matches([own], gathered.values())
        if wanted - {match.against for match in matched}:  # not beside those of another seed: read all of this one
            gathered |= {other.key: other for other in store.alike(own.key)}
            matched = matches([own], gathered.values())
        gathered[own.key] = own
        for key in {match.other for match in matched} - {own.key}:
            gathered |= {other.key: other for other in store.repeats(key)}
    return list(gathered.values())


def summary(result: Result, others: Iterable[Result] = (), suggest: bool = True) -> str:
    """A small table of what each phase reached and gained, what the run's controls say, and the verdict.

    Args:
        others: controls are sought here, and the other seeds of the run, on which the verdict rests as well.
        suggest: say how to make the controls that are missing; a sweep says it once, see `missing_controls`.
    """
    lines = [
        f"{result.key.method} on {result.key.dataset}, seed {result.key.seed}"
        + (f" [{', '.join(result.labels)}]" if result.labels else ""),
        f"{'phase':<28}{result.metric:>10}{'gain':>8}{'tunable':>13}{'head':>9}{'stored':>15}{'seconds':>10}",
    ]
    before: float | None = None
    for index, phase in enumerate(result.phases, start=1):
        gain = "" if before is None or phase.accuracy is None else f"{phase.accuracy - before:+.2f}"
        accuracy = "-" if phase.accuracy is None else f"{phase.accuracy:.2f} %"
        stored = f"{phase.stored_bytes:,} B"
        lines.append(
            f"{f'{index} {phase.label}':<28}{accuracy:>10}{gain:>8}{phase.num_tunable:>13,}{phase.num_head:>9,}"
            f"{stored:>15}{phase.seconds:>10.1f}"
        )
        before = phase.accuracy
    if any(phase.images_per_second for phase in result.phases):
        lines.append(f"Images/s in training: {', '.join(map(_speed, result.phases))}")
    if result.task.get("group") == "own" and (last := said(result.phases[-1].extra)):
        lines.append(f"Of the classes: {last} (confusion.csv).")
    if result.metric == MAP:
        lines.append("mAP: the mean over the classes of their average precisions (average_precision.csv).")
    others = list(others)
    return "\n".join(map(cells.one_line, [*lines, *_measured(result, others, suggest), *verdicts(result, others)]))


def _speed(phase: PhaseResult) -> str:
    """Images per second of a phase, and what that is of its GPU's peak."""
    rate = "-" if phase.images_per_second is None else f"{phase.images_per_second:,.0f}"
    reached = phase.extra.get("mfu")  # of a known GPU, see headwise.training.utilisation
    if not reached:
        return rate
    return f"{rate} ({reached['share']:.1%} of the GPU's {reached['peak'] / 1e12:,.0f} TFLOP/s)"


def _measured(result: Result, others: Iterable[Result], suggest: bool) -> list[str]:
    """What a head-wise run gains over its controls, and how to make those that are missing.

    Per-head updates alone are a choice of method: of them no control is asked for, but shown if it is there.
    """
    claims = controls_of(result)
    matched = {match.against: match for match in matches([result], others)}
    lines = []
    for claim, controls in claims.items():
        for kind, how in controls.items():
            if kind in matched:
                start = (
                    f"trained otherwise before it went on: {matched[kind].start_note}"
                    if matched[kind].start_note
                    else ""
                )
                told = "; ".join(filter(None, [KINDS[kind].full, matched[kind].size_note, start]))
                lines.append(f"{matched[kind].value:>+8.2f}  {kind} ({told})")
            elif claim != HEADS and suggest:
                lines.append(f"{'?':>8}  {kind} ({KINDS[kind].full}; not run with these options: {how})")
    if not lines:
        return []
    more = "The second phase also brings training and parameters. " if PHASE in claims else ""
    return [f"{more}Percentage points over its controls, same seed:", *lines]


def missing_controls(results: Sequence[Result], store: ResultStore) -> list[str]:
    """Say once for all runs of a sweep which controls they lack, and how to make them; nothing where none is lacking.

    Args:
        results: of the sweep; controls are sought among them first.
        store: controls are sought among what else lies in it, of the tasks and seeds that lack some.
    """
    gathered = {result.key: result for result in results}
    lack = _lacking(results, gathered.values())
    for task, seed in sorted({(key.dataset, key.seed) for _, _, key in lack}):
        key = next(key for _, _, key in lack if (key.dataset, key.seed) == (task, seed))
        gathered |= {other.key: other for other in store.alike(key)}
    lack = _lacking([gathered[key] for key in dict.fromkeys(key for _, _, key in lack)], gathered.values())
    lines = []
    order = list(KINDS)
    for kind, how in sorted({(kind, how) for kind, how, _ in lack}, key=lambda pair: order.index(pair[0])):
        keys = [key for other, _, key in lack if other == kind]
        methods = ", ".join(sorted({key.method for key in keys}))
        lines.append(f"{'?':>8}  {kind} ({KINDS[kind].full}; {len(keys)} of {methods} lack it: {how})")
    return ["Controls that runs of this sweep lack:", *map(cells.one_line, lines)] if lines else []


def _lacking(results: Sequence[Result], others: Iterable[Result]) -> list[tuple[str, str, RunKey]]:
    """The kind of each control that a run lacks, how it is made, and the run."""
    have = {(match.result.key, match.against) for match in matches(results, others)}
    return [
        (kind, how, result.key)
        for result in results
        for claim, controls in controls_of(result).items()
        for kind, how in controls.items()
        if claim != HEADS and (result.key, kind) not in have
    ]


def verdicts(result: Result, others: Iterable[Result]) -> list[str]:
    """The sentences of a table on this run's row, as far as its task goes."""
    if not controls_of(result):
        return []
    others = list(others)
    same = [run for run in others if replace(run.key, seed=result.key.seed) == result.key and run.key != result.key]
    every = [result, *same]
    where, _ = places(every)
    # what lies in one folder by an older rule of names, and was made otherwise, is no seed of this row
    row = [run for run in every if where[run.key][0] == where[result.key][0]]
    pairs = matches(row, others)
    return [str(judgement) for judgement in judged(pairs, where, lacking(row, where, pairs), row)]

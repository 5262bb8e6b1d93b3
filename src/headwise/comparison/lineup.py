"""Methods side by side: what each run of an experiment cost and reached, against the linear probe. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headwise.comparison.cells import bullets, in_markdown, pipes
from headwise.comparison.comparable import distinct, made_by_older_code, natural, recorded, shared_choices
from headwise.comparison.costs import COSTS
from headwise.protocol.revisions import changed_since
from headwise.protocol.variants import BASE, beside_common
from headwise.results.fingerprint import fingerprint
from headwise.results.records import PhaseResult, Result
from headwise.schema.check import written

PROBE = "headwise.methods.baselines.Linear"
MEASURED = ("accuracy %", "train loss", "ms / step", "peak MiB")
MARK, OLDER, END = "(below the linear probe)", "(older code)", "(end)"


@dataclass(frozen=True, kw_only=True)
class LineupRow:
    """One run.

    Attributes:
        variant: what was chosen beyond the experiment, without choices that all rows share; ``base`` if nothing.
        costs: by the names of `headwise.comparison.costs.COSTS`.
        accuracy: of the last phase on the test images, percent.
        train_loss: mean cross-entropy of the last epoch, nats; None where nothing was trained.
        ms_per_step: time of the training epochs over their steps, all phases together; None without steps.
        peak_memory: largest of the phases, bytes; None where it was not measured.
        chosen: what a search chose in each phase, values at an end of what was tried marked; empty without one.
        below_probe: whether the linear probe of the same images, weights and seed reached more; None without one.
        older_code: why its method has other numbers now; empty if it has the same.
    """

    method: str
    variant: str
    seed: int
    costs: dict[str, int]
    accuracy: float
    train_loss: float | None
    ms_per_step: float | None
    peak_memory: int | None
    chosen: str
    below_probe: bool | None
    older_code: list[str]


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """Runs on one task with the same images and weights, the most accurate first."""

    title: str
    notes: list[str]
    lines: list[LineupRow]


def lineups(results: Iterable[Result]) -> list[Lineup]:
    """One line-up per task, images and weights; runs that were not tested are left out."""
    groups: dict[str, list[Result]] = {}
    for result in distinct(results):
        if result.accuracy is not None:
            shared = {part: recorded(result, part) for part in ("weights", "data")}
            groups.setdefault(fingerprint({**shared, "task": result.key.dataset}), []).append(result)
    return [_lineup(members) for members in groups.values()]


def _lineup(results: Sequence[Result]) -> Lineup:
    common = shared_choices(results)
    probes = {result.key.seed: result.accuracy for result in results if _is_probe(result, common)}
    lines = [_line(result, probes.get(result.key.seed), common) for result in results]
    first = results[0]
    weights: Any = recorded(first, "weights")
    name = weights.get("name", "backbone") if isinstance(weights, dict) else "backbone"
    return Lineup(
        title=f"{first.key.dataset}, {name}",
        notes=_notes(results, probes, common),
        lines=sorted(lines, key=lambda line: (-line.accuracy, line.costs["parameters"], line.method, line.variant)),
    )


def _is_probe(result: Result, common: Sequence[str]) -> bool:
    # a probe with other options is a row like any other; the one without is what a row must reach
    alone = [phase.method.get("_target_") for phase in result.phases] == [PROBE]
    return alone and beside_common(result.key.variant, common) == BASE


def _line(result: Result, probe: float | None, common: Sequence[str]) -> LineupRow:
    key = result.key
    steps = sum(phase.steps for phase in result.phases)
    peaks = [phase.peak_memory for phase in result.phases if phase.peak_memory is not None]
    accuracy = float(result.accuracy or 0.0)
    return LineupRow(
        method=key.method,
        variant=beside_common(key.variant, common),
        seed=key.seed,
        costs={name: cost.of(result) for name, cost in COSTS.items()},
        accuracy=accuracy,
        train_loss=result.phases[-1].train_loss,
        ms_per_step=1e3 * result.seconds / steps if steps else None,
        peak_memory=max(peaks, default=None),
        chosen=_of_all(result.phases),
        below_probe=None if probe is None else accuracy < probe,
        older_code=changed_since(result.identity.get("method")),
    )


def _of_all(phases: Sequence[PhaseResult]) -> str:
    parts = [_chosen(phase) for phase in phases]
    return ", then ".join(part or "-" for part in parts) if any(parts) else ""


def _chosen(phase: PhaseResult) -> str:
    values = {name: value for name, value in phase.chosen.items() if value is not None}  # None: the method's own value
    said = {name: f"{value:g}" if isinstance(value, float) else written(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}{f' {END}' * (name in phase.edges)}" for name, value in said.items())


def _notes(results: Sequence[Result], probes: dict[int, float | None], common: Sequence[str]) -> list[str]:
    seeds = sorted({result.key.seed for result in results})
    images = sorted({f"{result.tested[-1].num_test} " for result in results if result.tested[-1].num_test})
    metric = " and ".join(sorted({result.metric for result in results}))
    notes = [
        f"{len(results)} runs, seed {', '.join(map(str, seeds))}; {metric} in percent of {', '.join(images)}test "
        "images after the last phase.",
        "Parameters (without the head) and stored bytes are those of all tested phases together; the training loss is "
        "the mean cross-entropy of the last epoch.",
        "ms / step is the time of the training epochs over their steps; peak MiB is the highest memory during "
        "training, of a CPU the resident set of the process (interpreter, libraries, network and images included).",
    ]
    if common:
        notes.append(f"Every row: {', '.join(common)}.")
    machines = {
        f"{machine.get('accelerator') or 'cpu'}, {machine.get('cpu')}, {machine.get('threads')} thread(s)"
        for machine in (result.machine for result in results)
        if machine
    }
    notes += [f"Machine: {text}." for text in sorted(machines)]
    labels = sorted({label for result in results for label in result.labels})
    notes += [f"Label: {label}." for label in labels]
    protocols = {fingerprint({"p": recorded(result, "protocol")}) for result in results}
    if len(protocols) > 1:
        notes.append(f"{len(protocols)} protocols are mixed: a row in brackets says what it changed.")
    notes += made_by_older_code(results, lambda result: result.key.method)
    if any(phase.num_trials for result in results for phase in result.phases):
        notes.append(
            f"Chosen: by a search on validation images, phase by phase; {END}: the smallest or largest value that was "
            "tried, a better one may lie beyond it (records of older code do not say so of ne)."
        )
    if not probes:
        notes.append("No linear probe is among the runs, so no row is marked.")
    return notes


def markdown(lined_up: Sequence[Lineup]) -> str:
    """A heading, the caption and a table each."""
    parts = []
    costs = [cost.short or cost.title for cost in COSTS.values()]
    for lineup in lined_up:
        several = len({line.seed for line in lineup.lines}) > 1
        rows = [_cells(line, several) for line in lineup.lines]
        header = ["method", *costs, *MEASURED]
        if any(line.chosen for line in lineup.lines):
            rows = [[*row, in_markdown(line.chosen)] for row, line in zip(rows, lineup.lines, strict=True)]
            header.append("chosen")
        title, table = in_markdown(lineup.title), "\n".join(pipes(header, rows))
        parts.append(f"## {title}\n\n{bullets(lineup.notes)}\n\n{table}\n")
        if others := _varied(lineup.lines):
            caption = "Methods that were run with other options: accuracy in percent, training loss in brackets."
            table = "\n".join(pipes(others[0], others[1:]))
            parts.append(f"### {title}: other options\n\n{caption}\n\n{table}\n")
    return "\n".join(parts)


def _varied(lines: Sequence[LineupRow]) -> list[list[str]]:
    """A row per method and seed that has several variants, a column per variant; empty if none has."""
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for line in lines:
        loss = "" if line.train_loss is None else f" ({line.train_loss:.2f})"
        rows.setdefault((line.method, line.seed), {})[line.variant] = f"{line.accuracy:.2f}{loss}"
    rows = {key: cells for key, cells in rows.items() if len(cells) > 1}
    columns = sorted({variant for cells in rows.values() for variant in cells}, key=lambda v: (v != BASE, natural(v)))
    several = len({seed for _, seed in rows}) > 1
    names = {(method, seed): f"{method}, seed {seed}" if several else method for method, seed in rows}
    body = [[names[key], *(cells.get(column, "") for column in columns)] for key, cells in rows.items()]
    return [["method", *columns], *body] if body else []


def _cells(line: LineupRow, with_seed: bool) -> list[str]:
    name = line.method if line.variant == BASE else f"{line.method} ({line.variant})"
    name = f"{name}, seed {line.seed}" if with_seed else name
    marks = [MARK] * bool(line.below_probe) + [OLDER] * bool(line.older_code)
    return [
        " ".join([name, *marks]),
        *(f"{number:,}" for number in line.costs.values()),
        f"{line.accuracy:.2f}",
        "" if line.train_loss is None else f"{line.train_loss:.4f}",
        "" if line.ms_per_step is None else f"{line.ms_per_step:.0f}",
        "" if line.peak_memory is None else f"{line.peak_memory / 2**20:,.0f}",
    ]


def plain(lined_up: Sequence[Lineup]) -> list[dict[str, Any]]:
    """The same, unrounded, as data that JSON can hold."""
    return [{**asdict(lineup), "lines": [_flat(line) for line in lineup.lines]} for lineup in lined_up]


def _flat(line: LineupRow) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in vars(line).items():
        fields |= value if name == "costs" else {name: value}
    return fields

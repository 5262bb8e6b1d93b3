"""All results on one page: a self-contained HTML file that loads nothing. Never imports torch.

The page is `assets/report.html`, its style `assets/report.css`, its sorting `assets/report.js`; this module decides
what is on it. What is compared with what, and the verdict, are `tables`' business.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jinja2
from markupsafe import Markup

from headwise.comparison.comparable import Setting, ordered, places, settings
from headwise.comparison.mechanism import correlations
from headwise.comparison.tables import Others, Table, tables
from headwise.comparison.verdicts import Judgement, Verdict, is_smoke
from headwise.errors import ConfigError
from headwise.report import gallery, grids, layout, leaderboard, origins
from headwise.report.gallery import Figure, slugged
from headwise.report.grid import Grid
from headwise.report.summary import questions
from headwise.results.records import FEWSHOT, Result
from headwise.storage.weights import ASSETS

NUM_MAPS = 24
"""Head maps that are drawn of one table; the runs' own folders have the others."""
IN_SIGHT = 6
"""Curves over heads off and head maps that are in sight; the others fold away."""
WARNINGS = ("NO CONTROL", "NOT OF EQUAL SIZE")
"""How notes begin that nobody may overlook."""
NUM_ROWS = 12
"""Rows of the summary that are in sight; the others fold away."""
WHOLE = (f"mean_{FEWSHOT}", "mean_19", "mean_groups")


@dataclass(frozen=True)
class Chapter:
    """Everything of one table: results that may be compared."""

    slug: str
    title: str
    warnings: Sequence[tuple[str, str]]
    """What nobody may overlook: its beginning, and the rest."""
    lead: str
    """How many results, which weights and which protocol."""
    notes: Sequence[str]
    labels: Sequence[tuple[str, str]]
    """Stamps, and how many results have each."""
    grids: Sequence[tuple[str, str, Grid]]
    """Heading, what it says, table."""
    scatters: Sequence[Figure]
    more_scatters: Sequence[Figure]
    over_shots: Sequence[Figure]
    curves: Sequence[Figure]
    maps: Sequence[Figure]
    num_maps: int
    costs: Grid
    hours: str
    judgements: Sequence[Judgement]
    block: leaderboard.Block


@dataclass(frozen=True)
class Watch:
    """That a page is renewed while runs go on: after how many seconds it is read again, and when it was made."""

    seconds: int
    made: str


def report(
    results: Iterable[Result],
    title: str = "Results",
    damaged: Sequence[str] = (),
    others: Others = list,
    watch: Watch | None = None,
) -> str:
    """Return the page.

    Args:
        results: in any order; at least one with a test accuracy.
        title: of the page.
        damaged: what is wrong with each record that could not be read; the page names them.
        others: reads runs of other names, among which controls are sought that these lack.
        watch: for a page that is renewed; without it the same results give the same page.
    Raises:
        ConfigError: if no result has a test accuracy.
    """
    usable = ordered(results)
    if not any(result.tested for result in usable):
        raise ConfigError(f"no result with a test accuracy: there is nothing to report yet{'; '.join(['', *damaged])}")
    split = settings(usable)
    chapters = _chapters(tables(usable, title, others=others), split)
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return page.get_template("report.html").render(
        title=title,
        facts=_facts(usable),
        labels=_labels(usable),
        total=len(usable),
        watch=watch,
        board=leaderboard.board([chapter.block for chapter in chapters]),
        damaged=damaged,
        questions=questions([(chapter.title, judgement) for chapter in chapters for judgement in chapter.judgements]),
        num_rows=NUM_ROWS,
        in_sight=IN_SIGHT,
        chapters=chapters,
        provenance=origins.provenance(usable),
        runs=grids.runs(usable, "runs"),
        style=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # the policy in the page's head lets this script run and no other, whatever a record holds
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _labels(results: Sequence[Result]) -> list[tuple[str, str]]:
    counts = {label: sum(label in result.labels for result in results) for r in results for label in r.labels}
    total = len(results)
    return [(label, "all runs" if n == total else f"{n} of {total} runs") for label, n in sorted(counts.items())]


def _facts(results: Sequence[Result]) -> list[str]:
    days = sorted({result.created[:10] for result in results})
    names = sorted({result.key.name for result in results})
    seeds = {result.key.seed for result in results}
    counts = [
        (len(results), "run", "runs"),
        (len(names), "experiment", "experiments"),
        (len({result.key.method for result in results}), "method", "methods"),
        (len({result.key.dataset for result in results}), "task", "tasks"),
        (len(seeds), "seed", "seeds"),
    ]
    facts = [f"{number:,} {singular if number == 1 else plural}" for number, singular, plural in counts]
    return [*facts, days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"]


def _chapters(arranged: Sequence[Table], split: Sequence[Setting]) -> list[Chapter]:
    chapters: list[Chapter] = []
    for table, setting in zip(arranged, split, strict=True):
        results = [result for result in setting.results if result.tested]
        if not results:
            continue
        title = ", ".join(sorted({result.key.name for result in results}))
        taken = sum(chapter.title.partition(" (")[0] == title for chapter in chapters)
        title = f"{title} ({taken + 1})" if taken else title
        first = chapters[0].title if chapters else title
        # the page has chapters by experiment, not numbered tables: the note names the one that it means
        table.notes = [note.replace("than the first table:", f"than {first}:") for note in table.notes]
        slug = f"{slugged(title)}-{len(chapters) + 1}"
        chapters.append(_chapter(table, replace(setting, results=results), title, slug))
    return sorted(chapters, key=lambda chapter: not chapter.judgements)


def _chapter(table: Table, setting: Setting, title: str, slug: str) -> Chapter:
    results = setting.results
    where, _ = places(results, common=setting.common)
    badges = {j.row: Verdict.NO_CONTROL.value for j in table.judgements if not j.is_complete}
    badges |= {where[result.key][0]: Verdict.SMOKE.value for result in results if is_smoke(result)}
    lead = next((note for note in table.notes if "; weights: " in note), "")
    caption = next((note for note in table.notes if note.startswith("Test accuracy in percent")), "")
    elsewhere = (lead or "Label: ", caption or "Label: ", "Label: ", *WARNINGS)
    shown = [
        ("Accuracy", f"{caption} Bold: the best of its task.", grids.accuracies(table, f"{slug}-accuracy", badges))
    ]
    if len(table.paired):
        caption = "Percentage points, seed by seed: the second phase minus its own first, and minus its controls."
        shown.append(("Paired differences", caption, grids.differences(table, f"{slug}-differences")))
    if len(table.pays):
        caption = f"{layout.PAYS_NOTE} {layout.IMPROVED_NOTE} {layout.TESTED_NOTE}"
        shown.append(("Where it pays", caption, grids.pays(table, f"{slug}-where-it-pays")))
    if len(table.mechanism):
        caption = " ".join([layout.MECHANISM_NOTE, *correlations(table.mechanism)])
        shown.append(("Where second phases lie", caption, grids.mechanism(table, f"{slug}-where-they-lie")))
    if beside := grids.published(table, f"{slug}-published"):
        shown.append(("Published", "Rows of papers under the same protocol, and how far ours is off.", beside))
    scatters = gallery.scatters(table, results, where, slug)
    averages = [figure for figure in scatters if figure.title in WHOLE]
    maps = gallery.maps(results, where, slug)
    return Chapter(
        slug=slug,
        title=title,
        warnings=[_cut(note) for note in table.notes if note.startswith(WARNINGS)],
        lead=lead,
        notes=[grids.shortened(note) for note in table.notes if not note.startswith(elsewhere)],
        labels=_labels(results),
        grids=shown,
        scatters=averages or scatters,
        more_scatters=[figure for figure in scatters if figure not in averages] if averages else [],
        over_shots=gallery.over_shots(results, where, setting.common, slug),
        curves=gallery.curves(results, where, slug),
        maps=[gallery.head_map(*phase, slug) for phase in maps[:NUM_MAPS]],
        num_maps=len(maps),
        costs=grids.costs(results, where, f"{slug}-costs"),
        hours=_hours(results),
        judgements=table.judgements,
        block=leaderboard.block(title, slug, results, where, badges, list(dict.fromkeys(table.cells["column"]))),
    )


def _cut(note: str) -> tuple[str, str]:
    """A long warning: what is in sight, and the rest."""
    if len(note) <= 320:
        return note, ""
    end = note.rfind(";", 0, 240) + 1 or 240
    return note[:end], note[end:]


def _hours(results: Sequence[Result]) -> str:
    """Time of all phases, each counted once however many runs share it."""
    seconds = {
        phase.fingerprint or f"{result.key} {number}": phase.seconds
        for result in results
        for number, phase in enumerate(result.phases)
    }
    total = sum(seconds.values())
    return f"{total / 3600:,.1f} hours" if total >= 3600 else f"{total / 60:,.1f} minutes"

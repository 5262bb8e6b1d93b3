"""Write the tables of an experiment from its results: python scripts/make_tables.py table1 --out outputs/table1.md.

Two methods, paired by task and seed: python scripts/make_tables.py table1 --compare hs_lora lora_long
For a paper: python scripts/make_tables.py table1 --out t.tex --paper --rows lora,hs_lora --columns 'parameters,mean_*'
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.cli import exclusive, of_results, results_of, script
from headwise.commands.arguments import OutFile, names_file, patterns
from headwise.commands.written import writing
from headwise.comparison.beside import SHOW
from headwise.comparison.tables import compare, tables
from headwise.errors import ConfigError
from headwise.report.formats import FORMATS, SUFFIXES, left_out, notes_of, render
from headwise.report.selection import Selection
from headwise.results import reading
from headwise.storage import atomic


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = of_results(__doc__)
    parser.add_argument("experiment", nargs="?", help="name of the runs: the experiment's; all runs if left out")
    parser.add_argument("--name", help="the same as EXPERIMENT, for runs named otherwise")
    parser.add_argument("--out", type=OutFile(), help="file to write (.md, .tex, .csv, .json); the screen if left out")
    parser.add_argument("--json", type=OutFile(), help="also write everything unrounded as JSON")
    parser.add_argument("--format", choices=sorted(FORMATS), help="by the suffix of --out if left out, else md")
    parser.add_argument("--pool", action="store_true", help="let different weights, protocols and images share columns")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="rows of the table, such as hs_lora, 'heart_lora (ne3)' or hs_lora:P1: A minus B over tasks and seeds",
    )
    parser.add_argument(
        "--published",
        choices=SHOW,
        help="published rows: beside comparable results (auto), the others as well but apart (always), none (never)",
    )
    parser.add_argument("--rows", type=patterns, help="rows of the main table, in order: 'lora,hs_lora*'")
    parser.add_argument("--columns", type=patterns, help="its columns, in order: 'parameters,svhn,mean_*'")
    parser.add_argument("--names", type=names_file, help='JSON file of other names: {"hs_lora": "HS-LoRA"}')
    parser.add_argument(
        "--paper", action="store_true", help="a short caption, 0.72 M; the notes go to OUT.notes.md (needs --out)"
    )
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    if options.experiment and options.name not in (None, options.experiment):
        raise ConfigError(f"{options.experiment} and --name {options.name} are two names; give one")
    form = _form(options.out, options.format)
    shown = Selection(options.rows or (), options.columns or (), options.names or {}, options.paper)
    if options.paper and options.out is None:
        raise ConfigError("--paper writes its notes beside the table; say where with --out FILE")
    notes = options.out.with_name(f"{options.out.name}.notes.md") if options.paper else None
    with writing(options.out, options.json, notes, force=options.force):
        found = results_of(options.root, options.name or options.experiment)
        title = found.name or "Results"
        if options.compare:
            exclusive({"--published": options.published}, "beside --compare")
            made = compare(found.results, *options.compare, title=title, pool=options.pool)
        else:
            others = reading.others(options.root, [found.name])
            made = tables(found.results, title, options.pool, options.published or "auto", others)
        made[0].notes += found.notes
        for name in left_out(made, shown):
            print(f"note: {name} is left out: nothing in it is asked for", file=sys.stderr)
        text = render(made, form, None if shown == Selection() else shown)
        if options.out:
            atomic.write_text(options.out, text)
        else:
            print(text)
        if notes:
            atomic.write_text(notes, notes_of(made, shown))
        if options.json:
            atomic.write_text(options.json, render(made, "json"))
        return 0


def _form(out: Path | None, given: str | None) -> str:
    by_suffix = SUFFIXES.get(out.suffix) if out else "md"
    if by_suffix is None and given is None:
        raise ConfigError(f"--out {out} has none of the suffixes {', '.join(SUFFIXES)}; choose one, or give --format")
    if out and given and by_suffix not in (None, given):
        raise ConfigError(f"--out {out} and --format {given} exclude each other; give one of them, or another suffix")
    return str(given or by_suffix)


if __name__ == "__main__":
    sys.exit(main())

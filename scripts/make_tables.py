"""Write the tables of an experiment from its results: python scripts/make_tables.py table1 --out outputs/table1.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headwise import atomic
from headwise.cli import script
from headwise.errors import ConfigError, suggest
from headwise.render import FORMATS, render
from headwise.results import ResultError, ResultStore
from headwise.tables import tables

SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv", ".json": "json"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", help="name of the runs: the experiment's; all runs if left out")
    parser.add_argument("--name", help="the same as EXPERIMENT, for runs named otherwise")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="where results lie (outputs)")
    parser.add_argument("--out", type=Path, help="file to write; the screen if left out")
    parser.add_argument("--json", type=Path, help="also write everything unrounded as JSON")
    parser.add_argument("--format", choices=sorted(FORMATS), help="by the suffix of --out if left out, else md")
    parser.add_argument("--pool", action="store_true", help="let different weights, protocols and images share columns")
    return parser.parse_args(arguments)


@script
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    name = options.name or options.experiment
    bad: list[ResultError] = []
    results = list(ResultStore(options.root, on_bad=bad.append).all(name))
    for error in bad:
        print(f"warning: {error}", file=sys.stderr)
    if not results:
        found = {path.name for path in options.root.glob("*") if path.is_dir() and path.name != "phases"}
        wanted = f"of {name!r} " if name else ""
        raise ConfigError(f"no finished run {wanted}under {options.root}{suggest(name or '', found)}")
    made = tables(results, name or "Results", options.pool)
    if bad:
        made[0].notes.append(f"{len(bad)} damaged record(s) count as missing.")
    form = options.format or (SUFFIXES.get(options.out.suffix, "md") if options.out else "md")
    text = render(made, form)
    if options.out:
        atomic.write_text(options.out, text)
    else:
        print(text)
    if options.json:
        atomic.write_text(options.json, render(made, "json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write what every method cost and reached from its results: python scripts/make_methods_table.py methods.

Reads finished records only and writes Markdown and JSON, docs/results/methods.md and .json by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise import atomic
from headwise.cli import force_option, script
from headwise.errors import ConfigError
from headwise.tables import reading
from headwise.tables.lineup import lineups, markdown, plain
from headwise.written import writing

REPO = Path(__file__).resolve().parent.parent


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="methods", help="folder of the runs below the root (methods)")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="of all results (outputs)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods.md"), help="Markdown; JSON beside it")
    force_option(parser)
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    beside = options.out.with_suffix(".json") if options.out.name else options.out
    with writing(options.out, beside, force=options.force):
        runs = reading.read(options.root, options.name, REPO)
        for path in runs.damaged:
            print(f"warning: {options.root / path} is not a usable record; it counts as missing", file=sys.stderr)
        found = lineups(runs.results)
        if not found:
            raise ConfigError(f"no tested run in {options.root / options.name}")
        found[0].notes.extend(runs.notes)
        text = markdown(found)
        print(text, end="")
        atomic.write_text(options.out, text)
        atomic.write_json(beside, plain(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs with heads off beside the same runs without a mask: python scripts/compare_twins.py heart_variants."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise import atomic
from headwise.cli import force_option, script
from headwise.errors import ConfigError
from headwise.tables import reading
from headwise.tables.twins import markdown, pairs
from headwise.written import writing

REPO = Path(__file__).resolve().parent.parent


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="heart_variants", help="folder of the runs below the root")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="of all results")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    force_option(parser)
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    with writing(options.out, force=options.force):
        runs = reading.read(options.root, options.name, REPO)
        for path in runs.damaged:
            print(f"warning: {options.root / path} is not a usable record; it counts as missing", file=sys.stderr)
        found, notes = pairs(runs.results)
        if not found:
            raise ConfigError(f"no finished run with a head off in {options.root / options.name}")
        text = markdown(found, [*notes, *runs.notes])
        print(text, end="")
        if options.out:
            atomic.write_text(options.out, text)
        return 0


if __name__ == "__main__":
    sys.exit(main())

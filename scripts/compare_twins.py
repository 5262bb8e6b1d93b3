"""Runs with heads off beside the same runs without a mask: python scripts/compare_twins.py heart_variants."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headwise.cli import of_results, results_of, script
from headwise.commands.arguments import OutFile
from headwise.commands.written import writing
from headwise.comparison.twins import markdown, pairs
from headwise.errors import ConfigError
from headwise.storage import atomic


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = of_results(__doc__)
    parser.add_argument("name", nargs="?", default="heart_variants", help="folder of the runs below the root")
    parser.add_argument("--out", type=OutFile(), help="Markdown file to write as well")
    options = parser.parse_args(arguments)
    with writing(options.out, force=options.force):
        runs = results_of(options.root, options.name)
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

"""Write all results on one page: python scripts/make_report.py --name standins --out outputs/report.html."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.cli import of_results, results_of, script
from headwise.commands.arguments import OutFile
from headwise.commands.written import writing
from headwise.report.page import report
from headwise.results import reading
from headwise.storage import atomic


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = of_results(__doc__)
    parser.add_argument("--name", nargs="+", default=[], metavar="EXPERIMENT", help="names of runs; all if left out")
    parser.add_argument("--out", type=OutFile(), default=Path("outputs/report.html"), help="file (outputs/report.html)")
    parser.add_argument("--title", help="of the page; the names if left out")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    with writing(options.out, force=options.force):
        found = [results_of(options.root, name) for name in dict.fromkeys(options.name or [None])]
        results = [result for part in found for result in part.results]
        damaged = [f"{path} is not a usable record; it counts as missing" for part in found for path in part.damaged]
        title = options.title or ", ".join(options.name) or "All results"
        others = reading.others(options.root, [part.name for part in found])
        atomic.write_text(options.out, report(results, title, damaged, others))
        print(f"written: {options.out} ({len(results)} runs)")
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write all results on one page: python scripts/make_report.py --name standins --out outputs/report.html.

While a sweep runs, look every 30 seconds for new results until Ctrl-C: python scripts/make_report.py --watch 30
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.cli import of_results, results_of, script
from headwise.commands.arguments import OutFile, Whole
from headwise.commands.written import writing
from headwise.errors import ConfigError
from headwise.report.page import Watch, report
from headwise.report.watching import watch
from headwise.results import provenance, reading
from headwise.storage import atomic


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = of_results(__doc__)
    parser.add_argument("--name", nargs="+", default=[], metavar="EXPERIMENT", help="names of runs; all if left out")
    parser.add_argument("--out", type=OutFile(), default=Path("outputs/report.html"), help="file (outputs/report.html)")
    parser.add_argument("--title", help="of the page; the names if left out")
    parser.add_argument(
        "--watch", type=Whole(1, 86_400), metavar="SECONDS", help="renew the page while runs go on, until Ctrl-C"
    )
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    if options.watch is None:
        _write(options)
        return 0
    told: set[str] = set()

    def renew() -> bool:
        with writing(options.out, force=options.force):
            pass  # a file that must not be replaced ends the watch; what is not there yet does not
        try:
            _write(options, Watch(options.watch, provenance.now().replace("T", " ").replace("+00:00", " UTC")))
        except ConfigError as error:
            if str(error) not in told:
                print(f"waiting: {error}", flush=True)
            told.add(str(error))
            return False
        return True

    watch(renew, lambda: reading.stamps(options.root), options.watch)
    with contextlib.suppress(ConfigError):  # a last page, which is read again no more
        _write(options)
    return 0


def _write(options: argparse.Namespace, renewed: Watch | None = None) -> None:
    """Write the page as it is now, whole or not at all."""
    with writing(options.out, force=options.force):
        found = [results_of(options.root, name) for name in dict.fromkeys(options.name or [None])]
        results = [result for part in found for result in part.results]
        damaged = [f"{path} is not a usable record; it counts as missing" for part in found for path in part.damaged]
        title = options.title or ", ".join(options.name) or "All results"
        others = reading.others(options.root, [part.name for part in found])
        atomic.write_text(options.out, report(results, title, damaged, others, renewed))
    print(f"written: {options.out} ({len(results)} runs)", flush=True)


if __name__ == "__main__":
    sys.exit(main())

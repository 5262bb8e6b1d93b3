"""Set a run beside the published row it is, and list what can explain the gap.

python scripts/compare.py outputs/runs/lora/svhn/base/seed-0
python scripts/compare.py hs_pissa svhn --name hs_table1
python scripts/compare.py lora --row hs_t2_lora_completed --json gap.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.cli import exclusive, of_results, results_of, script
from headwise.commands.arguments import OutFile
from headwise.commands.written import writing
from headwise.comparison.gaps import comparisons, text
from headwise.errors import ConfigError, suggest
from headwise.results.records import Result
from headwise.storage import atomic


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = of_results(__doc__)
    parser.add_argument("what", help="a run's folder, or a method as the runs' folders and tables name it")
    parser.add_argument("dataset", nargs="?", help="task, with a method; all its tasks if left out")
    parser.add_argument("--name", help="of the runs, or of an experiment; all runs if left out")
    parser.add_argument("--variant", help="of the runs; all if left out")
    parser.add_argument("--row", help="id of one published row; those of the method if left out")
    parser.add_argument("--json", type=OutFile(), help="also write everything as JSON")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    with writing(options.json, force=options.force):
        made = comparisons(_chosen(options), options.row)
        print(text(made), end="")
        if options.json:
            atomic.write_json(options.json, {"comparisons": [comparison.plain() for comparison in made]})
    return 0


def _chosen(options: argparse.Namespace) -> list[Result]:
    """The run whose folder is given, or the runs that the names choose."""
    folder = Path(options.what)
    if (folder / "result.json").is_file():
        if options.dataset:
            raise ConfigError(f"{folder} is one run; give a method to name a dataset ({options.dataset!r})")
        exclusive({"--name": options.name, "--variant": options.variant}, f"beside {folder}, which is one run")
        return [Result.read(folder / "result.json")]
    if folder.is_file():
        raise ConfigError(f"{folder} is no folder; give the one of a finished run, or a method")
    if folder.is_dir() or len(folder.parts) > 1:
        raise ConfigError(f"no finished run in {folder}: it holds no result.json")
    results = results_of(options.root, options.name).results
    for part, given in (("method", options.what), ("dataset", options.dataset), ("variant", options.variant)):
        results = _only(results, part, given)
    return results


def _only(results: Sequence[Result], part: str, given: str | None) -> list[Result]:
    known = {str(getattr(result.key, part)) for result in results}
    if given is not None and given not in known:
        raise ConfigError(f"no finished run with {part} {given!r}{suggest(given, known)}")
    return [result for result in results if given in (None, getattr(result.key, part))]


if __name__ == "__main__":
    sys.exit(main())

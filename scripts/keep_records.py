"""Keep records of finished runs, without tensors and this machine's folders: python scripts/keep_records.py methods.

What is kept is a root like any other: tables, comparisons and reports can be made of it again, and a sweep with it as
its root trains only what is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwise.cli import of_results, results_of, script
from headwise.commands.arguments import out_folder
from headwise.errors import ConfigError
from headwise.results.reading import runs
from headwise.results.store import ResultStore
from headwise.storage.atomic import make_folder


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = of_results(__doc__, writes=False)
    parser.add_argument("name", help="of the runs: the experiment's")
    parser.add_argument("--to", type=out_folder, default=Path("docs/results/records"), help="root of what is kept")
    return parser.parse_args(arguments)


def placeless(value: Any) -> Any:
    """A configuration whose absolute paths are cut to their last part; what files hold is told by their hashes."""
    if isinstance(value, dict):
        return {name: placeless(child) for name, child in value.items()}
    if isinstance(value, list):
        return [placeless(child) for child in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    root, kept_in = Path(os.path.realpath(options.root)), Path(os.path.realpath(options.to))
    if kept_in == root:
        raise ConfigError(f"--to {options.to} is the root itself, whose records would lose their paths: name another")
    if root in kept_in.parents and kept_in.relative_to(root).parts[0] in runs(root):
        raise ConfigError(f"--to {options.to} lies among the runs of {options.root}: name a folder apart from them")
    found = results_of(options.root, options.name, otherwise="it is not kept")
    make_folder(options.to)
    kept = ResultStore(options.to, indexed=False)  # found again from the records
    for result in found.results:
        kept.put(result.key, dataclasses.replace(result, config=placeless(result.config)))
    print(f"kept: {len(found.results)} records of {found.name} in {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

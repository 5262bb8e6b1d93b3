"""How far a sweep is: python scripts/sweep_status.py EXPERIMENT [OVERRIDES, as for train.py] [--json FILE]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.cli import force_option, script
from headwise.commands.arguments import OutFile, Parser, folder
from headwise.commands.written import writing
from headwise.runs.jobs import answered, requests_of
from headwise.runs.status import survey, text
from headwise.storage import atomic

CONF = Path(__file__).parents[1] / "conf"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        description=__doc__,
        epilog="Overrides that the sweep was started with may be left out where they are not choices. Exit status 1 "
        "if a run failed, else 0. It reads results only, and may run beside any number of workers.",
    )
    parser.add_argument("sweep", nargs="+", help="name of an experiment, or overrides: method=lora,hs_lora seed=0,1")
    parser.add_argument("--root", type=folder, help="of all results (outputs)")
    parser.add_argument("--json", type=OutFile(), help="also write everything as JSON")
    force_option(parser)
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    overrides = [word if "=" in word or word.startswith("~") else f"experiment={word}" for word in options.sweep]
    with answered():
        cfg, jobs, folders = requests_of(CONF, overrides, check=True)
    root = options.root or Path(str(cfg.root))
    with writing(options.json, force=options.force):
        status = survey(root, jobs, folders)
        print(text(status, str(cfg.name)))
        if options.json:
            atomic.write_json(options.json, {"sweep": options.sweep, "root": str(root), **status.to_json()})
    return 1 if status.counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

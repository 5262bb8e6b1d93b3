"""Download, convert and check the sets: python scripts/prepare_vtab.py --tasks svhn cifar100, or --status.

Needs TensorFlow for downloads only: pip install -e '.[prepare]'. What is there already (prepared upstream directories,
list-file trees) is found under --root and converted without it. Run it again after an interruption: what is complete
stays. Exit status 1 if one of the sets is not ready in the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.cli import exclusive, force_option, script
from headwise.commands.arguments import OutFile, Parser, Whole, folder
from headwise.commands.written import check_folder, writing
from headwise.storage import atomic

MOST_PIXELS = 4096
CONF = Path(__file__).resolve().parent.parent / "conf" / "dataset"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", nargs="+", metavar="TASK", help="names of tasks or sets, or all")
    what.add_argument("--status", action="store_true", help="say what is ready, missing, damaged or to do by hand")
    parser.add_argument("--verify", action="store_true", help="with --status: read every byte of the caches again")
    parser.add_argument("--dry-run", action="store_true", help="with --tasks: check what was given, do nothing")
    parser.add_argument("--root", type=folder, help="prepared sets or a list-file tree ($HEADWISE_CACHE/records)")
    parser.add_argument("--cache", type=folder, help="folder of the caches ($HEADWISE_CACHE/vtab)")
    parser.add_argument("--size", type=Whole(1, MOST_PIXELS), default=224, help="pixels of the network's input (224)")
    parser.add_argument("--resize", default="pil_bicubic", help="how larger images are brought to it (pil_bicubic)")
    parser.add_argument("--unofficial", action="store_true", help="accept other counts than the official ones")
    parser.add_argument("--json", type=OutFile(), metavar="FILE", help="also write the table as JSON")
    force_option(parser)
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    from headwise.data.decode import check_resize
    from headwise.data.preparing.prepare import Place, as_json, choose, prepare, read_tasks, status, table
    from headwise.errors import ConfigError

    exclusive({"--verify": options.verify and not options.status}, "without --status")
    check_resize(options.resize)
    if options.status and options.dry_run:
        raise ConfigError("--dry-run is for --tasks; --status changes nothing anyway")
    with writing(options.json, force=options.force):
        place = Place(options.root, options.cache, options.size, options.resize, not options.unofficial)
        tasks = read_tasks(CONF)
        chosen = tasks if options.status else choose(tasks, options.tasks)
        if not options.status:
            check_folder(place.caches)
        if options.dry_run:
            return 0
        if options.status:
            states = [status(task, place, options.verify) for task in chosen]
        else:
            states = prepare(chosen, place, lambda line: print(line, flush=True))
            print()
        print(table(states))
        if options.json:
            atomic.write_text(options.json, as_json(states))
        return 0 if options.status or all(state.state == "ready" for state in states) else 1


if __name__ == "__main__":
    sys.exit(main())

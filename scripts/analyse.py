"""Draw what a finished run changed and why it matters: python scripts/analyse.py KIND RUN_DIR... --out FOLDER.

Every picture is written as PNG and SVG, its numbers as CSV, and what they say as README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwise.analysis.kinds import KINDS, LEAST, MOST, SPLITS, Options, analyse, options_of
from headwise.cli import exclusive, finished_run, force_option, opening_options, results_of, script
from headwise.commands.arguments import Parser, Whole, folder, out_folder


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    kinds = "\n".join(f"  {name:<16} {kind.shows}" for name, kind in KINDS.items())
    parser = Parser(
        description=__doc__,
        epilog=f"kinds:\n{kinds}\n\nA kind takes the options that it reads, and no others.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", metavar="KIND", help="what to draw, see below")
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="*", type=finished_run, help="folders of finished runs")
    parser.add_argument("--root", type=folder, help="where results lie, with --name (outputs)")
    parser.add_argument("--name", help="in place of RUN_DIR: all finished runs of this name, or of an experiment")
    parser.add_argument("--out", type=out_folder, help="folder to write (outputs/figures/KIND)")
    parser.add_argument("--images", type=Whole(0, MOST), help=f"how many ({Options.images}); 0 for all")
    parser.add_argument("--split", choices=SPLITS, help=f"of the images ({Options.split})")
    parser.add_argument("--batch-size", type=Whole(LEAST["batch_size"], MOST), help=f"({Options.batch_size})")
    parser.add_argument(
        "--greedy", type=Whole(LEAST["greedy"], MOST), help="responsiveness: also heads off in turn (0)"
    )
    parser.add_argument("--seed", type=Whole(LEAST["seed"], MOST), help=f"of everything drawn ({Options.seed})")
    parser.add_argument("--draws", type=Whole(LEAST["draws"], MOST), help=f"random updates a null ({Options.draws})")
    opening_options(parser)
    force_option(parser)
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    own = ("kind", "run_dirs", "root", "name", "out", "force")
    given = {name: value for name, value in vars(options).items() if name not in own and value not in (None, [])}
    if given.get("images") == 0:
        given["images"] = None
    told = options_of(options.kind, given)
    from headwise.analysis.made import check_place

    out = options.out or Path("outputs", "figures", options.kind)
    check_place(out, options.force)
    made = analyse(options.kind, _runs(options), told)
    files = made.write(out, options.force)
    for sentence in made.sentences:
        print(sentence)
    print(f"written: {out} ({len(files)} files)")
    return 0


def _runs(options: argparse.Namespace) -> list[Any]:
    """The runs given by their folders, or all finished ones of a name; records that are damaged are named.

    Raises:
        ConfigError: for both ways at once.
    """
    if options.name is None:
        exclusive({"--root": options.root}, "without --name")
        return list(options.run_dirs)
    exclusive({"RUN_DIR": next(iter(options.run_dirs), None)}, "beside --name, which takes all finished runs")
    root = options.root or Path("outputs")
    return [result.key.path(root) for result in results_of(root, options.name, "it is left out").results]


if __name__ == "__main__":
    sys.exit(main())

"""Draw what a finished run changed and why it matters: python scripts/analyse.py KIND RUN_DIR... --out FOLDER.

Every picture is written as PNG and SVG, its numbers as CSV, and what they say as README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.analysis.kinds import KINDS, SPLITS, Options, analyse, module_of
from headwise.cli import force_option, opening_options, script


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    kinds = "\n".join(f"  {kind:<16} {said}" for kind, (_, said) in KINDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"kinds:\n{kinds}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", metavar="KIND", help="what to draw, see below")
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, help="folder to write (outputs/figures/KIND)")
    parser.add_argument("--images", type=int, default=Options.images, help=f"how many ({Options.images}); 0 for all")
    parser.add_argument("--split", choices=SPLITS, default=Options.split, help=f"of the images ({Options.split})")
    parser.add_argument("--batch-size", type=int, default=Options.batch_size, help=f"({Options.batch_size})")
    parser.add_argument("--greedy", type=int, default=Options.greedy, help="responsiveness: also heads off in turn (0)")
    parser.add_argument("--seed", type=int, default=Options.seed, help=f"of everything drawn ({Options.seed})")
    parser.add_argument("--draws", type=int, default=Options.draws, help=f"random updates a null ({Options.draws})")
    opening_options(parser)
    force_option(parser)
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    module_of(options.kind)
    told = Options(
        seed=options.seed,
        draws=options.draws,
        weights=options.weights,
        data_root=options.data_root,
        split=options.split,
        images=options.images or None,
        batch_size=options.batch_size,
        greedy=options.greedy,
        trust=tuple(options.trust),
    )
    from headwise.analysis.made import check_place

    out = options.out or Path("outputs", "figures", options.kind)
    check_place(out, options.force)
    made = analyse(options.kind, options.run_dirs, told)
    files = made.write(out, options.force)
    for sentence in made.sentences:
        print(sentence)
    print(f"written: {out} ({len(files)} files)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Test a finished run again: python scripts/evaluate.py RUN_DIR. Exit status 1 unless its record is repeated."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise import atomic
from headwise.cli import script


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run, the one that holds result.json")
    parser.add_argument("--weights", type=Path, help="the pretrained weights, if they are not where the run found them")
    parser.add_argument("--data-root", type=Path, help="the images, if they are not where the run found them")
    parser.add_argument("--json", type=Path, help="also write what is printed, unrounded, as JSON")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    from headwise.export import evaluate

    retests = evaluate(options.run_dir, options.weights, options.data_root)
    for index, retest in enumerate(retests, start=1):
        recorded = "-" if retest.recorded is None else f"{retest.recorded:.4f} %"
        verdict = "the same" if retest.is_same else "DIFFERENT"
        print(f"phase {index} {retest.label}: recorded {recorded}, measured {retest.measured:.4f} %: {verdict}")
    if options.json:
        atomic.write_json(options.json, [{**dataclasses.asdict(r), "is_same": r.is_same} for r in retests])
    return 0 if all(retest.is_same for retest in retests) else 1


if __name__ == "__main__":
    sys.exit(main())

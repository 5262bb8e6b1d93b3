"""Test a finished run again: python scripts/evaluate.py RUN_DIR. Exit status 1 unless its record is repeated.

With --split, or a list file as --data-root, it is tested on other images of the same classes, and nothing is repeated:
python scripts/evaluate.py RUN_DIR --data-root OTHER --split test
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from headwise.cli import exclusive, of_run, script
from headwise.commands.arguments import old_place
from headwise.commands.written import writing
from headwise.errors import ConfigError
from headwise.runs.postponed import postpone
from headwise.storage import atomic
from headwise.storage.atomic import at_home


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = of_run(__doc__, images=old_place, json=("--json", "--out"))
    parser.add_argument(
        "--split", choices=("train", "val", "test", "all"), help="of other images of the same classes, in --data-root"
    )
    options = parser.parse_args(arguments)
    is_file = options.data_root is not None and not at_home(options.data_root).is_dir()
    exclusive({"--split": options.split if is_file else None}, "with a list file, all of which is taken")
    if options.split and options.data_root is None:
        raise ConfigError(f"--split {options.split} is of other images: give --data-root PATH, where they lie")
    with writing(options.json, force=options.force):
        postpone()
        return _elsewhere(options) if options.split or is_file else _again(options)


def _again(options: argparse.Namespace) -> int:
    from headwise.artifacts.export import evaluate

    retests = evaluate(options.run_dir, options.weights, options.data_root, options.trust)
    for retest in retests:
        recorded = "-" if retest.recorded is None else f"{retest.recorded:.4f} %"
        verdict = "the same" if retest.is_same else "DIFFERENT"
        what = "" if retest.metric == "accuracy" else f" ({retest.metric})"
        measured = f"recorded {recorded}, measured {retest.measured:.4f} %{what}"
        print(f"phase {retest.number} {retest.label}: {measured}: {verdict}")
    if options.json:
        atomic.write_json(options.json, [{**dataclasses.asdict(r), "is_same": r.is_same} for r in retests])
    return 0 if all(retest.is_same for retest in retests) else 1


def _elsewhere(options: argparse.Namespace) -> int:
    from headwise.artifacts.elsewhere import ALL, evaluate_on

    place = at_home(options.data_root)
    found = evaluate_on(options.run_dir, place, options.split or ALL, options.weights, options.trust)
    print(f"{found.num_images} images of the same classes, {options.data_root} ({found.split}):")
    if found.num_trained_on is None:
        print("note: the images that the run was trained on are not at hand; whether some are among these is not known")
    elif found.num_trained_on:
        print(f"WARNING: the run was trained on {found.num_trained_on} of these images; this is no test of it")
    for name, value in found.measured.items():
        print(f"{name.replace('_', ' ')}: {value:.2f} %")
    if "mAP" in found.measured:
        for name, precision in found.by_class.items():
            print(f"  average precision of {name}: {'no image' if precision is None else f'{precision:.2f} %'}")
    if found.absent:
        print(f"classes without an image there, which count nowhere: {', '.join(found.absent)}")
    if options.json:
        kind = {"kind": "test on other images, no record of the run", "run": str(options.run_dir)}
        atomic.write_json(options.json, {**kind, **dataclasses.asdict(found)})
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Test a finished run again: python scripts/evaluate.py RUN_DIR. Exit status 1 unless its record is repeated."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from headwise.cli import of_run, script
from headwise.commands.written import writing
from headwise.storage import atomic


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = of_run(__doc__).parse_args(arguments)
    with writing(options.json, force=options.force):
        from headwise.artifacts.export import evaluate

        retests = evaluate(options.run_dir, options.weights, options.data_root, options.trust)
        for retest in retests:
            recorded = "-" if retest.recorded is None else f"{retest.recorded:.4f} %"
            verdict = "the same" if retest.is_same else "DIFFERENT"
            measured = f"recorded {recorded}, measured {retest.measured:.4f} %"
            print(f"phase {retest.number} {retest.label}: {measured}: {verdict}")
        if options.json:
            atomic.write_json(options.json, [{**dataclasses.asdict(r), "is_same": r.is_same} for r in retests])
        return 0 if all(retest.is_same for retest in retests) else 1


if __name__ == "__main__":
    sys.exit(main())

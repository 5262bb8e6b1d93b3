"""What JPEG costs: accuracy on losslessly stored images less that on default-quality JPEG, seed by seed.

Run: python train.py experiment=lossy && python benchmarks/lossy.py --json benchmarks/results/lossy.json
Images, order, initial values and everything else of a pair are the same; only the stored pixels differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from headwise import atomic
from headwise.cli import script
from headwise.errors import ConfigError
from headwise.results.records import Result
from headwise.results.store import ResultStore


@dataclass(frozen=True)
class Pair:
    """One run and its lossy twin: test accuracies in percent."""

    dataset: str
    seed: int
    lossless: float
    lossy: float


def pairs(results: Iterable[Result]) -> list[Pair]:
    """Runs of one task and seed that differ in how their images were stored."""
    found: dict[tuple[str, int], dict[bool, float]] = {}
    for result in results:
        if result.accuracy is not None:
            kind = found.setdefault((result.key.dataset, result.key.seed), {})
            kind[bool(result.config["data"]["lossy"])] = result.accuracy
    return [
        Pair(dataset, seed, kind[False], kind[True])
        for (dataset, seed), kind in sorted(found.items())
        if len(kind) == 2
    ]


def markdown(found: Sequence[Pair]) -> str:
    """One row per task: mean and sample standard deviation over seeds, and of the paired difference."""
    lines = ["| task | seeds | lossless % | JPEG % | JPEG - lossless |", "| --- | --: | --: | --: | --: |"]
    for dataset in dict.fromkeys(pair.dataset for pair in found):
        members = [pair for pair in found if pair.dataset == dataset]
        columns = ([pair.lossless for pair in members], [pair.lossy for pair in members])
        gaps = [pair.lossy - pair.lossless for pair in members]
        cells = [_spread(values, "") for values in columns] + [_spread(gaps, "+")]
        lines.append(f"| {dataset} | {len(members)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], sign: str) -> str:
    deviation = f" \u00b1 {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation}"


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="of the results (outputs)")
    parser.add_argument("--json", type=Path, help="also write every pair")
    options = parser.parse_args(arguments)
    found = pairs(ResultStore(options.root).all("lossy"))
    if not found:
        raise ConfigError(f"no pair of finished runs in {options.root / 'lossy'}: python train.py experiment=lossy")
    print(markdown(found), end="")
    if options.json:
        atomic.write_text(options.json, json.dumps({"pairs": [asdict(pair) for pair in found]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

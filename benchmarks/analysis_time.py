"""How long the singular value analyses of one ViT-B/16 run take: python benchmarks/analysis_time.py.

The run is made up: random weights of every q, k and v, LoRA of rank 8 as first phase, per-head updates of
rank 3 as second. Reading of the run's files is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence

import torch

from headwise.analysis.changes import Change
from headwise.analysis.drawing import draw
from headwise.analysis.kinds import LEAST, Options
from headwise.analysis.overlapping import between_phases, heads_of
from headwise.analysis.singular import parts
from headwise.cli import script
from headwise.commands.arguments import THREADS, Letters, Parser, Whole, record_file
from headwise.results import provenance
from headwise.storage import atomic
from headwise.updates.sites import Site

SECONDS = 60.0
"""At most, of each kind, two cores."""


def made_up(blocks: int, width: int, heads: int, targets: str) -> list[Change]:
    """Two phases, then both together."""
    torch.manual_seed(0)
    sites = [Site(0, block, proj, heads, width // heads) for block in range(blocks) for proj in targets]
    before = {site: torch.randn(width, width) / width**0.5 for site in sites}
    middle = {site: w + 0.02 * torch.randn(width, 8) @ torch.randn(8, width) / width**0.5 for site, w in before.items()}
    after = {}
    for site, weight in middle.items():
        update = torch.randn(heads, width // heads, 3) @ torch.randn(heads, 3, width)
        after[site] = weight + 0.02 * update.flatten(0, 1) / width**0.5
    return [Change("lora", before, middle), Change("head_lora", middle, after), Change("all phases", before, after)]


@contextlib.contextmanager
def timed(what: str, times: dict[str, dict[str, float]]) -> Iterator[None]:
    """Print and keep how long the block takes, on the clock and of all cores together."""
    clock, cores = time.perf_counter(), time.process_time()
    yield
    times[what] = {"wall": time.perf_counter() - clock, "cpu": time.process_time() - cores}
    print(f"{what}: {times[what]['wall']:.1f} s, {times[what]['cpu']:.1f} s of cores", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=THREADS, default=2, help="compute threads (2)")
    parser.add_argument("--targets", type=Letters("qkvo"), default="qkv", help="projections that were updated (qkv)")
    draws = Whole(LEAST["draws"], 10_000)
    parser.add_argument("--draws", type=draws, default=Options.draws, help=f"random updates a null ({Options.draws})")
    parser.add_argument("--json", type=record_file, help="also write the times")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Time each kind; returns the exit status."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    first, second, both = made_up(12, 768, 12, options.targets)
    told = Options(draws=options.draws)
    times: dict[str, dict[str, float]] = {}
    with timed("subspaces, numbers", times):
        pieces = list(parts(both, options.draws, 0))
    with timed("subspaces, pictures", times):
        draw(pieces)
    with timed("overlap, heads", times):
        for change in (first, second):
            list(heads_of(change, told))
    with timed("overlap, phases", times):
        list(between_phases(first, second, told))
    kinds = dict.fromkeys(what.partition(",")[0] for what in times)
    totals = {kind: sum(spent["wall"] for what, spent in times.items() if what.startswith(kind)) for kind in kinds}
    for kind, total in totals.items():
        print(f"{kind}: {total:.1f} s; bound: {SECONDS:.0f} s")
    if options.json:
        record = {
            "machine": provenance.machine("cpu", options.threads),
            "versions": provenance.versions(("torch", "numpy", "scipy", "matplotlib")),
            "run": f"ViT-B/16, {options.targets}, two phases, {options.draws} draws",
            "seconds": times,
            "bound": SECONDS,
        }
        atomic.write_text(options.json, json.dumps(record, indent=1) + "\n")
    return 0 if max(totals.values()) <= SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())

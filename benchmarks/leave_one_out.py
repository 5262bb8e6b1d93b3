"""What it costs to switch off the update of every head of a run, one at a time, against whole forward passes.

python benchmarks/leave_one_out.py RUN_DIR --images 200 --threads 2 --json benchmarks/results/leave_one_out.json
A few heads spread over the network are also measured by whole passes, interleaved with computing the rest after
their block, so that what else the machine does hits both alike. Both must give the same losses to the last bit.
Processor seconds are given beside wall time: on a shared machine they are the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from headwise.analysis.kinds import LEAST, MOST, Options
from headwise.analysis.opened import images_of, unscored
from headwise.analysis.switches import Batch, HeadUpdate, Switches, toggled
from headwise.artifacts.saved import SavedRun, own_randomness
from headwise.cli import finished_run, script
from headwise.commands.arguments import THREADS, Parser, Whole, old_folder, record_file, weights
from headwise.results import provenance
from headwise.storage import atomic

SECONDS = 600.0
"""At most, for all heads of q and v of ViT-S/14 at 98 px on 200 images, two cores."""


def clock() -> tuple[float, float]:
    """Wall and processor seconds."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> dict[str, float]:
    """What passed."""
    wall, processor = clock()
    return {"wall": wall - start[0], "processor": processor - start[1]}


@torch.no_grad()
def whole(switches: Switches, batches: Sequence[Batch], update: HeadUpdate) -> tuple[torch.Tensor, dict[str, float]]:
    """Losses with one update off, by whole forward passes, and their cost."""
    start, before = clock(), switches.is_on
    switches.set(before - {update})
    losses = [torch.nn.functional.cross_entropy(switches.net(x).double(), y, reduction="none") for x, y in batches]
    switches.set(before)
    return torch.cat(losses), since(start)


def rest(switches: Switches, batches: Sequence[Batch], update: HeadUpdate) -> tuple[torch.Tensor, dict[str, float]]:
    """The same by what follows its block, of one head alone: the pass that finds its block's input is counted too."""
    start = clock()
    _, without = toggled(switches, batches, switches.updates, [update])
    return without.loss[0], since(start)


def pairs(switches: Switches, batches: Sequence[Batch], count: int) -> list[dict[str, Any]]:
    """Both ways for a few heads spread over the network, in alternating order."""
    places = torch.linspace(0, len(switches.updates) - 1, count).round().int().tolist()
    rows = []
    for turn, place in enumerate(places):
        update = switches.updates[place]
        ways = [whole, rest] if turn % 2 else [rest, whole]
        found = {way.__name__: way(switches, batches, update) for way in ways}
        equal = torch.equal(found["whole"][0], found["rest"][0])
        rows.append({"head": update.key, "equal": equal, **{name: cost for name, (_, cost) in found.items()}})
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=finished_run)
    parser.add_argument("--weights", type=weights)
    parser.add_argument("--data-root", type=old_folder)
    parser.add_argument("--images", type=Whole(LEAST["images"], MOST), default=200)
    parser.add_argument("--batch-size", type=Whole(LEAST["batch_size"], MOST), default=50)
    parser.add_argument("--pairs", type=Whole(1, 10_000), default=6, help="heads that are measured both ways")
    parser.add_argument("--threads", type=THREADS, default=2)
    parser.add_argument("--json", type=record_file, help="also write every time")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if the two ways differ or all heads took longer than promised."""
    told = parse(arguments)
    run = SavedRun.read(told.run_dir)
    options = Options(weights=told.weights, data_root=told.data_root, images=told.images, batch_size=told.batch_size)
    with own_randomness():
        switches = unscored(run, options)
        batches = list(images_of(run, switches.net, options))
    torch.set_num_threads(told.threads)
    rows = pairs(switches, batches, told.pairs)
    start = clock()
    toggled(switches, batches, switches.updates, switches.updates)
    spent = since(start)
    by_whole = len(switches.updates) * statistics.median(row["whole"]["processor"] for row in rows)
    print(
        f"{len(switches.updates)} heads on {told.images} images: {spent['wall']:.0f} s, {spent['processor']:.0f} s of "
        f"processor; whole passes would take {by_whole:.0f} s of processor"
    )
    if told.json:
        record = {
            "options": {"images": told.images, "batch_size": told.batch_size, "threads": told.threads},
            "run": {"method": run.result.key.method, "dataset": run.result.key.dataset, "backbone": run.spec.name},
            "image_size": switches.net.img_size,
            "heads": len(switches.updates),
            "all_heads": spent,
            "whole_passes_processor": by_whole,
            "pairs": rows,
            "machine": provenance.machine("cpu", told.threads) | {"load": os.getloadavg()},
            "versions": provenance.versions(("torch", "timm", "headwise")),
        }
        atomic.write_text(told.json, json.dumps(record, indent=1) + "\n")
    equal = all(row["equal"] for row in rows)
    print(f"both ways equal: {equal}; bound: {SECONDS:.0f} s")
    return 0 if equal and spent["wall"] <= SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())

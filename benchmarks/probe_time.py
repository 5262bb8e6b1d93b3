"""Processor time of a linear probe on features computed once, against one that looks at its images each time.

Both train the same head of the same network (random weights, drawn images) with the same protocol, one right after the
other, the order alternating from pair to pair, each with nothing kept of the runs before. What is compared beside the
time: the loss of the last epoch and the head's tensors.

Run: python benchmarks/probe_time.py --json benchmarks/results/probe_time.json
     python benchmarks/probe_time.py --epochs 2 --images 32 --pairs 1    # does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headwise.cli import script
from headwise.commands.arguments import THREADS, Parser, Whole, record_file
from headwise.data.pixels import Pixels
from headwise.data.tasks import VTABTask
from headwise.data.vtab import VTABDataModule
from headwise.methods.baselines import Linear
from headwise.network.backbone import BackboneSpec
from headwise.protocol.recipe import Protocol
from headwise.results import provenance
from headwise.results.store import PhaseStore
from headwise.storage import atomic
from headwise.training import features
from headwise.training.loop import TENSORS, Machine, hush, read_tensors, run_phases

CLASSES, GOAL = 10, 20.0
"""Goal: times as fast."""


class Drawn:
    """Noise with labels, as a source of images."""

    def __init__(self, images: int) -> None:
        self.images = images

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = ()) -> str:
        return f"drawn{self.images}"

    def labels(self, task: VTABTask) -> list[str]:
        return []

    def count(self, task: VTABTask, split: str) -> int:
        return self.images

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        random = np.random.default_rng(len(split))
        images: NDArray[np.uint8] = random.integers(0, 256, (self.images, size, size, 3), dtype=np.uint8)
        labels = random.integers(0, CLASSES, self.images)
        return Pixels(images, labels, {"source": "drawn", "resize": resize})


def probe(options: argparse.Namespace, is_fast: bool) -> dict[str, Any]:
    """One run: its processor time, last loss and head."""
    features.KEPT = features.KeptFeatures()
    Linear.reads_features = is_fast
    torch.manual_seed(0)
    spec = BackboneSpec(name="bench", timm_name=options.network, weights="none", img_size=options.side)
    net = spec.build()
    task = VTABTask(name="drawn", group="natural", num_classes=CLASSES, num_test=None, folders=["drawn"])
    data = VTABDataModule(task, Drawn(options.images), options.side, 64, 0)
    with tempfile.TemporaryDirectory(prefix="probe-time-") as folder:
        store = PhaseStore(Path(folder))
        start = time.process_time()
        (result,) = run_phases(
            net,
            [Linear(label="linear")],
            data,
            Protocol(epochs=options.epochs),
            store,
            {},
            seed=0,
            machine=Machine(threads=options.threads, progress=False),
            say=lambda line: None,
        )
        seconds = time.process_time() - start
        head = read_tensors(store.path(result.fingerprint) / TENSORS)
    return {"seconds": seconds, "loss": result.train_loss, "head": head, "fast": "features" in result.extra}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="vit_tiny_patch16_224", help="timm's name (vit_tiny_patch16_224)")
    parser.add_argument("--side", type=Whole(16, 1024), default=64, help="of the images, pixels (64)")
    parser.add_argument("--images", type=Whole(2, 10**6), default=256, help="of training and of testing each (256)")
    parser.add_argument("--epochs", type=Whole(1, 1000), default=100, help="of the probe (100)")
    parser.add_argument("--pairs", type=Whole(1, 100), default=2, help="times that both are measured (2)")
    parser.add_argument("--threads", type=THREADS, default=1, help="of torch (1)")
    parser.add_argument("--json", type=record_file, help="also write the times")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit status 1 where the numbers differ or the goal is missed."""
    options = parse(arguments)
    hush()
    load = os.getloadavg()[0]
    pairs, same = [], True
    for pair in range(options.pairs):
        runs = {is_fast: probe(options, is_fast) for is_fast in ((True, False) if pair % 2 else (False, True))}
        usual, fast = runs[False], runs[True]
        apart = max(float((tensor - fast["head"][name]).abs().max()) for name, tensor in usual["head"].items())
        same &= apart <= 1e-5 and abs(usual["loss"] - fast["loss"]) <= 1e-5 and fast["fast"] and not usual["fast"]
        pairs.append({"usual": usual["seconds"], "features": fast["seconds"], "head_apart": apart})
        print(
            f"usual {usual['seconds']:.2f} s, features {fast['seconds']:.2f} s, heads apart by {apart:.1e}", flush=True
        )
    ratio = statistics.median(pair["usual"] / pair["features"] for pair in pairs)
    print(f"{ratio:.1f} times as fast, goal {GOAL:.0f}")
    if options.json:
        record = {
            "machine": provenance.machine("cpu", options.threads) | {"load": [load, os.getloadavg()[0]]},
            "versions": provenance.versions(),
            "options": {key: value for key, value in vars(options).items() if key != "json"},
            "processor_seconds": pairs,
            "ratio": ratio,
            "goal": GOAL,
        }
        atomic.write_text(options.json, json.dumps(record, indent=1) + "\n")
    return 0 if same and ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

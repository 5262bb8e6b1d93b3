"""What a head gate costs: a training step with heads off, and a step of the scoring pass, against the step with all on.

python benchmarks/gate_step.py --bf16 --repeats 30 --json benchmarks/results/gate_step.json
The kinds of step alternate, and the median of their ratios is taken, so that what else the machine does hits all alike.
A scoring pass takes one scoring step for each training step of an epoch: its ratio is its cost in epochs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from headwise.cli import script
from headwise.commands.arguments import THREADS, Parser, Whole, record_file
from headwise.errors import ConfigError
from headwise.methods.base import Method
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.results import provenance
from headwise.storage import atomic

METHODS: dict[str, Callable[[], Method]] = {
    "lora": lambda: LoRA(label="lora", rank=8),
    "bi_lora": lambda: BiLoRA(label="bi_lora", rank=32),
    "head_lora": lambda: HeadLoRA(label="head_lora", rank=2),
}
LARGEST = {"gated": 1.02, "scoring": 1.1}
"""What is promised of a step with heads off over one with all on, and of the scoring pass in epochs."""

Step = Callable[[], float]


def steps_of(spec: BackboneSpec, method: Method, batch: int, off: int, bf16: bool) -> dict[str, Step]:
    """Functions that take one step and give its seconds: with all heads on, with some off, and of the scoring pass."""
    return {
        "plain": _training(spec, method, batch, 0, bf16),
        "gated": _training(spec, method, batch, off, bf16),
        "scoring": _scoring(spec, method, batch, bf16),
    }


def _network(spec: BackboneSpec, bf16: bool) -> tuple[Backbone, torch.Tensor]:
    net = spec.build()
    net.set_attention("plain" if bf16 else "timm")
    net.new_head(10)
    return net, torch.randn(1, 3, net.img_size, net.img_size)


def _training(spec: BackboneSpec, method: Method, batch: int, off: int, bf16: bool) -> Step:
    net, image = _network(spec, bf16)
    installed = method.install(net)
    for module in installed.owners.values():
        active = module.get_buffer("active")
        if off > len(active):
            raise ConfigError(f"--off must be at most {len(active)}, the heads of a layer of this network, got {off}")
        module.switch((torch.arange(len(active)) >= off).float())  # type: ignore[operator]
    optimizer = torch.optim.AdamW(installed.param_groups(1e-4), lr=1e-3)
    x, y = image.expand(batch, -1, -1, -1).contiguous(), torch.arange(batch) % 10
    net.train()

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(net(x).float(), y)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def _scoring(spec: BackboneSpec, method: Method, batch: int, bf16: bool) -> Step:
    net, image = _network(spec, bf16)
    masking: Any = dataclasses.replace(method, gate={"count": 1}).install(net).masking  # type: ignore[call-arg, attr-defined]
    for delta in masking.deltas.values():
        delta.get_buffer("active").requires_grad_(True)
    x, y = image.expand(batch, -1, -1, -1).contiguous(), torch.arange(batch) % 10
    net.eval()

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            masking.score(net, [(x, y)])
        return time.perf_counter() - start

    return step


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-name", default="vit_small_patch14_dinov2")
    parser.add_argument("--img-size", type=Whole(1, 4096), default=98)
    parser.add_argument("--batch", type=Whole(1, 4096), default=64)
    parser.add_argument("--off", type=Whole(0, 128), default=3, help="heads off in every layer")
    parser.add_argument("--repeats", type=Whole(1, 10_000), default=15)
    parser.add_argument("--threads", type=THREADS, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", type=record_file, help="also write every time")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if a promise is not kept."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    spec = BackboneSpec(
        name="x",
        timm_name=options.timm_name,
        img_size=options.img_size,
        weights="none",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    rows, kept = [], True
    for name, make in METHODS.items():
        torch.manual_seed(0)
        steps = steps_of(spec, make(), options.batch, options.off, options.bf16)
        times = [{kind: step() for kind, step in steps.items()} for _ in range(options.repeats + 2)][2:]
        plain = statistics.median(row["plain"] for row in times)
        ratios = {kind: statistics.median(row[kind] / row["plain"] for row in times) for kind in LARGEST}
        kept &= all(ratios[kind] <= largest for kind, largest in LARGEST.items())
        rows.append({"method": name, "ratios": ratios, "seconds": times})
        print(
            f"{name:10} all on {plain * 1e3:8.1f} ms; {options.off} off, ratio {ratios['gated']:.3f}; "
            f"scoring pass {ratios['scoring']:.3f} epochs"
        )
    if options.json:
        record = {
            "options": {**vars(options), "json": None},
            "machine": provenance.machine("cpu", options.threads) | {"load": os.getloadavg()},
            "versions": provenance.versions(("torch", "timm", "headwise")),
            "results": rows,
        }
        atomic.write_text(options.json, json.dumps(record, indent=1) + "\n")
    print(f"promised: a gated step at most {LARGEST['gated']}, a scoring pass at most {LARGEST['scoring']} epochs")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

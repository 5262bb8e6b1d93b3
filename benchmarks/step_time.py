"""Time one training step of HS-LoRA's Phase 2, and of what one would otherwise run, against timm's own network.

The bound is timm's untouched model with its fused qkv: same weights, attention kernel, precision, optimiser and head
step, no adapter, the gradient flowing to the first block's input. No adapter on the projections can be faster. Steps
are timed in pairs, bound and contender one after the other in alternating order, all contenders in one run: what
disturbs the machine disturbs both. The figure is the median of the ratios of the pairs.

Run: python benchmarks/step_time.py --json benchmarks/results/step_time.json
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from headwise.backbone import Backbone
from headwise.methods.base import Installed
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.sites import Site, select

NUM_CLASSES = 100
HEAD_RANK = 3  # r' of HS-LoRA
RANK = 16
TARGETS = ("q", "v")
LIMIT = 1.06
"""Largest acceptable ratio of HS-LoRA's Phase 2 to the bound."""


@dataclass(frozen=True)
class Architecture:
    """A timm network: its name, the input's side in pixels, and keyword arguments of its constructor."""

    name: str
    img_size: int
    options: dict[str, Any]


BACKBONES = {
    "vit_b16": Architecture("vit_base_patch16_224", 224, {}),
    "vit_s14": Architecture("vit_small_patch14_dinov2", 224, {}),
    "swin_b": Architecture("swin_base_patch4_window7_224", 224, {}),
    "tiny": Architecture("vit_tiny_patch16_224", 32, {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}),
}


def network(architecture: Architecture) -> nn.Module:
    """The timm network with random weights, the same at every call."""
    torch.manual_seed(0)
    return timm.create_model(
        architecture.name,
        pretrained=False,
        num_classes=NUM_CLASSES,
        img_size=architecture.img_size,
        **architecture.options,
    )


def split(architecture: Architecture) -> Backbone:
    """The same network with q, k and v apart."""
    return Backbone(network(architecture), architecture.img_size, (0.5,) * 3, (0.5,) * 3)


def require_input_grad(model: nn.Module) -> None:
    """Make the gradient flow to the first block's input, in every contender alike."""
    blocks = model.blocks if hasattr(model, "blocks") else model.layers[0].blocks

    def cut(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].detach().requires_grad_(), *inputs[1:])

    blocks[0].register_forward_pre_hook(cut)


# Contenders: each gives a network whose trainable parameters require gradients, the head among them.


def bound(architecture: Architecture) -> nn.Module:
    """timm's own network; only the head trains."""
    model = network(architecture).requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    require_input_grad(model)
    return model


def headwise_lora(architecture: Architecture, method: HeadLoRA | LoRA) -> nn.Module:
    """A method of this package."""
    net = split(architecture)
    require_input_grad(net.model)
    installed: Installed = method.install(net)
    installed.set_mode()
    return net


def peft_lora(architecture: Architecture, *, fused: bool = False, blocks: bool = False) -> nn.Module:
    """peft's LoRA: on the split projections or on timm's fused qkv, or with block-diagonal B, one block per head."""
    import peft

    net = split(architecture)
    heads = net.sites[0].num_heads
    model = network(architecture) if fused else net.model
    require_input_grad(model)
    rank = HEAD_RANK * heads if blocks else RANK
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["qkv"] if fused else list(TARGETS),
        use_bdlora=peft.BdLoraConfig(target_modules_bd_b=list(TARGETS), nblocks=heads) if blocks else None,
    )
    adapted = peft.get_peft_model(model, config)
    model.get_classifier().requires_grad_(True)
    return adapted


class HeadBranch(nn.Module):
    """Head-Specific LoRA as a branch beside one projection, written with ordinary operations."""

    def __init__(self, linear: nn.Linear, site: Site, *, loop: bool) -> None:
        super().__init__()
        self.linear, self.loop = linear, loop
        self.A = nn.Parameter(torch.empty(site.num_heads, HEAD_RANK, linear.in_features))
        self.B = nn.Parameter(torch.zeros(site.num_heads, site.head_dim, HEAD_RANK))
        nn.init.uniform_(self.A, -(linear.in_features**-0.5), linear.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Output (..., O) for x (..., I)."""
        if self.loop:
            pairs = zip(self.A, self.B, strict=True)
            return self.linear(x) + torch.cat([F.linear(F.linear(x, down), up) for down, up in pairs], dim=-1)
        hidden = torch.einsum("...i,hri->...hr", x, self.A)
        return self.linear(x) + torch.einsum("...hr,hor->...ho", hidden, self.B).flatten(-2)


def branches(architecture: Architecture, *, loop: bool) -> nn.Module:
    """Head-Specific LoRA without this package's fused path: einsum over heads, or a Python loop over them."""
    net = split(architecture).requires_grad_(False)
    require_input_grad(net.model)
    for site in select(net.sites, TARGETS):
        net.replace(site, HeadBranch(net.linear(site), site, loop=loop))
    net.head.requires_grad_(True)
    return net


CONTENDERS: dict[str, Callable[[Architecture], nn.Module]] = {
    "HS-LoRA Phase 2, r'=3": lambda a: headwise_lora(a, HeadLoRA(label="heads", rank=HEAD_RANK, targets=TARGETS)),
    "LoRA r=16": lambda a: headwise_lora(a, LoRA(label="lora", rank=RANK, targets=TARGETS)),
    "peft LoRA r=16, split q,v": lambda a: peft_lora(a),
    "peft LoRA r=16, fused qkv": lambda a: peft_lora(a, fused=True),
    "peft BdLoRA r'=3, split q,v": lambda a: peft_lora(a, blocks=True),
    "einsum over heads, r'=3": lambda a: branches(a, loop=False),
    "loop over heads, r'=3": lambda a: branches(a, loop=True),
    "bound against itself": bound,
}


class Step:
    """One training step of one contender: forward, cross-entropy, backward, AdamW on what is tunable."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
        self.model = model.train()
        self.images, self.labels = images, labels
        self.bf16 = precision == "bf16"
        tunable = [p for p in model.parameters() if p.requires_grad]
        self.num_tunable = sum(p.numel() for p in tunable)
        self.optimizer = torch.optim.AdamW(tunable, lr=1e-3)

    def logits(self) -> Tensor:
        """(B, C), float32."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(self.images).float()

    def run(self) -> None:
        """Take the step."""
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.logits(), self.labels).backward()
        self.optimizer.step()

    def seconds(self) -> tuple[float, float]:
        """Wall time of one step, and the processor time this process spent in it."""
        synchronize(self.images)
        wall, cpu = time.perf_counter(), time.process_time()
        self.run()
        synchronize(self.images)
        return time.perf_counter() - wall, time.process_time() - cpu

    def flops(self) -> int:
        """Multiplications and additions of the step's matrix products and attention."""
        in_place = {torch.ops.aten.addmm_: in_place_flops, torch.ops.aten.baddbmm_: in_place_flops}
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            self.run()
        return int(counter.get_total_flops())


def in_place_flops(_: Sequence[int], left: Sequence[int], right: Sequence[int], *__: Any, **___: Any) -> int:
    """Arithmetic of ``addmm_`` and ``baddbmm_``, which torch's counter leaves out, from the factors' shapes."""
    return 2 * math.prod(left) * right[-1]


def synchronize(images: Tensor) -> None:
    """Wait for the device."""
    if images.device.type == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Timing:
    """One contender in one precision.

    Attributes:
        logit_difference: largest absolute difference from the bound's logits before any step.
        flop_ratio: arithmetic of the step over the bound's.
        pairs: (bound, contender) seconds of wall time of each pair, in order of measurement.
        cpu_pairs: the same in processor seconds of this process, all threads: blind to what else runs, but it counts
            threads that spin while they wait.
    """

    contender: str
    precision: str
    num_tunable: int
    logit_difference: float
    flop_ratio: float
    pairs: list[tuple[float, float]]
    cpu_pairs: list[tuple[float, float]]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the wall time ratios, contender over bound."""
        return quartiles(self.pairs)

    @property
    def cpu_quartiles(self) -> tuple[float, float, float]:
        """The same of processor time."""
        return quartiles(self.cpu_pairs)


def quartiles(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of second over first."""
    low, middle, high = statistics.quantiles([other / base for base, other in pairs], n=4, method="inclusive")
    return low, middle, high


def measure(
    architecture: Architecture, batch: int, precision: str, num_pairs: int, names: Iterable[str], device: str
) -> list[Timing]:
    """Compare logits, count arithmetic, then time `num_pairs` rounds of one pair per contender."""
    torch.manual_seed(1)
    images = torch.randn(batch, 3, architecture.img_size, architecture.img_size, device=device)
    labels = torch.randint(NUM_CLASSES, (batch,), device=device)
    base = Step(bound(architecture).to(device), images, labels, precision)
    steps = {name: Step(CONTENDERS[name](architecture).to(device), images, labels, precision) for name in names}
    with torch.no_grad():
        reference = base.logits()
        differences = {name: float((step.logits() - reference).abs().max()) for name, step in steps.items()}
    base_flops = base.flops()
    flop_ratios = {name: step.flops() / base_flops for name, step in steps.items()}
    for step in (base, *steps.values()):
        step.run()
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    cpu_pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()
    for number in range(num_pairs):
        print(f"{precision}: pair {number + 1} of {num_pairs}", file=sys.stderr, flush=True)
        for name, step in steps.items():
            if number % 2:
                other, first = step.seconds(), base.seconds()
            else:
                first, other = base.seconds(), step.seconds()
            pairs[name].append((first[0], other[0]))
            cpu_pairs[name].append((first[1], other[1]))
    gc.enable()
    return [
        Timing(name, precision, step.num_tunable, differences[name], flop_ratios[name], pairs[name], cpu_pairs[name])
        for name, step in steps.items()
    ]


def table(timings: Sequence[Timing], title: str) -> Table:
    """One row per contender and precision."""
    rows = Table(title=title)
    columns = ("step", "precision", "ratio", "quartiles", "CPU ratio", "quartiles", "ms", "bound ms", "FLOPs", "logits")
    for column in (*columns, "tunable"):
        rows.add_column(column, justify="left" if column in ("step", "precision") else "right")
    for timing in timings:
        low, middle, high = timing.quartiles
        cpu_low, cpu_middle, cpu_high = timing.cpu_quartiles
        base, other = (1e3 * statistics.median(seconds) for seconds in zip(*timing.pairs, strict=True))
        rows.add_row(
            timing.contender,
            timing.precision,
            f"{middle:.3f}",
            f"{low:.3f}..{high:.3f}",
            f"{cpu_middle:.3f}",
            f"{cpu_low:.3f}..{cpu_high:.3f}",
            f"{other:.0f}",
            f"{base:.0f}",
            f"{timing.flop_ratio:.3f}",
            f"{timing.logit_difference:.1e}",
            f"{timing.num_tunable:,}",
        )
    return rows


def machine(device: str) -> dict[str, Any]:
    """What the times depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_", "KMP_", "GOMP_"))},
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "timm", "peft", "headwise")},
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="vit_b16")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    parser.add_argument("--pairs", type=int, default=15, help="pairs of steps per contender, at least 2")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--only", nargs="+", metavar="TEXT", default=[""], help="contenders whose name contains one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every pair's times there")
    options = parser.parse_args(arguments)
    if options.pairs < 2:
        parser.error(f"--pairs must be at least 2 for a median and quartiles, got {options.pairs}")
    options.names = [name for name in CONTENDERS if any(text in name for text in options.only)]
    if not options.names:
        parser.error(f"--only {' '.join(options.only)} matches none of: {'; '.join(CONTENDERS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the record that is returned."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {
        "backbone": asdict(BACKBONES[options.backbone]),
        "batch": options.batch,
        "targets": TARGETS,
        "limit": LIMIT,
        "machine": machine(options.device),
        "results": [],
    }
    timings: list[Timing] = []
    for precision in options.precision:
        timings += measure(
            BACKBONES[options.backbone], options.batch, precision, options.pairs, options.names, options.device
        )
    for timing in timings:
        record["results"].append(
            {**asdict(timing), "quartiles": timing.quartiles, "cpu_quartiles": timing.cpu_quartiles}
        )
    record["machine"]["load_average_after"] = os.getloadavg() if hasattr(os, "getloadavg") else None
    title = f"{options.backbone}, batch {options.batch}, {options.threads} threads, {options.pairs} pairs"
    Console(width=140).print(table(timings, title))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main()

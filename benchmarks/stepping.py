"""What the step benchmarks share: networks, the bound, one training step, timing in pairs, and the record.

The bound is timm's untouched model with its fused qkv: same weights, attention, precision, optimiser and head step, no
adapter, the gradient flowing to the first block's input. Steps are timed in pairs, bound and contender one after the
other in alternating order: what disturbs the machine disturbs both. The figure is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from headwise.commands.arguments import THREADS, Parser, Whole, record_file
from headwise.errors import suggest
from headwise.methods.base import Installed
from headwise.network.backbone import ATTENTION, Backbone
from headwise.network.compiling import compiled
from headwise.storage import atomic
from headwise.training.utilisation import counter

NUM_CLASSES = 100


@dataclass(frozen=True)
class Architecture:
    """A timm network: its name, the input's side in pixels, and keyword arguments of its constructor."""

    name: str
    img_size: int
    options: dict[str, Any]


BACKBONES = {
    "vit_b16": Architecture("vit_base_patch16_224", 224, {}),
    "vit_b16_of_3": Architecture("vit_base_patch16_224", 224, {"depth": 3}),  # three of its twelve blocks
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
    """Make the gradient flow to the first block's input, in every contender alike, where it does not anyway."""
    blocks = model.blocks if hasattr(model, "blocks") else model.layers[0].blocks

    def cut(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs if inputs[0].requires_grad else (inputs[0].detach().requires_grad_(), *inputs[1:])

    blocks[0].register_forward_pre_hook(cut)


def bound(architecture: Architecture) -> nn.Module:
    """timm's own network; only the head trains."""
    model = network(architecture).requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    require_input_grad(model)
    return model


def set_attention(model: nn.Module, kind: str) -> None:
    """As `Backbone.set_attention` does, in any network: ``plain`` multiplies matrices one by one."""
    if kind == "plain":
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """What has an attention and an MLP, in any network."""
    return [module for module in model.modules() if hasattr(module, "attn") and hasattr(module, "mlp")]


class Step:
    """One training step of one contender: forward, cross-entropy, its method's penalty, backward, AdamW.

    Without `training` it is a test: forward alone.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        precision: str,
        installed: Installed | None = None,
        training: bool = True,
    ) -> None:
        self.model, self.installed, self.training = model.train(training), installed, training
        self.images, self.labels = images, labels
        self.bf16 = precision == "bf16"
        tunable = [p for p in model.parameters() if p.requires_grad]
        self.num_tunable = sum(p.numel() for p in tunable)
        if training:
            self.optimizer = torch.optim.AdamW(tunable, lr=1e-3)

    def logits(self) -> Tensor:
        """(B, C), float32."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(self.images).float()

    def run(self) -> None:
        """Take the step."""
        if not self.training:
            with torch.no_grad():
                self.logits()
            return
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.logits(), self.labels)
        penalty = None if self.installed is None else self.installed.penalty()
        (loss if penalty is None else loss + penalty).backward()
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
        with counter() as counted:
            self.run()
        return int(counted.get_total_flops())


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


Contender = nn.Module | tuple[nn.Module, Installed]
"""A network whose trainable parameters require gradients, the head among them; and the method at work in it."""


class Bench:
    """The bound in one precision, and contenders measured against it."""

    def __init__(self, options: argparse.Namespace, precision: str, training: bool = True) -> None:
        torch.manual_seed(1)
        architecture = BACKBONES[options.backbone]
        self.architecture, self.precision, self.attention = architecture, precision, options.attention
        self.training, self.compile, side = training, options.compile, architecture.img_size
        self.images = torch.randn(options.batch, 3, side, side, device=options.device)
        self.labels = torch.randint(NUM_CLASSES, (options.batch,), device=options.device)
        self.base = self._step(bound(architecture))
        with torch.no_grad():
            self.reference = self.base.logits()
        self.flops = self.base.flops()

    def _step(self, contender: Contender) -> Step:
        model, installed = contender if isinstance(contender, tuple) else (contender, None)
        set_attention(model, self.attention)
        return Step(model.to(self.images.device), self.images, self.labels, self.precision, installed, self.training)

    def measure(self, contenders: Mapping[str, Callable[[Architecture], Contender]], num_pairs: int) -> list[Timing]:
        """Compare logits, count arithmetic, then time `num_pairs` rounds of one pair per contender."""
        steps = {name: self._step(build(self.architecture)) for name, build in contenders.items()}
        with torch.no_grad():
            differences = {name: float((step.logits() - self.reference).abs().max()) for name, step in steps.items()}
        flop_ratios = {name: step.flops() / self.flops for name, step in steps.items()}  # a step each, to warm up
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        cpu_pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        blocks = [block for step in steps.values() for block in blocks_of(step.model)]
        with compiled(blocks) if self.compile else contextlib.nullcontext():
            for step in steps.values() if self.compile else ():
                step.run()
            gc.collect()
            gc.disable()
            for number in range(num_pairs):
                print(f"{self.precision}: pair {number + 1} of {num_pairs}", file=sys.stderr, flush=True)
                for name, step in steps.items():
                    if number % 2:
                        other, first = step.seconds(), self.base.seconds()
                    else:
                        first, other = self.base.seconds(), step.seconds()
                    pairs[name].append((first[0], other[0]))
                    cpu_pairs[name].append((first[1], other[1]))
        gc.enable()
        return [
            Timing(
                name,
                self.precision,
                step.num_tunable,
                differences[name],
                flop_ratios[name],
                pairs[name],
                cpu_pairs[name],
            )
            for name, step in steps.items()
        ]


def judged(contender: str, ratio: float, limit: float | None, **more: Any) -> dict[str, Any]:
    """For the record: a ratio, the largest acceptable one, and whether it is over that (None without one)."""
    over = None if limit is None else ratio > limit
    return {"contender": contender, **more, "limit": limit, "ratio": ratio, "over": over}


def say(found: Sequence[Mapping[str, Any]], what: str, detail: str) -> None:
    """Print which of `judged` are over, with one more of what is known of them, and how many of `what` are not."""
    over = [row for row in found if row["over"]]
    for row in over:
        print(f"over: {row['contender']} ({row[detail]}) {row['ratio']:.3f} > {row['limit']:.2f}")
    held = sum(row["over"] is False for row in found)
    print(f"{held} {what} within their bound, {len(over)} over, {len(found) - held - len(over)} without one")


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


def parser(description: str, pairs: int | None, attention: str, batch: int = 8, of_methods: bool = False) -> Parser:
    """The options that the benchmarks share, with the defaults of one of them.

    Args:
        description: first line of its help.
        pairs: default; None for one that times nothing.
        attention: default.
        batch: default.
        of_methods: whether contenders are methods of conf/method, in one precision.
    """
    made = Parser(description=description)
    if of_methods:
        made.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
        made.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, such as rank=r8")
    made.add_argument("--backbone", choices=sorted(BACKBONES), default="vit_b16")
    made.add_argument("--batch", type=Whole(1, 65_536), default=batch, help="images per step")
    if pairs is not None:
        made.add_argument(
            "--pairs", type=Whole(2, 10_000), default=pairs, help="pairs of steps per contender, at least 2"
        )
        made.add_argument("--compile", action="store_true", help="contenders' blocks as torch.compile makes them")
    made.add_argument("--threads", type=THREADS, default=2, help="CPU threads")
    made.add_argument("--attention", choices=ATTENTION, default=attention, help="see trainer.attention; for all alike")
    made.add_argument("--only", nargs="+", metavar="TEXT", default=[""], help="contenders whose name contains one")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--json", type=record_file, metavar="FILE", help="write the record there")
    return made


def parse(made: Parser, names: Iterable[str], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; it gains ``names``, the chosen contenders, and ``machine``, what they run on."""
    options = made.parse_args(arguments)
    names = list(names)
    options.names = [name for name in names if any(text in name for text in options.only)]
    for text in options.only:
        if not any(text in name for name in names):
            made.error(f"--only {text} is part of no contender's name{suggest(text, names)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        made.error("--device cuda: torch finds no GPU here; allowed: --device cpu")
    torch.set_num_threads(options.threads)
    options.machine = machine(options.device)
    return options


def record(options: argparse.Namespace, timings: Sequence[Timing], **more: Any) -> dict[str, Any]:
    """Print the table, write what was measured, and return it."""
    made = {
        "backbone": asdict(BACKBONES[options.backbone]),
        "batch": options.batch,
        "attention": options.attention,
        **({"compile": True} if options.compile else {}),
        **more,
        "machine": options.machine | {"load_average_after": os.getloadavg() if hasattr(os, "getloadavg") else None},
        "results": [{**asdict(t), "quartiles": t.quartiles, "cpu_quartiles": t.cpu_quartiles} for t in timings],
    }
    title = f"{options.backbone}, batch {options.batch}, {options.threads} threads, {options.pairs} pairs"
    Console(width=140).print(table(timings, title))
    if options.json:
        atomic.write_text(options.json, json.dumps(made, indent=1) + "\n")
    return made

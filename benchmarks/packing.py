"""Does packing pay? One training step of K runs of one frozen network at once, over K steps one after the other.

Packed, the runs' batches pass the frozen layers side by side; each run has its own update, classifier, optimiser, rate,
random numbers and, where factors are shared by heads, number of heads off. Two ways are tried at the projections of q,
k and v: by slices, each run's rows through the package's own adapted projection, and by bmm, one product with the
frozen weight and batched thin ones. Before timing, every run's loss and gradients in float32 are held against those of
the run alone: exit status 1 where they differ by more than rounding. Images lie side by side beforehand, which favours
packing.

Each round times the K steps and both ways, in alternating order; the figure is the median over rounds of packed over
separate. Stochastic depth 0.1 is at work, as in the papers' protocols; attention is what training takes by itself.

Run: python benchmarks/packing.py --json benchmarks/results/packing.json
     python benchmarks/packing.py --backbone tiny --batch 2 --runs 2 --pairs 2    # does it run?
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stepping
from headwise.cli import script
from headwise.commands.arguments import THREADS, Parser, Whole, record_file
from headwise.methods.base import Method
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.storage import atomic
from headwise.updates.adapted import AdaptedLinear, adapted_linear
from stepping import Architecture, quartiles, synchronize

DROP_PATH = 0.1
LIMIT = 1e-5
"""Largest difference in float32 of a loss, and of a gradient over its tensor's largest entry."""
PAYS = 1.2
"""Times as fast as separate steps that packing must be to be worth having."""
NETWORKS = {
    "tiny": stepping.BACKBONES["tiny"],
    "vit_nano": Architecture("vit_tiny_patch16_224", 64, {"patch_size": 8, "depth": 6, "num_heads": 6}),
    "vit_ti14": Architecture("vit_tiny_patch16_224", 70, {"patch_size": 14}),
    "vit_s14": Architecture("vit_small_patch14_dinov2", 98, {}),
    "vit_b16": stepping.BACKBONES["vit_b16"],
}
METHODS: dict[str, Method] = {
    "LoRA r=16": LoRA(label="lora", rank=16),
    "HS-LoRA Phase 2, r'=3": HeadLoRA(label="heads", rank=3),
}


class Run:
    """One run: its network, which shares the frozen weights of `like`, its method, rate and optimiser."""

    def __init__(self, number: int, architecture: Architecture, method: Method, like: Run | None, device: str) -> None:
        self.net = stepping.split(architecture).to(device)
        if like is not None:
            frozen = dict(like.net.named_parameters())
            for name, own in self.net.named_parameters():
                own.data = frozen[name].data
        torch.manual_seed(number)
        self.net.new_head(stepping.NUM_CLASSES)
        self.net.head.to(device)
        installed = method.install(self.net)
        for delta in installed.owners.values():
            for parameter in delta.parameters():  # at zero, B would hide what is wrong with A
                nn.init.normal_(parameter, std=0.02)
            if delta.get_buffer("active").shape[0] > 1 and not delta.is_per_head:
                heads = delta.get_buffer("active").shape[0]
                delta.switch((torch.arange(heads) >= number % heads).float())  # type: ignore[operator]
        installed.set_mode()
        self.trainable = installed.trainable()
        self.optimizer = torch.optim.AdamW(installed.param_groups(1e-4), lr=1e-3 / (1 + number))


def own_updates(x: Tensor, weight: Tensor, bias: Tensor | None, runs: Sequence[Sequence[nn.Linear]]) -> Tensor:
    """By slices: each run's rows of x, (K B, T, I), through its own adapted q, k and v: (K B, T, O)."""
    parts = zip(x.chunk(len(runs)), runs, strict=True)
    return torch.cat([adapted_linear(own, weight, bias, projections) for own, projections in parts])


def batched_updates(x: Tensor, weight: Tensor, bias: Tensor | None, runs: Sequence[Sequence[nn.Linear]]) -> Tensor:
    """By bmm: the frozen product once, the runs' thin products batched; as `own_updates`."""
    rows: list[int] = []
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    first = 0
    for stacked in zip(*runs, strict=True):  # one projection, of every run
        factors = [part.delta.factors() for part in stacked if isinstance(part, AdaptedLinear)]
        if factors:
            rows.append(first)
            downs.append(torch.stack([pair.down for pair in factors if pair]).flatten(1, 2))
            ups.append(_block_diagonal(torch.stack([pair.up for pair in factors if pair])))
        first += stacked[0].out_features
    down = torch.cat(downs, dim=1)
    device = x.device.type
    if narrow := torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, down, ups = x.to(dtype), weight.to(dtype), down.to(dtype), [up.to(dtype) for up in ups]
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        y = _Batched.apply(x.reshape(len(runs), -1, x.shape[-1]), weight, bias, tuple(rows), not narrow, down, *ups)
    return y.view(*x.shape[:-1], weight.shape[0])


def _block_diagonal(up: Tensor) -> Tensor:
    """B of every run, (K, G, O // G, R), as (K, O, G R)."""
    if up.shape[1] == 1:
        return up[:, 0]
    return torch.diag_embed(up.permute(0, 2, 3, 1)).permute(0, 3, 1, 4, 2).flatten(3, 4).flatten(1, 2)


class _Batched(torch.autograd.Function):
    """As `headwise.updates.fused`, for K runs: x (K, N, I), W (O, I), A (K, C, I) of all blocks, B (K, O', C')."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: tuple[int, ...],
        wide: bool,
        down: Tensor,
        *ups: Tensor,
    ) -> Tensor:
        ctx.rows, ctx.wide = rows, wide
        if wide:
            merged = _merged(weight, rows, down, ups)
            y = x @ merged.mT if bias is None else torch.baddbmm(bias, x, merged.mT)
            ctx.save_for_backward(x, weight, None, down, *ups)
            return y
        hidden = down @ x.mT  # (K, C, N)
        y = x.new_zeros(*x.shape[:2], weight.shape[0])
        for row, up, part in zip(rows, ups, _pieces(hidden, ups), strict=True):
            y[:, :, row : row + up.shape[1]].baddbmm_(part.mT, up.mT)
        flat = y.view(-1, weight.shape[0]).addmm_(x.reshape(-1, x.shape[-1]), weight.T)
        if bias is not None:
            flat.add_(bias)
        ctx.save_for_backward(x, weight, hidden, down, *ups)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, hidden, down, *ups = ctx.saved_tensors
        hidden = down @ x.mT if hidden is None else hidden
        grad_hidden, grad_ups, grad_x = torch.empty_like(hidden), [], None
        pieces = zip(ctx.rows, ups, _pieces(hidden, ups), _pieces(grad_hidden, ups), strict=True)
        for row, up, part, grad_part in pieces:
            grad_rows = grad[:, :, row : row + up.shape[1]]
            grad_ups.append((part @ grad_rows).mT)
            grad_part.copy_(up.mT @ grad_rows.mT)
        if ctx.needs_input_grad[0]:
            if ctx.wide:
                grad_x = grad @ _merged(weight, ctx.rows, down, ups)
            else:
                grad_x = (grad.reshape(-1, weight.shape[0]) @ weight).view_as(x)
                grad_x.baddbmm_(grad_hidden.mT, down)
        return (grad_x, None, None, None, None, grad_hidden @ x, *grad_ups)


def _pieces(hidden: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each block's part of (K, C, ...)."""
    return hidden.split([up.shape[2] for up in ups], dim=1)


def _merged(weight: Tensor, rows: Sequence[int], down: Tensor, ups: Sequence[Tensor]) -> Tensor:
    """``W + B A`` of every run, (K, O, I)."""
    merged = weight.repeat(len(down), 1, 1)
    for row, up, part in zip(rows, ups, _pieces(down, ups), strict=True):
        merged[:, row : row + up.shape[1]].baddbmm_(up, part)
    return merged


Way = Callable[[Tensor, Tensor, Tensor | None, Sequence[Sequence[nn.Linear]]], Tensor]
WAYS: dict[str, Way] = {"slices": own_updates, "bmm": batched_updates}


class PackedProjection(nn.Module):
    """Stands where timm's fused qkv was, with every run's q, k and v."""

    def __init__(self, fused: nn.Linear, runs: Sequence[Sequence[nn.Linear]], way: Way) -> None:
        super().__init__()
        self.fused, self.runs, self.way = fused, runs, way

    def forward(self, x: Tensor) -> Tensor:
        """(K B, T, O) for x (K B, T, I)."""
        return self.way(x, self.fused.weight, self.fused.bias, self.runs)


class PackedDropPath(nn.Module):
    """timm's stochastic depth, each run's samples by its own random numbers."""

    def __init__(self, rate: float, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.keep, self.generators = 1.0 - rate, generators

    def forward(self, x: Tensor) -> Tensor:
        """x, (K B, T, I), with some samples zero and the others scaled."""
        shape = (len(x) // len(self.generators), *(1,) * (x.ndim - 1))
        drawn = [x.new_empty(shape).bernoulli_(self.keep, generator=own) for own in self.generators]
        return x * torch.cat(drawn).div_(self.keep)


class Packed:
    """K runs in one network: timm's own, with their updates side by side."""

    def __init__(self, architecture: Architecture, runs: Sequence[Run], way: Way, attention: str, device: str) -> None:
        self.runs = runs
        self.generators = [torch.Generator(device).manual_seed(number) for number in range(len(runs))]
        trunk: Any = stepping.network(architecture).to(device).requires_grad_(False)
        trunk.reset_classifier(0)
        for index, block in enumerate(trunk.blocks):
            own: list[Any] = [run.net.model.blocks[index].attn.qkv for run in runs]  # type: ignore[index, union-attr]
            block.attn.qkv = PackedProjection(block.attn.qkv, [split.parts for split in own], way)
            for name in ("drop_path1", "drop_path2"):
                if rate := getattr(getattr(block, name), "drop_prob", 0.0):
                    setattr(block, name, PackedDropPath(rate, self.generators))
        stepping.set_attention(trunk, attention)
        self.trunk = trunk.train()

    def losses(self, images: Tensor, labels: Tensor, bf16: bool) -> list[Tensor]:
        """Of each run, for images (K B, 3, S, S) and labels (K B,)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            features = self.trunk(images).chunk(len(self.runs))
            logits = [run.net.head(own).float() for run, own in zip(self.runs, features, strict=True)]
        return [F.cross_entropy(own, truth) for own, truth in zip(logits, labels.chunk(len(logits)), strict=True)]


@dataclass(frozen=True)
class Setting:
    """What is measured: network, images of each run in a step, runs, precision and method."""

    backbone: str
    batch: int
    runs: int
    precision: str
    method: str


AXES: dict[str, Sequence[Any]] = {"batch": [64], "runs": [4], "precision": ["bf16", "fp32"], "method": list(METHODS)}
"""Options of a named backbone, each with its default: all combinations are measured."""
PLANNED = (
    Setting("vit_nano", 64, 2, "bf16", "LoRA r=16"),
    Setting("vit_nano", 64, 4, "bf16", "LoRA r=16"),
    Setting("vit_nano", 64, 4, "fp32", "LoRA r=16"),
    Setting("vit_nano", 16, 4, "bf16", "LoRA r=16"),
    Setting("vit_nano", 16, 4, "fp32", "LoRA r=16"),
    Setting("vit_nano", 16, 8, "bf16", "LoRA r=16"),
    Setting("vit_ti14", 64, 4, "bf16", "LoRA r=16"),
    Setting("vit_ti14", 64, 4, "fp32", "LoRA r=16"),
    Setting("vit_ti14", 8, 8, "bf16", "LoRA r=16"),
    Setting("vit_s14", 64, 2, "bf16", "LoRA r=16"),
    Setting("vit_s14", 8, 4, "bf16", "LoRA r=16"),
    Setting("vit_nano", 64, 4, "bf16", "HS-LoRA Phase 2, r'=3"),
    Setting("vit_nano", 64, 8, "bf16", "LoRA r=16"),
    Setting("vit_ti14", 64, 1, "bf16", "HS-LoRA Phase 2, r'=3"),
    Setting("vit_ti14", 64, 4, "bf16", "HS-LoRA Phase 2, r'=3"),
    Setting("vit_ti14", 64, 8, "bf16", "LoRA r=16"),
)
"""What is measured where no backbone is named."""


class Bench:
    """K runs of one setting, alone and packed."""

    def __init__(self, setting: Setting, device: str) -> None:
        plain = NETWORKS[setting.backbone]
        architecture = replace(plain, options={**plain.options, "drop_path_rate": DROP_PATH})
        self.bf16 = setting.precision == "bf16"
        attention = "plain" if self.bf16 and device == "cpu" else "timm"
        self.runs: list[Run] = []
        for number in range(setting.runs):
            like = self.runs[0] if self.runs else None
            self.runs.append(Run(number, architecture, METHODS[setting.method], like, device))
            self.runs[-1].net.set_attention(attention)
        self.ways = {name: Packed(architecture, self.runs, way, attention, device) for name, way in WAYS.items()}
        total = setting.batch * setting.runs
        torch.manual_seed(1)
        self.images = torch.randn(total, 3, plain.img_size, plain.img_size, device=device)
        self.labels = torch.randint(stepping.NUM_CLASSES, (total,), device=device)

    def _alone(self, number: int, bf16: bool) -> Tensor:
        images, labels = (whole.chunk(len(self.runs))[number] for whole in (self.images, self.labels))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits = self.runs[number].net(images).float()
        return F.cross_entropy(logits, labels)

    def _clear(self) -> None:
        for run in self.runs:
            run.optimizer.zero_grad(set_to_none=True)

    def _gradients(self) -> list[dict[str, Tensor]]:
        return [{name: _grad(tensor) for name, tensor in run.trainable.items()} for run in self.runs]

    def differences(self, bf16: bool) -> dict[str, dict[str, float]]:
        """Of each way: the largest difference from the runs alone, of a loss and of a gradient over its largest."""
        self._clear()
        alone = []
        for number in range(len(self.runs)):
            torch.manual_seed(number)
            alone.append(self._alone(number, bf16))
            alone[-1].backward()
        expected, found = self._gradients(), {}
        for name, packed in self.ways.items():
            self._clear()
            for number, generator in enumerate(packed.generators):
                generator.manual_seed(number)
            losses = packed.losses(self.images, self.labels, bf16)
            torch.stack(losses).sum().backward()
            pairs = [
                (own[key], other[key]) for own, other in zip(self._gradients(), expected, strict=True) for key in own
            ]
            apart = (torch.stack(losses) - torch.stack(alone)).detach().abs()
            found[name] = {
                "loss": float(apart.max()),
                "gradient": max(_relative(own, other) for own, other in pairs),
            }
        return found

    def separate(self) -> None:
        """One step of each run, one after the other."""
        for number, run in enumerate(self.runs):
            run.optimizer.zero_grad(set_to_none=True)
            self._alone(number, self.bf16).backward()
            run.optimizer.step()

    def packed(self, way: str) -> None:
        """One step of all runs at once."""
        self._clear()
        torch.stack(self.ways[way].losses(self.images, self.labels, self.bf16)).sum().backward()
        for run in self.runs:
            run.optimizer.step()

    def seconds(self, way: str | None) -> tuple[float, float]:
        """Wall and processor time of one step of all runs, packed or, without a way, one after the other."""
        synchronize(self.images)
        wall, cpu = time.perf_counter(), time.process_time()
        if way is None:
            self.separate()
        else:
            self.packed(way)
        synchronize(self.images)
        return time.perf_counter() - wall, time.process_time() - cpu


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()


def _relative(own: Tensor, other: Tensor) -> float:
    largest = float(other.abs().max())
    return float((own - other).abs().max()) / (largest or 1.0)


def measure(setting: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Check, then time `options.pairs` rounds: one row for each way."""
    bench = Bench(setting, options.device)
    exact, timed = bench.differences(bf16=False), bench.differences(bench.bf16)
    order: list[str | None] = [None, *WAYS]
    for way in order:
        bench.seconds(way)
    gc.collect()
    gc.disable()
    rounds = []
    for number in range(options.pairs):
        rounds.append({way: bench.seconds(way) for way in (reversed(order) if number % 2 else order)})
    gc.enable()
    rows = []
    for way in WAYS:
        pairs, cpu_pairs = ([(times[None][kind], times[way][kind]) for times in rounds] for kind in (0, 1))
        rows.append(
            {
                **asdict(setting),
                "way": way,
                "ratio": quartiles(pairs)[1],
                "cpu_ratio": quartiles(cpu_pairs)[1],
                "quartiles": quartiles(pairs),
                "cpu_quartiles": quartiles(cpu_pairs),
                "difference_fp32": exact[way],
                "difference": timed[way],
                "pairs": pairs,
                "cpu_pairs": cpu_pairs,
            }
        )
        _say(rows[-1])
    return rows


def _say(row: Mapping[str, Any]) -> None:
    low, _, high = row["cpu_quartiles"]
    apart = row["difference_fp32"]
    print(
        f"{row['backbone']:8} batch {row['batch']:3} x {row['runs']} {row['precision']} {row['method']:21} "
        f"{row['way']:6} wall {row['ratio']:.3f}, CPU {row['cpu_ratio']:.3f} ({low:.3f}..{high:.3f}); fp32 apart: "
        f"loss {apart['loss']:.1e}, gradient {apart['gradient']:.1e}",
        flush=True,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; it gains ``settings``."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=sorted(NETWORKS), help="measure all combinations of what follows on it")
    parser.add_argument("--batch", nargs="+", type=Whole(2, 4096), help="images of each run in a step (64)")
    parser.add_argument("--runs", nargs="+", type=Whole(1, 64), help="that are packed (4); 1: what a way itself saves")
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), help="(both)")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), help="(all)")
    parser.add_argument("--pairs", type=Whole(2, 10_000), default=5, help="rounds (5)")
    parser.add_argument("--threads", type=THREADS, default=1, help="of torch (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=record_file, metavar="FILE", help="write the record there")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; allowed: --device cpu")
    given = {name: getattr(options, name) for name in AXES}
    if options.backbone is None and any(given.values()):
        name = next(name for name, values in given.items() if values)
        parser.error(f"--{name} goes with --backbone; allowed: {', '.join(sorted(NETWORKS))}")
    axes = [values or AXES[name] for name, values in given.items()]
    chosen = [Setting(options.backbone, *rest) for rest in itertools.product(*axes)] if options.backbone else PLANNED
    options.settings = chosen
    return options


def record(options: argparse.Namespace, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what has been measured so far."""
    made = {
        "networks": {row["backbone"]: asdict(NETWORKS[row["backbone"]]) for row in rows},
        "drop_path": DROP_PATH,
        "limit": LIMIT,
        "pays": PAYS,
        "machine": {**machine, "load_average_after": os.getloadavg() if hasattr(os, "getloadavg") else None},
        "results": list(rows),
    }
    atomic.write_text(options.json, json.dumps(made, indent=1) + "\n")


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit status 1 where a packed run is not the run alone."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    machine = stepping.machine(options.device)
    rows: list[dict[str, Any]] = []
    for setting in options.settings:
        rows += measure(setting, options)
        if options.json:
            record(options, machine, rows)
    apart = max(max(row["difference_fp32"].values()) for row in rows)
    kind = "ratio" if options.device == "cuda" else "cpu_ratio"
    paying = [row for row in rows if 1.0 / row[kind] >= PAYS]
    print(f"largest difference in float32 {apart:.1e}, at most {LIMIT:.0e}")
    print(f"{len(paying)} of {len(rows)} rows at least {PAYS} times as fast; best {1 / min(r[kind] for r in rows):.2f}")
    return 0 if apart <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

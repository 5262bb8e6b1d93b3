"""Time one training step of HS-LoRA's Phase 2, and of what one would otherwise run, against timm's own network.

How is said in `stepping`; all contenders are timed in one run. No adapter on the projections can be faster than the
bound. `--test` times the forward pass of a test instead, adapters in place and merged.

Run: python benchmarks/step_time.py --json benchmarks/results/step_time.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stepping
from headwise.cli import script
from headwise.methods.base import Installed
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.updates.sites import Site, select
from stepping import Architecture, bound, network, require_input_grad, split

HEAD_RANK = 3  # r' of HS-LoRA
RANK = 16
TARGETS = ("q", "v")
LIMIT = 1.06
"""Largest acceptable ratio of HS-LoRA's Phase 2 to the bound."""
OURS = "LoRA r=16"
THEIRS = {"peft LoRA r=16, split q,v": 0.95, "peft LoRA r=16, fused qkv": 1.0}
"""Largest acceptable ratios of our LoRA's step to peft's."""


# Contenders: each gives a network whose trainable parameters require gradients, the head among them.


def headwise_lora(architecture: Architecture, method: HeadLoRA | LoRA, *, merge: bool = False) -> nn.Module:
    """A method of this package, at work or merged."""
    net = split(architecture)
    require_input_grad(net.model)
    installed: Installed = method.install(net)
    installed.set_mode()
    if merge:
        installed.merge()
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
TESTED: dict[str, Callable[[Architecture], nn.Module]] = {
    **CONTENDERS,
    "HS-LoRA, merged": lambda a: headwise_lora(a, HeadLoRA(label="heads", rank=HEAD_RANK, targets=TARGETS), merge=True),
}


def against(timings: Sequence[stepping.Timing]) -> list[dict[str, Any]]:
    """Our LoRA over peft's, round by round, where both were timed: medians of wall and processor time."""
    found = []
    by_name = {(timing.contender, timing.precision): timing for timing in timings}
    for (name, precision), theirs in by_name.items():
        ours = by_name.get((OURS, precision))
        if ours is None or name not in THEIRS:
            continue
        rounds = [zip(getattr(theirs, kind), getattr(ours, kind), strict=True) for kind in ("pairs", "cpu_pairs")]
        ratio, cpu = (statistics.median(own[1] / other[1] for other, own in some) for some in rounds)
        more = {"ours": OURS, "theirs": name, "precision": precision, "cpu_ratio": cpu}
        found.append(stepping.judged(f"{OURS} over {name}", ratio, THEIRS[name], **more))
        print(f"{OURS} over {name}, {precision}: {ratio:.3f}, CPU {cpu:.3f}")
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    made = stepping.parser(__doc__.splitlines()[0], pairs=15, attention="timm")
    made.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    made.add_argument("--test", action="store_true", help="forward alone, in evaluation mode")
    options = stepping.parse(made, TESTED, arguments)
    options.names = [name for name in options.names if options.test or name in CONTENDERS]
    if not options.names:
        made.error(f"--only {' '.join(options.only)}: measured with --test alone")
    return options


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record; returns the exit status."""
    options = parse(arguments)
    timings: list[stepping.Timing] = []
    for precision in options.precision:
        bench = stepping.Bench(options, precision, training=not options.test)
        timings += bench.measure({name: TESTED[name] for name in options.names}, options.pairs)
    found = [] if options.test else against(timings)
    what = {"test": True} if options.test else {"limit": LIMIT, "against": found}
    stepping.record(options, timings, targets=TARGETS, **what)
    if found:
        stepping.say(found, "ratio(s) to peft", "precision")
    return 0


if __name__ == "__main__":
    sys.exit(main())

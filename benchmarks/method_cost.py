"""Time one training step of every method against timm's own network with nothing but a head to train.

How is said in `stepping`. Bound and contender compute attention as training does on a CPU in bf16 (``plain``). Methods
are taken one by one, as conf/method describes them, each interleaved with the bound. The linear probe is the bound but
for the gradient that no layer of it needs, so it is left out, and of HS-LoRA only the second phase is new.

Run: python benchmarks/method_cost.py --json benchmarks/results/method_cost.json
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

import headwise.runs.experiment  # noqa: F401  registers what conf/ interpolates with
import stepping
from headwise.cli import script
from headwise.commands.messages import instantiation
from headwise.methods.base import Installed, Method
from headwise.runs.jobs import checked_config

CONF = Path(__file__).resolve().parent.parent / "conf"

BOUNDS: dict[str, tuple[float | None, tuple[str, ...]]] = {
    "low-rank on attention": (1.06, ("lora", "head_lora", "dylora", "pissa", "eva", "lora_ga", "lora_xs")),
    "low-rank with more work on the factors": (1.25, ("dora", "bi_lora", "heart_lora", "mlae")),
    "all linears, no weight dropout": (1.40, ("fact_tt", "fact_tk", "repadapter", "ssf")),
    "dense gradient": (1.65, ("cara", "mora", "fourierft", "spt_lora", "boft", "full")),
    "no bound": (
        None,
        (
            *("bitfit", "adaptformer", "bi_adaptformer", "houlsby_b8", "pfeiffer", "vpt_adapter_rf64"),
            *("vpt_adapter_rf256", "compacter", "vpt_shallow", "vpt_deep", "noah", "adalora", "qlora"),
            *("adapter_post", "convpass", "convpass_attn", "hydra_lora", "shared_heads", "spt_adapter"),
        ),
    ),
}
"""Largest acceptable ratio to the bound, and the methods it holds for."""
KINDS = {name: (kind, limit) for kind, (limit, names) in BOUNDS.items() for name in names}


def method_of(name: str, overrides: Sequence[str]) -> Method:
    """conf/method/<name>.yaml at its defaults, but for `overrides`."""
    config = checked_config(CONF, [f"method={name}", "dataset=eurosat", *overrides])
    with instantiation():
        method: Method = instantiate(config["method"], _convert_="all")
    return method


def contender(
    architecture: stepping.Architecture, name: str, overrides: Sequence[str] = ()
) -> tuple[nn.Module, Installed]:
    """A network with a method in it, in training mode; what looks at training images first is shown noise."""
    method = method_of(name, overrides)
    net = stepping.split(architecture)
    images = torch.randn(2, 3, net.img_size, net.img_size, generator=torch.Generator().manual_seed(2))
    plan = method.prepare(net, lambda: [(images, torch.arange(2))], 100)
    installed = method.install(net, plan)
    stepping.require_input_grad(net.model)
    return net, installed


def verdicts(timings: Sequence[stepping.Timing]) -> list[dict[str, Any]]:
    """Every method's ratio to the bound, by what its kind may have."""
    kinds = [(timing, *KINDS[timing.contender]) for timing in timings]
    return [stepping.judged(one.contender, one.quartiles[1], limit, kind=kind) for one, kind, limit in kinds]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = stepping.parser(__doc__.splitlines()[0], pairs=5, attention="plain", of_methods=True)
    return stepping.parse(options, KINDS, arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record; returns the exit status."""
    options = parse(arguments)
    for name in options.names:  # before a network is built
        method_of(name, options.set)
    bench = stepping.Bench(options, options.precision)
    timings: list[stepping.Timing] = []
    for name in options.names:
        print(name, file=sys.stderr, flush=True)
        timings += bench.measure({name: functools.partial(contender, name=name, overrides=options.set)}, options.pairs)
    found = verdicts(timings)
    stepping.record(options, timings, bounds=found, set=options.set)
    stepping.say(found, "method(s)", "kind")
    return 0


if __name__ == "__main__":
    sys.exit(main())

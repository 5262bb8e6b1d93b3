"""Count the memory of one training step of every method: what is kept for backward, weights, gradients and optimiser.

Tensors that autograd keeps are counted as they are kept, each storage once, at one and at two images, which parts what
a step keeps once from what an image keeps. Nothing is measured of the allocator, of workspaces or of the largest moment
of backward, so a GPU takes more. `--checkpointing` counts with trainer.checkpointing=true.

Run: python benchmarks/step_memory.py --json benchmarks/results/step_memory.json
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import stepping
from headwise.cli import script
from headwise.network.backbone import Backbone
from headwise.storage import atomic
from method_cost import KINDS, contender, method_of

BOUND = "full network, head alone"
"""timm's own network with the gradient flowing to its first block: the bound of the other benchmarks."""


def kept_bytes(net: nn.Module, images: Tensor, precision: str, attention: str) -> int:
    """What autograd keeps of a forward pass and the loss, in bytes; weights are not counted, casts of them are."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor.detach()  # an output that its own node holds would never be freed

    stepping.set_attention(net, attention)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = net(images).float()
        F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long, device=images.device))
    return sum(storage.nbytes() for storage in storages.values())


def row(name: str, options: argparse.Namespace, build: Callable[[], Any]) -> dict[str, Any]:
    """Bytes of one method, and of a step of ``options.batch`` images with it."""
    made = build()
    net = made[0] if isinstance(made, tuple) else made
    if options.checkpointing:
        if isinstance(net, Backbone):
            net.set_checkpointing()
        else:
            net.set_grad_checkpointing()
    net.train().to(options.device)
    side = stepping.BACKBONES[options.backbone].img_size
    one, two = (
        kept_bytes(net, torch.randn(count, 3, side, side, device=options.device), options.precision, options.attention)
        for count in (1, 2)
    )
    image, weights = two - one, sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    tunable = sum(parameter.nbytes for parameter in net.parameters() if parameter.requires_grad)
    total = (one - image) + options.batch * image + weights + 3 * tunable  # a gradient and AdamW's two averages
    kept = {"once": one - image, "image": image}
    return {"contender": name, **kept, "weights": weights, "tunable": tunable, "total": total}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = stepping.parser(__doc__.splitlines()[0], pairs=None, attention="timm", batch=64, of_methods=True)
    options.add_argument("--checkpointing", action="store_true", help="compute blocks again in backward")
    return stepping.parse(options, KINDS, arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, and write the record; returns the exit status."""
    options = parse(arguments)
    for name in options.names:  # before a network is built
        method_of(name, options.set)
    architecture = stepping.BACKBONES[options.backbone]
    builds: dict[str, Callable[[], Any]] = {BOUND: functools.partial(stepping.bound, architecture)}
    builds |= {name: functools.partial(contender, architecture, name, options.set) for name in options.names}
    rows = []
    table = Table(title=f"{architecture.name}, {options.precision}: MB")
    for column in ("step", "kept once", "kept an image", "weights", "tunable", f"{options.batch} images"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, build in builds.items():
        print(name, file=sys.stderr, flush=True)
        rows.append(found := row(name, options, build))
        table.add_row(name, *(f"{found[key] / 1e6:,.1f}" for key in ("once", "image", "weights", "tunable", "total")))
    Console(width=120).print(table)
    if options.json:
        keys = ("backbone", "batch", "precision", "attention", "checkpointing", "machine")
        made = {**{key: getattr(options, key) for key in keys}, "results": rows}
        atomic.write_text(options.json, json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

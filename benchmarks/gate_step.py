"""What a head gate costs: a training step with heads off against the same step with every head on.

python benchmarks/gate_step.py --bf16 --repeats 30
The two kinds of step alternate, and the medians are compared, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from headwise.backbone import BackboneSpec
from headwise.methods.base import Method
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA

METHODS: dict[str, Callable[[], Method]] = {
    "lora": lambda: LoRA(label="lora", rank=8),
    "bi_lora": lambda: BiLoRA(label="bi_lora", rank=32),
    "head_lora": lambda: HeadLoRA(label="head_lora", rank=2),
}


def step_of(spec: BackboneSpec, method: Method, batch: int, off: int, bf16: bool) -> Callable[[], float]:
    """A function that takes one optimiser step and gives its seconds."""
    net = spec.build()
    net.new_head(10)
    installed = method.install(net)
    for module in installed.owners.values():
        active = module.get_buffer("active")
        module.switch((torch.arange(len(active)) >= off).float())  # type: ignore[operator]
    optimizer = torch.optim.AdamW(installed.param_groups(1e-4), lr=1e-3)
    x, y = torch.randn(batch, 3, net.img_size, net.img_size), torch.arange(batch) % 10
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-name", default="vit_small_patch14_dinov2")
    parser.add_argument("--img-size", type=int, default=98)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--off", type=int, default=3, help="heads off in every layer")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    spec = BackboneSpec(name="x", timm_name=options.timm_name, img_size=options.img_size, weights="none")
    for name, make in METHODS.items():
        torch.manual_seed(0)
        steps = [step_of(spec, make(), options.batch, off, options.bf16) for off in (0, options.off)]
        times = [[step() for step in steps] for _ in range(options.repeats + 2)][2:]
        plain, gated = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        print(f"{name:10} all on {plain * 1e3:8.1f} ms, {options.off} off {gated * 1e3:8.1f} ms, ratio {ratio:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

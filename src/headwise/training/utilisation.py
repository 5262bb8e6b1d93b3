"""Model FLOPs utilisation (MFU): how much of a GPU's stated peak the training of a phase reaches.

Arithmetic is that of matrix products and attention, a multiplication and an addition being two, as torch counts it in
one step. What checkpointing computes again counts too; that DyLoRA and NOAH do more in one step than in the next does
not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwise.updates.objective import loss as mean_loss

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

    from headwise.training.module import PhaseModule

T = 1e12


def _tensor_cores(half: float, tf32: float, fp32: float) -> dict[str, float]:
    return {"bf16": half * T, "fp16": half * T, "tf32": tf32 * T, "fp32": fp32 * T}


PEAKS = {
    # NVIDIA's data sheets of H200 and H100; what they state with sparsity is halved
    "NVIDIA H200": _tensor_cores(989, 495, 67),
    "NVIDIA H100 80GB HBM3": _tensor_cores(989, 495, 67),
    "NVIDIA H100 PCIe": _tensor_cores(756, 378, 51),
    "NVIDIA H100 NVL": _tensor_cores(835, 417, 60),
    # NVIDIA's data sheet of the A100
    **dict.fromkeys(
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"),
        _tensor_cores(312, 156, 19.5),
    ),
    # NVIDIA's data sheet of the L40S
    "NVIDIA L40S": _tensor_cores(362, 183, 91.6),
    # NVIDIA's whitepapers on GA102 and on Ada, with sums in float32
    "NVIDIA GeForce RTX 3090": _tensor_cores(71, 35.6, 35.6),
    "NVIDIA GeForce RTX 4090": _tensor_cores(165.2, 82.6, 82.6),
}
"""Dense multiplications and additions per second, by the name that torch gives a GPU and by precision."""


def peak_of(device: torch.device, precision: str) -> float | None:
    """What a device does of `precision` at most, FLOP/s; None for a CPU, and for a GPU that is not in `PEAKS`."""
    if device.type != "cuda":
        return None
    return PEAKS.get(torch.cuda.get_device_name(device), {}).get(precision)


def counter() -> FlopCounterMode:
    """Torch's counter of FLOPs, products in place included."""
    from torch.utils.flop_counter import FlopCounterMode  # nobody counts on a CPU

    in_place = {torch.ops.aten.addmm_: _in_place_flops, torch.ops.aten.baddbmm_: _in_place_flops}
    return FlopCounterMode(display=False, custom_mapping=in_place)


def _in_place_flops(_: Sequence[int], left: Sequence[int], right: Sequence[int], *__: Any, **___: Any) -> int:
    """Arithmetic of ``addmm_`` and ``baddbmm_``, which torch's counter leaves out, from the factors' shapes."""
    return 2 * math.prod(left) * right[-1]


def flops_per_image(
    module: PhaseModule, batches: Iterable[tuple[Tensor, Tensor]], precise: AbstractContextManager[Any]
) -> float | None:
    """Arithmetic of a training step, of its forward and backward pass, for each image of the first batch.

    The network is left as it is; its random numbers come from the epoch, and are drawn again. What checkpointing
    computes twice counts twice. None for training under noise, whose passes differ from step to step.

    Args:
        module: of the phase, its network on the device.
        batches: of training.
        precise: in which the network computes.
    """
    if module.consistency is not None:
        return None
    images, labels = (tensor[: -(-len(tensor) // module.parts)] for tensor in next(iter(batches)))
    device = next(module.net.parameters()).device
    module.installed.set_mode()
    tunable = [parameter for parameter in module.net.parameters() if parameter.requires_grad]
    with counter() as counted, precise:
        loss = mean_loss(module.logits(images.to(device)), labels.to(device))
        penalty = module.installed.penalty()
        # gradients are returned: none is left behind in a parameter
        torch.autograd.grad(loss if penalty is None else loss + penalty, tunable, allow_unused=True)
    return counted.get_total_flops() / len(labels)


def utilisation(flops: float | None, peak: float | None, images: int, seconds: float) -> dict[str, float]:
    """For the record of a phase, of which so many images took so many seconds; empty where a number is not known.

    Returns:
        flops_per_image: as counted.
        peak: FLOP/s that are stated.
        share: of the peak, that training reached, 0..1.
    """
    if flops is None or peak is None or not seconds:
        return {}
    return {"flops_per_image": flops, "peak": peak, "share": flops * images / seconds / peak}

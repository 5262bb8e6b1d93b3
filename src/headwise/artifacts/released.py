"""Published checkpoints, read into this project's files: Bi-LoRA (JieShibo/PETL-ViT) and CaRA (BonnBytes/CaRA).

A Bi-LoRA file is one matrix after the other, A then B of q, then of v, block by block: codes (first code in the lowest
bits, row-major, no padding), mean and deviation as float32. Then the classifier: float32 weight and bias, or codes,
mean and deviation of a quantised weight without bias.

A CaRA file is torch's: the state dict of the whole ViT, the twelve factors of the model beside its own tensors.

The scale s is in neither: it belongs to the command that uses the file.

Legend: O/I features, R rank or components, L blocks, d width, H heads, e channels of a head, m = MLP width / d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headwise.errors import CheckpointError, ConfigError, damage


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a file was trained on and with; the defaults are the published ones.

    Attributes:
        blocks: of the network.
        width: features of q and v, O = I.
        rank: R.
        bits: 1, 2, 4 or 8.
        num_classes: of the task; None reads it from the file's length.
        head_bits: of the classifier; 32 is an ordinary one with bias.
    """

    blocks: int = 12
    width: int = 768
    rank: int = 32
    bits: int = 1
    num_classes: int | None = None
    head_bits: int = 32

    def __post_init__(self) -> None:
        for name in ("blocks", "width", "rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_classes is not None and self.num_classes < 2:
            raise ConfigError(f"classes must be at least 2, got {self.num_classes}")
        if self.bits not in (1, 2, 4, 8) or self.head_bits not in (1, 2, 4, 8, 32):
            raise ConfigError(f"bits must be 1, 2, 4 or 8 (32 for a plain head), got {self.bits} and {self.head_bits}")
        if self.width * self.rank * self.bits % 8:
            raise ConfigError(f"{self.width} x {self.rank} codes of {self.bits} bit(s) do not fill whole bytes")

    @property
    def matrix_bytes(self) -> int:
        """Codes of one matrix."""
        return self.width * self.rank * self.bits // 8

    @property
    def adapter_bytes(self) -> int:
        """Everything before the classifier."""
        return self.blocks * 4 * (self.matrix_bytes + 8)

    def head_bytes(self, num_classes: int) -> int:
        """The classifier of so many classes."""
        if self.head_bits == 32:
            return 4 * num_classes * (self.width + 1)
        return num_classes * self.width * self.head_bits // 8 + 8

    def classes(self, num_bytes: int) -> int:
        """Classes of a file of so many bytes.

        Raises:
            CheckpointError: if no whole number of classes gives this length, or not the expected one.
        """
        rest = num_bytes - self.adapter_bytes
        per_class = self.head_bytes(2) - self.head_bytes(1)
        # the mean and deviation of a quantised head, whatever the number of classes
        fixed = self.head_bytes(1) - per_class
        count, odd = divmod(rest - fixed, per_class)
        if self.num_classes is not None and num_bytes != self.adapter_bytes + self.head_bytes(self.num_classes):
            expected = self.adapter_bytes + self.head_bytes(self.num_classes)
            raise CheckpointError(
                f"a file of {self.num_classes} classes has {expected} bytes ({self.adapter_bytes} of adapter), "
                f"got {num_bytes}"
            )
        if odd or count < 1:
            raise CheckpointError(
                f"{num_bytes} bytes are no checkpoint of rank {self.rank} and {self.bits} bit(s): the adapter takes "
                f"{self.adapter_bytes}, every class {per_class} more; is the download complete, and are rank and bits "
                "right?"
            )
        return count


def read_bi_lora(file: Path, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a published file under this project's names, as `headwise.methods.bi_lora.BiLoRA` stores them.

    Raises:
        CheckpointError: if the file is missing or its length does not fit.
    """
    try:
        raw = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    num_classes = layout.classes(len(raw))
    data = torch.from_numpy(raw)
    tensors: dict[str, Tensor] = {}
    start = 0

    def take(count: int) -> Tensor:
        nonlocal start
        start += count
        # a copy, since a view as float32 must begin at a multiple of four bytes
        return data[start - count : start].clone()

    for block in range(layout.blocks):
        for proj in ("q", "v"):
            for factor in ("A", "B"):
                name = f"s0.b{block}.{proj}.{factor}"
                tensors[f"{name}.codes"] = take(layout.matrix_bytes)
                tensors[f"{name}.stats"] = take(8).view(torch.float32)
    if layout.head_bits == 32:
        tensors["head.weight"] = take(4 * num_classes * layout.width).view(torch.float32).view(num_classes, -1)
        tensors["head.bias"] = take(4 * num_classes).view(torch.float32)
    else:
        tensors["head.codes"] = take(layout.head_bytes(num_classes) - 8)
        tensors["head.stats"] = take(8).view(torch.float32)
    broken = [name for name, t in tensors.items() if t.dtype == torch.float32 and not bool(torch.isfinite(t).all())]
    if broken:
        raise CheckpointError(f"{file}: {broken[0]} holds values that are not finite; are rank and bits right?")
    return tensors


CARA_NAMES = {
    "CP_A1": "s0.b0.q.shared.A1",
    "CP_A2": "s0.b0.q.shared.A2",
    "CP_A3": "s0.b0.q.shared.A3",
    "CP_A4": "s0.b0.q.shared.A4",
    "CP_R1": "s0.b0.q.shared.components",
    "CP_P1": "s0.b0.o.shared.P1",
    "CP_P2": "s0.b0.o.shared.P2",
    "CP_P3": "s0.b0.o.shared.P3",
    "CP_R2": "s0.b0.o.shared.components",
    "CP_bias1": "s0.b0.o.shared.biases.o",
    "CP_bias2": "s0.b0.o.shared.biases.fc1",
    "CP_bias3": "s0.b0.o.shared.biases.fc2",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
"""Tensors of a released CaRA file, and their names as `headwise.methods.cara.CaRA` stores them."""


@dataclass(frozen=True, kw_only=True)
class ReleasedCaRA:
    """A released CaRA file.

    Attributes:
        tensors: the phase, under this project's names.
        backbone: the frozen network's own tensors under timm's names; empty if the file has none.
        blocks, width, heads, num_classes: of the network and the task it was trained on.
    """

    tensors: dict[str, Tensor]
    backbone: dict[str, Tensor]
    rank: int
    blocks: int
    width: int
    heads: int
    num_classes: int


def read_cara(file: Path) -> ReleasedCaRA:
    """Read a released file. Only tensors are read, nothing in it is run.

    Attention: CP_A1 (3 L, R) with q, k, v of block l at 3 l .. 3 l + 2, CP_A2 (d, R), CP_A3 (H, R), CP_A4 (e, R), CP_R1
    (R,). The rest: CP_P1 ((1 + 2 m) L, R) with o, m parts of fc1 and m of fc2 block by block, CP_P2 (d, R) and CP_P3
    (d, R), CP_R2 (R,), and CP_bias1 (d,), CP_bias2 (m d,), CP_bias3 (d,) of o, fc1, fc2.

    Raises:
        CheckpointError: if it cannot be read, lacks a tensor, or holds one of another shape or with values that are
            not finite.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise CheckpointError(
            f"{file} cannot be read as tensors ({damage(error)}); is the download complete, and is it a state dict?"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{file} is no state dict: it must map names to tensors")
    missing = [name for name in CARA_NAMES if name not in state]
    if missing:
        raise CheckpointError(
            f"{file} is no released CaRA checkpoint: it lacks {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    given = {name: state[name].detach().float().contiguous() for name in CARA_NAMES}
    sizes = _check_cara(file, given)
    broken = [name for name, tensor in given.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{file}: {broken[0]} holds values that are not finite")
    return ReleasedCaRA(
        tensors={CARA_NAMES[name]: tensor for name, tensor in given.items()},
        backbone={name: tensor for name, tensor in state.items() if name not in CARA_NAMES},
        **sizes,
    )


def _check_cara(file: Path, given: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of a released file, from its factors of heads, channels, blocks and classes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    for name, dims in (("CP_R1", 1), ("CP_A1", 2), ("CP_A3", 2), ("CP_A4", 2), ("CP_bias2", 1), ("head.weight", 2)):
        if len(shapes[name]) != dims or 0 in shapes[name]:
            raise CheckpointError(f"{file}: {name} is {shapes[name]}, it must have {dims} dimension(s)")
    (rank,), heads, num_classes = shapes["CP_R1"], shapes["CP_A3"][0], shapes["head.weight"][0]
    width = heads * shapes["CP_A4"][0]
    blocks, cut = divmod(shapes["CP_A1"][0], 3)
    parts, rest = divmod(shapes["CP_bias2"][0], width)
    if cut or rest:
        raise CheckpointError(
            f"{file}: CP_A1 is {shapes['CP_A1']}, its rows must be 3 a block; CP_bias2 is {shapes['CP_bias2']}, its "
            f"length must be a multiple of the width {width}"
        )
    expected = {
        "CP_A1": (3 * blocks, rank),
        "CP_A2": (width, rank),
        "CP_A3": (heads, rank),
        "CP_A4": (width // heads, rank),
        "CP_P1": ((1 + 2 * parts) * blocks, rank),
        "CP_P2": (width, rank),
        "CP_P3": (width, rank),
        "CP_R2": (rank,),
        "CP_bias1": (width,),
        "CP_bias3": (width,),
        "head.weight": (num_classes, width),
        "head.bias": (num_classes,),
    }
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"{file}: {name} is {shapes[name]}, expected {shape}: rank {rank} (CP_R1), {blocks} blocks (CP_A1), "
                f"{heads} heads of {width // heads} (CP_A3, CP_A4), {num_classes} classes"
            )
    return {"rank": rank, "blocks": blocks, "width": width, "heads": heads, "num_classes": num_classes}

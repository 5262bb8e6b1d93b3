"""The published Bi-LoRA checkpoints (JieShibo/PETL-ViT, binary_adapter), read into this project's files.

A file is one matrix after the other, A then B of q, then of v, block by block: codes (first code in the lowest bits,
row-major, no padding), mean and deviation as float32. Then the classifier: float32 weight and bias, or codes, mean
and deviation of a quantised weight without bias. The scale s is not in it: it belongs to the command that uses it.

Legend: O/I features, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headwise.errors import CheckpointError, ConfigError


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
        one = self.head_bytes(2) - self.head_bytes(1)
        fixed = self.head_bytes(1) - one
        count, odd = divmod(rest - fixed, one)
        if self.num_classes is not None and num_bytes != self.adapter_bytes + self.head_bytes(self.num_classes):
            expected = self.adapter_bytes + self.head_bytes(self.num_classes)
            raise CheckpointError(
                f"a file of {self.num_classes} classes has {expected} bytes ({self.adapter_bytes} of adapter), "
                f"got {num_bytes}"
            )
        if odd or count < 1:
            raise CheckpointError(
                f"{num_bytes} bytes are no checkpoint of rank {self.rank} and {self.bits} bit(s): the adapter takes "
                f"{self.adapter_bytes}, every class {one} more; is the download complete, and are rank and bits right?"
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

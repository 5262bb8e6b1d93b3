"""The k-bit quantiser of Bi-LoRA, and how its codes are stored.

A matrix is standardised by its own mean and deviation, every entry is replaced by the nearest of 2^bits values (the
codebook, made for a standard normal), and the result is scaled back. Gradients pass the replacement unchanged, while
mean and deviation stay in the graph (Bi-LoRA; JieShibo/PETL-ViT, binary_adapter).

Legend: O/I rows and columns of a matrix, K = 2^bits values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from headwise.errors import CheckpointError, ConfigError, check_choice
from headwise.updates.fused import at_least_float32

BITS = (1, 2, 4, 8, 32)
CODEBOOKS = ("kmedians", "kmeans")
STATS = ("all", "active_rows")
EPSILON = 1e-5
_ROUNDS = 500  # published; not converged at 8 bits (largest value 2.810 instead of 3.740)
_NORMAL = NormalDist()


@cache
def codebook(bits: int, kind: str = "kmedians") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values, (2^bits,), and the thresholds between them, (2^bits - 1,), ascending.

    ``kmedians`` repeats 500 times: thresholds half-way between the values, values at the conditional median of each
    cell of a standard normal, which minimises the mean absolute error. ``kmeans`` takes conditional means (the square
    error) and starts from quantiles. The thresholds are those of the last round, as published.

    Raises:
        ConfigError: for another number of bits or kind.
    """
    if bits not in BITS[:-1]:
        raise ConfigError(f"a codebook has 1, 2, 4 or 8 bits, got {bits!r}")
    check_choice("codebook", kind, CODEBOOKS)
    count = 2**bits
    values = [0.0] * count if kind == "kmedians" else [_NORMAL.inv_cdf((k + 0.5) / count) for k in range(count)]
    thresholds: list[float] = []
    for _ in range(_ROUNDS):  # Lloyd's two steps: thresholds for the values, then values for the cells between them
        thresholds = [(low + high) / 2 for low, high in pairwise(values)]
        levels = [0.0, *map(_NORMAL.cdf, thresholds), 1.0]
        if kind == "kmedians":  # half of a cell's mass lies on either side of its median
            values = [_NORMAL.inv_cdf((low + high) / 2) for low, high in pairwise(levels)]
        else:
            heights = [0.0, *map(_NORMAL.pdf, thresholds), 0.0]
            values = [(heights[k] - heights[k + 1]) / (levels[k + 1] - levels[k]) for k in range(count)]
    return tuple(values), tuple(thresholds)


Table = tuple[float, ...] | Tensor
"""Of a codebook, as tensors of entries; as numbers where there are two values."""


class _Nearest(torch.autograd.Function):
    """The value of each entry's code; the gradient passes unchanged (straight-through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Table, thresholds: Table) -> Tensor:  # type: ignore[override]
        return _look_up(_codes(x, thresholds), values, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad, None, None


def _beside(table: Table, like: Tensor) -> Table:
    return table.to(like) if isinstance(table, Tensor) else table


def _codes(x: Tensor, thresholds: Table) -> Tensor:
    """Number of thresholds below each entry; an entry on a threshold takes the lower value."""
    return torch.bucketize(x, thresholds) if isinstance(thresholds, Tensor) else x > thresholds[0]


def _look_up(codes: Tensor, values: Table, dtype: torch.dtype) -> Tensor:
    if isinstance(values, Tensor):
        return values[codes.long()]
    low, high = values
    return torch.full_like(codes, low, dtype=dtype).masked_fill_(codes.bool(), high)


@dataclass(frozen=True)
class Codes:
    """One matrix in storage.

    Attributes:
        codes: (ceil(O * I * bits / 8),) uint8, row-major, the first code in the lowest bits.
        stats: mean and deviation, (2,) float32, or of the matrix's type if that is wider.
    """

    codes: Tensor
    stats: Tensor


@dataclass(frozen=True)
class Quantizer:
    """Replaces a matrix by 2^bits values around its mean.

    Attributes:
        bits: 1, 2, 4 or 8.
        codebook: kmedians (published) or kmeans.
        stats: rows that mean and deviation are taken over: ``all`` (published), or ``active_rows`` only, so that heads
            which are off no longer shape the others' scale.
        values, thresholds: of the codebook, (2^bits,) and (2^bits - 1,) float64; of 1 bit as numbers.
    """

    bits: int = 1
    codebook: str = "kmedians"
    stats: str = "all"
    values: Table = field(init=False, repr=False, compare=False)
    thresholds: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("stats", self.stats, STATS)
        for name, table in zip(("values", "thresholds"), codebook(self.bits, self.codebook), strict=True):
            # as numbers they need not reach the device at every use
            object.__setattr__(self, name, table if self.bits == 1 else torch.tensor(table, dtype=torch.float64))

    def __call__(self, weight: Tensor, active_rows: Tensor | None = None) -> Tensor:
        """The quantised matrix, same shape; differentiable.

        Args:
            weight: latent matrix, float32 or wider, rows in the last but one dimension.
            active_rows: bool, one value per row of the flattened matrix; read with ``stats=active_rows`` only.
        """
        mean, deviation = self.statistics(weight, active_rows)
        values, thresholds = self._tables(weight)
        standard = (weight - mean) / (deviation + EPSILON)
        return _Nearest.apply(standard, values, thresholds) * deviation + mean

    def statistics(self, weight: Tensor, active_rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and unbiased deviation over all entries, scalars."""
        if self.stats == "active_rows" and active_rows is not None:
            weight = weight.flatten(0, -2)[active_rows]
        deviation, mean = torch.std_mean(weight)
        return mean, deviation

    def num_bytes(self, count: int) -> int:
        """Bytes that `count` codes take."""
        return -(-count * self.bits // 8)

    def _tables(self, like: Tensor) -> tuple[Table, Table]:
        return _beside(self.values, like), _beside(self.thresholds, like)

    @torch.no_grad()
    def pack(self, weight: Tensor, active_rows: Tensor | None = None, rows: Tensor | None = None) -> Codes:
        """Codes and statistics of a latent matrix, for storage; `active_rows` as for a call.

        `rows`, bool, are those of the flattened matrix to store; None for all.
        """
        mean, deviation = self.statistics(weight, active_rows)
        # codes of the matrix as rows, (O, I), of which those of heads that are off are left out
        codes = _codes((weight - mean) / (deviation + EPSILON), self._tables(weight)[1]).flatten(0, -2)
        chosen = codes if rows is None else codes[rows]
        stats = torch.stack([mean, deviation]).to(at_least_float32(weight))
        return Codes(pack_codes(chosen.flatten(), self.bits), stats)

    @torch.no_grad()
    def unpack(self, stored: Codes, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """The quantised matrix that was stored, exactly as a call gave it, `shape`, on the stored tensors' device.

        Raises:
            CheckpointError: if the number of codes does not fit the shape.
        """
        # rows of heads that are off are not in the file: `shape` is that of the rows which are
        codes = unpack_codes(stored.codes, self.bits, torch.Size(shape).numel()).view(shape)
        mean, deviation = stored.stats
        return _look_up(codes, self._tables(stored.stats)[0], stored.stats.dtype) * deviation + mean


class Coded:
    """One latent matrix of a module, as it is used and stored: while it trains, it is quantised at every use.

    Attributes:
        quantizer: what replaces the matrix by its values.
        stored: codes that were read from a file; the matrix then holds their values and is not quantised again.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.stored: Codes | None = None

    def value(self, latent: Tensor, active_rows: Tensor | None = None) -> Tensor:
        """The matrix as it is used, same shape; arguments as of `Quantizer.__call__`."""
        return latent if self.stored is not None else self.quantizer(latent, active_rows)

    def pack(
        self, latent: Tensor, prefix: str = "", active_rows: Tensor | None = None, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``codes`` and ``stats``, their names behind `prefix`; other arguments as of `Quantizer.pack`."""
        codes = self.stored or self.quantizer.pack(latent, active_rows, rows)
        return {f"{prefix}codes": codes.codes, f"{prefix}stats": codes.stats}

    def unpack(self, tensors: Mapping[str, Tensor], like: Tensor, prefix: str = "") -> Tensor:
        """The values of what `pack` stored, shaped as `like` and on its device; they stand from now on.

        Raises:
            CheckpointError: if the codes are of a matrix of another shape.
        """
        stored = Codes(*(tensors[prefix + part].to(like.device) for part in ("codes", "stats")))
        expected = {"codes": (self.quantizer.num_bytes(like.numel()),), "stats": (2,)}
        for part, shape in expected.items():
            given = tuple(getattr(stored, part).shape)
            if given != shape:
                raise CheckpointError(f"{prefix}{part} is {given} in the file, {shape} here")
        values = self.quantizer.unpack(stored, like.shape)
        self.stored = stored
        return values


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes (N,) of `bits` bits as bytes, (ceil(N * bits / 8),) uint8; the first code in the lowest bits.

    A last byte that is not full ends with zeros.
    """
    per_byte = 8 // bits
    codes = codes.to(torch.uint8)
    rest = -len(codes) % per_byte
    if rest:
        codes = torch.cat([codes, codes.new_zeros(rest)])
    shifts = torch.arange(per_byte, dtype=torch.uint8, device=codes.device) * bits  # (codes per byte,)
    return (codes.view(-1, per_byte) << shifts).sum(1, dtype=torch.uint8)


def unpack_codes(stored: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of `pack_codes`, (count,) uint8; CheckpointError for bytes of another number of codes."""
    per_byte = 8 // bits
    expected = -(-count // per_byte)
    if stored.dtype != torch.uint8 or stored.shape != (expected,):
        raise CheckpointError(
            f"{count} codes of {bits} bit(s) take {expected} bytes, got {tuple(stored.shape)} of {stored.dtype}"
        )
    shifts = torch.arange(per_byte, dtype=torch.uint8, device=stored.device) * bits
    return ((stored[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]

"""Frozen linear layers in 4 bits per weight, dequantised where used (QLoRA, Dettmers et al., arXiv:2305.14314).

NF4: the weights, row by row, are cut into blocks of 64; a block is divided by its largest magnitude, and every entry
replaced by the nearest of 16 values. Double quantisation keeps those magnitudes in 8 bits as well: less their mean, per
256 of them in units of the largest, as e4m3 floats.

Legend: I/O features, N = O * I weights, K = ceil(N / 64) blocks, S = ceil(K / 256) blocks of magnitudes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError, check_choice
from headwise.updates.quantize import pack_codes

VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a standard normal, made to reach from -1 to 1 and to hold an exact 0 (QLoRA, appendix E)."""
BLOCK = 64
SCALE_BLOCK = 256
KINDS = ("nf4", "bitsandbytes")
_LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Stored(NamedTuple):
    """A weight in storage.

    Attributes:
        codes: (K * 32,) uint8, two codes a byte, the first in the lower half; the last block is filled with zeros.
        scales: magnitudes of the blocks, (K,) float32; with double quantisation the bits of e4m3 floats, (K,) uint8.
        spread: (1 + S,) float32, the magnitudes' mean and the unit of each 256 of them; (0,) without.
    """

    codes: Tensor
    scales: Tensor
    spread: Tensor


@torch.no_grad()
def quantize(weight: Tensor, double: bool = True) -> Stored:
    """A weight, of any shape, as NF4; `double` quantises the blocks' magnitudes as well."""
    flat = weight.detach().float().flatten()
    # (K, 64): the last block is filled up with zeros, which have a code of their own
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    values = torch.tensor(VALUES, device=weight.device)
    thresholds = (values[1:] + values[:-1]) / 2
    # a block of zeros has no magnitude to divide by; its codes are those of 0 whatever the unit
    unit = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = torch.bucketize(blocks / unit[:, None], thresholds)
    packed = pack_codes(codes.flatten(), 4)
    if not double:
        return Stored(packed, scales, scales.new_empty(0))
    mean = scales.mean()
    # magnitudes are all positive: less their mean, (S, 256), they use the sign of the 8-bit float too
    rest = F.pad(scales - mean, (0, -len(scales) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    units = rest.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    small = (rest / units[:, None] * _LARGEST).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return Stored(packed, small.flatten()[: len(scales)].contiguous().view(torch.uint8), torch.cat([mean[None], units]))


def magnitudes(stored: Stored) -> Tensor:
    """Magnitude of every block as it is used, (K,) float32, at least 0."""
    if not stored.spread.numel():
        return stored.scales
    units = stored.spread[1:].repeat_interleave(SCALE_BLOCK)[: len(stored.scales)]
    rest = stored.scales.view(torch.float8_e4m3fn).float() / _LARGEST
    return (stored.spread[0] + rest * units).clamp_min(0.0)


def dequantize(stored: Stored, shape: torch.Size | tuple[int, ...], pairs: Tensor | None = None) -> Tensor:
    """The weight that a `Stored` stands for, `shape` float32; `pairs` are `value_pairs` on its device, if at hand."""
    pairs = value_pairs().to(stored.codes.device) if pairs is None else pairs
    # a byte looks both of its values up at once, (bytes, 2): one gather instead of two and a shift
    entries = pairs.index_select(0, stored.codes.int()).view(-1, BLOCK)
    flat = (entries * magnitudes(stored)[:, None]).flatten()
    return flat[: torch.Size(shape).numel()].view(shape)


def value_pairs() -> Tensor:
    """The two values that every byte of codes stands for, (256, 2) float32."""
    byte = torch.arange(256)
    return torch.tensor(VALUES)[torch.stack([byte & 15, byte >> 4], dim=1)]


class FourBit(nn.Module):
    """A frozen linear layer whose weight is held in 4 bits per entry; updates stand beside it, nothing folds in."""

    in_features: int
    out_features: int

    def dense(self) -> Tensor:
        """The weight as it is used, (O, I) float32."""
        raise NotImplementedError

    @property
    def num_bytes(self) -> int:
        """Bytes that the weight takes: codes, magnitudes; without the bias and the tables that all layers share."""
        raise NotImplementedError


class NF4Linear(FourBit):
    """y = W x + b, W dequantised anew in each direction, so that no dense weight outlives either."""

    codes: Tensor
    scales: Tensor
    spread: Tensor
    pairs: Tensor

    def __init__(self, linear: nn.Linear, double: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        for name, tensor in quantize(linear.weight, double)._asdict().items():
            self.register_buffer(name, tensor)
        self.register_buffer("pairs", value_pairs().to(linear.weight.device), persistent=False)
        self.bias = linear.bias
        self.train(linear.training)

    @property
    def stored(self) -> Stored:
        """The weight in storage."""
        return Stored(self.codes, self.scales, self.spread)

    def dense(self) -> Tensor:
        return dequantize(self.stored, (self.out_features, self.in_features), self.pairs)

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and magnitudes."""
        return sum(tensor.nbytes for tensor in self.stored)

    def forward(self, x: Tensor) -> Tensor:
        """Output (..., O) for x (..., I), in x's type, or autocast's where it is on."""
        return self.onto(x, None)

    def onto(self, x: Tensor, start: Tensor | None) -> Tensor:
        """The output added to `start`, (..., O), if that is given; the product comes last and is rounded with it."""
        x = _cast(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        start = None if start is None else start.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return _Product.apply(x, bias, start, *self.stored, self.pairs, self.out_features)


class _Product(torch.autograd.Function):
    """The product with a dequantised weight, which is made again for the gradient of x instead of being kept."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        start: Tensor | None,
        codes: Tensor,
        scales: Tensor,
        spread: Tensor,
        pairs: Tensor,
        num_rows: int,
    ) -> Tensor:
        # codes take an eighth of the dense weight, which is therefore made again in backward
        ctx.save_for_backward(codes, scales, spread, pairs)
        ctx.shape = (num_rows, x.shape[-1])
        weight = dequantize(Stored(codes, scales, spread), ctx.shape, pairs).to(x.dtype)
        if start is None:
            return F.linear(x, weight, bias)
        y = torch.addmm(start.reshape(-1, num_rows), x.reshape(-1, x.shape[-1]), weight.T)
        return (y if bias is None else y.add_(bias)).view(start.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        codes, scales, spread, pairs = ctx.saved_tensors
        x_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = grad @ dequantize(Stored(codes, scales, spread), ctx.shape, pairs).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            bias_grad = grad.flatten(0, -2).sum(0)
        start_grad = grad if ctx.needs_input_grad[2] else None
        return x_grad, bias_grad, start_grad, None, None, None, None, None


class BitsAndBytesLinear(FourBit):
    """The same by the bitsandbytes library, with its kernels where it has them; an optional package.

    Its functions are called, not its ``Linear4bit``, which repacks the weights for good when a CPU first evaluates it.
    """

    packed: Tensor

    def __init__(self, linear: nn.Linear, double: bool = True) -> None:
        """Quantise a layer; ConfigError if the package is not installed."""
        super().__init__()
        try:
            import bitsandbytes
        except ImportError as error:
            raise ConfigError(
                f"base=bitsandbytes needs that package ({error}): pip install bitsandbytes, or take base=nf4, "
                "the same 4-bit weights without it"
            ) from error
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed, self.state = bitsandbytes.functional.quantize_4bit(
            linear.weight.detach(), blocksize=BLOCK, compress_statistics=double, quant_type="nf4"
        )
        self.register_buffer("packed", packed)
        self.bias = linear.bias
        self._dense, self._product = bitsandbytes.functional.dequantize_4bit, bitsandbytes.matmul_4bit
        self.train(linear.training)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move as every module does; the library's magnitudes follow the codes."""
        super()._apply(fn, recurse)
        self.state.to(self.packed.device)
        return self

    def dense(self) -> Tensor:
        return self._dense(self.packed, self.state).float()

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and magnitudes."""
        state = self.state
        parts = [self.packed, state.absmax, state.offset, None if state.state2 is None else state.state2.absmax]
        return sum(part.nbytes for part in parts if part is not None)

    def forward(self, x: Tensor) -> Tensor:
        """Output (..., O) for x (..., I), in x's type, or autocast's where it is on."""
        x = _cast(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return self._product(x, self.packed, self.state, bias=bias)


def _cast(x: Tensor) -> Tensor:
    """x in autocast's type where that is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def four_bit(linear: nn.Linear, kind: str = "nf4", double: bool = True) -> FourBit:
    """A frozen linear in 4 bits that shares the bias, not the weight, of a layer.

    It is ``nf4``, made and multiplied here, or ``bitsandbytes``; with `double` the blocks' magnitudes are quantised as
    well. ConfigError for another kind, or one whose package is missing.
    """
    check_choice("4-bit base", kind, KINDS)
    return NF4Linear(linear, double) if kind == "nf4" else BitsAndBytesLinear(linear, double)

"""The fused function: its gradients, its agreement with plain operations, and small updates in bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headwise.updates import fused
from headwise.updates.fused import Block, Dense, lowrank_linear
from made_cases import each

N, INPUTS, OUTPUTS = 5, 6, 12
SHAPES = {  # (first row, G, O // G, R) of each block
    "lora": [(0, 1, 12, 2)],
    "heads": [(0, 4, 3, 2)],
    "part": [(4, 2, 2, 3)],
    "several": [(0, 1, 4, 3), (4, 2, 2, 1), (10, 1, 2, 2)],
}


def blocks_of(shapes: list[tuple[int, int, int, int]], dtype: torch.dtype, dropout: float = 0.0) -> list[Block]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    return [Block(row, draw(g, r, INPUTS), draw(g, o, r), dropout) for row, g, o, r in shapes]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, INPUTS, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator, dtype=dtype)
    return x, weight, torch.randn(OUTPUTS, generator=generator, dtype=dtype)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, blocks: list[Block], masks: list[Tensor | None]
) -> Tensor:
    """By einsum; masks are (G * R, N)."""
    y = F.linear(x, weight, bias)
    for block, mask in zip(blocks, masks, strict=True):
        hidden = torch.einsum("ni,gri->ngr", x, block.down)
        if mask is not None:
            hidden = hidden * mask.T.view(hidden.shape)
        update = torch.einsum("ngr,gor->ngo", hidden, block.up).flatten(1)
        y = y + F.pad(update, (block.first_row, OUTPUTS - block.first_row - update.shape[1]))
    return y


def factors(blocks: list[Block]) -> list[Tensor]:
    return [tensor for block in blocks for tensor in (block.down, block.up)]


@pytest.fixture
def fixed_masks(monkeypatch: pytest.MonkeyPatch) -> dict[torch.Size, Tensor]:
    """Every block of one shape gets one and the same mask, whenever it is drawn."""
    drawn: dict[torch.Size, Tensor] = {}
    draw = fused._hidden_mask

    def once(x: Tensor, block: Block) -> Tensor | None:
        return drawn.setdefault(block.up.shape, draw(x, block)) if block.dropout else None

    monkeypatch.setattr(fused, "_hidden_mask", once)
    return drawn


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients(name: str, dropout: float, fixed_masks: dict[torch.Size, Tensor]) -> None:
    blocks = blocks_of(SHAPES[name], torch.float64, dropout)
    x, weight, bias = inputs()

    def call(x: Tensor, bias: Tensor, *tensors: Tensor) -> Tensor:
        pairs = zip(blocks, tensors[0::2], tensors[1::2], strict=True)
        return lowrank_linear(x, weight, bias, [b._replace(down=down, up=up) for b, down, up in pairs])

    assert torch.autograd.gradcheck(call, (x, bias.requires_grad_(), *factors(blocks)))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_einsum(name: str, dropout: float, fixed_masks: dict[torch.Size, Tensor]) -> None:
    blocks = blocks_of(SHAPES[name], torch.float32, dropout)
    x, weight, bias = inputs(torch.float32)
    for given in (bias, None):
        y = lowrank_linear(x, weight, given, blocks)
        masks = [fixed_masks.get(block.up.shape) for block in blocks]
        expected = reference(x, weight, given, blocks, masks)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        g = torch.linspace(-1, 1, y.numel()).view_as(y)
        wanted = torch.autograd.grad(expected, [x, *factors(blocks)], g)
        for got, want in zip(torch.autograd.grad(y, [x, *factors(blocks)], g), wanted, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", [*SHAPES, None])
def test_a_row_scale_is_of_all_but_the_bias(
    name: str | None, dropout: float, fixed_masks: dict[torch.Size, Tensor]
) -> None:
    """Also where it is zero: what a row would be without it is kept, not divided out."""
    blocks = blocks_of(SHAPES[name] if name else [], torch.float64, dropout)
    x, weight, bias = inputs()
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(2, INPUTS, generator=generator, dtype=torch.float64).requires_grad_()
    start = torch.randn(N, OUTPUTS, generator=generator, dtype=torch.float64).requires_grad_()
    scale = torch.linspace(-1.0, 1.75, OUTPUTS, dtype=torch.float64).requires_grad_()
    assert 0.0 in scale

    def call(x: Tensor, bias: Tensor | None, scale: Tensor, dense: Tensor, start: Tensor, *tensors: Tensor) -> Tensor:
        pairs = zip(blocks, tensors[0::2], tensors[1::2], strict=True)
        given = [b._replace(down=down, up=up) for b, down, up in pairs]
        return lowrank_linear(x, weight, bias, given, [Dense(4, dense)], start, scale)

    tensors = (x, bias.requires_grad_(), scale, dense, start, *factors(blocks))
    unscaled = lowrank_linear(x, weight, None, blocks, [Dense(4, dense)], start)
    for given in (bias, None):
        expected = unscaled * scale + (0.0 if given is None else given)
        torch.testing.assert_close(call(x, given, scale, dense, start, *factors(blocks)), expected)
    assert torch.autograd.gradcheck(call, tensors)
    torch.testing.assert_close(lowrank_linear(x, weight, bias, [], scale=scale), F.linear(x, weight) * scale + bias)


def test_agrees_with_the_dense_update() -> None:
    blocks = blocks_of(SHAPES["several"], torch.float64)
    x, weight, bias = inputs()
    dense = weight.clone()
    for block in blocks:
        update = torch.bmm(block.up, block.down).flatten(0, 1).detach()
        dense[block.first_row : block.first_row + len(update)] += update
    torch.testing.assert_close(lowrank_linear(x, weight, bias, blocks), F.linear(x, dense, bias))


def test_leading_axes_are_kept() -> None:
    blocks = blocks_of(SHAPES["heads"], torch.float64)
    x, weight, bias = inputs()
    stacked = x.detach().view(1, N, INPUTS).expand(3, N, INPUTS)
    y = lowrank_linear(stacked, weight, bias, blocks)
    assert y.shape == (3, N, OUTPUTS)
    torch.testing.assert_close(y[2], lowrank_linear(x, weight, bias, blocks))


def test_without_updates_it_is_the_linear_itself() -> None:
    x, weight, bias = inputs(torch.float32)
    assert torch.equal(lowrank_linear(x, weight, bias, []), F.linear(x, weight, bias))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_weight_that_trains_gets_its_gradient(dropout: float, fixed_masks: dict[torch.Size, Tensor]) -> None:
    blocks = blocks_of(SHAPES["several"], torch.float64)
    x, weight, bias = inputs()
    weight.requires_grad_()
    y = lowrank_linear(x, weight, bias, blocks)
    expected = reference(x, weight, bias, blocks, [None] * 3)
    torch.testing.assert_close(y, expected)
    (got,) = torch.autograd.grad(y.square().sum(), weight)
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), weight)[0])


def test_a_frozen_weight_gets_none() -> None:
    blocks = blocks_of(SHAPES["lora"], torch.float64)
    x, weight, bias = inputs()
    lowrank_linear(x, weight, bias, blocks).sum().backward()
    assert weight.grad is None
    assert bias.grad is None
    assert x.grad is not None


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    (block,) = blocks_of(SHAPES["lora"], torch.float32)
    x, weight, _ = inputs(torch.float32)
    many = x.detach()[:1].expand(20_000, INPUTS)
    dropped = lowrank_linear(many, weight, None, [block._replace(dropout=0.5)]).detach()
    assert dropped.std(0).min() > 0
    kept = lowrank_linear(many[:1], weight, None, [block])
    torch.testing.assert_close(dropped.mean(0, keepdim=True), kept.detach(), atol=0.1, rtol=0.0)


def wide_inputs() -> tuple[Tensor, Tensor, Tensor, Block]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 128, generator=generator)
    weight = torch.randn(128, 128, generator=generator) / 128**0.5
    bias = torch.randn(128, generator=generator)
    down = torch.randn(1, 8, 128, generator=generator) / 128**0.5
    return x, weight, bias, Block(0, down, torch.randn(1, 128, 8, generator=generator) / 8**0.5)


@each("exponent", [-6, -8, -10])
def test_small_updates_do_not_vanish_in_bfloat16(exponent: int) -> None:
    """The output moves, on average over many entries, by as much as the update says, though below one rounding."""
    x, weight, bias, block = wide_inputs()
    block = block._replace(up=block.up * 2.0**exponent)
    wanted = F.linear(F.linear(x, block.down[0]), block.up[0])
    with torch.autocast("cpu", torch.bfloat16):
        updated = lowrank_linear(x, weight, bias, [block])
        base = lowrank_linear(x, weight, bias, [block._replace(up=torch.zeros_like(block.up))])
    assert updated.dtype == torch.bfloat16
    assert not torch.equal(updated, base)
    transmitted = ((updated - base).double() * wanted).sum() / wanted.square().sum()
    assert 0.8 < transmitted < 1.2


class LargeOutputs(TorchDispatchMode):
    """Names of the operations that make or write a tensor of one shape; views do neither."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.names = shape, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.shape == self.shape and not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return made


@each("groups", [1, 4])
def test_in_narrow_types_an_update_costs_no_pass_over_the_output(groups: int) -> None:
    """One product makes the (N, O) output, update and bias in it, and one the gradients of x and of the hidden."""
    x, weight, bias, block = wide_inputs()
    down, up = block.down.expand(groups, -1, -1).contiguous(), block.up.view(groups, 128 // groups, 8)
    block = Block(128, down.requires_grad_(), up.requires_grad_())
    weight, bias = torch.cat([weight, weight, weight]), torch.cat([bias, bias, bias])
    x = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), LargeOutputs((256, 384)) as seen:
        y = lowrank_linear(x, weight, bias, [block])
    assert seen.names == ["addmm"]
    hidden = -(-groups * 8 // fused._TILE) * fused._TILE
    with LargeOutputs((256, 128 + hidden)) as seen:
        y.backward(torch.ones_like(y))
    assert seen.names == ["mm"]


def test_autocast_agrees_with_single_precision() -> None:
    x, weight, bias, block = wide_inputs()
    heads = Block(0, block.down.expand(4, -1, -1).contiguous(), block.up.view(4, 32, 8).contiguous())
    for given in ([block], [heads]):
        tensors = [x.requires_grad_(), *(t.requires_grad_() for t in (given[0].down, given[0].up))]
        exact = lowrank_linear(x, weight, bias, given)
        with torch.autocast("cpu", torch.bfloat16):
            rough = lowrank_linear(x, weight, bias, given)
        torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.03)
        g = torch.ones_like(exact)
        wanted = torch.autograd.grad(exact, tensors, g)
        for got, want in zip(torch.autograd.grad(rough, tensors, g.bfloat16()), wanted, strict=True):
            assert got.dtype == torch.float32
            assert (got - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("shapes", ["part", None])
def test_dense_updates_and_a_start(
    shapes: str | None, dropout: float, dtype: torch.dtype, fixed_masks: dict[torch.Size, Tensor]
) -> None:
    """Beside blocks and alone, exactly in double; in bfloat16 about so."""
    blocks = blocks_of(SHAPES[shapes] if shapes else [], torch.float64, dropout)
    x, weight, bias = inputs()
    generator = torch.Generator().manual_seed(2)
    dense = [torch.randn(4, INPUTS, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    start = torch.randn(N, OUTPUTS, generator=generator, dtype=torch.float64).requires_grad_()
    tensors = [x, start, *dense, *factors(blocks)]

    def call(x: Tensor, start: Tensor, first: Tensor, last: Tensor, *tensors: Tensor) -> Tensor:
        pairs = zip(blocks, tensors[0::2], tensors[1::2], strict=True)
        given = [b._replace(down=down, up=up) for b, down, up in pairs]
        base = weight.to(x.dtype), bias.to(x.dtype)
        return lowrank_linear(x, *base, given, [Dense(0, first), Dense(8, last)], start)

    y = call(*(tensor.to(dtype) for tensor in tensors))
    assert y.dtype == dtype
    added = torch.cat([dense[0], torch.zeros_like(dense[0]), dense[1]])
    masks = [fixed_masks.get(block.up.shape) for block in blocks]
    expected = reference(x, weight + added, bias, blocks, [m if m is None else m.double() for m in masks]) + start
    narrow = {} if dtype == torch.float64 else {"atol": 0.3, "rtol": 0.02}
    torch.testing.assert_close(y.double(), expected, **narrow)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(call, tensors)

"""Wrappers: the one mechanism for what is not an update of one weight (adapters, prompts, scale and shift).

A wrapper stands where one of timm's modules was, at a path such as ``blocks.3.mlp``, and holds that module as `inner`.
Tensor names of the inner module stay what they were, so pretrained weights still load. Only the parts that a wrapper
adds train; they are what its method owns.

Legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.updates.noise import Noise
from headwise.wrappers.settling import Settling

BLOCKS = {
    **dict.fromkeys(("Block", "EvaBlock", "SwinTransformerBlock"), True),
    **dict.fromkeys(("ResPostBlock", "EvaBlockPostNorm", "SwinTransformerV2Block"), False),
}
"""Classes of timm's blocks whose two halves are known: attention first, then the MLP, each on a residual. Whether the
norm stands before each (True) or behind it."""
SCALES = {"1": ("ls1", "gamma_1"), "2": ("ls2", "gamma_2")}
"""Layer scales of the two halves: a module, or a parameter."""


class Wrapper(Settling):
    """A module around one of the network's own; subclasses add parts and define `forward`, or of a block its halves.

    Attributes:
        inner: the network's module, frozen.
        disturbable: whether what its parts add goes through `disturbed`.
        noise: on what its parts add, while a training step runs that asks for it; else None.
    """

    theirs = "inner"
    disturbable: ClassVar[bool] = False
    noise: Noise | None = None

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_state_dict_post_hook(_hide_inner)
        self.register_load_state_dict_pre_hook(_show_inner)

    def merged(self) -> nn.Module | None:
        """The network's module with the wrapper folded in, or None where it cannot be folded."""
        return None

    def disturbed(self, change: Tensor) -> Tensor:
        """What a part adds, (B, ..., C), with the noise; as it is where there is none, and in evaluation mode."""
        return change if self.noise is None or not self.training else self.noise(change)

    def enter(self, x: Tensor) -> Tensor:
        """What the inner module reads in place of x: the same, unless tokens are put in or taken out."""
        return x

    def attend(self, x: Tensor, **beside: Any) -> Tensor:
        """The first half of a block: x plus its attention branch; arguments as of the function `attend`."""
        return attend(self.inner, x, **beside)

    def feed(self, x: Tensor) -> Tensor:
        """What the second half of a block adds to x."""
        return feed(self.inner, x)

    def forward(self, *args: Any, **beside: Any) -> Tensor:
        """Output of a block, same shape as its one input; `beside` is what the block takes beside that."""
        x = self.attend(*args, **beside)
        return x + self.feed(x)


class Corrected(Wrapper):
    """A wrapper of one part, whose change of what comes out or goes in noise may disturb."""

    disturbable = True

    def __init__(self, inner: nn.Module, part: nn.Module) -> None:
        super().__init__(inner)
        self.part = part


class After(Corrected):
    """y + part(y) with y the inner module's output."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Output of the inner module, (..., C), corrected."""
        y: Tensor = self.inner(*args, **kwargs)
        return y + self.disturbed(self.part(y))


class Beside(Corrected):
    """A block with a part beside its MLP: x + MLP branch(x) + part(x), x without LayerNorm, outside drop-path."""

    def feed(self, x: Tensor) -> Tensor:
        """What the second half adds, and the part's share."""
        return feed(self.inner, x) + self.disturbed(self.part(x))


class Between(Corrected):
    """A block with a part between its halves: the second half reads y + part(y), y what the first one gives."""

    def attend(self, x: Tensor, **beside: Any) -> Tensor:
        """The block's first half, corrected."""
        y = attend(self.inner, x, **beside)
        return y + self.disturbed(self.part(y))


class AfterBlock(After):
    """y + part(y) with y the output of a block, after its last residual."""

    def feed(self, x: Tensor) -> Tensor:
        """What the second half adds, and the part's correction of the sum."""
        y = feed(self.inner, x)
        return y + self.disturbed(self.part(x + y))


def attend(block: nn.Module, x: Tensor, **beside: Any) -> Tensor:
    """First half of a block of timm's, or of a wrapper of it: x plus its attention branch.

    x is tokens, (B, T, C), or a grid, (B, H, W, C); `beside` is what the block takes beside it: rotary positions, a
    bias of the scores.
    """
    own: Any = block
    if isinstance(block, Wrapper):
        return own.attend(x, **beside)
    # Swin's block cuts its windows in `_attn`, (B, H, W, C); a ViT's attention takes the sequence (B, T, C)
    attention = own._attn if hasattr(own, "_attn") else own.attn
    y = attention(read_by_attention(block, x), **beside)
    return x + own.drop_path1(_ended(block, y, "1"))


def feed(block: nn.Module, x: Tensor) -> Tensor:
    """What the second half of a block adds to x: its MLP branch."""
    own: Any = block
    if isinstance(block, Wrapper):
        return own.feed(x)
    return own.drop_path2(_ended(block, own.mlp(read_by_mlp(block, x)), "2"))


def read_by_attention(block: nn.Module, x: Tensor) -> Tensor:
    """What the attention of the network's own block reads of x."""
    own: Any = block
    return own.norm1(x) if BLOCKS[type(block).__name__] else x


def read_by_mlp(block: nn.Module, x: Tensor) -> Tensor:
    """What the MLP of the network's own block reads of x."""
    own: Any = block
    return own.norm2(x) if BLOCKS[type(block).__name__] else x


def _ended(block: nn.Module, y: Tensor, half: str) -> Tensor:
    """What a branch does with y behind its attention or MLP: the norm if it stands there, the layer scale."""
    own: Any = block
    y = y if BLOCKS[type(block).__name__] else getattr(own, f"norm{half}")(y)
    for name in SCALES[half]:
        if isinstance(scale := getattr(own, name, None), nn.Module):
            y = scale(y)
        elif scale is not None:
            y = scale * y
    return y


def entered(block: nn.Module, x: Tensor) -> Tensor:
    """What the network's own block reads where its wrappers get x: the sequence with their prompts."""
    while isinstance(block, Wrapper):
        x, block = block.enter(x), block.inner
    return x


def unwrapped(module: nn.Module) -> nn.Module:
    """The network's own module below any wrappers."""
    while isinstance(module, Wrapper):
        module = module.inner
    return module


def check_block(block: nn.Module) -> None:
    """Refuse a block whose halves are unknown; ConfigError naming the class."""
    name = type(unwrapped(block)).__name__
    if name not in BLOCKS:
        raise ConfigError(f"blocks of class {name} have no known halves to adapt; allowed: timm's {', '.join(BLOCKS)}")


def through(model: nn.Module, path: str) -> str:
    """The path of a module of the pretrained network at this moment: `path` with ``inner`` where wrappers stand."""
    module, names = model, []
    for name in path.split("."):
        while isinstance(module, Wrapper):
            module = module.inner
            names.append("inner")
        module = module.get_submodule(name) if hasattr(module, name) else module
        names.append(name)
    return ".".join(names)


def wrappers(model: nn.Module) -> list[tuple[str, Wrapper]]:
    """(path, wrapper), inner ones before those around them."""
    # inner ones first, so that folding one leaves a plain module for the one around it
    outer_first = [(path, module) for path, module in model.named_modules() if isinstance(module, Wrapper)]
    return outer_first[::-1]


def pretrained_modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(path at this moment, pretrained path, module) of the network's own modules, the model itself first.

    What methods brought is left out: wrappers and their parts, and updates that stay beside a layer.
    """
    settling = {path: module for path, module in model.named_modules() if isinstance(module, Settling)}
    theirs = {f"{path}.{module.theirs}" for path, module in settling.items()}
    for path, module in model.named_modules():
        names = path.split(".")
        within = [(".".join(names[:end]), ".".join(names[: end + 1])) for end in range(1, len(names))]
        if path not in settling and all(child in theirs for outer, child in within if outer in settling):
            ends = [".".join(names[: end + 1]) for end in range(len(names))]
            yield path, ".".join(name for name, end in zip(names, ends, strict=True) if end not in theirs), module


def pretrained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The network's own parameters by their path at this moment, as ``named_parameters`` orders and names them."""
    own = {id(p) for _, _, module in pretrained_modules(model) for p in module.parameters(recurse=False)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}


@torch.no_grad()
def with_affine(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A copy of a linear, convolution or norm with other values, frozen."""
    # a copy keeps what else the module holds, such as the stride of a convolution or the eps of a norm
    plain: Any = copy.deepcopy(module)
    plain.weight = nn.Parameter(weight.detach().to(plain.weight.dtype).clone(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to(plain.weight.dtype).clone(), requires_grad=False)
    return plain


def _hide_inner(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """Name the inner module's tensors as if it were not wrapped."""
    for key in [key for key in state if key.startswith(f"{prefix}inner.")]:
        state[prefix + key[len(prefix) + len("inner.") :]] = state.pop(key)


def _show_inner(
    module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
) -> None:
    """The reverse of `_hide_inner`, before loading."""
    # whatever is no part of the wrapper itself was named as if there were no wrapper
    own = {name.partition(".")[0] for name, _ in module.named_parameters()} | dict(module.named_children()).keys()
    own |= {name.partition(".")[0] for name, _ in module.named_buffers()}
    for key in [key for key in state if key.startswith(prefix)]:
        if key[len(prefix) :].partition(".")[0] not in own:
            state[f"{prefix}inner.{key[len(prefix) :]}"] = state.pop(key)

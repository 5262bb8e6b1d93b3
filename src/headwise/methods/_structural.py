"""What the methods that insert modules share: wrapping by pretrained path, and one Installed over the new parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from headwise.errors import ConfigError
from headwise.methods.base import Installed, Method
from headwise.network.backbone import Backbone
from headwise.network.nf4 import FourBit
from headwise.updates.adapted import AdaptedLinear, Delta
from headwise.updates.fused import at_least_float32
from headwise.updates.sites import Site
from headwise.wrappers.settling import BesideLinear
from headwise.wrappers.wrapping import Beside, Wrapper, check_block, through


def place(net: Backbone, path: str, factory: Callable[[nn.Module], Wrapper]) -> Wrapper:
    """Wrap the module that the pretrained network has at `path`, on the network's device, of its type and in its mode.

    Parts are of at least float32.
    """
    # the path is that of the pretrained network; wrappers of earlier phases stand in between
    wrapper: Any = net.wrap(through(net.model, path), factory)
    like = next(net.parameters())
    for name, child in wrapper.named_children():
        if name != wrapper.theirs:
            # beside a network in a narrow type too, or the steps of training would round away
            child.to(like.device, at_least_float32(like))
    wrapper.train(net.training)
    return wrapper


def put_beside(
    net: Backbone, deltas: Mapping[Site, Delta], kind: Callable[[nn.Module, Delta], nn.Module] = BesideLinear
) -> Installed:
    """Let updates stay beside their projections: what they add is not linear, so nothing can be merged.

    Raises:
        ConfigError: if a projection still carries another update.
    """
    for site, delta in deltas.items():
        module = net.linear(site)
        if isinstance(module, AdaptedLinear):
            raise ConfigError(f"{site.key} already carries a delta; merge it before installing another")
        like = next(net.parameters())
        net.replace(site, kind(module, delta.to(like.device, at_least_float32(like))).train(net.training))
    return install_parts(net, {site.key: delta for site, delta in deltas.items()})


def plain_linear(net: Backbone, site: Site) -> Any:
    """The projection itself, below updates that earlier phases left beside it."""
    module: Any = net.linear(site)
    while isinstance(module, BesideLinear):
        module = module.module
    return module


def put_within(net: Backbone, site: Site, delta: Delta) -> None:
    """Let a projection carry an update that merges, below what earlier phases left; ConfigError if it has another."""
    adapted = AdaptedLinear.around(plain_linear(net, site), delta)
    outer = net.linear(site)
    if not isinstance(outer, BesideLinear):
        net.replace(site, adapted)
        return
    while isinstance(outer.module, BesideLinear):
        outer = outer.module
    outer.module = adapted


def blocks(net: Backbone) -> Iterator[tuple[str, str, nn.Module]]:
    """(key, pretrained path, block now there) of every block: ``("s0.b3", "blocks.3", ...)``."""
    for stage, block, path in net.blocks:
        yield f"s{stage}.b{block}", path, net.model.get_submodule(path)


def install_parts(net: Backbone, parts: Mapping[str, nn.Module]) -> Installed:
    """Let `parts` and the head train, freeze everything else."""
    installed = Installed(net, parts)
    installed.freeze_rest()
    return installed


def beside_mlps(net: Backbone, key: str, make: Callable[[int], nn.Module]) -> dict[str, nn.Module]:
    """Put ``make(C)`` beside the MLP of every block, outside drop-path; the parts by owner, ``s0.b3.<key>``.

    Raises:
        ConfigError: for blocks whose halves are unknown.
    """
    parts = {}
    for block_key, path, block in blocks(net):
        check_block(block)
        part = make(width_of(net, block_key))
        parts[f"{block_key}.{key}"] = part
        # around whole blocks: beside the MLP alone the part would see LayerNorm's output and drop-path
        place(net, path, functools.partial(Beside, part=part))
    return parts


def width_of(net: Backbone, stage_key: str) -> int:
    """Channels of a block, read from its output projection."""
    return next(site.num_rows for site in net.sites if site.proj == "o" and site.key.startswith(f"{stage_key}."))


def per_block(net: Backbone, cost: Callable[[int], int]) -> int:
    """Sum of ``cost(C)`` over the blocks, C the channels of each."""
    return sum(cost(width_of(net, key)) for key, _, _ in blocks(net))


def is_vit(net: Backbone) -> bool:
    """Whether tokens are one sequence (B, T, C) of prefix and patches, as in timm's ViT."""
    return hasattr(net.model, "num_prefix_tokens") and hasattr(net.model, "blocks")


def require_vit(net: Backbone, method: Method) -> None:
    """Refuse other networks; ConfigError naming the network's class."""
    if not is_vit(net):
        raise ConfigError(
            f"method {method.label!r} is defined for networks with one token sequence (ViT), "
            f"got {type(net.model).__name__}; allowed: backbones of the ViT family"
        )


def require_plain_positions(net: Backbone, method: Method) -> None:
    """Refuse networks whose attention knows a token's place, where one more has none; ConfigError naming the class."""
    model: Any = net.model
    biased = any(getattr(module, "relative_position_bias_table", None) is not None for module in model.modules())
    if is_vit(net) and (biased or getattr(model, "rope", None) is not None):
        kind = "a bias of relative positions" if biased else "rotary positions"
        raise ConfigError(
            f"method {method.label!r} is defined for networks with positions that are added to the tokens, got "
            f"{type(model).__name__} with {kind}; allowed: backbones of timm's VisionTransformer, such as DINOv2's"
        )


def refuse_four_bits(net: Backbone, method: Method) -> None:
    """Refuse a network that an earlier phase holds in 4 bits, to whom needs its weights; ConfigError naming a layer."""
    for path, module in net.model.named_modules():
        if isinstance(module, FourBit):
            raise ConfigError(
                f"method {method.label!r} needs the network's own weights, and {path} is held in 4 bits; allowed "
                "is what stands beside them: head_lora, lora, adapters, prompts"
            )


def by_block(net: Backbone, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, nn.Parameter]]:
    """Parameters by ``s0.b3``, or ``net`` outside blocks, under their names from there on."""
    # with the dot, or blocks.1 would hold the parameters of blocks.10 as well
    paths = {f"{path}.": f"s{stage}.b{block}" for stage, block, path in net.blocks}
    by_block: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        prefix = next((path for path in paths if name.startswith(path)), "")
        by_block.setdefault(paths.get(prefix, "net"), {})[name[len(prefix) :]] = parameter
    return by_block

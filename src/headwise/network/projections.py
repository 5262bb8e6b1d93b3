"""The projections of a block of timm's: q, k and v are taken apart where timm has them together, and put back.

timm holds them in one of three ways (`LAYOUTS`), after which a network's weights are named. An attention that adds its
biases itself multiplies by the weight and never calls the module; without them it calls it, so they move into q and v.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from timm.models import beit, eva, swin_transformer, swin_transformer_v2, vision_transformer
from torch import Tensor, nn

from headwise.errors import CheckpointError, ConfigError
from headwise.network.catalog import ALLOWED as ALLOWED
from headwise.updates.qkv import SplitQKV
from headwise.updates.sites import QKV, Site

LAYOUTS = ("fused", "beside", "apart")
"""One linear; one without bias and biases of q and v beside it; three linears."""
ADDS_BIAS = (eva.EvaAttention, beit.Attention, swin_transformer_v2.WindowAttention)
"""Attentions that call their qkv once they have no biases of their own to add."""


def stages_of(model: nn.Module) -> list[list[nn.Module]]:
    """Blocks by stage: one stage for a ViT, four for a Swin; ConfigError for a network without blocks."""
    network: Any = model
    if isinstance(model, vision_transformer.VisionTransformer):
        return [list(network.blocks)]
    if isinstance(model, swin_transformer.SwinTransformer | swin_transformer_v2.SwinTransformerV2):
        return [list(layer.blocks) for layer in network.layers]
    # other families that are built alike are tried too: `places` refuses what does not fit
    if hasattr(network, "blocks"):
        return [list(network.blocks)]
    if hasattr(network, "layers") and all(hasattr(layer, "blocks") for layer in network.layers):
        return [list(layer.blocks) for layer in network.layers]
    raise ConfigError(f"{type(model).__name__} has neither blocks nor layers of them; {ALLOWED}")


def places(model: nn.Module, stage: int, index: int, block: nn.Module) -> Iterator[tuple[Site, nn.Module, str]]:
    """The sites of a block, each with the module that holds it and its name there; q, k and v are taken apart.

    Raises:
        ConfigError: for a block or an attention that cannot be adapted.
    """
    attention: Any = getattr(block, "attn", None)
    mlp: Any = getattr(block, "mlp", None)
    if attention is None or mlp is None:
        raise ConfigError(
            f"{type(model).__name__} has blocks of {type(block).__name__}, not of one attention and one mlp; {ALLOWED}"
        )
    qkv = take_apart(attention)
    width, heads = qkv.q.weight.shape[0], attention.num_heads  # type: ignore[union-attr,index]
    for proj in QKV:
        yield Site(stage, index, proj, heads, width // heads), qkv, proj
    for proj, owner, attribute in (("o", attention, "proj"), ("fc1", mlp, "fc1"), ("fc2", mlp, "fc2")):
        linear = getattr(owner, attribute, None)
        if not isinstance(linear, nn.Linear):
            continue
        # o reads the heads' outputs side by side, (B, T, H * head_dim): its columns divide into heads
        if proj == "o" and linear.weight.shape == (width, width):
            yield Site(stage, index, proj, heads, width // heads, "input"), owner, attribute
        else:
            yield Site(stage, index, proj, 1, linear.out_features, None), owner, attribute


def take_apart(attention: Any) -> SplitQKV:
    """Put a `SplitQKV` in the place of an attention's projections of q, k and v.

    Raises:
        ConfigError: for an attention whose projections are none of `LAYOUTS`, are not called, or do not divide into
            heads.
    """
    name = type(attention).__name__
    fused: Any = getattr(attention, "qkv", None)
    three: list[Any] = [getattr(attention, f"{proj}_proj", None) for proj in QKV]
    if not isinstance(fused, nn.Linear) and not all(isinstance(linear, nn.Linear) for linear in three):
        raise ConfigError(f"attention {name} has no projections of q, k and v to adapt; {ALLOWED}")
    # such code multiplies by the weight and never calls the module, so that an adapted linear would not be seen
    if not isinstance(attention, ADDS_BIAS) and "qkv.weight" in inspect.getsource(type(attention)):
        raise ConfigError(
            f"attention {name} reads .qkv.weight itself, so an adapted projection would be ignored; {ALLOWED}"
        )
    rows = [fused.out_features / 3] * 3 if isinstance(fused, nn.Linear) else [linear.out_features for linear in three]
    heads = getattr(attention, "num_heads", None)
    if not isinstance(heads, int) or len(set(rows)) > 1 or rows[0] % heads:
        raise ConfigError(f"attention {name} does not divide q, k and v into the same heads; {ALLOWED}")
    if not isinstance(fused, nn.Linear):
        split = SplitQKV.of([(linear.weight, linear.bias) for linear in three], "apart")
        for proj in QKV:
            # with a qkv in place timm's code calls that, and never these
            setattr(attention, f"{proj}_proj", None)
    elif getattr(attention, "q_bias", None) is not None:
        weights = fused.weight.chunk(3)
        split = SplitQKV.of(list(zip(weights, (attention.q_bias, None, attention.v_bias), strict=True)), "beside")
        attention.q_bias = attention.k_bias = attention.v_bias = None
    else:
        split = SplitQKV(fused)
    attention.qkv = split
    return split


def put_back(model: nn.Module) -> None:
    """Give every attention modules as timm's again; their values are still to be loaded."""
    for name, split in [(name, module) for name, module in model.named_modules() if isinstance(module, SplitQKV)]:
        attention: Any = model.get_submodule(name.rpartition(".")[0])
        q, k, v = split.parts
        like: dict[str, Any] = {"device": q.weight.device, "dtype": q.weight.dtype}
        width, inputs = q.weight.shape  # type: ignore[misc]
        if split.layout == "apart":
            for proj, part in zip(QKV, (q, k, v), strict=True):
                linear = nn.Linear(inputs, width, part.bias is not None, **like)
                setattr(attention, f"{proj}_proj", linear)
            attention.qkv = None
            continue
        attention.qkv = nn.Linear(inputs, 3 * width, split.layout == "fused" and q.bias is not None, **like)
        if split.layout == "beside":
            attention.q_bias, attention.v_bias = (nn.Parameter(torch.zeros(width, **like)) for _ in "qv")
            attention.register_buffer("k_bias", torch.zeros(width, **like), persistent=False)


def exported(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's tensors under timm's own names; CheckpointError where a bias has no place there."""
    splits = {name: module for name, module in model.named_modules() if isinstance(module, SplitQKV)}
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        attention, _, tail = key.rpartition(".qkv.")
        if (split := splits.pop(f"{attention}.qkv", None)) is not None:
            state |= {f"{attention}.{name}": value for name, value in _named(split, attention).items()}
        elif not (tail.partition(".")[0] in QKV and attention):
            state[key] = tensor.clone()
    return state


def _named(split: SplitQKV, attention: str) -> dict[str, Tensor]:
    """The tensors of q, k and v by timm's names below the attention."""
    parts: tuple[Any, ...] = split.parts
    weights, biases = [part.weight for part in parts], [part.bias for part in parts]
    named: dict[str, Any]
    if split.layout == "apart":
        both = {"weight": weights, "bias": biases}
        named = {f"{p}_proj.{kind}": values[i] for i, p in enumerate(QKV) for kind, values in both.items()}
    elif split.layout == "beside":
        if biases[1] is not None:
            raise CheckpointError(f"{attention}.qkv.k has a bias, for which timm's network has no place")
        named = {"q_bias": biases[0], "v_bias": biases[2], "qkv.weight": torch.cat(weights)}
    else:
        named = {"qkv.weight": torch.cat(weights), "qkv.bias": None if biases[0] is None else torch.cat(biases)}
    return {name: value.detach().clone() for name, value in named.items() if value is not None}

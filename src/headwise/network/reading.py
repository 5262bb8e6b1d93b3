"""Weights files read into timm's networks: what a file holds is compared with the network before anything is resampled.

No pickle is ever run. Names of other libraries are in `headwise.network.layouts`.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import vision_transformer
from torch import Tensor, nn

from headwise.errors import WeightsError, damage
from headwise.network.layouts import BUFFERS, HEADS, timm_names, unwrapped

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
GOOGLE = ("", "opt/target/", "params/", "params/img/")
"""What may stand before the names of Google's ViT checkpoints."""


def load_weights(model: nn.Module, file: Path) -> list[str]:
    """Load a file into a network of timm's without classifier; position embeddings are resampled, nothing else is.

    Returns:
        What was taken off, left out or renamed, one line each.

    Raises:
        WeightsError: if the file cannot be read, holds no weights, or those of another architecture.
    """
    if file.suffix == ".npz":
        _fill(model, _google(file, model), file.name)
        return []
    tensors, taken = unwrapped(_content(file), file.name)
    state, notes = timm_names(tensors, file.name)
    _fill(model, state, file.name)
    return [*taken, *notes]


def _content(file: Path) -> Any:
    """What a .safetensors or torch file holds. ``argparse.Namespace`` is plain data, which old recipes saved along."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(file))
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if stranger := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"{file.name} cannot be read as weights: it also holds a {stranger[1]}, and loading anything but "
                "tensors and plain data could run code; where you trust the file, write its tensors alone: "
                "torch.save(state_dict, NEW)"
            ) from error
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{file.name} cannot be read as weights ({damage(error)}); is the download complete?")


def _google(file: Path, model: nn.Module) -> dict[str, Tensor]:
    """Google's ViT layout, by timm's own reader into a network whose shapes the file has."""
    if not isinstance(model, vision_transformer.VisionTransformer):
        kind = type(model).__name__
        raise WeightsError(f"{file.name}: .npz weights are in Google's ViT layout, the backbone is {kind}")
    try:
        held = _arrays(file)
    except Exception as error:
        raise _unreadable(file, error) from error
    # shapes are compared first: timm's reader resamples and broadcasts where they differ, without a word
    _check_google(held, model, file.name)
    try:
        model.load_pretrained(str(file))
    except Exception as error:
        raise _unreadable(file, error) from error
    return {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("head.")}


def _arrays(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of every array of a .npz file; their values are not read."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    held = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            with archive.open(member) as stream:
                shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
            held[member.removesuffix(".npy")] = (shape, dtype)
    return held


def _check_google(held: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], model: nn.Module, name: str) -> None:
    """Compare a file's own shapes with the network: timm would resample or broadcast what differs."""
    prefix = next((prefix for prefix in GOOGLE if f"{prefix}embedding/kernel" in held), None)
    if prefix is None:
        raise WeightsError(
            f"{name} is not in Google's ViT layout: it lacks embedding/kernel and holds {', '.join(list(held)[:4])}"
        )
    for key, (_, dtype) in sorted(held.items()):
        if dtype.kind not in "fV":  # V: bfloat16 as Big Vision stores it
            raise WeightsError(f"{name}: {key} holds {dtype} values; weights are floating point numbers")
    blocks = sorted({int(number[1]) for key in held if (number := re.search(r"encoderblock_(\d+)/", key))})
    stacked = next((shape[0] for key, (shape, _) in held.items() if "/encoderblock/" in key), None)
    network: Any = model
    depth = len(network.blocks)
    if (num_blocks := len(blocks) if stacked is None else stacked) != depth:
        raise WeightsError(f"{name} is of another architecture: it has {num_blocks} blocks, the backbone has {depth}")
    for key, wanted in _google_shapes(model).items():
        there = [(other, shape) for other, (shape, _) in sorted(held.items()) if re.fullmatch(prefix + key, other)]
        if not there:
            readable = re.sub(r"\(\?:|\)\??", "", key.replace(r"\d+", "N"))
            raise WeightsError(f"{name} is of another architecture: it lacks {prefix}{readable}")
        for other, shape in there:
            given = shape[1:] if "/encoderblock/" in other else shape
            if given != wanted:
                raise WeightsError(f"{name} is of another architecture: {other} is {given}, the backbone has {wanted}")
    for key, (shape, _) in held.items():
        if key.endswith(("posembed_input/pos_embedding", "/pos_embedding")) or key == "pos_embedding":
            _check_positions(key, shape, network.pos_embed, model, name)


def _google_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Patterns of names in Google's layout and the shape that the network asks for, blocks stacked or not."""
    network: Any = model
    block = network.blocks[0]
    width, channels, *patch = network.patch_embed.proj.weight.shape
    heads = block.attn.num_heads
    size = block.attn.qkv.out_features // (3 * heads)
    hidden = block.mlp.fc1.out_features
    here = r"Transformer/encoderblock(?:_\d+)?/"
    attention, mlp = here + r"MultiHeadDotProductAttention_\d+/", here + r"MlpBlock_\d+/"
    norm = here + r"LayerNorm_\d+/"
    return {
        **({"cls": (1, 1, width)} if network.cls_token is not None else {}),
        r"embedding/kernel": (*patch, channels, width),
        r"embedding/bias": (width,),
        r"Transformer/encoder_norm/(?:scale|bias)": (width,),
        attention + r"(?:query|key|value)/kernel": (width, heads, size),
        attention + r"(?:query|key|value)/bias": (heads, size),
        attention + r"out/kernel": (heads, size, width),
        attention + r"out/bias": (width,),
        mlp + r"Dense_0/kernel": (width, hidden),
        mlp + r"Dense_0/bias": (hidden,),
        mlp + r"Dense_1/kernel": (hidden, width),
        mlp + r"Dense_1/bias": (width,),
        norm + r"(?:scale|bias)": (width,),
    }


def _check_positions(key: str, shape: tuple[int, ...], own: Tensor | None, model: nn.Module, name: str) -> None:
    """Position embeddings may be those of another image size: a square grid of the same width."""
    expected = None if own is None else tuple(own.shape)
    if shape == expected:
        return
    beside = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 1))
    grid = shape[1] - beside if len(shape) == 3 else 0
    same_width = expected is not None and len(expected) == 3 and shape[::2] == expected[::2]
    if not same_width or grid < 1 or round(grid**0.5) ** 2 != grid:
        raise WeightsError(
            f"{name} is of another architecture: {key} is {shape}, the backbone has {expected}; only a square grid of "
            "the same width can be resampled"
        )


def _fill(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load `state`, resizing position embeddings only; every other difference is an error."""
    own = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if not key.startswith(tuple(f"{head}." for head in HEADS)) and not key.endswith(BUFFERS)
    }
    kinds = [str(kind).removeprefix("torch.") for kind in FLOATS]
    for key, tensor in sorted(state.items()):
        if (kind := str(tensor.dtype).removeprefix("torch.")) not in kinds:
            raise WeightsError(f"{name}: {key} holds {kind} values; allowed: {', '.join(kinds)}")
    state = {key: tensor.float() for key, tensor in state.items()}
    converted = _converted(state, model, own, name)
    _check_rest({**converted, **_resampled(state, own)}, state, own, model, name)
    _compare(converted, own, name)
    for key in sorted(own):
        if key.endswith(".weight") and not converted[key].any():
            raise WeightsError(f"{name}: {key} is zero throughout; such weights carry nothing")
    model.load_state_dict(converted, strict=False)
    broken = next((key for key in sorted(own) if not torch.isfinite(model.state_dict()[key]).all()), None)
    if broken:
        raise WeightsError(f"{name}: {broken} holds values that are not finite")


def _resampled(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as the file has them that timm's filter would make fit although they are of another architecture."""
    return {
        key: tensor
        for key, tensor in state.items()
        if (key == "patch_embed.proj.weight" and tensor.ndim == 4)
        or (key.endswith("relative_position_bias_table") and key in own and tensor.shape[-1] != own[key].shape[-1])
    }


def _converted(state: dict[str, Tensor], model: nn.Module, own: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state after timm's filter for this family of networks."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return {key: tensor for key, tensor in state.items() if key != "mask_token"}
    try:
        converted: dict[str, Tensor] = convert(dict(state), model)
    except Exception as error:
        _check_rest(state, state, own, model, name)
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{name} is of another architecture: timm cannot convert it ({reason})") from error
    return {key: tensor for key, tensor in converted.items() if not key.startswith(("head.", "mask_token"))}


def _check_rest(
    converted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    model: nn.Module,
    name: str,
) -> None:
    """Compare everything, position embeddings as the file has them: they may be those of another image size."""
    positions = state.get("pos_embed")
    held, wanted = ({key: part[key] for key in part if key != "pos_embed"} for part in (converted, own))
    _compare(held, wanted, name)
    if positions is not None and "register_tokens" not in state:
        _check_positions("pos_embed", tuple(positions.shape), own.get("pos_embed"), model, name)


def _compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> None:
    """Raise WeightsError for the first tensor that is missing, of another shape, or unknown to the network."""
    for key in sorted(own):
        if key not in state:
            raise WeightsError(f"{name} is of another architecture: it lacks {key} {tuple(own[key].shape)}")
        if (given := tuple(state[key].shape)) != (wanted := tuple(own[key].shape)):
            raise WeightsError(f"{name} is of another architecture: {key} is {given}, the backbone has {wanted}")
    if extra := sorted(set(state) - set(own)):
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        shape = tuple(state[extra[0]].shape)
        raise WeightsError(f"{name} is of another architecture: it also holds {extra[0]} {shape}{more}")

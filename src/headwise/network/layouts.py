"""Names of tensors in weights files of other libraries: wrappers, prefixes, extras, Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headwise.errors import WeightsError

WRAPPERS = (
    "model",
    "state_dict",
    "model_ema",
    "state_dict_ema",
    "teacher",
    "student",
    "model_state_dict",
    "module",
    "net",
    "backbone",
    "encoder",
)
"""Entries of a file below which its tensors may lie; the first that is there is taken."""
PREFIXES = ("module", "model", "backbone", "encoder", "teacher", "student", "net", "network", "trunk", "vit", "dinov2")
"""Words that may stand before every name; any sequence of them is one prefix."""
HEADS = ("head", "fc", "classifier")
"""Classifiers, which every run replaces by its own."""
EXTRAS = ("mask_token", "decoder", "pooler", "pre_logits", "dino_head", "ibot_head", "projector", "predictor")
"""Beginnings of what pretraining needed and the network does not: left out, and said."""
BUFFERS = ("relative_position_index", "attn_mask")
"""Ends of what follows from the architecture."""
FIRST = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
"""The layer that every network begins with, as timm and as Hugging Face call it."""
_HUGGING_FACE = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.mask_token": "mask_token",
    r"embeddings\.register_tokens": "register_tokens",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"layernorm\.(\w+)": r"norm.\1",
}
_BLOCK = r"(?:encoder\.layer|layers)\.(\d+)\."
_IN_BLOCK = {
    r"attention\.(?:attention\.query|q_proj)\.(\w+)": r"attn.q.\1",
    r"attention\.(?:attention\.key|k_proj)\.(\w+)": r"attn.k.\1",
    r"attention\.(?:attention\.value|v_proj)\.(\w+)": r"attn.v.\1",
    r"attention\.(?:output\.dense|o_proj)\.(\w+)": r"attn.proj.\1",
    r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)": r"mlp.fc1.\1",
    r"(?:output\.dense|mlp\.fc2)\.(\w+)": r"mlp.fc2.\1",
    r"mlp\.weights_in\.(\w+)": r"mlp.w12.\1",
    r"mlp\.weights_out\.(\w+)": r"mlp.w3.\1",
    r"(?:layernorm_before|norm1)\.(\w+)": r"norm1.\1",
    r"(?:layernorm_after|norm2)\.(\w+)": r"norm2.\1",
    r"layer_scale([12])\.lambda1": r"ls\1.gamma",
}


def unwrapped(content: Any, name: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file, from below its wrappers, and what to say of the choice; WeightsError if it holds none."""
    notes = []
    while isinstance(content, Mapping) and (wrapping := [k for k in WRAPPERS if isinstance(content.get(k), Mapping)]):
        if len(wrapping) > 1:
            notes.append(f"took {wrapping[0]!r}, left {', '.join(wrapping[1:])}")
        content = content[wrapping[0]]
    entries = content if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        held = f"the entries {', '.join(map(str, list(entries)[:6]))}" if entries else f"a {type(content).__name__}"
        raise WeightsError(
            f"{name} holds no named tensors but {held}; allowed: tensors by name, or below one of {', '.join(WRAPPERS)}"
        )
    return tensors, notes


def timm_names(tensors: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the network itself, Hugging Face's under timm's names, and what to say of the rest.

    A mask token stays: timm's own filter knows DINOv2 by it.

    Raises:
        WeightsError: for a prefix that is none of `PREFIXES`, several networks in one file, or tensors beside the
            network that are none of `EXTRAS`.
    """
    notes = []
    prefix = _prefix(tensors, name)
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if prefix:
        notes.append(f"took off the prefix {prefix!r}")
    outside = [key for key in tensors if not key.startswith(prefix)]
    unread = [key for key in outside if _kind(key, HEADS) is None and _kind(key, EXTRAS) is None]
    if unread:
        raise WeightsError(
            f"{name} is of another architecture: beside its network {prefix!r} it also holds {_few(unread)}"
        )
    dropped = [kind for key in tensors if (kind := _kind(key.removeprefix(prefix), EXTRAS))]
    if dropped:
        notes.append(f"left out {', '.join(dict.fromkeys(dropped))} ({len(dropped)} tensors)")
    state = {
        key: value
        for key, value in inside.items()
        if _kind(key, (*HEADS, *EXTRAS[1:])) is None and not key.endswith(BUFFERS)
    }
    if FIRST[1] in state:
        notes.append("took Hugging Face's names for timm's")
        state = _from_hugging_face(state)
    return state, notes


def _prefix(tensors: Mapping[str, Tensor], name: str) -> str:
    """What stands before the name of the first layer; empty where nothing does."""
    prefixes = {
        key.removesuffix(first)
        for key in tensors
        for first in FIRST
        if (key == first or key.endswith(f".{first}")) and _kind(key, EXTRAS) is None
    }
    if len(prefixes) > 1:
        places = _few(sorted(map(repr, prefixes)))
        raise WeightsError(f"{name} holds several networks, under {places}; give a file with one")
    prefix = next(iter(prefixes), "")
    if any(word not in PREFIXES for word in prefix.split(".")[:-1]):
        raise WeightsError(
            f"{name} is of another architecture: its names begin with {prefix!r}; allowed: no prefix, or one made of "
            f"{', '.join(PREFIXES)}"
        )
    return prefix


def _kind(key: str, kinds: tuple[str, ...]) -> str | None:
    """Which of `kinds` a tensor is, by the first word of its name that is no prefix."""
    words = key.split(".")
    while len(words) > 1 and words[0] in PREFIXES:
        words.pop(0)
    for kind in kinds:
        if words[0] == kind or (kind == "decoder" and words[0].startswith("decoder_")):
            return kind
    return "mask_token" if "mask_token" in kinds and words[-1] == "mask_token" else None


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of ``ViTModel`` and ``Dinov2Model``, of hub files and of version 5, as timm's; q, k and v fused."""
    # query, key and value, (d, d) each, stand apart in these files; timm has them as one (3 d, d)
    named = {_renamed(key): value for key, value in state.items()}
    fused: dict[str, Tensor] = {}
    for key, value in named.items():
        part = re.fullmatch(r"(blocks\.\d+\.attn)\.([qkv])\.(\w+)", key)
        rows = [named.get(f"{part[1]}.{proj}.{part[3]}") for proj in "qkv"] if part else []
        if part is None or any(row is None for row in rows):
            fused[key] = value
        # once for the three, at q's place in the order of the file
        elif part[2] == "q":
            fused[f"{part[1]}.qkv.{part[3]}"] = torch.cat([row for row in rows if row is not None])
    return fused


def _renamed(key: str) -> str:
    for pattern, new in _HUGGING_FACE.items():
        if re.fullmatch(pattern, key):
            return re.sub(pattern, new, key)
    if block := re.match(_BLOCK, key):
        rest = key[block.end() :]
        for pattern, new in _IN_BLOCK.items():
            if re.fullmatch(pattern, rest):
                return f"blocks.{block[1]}.{re.sub(pattern, new, rest)}"
    return key


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")

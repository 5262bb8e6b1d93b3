"""Weights files of tiny networks in the layouts that are found in the wild."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from made_networks import plain_timm


def trunk(family: str = "vit", seed: int = 5) -> dict[str, Tensor]:
    """Weights of a fresh timm network, without head."""
    torch.manual_seed(seed)
    return {name: tensor for name, tensor in plain_timm(family).state_dict().items() if not name.startswith("head.")}


def google_file(file: Path, width: int = 48, depth: int = 2, heads: int = 4, patch: int = 8, tokens: int = 17) -> Path:
    """Random weights in the layout of Google's ViT checkpoints."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    tensors = {
        "cls": draw(1, 1, width),
        "embedding/kernel": draw(patch, patch, 3, width),
        "embedding/bias": draw(width),
        "Transformer/posembed_input/pos_embedding": draw(1, tokens, width),
        "Transformer/encoder_norm/scale": draw(width),
        "Transformer/encoder_norm/bias": draw(width),
    }
    for block in range(depth):
        prefix = f"Transformer/encoderblock_{block}"
        attention = f"{prefix}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            tensors[f"{attention}/{name}/kernel"] = draw(width, heads, width // heads)
            tensors[f"{attention}/{name}/bias"] = draw(heads, width // heads)
        tensors[f"{attention}/out/kernel"] = draw(heads, width // heads, width)
        tensors[f"{attention}/out/bias"] = draw(width)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            tensors[f"{prefix}/{norm}/scale"], tensors[f"{prefix}/{norm}/bias"] = draw(width), draw(width)
        for index, (given, made) in enumerate(((width, 4 * width), (4 * width, width))):
            tensors[f"{prefix}/MlpBlock_3/Dense_{index}/kernel"] = draw(given, made)
            tensors[f"{prefix}/MlpBlock_3/Dense_{index}/bias"] = draw(made)
    np.savez(file, **tensors)
    return file


def microsoft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swin as its authors publish it: a stage ends with its downsampling, buffers lie in the file."""
    moved = {
        re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key): value
        for key, value in state.items()
    }
    table = "layers.0.blocks.0.attn.relative_position"
    return {**moved, f"{table}_index": torch.zeros(16, 16, dtype=torch.long), "head.weight": torch.zeros(9, 64)}


def masked_autoencoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ViT with the decoder that pretrained it."""
    decoder = {f"decoder_blocks.0.{key}": torch.randn(3, 3) for key in ("norm1.weight", "attn.qkv.weight")}
    return {**state, "mask_token": torch.zeros(1, 1, 32), "decoder_pos_embed": torch.randn(1, 17, 32), **decoder}

"""What timm knows of networks by name: the nearest spelling of a wrong one, and the images that the weights expect."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from headwise.errors import ConfigError, suggest

ATTENTION = re.compile(r"qkv|q_proj|vision_transformer|import.*\bAttention|class \w*Attention")
"""What stands in the code of every family of timm's that has projections of q, k and v; of others none is built."""
ALLOWED = "allowed: timm's ViT (DINOv2, CLIP, SigLIP), EVA (DINOv3, EVA-02), BEiT, Swin and Swin-V2"
LIKELY = ("vit_*", "deit*", "eva*", "beit*", "swin*")
ALL = "timm.list_models() in Python names all"


def check_name(timm_name: str) -> None:
    """Check an architecture, with its tag if given; ConfigError, with the nearest, if unknown or without attention."""
    architecture, dot, tag = timm_name.partition(".")
    names = timm.list_models()
    if architecture not in names:
        # the hub's names have an owner before a slash
        near = difflib.get_close_matches(architecture.rpartition("/")[2], names, n=1, cutoff=0.5)
        meant = [f"{name}.{tag}" for name in near if f"{name}.{tag}" in _tagged(name)] or near
        hint = f" (did you mean {meant[0]!r}?)" if meant else ""
        raise ConfigError(f"unknown timm network {timm_name!r}{hint}; {ALL}")
    module = timm.model_entrypoint(architecture).__module__
    if module.startswith("timm.") and not ATTENTION.search(inspect.getsource(sys.modules[module])):
        likely = timm.list_models(list(LIKELY))
        # with a cutoff of 0 there always is a nearest
        (nearest,) = difflib.get_close_matches(architecture, likely, n=1, cutoff=0.0)
        raise ConfigError(f"{timm_name!r} has no attention to adapt (did you mean {nearest!r}?); {ALLOWED}")
    if dot and timm_name not in _tagged(architecture):
        raise ConfigError(f"timm has no weights of the name {timm_name!r}{suggest(timm_name, _tagged(architecture))}")


def _tagged(architecture: str) -> list[str]:
    return list(timm.list_models(f"{architecture}.*", include_tags=True))


def side_of(timm_name: str) -> int:
    """Side of the square images that a network's weights expect, pixels; 224 where timm has no record.

    Raises:
        ConfigError: for an unknown network, or one of images that are not square.
    """
    check_name(timm_name)
    record: Any = timm.get_pretrained_cfg(timm_name)
    height, width = (224, 224) if record is None else record.input_size[1:]
    if height != width:
        raise ConfigError(
            f"timm's {timm_name!r} takes images of {height} x {width} pixels, and images are square here: give "
            "backbone.img_size, one whole number"
        )
    return int(width)


def record_of(model: nn.Module) -> dict[str, Any]:
    """What timm says of a network's pretrained weights; empty for one that timm has not made."""
    record: Any = getattr(model, "pretrained_cfg", None)
    return dict(record if isinstance(record, Mapping) else vars(record)) if record else {}

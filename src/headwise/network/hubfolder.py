"""Folders as timm reads and writes them for Hugging Face's hub: the configuration, and the network read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from headwise.errors import CheckpointError
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.network.catalog import record_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Names that timm and transformers look for."""
UNSTORED = ("num_classes", "model_name", "pretrained", "pretrained_cfg", "checkpoint_path", "in_chans")
"""Arguments of timm.create_model that the configuration says elsewhere, or not at all."""


def arguments_of(net: Backbone, spec: BackboneSpec | None) -> dict[str, Any]:
    """Arguments with which timm.create_model makes a network again: name, classes, size and whatever else it was given.

    A network that has no name, and so no `spec`, is made of what timm noted of the module that was given.
    """
    num_classes = net.head.out_features
    if spec is not None:
        return spec.arguments(num_classes)
    noted = dict(getattr(net.model, "_model_args", {}))  # timm notes them since 1.0.31; `read_back` tells if they lack
    kept = {name: value for name, value in noted.items() if name not in UNSTORED}
    name = str(net.provenance.get("timm_name"))
    return {"model_name": name, "num_classes": num_classes, "img_size": net.img_size, **kept}


def configuration(
    model: nn.Module, arguments: Mapping[str, Any], transform: Mapping[str, Any], class_names: Sequence[str]
) -> dict[str, Any]:
    """What ``config.json`` holds, in timm's format, which transformers reads as well.

    It takes arguments of timm.create_model, see `arguments_of`, and of timm.data.create_transform, and the names of
    classes in the order of the logits. transformers would take ImageNet's where there are none.
    """
    name, _, tag = str(arguments["model_name"]).partition(".")
    known = record_of(model)
    pooling: Any = getattr(model, "global_pool", None)
    features: Any = getattr(model, "num_features", None)
    return {
        "architecture": name,
        "num_classes": arguments["num_classes"],
        "num_features": features,
        **({"global_pool": pooling} if isinstance(pooling, str) and pooling else {}),
        "label_names": list(class_names),
        "model_args": {key: value for key, value in arguments.items() if key not in UNSTORED},
        "pretrained_cfg": {
            **({"tag": tag} if tag else {}),
            "custom_load": False,
            "fixed_input_size": True,
            "pool_size": None,
            **transform,
            "num_classes": arguments["num_classes"],
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def read_back(folder: Path) -> nn.Module:
    """The network of such a folder, by timm alone, in evaluation mode; CheckpointError if timm cannot make it."""
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"timm cannot make the network of its configuration ({type(error).__name__}: {said}); a network that has a "
            "name can be written: headwise.adapt(NAME, ...)"
        ) from error

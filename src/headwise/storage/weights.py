"""What a network and its weights are called, and where files of weights lie. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from headwise.errors import ConfigError, WeightsError
from headwise.storage.atomic import at_home
from headwise.storage.hashes import file_sha256
from headwise.storage.plain import no_file

ASSETS = Path(__file__).parents[1] / "assets"
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_b16_in21k": ("vit_base_patch16_224.orig_in21k", {}),
    "swin_b_in22k": ("swin_base_patch4_window7_224.ms_in22k", {}),
    "vit_s14_dinov2": ("vit_small_patch14_dinov2", {}),
    "vit_nano": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 6}),
    "vit_tiny_random": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}),
    "swin_tiny_random": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 32, "depths": [1, 2], "num_heads": [4, 8], "window_size": 4},
    ),
}
"""What our names of networks stand for: timm's name, and what is changed of it."""
BY_NAME = "timm"
"""The file of conf/backbone whose name is timm's own, given by the user."""
PAPERS = ("vit_base_patch16_224.orig_in21k", "swin_base_patch4_window7_224.ms_in22k")
"""timm's names of the weights that the papers start from."""
OFFICIAL = "official"
"""Value of ``backbone.weights_are``: the file holds what timm has under this name."""


def network_name(backbone: Mapping[str, Any], typed: Collection[str] = ()) -> str:
    """The name of a network: the configured one, unless it is ours or timm's and this is another network.

    Of the fields of its `BackboneSpec`. ConfigError for a name that was `typed`, a key of the command line, and would
    only be a label of another network.
    """
    name, timm_name, overrides = str(backbone["name"]), str(backbone["timm_name"]), _overrides(backbone)
    if "backbone.name" in typed and "backbone.timm_name" not in typed and name != timm_name:
        raise ConfigError(
            f"backbone.name={name} would be a mere label of {timm_name}; a network of timm's is chosen by "
            f"backbone={BY_NAME} backbone.name={name}, one with a file of conf/backbone by backbone=FILE"
        )
    if name in NETWORKS and NETWORKS[name] == (timm_name, overrides):
        return name
    if name not in NETWORKS and (name != timm_name or not overrides):
        return name
    return f"{timm_name} with {_listed(overrides)}" if overrides else timm_name


def stated_weights(backbone: Mapping[str, Any]) -> str | None:
    """What the user says a weights file is, None for nothing; ConfigError if said of no file, or no text."""
    stated, weights = backbone.get("weights_are"), str(backbone["weights"])
    if stated is None:
        return None
    if not isinstance(stated, str) or not stated.strip():
        raise ConfigError(f"backbone.weights_are is {OFFICIAL} or a name for the file's weights, got {stated!r}")
    if weights in ("auto", "none"):
        raise ConfigError(f"backbone.weights_are={stated} says what a file holds, but backbone.weights is {weights}")
    return stated.strip()


def weights_labels(backbone: Mapping[str, Any]) -> list[str]:
    """What must be said beside every number made with a network, of the fields of its `BackboneSpec`."""
    weights, stated = str(backbone["weights"]), stated_weights(backbone)
    labels = []
    if backbone.get("stand_in"):
        return ["stand-in weights"]
    if weights == "none":
        labels.append("random weights")
    elif weights != "auto" and stated is None:
        labels.append("unverified weights")
    elif stated is not None and stated != OFFICIAL:
        labels.append(f"weights {stated}")
    if backbone["timm_name"] not in PAPERS:
        labels.append(f"network {backbone['timm_name']}")
    if overrides := _overrides(backbone):
        labels.append(f"changed network ({_listed(overrides)})")
    return labels


def _overrides(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of the architecture, tuples as lists."""
    given = backbone.get("overrides") or {}
    return {str(key): list(value) if isinstance(value, tuple) else value for key, value in given.items()}


def _listed(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(overrides.items()))


def weights_file(weights: str, option: str = "backbone.weights=FILE") -> Path:
    """The file named by ``package:FILE`` or a path; WeightsError, naming the `option` for another, if it is none."""
    name = weights.removeprefix("package:")
    file = ASSETS / Path(name).name if weights.startswith("package:") else at_home(name)
    if why := no_file(file):
        raise WeightsError(f"weights file {weights[:300]!r} {why}; give an existing file with {option}")
    return file


def weights_content(backbone: Mapping[str, Any], option: str = "backbone.weights=FILE") -> str:
    """What the weights are: the hash of their file, or the name under which timm's hub has them.

    Of the fields of a `BackboneSpec`. WeightsError as of `weights_file`, ConfigError as of `stated_weights`.
    """
    weights = str(backbone["weights"])
    stated_weights(backbone)
    if weights == "auto":
        return f"hub:{backbone['timm_name']}"
    if weights == "none":
        return f"random:{backbone.get('seed', 0)}"
    return file_sha256(weights_file(weights, option))

"""Pretrained weights as files: where they lie and what they are. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwise.errors import WeightsError
from headwise.results.fingerprint import file_sha256

ASSETS = Path(__file__).parent / "assets"


def weights_file(weights: str) -> Path:
    """The file named by ``package:FILE`` or a path.

    Raises:
        WeightsError: if it does not exist.
    """
    name = weights.removeprefix("package:")
    file = ASSETS / Path(name).name if weights.startswith("package:") else Path(name).expanduser()
    if not file.is_file():
        raise WeightsError(f"weights file {weights!r} does not exist; give an existing file with backbone.weights=FILE")
    return file


def weights_content(backbone: Mapping[str, Any]) -> str:
    """What the weights are: the hash of their file, or the name under which timm's hub has them.

    Args:
        backbone: the fields of `headwise.backbone.BackboneSpec`.

    Raises:
        WeightsError: if a file is named that does not exist.
    """
    weights = str(backbone["weights"])
    if weights == "auto":
        return f"hub:{backbone['timm_name']}"
    if weights == "none":
        return f"random:{backbone.get('seed', 0)}"
    return file_sha256(weights_file(weights))

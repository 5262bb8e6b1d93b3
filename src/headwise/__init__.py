"""headwise: head-wise parameter-efficient tuning of vision transformers, as a reproducible VTAB-1k experiment."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headwise.moved import install

if TYPE_CHECKING:
    from headwise.artifacts.adapting import Adapted as Adapted
    from headwise.artifacts.adapting import adapt as adapt
    from headwise.artifacts.export import load as load
    from headwise.runs.calling import train as train

__version__ = "0.1.0"
PUBLIC = {
    "Adapted": "headwise.artifacts.adapting",
    "adapt": "headwise.artifacts.adapting",
    "load": "headwise.artifacts.export",
    "train": "headwise.runs.calling",
}
"""Where the library is defined; it is imported on first use, so that ``import headwise`` costs nothing."""
__all__ = ["Adapted", "adapt", "load", "train"]
install()


def __getattr__(name: str) -> Any:
    """Import a function of the library on first use."""
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    raise AttributeError(f"module 'headwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What the library offers, as well."""
    return sorted({*globals(), *__all__})

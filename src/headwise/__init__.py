"""headwise: head-wise parameter-efficient tuning of vision transformers, as a reproducible VTAB-1k experiment."""

from __future__ import annotations

from typing import Any

from headwise.moved import install

__version__ = "0.1.0"
__all__ = ["load"]
install()


def __getattr__(name: str) -> Any:
    """Import ``headwise.load`` on first use, so that ``import headwise`` costs nothing."""
    if name == "load":
        from headwise.artifacts.export import load

        return load
    raise AttributeError(f"module 'headwise' has no attribute {name!r}")

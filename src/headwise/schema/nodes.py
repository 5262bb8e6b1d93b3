"""The one walk over a method's configuration: methods within methods, mapping by mapping. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Node = dict[str, Any]


def each_node(node: Mapping[str, Any], fill: Callable[[str, Node], Node], key: str = "method") -> Node:
    """A configuration in which every mapping is what `fill` makes of it, those within it first; it stays as it is.

    `fill` takes a mapping's dotted name, which begins with `key`, and a copy of it.
    """
    within = {
        name: each_node(value, fill, f"{key}.{name}") if isinstance(value, Mapping) else value
        for name, value in node.items()
    }
    return fill(key, within)

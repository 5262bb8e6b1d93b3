"""Filling: a method's configuration with nothing left to be looked up, so that equal runs have equal configurations.

What is shared by methods is filled for all: gates, consistency, published values. A method fills fields of its own by
naming in ``written`` who reads them; that is read from its source, so its class, and torch, need not be imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from headwise.errors import ConfigError
from headwise.protocol.presets import with_published
from headwise.schema.nodes import Node, each_node
from headwise.schema.source import literal_of_target
from headwise.updates.consistency import Consistency
from headwise.updates.gate import Gate

WRITTEN = "written"
"""Attribute of a method's class: by field, the dotted name of what reads it, see `headwise.methods.base.Method`."""


def fill_method(
    method: Mapping[str, Any], task: str, ne: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A method's configuration, and every one in it, written out.

    Args:
        method: resolved, with the values of the experiment's table.
        task: name of the task, whose published values are taken.
        ne: heads off, as in conf/ne, of gates that say no amount.

    Returns:
        The configuration, and for each published value its ``key`` and where it comes from.

    Raises:
        ConfigError: for a gate, a field or a published value that there is not, and for epochs of a checkpoint.
    """
    published: list[dict[str, Any]] = []

    def fill(key: str, node: Node) -> Node:
        node, taken = with_published(with_own_fields(with_consistency(with_gate(node, ne))), task, key)
        published.extend(taken)
        if node.get("checkpoint") and node.get("epochs"):
            raise ConfigError(
                f"{key}.epochs={node['epochs']} would train nothing: {key}.checkpoint is taken as it is; "
                "from=RUN_DIR goes on training"
            )
        return node

    return each_node(method, fill), published


def check_together(trainer: Mapping[str, Any], method: Mapping[str, Any]) -> None:
    """Refuse trainer.checkpointing with noise: blocks that are computed again in backward would do without it."""
    nodes: dict[str, Node] = {}
    each_node(method, lambda key, node: nodes.setdefault(key, node))
    for key, node in nodes.items():
        if trainer.get("checkpointing") and node.get("consistency"):
            raise ConfigError(f"trainer.checkpointing=true and {key}.consistency do not go together; leave one out")


def fill_gates(method: Mapping[str, Any], ne: Mapping[str, Any] | None) -> Node:
    """A method's configuration with its gates, and those of every method in it, written out; nothing else is filled."""
    return each_node(method, lambda key, node: with_gate(node, ne))


def with_gate(node: Mapping[str, Any], ne: Mapping[str, Any] | None) -> Node:
    """One method's configuration with its ``gate`` written out: all fields, the amount taken from `ne`.

    A gate that is null is left out, since it is no gate.
    """
    gate = Gate.of(node.get("gate"), ne)
    spec = None if gate is None else gate.spec()
    return {name: spec if name == "gate" else value for name, value in node.items() if name != "gate" or spec}


def with_consistency(node: Mapping[str, Any]) -> Node:
    """One method's configuration with its ``consistency`` written out; null is left out."""
    recipe = Consistency.of(node.get("consistency"))
    rest = {name: value for name, value in node.items() if name != "consistency"}
    return rest if recipe is None else {**rest, "consistency": recipe.spec()}


def with_own_fields(node: Mapping[str, Any]) -> Node:
    """One method's configuration with the fields written out that its class names in ``written``; null stays null."""
    readers = literal_of_target(str(node.get("_target_", "")), WRITTEN) or {}
    own = {name: reader for name, reader in readers.items() if node.get(name) is not None}
    return {**node, **{name: _named(reader).of(node[name]).spec() for name, reader in own.items()}}


def _named(reader: str) -> Any:
    module, _, name = reader.rpartition(".")
    return getattr(importlib.import_module(module), name)

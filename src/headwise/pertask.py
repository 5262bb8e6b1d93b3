"""One table in an experiment instead of a file for each pair of method and task. Standard library only.

::

    per_task:
      default: {lora: {dropout: 0.1}}                    # of every task
      svhn: {lora: {scale: 10}, cara: {scale: 100}}      # on top, of one

The names inside are those of methods' labels; a phase of a two-phase method has its own. ``config.r`` is a field in a
field.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from headwise.errors import ConfigError, suggest

DEFAULT = "default"
PHASES = ("first", "heads")
"""Keys under which a two-phase method keeps its parts."""


def fill_tasks(config: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
    """A configuration's method with the values that its ``per_task`` table has for it and for the task.

    Args:
        config: resolved, plain: method, dataset, protocol, and per_task where an experiment brings one.
        given: dotted keys chosen on the command line (``method.scale``); they stand.

    Returns:
        The method's configuration; unchanged without a table, or where ``protocol.per_task`` is false.

    Raises:
        ConfigError: for a table that is no mapping of mappings, or names a field that the method does not have.
    """
    method: dict[str, Any] = copy.deepcopy(dict(config["method"]))
    table = config.get("per_task")
    if not table or not config["protocol"].get("per_task", True):
        return method
    parts = {"method": method}
    parts |= {f"method.{name}": method[name] for name in PHASES if isinstance(method.get(name), dict)}
    for row in (DEFAULT, config["dataset"]["name"]):
        values = table.get(row) or {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"per_task.{row} is a table of methods, got {values!r}")
        for path, part in parts.items():
            fields = values.get(part.get("label")) or {}
            if not isinstance(fields, Mapping):
                raise ConfigError(f"per_task.{row}.{part['label']} is a table of the method's fields, got {fields!r}")
            for name, value in fields.items():
                node, last = _find(part, str(name), f"per_task.{row}.{part['label']}")
                if f"{path}.{name}" not in given:
                    node[last] = value
    return method


def _find(part: dict[str, Any], name: str, where: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a dotted field, and the field's own name."""
    *parents, last = name.split(".")
    node: Any = part
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or (last not in node and name != "lr"):
        raise ConfigError(f"{where}: unknown field {name!r}{suggest(name, list(part))}")
    return node, last

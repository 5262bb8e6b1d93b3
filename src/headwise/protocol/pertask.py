"""One table in an experiment instead of a file for each pair of method and task. Standard library only.

::

    per_task:
      default: {lora: {dropout: 0.1}}                    # of every task
      svhn: {lora: {scale: 10}, cara: {scale: 100}}      # on top, of one

The names inside are those of methods' labels; a phase of a two-phase method has its own. ``config.r`` is a field in a
field. ``protocol.normalize`` is a field of the protocol, of runs of that method alone: a paper's table may measure one
row in another way than the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from headwise.errors import ConfigError, suggest

DEFAULT = "default"
PHASES = ("first", "heads")
"""Keys under which a two-phase method keeps its parts."""
PROTOCOL = "protocol."
OTHERS = "protocol_of_others"
"""Key of a run's configuration: the experiment's protocol, where the run's method has values of its own."""
FIXED = {
    "epochs": "a method's epochs are its own field, epochs",
    "per_task": "it says whether this very table applies",
}
"""Fields of the protocol that a table may not hold, and why."""


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
    parts = {"method": method}
    parts |= {f"method.{name}": method[name] for name in PHASES if isinstance(method.get(name), dict)}
    for path, part in parts.items():
        for where, name, value in _values(config, part.get("label")):
            if name.startswith(PROTOCOL):
                continue
            node, last = _find(part, name, where)
            if f"{path}.{name}" not in given:
                node[last] = copy.deepcopy(value)
    return method


def fill_protocol(config: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
    """A configuration's protocol with the values that its ``per_task`` table has for the method, as ``protocol.FIELD``.

    A run has one protocol: it is the whole method's label that counts, not that of a phase. A field of a part that the
    protocol does not have (of ``search`` where nothing is searched) is left out.

    Args:
        config: as for `fill_tasks`.
        given: as for `fill_tasks`; ``protocol``, and any part of it, stands with all that is in it.

    Returns:
        The protocol's configuration, unchanged as for `fill_tasks`.

    Raises:
        ConfigError: as `fill_tasks`, and for a field of `FIXED`.
    """
    protocol: dict[str, Any] = copy.deepcopy(dict(config["protocol"]))
    for where, name, value in _values(config, config["method"].get("label")):
        if not name.startswith(PROTOCOL):
            continue
        *parents, last = name.removeprefix(PROTOCOL).split(".")
        if not parents and last in FIXED:
            raise ConfigError(f"{where}: {name} may not be set here; {FIXED[last]}")
        node: Any = protocol
        for parent in parents:
            if parent not in node:
                raise ConfigError(f"{where}: unknown field {name!r}{suggest(parent, list(node))}")
            node = node[parent]
            if node is not None and not isinstance(node, dict):
                raise ConfigError(f"{where}: {parent} of {name!r} is a value, not a part of the protocol")
            if node is None:
                break
        if not parents and last not in node:
            raise ConfigError(f"{where}: unknown field {name!r}{suggest(last, list(node))}")
        if node is not None and not any(_covers(key, name) or _covers(name, key) for key in given):
            node[last] = copy.deepcopy(value)
    return protocol


def _covers(key: str, name: str) -> bool:
    """Whether one dotted name is, or holds, the other."""
    return name == key or name.startswith(f"{key}.")


def _values(config: Mapping[str, Any], label: Any) -> Iterator[tuple[str, str, Any]]:
    """Of the table's rows for the task, what they hold for one label: where, field, value; later ones win."""
    table = config.get("per_task")
    if not table or not config["protocol"].get("per_task", True):
        return
    for row in (DEFAULT, config["dataset"]["name"]):
        values = table.get(row) or {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"per_task.{row} is a table of methods, got {values!r}")
        where = f"per_task.{row}.{label}"
        fields = values.get(label) or {}
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{where} is a table of the method's fields, got {fields!r}")
        for name, value in fields.items():
            yield where, str(name), value


def _find(part: dict[str, Any], name: str, where: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a dotted field, and the field's own name."""
    *parents, last = name.split(".")
    node: Any = part
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    # a method's YAML may leave out a learning rate of its own; any other field must stand there
    if not isinstance(node, dict) or (last not in node and name != "lr"):
        raise ConfigError(f"{where}: unknown field {name!r}{suggest(name, list(part))}")
    return node, last

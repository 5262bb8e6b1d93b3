"""Published values of single tasks: ``method.scale=published`` takes what a method's authors used for the task.

They come from the configuration files of repositories under MIT or Apache licences (paper/scales.csv says which). How
the authors chose them is not documented, and most of their loops report the best test epoch: results carry the label
`POSSIBLY_TUNED`. Standard library only.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headwise.errors import ConfigError, suggest
from headwise.schema.kinds import PUBLISHED
from headwise.schema.nodes import Node, each_node

POSSIBLY_TUNED = "possibly test-tuned settings"


@dataclass(frozen=True)
class Preset:
    """One published value.

    Attributes:
        method: label of the method, as in its YAML.
        value: a number, or one of the field's words.
        source: repository and file.
        licence: of the source.
        note: what else the source fixes.
    """

    method: str
    task: str
    field: str
    value: int | float | str
    source: str
    licence: str
    note: str = ""


@functools.cache
def presets() -> tuple[Preset, ...]:
    """The table, paper/scales.csv."""
    file = importlib.resources.files("headwise") / "paper" / "scales.csv"
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(Preset(value=_value(row.pop("value")), **row) for row in rows)


def published_value(method: str, task: str, field: str) -> Preset:
    """The published value of one field; where there is none, those that there are are listed."""
    of_method = [preset for preset in presets() if preset.method == method]
    if not of_method:
        raise ConfigError(
            f"method {method!r} has no published values{suggest(method, {preset.method for preset in presets()})}"
        )
    of_field = {preset.task: preset for preset in of_method if preset.field == field}
    if not of_field:
        fields = {preset.field for preset in of_method}
        raise ConfigError(f"method {method!r} has no published {field!r}{suggest(field, fields)}")
    if task not in of_field:
        raise ConfigError(f"method {method!r} has no published {field!r} of task {task!r}{suggest(task, of_field)}")
    return of_field[task]


def with_published(
    node: Mapping[str, Any], task: str, key: str = "method"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One method's configuration with every ``published`` in it replaced by the value.

    Args:
        node: of the method; what is within it has a label of its own and is left as it is.
        key: dotted name of `node`.

    Returns:
        The configuration, and for each replaced value its ``key`` and where it comes from.
    """
    asked = [name for name, value in node.items() if value == PUBLISHED and "label" in node]
    taken = {name: published_value(str(node["label"]), task, name) for name in asked}
    values = {name: preset.value for name, preset in taken.items()}
    return {**node, **values}, [{"key": f"{key}.{name}", **asdict(preset)} for name, preset in taken.items()]


def fill_presets(method: Mapping[str, Any], task: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As `with_published`, for a method and every one in it (Phase 1 and 2)."""
    published: list[dict[str, Any]] = []

    def fill(key: str, node: Node) -> Node:
        node, taken = with_published(node, task, key)
        published.extend(taken)
        return node

    return each_node(method, fill), published


def preset_labels(config: Mapping[str, Any]) -> list[str]:
    """What must be said beside numbers made with a run's configuration: that published values are in it."""
    return [POSSIBLY_TUNED] if config.get(PUBLISHED) else []


def _value(text: str) -> int | float | str:
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text

"""The schema of a run's configuration: the top level and every group. `check_config` is asked once for each run.

A group with ``_target_`` is known by the signature of its class, others by the fields that stand here or by a class of
ours. ``user`` is the one place for keys of a user's own: nobody reads it, but interpolations may (``${user.size}``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from headwise.errors import ConfigError
from headwise.schema.check import Fields, Key, named, nearest, refusal, shown
from headwise.schema.kinds import PUBLISHED, Count, Draw, Rate, Seed, Shots, Targets, Text, Threads, Warmup, Whole
from headwise.schema.peftfields import PREFIX, fields_of_config
from headwise.schema.source import Node, fields_of_target

Group = Mapping[str, Any]
TOP = Fields(
    {
        **dict.fromkeys(
            ("protocol", "trainer", "logger", "rank", "ne", "backbone", "data", "dataset", "method"), Group
        ),
        "seed": Seed,
        "shots": Shots | None,
        "draw": Draw,
        "root": Text,
        "from": Text | None,
        "name": Text,
        "variant": Text | None,
        "resume": Literal["auto", "force", "never"],
        "wait": bool,
        "per_task": Mapping[str, Mapping[str, Group | None] | None] | None,
        "user": Any,
    },
    ("backbone", "method", "dataset", "data", "protocol", "trainer", "logger", "seed", "root", "name"),
)
RANK = Fields({"global": Count, "head": Count}, ("global", "head"))
NE = Fields({"count": Whole | None, "ratio": Rate | None, "warmup": Warmup}, ("warmup",))
TRAINER = Fields(
    {
        "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
        "threads": Threads,
        "attention": Literal["auto", "timm", "plain"],
        "checkpointing": bool,
        "compile": bool,
        "progress": bool,
    },
    ("accelerator", "threads", "attention", "progress"),
)
CSV = Fields({"kind": Literal["csv", "wandb", "tensorboard"], "pictures": bool}, ("kind",))
WANDB = Fields(
    {
        **CSV.types,
        "project": Text,
        "offline": bool,
        **dict.fromkeys(("entity", "group", "job_type", "notes", "id"), Text | None),
        "tags": list[str] | None,
        "save_code": bool | None,
        "resume": bool | Literal["allow", "never", "must", "auto"] | None,
    },
    ("kind",),
)
"""Fields of wandb.init that a run may set; name, folder and config are the run's own."""
LOGGERS = {"csv": CSV, "wandb": WANDB}
CLASSES = {"backbone": "headwise.network.backbone.BackboneSpec", "protocol": "headwise.protocol.recipe.Protocol"}
"""Groups that are one class of ours."""
FOUND = ("num_classes", "class_names")
"""Of a user's own task, what is found in the images where it is null."""
HYDRA = {"_target_": Text, "_recursive_": bool, "_convert_": Literal["none", "partial", "object", "all"]}
"""What hydra reads of a node with a class."""


@dataclass(frozen=True)
class ConfigPart:
    """One mapping of a configuration and what it may hold; values of `later` are filled in afterwards."""

    path: str
    values: Mapping[str, Any]
    fields: Fields
    later: Collection[str] = ()

    @property
    def key(self) -> Key:
        """How its fields are named."""
        return lambda name: f"{self.path}.{named(name)}" if self.path else named(name)


def check_config(config: Mapping[str, Any]) -> None:
    """Check a resolved configuration, plain data, before anything is built or torch is imported.

    Raises:
        ConfigError: for an unknown key, or a value of the wrong kind or out of range: says key, value, what is allowed
            and the nearest right key.
    """
    _check(list(parts(config)))
    _check_together(config)


def check_nodes(config: Mapping[str, Any]) -> None:
    """Check, in a configuration that is not resolved, that what is built from a node has one.

    Raises:
        ConfigError: for text where a node stands, as in ``method.first=lora``.
    """
    for part in parts(config):
        for name, kind in part.fields.types.items():
            value = part.values.get(name)
            if kind is Node and not isinstance(value, Mapping) and not str(value).startswith("${"):
                raise ConfigError(refusal(part.key(name), kind, value))


def check_method(method: Mapping[str, Any]) -> None:
    """Check a method's node once everything is filled in; ConfigError as `check_config`."""
    _check(list(_nodes("method", method)))


def _check(every: list[ConfigPart]) -> None:
    keys = [part.key(name) for part in every for name in part.fields.types]
    for part in every:
        for name, value in part.values.items():
            if not part.fields.is_open and name not in part.fields.types:
                raise ConfigError(_unknown(part, str(name), value, keys))
    for part in every:
        part.fields.check(part.values, part.key, part.later)


def parts(config: Mapping[str, Any]) -> Iterator[ConfigPart]:
    """Every mapping of a configuration with its fields, the top first.

    Raises:
        ConfigError: for a group that is no mapping, or names a class that is not there.
    """
    yield ConfigPart("", config, TOP)
    fixed = {"rank": RANK, "ne": NE, "trainer": TRAINER}
    for name in (name for name in TOP.types if TOP.types[name] is Group):
        node = config.get(name)
        if not isinstance(node, Mapping):
            if name in config or name in TOP.required:
                # a refusal, by the kind that the top level has for a group
                TOP.check(config, lambda name: name)
        elif name in CLASSES:
            yield ConfigPart(name, node, fields_of_target(CLASSES[name]))
        elif name == "logger":
            yield ConfigPart(name, node, LOGGERS.get(str(node.get("kind")), CSV))
        elif name in fixed:
            yield ConfigPart(name, node, fixed[name])
        else:
            yield from _nodes(name, node)


def _nodes(path: str, node: Mapping[str, Any]) -> Iterator[ConfigPart]:
    """A node with ``_target_`` and those within it."""
    target = node.get("_target_")
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{path}._target_ must be the dotted name of a class, got {shown(target)}")
    # the authors' value for the task is filled in afterwards: until then the word stands for a number
    later = [name for name, value in node.items() if value == PUBLISHED and "label" in node]
    if path == "dataset" and node.get("group") == "own":
        later += [name for name in FOUND if name in node and node[name] is None]
    try:
        fields = node_fields(target)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from error
    part = ConfigPart(path, {name: value for name, value in node.items() if name not in later}, fields, later)
    yield part
    for name, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            # a class that cannot stand here is refused as such, before what is missing in it
            if name in fields.types:
                Fields({name: fields.types[name]}).check({name: value}, part.key)
            yield from _nodes(f"{path}.{named(str(name))}", value)


@functools.cache
def node_fields(target: str) -> Fields:
    """What a node with this ``_target_`` may hold; ConfigError for a class that is not there."""
    if target.startswith(PREFIX):
        return fields_of_config(target)
    fields = fields_of_target(target)
    types = {**fields.types, **HYDRA}
    if "label" in types and "targets" in types:
        types["targets"] = Targets
    return Fields(types, fields.required, fields.is_open)


def _unknown(part: ConfigPart, name: str, value: Any, keys: list[str]) -> str:
    if part.fields is CSV and name not in CSV.types:
        # keys that only the other logger has are named together with the choice that brings them
        keys = [*keys, *(f"logger.{field}" for field in WANDB.types)]
    near = nearest(name, keys, part.path)
    only_wandb = near is not None and near.startswith("logger.") and near.removeprefix("logger.") not in CSV.types
    wandb = " with logger=wandb" if part.fields is CSV and only_wandb else ""
    hint = f" (did you mean {near!r}{wandb}?)" if near else ""
    allowed = ", ".join(sorted(name for name in part.fields.types if name not in HYDRA))
    own = "; keys of your own go below user: +user.KEY=VALUE" if not part.path else ""
    return f"unknown key {part.key(name)}={shown(value, name)}{hint}; allowed: {allowed}{own}"


def unknown_key(key: str, beside: Mapping[str, Any]) -> str:
    """What is said of a dotted key that a configuration does not have; `beside` is where it was sought, unresolved."""
    if key.partition(".")[0] == "user":
        return f"{key} is not there yet: keys of your own are added, +user.KEY=VALUE"
    parent, _, name = key.rpartition(".")
    target = beside.get("_target_")
    fields: list[str] = []
    keys = [f"{parent}.{other}" if parent else str(other) for other in beside]
    with contextlib.suppress(ConfigError):
        if parent in CLASSES:
            fields = list(fields_of_target(CLASSES[parent]).types)
        elif isinstance(target, str):
            fields = [field for field in node_fields(target).types if field not in HYDRA]
        elif not parent:
            keys += [part.key(field) for part in parts(beside) for field in part.fields.types if part.path]
    if name in fields:
        return f"unknown configuration key {key!r}: its YAML leaves this field out; set it with +{key}=VALUE"
    near = nearest(name, [*keys, *(f"{parent}.{field}" for field in fields)], parent)
    hint = f" (did you mean {near!r}?)" if near else ""
    allowed = sorted(str(other) for other in beside if other != "hydra" and other not in HYDRA)
    answer = f"allowed: {', '.join(allowed)}" if allowed else "it has no keys"
    return f"unknown configuration key {key!r}{hint}; {answer}"


def _check_together(config: Mapping[str, Any]) -> None:
    """Fields that exclude each other."""
    ne, dataset = config.get("ne", {}), config["dataset"]
    if ne.get("count") is not None and ne.get("ratio") is not None:
        raise ConfigError(
            f"ne.count={ne['count']} and ne.ratio={ne['ratio']} exclude each other: a number of heads off, or their "
            "share; set the other to null"
        )
    for name, usual in (("shots", None), ("draw", 0)):
        if config.get(name, usual) != usual and dataset.get("shots") is None:
            raise ConfigError(
                f"{name}={config[name]} means nothing to task {dataset.get('name')!r}, which is no few-shot set; "
                f"allowed: {name}={shown(usual)}, or dataset=fewshot/..."
            )

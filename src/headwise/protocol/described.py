"""A method's configuration by its name and fields, as the command line would compose it, without hydra.

The defaults are those of conf/, which lies in the package as ``headwise/conf``. OmegaConf, by which hydra merges files
and replaces interpolations, does so here too; of hydra's lists of defaults only what methods use is read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headwise.errors import ConfigError, suggest
from headwise.protocol.filling import fill_method
from headwise.protocol.revisions import fill_revisions
from headwise.schema.kinds import PUBLISHED
from headwise.schema.nodes import each_node
from headwise.schema.tree import check_method, unknown_key

OmegaConf.register_new_resolver("mul", lambda a, b: a * b, replace=True)

CONF = Path(__file__).resolve().parents[1] / "conf"
"""The configuration files, of a checkout and of an installed package alike."""
BESIDE = ("rank", "ne", "protocol")
"""Groups whose values methods take by interpolation; their options are the defaults of conf/config.yaml."""
TASK = "own"
"""What stands for the name of a task: there is none."""


@functools.cache
def method_names() -> tuple[str, ...]:
    """Every method of conf/, such as ``head_lora`` and ``hs/pissa``."""
    folder = CONF / "method"
    return tuple(sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")))


def described(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a method with nothing left open.

    Args:
        name: of a file of conf/method, without its ending.
        fields: of the method, in place of its defaults. Of a method of two phases ``first`` and ``heads`` take the name
            of another method, or a mapping of fields of the one that stands there.

    Raises:
        ConfigError: for an unknown method or field, or a value out of range: says what is allowed and what is near.
    """
    chosen = {key: value for key, value in fields.items() if isinstance(value, str) and _is_phase(name, key)}
    node = _composed(f"method/{_known(name)}", chosen)
    for key, value in fields.items():
        if key not in chosen:
            _set(node, "method", key, value)
    root = OmegaConf.create({**_beside(), "dataset": {"name": TASK}})
    root["method"] = node
    try:
        plain: Any = OmegaConf.to_container(root, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or name} must be given: {str(error).splitlines()[0]}") from error
    each_node(plain["method"], _refuse_published)
    check_method(plain["method"])
    method, _ = fill_method(plain["method"], TASK, plain["ne"])
    check_method(method)
    return fill_revisions(method)


def _known(name: str) -> str:
    names = method_names()
    if name not in names:
        raise ConfigError(f"unknown method {name!r}{suggest(str(name), names)}")
    return name


def _is_phase(name: str, key: str) -> bool:
    """Whether a method has another method below this key, which is chosen by its name."""
    return any(package == key for path, package in _defaults(f"method/{_known(name)}")[1] if path != "_self_")


def _composed(path: str, chosen: Mapping[str, str] | None = None) -> DictConfig:
    """A file below conf/ with its list of defaults, in which `chosen` methods, by package, take others' places."""
    own, defaults = _defaults(path)
    whole = OmegaConf.create({})
    for other, package in defaults:
        if other == "_self_":
            part = own
        elif package in (chosen or {}):
            part = _composed(f"method/{_known((chosen or {})[package])}")
        else:
            part = _composed(other)
        placed: Any = part if not package else _below(package, part)
        whole = OmegaConf.merge(whole, placed)  # type: ignore[assignment]
    return whole


def _below(package: str, part: DictConfig) -> DictConfig:
    whole: Any = part
    for name in reversed(package.split(".")):
        whole = OmegaConf.create({name: whole})
    return DictConfig(whole)


def _defaults(path: str) -> tuple[DictConfig, list[tuple[str, str]]]:
    """What a file holds itself, and its list of defaults: paths below conf/, each with the node that it writes to.

    An entry that only hydra can read is refused.
    """
    own: Any = OmegaConf.load(CONF / f"{path}.yaml")
    entries = own.pop("defaults", []) if "defaults" in own else []
    group = path.rpartition("/")[0]
    found = []
    for entry in entries:
        text = entry if isinstance(entry, str) else "".join(f"{key}={value}" for key, value in entry.items())
        where, _, option = text.partition("=")
        where, _, package = where.partition("@")
        base = where.removeprefix("/") if where.startswith("/") or where == "_self_" else f"{group}/{where}"
        if where == "_self_":
            found.append((where, ""))
        elif (package or not where.startswith("/")) and (CONF / f"{base}/{option}".rstrip("/")).with_suffix(
            ".yaml"
        ).is_file():
            found.append((f"{base}/{option}".rstrip("/"), "" if package == "_here_" else package))
        else:
            raise ConfigError(f"conf/{path}.yaml: its default {entry!r} can be read by train.py only")
    # as hydra: a file without _self_ comes after what it names
    return own, found if ("_self_", "") in found else [*found, ("_self_", "")]


@functools.cache
def _beside() -> dict[str, Any]:
    """What stands beside a method, by group: the options that conf/config.yaml chooses."""
    config: Any = OmegaConf.load(CONF / "config.yaml")
    options = {
        key: str(value) for entry in config.defaults if not isinstance(entry, str) for key, value in entry.items()
    }
    return {group: OmegaConf.load(CONF / group / f"{options[group]}.yaml") for group in BESIDE}


def _set(node: Any, path: str, key: str, value: Any) -> None:
    """Give a field a value, or fields within it theirs; one that its file leaves out is checked afterwards."""
    if key == "_target_" or (isinstance(value, Mapping) and "_target_" in value):
        raise ConfigError(f"{path}.{key}: a class is chosen by the name of its method")
    if "." in key:
        raise ConfigError(unknown_key(f"{path}.{key}", OmegaConf.to_container(node)))  # type: ignore[arg-type]
    if isinstance(value, Mapping) and isinstance(node.get(key), DictConfig):
        for name, entry in value.items():
            _set(node[key], f"{path}.{key}", name, entry)
    else:
        node[key] = list(value) if isinstance(value, tuple) else value


def _refuse_published(key: str, node: dict[str, Any]) -> dict[str, Any]:
    for name, value in node.items():
        if value == PUBLISHED:
            raise ConfigError(
                f"{key}.{name}={PUBLISHED}: the authors' values are of tasks, here there is none; give one"
            )
    return node

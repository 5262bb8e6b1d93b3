"""What a result is: a hash over everything that can change a number, and over nothing else.

A file enters by the sha256 of its content, never by its path. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from headwise.errors import ConfigError
from headwise.storage.hashes import (
    cache_folder as cache_folder,  # both had their place here, and methods of users name it
)
from headwise.storage.hashes import file_sha256 as file_sha256

IGNORED: dict[str, str] = {
    "hydra": "how the job was launched",
    "root": "where results lie",
    "name": "name of a folder",
    "variant": "name of a folder",
    "experiment": "name of a file",
    "labels": "stamps on a result; what they describe is in the fingerprint itself",
    "dataset.aliases": "other spellings of a name",
    "backbone.weights_are": "what the user says of a file whose content is in the fingerprint",
    "method.label": "name of a row",
    "method.*.label": "name of a row",
    "logger": "where curves are sent",
    "table": "how results are shown",
    "rank": "read by interpolation only; its effect is in the nodes that use it",
    "ne": "read by interpolation only; its effect is in the nodes that use it",
    "per_task": "read by interpolation only; its effect is in the nodes that use it",
    "workers": "how fast data arrives, not which data",
    "num_workers": "how fast data arrives, not which data",
    "*.workers": "how fast data arrives, not which data",
    "*.num_workers": "how fast data arrives, not which data",
    "*.cache_dir": "where decoded images are kept",
    "progress": "what is printed",
    "*.progress": "what is printed",
    "trainer.enable_progress_bar": "what is printed",
    "trainer.enable_model_summary": "what is printed",
    "trainer.log_every_n_steps": "what is printed",
    "trainer.default_root_dir": "where files lie",
}
"""Dotted keys (shell patterns, ``*`` crosses dots) that cannot change a number, each with its reason."""

METHOD_FILES = ("checkpoint", "param_req")
"""Fields of methods that name files."""
LOCATIONS: tuple[str, ...] = (
    "from",
    "data.root",
    "backbone.weights",
    "backbone.checkpoint",
    *(f"{place}.{name}" for name in METHOD_FILES for place in ("method", "method.*")),
)
"""Dotted keys that say where files lie: a value there must be replaced by the hash of its content."""

# beyond it a float stands for several whole numbers, so it stays a float
_EXACT_INTEGERS = 2**53


def identity(config: Mapping[str, Any], contents: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Reduce a resolved configuration to what can change a number.

    Args:
        config: resolved: plain values, no interpolation, no ``auto`` left.
        contents: dotted key -> hash of the content found there. It replaces the value of that key (a path), or adds
            the key where the configuration has none.
    Returns:
        A canonical copy, ready for `fingerprint` and to be stored beside the result.
    Raises:
        ConfigError: if a key of `LOCATIONS` holds a path that ``contents`` does not cover, or a value is not JSON.
    """
    reduced = _reduced(canonical(config), "", contents or {})
    for key, content in (contents or {}).items():
        node = reduced
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"content hash given for {key!r}, but {parent!r} there is {child!r}, not a mapping")
            node = child
        node[last] = content
    return reduced


def _reduced(node: dict[str, Any], prefix: str, contents: Mapping[str, str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in contents or any(fnmatchcase(key, pattern) for pattern in IGNORED):
            continue
        if value is not None and any(fnmatchcase(key, pattern) for pattern in LOCATIONS):
            raise ConfigError(
                f"{key}={value!r} says where files lie, which may not enter a fingerprint; "
                f"give the hash of their content: identity(config, contents={{{key!r}: sha256}})"
            )
        kept[name] = _reduced(value, f"{key}.", contents) if isinstance(value, dict) else value
    return kept


def fingerprint(plain: Mapping[str, Any], digits: int = 16) -> str:
    """Return the first ``digits`` hex digits (8..64) of the sha256 of the canonical JSON of ``plain``.

    The order of keys does not matter, nor do tuple or list, nor 1 or 1.0; True and 1 differ.

    Raises:
        ConfigError: if a value has no JSON form; names its dotted key.
    """
    if not 8 <= digits <= 64:
        raise ConfigError(f"digits of a fingerprint must be in 8..64, got {digits}")
    # the addresses of everything stored rest on this very text: another separator would make all of it unknown
    text = json.dumps(canonical(plain), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:digits]


def canonical(value: Any, key: str = "", merge: bool = True) -> Any:
    """Return ``value`` as dict, list, str, bool, int, float or None; with ``merge``, 1.0 becomes 1.

    Raises:
        ConfigError: for any other type, a key that is no string, or a number that is not finite; names the dotted key.
    """
    where = key or "(top)"
    # before the whole numbers, of which a bool is one to Python
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; only finite numbers can be stored")
        return int(value) if merge and value.is_integer() and abs(value) < _EXACT_INTEGERS else float(value)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ConfigError(f"{where} has the key {name!r} of type {type(name).__name__}; keys must be strings")
        return {str(name): canonical(child, f"{key}.{name}" if key else name, merge) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(child, f"{key}.{index}" if key else str(index), merge) for index, child in enumerate(value)]
    hint = "; give the hash of its content instead of a path" if isinstance(value, os.PathLike) else ""
    raise ConfigError(
        f"{where} is of type {type(value).__name__}, which has no JSON form{hint}; "
        "allowed: str, bool, int, float, None, list, mapping"
    )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """List where two plain mappings differ: ``method.rank: 8 vs 16``, sorted by key; ``(absent)`` for a missing one."""
    first, second = leaves(canonical(a), ""), leaves(canonical(b), "")
    lines = []
    for key in sorted(first.keys() | second.keys()):
        left = json.dumps(first[key]) if key in first else "(absent)"
        right = json.dumps(second[key]) if key in second else "(absent)"
        if left != right:
            lines.append(f"{key}: {left} vs {right}")
    return lines


def at(node: Any, key: str) -> Any:
    """The value at a dotted key of plain mappings; None where there is none."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def few(lines: Sequence[str], limit: int = 6) -> str:
    """Join the first lines; say how many more there are."""
    more = f"; and {len(lines) - limit} more" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + more


def leaves(value: Any, key: str) -> dict[str, Any]:
    """Flatten to dotted key -> scalar; a list of scalars and an empty mapping are leaves."""
    if isinstance(value, dict) and value:
        children = value.items()
    elif isinstance(value, list) and any(isinstance(child, dict | list) for child in value):
        children = {str(index): child for index, child in enumerate(value)}.items()
    else:
        return {key: value}
    return {k: v for name, child in children for k, v in leaves(child, f"{key}.{name}" if key else name).items()}

"""Which classes a file may name: headwise's own, and those of modules that the user trusts. Standard library only.

A ``_target_`` in a record or in a folder that somebody sent is text. It is compared with closed tables before anything
is imported, and the class that it names gets plain values: nothing in them is ever called or imported.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from headwise.errors import ConfigError, HeadwiseError

T = TypeVar("T")

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_SHOWN = 200


def prefixes(trust: str | Iterable[str]) -> tuple[str, ...]:
    """The modules that a user trusts, one name or several; ConfigError for what is no name of a module."""
    names = tuple(trust) if isinstance(trust, Iterable) and not isinstance(trust, str) else (trust,)
    for name in names:
        if not (isinstance(name, str) and _DOTTED.fullmatch(name)):
            raise ConfigError(f"trust names modules of your own, such as 'my_methods', got {name!r}")
    return names


def build(
    spec: Any, own: Callable[[str], type[T] | None], base: Callable[[type], bool], what: str, trust: Iterable[str] = ()
) -> T:
    """An object from plain data that a file holds.

    Args:
        spec: ``_target_`` and keyword arguments.
        own: the class of ours that a target names, None if it names none.
        base: whether a class of a trusted module is of the right kind.
        what: it shall be, for errors: ``a method``.
        trust: modules whose classes may be named as well, with everything below them.

    Raises:
        ConfigError: if the target is not allowed, or the arguments do not fit it; whatever the class refuses.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{what} is described by a mapping with _target_, got {_short(repr(spec))}")
    target = spec.get("_target_")
    kind = own(target) if isinstance(target, str) else None
    if kind is None:
        kind = _trusted(target, base, what, prefixes(trust))
    options = {name: value for name, value in spec.items() if name != "_target_"}
    if strange := [name for name in options if not (isinstance(name, str) and name.isidentifier()) or name[0] == "_"]:
        raise ConfigError(f"{target} takes no {_short(repr(strange[0]))}: a record holds plain arguments only")
    return fit(kind, options, str(target))


def below(folder: Path, package: str, base: type[T], target: str) -> type[T] | None:
    """The class of a kind of `base` that a dotted name means in a package of ours; None for anything else.

    Only modules that lie in the package's folder are imported, and only classes they define are named.
    """
    modules = {f"{package}.{file.stem}" for file in folder.glob("*.py")}
    module, _, name = target.rpartition(".")
    kind = getattr(importlib.import_module(module), name, None) if module in modules else None
    return kind if isinstance(kind, type) and issubclass(kind, base) and kind.__module__ in modules else None


def fit(kind: type[T], options: Any, what: str) -> T:
    """An object of one of our classes from plain data that a file holds.

    Raises:
        ConfigError: if the data do not fit it; whatever the class refuses.
    """
    try:
        return kind(**options)
    except HeadwiseError:
        raise
    except Exception as error:  # the data are a stranger's: whatever they lead to says that they do not fit
        raise ConfigError(f"{what}: {type(error).__name__}: {_short(str(error))}") from error


def _trusted(target: Any, base: Callable[[type], bool], what: str, trust: tuple[str, ...]) -> type[Any]:
    """A class of a module that the user trusts; imports nothing else."""
    is_name = isinstance(target, str) and _DOTTED.fullmatch(target)
    if not is_name or not any(target.startswith(f"{prefix}.") for prefix in trust):
        hint = ""
        if is_name and "." in target:
            module = target.partition(".")[0]
            hint = f"; allow a module that you wrote yourself: trust={module!r} in Python, --trust {module} of a script"
        raise ConfigError(f"{_short(repr(target))} is not {what} of headwise, and no file may choose other code{hint}")
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{target} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and base(kind)):
        raise ConfigError(f"{target} is not {what}")
    return kind


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

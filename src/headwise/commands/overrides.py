"""Choices as they are typed: paths with any characters, numbers, and the quoting that works where Hydra reads nothing.

Nothing but hydra is imported.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from headwise.commands.sizes import spelled
from headwise.errors import ConfigError
from headwise.storage.atomic import at_home

PATHS = ("root", "data.root", "data.cache_dir", "backbone.weights", "*.checkpoint")
"""Keys whose value is a path whatever its characters are."""
_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w$/@:-]*(\.[\w$/@:-]+)*", re.ASCII)
GROUPS = ("backbone", "rank", "ne", "method", "dataset", "data", "protocol", "trainer", "logger", "gate", "experiment")
"""Groups of conf/; what is chosen is the name of a file."""
_NO_OPTION = r"[-+.\d][\d._]*(e[-+]?\d+)?|true|false|null|[-+]?(nan|inf)"
_PAIRS = {"[": "]", "{": "}"}


def readable(arguments: Sequence[str], sweeps: bool = False) -> list[str]:
    """The command line with paths quoted that Hydra's grammar would not read, or not as text; ``~`` is the home folder.

    Numbers for ``rank`` and ``ne`` become names of options (`headwise.commands.sizes`).
    In a sweep a comma parts choices, as ever: a path that holds one has to be quoted by the user.

    Args:
        arguments: of the command line.
        sweeps: whether it is a sweep even if nothing among them says so.

    Raises:
        ConfigError: for a value without a key, several options of a group as a list, or two experiments.
    """
    experiments = {word for word in arguments if word.startswith("experiment=")}
    if len(experiments) > 1:
        raise ConfigError(f"{' '.join(sorted(experiments))}: one experiment at a time, they bring their own choices")
    sweeps = sweeps or any(word in ("-m", "--multirun") or word.startswith("experiment=") for word in arguments)
    return [_readable(word, sweeps) for word in arguments]


def _readable(word: str, sweeps: bool) -> str:
    word = spelled(word)
    key, equals, value = word.partition("=")
    if equals and not key.strip("+~ "):
        raise ConfigError(explained(word))  # hydra would look for a group without a name
    group = key.lstrip("+").partition("@")[0]
    if group in GROUPS and value.startswith("[") and "," in value:  # hydra would merge them into one
        raise ConfigError(several(word))
    if group in GROUPS and re.fullmatch(_NO_OPTION, value, re.IGNORECASE) and (group, value) != ("experiment", "null"):
        return f"{key}={quoted(value)}"  # hydra wants the name of an option to be text
    if not (equals and value) or not any(fnmatchcase(key.lstrip("+"), pattern) for pattern in PATHS):
        return word
    read = _parsed(word)
    if read is None:
        if value[0] in "'\"":
            return word  # the user's own quotes, which do not fit
        return f"{key}={','.join(map(_path, value.split(',') if sweeps else [value]))}"
    found = read.value()
    if isinstance(found, str):
        return f"{key}={_path(found)}" if found.partition("/")[0] == "~" else word
    return f"{key}={quoted(value.strip())}" if isinstance(found, bool | int | float) else word


def _path(text: str) -> str:
    text = text.strip()
    return quoted(str(at_home(text)) if text.partition("/")[0] == "~" else text)


def quoted(text: str) -> str:
    """The text as Hydra's grammar reads it, whatever its characters."""
    return QuotedString(text, Quote.double if "'" in text and '"' not in text else Quote.single).with_quotes()


def explained(word: str) -> str:
    """What to type in place of a choice that Hydra's grammar does not read, one line.

    Args:
        word: as it was typed, ``key=value``.
    """
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word!r} is no choice: choices are KEY=VALUE, such as method=lora (-m for a sweep, --help for a list)"
    if not _KEY.fullmatch(key):
        return f"{word!r}: {key!r} is no key; keys are names with dots between them, such as protocol.lr"
    for spelling in _spellings(value):
        if _parsed(f"{key}={spelling}") is not None:
            return f"{word} holds characters that need quotes; type {shlex.quote(f'{key}={spelling}')}"
    return f"{word} cannot be read; quote the value, type {shlex.quote(f'{key}={quoted(value)}')}"


def several(word: str) -> str:
    """What to type in place of a choice of several values where one is wanted, one line."""
    key, _, value = word.partition("=")
    if key.lstrip("+").partition("@")[0] in GROUPS:
        choices = shlex.quote(f"{key}={value.strip('[] ')}")
        return f"{word} holds several options: choose one, or add -m for a sweep over them: -m {choices}"
    text = shlex.quote(f"{key}={quoted(value)}")
    return f"{word} holds several values: add -m for a sweep over them; a list is {key}=[{value}], a text {text}"


def _spellings(value: str) -> Iterator[str]:
    """Values that may be meant, the likeliest first."""
    end = _PAIRS.get(value[:1], "")
    if end:
        inner = value[1:].removesuffix(end)
        parts = [part.partition(":") if end == "}" else ("", "", part) for part in inner.split(",")]
        yield value[0] + ",".join(f"{name}{colon}{_element(text)}" for name, colon, text in parts) + end
    elif "," in value:
        yield ",".join(_element(text) for text in value.split(","))
    yield quoted(value)


def _element(text: str) -> str:
    return text if _parsed(f"x={text}") is not None else quoted(text.strip())


def _parsed(word: str) -> Override | None:
    """What Hydra's grammar reads; None if it reads nothing."""
    parser: Any = OverridesParser.create()
    try:
        return parser.parse_override(word)
    except HydraException:
        return None

"""Choices as they are typed: paths with any characters, numbers, and the quoting that works where Hydra reads nothing.

Nothing but hydra is imported.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException

from headwise.commands.sizes import spelled
from headwise.errors import ConfigError
from headwise.storage.atomic import at_home

PATHS = ("root", "from", "data.root", "data.cache_dir", "backbone.weights", "*.checkpoint", "*.param_req")
"""Keys whose value is a path whatever its characters are."""
_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w$/@:-]*(\.[\w$/@:-]+)*", re.ASCII)
GROUPS = (
    *("backbone", "rank", "ne", "method", "dataset", "data", "protocol", "trainer", "logger", "gate", "consistency"),
    "experiment",
)
OF_METHODS = {"gate": "method.gate=heart", "consistency": "+method.consistency=pace"}
"""Groups whose options are modes, values of the methods' fields of these names; and how one is chosen."""
"""Groups of conf/; what is chosen is the name of a file."""
_NO_OPTION = r"[-+.\d][\d._]*(e[-+]?\d+)?|true|false|null|[-+]?(nan|inf)"
_PAIRS = {"[": "]", "{": "}"}
_CALL = re.compile(r"[\[{\s]*([A-Za-z]\w*)\s*\(")
"""How a value begins that calls a function of Hydra's grammar."""
FUNCTIONS = tuple(OverridesParser.create().functions.definitions)
CALLS = "A,B or choice(A,B), range(FIRST,END), range(FIRST,END,STEP), glob(PATTERN)"
"""What names the values of a sweep; the grammar's other functions stand around one of these."""


def readable(arguments: Sequence[str], sweeps: bool = False) -> list[str]:
    """The command line with paths quoted that Hydra's grammar would not read, or not as text; ``~`` is the home folder.

    Numbers for ``rank`` and ``ne`` become names of options (`headwise.commands.sizes`).
    In a sweep a comma parts choices, as ever: a path that holds one has to be quoted by the user.

    Args:
        arguments: of the command line.
        sweeps: whether it is a sweep even if nothing among them says so.

    Raises:
        ConfigError: for a value without a key, several options of a group as a list, two experiments, or a function of
            Hydra's where it means nothing.
    """
    experiments = {word for word in arguments if word.startswith("experiment=")}
    if len(experiments) > 1:
        raise several_experiments(" ".join(sorted(experiments)))
    sweeps = sweeps or any(word in ("-m", "--multirun") or word.startswith("experiment=") for word in arguments)
    return [_readable(word, sweeps) for word in arguments]


def _readable(word: str, sweeps: bool) -> str:
    word = spelled(word)
    key, equals, value = word.partition("=")
    if equals and not key.strip("+~ "):
        raise ConfigError(explained(word))  # hydra would look for a group without a name
    group = key.lstrip("+").partition("@")[0]
    if group in GROUPS and value[:1] + value[-1:] == "[]" and "," in value:  # hydra would merge them into one
        raise ConfigError(several(word))
    if "(" in value and (override := _parsed(word)) is not None:
        check_sweep(override)
        if override.is_sweep_override() and not sweeps:
            raise ConfigError(several(word))
    if group in GROUPS and ".." in value.split("/"):
        raise ConfigError(f"{word}: an option is a file below conf/{group}, named without '..'")
    if group in GROUPS and re.fullmatch(_NO_OPTION, value, re.IGNORECASE) and (group, value) != ("experiment", "null"):
        return f"{key}={quoted(value)}"  # hydra wants the name of an option to be text
    if not (equals and value) or not any(fnmatchcase(key.lstrip("+"), pattern) for pattern in PATHS):
        return word
    read = _parsed(word)
    if read is None:
        if value[0] in "'\"":
            return word  # the user's own quotes, which do not fit
        return f"{key}={','.join(map(_path, value.split(',') if sweeps else [value]))}"
    read_value = read.value()
    if isinstance(read_value, str):
        return f"{key}={_path(read_value)}" if read_value.partition("/")[0] == "~" else word
    return f"{key}={quoted(value.strip())}" if isinstance(read_value, bool | int | float) else word


def several_experiments(given: str) -> ConfigError:
    """The refusal of more than one experiment."""
    return ConfigError(f"{given}: one experiment at a time, they bring their own choices")


def check_sweep(override: Override) -> None:
    """Refuse what Hydra's grammar reads as values of a sweep, but nobody could run."""
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{override.input_line} is no list of values; name them, or give range(FIRST,END)")
    if isinstance(value, RangeSweep):
        try:
            next(iter(value.range()), None)
        except (ValueError, ArithmeticError) as error:  # a step of 0, or an end that is no number
            raise ConfigError(f"{override.input_line} has no end; allowed: {CALLS}") from error
    inner = value.list if isinstance(value, ChoiceSweep) else [] if isinstance(value, Sweep | Glob) else value
    if _holds_sweep(inner):
        raise ConfigError(f"{override.input_line} holds a sweep inside of a value; allowed, alone and with -m: {CALLS}")


def _holds_sweep(value: Any) -> bool:
    """Whether a sweep stands anywhere in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Sweep | Glob) or any(map(_holds_sweep, inner))


def _path(text: str) -> str:
    text = text.strip()
    return quoted(str(at_home(text)) if text.partition("/")[0] == "~" else text)


def quoted(text: str) -> str:
    """The text as Hydra's grammar reads it, whatever its characters."""
    return QuotedString(text, Quote.double if "'" in text and '"' not in text else Quote.single).with_quotes()


def explained(word: str) -> str:
    """What to type in place of a choice that Hydra's grammar does not read, one line."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word!r} is no choice: choices are KEY=VALUE, such as method=lora (-m for a sweep, --help for a list)"
    if not _KEY.fullmatch(key):
        return f"{word!r}: {key!r} is no key; keys are names with dots between them, such as protocol.lr"
    if (call := _CALL.match(value)) and (near := get_close_matches(call[1].lower(), FUNCTIONS, 1, 0.75)):
        why = "does not take this" if call[1] in near else f"is no function (did you mean {near[0]}()?)"
        return f"{word}: {call[1]}() {why}; allowed in a sweep (-m): {CALLS}"
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
    if _CALL.match(value):
        return f"{word} holds several values: add -m for a sweep over them"
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

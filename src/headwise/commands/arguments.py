"""Arguments of scripts and benchmarks: what a word may be, refused in one line before any work. Standard library only.

Each type takes the word that was typed. It gives the value, or raises a ConfigError that says what is allowed and what
was given; `Parser` puts the option's name in front.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from headwise.commands.written import check_file, check_folder
from headwise.errors import ConfigError, HeadwiseError, on_one_line, suggest
from headwise.schema.targets import prefixes
from headwise.storage.atomic import at_home
from headwise.storage.plain import Misfit, is_blocked, mapping, no_file, read_json
from headwise.storage.weights import weights_file

MOST_SHOWN = 80
_UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """Argparse's parser, whose refusals are one line with the nearest right spelling of an option or a choice."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # argparse takes -1 for a value, and -inf or -1e9 for an option that it does not know
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's own; words that belong together may stand on both sides of an option, if there is no ``--``."""
        words = sys.argv[1:] if args is None else args
        return (super().parse_args if "--" in words else self.parse_intermixed_args)(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Print why and leave with status 2; argparse would print its usage as well."""
        if message.startswith(_UNKNOWN):
            word = message.removeprefix(_UNKNOWN).split(" ")[0]
            hint = suggest(word.partition("=")[0], self._option_string_actions) if word.startswith("-") else ""
            message = f"unknown argument {shown(word)}{hint}"
        # "argument --threads: must be ..." reads as a sentence without the colon
        message = re.sub(r"^argument ([^:]+): must ", r"\1 must ", message).removeprefix("argument ")
        print(f"error: {on_one_line(message)}", file=sys.stderr)
        sys.exit(2)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not callable(action.type):
            return arg_string
        try:
            return action.type(arg_string)
        except HeadwiseError as error:  # argparse keeps the text of no other error than its own
            raise argparse.ArgumentError(action, str(error)) from error
        except OSError as error:  # a name that is too long, or a folder that may not be looked into
            raise argparse.ArgumentError(action, f"{shown(arg_string)}: {error.strerror or error}") from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = suggest(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {shown(value)}{hint}")


def shown(value: Any) -> str:
    """What was given, quoted, not too long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int
    most: int

    def __call__(self, word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            value = None
        if value is None or not self.least <= value <= self.most:
            raise ConfigError(f"must be a whole number in {self.least}..{self.most}, got {shown(word)}")
        return value


@dataclass(frozen=True)
class Real:
    """A number above `above`, or of at least `least`, and of at most `most`."""

    most: float
    least: float | None = None
    above: float | None = None

    def __call__(self, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        is_low = (self.least is not None and value < self.least) or (self.above is not None and value <= self.above)
        if is_low or not value <= self.most:
            lower = f"of at least {self.least:g}" if self.above is None else f"above {self.above:g}"
            raise ConfigError(f"must be a number {lower} and at most {self.most:g}, got {shown(word)}")
        return value


SEED = Whole(0, 2**32 - 1)
THREADS = Whole(1, 1024)


@dataclass(frozen=True)
class Letters:
    """Some of a few letters, none of them twice."""

    allowed: str

    def __call__(self, word: str) -> str:
        if not word or len(set(word)) < len(word) or not set(word) <= set(self.allowed):
            raise ConfigError(f"must be some of the letters {self.allowed}, each once, got {shown(word)}")
        return word


@dataclass(frozen=True)
class OutFile:
    """A file to write; with `suffix`, one whose name ends so."""

    suffix: str = ""

    def __call__(self, word: str) -> Path:
        file = _path(word)
        check_file(file)
        if not file.name.endswith(self.suffix):
            raise ConfigError(f"{word} must end in {self.suffix}")
        return file


def patterns(word: str) -> tuple[str, ...]:
    """Names with ``*``, separated by commas."""
    found = tuple(part.strip() for part in word.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise ConfigError(f"must be different names separated by commas, got {shown(word)}")
    return found


def names_file(word: str) -> dict[str, str]:
    """A JSON file of names by names."""
    try:
        given = read_json(old_file(word))
        mapping(given, "it")
    except Misfit as error:
        raise ConfigError(f"{word}: {error}; allowed: a JSON object of text by name") from error
    if not all(isinstance(value, str) and value.strip() for value in given.values()):
        raise ConfigError(f"{word}: a name is text that is not empty; allowed: a JSON object of text by name")
    return dict(given)


def record_file(word: str) -> Path:
    """A file for what a benchmark measured: none yet, or an earlier record, which is replaced."""
    file = OutFile()(word)
    if file.is_file() and file.stat().st_size:
        try:
            mapping(read_json(file), "it")
        except Misfit as error:
            raise ConfigError(f"{word} is there and no record of a benchmark: {error}; name another file") from error
    return file


def out_folder(word: str) -> Path:
    """A folder to write to; it is made where there is none."""
    folder = _path(word)
    check_folder(folder)
    return folder


def folder(word: str) -> Path:
    """A folder to read from, or a place where one may be made later."""
    path = _path(word)
    if is_blocked(at_home(path)):
        raise ConfigError(f"{word} is no folder; name one")
    return path


def old_folder(word: str) -> Path:
    """A folder that is there."""
    path = folder(word)
    if not at_home(path).is_dir():
        raise ConfigError(f"{word} is not there; name a folder that is")
    return path


def old_place(word: str) -> Path:
    """A folder or a file that is there."""
    path = _path(word)
    if not at_home(path).is_dir() and (why := no_file(at_home(path))):
        raise ConfigError(f"{word} {why}; name a folder, or a list file")
    return path


def old_file(word: str) -> Path:
    """A file that is there: no folder, and no device, which would never end."""
    path = _path(word)
    if why := no_file(at_home(path)):
        raise ConfigError(f"{word} {why}; name a file that can be read")
    return path


def weights(word: str) -> Path:
    """What ``backbone.weights`` may be: a file, or ``package:FILE``, ``auto`` or ``none``."""
    path = _path(word)
    if word not in ("auto", "none"):
        try:
            weights_file(word)
        except HeadwiseError as error:  # the way out is another here
            raise ConfigError(f"{str(error).rpartition('; ')[0]}; name a file that can be read") from None
    return path


def module(word: str) -> str:
    """A module of the user's own, by its dotted name."""
    return prefixes(word)[0]


def _path(word: str) -> Path:
    if re.search(r"[\x00-\x1f\x7f]", word):
        raise ConfigError(f"must be a path without control characters, got {shown(word)}")
    return Path(word)

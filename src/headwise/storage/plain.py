"""JSON that anybody may have written: read within bounds, and compared with what it must look like.

Standard library only. A shape is a function of a value and of where it stands; it raises `Misfit` for what it is not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIMIT = 64 << 20
"""Bytes of a file beyond which it is no record."""
STORES = 1 << 30
"""The same of what this machine remembers of many files."""
COUNTED = 10**16
"""More than this of anything is no count."""
DEPTH = 60
"""Brackets within brackets beyond which it is none."""
_DIGITS = 20
_BRACKETS = re.compile(r"[\[\]{}]")
_LARGE = re.compile(r"[eE][+0-9][0-9]{2}")
_LONG = re.compile(r"[ ,:\[-][0-9]{300}")
"""Floats that may be too large, or text that looks like one."""
_STRAY = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 80

Shape = Callable[[Any, str], None]


class Misfit(ValueError):  # noqa: N818
    """A file or a value that is not what it must be; the text says why, without the file's name."""


def no_file(path: str | Path) -> str | None:
    """Why a path names no file that can be read, None where it names one.

    Nothing is opened: a pipe would be waited for, a device never ends.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a text is looked at as it is
    except (OSError, ValueError):
        return "does not exist"
    return None if stat.S_ISREG(mode) else "is a folder" if stat.S_ISDIR(mode) else "is a device or a pipe"


def is_blocked(path: str | Path) -> bool:
    """Whether no folder can be made there: something else lies there or above, or the name is none (too long, NUL)."""
    there = Path(os.path.abspath(path))  # noqa: PTH100 - links are not followed
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            there.lstat()
        return not next(folder for folder in (there, *there.parents) if os.path.lexists(folder)).is_dir()
    except (OSError, ValueError):
        return True


def read_json(path: Path, limit: int = LIMIT) -> Any:
    """Read a JSON file: a regular one of at most `limit` bytes, numbers finite and of at most 63 bits, text UTF-8.

    Raises:
        Misfit: if it is anything else. FileNotFoundError: if there is none. OSError: if it cannot be read.
    """
    status = path.stat()
    if why := no_file(path):
        raise Misfit(f"it {why}")
    if status.st_size > limit:
        raise Misfit(f"it has more than {limit} bytes")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise Misfit("it is not text") from error


def parse(text: str) -> Any:
    """Values of a JSON text; see `read_json`."""
    try:
        is_large = _LARGE.search(text) or _LONG.search(text)
        floats = _float if is_large else None  # called for each of them, which costs more than the reading
        value = json.loads(text, parse_constant=_constant, parse_int=_whole, parse_float=floats)
    except json.JSONDecodeError as error:
        raise Misfit(f"it is not JSON ({error})") from error
    except RecursionError as error:
        raise Misfit("it is nested too deeply") from error
    deepest = level = 0
    for bracket in _BRACKETS.finditer(text):  # those within strings count as well, which a record has no use for
        level += 1 if bracket[0] in "[{" else -1
        deepest = max(deepest, level)
    if deepest > DEPTH:
        raise Misfit("it is nested too deeply")
    if _STRAY.search(text) and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise Misfit("it is not text")
    return value


def _constant(name: str) -> Any:
    raise Misfit(f"it holds {name}, which is no number")


def _whole(digits: str) -> int:
    if len(digits) <= _DIGITS and -(2**63) < (value := int(digits)) < 2**63:
        return value
    raise Misfit(f"it holds a number of {len(digits.lstrip('-'))} digits")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Misfit(f"it holds {digits[:_SHOWN]}, which is too large for a number")
    return value


def anything(value: Any, where: str) -> None:
    """Fits every value."""


def text(value: Any, where: str) -> None:
    """A string."""
    _must(isinstance(value, str), value, where, "text")


def whole(value: Any, where: str) -> None:
    """An integer; true is none."""
    _must(isinstance(value, int) and not isinstance(value, bool), value, where, "a whole number")


def count(value: Any, where: str) -> None:
    """An integer of at least 0, and of what can be counted."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    _must(is_whole and 0 <= value < COUNTED, value, where, "a whole number >= 0")


def number(value: Any, where: str) -> None:
    """An integer or a finite float."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _must(is_number, value, where, "a number")


def between(low: float, high: float) -> Shape:
    """A number from `low` to below `high`."""

    return _number_that(lambda value: low <= value < high, f"a number in {low}..{high}")


def within(low: float, high: float) -> Shape:
    """A number from `low` to `high`, such as a share."""

    return _number_that(lambda value: low <= value <= high, f"a number in {low}..{high}")


def _number_that(fits: Callable[[float], bool], what: str) -> Shape:
    def check(value: Any, where: str) -> None:
        number(value, where)
        _must(fits(value), value, where, what)

    return check


def flag(value: Any, where: str) -> None:
    """True or false."""
    _must(isinstance(value, bool), value, where, "true or false")


def scalar(value: Any, where: str) -> None:
    """Text, a number, true, false or null."""
    _must(value is None or isinstance(value, str | int | float), value, where, "text or a number")


def mapping(value: Any, where: str) -> None:
    """A mapping of whatever."""
    _must(isinstance(value, Mapping), value, where, "a mapping")


def matching(pattern: str, what: str) -> Shape:
    """Text that matches a regular expression whole."""
    compiled = re.compile(pattern)

    def check(value: Any, where: str) -> None:
        _must(isinstance(value, str) and compiled.fullmatch(value) is not None, value, where, what)

    return check


def maybe(shape: Shape) -> Shape:
    """Null, or a shape."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            shape(value, where)

    return check


def each(shape: Shape) -> Shape:
    """A list of values of one shape."""

    def check(value: Any, where: str) -> None:
        _must(isinstance(value, list | tuple), value, where, "a list")
        for index, item in enumerate(value):
            shape(item, f"{where}.{index}")

    return check


def every(shape: Shape, key: Shape = text) -> Shape:
    """A mapping whose values are of one shape."""

    def check(value: Any, where: str) -> None:
        mapping(value, where)
        for name, item in value.items():
            key(name, f"a key of {where}")
            shape(item, f"{where}.{name}")

    return check


def fields(needed: Mapping[str, Shape], more: Mapping[str, Shape] | None = None) -> Shape:
    """A mapping with the keys `needed`, and perhaps those of `more`; others besides are not looked at."""

    def check(value: Any, where: str) -> None:
        mapping(value, where or "it")
        prefix = f"{where}." if where else ""
        for name, shape in needed.items():
            if name not in value:
                raise Misfit(f"it lacks {name} of {where}" if where else f"it lacks {name}")
            shape(value[name], f"{prefix}{name}")
        for name, shape in (more or {}).items():
            if name in value:
                shape(value[name], f"{prefix}{name}")

    return check


def _must(fits: bool, value: Any, where: str, what: str) -> None:
    if not fits:
        shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
        raise Misfit(f"{where[:_SHOWN]} must be {what}, got {shown[:_SHOWN]}")

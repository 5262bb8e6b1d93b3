"""Typed errors of the library: every message says what was given, where, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class HeadwiseError(ValueError):
    """Base of everything that headwise raises on purpose; its text is meant for the user."""


class ConfigError(HeadwiseError):
    """A configuration that cannot be run: unknown name, value out of range, or options that exclude each other."""


class DataError(HeadwiseError):
    """Images, labels or list files that are missing, damaged, or not what they claim to be."""


class WeightsError(HeadwiseError):
    """Pretrained weights that are missing, truncated, or of another architecture."""


class CheckpointError(HeadwiseError):
    """A saved phase whose tensors do not fit the network they are loaded into."""


class ResultConflict(HeadwiseError):  # noqa: N818
    """A result folder that already holds another configuration."""


class StorageError(HeadwiseError, OSError):
    """A file or folder that cannot be written; the text names the path that the user knows, and why."""


class NonFiniteLoss(HeadwiseError):  # noqa: N818
    """Training diverged: the loss became NaN or infinite."""


class SweepError(HeadwiseError):
    """Some runs of a sweep failed; the others are finished."""


class Interrupted(HeadwiseError):  # noqa: N818
    """The user stopped the run; everything finished so far is on disk."""


def damage(error: BaseException) -> str:
    """What a library says of a file that it cannot read, one line; never torch's advice to read it without care."""
    text = " ".join(str(error).split())
    if "weights_only" in text:
        return "it holds more than tensors and plain data, or is no file of torch"
    return text[:200] or f"{type(error).__name__}, the file is empty or cut off"


def on_one_line(text: str) -> str:
    """Lines as one that a terminal can show: what is typed and read may hold any character."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(text.split()))


def suggest(given: str, allowed: Iterable[str]) -> str:
    """List the allowed names and, where one is close, the nearest: ``(did you mean 'x'?) one of: a, b``."""
    names = sorted(str(name) for name in allowed)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{hint}; allowed: {', '.join(names)}" if names else "; there is none"


def check_choice(what: str, given: str, allowed: Collection[str], of: str = "") -> None:
    """Refuse a name that is none of those allowed, with a ConfigError: ``unknown <what> 'x'<of>; allowed: a, b``."""
    if given not in allowed:
        raise ConfigError(f"unknown {what} {given!r}{of}{suggest(given, allowed)}")

"""The user's text of what goes wrong between a command line and a plan, whichever library says it first."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from headwise.commands.overrides import GROUPS, OF_METHODS, explained, several
from headwise.commands.sizes import WORDS
from headwise.errors import ConfigError, HeadwiseError, on_one_line, suggest
from headwise.schema.tree import unknown_key

AMBIGUOUS = re.compile(r"Ambiguous value for argument '(.*)'")
SEE = re.compile(r"\s*(See https://hydra\.cc|Config search path:|, set env var HYDRA_FULL_ERROR=1).*", re.DOTALL)
"""What hydra adds to its errors, to which ours have nothing to add."""
BLOCKED = re.compile(r"Target '([^']*)' is blocklisted")
MERGING = "Error merging override "
CONF = Path(__file__).resolve().parents[1] / "conf"
INSTALL = "; launchers other than basic are optional: pip install -e '.[launchers]'"


def text_of(error: BaseException) -> str:
    """The user's text of an error, with the nearest right spelling where hydra only lists."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        hint = INSTALL if group == "hydra/launcher" else f", or {WORDS[group]}" if group in WORDS else ""
        return (
            f"unknown {group or 'configuration'} {name!r}{_within(group, name) or suggest(name, error.options)}{hint}"
        )
    if isinstance(error, OverrideParseException):
        return explained(str(error.override))
    if isinstance(error, HydraException) and (match := AMBIGUOUS.match(str(error))):
        return several(match[1])
    if isinstance(error, HydraException) and "Could not load 'hydra/launcher/" in str(error):
        return f"{str(error).splitlines()[0]}{INSTALL}"
    if isinstance(error, HydraException) and (answer := _of_groups(str(error))):
        return answer
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HeadwiseError):
            return str(cause)
        key = getattr(cause, "full_key", None)
        parent = getattr(cause, "parent_node", None)
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key and isinstance(parent, DictConfig):
            return unknown_key(str(key), OmegaConf.to_container(parent))  # type: ignore[arg-type]
        cause = cause.__cause__ or cause.__context__
    text, why = SEE.sub("", str(error)), error.__cause__ or error.__context__
    if text.startswith(MERGING) and why is not None:  # hydra leaves the reason to the traceback
        return f"{text.removeprefix(MERGING)} cannot be taken: {_first_line(why)}"
    if match := BLOCKED.search(text):
        return f"{match[1]!r} may not be named by a configuration: it can run other programs or code"
    return _first_line(error) if isinstance(error, OmegaConfBaseException) else text


def _within(group: str, name: str) -> str:
    """Options of the name in folders of a group: ``peft/vera`` of ``vera``; empty if there are none."""
    places = (CONF / group).glob(f"*/{name}.yaml") if re.fullmatch(r"\w+", name) else ()
    found = " or ".join(f"{group}={file.parent.name}/{name}" for file in sorted(places))
    return found and f"; there is {found}"


def _first_line(error: BaseException) -> str:
    """What omegaconf says, without the lines about its own objects."""
    if isinstance(error, InterpolationResolutionError):
        return unmade(str(error.full_key or "a value of the configuration"), error)
    return str(error).partition("\n")[0]


def unmade(key: str, error: BaseException) -> str:
    """What is said of a key whose value an interpolation should give and does not."""
    why = str(error).partition("\n")[0].rpartition("interpolation: ")[2]
    return f"{key} cannot be made from what was given: {why}"


def _of_groups(text: str) -> str | None:
    """What is said where hydra finds no option to replace or to remove, or a second one; None for its other errors."""
    if match := re.match(r"Could not override '(.*)'\.\s+(?:No match|Did you mean)", text):
        group = match[1].partition("@")[0]
        hint = "" if group in GROUPS else suggest(group, GROUPS)
        if group in OF_METHODS:
            hint = f"; a method's own is {OF_METHODS[group]}"
        return f"no option of {match[1]!r} is chosen here, so none can be replaced{hint}"
    if match := re.match(r"Could not delete '(.*)'\.\s+No match", text):
        return f"{match[1]} is not chosen here, so it cannot be removed"
    if match := re.match(r"Could not delete from config\. '(.*)' does not exist\.", text):
        return f"{match[1]} is not there, so it cannot be removed"
    if match := re.match(
        r"Could not append to config\. An item is already at '(.*)'\.\s+Either remove \+ prefix: '(.*)'", text
    ):
        return f"{match[1]} is there already; without '+', {match[2]} sets it"
    if match := re.match(r"(\S+) appears more than once|Multiple values for (\S+?)\. ", text):
        group = match[1] or match[2]
        return f"{group!r} is chosen already; without '+', {group}=OPTION replaces the choice"
    if match := re.match(r"force-add of config groups is not supported: '\+\+(.*)'", text):
        return f"++{match[1]}: an option is chosen without '++'; type {match[1]}"
    return None


def one_line(error: BaseException, limit: int | None = 500) -> str:
    """The user's text of an error, its kind first where it was not meant for the user, at most `limit` characters."""
    text = on_one_line(text_of(error))
    if isinstance(error, OSError) and error.strerror:
        return f"{'' if error.filename is None else f'{os.fsdecode(error.filename)}: '}{error.strerror}"[:limit]
    is_explained = isinstance(error, HeadwiseError | HydraException | OmegaConfBaseException)
    return (text if is_explained else f"{type(error).__name__}: {text}")[:limit]


def not_given(key: str) -> ConfigError:
    """What is said of a key that has no default."""
    return ConfigError(f"{key} must be given: add {key}=VALUE to the command")


@contextlib.contextmanager
def instantiation() -> Iterator[None]:
    """Turn hydra's instantiation errors into ConfigError with the user's part of the text."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise not_given(on_one_line(str(error.full_key))) from error
    except InstantiationException as error:
        raise ConfigError(on_one_line(text_of(error))) from error
    except TypeError as error:
        raise ConfigError(on_one_line(str(error))) from error

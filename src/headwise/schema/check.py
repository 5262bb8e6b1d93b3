"""The engine: values against the kinds of their fields, by pydantic; a refusal is one line of the user's words.

Values are never changed by a check: what is stored and hashed is what was given.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, Required, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, InstanceOf, PydanticUserError, TypeAdapter, ValidationError, with_config
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict

from headwise.errors import ConfigError, suggest
from headwise.schema.secret import HIDDEN, is_secret

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
Key = Callable[[str], str]
"""How a field is named to the user: ``protocol.epochs``."""
T = TypeVar("T")


@dataclass(frozen=True)
class Fields:
    """What a mapping may hold: the kind of each field, and which have no default.

    Where it is open, others are allowed, of which nothing is known.
    """

    types: Mapping[str, Any]
    required: Collection[str] = ()
    is_open: bool = False

    @functools.cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """Pydantic's validator."""
        # a TypedDict and no model of pydantic, to which `_target_` would be a private name
        fields = {name: Required[t] if name in self.required else NotRequired[t] for name, t in self.types.items()}
        extra = {"extra": "allow"} if self.is_open else {}
        return TypeAdapter(with_config(ConfigDict(**{**STRICT, **extra}))(TypedDict("Fields", fields)))  # type: ignore[operator, typeddict-item]

    def check(self, values: Mapping[str, Any], key: Key, later: Collection[str] = ()) -> None:
        """Refuse the first wrong field: an unknown one, then one that is missing or of another kind.

        `key` names a field to the user; those of `later` may be missing, since their values are yet to come.

        Raises:
            ConfigError: saying key, value, and what is allowed.
        """
        unknown = () if self.is_open else [name for name in values if name not in self.types]
        for name in unknown:
            given = shown(values[name], str(name))
            where = key(named(str(name)))
            raise ConfigError(f"{_unknown(f'key {where}', '')}{suggest(str(name), self.types)}, got {given}")
        try:
            self.adapter.validate_python(_plain(values))
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                if not (problem["type"] == "missing" and problem["loc"][0] in later):
                    raise ConfigError(self._refusal(problem, values, key)) from None

    def _refusal(self, problem: Any, values: Mapping[str, Any], key: Key) -> str:
        """What is said of one of pydantic's errors."""
        name, *within = map(str, problem["loc"])
        kind, own = self.types[name], problem.get("ctx", {}).get("error")
        if isinstance(own, ConfigError):
            return f"{key(name)}: {own}"
        if problem["type"] == "missing":
            return f"{key(name)} must be given: {describe(kind)}"
        if within and within[-1] == "[key]":
            return f"unknown key {key(name)}.{named(within[-2])}{suggest(within[-2], _choices(get_args(kind)[0]))}"
        return refusal(key(name), kind, values[name], name)


def _plain(value: Any) -> Any:
    """Lists and mappings of any kind (OmegaConf's) as those of Python."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def refusal(key: str, kind: Any, value: Any, name: str = "") -> str:
    """What is said of a value of the wrong kind."""
    kind, choices = _item(kind, value)
    nullable = type(None) in get_args(kind)
    if choices is not None:
        wrong = next((entry for entry in value if not _is_one(entry, choices)), value)
        return f"{_unknown(key, shown(wrong, name))}{suggest(str(wrong), map(written, choices))}"
    choices = _choices(kind)
    if choices and isinstance(value, str) and all(isinstance(choice, str) for choice in choices):
        return f"{_unknown(key, shown(value, name))}{suggest(value, choices)}{', null' if nullable else ''}"
    text = describe(kind)
    quoted = isinstance(value, int | float) and not isinstance(value, bool) and text.startswith("text")
    hint = f"; as text: {name}=\"'{value}'\"" if quoted and name else ""
    return f"{key} must be {text}, got {shown(value, name)}{hint}{'; null is allowed' if nullable else ''}"


def _unknown(key: str, value: str) -> str:
    """``task 'x': unknown group 'y'``; a place stands first."""
    where, colon, field = key.rpartition(": ")
    return f"{where}{colon}unknown {field} {value}".rstrip()


def describe(kind: Any) -> str:
    """A kind in words: ``a number above 0``; that it may be null is not said."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, *notes = get_args(kind)
        words = [note.description for note in notes if isinstance(note, FieldInfo) and note.description]
        return words[0] if words else describe(base)
    if origin in (Union, types.UnionType):
        parts = get_args(kind)
        return " or ".join(dict.fromkeys(describe(part) for part in parts if part is not type(None)))
    if origin is Literal:
        choices = [written(choice) for choice in get_args(kind)]
        return " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    if origin is not None and issubclass(origin, Mapping):
        kinds = [kind for kind in get_args(kind)[1:] if get_origin(kind) is Annotated]
        return f"a mapping, each value {describe(kinds[0])}" if kinds else "a mapping"
    if origin is not None and issubclass(origin, Sequence):
        items = [part for part in get_args(kind) if part is not Ellipsis]
        return f"a list, each {describe(items[0])}" if items else "a list"
    return PLAIN.get(kind, getattr(kind, "__name__", str(kind)))


def shown(value: Any, name: str = "") -> str:
    """A value as the user writes it for Hydra, on one line, not too long; nothing of a secret."""
    text = _spelled(value, name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _spelled(value: Any, name: str) -> str:
    if is_secret(name):
        return HIDDEN
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{named(str(key))}: {_spelled(child, str(key))}" for key, child in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return "[" + ", ".join(_spelled(child, "") for child in value) + "]"
    return repr(value)


def named(key: str) -> str:
    """A key as a line can hold it: as it is, or quoted."""
    return key if key.isprintable() and len(key) <= 80 else shown(key)


def written(choice: Any) -> str:
    """A value as the user writes it for Hydra, whole; text without quotes."""
    return choice if isinstance(choice, str) else _spelled(choice, "")


def nearest(name: str, keys: Collection[str], at: str = "") -> str | None:
    """The dotted key that was probably meant: by its last part, those beside `at` first; None if none is near."""

    def likeness(key: str) -> float:
        parent, _, last = key.rpartition(".")
        matcher = difflib.SequenceMatcher(None, name, last)
        most = matcher.real_quick_ratio()  # by their lengths alone: a name of somebody else's may be as long as a book
        # of two keys that are equally near, the one beside the key that was typed is the likelier
        return (most if most < 0.5 else matcher.ratio()) + (0.05 if parent == at else 0)

    best = max(keys, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.6 else None


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of one that may be null."""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(choice for part in parts if get_origin(part) is Literal for choice in get_args(part))


def _item(kind: Any, value: Any) -> tuple[Any, tuple[Any, ...] | None]:
    """The kind, and the choices for an entry where the value is a list of named choices."""
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    origin = get_origin(base)
    if isinstance(value, list | tuple) and isinstance(origin, type) and issubclass(origin, Sequence):
        choices = _choices(get_args(base)[0])
        if choices and not all(_is_one(entry, choices) for entry in value):
            return kind, choices
    return kind, None


def _is_one(entry: Any, choices: Collection[Any]) -> bool:
    # by kind as well, since True == 1 == 1.0 in Python
    return any(type(entry) is type(choice) and entry == choice for choice in choices)


def fields_of_class(kind: type) -> Fields:
    """The fields of a dataclass; of an annotation that cannot be resolved nothing is known."""
    return _fields_of_class(kind)


@functools.cache
def _fields_of_class(kind: Any) -> Fields:
    # a function of its own, since mypy takes no class for hashable
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):
        hints = {}
    members = [field for field in dataclasses.fields(kind) if field.init]
    required = [
        f.name for f in members if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    return Fields({field.name: usable(hints.get(field.name, Any)) for field in members}, required)


def usable(kind: Any) -> Any:
    """A kind, or Any where pydantic has no schema for it."""
    if dataclasses.is_dataclass(kind):
        annotated: Any = Annotated
        return annotated[kind, InstanceOf()]  # never built from a mapping here
    try:
        TypeAdapter(kind, config=STRICT)
    except (PydanticUserError, TypeError, NameError, ValueError):
        return Any
    return kind


def check_fields(built: Any, key: Key) -> None:
    """Check a dataclass by its annotations, for ``__post_init__``.

    Raises:
        ConfigError: for a value of another kind or range.
    """
    fields = fields_of_class(type(built))
    fields.check({name: getattr(built, name) for name in fields.types}, key)


def built_from(kind: type[T], given: Any, key: Key) -> T:
    """A dataclass from a mapping of its fields.

    Raises:
        ConfigError: for anything else, or an unknown or wrong field.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key('').rstrip('.')} must be a mapping of its fields, got {shown(given)}")
    fields_of_class(kind).check(given, key)
    return kind(**given)


def mode_or_fields(kind: type, name: str, given: Any, modes: Sequence[str]) -> dict[str, Any]:
    """Fields of a dataclass, `name` to the user, that a configuration gives as its ``mode``, or as a mapping.

    Values are checked by the class.

    Raises:
        ConfigError: for anything else, naming the `modes`, or for an unknown field.
    """
    if not isinstance(given, str | Mapping):
        raise ConfigError(f"{name} must be null, a mode ({', '.join(modes)}) or its fields, got {shown(given)}")
    values: dict[str, Any] = {"mode": given} if isinstance(given, str) else dict(given)
    names = [field.name for field in dataclasses.fields(kind)]
    for field in values:
        if field not in names:
            raise ConfigError(f"unknown field {name}.{field}{suggest(str(field), names)}")
    return values

"""What a search tries: of each phase scales, fields, heads off and scores, by ``protocol.search``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from headwise.errors import ConfigError, suggest
from headwise.protocol.ranges import Range, Values, combined, number_of, values_of
from headwise.results.shapes import SEARCHED
from headwise.schema.check import built_from, check_fields
from headwise.schema.kinds import Amounts, AtLeast2, Count, Factors, Seed, different
from headwise.updates.gate import Score

TRAIN_SPLIT, EVAL_SPLIT = "train800", "val200"
EVERY = "every"
"""In place of a phase's name: all of them."""
OWN = {
    "scale": "scales are protocol.search.scale",
    "gate": "heads off are protocol.search.ne and protocol.search.score",
    "label": "it changes no number",
    "checkpoint": "it is the run's own, and its content is part of the run's identity",
    "revision": "it names the code",
}
"""Fields of a method that `Space.fields` may not name, and why; the scale of a named phase it may."""
Scores = Annotated[Sequence[Score], AfterValidator(different), Field(description="a list of different scores")]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What to try; an empty list leaves the method's own value.

    Attributes:
        scale: of the last phase's method.
        ne: heads off in every layer, whole numbers, or shares of them below 1; 0 need not be named.
        score: of `headwise.updates.gate.Gate`.
        fields: lists of values, each tried with each and every scale, by the field's name: ``lr`` of the last phase's
            method, ``heads.lr`` of the phase of that name, ``every.lr`` of each phase in turn. With `trials`, also
            ranges, see `headwise.protocol.ranges.Range`.
        trials: so many combinations of fields and scales are drawn by optuna, instead of all of them; of each phase.
            Random numbers come from `seed`, and from 0 where that is None: seeds draw alike until accuracies differ.
        optional: a method without a scale, without a gate, or without such a field or phase, leaves that part out
            instead of being refused.
        seed: of the trials, whatever the run's: one search serves all seeds. None: each seed searches for itself.
        halving: divides the trials of a stage, again and again until one is left, the epochs of the last round and,
            once more for each, those of the rounds before it; None: all are trained for all epochs.
        images: trials, and subnets of a method that finds its own fields, are measured on so many of the validation
            images, always the same; None, or more than there are: on all.
    """

    scale: Factors = ()
    ne: Amounts = ()
    score: Scores = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    trials: AtLeast2 | None = None
    optional: bool = False
    seed: Seed | None = 0
    halving: AtLeast2 | None = None
    images: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, lambda name: f"protocol.search.{name}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From ``protocol.search``.

        Raises:
            ConfigError: for an unknown key, or anything but lists of usable values.
        """
        space = built_from(cls, given, lambda name: f"protocol.search.{name}")
        _check_fields(space.fields)
        if space.halving is not None and any(key.rpartition(".")[2] == "epochs" for key in space.fields):
            raise ConfigError(
                "protocol.search.fields names epochs, which protocol.search.halving sets; use one of them"
            )
        if not space.names_something:
            raise ConfigError("protocol.search names nothing to try; allowed: scale, ne, score, fields")
        space = replace(space, fields={key: values_of(given, _where(key)) for key, given in space.fields.items()})
        ranges = [key for key, values in space.fields.items() if isinstance(values, Range)]
        if ranges and space.trials is None:
            raise ConfigError(f"{_where(ranges[0])} is a range: protocol.search.trials says how many values are drawn")
        if space.trials is not None and not (space.scale or space.fields):
            raise ConfigError("protocol.search.trials: there is no scale and no field to draw")
        return space

    @property
    def names_something(self) -> bool:
        return bool(self.scale or self.ne or self.score or self.fields)

    def by_phase(self, names: Sequence[str]) -> list[Space]:
        """What is tried of each phase, fields by their own names; an empty space where nothing is.

        Raises:
            ConfigError: for fields of a phase that is not among them, unless those may be left out.
        """
        wanted: list[dict[str, Any]] = [{} for _ in names]
        for key, values in self.fields.items():
            phase, _, name = key.rpartition(".")
            own = [index for index in range(len(names)) if phase in (names[index], EVERY)] if phase else [-1]
            if not own and not self.optional:
                allowed = list(dict.fromkeys([EVERY, *filter(None, names)]))
                raise ConfigError(
                    f"protocol.search.fields.{key}: this method has no phase {phase!r}{suggest(phase, allowed)}"
                )
            for index in own:
                if name in wanted[index] or (self.scale and name == "scale" and index in (-1, len(names) - 1)):
                    number = index % len(names) + 1
                    raise ConfigError(f"protocol.search.fields.{key}: {name} of phase {number} is named twice")
                wanted[index][name] = values
        spaces = [replace(self, scale=(), ne=(), score=(), fields=named) for named in wanted]
        return [*spaces[:-1], replace(self, fields=wanted[-1])]

    def lacking(self, names: Sequence[str]) -> list[str]:
        """Keys of fields that name none of these phases."""
        parted = {key: key.rpartition(".")[0] for key in self.fields}
        return [key for key, phase in parted.items() if phase not in ("", EVERY, *names)]

    def without(self, other: Space | None) -> list[str]:
        """Names of what it tries and `other`, which is what of it applies to a method, does not."""
        parts = [name for name in SEARCHED if getattr(self, name) and not getattr(other, name, ())]
        return parts + [name for name in self.fields if other is None or name not in other.fields]

    def within(self, method: Any) -> Space | None:
        """What of it applies to a phase's `method`, if parts may be left out; None if nothing does."""
        if self.optional:
            space = self if hasattr(method, "scale") else replace(self, scale=())
            space = space if method.gate is not None else replace(space, ne=(), score=())
            own = {name: values for name, values in self.fields.items() if name in _fields_of(method)}
            return space if (space := replace(space, fields=own)).names_something else None
        return self if self.names_something else None

    @property
    def tried(self) -> dict[str, Values]:
        """All that is tried, by name; of heads off also none."""
        own = {"scale": self.scale, "ne": self.ne and (0, *self.ne), "score": self.score}
        return {**{name: values for name, values in own.items() if values}, **self.fields}

    @property
    def drawn(self) -> dict[str, Values]:
        """Of `tried`, what is tried first, with every head on: scales and fields."""
        return {**self.fields, **({"scale": sorted(self.scale)} if self.scale else {})}

    @property
    def is_drawn(self) -> bool:
        """Whether optuna draws combinations of `drawn`."""
        return self.trials is not None and bool(self.drawn)

    @property
    def spared(self) -> str:
        """What is to be said of trials that there are not; empty where all of them can differ."""
        number = number_of(self.drawn)
        if not self.is_drawn or number >= (self.trials or 0):
            return ""
        return f"of {self.trials} trials at most {number:.0f} are trained: there are no more combinations"

    def shares(self, num_trials: int) -> list[float]:
        """Of the epochs, what each round of a stage trains for."""
        if self.halving is None:
            return [1.0]
        num_rounds, left = 0, num_trials
        while left > 1:
            num_rounds, left = num_rounds + 1, -(-left // self.halving)
        return [self.halving ** (round - num_rounds) for round in range(num_rounds)] or [1.0]


def phase_names(method: Any) -> list[str]:
    """By phase of a run's method, the part that it is: ``first``, ``heads``; empty where there are no parts."""
    parts = {f.name: getattr(method, f.name) for f in fields(method)}
    names = [name for name, part in parts.items() if hasattr(part, "phases") for _ in part.phases()]
    num_phases = len(method.phases())
    return names if len(names) == num_phases else [""] * num_phases


def _fields_of(method: Any) -> list[str]:
    return [f.name for f in fields(method)]


def _check_fields(given: Any) -> None:
    for key in given:
        phase, dot, name = key.rpartition(".")
        if not name or "." in phase or (dot and not phase):
            raise ConfigError(f"protocol.search.fields.{key} is neither FIELD nor PHASE.FIELD")
        if name in OWN and not (phase and name == "scale"):
            raise ConfigError(f"protocol.search.fields.{key} may not be set here; {OWN[name]}")


def _where(key: str) -> str:
    return f"protocol.search.fields.{key}"


def scaled(space: Space, method: Any) -> list[tuple[int, Any]]:
    """The method with every combination of fields and scales, and each combination's place in order."""
    return [
        (order, replace(method, **values, **scale))
        for order, values in enumerate(combined(space.fields))
        for scale in combined({"scale": sorted(space.scale)} if space.scale else {})
    ]


def check_choices(space: Space, method: Any) -> list[Any]:
    """Refuse to choose what a phase's method does not have, or values that it does not take.

    Returns:
        The method with every combination, of ranges their ends, and with every value of a sample of each range.

    Raises:
        ConfigError: naming the part or the value.
    """
    if space.scale and not hasattr(method, "scale"):
        raise ConfigError(f"protocol.search.scale: method {method.label} has no scale; use search.scale=[]")
    if (space.ne or space.score) and method.gate is None:
        raise ConfigError(
            f"protocol.search.ne: method {method.label} has no gate; add method.gate=heart, or use search.ne=[]"
        )
    for name in space.fields:
        if name not in _fields_of(method):
            allowed = [name for name in _fields_of(method) if name not in OWN]
            raise ConfigError(f"protocol.search.fields: method {method.label} has no {name!r}{suggest(name, allowed)}")
    tried = [one for _, one in scaled(space, method)]
    usual = tried[0]
    for name, values in space.fields.items():
        for value in values.sample if isinstance(values, Range) else ():
            try:
                tried.append(replace(usual, **{name: value}))
            except ConfigError as error:
                raise ConfigError(f"{_where(name)}: of this range {value} is refused: {error}") from error
    return tried

"""Choosing scale, number of heads and score on the validation images, as a stage of one run. Never the test images.

Scale s comes first, with every head on, together with any other field of the method; then, at what they reached, every
number of heads off with every score. Equal accuracies go to fewer heads off, then to the smaller scale, then to the
fields and the score named first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from headwise.errors import ConfigError, suggest
from headwise.results.fingerprint import fingerprint
from headwise.results.records import PhaseResult
from headwise.schema.check import built_from, check_fields
from headwise.schema.kinds import Amounts, Factors, different
from headwise.updates.gate import Gate, Score

TRAIN_SPLIT, EVAL_SPLIT = "train800", "val200"
OWN = {
    "scale": "scales are protocol.search.scale",
    "gate": "heads off are protocol.search.ne and protocol.search.score",
    "label": "it changes no number",
}
"""Fields of a method that `Space.fields` may not name, and why."""
Scores = Annotated[Sequence[Score], AfterValidator(different), Field(description="a list of different scores")]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What to try; an empty list leaves the method's own value.

    Attributes:
        scale: of the last phase's method.
        ne: heads off in every layer, whole numbers, or shares of them below 1; 0 need not be named.
        score: of `headwise.updates.gate.Gate`.
        fields: of the last phase's method, ``rank`` for one: lists of values, each tried with each and every scale.
        optional: a method without a scale, without a gate, or without such a field, leaves that part out instead of
            being refused.
    """

    scale: Factors = ()
    ne: Amounts = ()
    score: Scores = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False

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
        if not (space.scale or space.ne or space.score or space.fields):
            names = ", ".join(f.name for f in fields(cls))
            raise ConfigError(f"protocol.search names nothing to try; allowed: {names}")
        return space

    def within(self, method: Any) -> Self | None:
        """What of it applies to `method`, if parts may be left out; None if nothing does."""
        if not self.optional:
            return self
        space = self if hasattr(method, "scale") else replace(self, scale=())
        space = space if method.gate is not None else replace(space, ne=(), score=())
        space = replace(space, fields={name: values for name, values in self.fields.items() if hasattr(method, name)})
        return space if space.scale or space.ne or space.score or space.fields else None

    def combinations(self) -> list[dict[str, Any]]:
        """The values of `fields`, one of each; a single empty one where there are none."""
        return [dict(zip(self.fields, values, strict=True)) for values in itertools.product(*self.fields.values())]


def _check_fields(given: Any) -> None:
    for name, values in given.items():
        if name in OWN:
            raise ConfigError(f"protocol.search.fields.{name} may not be set here; {OWN[name]}")
        if not isinstance(values, list | tuple) or not values or any(values.count(value) > 1 for value in values):
            raise ConfigError(f"protocol.search.fields.{name} is a list of different values, got {values!r}")


@dataclass(frozen=True)
class Trial:
    """One try.

    Attributes:
        scale, ne, score: what was tried; None where the method's own value stood.
        accuracy: on the validation images, percent.
        fingerprint: of the stored phase.
        fields: other fields of the method that were tried.
    """

    scale: float | None
    ne: float | None
    score: str | None
    accuracy: float
    fingerprint: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Plain data for the record; without `fields` where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "fields" or value}


@dataclass
class SearchOutcome:
    """What a search chose.

    Attributes:
        methods: the phases with the chosen values.
        chosen: the winning trial.
        trials: all, in the order of trying.
    """

    methods: list[Any]
    chosen: Trial
    trials: list[Trial] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Plain data for the record."""
        trials = [trial.plain() for trial in self.trials]
        splits = {"train_split": TRAIN_SPLIT, "eval_split": EVAL_SPLIT}
        return {"chosen": self.chosen.plain(), "num_trials": len(trials), "trials": trials, **splits}


def explore(
    methods: Sequence[Any],
    attempt: Callable[[Sequence[Any]], PhaseResult],
    say: Callable[[str], None] = lambda line: None,
) -> tuple[tuple[Any, ...], dict[int, dict[str, Any]]]:
    """Let methods that find their own fields do so, each by its scout, on what the phases before it have become.

    Args:
        methods: the phases.
        attempt: as in `search`.
        say: told of every scout.

    Returns:
        The phases with what was found; and by phase, facts for its record.
    """
    chosen: list[Any] = []
    facts: dict[int, dict[str, Any]] = {}
    for index, method in enumerate(methods):
        scout = method.scout()
        if scout is None:
            chosen.append(method)
            continue
        say(f"phase {index + 1} {method.label}: first {scout.label}, on {TRAIN_SPLIT} and {EVAL_SPLIT}")
        result = attempt([*chosen, scout])
        chosen.append(method.after(result.extra))
        kept = {key: value for key, value in result.extra.items() if value is not None and key != "warmup_steps"}
        costs = {"seconds": result.seconds, "epochs": result.epochs, "fingerprint": result.fingerprint}
        facts[index] = {"scout": {"label": scout.label, "accuracy": result.accuracy, **costs, **kept}}
    return tuple(chosen), facts


def search(
    methods: Sequence[Any],
    space: Space,
    attempt: Callable[[Sequence[Any]], PhaseResult],
    say: Callable[[str], None] = lambda line: None,
) -> SearchOutcome:
    """Try scales and fields with every head on, then heads and scores at the best of them.

    Args:
        methods: the phases; the last one's scale, gate and fields are chosen.
        space: what to try.
        attempt: trains and measures phases on the search splits; gives the record of the last one.
        say: told of every trial.

    Raises:
        ConfigError: if the last phase has no scale, no gate, or no such field, to choose.
    """
    *before, last = methods
    _check_choices(space, last)
    trials = _Trials(space, before, attempt, say)
    gate = None if last.gate is None else Gate.of(last.gate)
    amounts = sorted(value for value in space.ne if value)
    searches_heads = gate is not None and (bool(amounts) or bool(space.score))
    start = replace(last, gate=_amount(gate, 0)) if gate is not None and searches_heads else last
    scales: list[float | None] = [*sorted(space.scale)] or [None]
    for order, values in enumerate(space.combinations()):
        for scale in scales:
            changes = values if scale is None else {**values, "scale": scale}
            trials.run(replace(start, **changes), 0 if searches_heads else None, None, order)
    if gate is not None and searches_heads and trials.best is not None:
        scaled = trials.best[1]  # heads are chosen at the scale that is best with all of them on
        own = gate.ratio or gate.count
        for amount in amounts or ([] if own is None else [own]):
            scores = space.score if gate.mode == "heart" else ()  # fixed masks know no score
            for order, score in enumerate(scores or [gate.score]):
                trials.run(replace(scaled, gate={**_amount(gate, amount), "score": score}), amount, score, order)
    if trials.best is None:
        raise ConfigError("the search tried nothing")
    _, method, chosen = trials.best
    return SearchOutcome([*before, method], chosen, trials.tried)


def _check_choices(space: Space, last: Any) -> None:
    """Refuse to choose what the last phase's method does not have."""
    if space.scale and not hasattr(last, "scale"):
        raise ConfigError(f"protocol.search.scale: method {last.label} has no scale; use search.scale=[]")
    if (space.ne or space.score) and last.gate is None:
        raise ConfigError(f"protocol.search.ne: method {last.label} has no gate; add gate=heart, or use search.ne=[]")
    for name in space.fields:
        if not hasattr(last, name):
            allowed = [f.name for f in fields(last) if f.name not in OWN]
            raise ConfigError(f"protocol.search.fields: method {last.label} has no {name!r}{suggest(name, allowed)}")


class _Trials:
    """What was tried so far.

    Attributes:
        tried: in the order of trying.
        best: rank, method and trial of the best; the smallest rank wins.
    """

    def __init__(
        self,
        space: Space,
        before: Sequence[Any],
        attempt: Callable[[Sequence[Any]], PhaseResult],
        say: Callable[[str], None],
    ) -> None:
        self.space, self.before, self.attempt, self.say = space, before, attempt, say
        self.tried: list[Trial] = []
        self.best: tuple[tuple[float, ...], Any, Trial] | None = None
        self._recipes: set[str] = set()

    def run(self, method: Any, ne: float | None, score: str | None, order: int) -> None:
        """Try a method, unless it is another name of what was tried; `order` decides between equal ones."""
        recipe = fingerprint(method.spec())
        if recipe in self._recipes:
            return
        self._recipes.add(recipe)
        chosen = {name: getattr(method, name) for name in self.space.fields}
        result = self.attempt([*self.before, method])
        if result.accuracy is None:
            raise ConfigError(f"the search needs an accuracy of {result.label}, which was not tested")
        scale = getattr(method, "scale", None)
        trial = Trial(scale, ne, score, result.accuracy, result.fingerprint, chosen)
        self.tried.append(trial)
        parts = {"scale": scale, "ne": ne, "score": score, **chosen}
        tried = " ".join(f"{name}={value}" for name, value in parts.items())
        self.say(f"search {len(self.tried)}: {tried}: {trial.accuracy:.2f} % of the images of {EVAL_SPLIT}")
        rank = (-trial.accuracy, ne or 0.0, scale or 0.0, order)
        if self.best is None or rank < self.best[0]:
            self.best = (rank, method, trial)


def _amount(gate: Gate, amount: float | None) -> dict[str, Any]:
    """The gate's fields with another amount: a share below 1, or a number of heads."""
    if amount is None:
        return gate.spec()
    share = 0 < amount < 1
    chosen = {"count": None if share else int(amount), "ratio": amount if share else None, "budget": None}
    return {**gate.spec(), **chosen}

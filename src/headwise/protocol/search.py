"""Choosing fields of a run's phases on the validation images, as a stage of the run. Never the test images.

The phases are gone through in order: each is chosen on what the chosen ones before it have become. Of a phase, scale s
and any other field come first, with every head on; then, at what they reached, every number of heads off with every
score. Equal accuracies go to fewer heads off, then to the smaller scale, then to the fields and the score named first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from headwise.errors import ConfigError
from headwise.protocol.ranges import Range, Values, draw
from headwise.protocol.space import EVAL_SPLIT as EVAL_SPLIT
from headwise.protocol.space import TRAIN_SPLIT as TRAIN_SPLIT
from headwise.protocol.space import Space as Space
from headwise.protocol.space import check_choices, phase_names, scaled
from headwise.results.classes import reached
from headwise.results.fingerprint import fingerprint
from headwise.results.records import PhaseResult
from headwise.schema.check import written
from headwise.updates.gate import Gate


@dataclass(frozen=True)
class Trial:
    """One try.

    Attributes:
        scale, ne, score: what was tried; None where the method's own value stood.
        accuracy: on the validation images, percent.
        fingerprint: of the stored phase.
        fields: other fields of the method that were tried.
        share: of the phase's epochs for which it was trained.
    """

    scale: float | None
    ne: float | None
    score: str | None
    accuracy: float
    fingerprint: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0

    def plain(self) -> dict[str, Any]:
        """Plain data for the record; without `fields` where there are none, or `share` where it is all."""
        usual = {"fields": {}, "share": 1.0}
        return {name: value for name, value in asdict(self).items() if value != usual.get(name, self)}


@dataclass(frozen=True)
class SearchOutcome:
    """What a search of one phase chose."""

    method: Any
    chosen: Trial
    trials: Sequence[Trial]
    space: Space

    def report(self) -> dict[str, Any]:
        """Plain data for the record."""
        trials = [trial.plain() for trial in self.trials]
        space = self.space
        how = {"train_split": TRAIN_SPLIT, "eval_split": EVAL_SPLIT, "seed": space.seed, "searched": list(space.tried)}
        how |= {} if space.images is None else {"images": space.images}
        if space.trials is not None:
            how["optuna"] = version("optuna")  # another may draw other combinations
        chosen = {**asdict(self.chosen), **self.chosen.fields}
        how["edges"] = [name for name, values in space.tried.items() if _is_edge(chosen.get(name), values)]
        return {"chosen": self.chosen.plain(), "num_trials": len(trials), "trials": trials, **how}


def _is_edge(value: Any, values: Values) -> bool:
    """Whether a number is the smallest or the largest of several that were tried: a better one may lie beyond it.

    Below 0 none does: no fewer heads than none are off.
    """
    if isinstance(values, Range):
        return values.is_edge(value)
    are_numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    return are_numbers and len(values) > 1 and (value == max(values) or (value == min(values) and value != 0))


Attempt = Callable[[Sequence[Any], int | None], PhaseResult]
"""Trains and measures phases on the search's splits, with a seed (None: the run's); gives the last one's record."""
Say = Callable[[str], None]


def spaces_of(methods: Sequence[Any], names: Sequence[str], space: Space | None) -> list[Space | None]:
    """What is tried of each phase; None where nothing is.

    Args:
        methods, names, space: see `settle`.

    Raises:
        ConfigError: for fields of a phase that there is not, or a field named twice.
    """
    parts = [Space()] * len(methods) if space is None else space.by_phase(names)
    return [part.within(method) for part, method in zip(parts, methods, strict=True)]


def check_search(method: Any, recipe: Mapping[str, Any] | None, epochs: int) -> None:
    """Refuse, before anything is written, phases or a search (`recipe`) that could not be run to their end.

    Raises:
        ConfigError: if a phase has no scale, no gate, or no such field, to choose, or refuses a value of it, or the
            epochs of a trial.
    """
    phases, space = method.phases(), None if recipe is None else Space.of(recipe)
    for phase, part in zip(phases, spaces_of(phases, phase_names(method), space), strict=True):
        if part is None:
            phase.trunk(phase.epochs or epochs)  # refuses a warm-up that does not fit
        else:
            _check_epochs(part, phase, check_choices(part, phase), epochs)


def _check_epochs(space: Space, method: Any, tried: Sequence[Any], epochs: int) -> None:
    """Refuse epochs that one of the methods that may be tried cannot take, in the first, shortest round of a stage."""
    gate = _gate_of(space, method)
    first = [_all_on(one, gate, order) for order, one in enumerate(tried)]
    stages = [first, *(_heads_off(space, gate, one) for one in first if gate is not None)]
    for stage in stages:
        num_trials = (space.trials or 0) if space.is_drawn and stage is first else len(_distinct(stage))
        for one in (candidate.method for candidate in stage):
            whole = one.epochs or epochs
            short = _epochs_of(one, epochs, space.shares(num_trials)[0])
            try:
                replace(one, epochs=short).trunk(short)
            except ConfigError as error:
                how = f".halving={space.halving}" if short < whole else ""
                count = f"{short} of {whole} epochs at first" if how else f"{whole} epoch{'s' * (whole != 1)}"
                raise ConfigError(f"protocol.search{how} trains trials of {one.label} for {count}: {error}") from error


def _epochs_of(method: Any, epochs: int, share: float) -> int:
    """Epochs of a trial: a share of the method's own, or of `epochs` where it has none; at least one."""
    return max(1, round(share * (method.epochs or epochs)))


def settle(
    methods: Sequence[Any],
    names: Sequence[str],
    space: Space | None,
    attempt: Attempt,
    epochs: int,
    say: Say = lambda line: None,
) -> tuple[tuple[Any, ...], dict[int, dict[str, Any]]]:
    """Choose what phases leave open, one after the other, each on what the phases before it have become.

    A method that finds its own fields does so first, by its scout, with the run's seed.

    Args:
        names: of them, see `phase_names`.
        space: what to try, or None.
        attempt: see `Attempt`.
        epochs: of phases that do not have their own.
        say: told of every scout and trial.

    Returns:
        The phases with what was chosen; and by phase, facts for its record.

    Raises:
        ConfigError: as `spaces_of`. What a search could not be run to its end with, `check_search` has refused.
    """
    spaces = spaces_of(methods, names, space)
    places = [f"phase {number} {phase.label}: " if len(methods) > 1 else "" for number, phase in enumerate(methods, 1)]
    tells = [functools.partial(_tell, say, place) for place in places]
    if space is not None:
        for tell, whole, part in zip(tells, space.by_phase(names), spaces, strict=True):
            if left := whole.without(part):
                tell(f"left out of the search, since the method has none: {', '.join(left)}")
            if part is not None and part.spared:
                tell(part.spared)
        if keys := space.lacking(names):
            say(f"left out of the search, since the method has no such phase: {', '.join(keys)}")

    chosen: list[Any] = []
    facts: dict[int, dict[str, Any]] = {}
    for index, (phase, part, tell) in enumerate(zip(methods, spaces, tells, strict=True)):
        method, told = _scouted(phase, chosen, attempt, tell)
        if part is not None:
            outcome = search(method, chosen, part, attempt, epochs, tell)
            method, told = outcome.method, {**told, "search": outcome.report()}
        chosen.append(method)
        if told:
            facts[index] = told
    return tuple(chosen), facts


def _tell(say: Say, where: str, line: str) -> None:
    say(where + line)


def _scouted(method: Any, before: Sequence[Any], attempt: Attempt, say: Say) -> tuple[Any, dict[str, Any]]:
    """A method with the fields that its scout found, if it has one, and what its record says of that."""
    scout = method.scout()
    if scout is None:
        return method, {}
    say(f"first {scout.label}, on {TRAIN_SPLIT} and {EVAL_SPLIT}")
    result = attempt([*before, scout], None)
    kept = {key: value for key, value in result.extra.items() if value is not None and key != "warmup_steps"}
    costs = {"seconds": result.seconds, "epochs": result.epochs, "fingerprint": result.fingerprint}
    return method.after(result.extra), {"scout": {"label": scout.label, "accuracy": result.accuracy, **costs, **kept}}


def search(
    method: Any, before: Sequence[Any], space: Space, attempt: Attempt, epochs: int, say: Say = lambda line: None
) -> SearchOutcome:
    """Try scales and fields with every head on, then heads and scores at the best of them.

    Args:
        method: of the phase that is chosen.
        before: the phases before it.
        space: what to try, see `check_choices`.
        attempt: see `Attempt`.
        epochs: of a phase that does not have its own.
    """
    trials = _Trials(space, before, attempt, epochs, say)
    gate = _gate_of(space, method)
    if space.is_drawn:
        best = trials.best_drawn(_all_on(method, gate))
    else:
        best = trials.best_of([_all_on(one, gate, order) for order, one in scaled(space, method)])
    if gate is not None:
        # heads are chosen at the scale that is best with all of them on
        best = trials.best_of(_heads_off(space, gate, best))
    return SearchOutcome(best.method, trials.of(best), trials.tried, space)


@dataclass(frozen=True)
class _Candidate:
    """A method to be tried, heads off and score as they were asked for, and its place among equal ones."""

    method: Any
    ne: float | None
    score: str | None
    order: int

    @property
    def recipe(self) -> str:
        """Hash of the method."""
        return fingerprint(self.method.spec())


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Each method once; of several names for one method the first."""
    return list(reversed({candidate.recipe: candidate for candidate in reversed(candidates)}.values()))


def _gate_of(space: Space, method: Any) -> Gate | None:
    """The gate of which a search chooses something; None of one that leaves heads alone."""
    return Gate.of(method.gate) if any(space.ne) or space.score else None


def _all_on(method: Any, gate: Gate | None, order: int = 0) -> _Candidate:
    """The method with every head on, where heads are chosen."""
    if gate is None:
        return _Candidate(method, None, None, order)
    return _Candidate(replace(method, gate=_amount(gate, 0)), 0, None, order)


def _heads_off(space: Space, gate: Gate, best: _Candidate) -> list[_Candidate]:
    """What was best with every head on; then with every number of heads off, or the gate's own, and every score."""
    own = gate.ratio or gate.count
    scores = (space.score if gate.mode == "heart" else ()) or [gate.score]  # fixed masks know no score
    return [
        best,
        *(
            _Candidate(replace(best.method, gate={**_amount(gate, amount), "score": score}), amount, score, order)
            for amount in sorted(filter(None, space.ne)) or ([] if own is None else [own])
            for order, score in enumerate(scores)
        ),
    ]


class _Trials:
    """What was tried so far."""

    def __init__(self, space: Space, before: Sequence[Any], attempt: Attempt, epochs: int, say: Say) -> None:
        self.space, self.before, self.attempt, self.epochs, self.say = space, before, attempt, epochs, say
        self.tried: list[Trial] = []
        self._by_recipe: dict[str, Trial] = {}
        self._last: dict[str, Trial] = {}

    def best_drawn(self, start: _Candidate) -> _Candidate:
        """The best of those that optuna draws by what the first round, the only one without halving, makes of them."""
        drawn: list[_Candidate] = []
        num, seed = self.space.trials or 0, self.space.seed
        shares = self.space.shares(num)

        def measure(order: int, chosen: dict[str, Any]) -> float:
            drawn.append(replace(start, method=replace(start.method, **chosen), order=order))
            return self._run(drawn[-1], shares[0]).accuracy

        draw(self.space.drawn, num, 0 if seed is None else seed, measure)
        return self.best_of(drawn, shares)

    def best_of(self, candidates: Sequence[_Candidate], shares: Sequence[float] = ()) -> _Candidate:
        """The best; with halving, of those that were among the best in every round before.

        Args:
            shares: of the epochs, what the rounds train for; empty for what their number asks for.
        """
        left = _distinct(candidates)
        for share in shares or self.space.shares(len(left)):
            ranks = {id(candidate): self._rank(candidate, share) for candidate in left}
            left.sort(key=lambda candidate: ranks[id(candidate)])
            left = left[: -(-len(left) // (self.space.halving or len(left)))]
        return left[0]

    def of(self, candidate: _Candidate) -> Trial:
        """The trial of a candidate, the longest if there are several."""
        return self._last[candidate.recipe]

    def _rank(self, candidate: _Candidate, share: float) -> tuple[float, ...]:
        """Comes first for the best one."""
        trial = self._run(candidate, share)
        self._last[candidate.recipe] = trial
        return -trial.accuracy, candidate.ne or 0.0, trial.scale or 0.0, candidate.order

    def _run(self, candidate: _Candidate, share: float) -> Trial:
        """Train and measure, unless that was done before."""
        method = candidate.method
        if share < 1:
            whole = method.epochs or self.epochs
            method = replace(method, epochs=_epochs_of(method, self.epochs, share))
            share = method.epochs / whole
        recipe = fingerprint(method.spec())
        if recipe not in self._by_recipe:
            chosen = {name: getattr(method, name) for name in self.space.fields}
            result = self.attempt([*self.before, method], self.space.seed)
            if result.accuracy is None:
                raise ConfigError(f"the search needs an accuracy of {result.label}, which was not tested")
            scale = getattr(method, "scale", None)
            trial = Trial(scale, candidate.ne, candidate.score, result.accuracy, result.fingerprint, chosen, share)
            self._by_recipe[recipe] = trial
            self.tried.append(trial)
            parts = {"scale": scale, "ne": candidate.ne, "score": candidate.score}
            parts = {name: value for name, value in parts.items() if getattr(self.space, name) and value is not None}
            told = " ".join(f"{name}={written(value)}" for name, value in {**parts, **chosen}.items())
            epochs = f" after {method.epochs} epoch{'s' * (method.epochs != 1)}" if share < 1 else ""
            self.say(f"search {len(self.tried)}: {told}: {reached(result)} the images of {EVAL_SPLIT}{epochs}")
        return self._by_recipe[recipe]


def _amount(gate: Gate, amount: float | None) -> dict[str, Any]:
    """The gate's fields with another amount: a share below 1, or a number of heads."""
    if amount is None:
        return gate.spec()
    share = 0 < amount < 1
    chosen = {"count": None if share else int(amount), "ratio": amount if share else None, "budget": None}
    return {**gate.spec(), **chosen}

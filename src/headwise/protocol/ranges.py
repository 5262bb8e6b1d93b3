"""Values between two ends, drawn by optuna, where a search tries more than a short list."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self, TypeGuard

from headwise.errors import ConfigError, suggest
from headwise.schema.check import shown

OUTER = 0.05
"""Of a range, measured as it is drawn from: a value as near to an end as this counts as the end."""
MOST = 1000
"""Whole numbers of a range that are looked at before a search, about."""


@dataclass(frozen=True)
class Range:
    """All values between two ends.

    Attributes:
        low, high: the ends, both of them allowed; two whole numbers make a range of whole numbers.
        log: whether equal ratios are equally likely, rather than equal distances.
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Self:
        """From ``{low: 0.0001, high: 0.03, log: true}``.

        Raises:
            ConfigError: for another key, an end that is missing or no number, or ends that leave nothing between them.
        """
        allowed = ["low", "high", "log"]
        for key in given:
            if key not in allowed:
                raise ConfigError(f"unknown key {where}.{key}{suggest(str(key), allowed)}")
        low, high = given.get("low"), given.get("high")
        if not (_is_number(low) and _is_number(high)):
            raise ConfigError(f"{where}: a range is two numbers, {{low: 0.001, high: 0.1}}, got {shown(given)}")
        made = cls(low, high, given.get("log", False))
        if not isinstance(made.log, bool) or made.low >= made.high or (made.log and made.low <= 0):
            raise ConfigError(
                f"{where}: low must be below high, log true or false, and low above 0 with log, got {shown(given)}"
            )
        return made

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def sample(self) -> Sequence[float]:
        """Both ends, and of whole numbers all that lie between, or `MOST` of them evenly."""
        if not self.is_whole:
            return self.ends
        low, high = int(self.low), int(self.high)
        return [*range(low, high, max(1, (high - low) // MOST)), high]

    @property
    def number(self) -> float:
        return self.high - self.low + 1 if self.is_whole else math.inf

    def is_edge(self, value: Any) -> bool:
        """Whether a value lies so near to an end (`OUTER`) that a better one may lie beyond it; below 0 none does."""
        low, high, here = (math.log(part) if self.log else part for part in (*self.ends, value))
        margin = 0 if self.is_whole else OUTER * (high - low)
        return high - here <= margin or (self.low != 0 and here - low <= margin)


def _is_number(given: Any) -> TypeGuard[float]:
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


Values = Sequence[Any] | Range


def values_of(given: Any, where: str) -> Values:
    """A list of different values, or a range; anything else is refused."""
    if isinstance(given, Range):
        return given
    if isinstance(given, Mapping):
        return Range.of(given, where)
    if not isinstance(given, list | tuple) or not given or any(given.count(value) > 1 for value in given):
        raise ConfigError(f"{where} is a list of different values, got {shown(given)}")
    return given


def combined(values: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Each value with each, of a range both ends; a single empty one where there are none."""
    names = sorted(values)  # in whatever order they stand, they are the same search
    grids = [one.ends if isinstance(one, Range) else one for one in (values[name] for name in names)]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*grids)]


def number_of(values: Mapping[str, Values]) -> float:
    """Of combinations there are; infinite where a range is not of whole numbers."""
    counts = [one.number if isinstance(one, Range) else len(one) for one in values.values()]
    return math.prod(counts)


Measure = Callable[[int, dict[str, Any]], float]
"""The accuracy of a combination of values, given with its number; the higher the better."""


def check_package() -> None:
    """Refuse to draw where optuna is not installed, without loading it."""
    if find_spec("optuna") is None:
        raise ConfigError(
            "protocol.search.trials needs the package optuna: pip install -e '.[search]' -c constraints.txt"
        )


def draw(values: Mapping[str, Values], num: int, seed: int, measure: Measure) -> None:
    """Have optuna's TPE sampler (Bergstra et al., NeurIPS 2011) choose combinations, each knowing those before.

    Its random numbers come from `seed` alone: the same accuracies lead to the same combinations, so that a search that
    was interrupted finds its trials again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for number in range(num):
        trial = study.ask()
        chosen = {name: _suggested(trial, name, values[name]) for name in sorted(values)}
        study.tell(trial, measure(number, chosen))


def _suggested(trial: Any, name: str, values: Values) -> Any:
    if not isinstance(values, Range):
        return values[trial.suggest_categorical(name, list(range(len(values))))]  # a value may be a list
    if values.is_whole:
        return trial.suggest_int(name, *values.ends, log=values.log)
    return trial.suggest_float(name, *values.ends, log=values.log)

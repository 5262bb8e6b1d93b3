"""Evolution of subnets (NOAH, arXiv:2206.04673, after AutoFormer): sizes of each kind of part, block by block.

A subnet has, for each kind, a depth and a size in every block up to it, 0 behind. Each generation keeps the best ones
seen so far as parents, mutates and crosses them, and fills up with new random ones; a subnet is scored once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Self

from pydantic import Field

from headwise.errors import ConfigError, suggest
from headwise.schema.check import built_from, check_fields
from headwise.schema.kinds import Count, Positive, Probability, Share, Whole

Sizes = Annotated[Sequence[Count], Field(min_length=1, description="whole numbers of at least 1")]
Depths = Annotated[Sequence[Share], Field(min_length=1, description="shares in (0, 1]")]

Subnet = dict[str, list[int]]
"""Sizes by kind, one per block; 0 where the part is absent."""

DEFAULTS = "evolution"
TRIES = 10
"""Draws allowed per subnet wanted: many repeat what was seen, or are too large."""


def _key(name: str) -> str:
    return f"search.{name}"


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """How a subnet is sought. The defaults are the authors' for VTAB-1k.

    Attributes:
        sizes: of a part where it is present, at least 1.
        depths: shares of the blocks that have a part, in (0, 1], rounded up to whole blocks.
        limit: parameters a subnet may have, at most.
        epochs: of the supernet, a random subnet each step.
        lr: of the supernet, its peak.
        population: subnets per generation.
        parents: best ones kept to breed from.
        crossover, mutation: children of a generation, at most `population` together; new random ones fill it up.
        size_rate: probability that a mutation draws a block's size anew.
        depth_rate: probability that a mutation draws a kind's depth anew.
        generations: rounds after the first population.
    """

    sizes: Sizes = (1, 5, 10)
    depths: Depths = (0.25, 0.5, 0.75, 1.0)
    limit: Count = 640_000
    epochs: Count = 500
    lr: Positive = 5e-4
    population: Count = 50
    parents: Count = 10
    crossover: Whole = 25
    mutation: Whole = 25
    size_rate: Probability = 0.2
    depth_rate: Probability = 0.4
    generations: Whole = 15

    def __post_init__(self) -> None:
        check_fields(self, _key)
        if self.crossover + self.mutation > self.population:
            raise ConfigError(
                f"search.crossover + search.mutation must be at most search.population={self.population}, "
                f"got {self.crossover} + {self.mutation}"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any] | str) -> Self:
        """What ``method.search`` means: ``evolution``, or fields; ConfigError for another word, or wrong fields."""
        if isinstance(given, str):
            if given != DEFAULTS:
                raise ConfigError(f"unknown search {given!r}{suggest(given, [DEFAULTS])}, or fields of it")
            return cls()
        return built_from(cls, given, _key)

    def spec(self) -> dict[str, Any]:
        """All fields, plain."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def draw(self, kinds: Sequence[str], num_blocks: int, rng: random.Random) -> Subnet:
        """A random subnet, whatever its size."""
        return {kind: self._sizes(self._depth(num_blocks, rng), num_blocks, rng) for kind in kinds}

    def _depth(self, num_blocks: int, rng: random.Random) -> int:
        return math.ceil(rng.choice(list(self.depths)) * num_blocks)

    def _sizes(self, depth: int, num_blocks: int, rng: random.Random, given: Sequence[int] = ()) -> list[int]:
        """Those given up to `depth`, drawn ones from there, 0 behind."""
        kept = [size for size in given if size][:depth]
        new = [rng.choice(list(self.sizes)) for _ in range(depth - len(kept))]
        return [*kept, *new, *[0] * (num_blocks - depth)]

    def mutate(self, parent: Subnet, rng: random.Random) -> Subnet:
        """A copy with some depths and some sizes drawn anew."""
        child: Subnet = {}
        for kind, sizes in parent.items():
            depth = sum(size > 0 for size in sizes)
            if rng.random() < self.depth_rate:
                depth = self._depth(len(sizes), rng)
            same = self._sizes(depth, len(sizes), rng, sizes)
            child[kind] = [rng.choice(list(self.sizes)) if s and rng.random() < self.size_rate else s for s in same]
        return child

    @staticmethod
    def cross(one: Subnet, other: Subnet, rng: random.Random) -> Subnet:
        """Each kind's sizes from one of two parents."""
        return {kind: list(rng.choice((one, other))[kind]) for kind in one}


@dataclass
class Evolved:
    """What an evolution chose: the best subnet, its score, its parameters (`cost`), and how many subnets were scored.

    `best` is the best one's score after each generation, the first population counted as one.
    """

    subnet: Subnet
    score: float
    cost: int
    num_tried: int
    best: list[float] = field(default_factory=list)


class _SeenSubnets:
    """All subnets seen so far, each scored once.

    Attributes:
        seen: by content: minus the score, the size, the order; and the subnet. Smaller is better.
        parents: the best of them, to breed from.
    """

    def __init__(self, recipe: Evolution, cost: Callable[[Subnet], int], score: Callable[[Subnet], float]) -> None:
        self.recipe, self.cost, self.score = recipe, cost, score
        self.seen: dict[str, tuple[float, int, int, Subnet]] = {}
        self.parents: list[Subnet] = []

    def add(self, make: Callable[[], Subnet], wanted: int) -> int:
        """Score up to `wanted` new subnets within the limit; how many there were before the draws ran out."""
        before = len(self.seen)
        for _ in range(wanted * TRIES):
            if len(self.seen) == before + wanted:
                break
            subnet = make()
            # a subnet is known by its sizes, however it came about: mutants and children often repeat one
            key, size = repr(sorted(subnet.items())), self.cost(subnet)
            if key not in self.seen and size <= self.recipe.limit:
                self.seen[key] = (-self.score(subnet), size, len(self.seen), subnet)
        return len(self.seen) - before

    def best(self) -> tuple[float, int, Subnet]:
        """Score, size and subnet of the best; the best become parents; ConfigError if none keeps within the limit."""
        if not self.seen:
            raise ConfigError(
                f"no subnet of sizes {list(self.recipe.sizes)} keeps within search.limit={self.recipe.limit} "
                "parameters; raise it"
            )
        # by score, then size, then order of trial, so that equal scores have one order
        ranked = sorted(self.seen.values(), key=lambda entry: entry[:3])[: self.recipe.parents]
        self.parents = [subnet for *_, subnet in ranked]
        loss, size, _, subnet = ranked[0]
        return -loss, size, subnet


def evolve(
    recipe: Evolution,
    kinds: Sequence[str],
    num_blocks: int,
    cost: Callable[[Subnet], int],
    score: Callable[[Subnet], float],
    rng: random.Random,
    say: Callable[[str], None] = lambda line: None,
) -> Evolved:
    """Breed subnets for their score; of equal ones the smaller is better, then the one tried first.

    `cost` gives the parameters of a subnet; `score` is larger where it is better, and asked once per subnet; `rng` is
    the only source of chance; `say` is told of every generation. ConfigError if no subnet keeps within the limit.
    """
    pool = _SeenSubnets(recipe, cost, score)
    best = []
    for generation in range(recipe.generations + 1):
        added = 0
        if generation:
            added = pool.add(lambda: recipe.mutate(rng.choice(pool.parents), rng), recipe.mutation)
            added += pool.add(
                lambda: recipe.cross(rng.choice(pool.parents), rng.choice(pool.parents), rng), recipe.crossover
            )
        # what mutants and children leave free, the whole of the first generation, is drawn at random
        pool.add(lambda: recipe.draw(kinds, num_blocks, rng), recipe.population - added)
        value, size, subnet = pool.best()
        best.append(value)
        say(
            f"generation {generation} of {recipe.generations}: {value:.2f} at {size:,} parameters, "
            f"{len(pool.seen)} subnets tried"
        )
    return Evolved(subnet=subnet, score=value, cost=size, num_tried=len(pool.seen), best=best)

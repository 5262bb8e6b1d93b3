"""Evolution of subnets: legal ones only, each scored once, from the given chance alone."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from headwise.errors import ConfigError
from headwise.methods._evolution import Evolution, Subnet, evolve
from made_cases import each

KINDS = ("a", "b")
SMALL = Evolution(sizes=[1, 5, 10], population=20, parents=4, crossover=8, mutation=8, generations=6, limit=90)


def cost(subnet: Subnet) -> int:
    return sum(map(sum, subnet.values()))


def test_drawn_subnets_have_a_depth_and_sizes_up_to_it() -> None:
    rng = random.Random(0)
    depths = set()
    for _ in range(200):
        for sizes in Evolution().draw(KINDS, 12, rng).values():
            depth = sum(size > 0 for size in sizes)
            assert sizes[depth:] == [0] * (12 - depth)
            assert set(sizes[:depth]) <= {1, 5, 10}
            depths.add(depth)
    assert depths == {3, 6, 9, 12}
    assert {sum(s > 0 for s in Evolution().draw("a", 2, rng)["a"]) for _ in range(50)} == {1, 2}


def test_children_stay_within_the_space() -> None:
    rng = random.Random(1)
    recipe = Evolution(size_rate=1.0, depth_rate=1.0)
    one, other = recipe.draw(KINDS, 12, rng), recipe.draw(KINDS, 12, rng)
    assert Evolution(size_rate=0.0, depth_rate=0.0).mutate(one, rng) == one
    for _ in range(50):
        child = recipe.mutate(one, rng)
        for sizes in child.values():
            depth = sum(size > 0 for size in sizes)
            assert depth in (3, 6, 9, 12)
            assert sizes[depth:] == [0] * (12 - depth)
        crossed = Evolution.cross(one, other, rng)
        assert all(crossed[kind] in (one[kind], other[kind]) for kind in KINDS)
    assert Evolution(size_rate=0.0, depth_rate=1.0).mutate({"a": [5, 5, 5]}, rng)["a"][0] == 5


def hunt(seed: int, recipe: Evolution = SMALL) -> tuple[Any, list[Subnet]]:
    tried: list[Subnet] = []

    def count_fives(subnet: Subnet) -> float:
        tried.append(subnet)
        return float(sum(sizes.count(5) for sizes in subnet.values()))

    return evolve(recipe, KINDS, 12, cost, count_fives, random.Random(seed)), tried


def test_it_gets_better_keeps_the_limit_and_repeats_nothing() -> None:
    found, tried = hunt(0)
    said: list[str] = []
    evolve(SMALL, KINDS, 12, cost, lambda _: 1.0, random.Random(0), said.append)
    assert len(said) == 7
    assert re.fullmatch(r"generation 6 of 6: 1\.00 at \d+ parameters, \d+ subnets tried", said[-1])
    assert found.best == sorted(found.best)
    assert found.best[-1] > found.best[0]
    assert len(found.best) == 7
    assert found.num_tried == len(tried) == len({repr(subnet) for subnet in tried})
    assert max(map(cost, tried)) <= 90
    assert found.score == found.best[-1]
    assert found.cost == cost(found.subnet)


def test_it_follows_from_the_seed() -> None:
    assert hunt(3)[1] == hunt(3)[1]
    assert hunt(3)[1] != hunt(4)[1]


def test_ties_go_to_the_smaller_subnet() -> None:
    tried: list[Subnet] = []
    found = evolve(SMALL, KINDS, 12, cost, lambda s: float(bool(tried.append(s))), random.Random(0))  # type: ignore[func-returns-value]
    assert found.cost == min(map(cost, tried))


def test_a_small_space_ends() -> None:
    recipe = Evolution(sizes=[1], depths=[1.0], population=5, parents=2, crossover=2, mutation=2, generations=3)
    assert hunt(0, recipe)[0].num_tried == 1


@each(
    "given, message",
    [
        ("evolve", "unknown search 'evolve' (did you mean 'evolution'?)"),
        ({"sizes": [0]}, "search.sizes must be whole numbers of at least 1, got [0]"),
        ({"sizes": []}, "search.sizes must be whole numbers of at least 1, got []"),
        ({"depths": [3]}, "search.depths must be shares in (0, 1], got [3]"),
        ({"population": 0}, "search.population must be a whole number of at least 1, got 0"),
        ({"generations": -1}, "search.generations must be a whole number of at least 0, got -1"),
        ({"size_rate": 1.5}, "search.size_rate must be in [0, 1], got 1.5"),
        ({"population": 10}, "must be at most search.population=10, got 25 + 25"),
        ({"lr": 0}, "search.lr must be a number above 0, got 0"),
        ({"parent": 1}, "unknown key search.parent (did you mean 'parents'?)"),
    ],
)
def test_bad_recipes(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Evolution.of(given)


def test_nothing_within_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"no subnet of sizes \[1, 5, 10\] keeps within search.limit=1"):
        evolve(Evolution(limit=1), KINDS, 12, cost, lambda _: 0.0, random.Random(0))

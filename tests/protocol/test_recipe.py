"""Protocols: schedules, ranges, normalisation, stamps."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from headwise.errors import ConfigError
from headwise.protocol import recipe
from headwise.protocol.recipe import NORMALIZATIONS, Normalize, Protocol
from made_cases import each

R0 = Protocol(schedule="r0_legacy")
STEPS = 15


@each(
    "epoch, rate", [(0, 1e-6), (1, 1e-6), (2, 1.009e-4), (10, 9.001e-4), (11, 9.758e-4), (50, 5.205e-4), (99, 1.098e-5)]
)
def test_r0_legacy_repeats_the_published_trace(epoch: int, rate: float) -> None:
    """Values of timm's scheduler as the recipe calls it: 100 epochs, 10 of warm-up, stepped after the epoch."""
    schedule = R0.learning_rate(100, STEPS)
    assert schedule(epoch * STEPS) == pytest.approx(rate, rel=1e-3)
    assert schedule(epoch * STEPS) == schedule(epoch * STEPS + STEPS - 1)


def test_r0_legacy_never_reaches_its_peak() -> None:
    schedule = R0.learning_rate(100, STEPS)
    assert max(schedule(step) for step in range(100 * STEPS)) < 0.98e-3


@each("epochs", [1, 2, 7, 100])
def test_cosine_reaches_its_peak_and_falls(epochs: int) -> None:
    recipe = Protocol()
    schedule = recipe.learning_rate(epochs, STEPS)
    rates = [schedule(step) for step in range(epochs * STEPS)]
    warm = recipe.warmup_count(epochs * STEPS)
    assert rates[warm - 1] == pytest.approx(recipe.lr)
    assert max(rates) == pytest.approx(recipe.lr)
    assert all(a < b for a, b in itertools.pairwise(rates[:warm]))
    assert all(a > b for a, b in itertools.pairwise(rates[warm:]))
    assert rates[-1] >= recipe.lr_min
    assert schedule(epochs * STEPS) == pytest.approx(recipe.lr_min)


def test_constant_stays() -> None:
    assert {Protocol(schedule="constant", warmup=0.0).learning_rate(2, 3)(step) for step in range(6)} == {1e-3}
    rates = [Protocol(schedule="constant", warmup=0.5).learning_rate(2, 2)(step) for step in range(4)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 1e-3])


def test_a_phase_may_bring_its_peak() -> None:
    for schedule in ("cosine", "constant"):
        rate = Protocol(schedule=schedule).learning_rate(10, STEPS, peak=0.5)
        assert max(rate(step) for step in range(10 * STEPS)) == pytest.approx(0.5)


@each("fraction, total, warm", [(0.1, 1500, 150), (0.1, 15, 2), (0.1, 3, 1), (0.0, 9, 0), (0.9, 2, 1)])
def test_warmup_is_whole_steps_and_at_least_one(fraction: float, total: int, warm: int) -> None:
    assert Protocol(warmup=fraction).warmup_count(total) == warm


@each("schedule", ["cosine", "r0_legacy", "constant"])
@each("epochs, steps", [(1, 1), (1, 2), (2, 1), (3, 1)])
def test_the_shortest_runs_have_a_rate(schedule: str, epochs: int, steps: int) -> None:
    rate = Protocol(schedule=schedule).learning_rate(epochs, steps)
    assert all(0 < rate(step) <= 1e-3 for step in range(epochs * steps + 1))


@each(
    "values, message",
    [
        ({"schedule": "cosin"}, r"unknown protocol.schedule 'cosin' \(did you mean 'cosine'\?\); allowed: .*r0_legacy"),
        ({"optimizer": "adam"}, "unknown protocol.optimizer 'adam' .*adamw"),
        ({"normalize": "x"}, "unknown protocol.normalize"),
        ({"precision": "fp8"}, "unknown protocol.precision"),
        ({"select": "best"}, "unknown protocol.select"),
        ({"epochs": 0}, "protocol.epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 2.5}, "protocol.epochs must be a whole number"),
        ({"batch_size": True}, "protocol.batch_size must be a whole number"),
        ({"warmup": 1.0}, "protocol.warmup must be in"),
        ({"drop_path": -0.1}, "protocol.drop_path must be in"),
        ({"lr": 0.0}, "protocol.lr must be a number above 0"),
        ({"lr": float("nan")}, "protocol.lr must be a number above 0"),
        ({"weight_decay": -1.0}, "protocol.weight_decay must be a number of at least 0"),
        ({"test_images": 0}, "protocol.test_images must be a whole number of at least 1"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Protocol(**values)


def test_normalisation_is_a_choice() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert Protocol().normalization(mean, std) == (mean, std)
    assert Protocol(normalize="inception").normalization(mean, std) == ((0.5,) * 3, (0.5,) * 3)
    assert Protocol(normalize="imagenet").normalization(mean, std)[0] == (0.485, 0.456, 0.406)
    assert Protocol(normalize="none").normalization(mean, std) == ((0.0,) * 3, (1.0,) * 3)


def test_a_normalisation_is_a_matter_of_one_file() -> None:
    """Every place that knows their names or values takes them from the protocol's table."""
    assert (*get_args(Normalize),) == ("model", *NORMALIZATIONS)
    source = Path(recipe.__file__).parents[1]
    files = [file.name for file in source.rglob("*.py") if re.search(r"0\.485|[\"']inception[\"']", file.read_text())]
    assert files == ["recipe.py"]


def test_what_must_be_said_is_stamped() -> None:
    assert Protocol().labels == []
    stamped = Protocol(select="best_test", test_images=5, eval_split="val200")
    assert stamped.labels == ["subset", "validation", "TEST-SELECTED"]


@each(
    "step, rate",
    [(0, 1e-6), (15, 1e-6), (16, 1.009e-4), (151, 9.758e-4), (750, 5.2053e-4), (751, 5.05e-4), (1499, 5.05e-4)],
)
def test_cara_legacy_is_stepped_by_batch_and_held_from_the_middle_on(step: int, rate: float) -> None:
    """The first batch of an epoch still has the epoch before's rate; after epoch 50 of 100 it stays at that of 50."""
    assert Protocol(schedule="cara_legacy").learning_rate(100, STEPS)(step) == pytest.approx(rate, rel=1e-3)


def test_a_part_of_the_training_images_is_said() -> None:
    recipe = Protocol(train_images=8)
    assert recipe.labels == ["subset"]
    assert recipe.data_options((0.5,) * 3, (0.5,) * 3)["train_images"] == 8
    assert recipe.for_search().train_images == 8
    assert recipe.for_search().test_images is None
    few = replace(recipe, search={"scale": [1, 2], "images": 50})
    assert few.for_search().test_images == 50


@each("key", ["train_images", "eval_mode_after", "select_after"])
def test_whole_numbers_or_null(key: str) -> None:
    with pytest.raises(ConfigError, match=f"protocol.{key} must be a whole number of at least 1, .*null is allowed"):
        Protocol(**{key: 0})

"""Kind rates: planted powers and steps are found, and runs that make no curve are refused."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
from made_pictures import check_readable

from headwise.analysis import rate_effect
from headwise.analysis.kinds import Options, Recorded
from headwise.analysis.made import Analysis
from headwise.analysis.rate_effect import AXES, analyse, fit
from headwise.errors import ConfigError
from headwise.results.records import Result
from made_cases import each
from made_results import run

HEAD = "headwise.methods.hs_lora.HeadLoRA"
LORA = "headwise.methods.lora.LoRA"
RATES, RANKS = (0.001, 0.003, 0.01, 0.03), (1, 2, 4, 8)


def loss(rate: float, rank: int, per_head: bool, power: float, apart: float) -> float:
    x = math.log10(rate) + power * math.log10(rank) + apart * per_head
    return 1.0 - 0.4 * x + 0.1 * x**2


def made(kind: str, rate: float, rank: int, value: float, task: str = "eurosat", **spec) -> Result:
    result = run(
        kind.rpartition(".")[2].lower(),
        task,
        variant=f"lr{rate}-rank{rank}",
        spec={"_target_": kind, "rank": rank, **spec},
        protocol={"name": "strict", "lr": rate},
        recipe={"kind": kind, "rank": rank, "lr": rate},
    )
    phase = dataclasses.replace(result.phases[0], train_loss=value, steps=75)
    return dataclasses.replace(result, phases=[phase])


def other(steps: int = 75, **provenance) -> Result:
    """A run of shared updates that was trained otherwise."""
    result = made(LORA, 0.001, 1, 1.0)
    phase = dataclasses.replace(result.phases[0], steps=steps)
    return dataclasses.replace(result, phases=[phase], provenance={**result.provenance, **provenance})


def grid(power: float, apart: float) -> list[Result]:
    return [
        made(kind, rate, rank, loss(rate, rank, kind == HEAD, power, apart))
        for kind, rate, rank in itertools.product((LORA, HEAD), RATES, RANKS)
    ]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are behind the interval alone, which no test looks at."""
    monkeypatch.setattr(rate_effect, "DRAWS", 40)


def drawn(results: list[Result]) -> Analysis:
    return analyse([Recorded(Path(f"run-{number}"), result) for number, result in enumerate(results)], Options())


@pytest.mark.parametrize(("power", "apart"), [(1.0, 0.0), (0.5, 0.0), (0.0, 0.3), (0.8, -0.5)])
def test_planted_powers_are_found(power: float, apart: float) -> None:
    analysis = drawn(grid(power, apart))
    found = analysis.tables["fits"].set_index("over").loc["fitted"]
    assert found["power"] == pytest.approx(power, abs=1e-3)
    assert found["apart"] == pytest.approx(apart, abs=1e-3)
    assert found["explained"] == pytest.approx(1.0)
    assert len(analysis.tables["runs"]) == 32
    assert any(f"to the power of {abs(found['power']):.2f}" in sentence for sentence in analysis.sentences)
    if power == 0.8:
        check_readable(analysis.figures["rates"])


def test_a_given_power_is_as_good_as_it_is_right() -> None:
    table = drawn(grid(1.0, 0.0)).tables["runs"]
    deviations = {name: fit(table, power).deviation for name, power in AXES.items()}
    assert deviations["rate x rank"] < 1e-9 < deviations["rate x sqrt(rank)"] < deviations["rate"]


def test_the_scale_counts_as_rate_and_a_methods_own_rate_before_the_protocols() -> None:
    results = [*grid(1.0, 0.0), made(LORA, 0.5, 4, 1.0, scale=3.0, lr=0.01)]
    table = drawn(results).tables["runs"]
    (own,) = table[table["loss"] == 1.0].itertuples()
    assert (own.rate, own.rank) == (pytest.approx(0.03), 4)


@each(
    "results, said",
    [
        ([*grid(1.0, 0.0), made(LORA, 0.1, 1, 1.0, task="svhn")], "no one curve: .*task.*eurosat.*svhn"),
        ([*grid(1.0, 0.0), made(LORA, 0.1, 1, 1.0, targets=["q"])], "no one curve: .*targets"),
        ([*grid(1.0, 0.0), other(steps=150)], "no one curve: steps"),
        ([*grid(1.0, 0.0), other(weights={"name": "other"})], "no one curve: weights"),
        ([*grid(1.0, 0.0), other(protocol={"name": "strict", "lr": 0.001, "batch_size": 8})], "curve: protocol.batch"),
        ([one for one in grid(1.0, 0.0) if one.phases[0].method["_target_"] == LORA], "got none of per head"),
        (
            [one for one in grid(1.0, 0.0) if one.phases[0].method["rank"] < 4],
            "three values of the rank or more, got 2",
        ),
        (grid(1.0, 0.0)[:2], "three values of the rate or more, got 1"),
        ([made(LORA, rate, rank, 1.0) for rate in RATES[:3] for rank in RANKS[:3]], "12 runs or more, got 9"),
        ([made("headwise.methods.pissa.PiSSA", 0.1, 1, 1.0)], "one phase of LoRA, HeadLoRA"),
        ([run(accuracy=(1.0, 2.0))], "one phase of LoRA, HeadLoRA"),
        ([dataclasses.replace(run(), provenance={})], "no learning rate or no training loss"),
    ],
)
def test_what_is_no_curve_is_refused(results: list[Result], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        drawn(results)

"""Which runs a sweep hands out first: the longest, in the same order every time; one process keeps the given order."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig

from headwise.commands.composition import KeptLoader
from headwise.errors import SweepError
from headwise.runs.sweep import Sweep, requests_of
from headwise.runs.workload import work, work_of
from made_cases import each
from made_networks import CONF

TINY = ["backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu"]


@functools.cache
def shared() -> tuple[KeptLoader, DictConfig]:
    """What the jobs of a sweep share; all that is chosen is their own."""
    loader = KeptLoader(GlobalHydra.instance().config_loader().get_search_path())
    return loader, loader.load_configuration("config", [], RunMode.MULTIRUN)


def estimate(*overrides: str) -> float:
    """Work of a job, as a sweep would estimate it."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return work_of(*shared(), list(overrides))


@each(
    "longer, shorter",
    [
        (("method=hs_lora", "method@method.first=lora"), ("method=lora",)),
        (("method=hs_control_long", "method@method.first=lora"), ("method=lora",)),
        (("method=lora", "protocol.epochs=200"), ("method=hs_lora", "method@method.first=lora", "protocol.epochs=99")),
        (("dataset=dsprites_loc",), ("dataset=eurosat",)),
        (("dataset=fewshot/pets", "shots=16", "draw=0"), ("dataset=fewshot/pets", "shots=1", "draw=0")),
        (("backbone=vit_b16_in21k",), ("backbone=vit_s14_dinov2",)),
        (("backbone=vit_s14_dinov2",), ("backbone=vit_nano",)),
        (("backbone.img_size=448",), ("backbone.img_size=224",)),
        (("protocol=heart_paper",), ("protocol=heart_paper", "protocol.search=null")),
        (("protocol=heart_paper", "protocol.search=null"), ("protocol=heart_last", "protocol.search=null")),
        (("protocol=strict",), ("protocol=smoke",)),
    ],
)
def test_what_takes_longer(longer: tuple[str, ...], shorter: tuple[str, ...]) -> None:
    assert estimate(*longer) > estimate(*shorter)


def test_both_phases_are_as_long_as_the_control_of_their_length() -> None:
    first = "method@method.first=lora"
    assert estimate("method=hs_lora", first) == pytest.approx(estimate("method=hs_control_long", first))


def test_what_is_no_number_is_left_to_the_run() -> None:
    odd: dict[str, Any] = {"epochs": "many", "search": {"scale": 1, "fields": []}}
    assert work({"method": {"epochs": True}, "protocol": odd, "dataset": {"shots": -1}, "backbone": {}}) > 0
    assert (
        estimate("protocol.epochs=${nowhere}") == estimate("~backbone") == estimate("backbone=vit_nano", "~method") == 0
    )


def handed_out(root: Path, amounts: dict[str, float] | None) -> list[str]:
    """Methods in the order in which a sweep launches them; the launcher trains nothing."""
    config, jobs, _ = requests_of(CONF, [*TINY, "method=lora,full,head_lora,linear", f"root={root}"])
    launched: list[str] = []

    def method(job: list[str]) -> str:
        return next(word for word in job if word.startswith("method=")).partition("=")[2]

    def launch(batch: list[list[str]], first: int) -> list[Any]:
        launched.extend(map(method, batch))
        return [SimpleNamespace(status=JobStatus.COMPLETED, return_value=math.pi) for _ in batch]

    work = None if amounts is None else lambda job: amounts[method(job)]
    numbers = Sweep(config, list(jobs.values()), launch, lambda batch: None, work).run()
    assert numbers == [math.pi] * 4
    return launched


def test_the_longest_begin_first_and_equal_ones_keep_their_order(tmp_path: Path) -> None:
    amounts = {"lora": 1.0, "full": 1.0, "head_lora": 2.0, "linear": 0.5}
    assert handed_out(tmp_path, amounts) == ["head_lora", "lora", "full", "linear"]
    assert handed_out(tmp_path, None) == ["lora", "full", "head_lora", "linear"]


def test_numbers_come_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    config, jobs, _ = requests_of(CONF, [*TINY, "method=lora,full", f"root={tmp_path}"])

    def launch(batch: list[list[str]], first: int) -> list[Any]:
        returned = [float("method=full" in job) for job in batch]
        return [SimpleNamespace(status=JobStatus.COMPLETED, return_value=value) for value in returned]

    sweep = Sweep(config, list(jobs.values()), launch, lambda batch: None, lambda job: float("method=full" in job))
    assert sweep.run() == [0.0, 1.0]


def test_a_job_that_cannot_be_composed_is_refused_before_any_is_estimated(tmp_path: Path) -> None:
    config, jobs, _ = requests_of(CONF, [*TINY, "method=lora,full", f"root={tmp_path}"])

    def refuse(batch: list[list[str]]) -> None:
        raise SweepError("no")

    with pytest.raises(SweepError, match="no"):
        Sweep(config, list(jobs.values()), lambda *_: [], refuse, lambda job: pytest.fail("estimated")).run()

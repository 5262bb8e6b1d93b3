"""Numbers for rank and ne: every spelling means the option that a file would hold, and names the same run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.errors import HydraException

from headwise.commands.messages import text_of
from headwise.commands.overrides import readable
from headwise.commands.sizes import name_of, option, spelled
from headwise.errors import ConfigError
from headwise.protocol.plan import plan_run
from headwise.runs.experiment import run
from headwise.runs.jobs import requests_of
from made_cases import each
from made_networks import CONF, REPO, compose_config

FILES = [file for group in ("rank", "ne") for file in sorted((CONF / group).glob("*.yaml"))]
TINY = ["backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu"]
FAST = [*TINY, "trainer.threads=1", "trainer.progress=false", "logger.pictures=false"]


@each("file", FILES)
def test_a_file_is_a_line_and_says_what_its_name_says(file: Path) -> None:
    assert len(file.read_text().splitlines()) == 1
    assert yaml.safe_load(file.read_text()) == option(file.parent.name, file.stem)


@each(
    "typed, meant",
    [
        ("rank=8", "rank=r8"),
        ("rank=16x3", "rank=r16"),
        ("rank=16x4", "rank=r16_h4"),
        ("rank=8,16x4,r32", "rank=r8,r16_h4,r32"),
        ("ne=3", "ne=ne3"),
        ("ne=0,3,0.25,.5", "ne=ne0,ne3,quarter,half"),
        ("ne=0.3", "ne=ne0.3"),
        ("ne=-1", "ne=ne-1"),
        ("rank=r16_h4", "rank=r16_h4"),
        ("rank.global=8", "rank.global=8"),
        ("seed=8", "seed=8"),
        ("method=5", "method='5'"),
        ("dataset=true", "dataset='true'"),
        ("rank=8.5", "rank='8.5'"),
        ("method=null", "method='null'"),
        ("experiment=null", "experiment=null"),
    ],
)
def test_spellings(typed: str, meant: str) -> None:
    """14 C 15."""
    assert readable([typed]) == [meant]


def test_the_same_run_under_every_spelling() -> None:
    """14 C 15: one identity; what has no file is made."""
    by_number, by_name = (
        plan_run(compose_config(*TINY, "method=heart_lora", *sizes))
        for sizes in (map(spelled, ("rank=16x4", "ne=0.25")), ("rank=r16_h4", "ne=quarter"))
    )
    assert by_number.identity == by_name.identity
    cfg = compose_config("rank='5'", "ne='4'")
    assert (dict(cfg.rank), dict(cfg.ne)) == ({"global": 5, "head": 3}, {"count": 4, "ratio": None, "warmup": 0.1})
    assert name_of("rank", "r5") == "r5" and option("rank", "5x2") == {"global": 5, "head": 2}
    assert option("rank", "x") is option("ne", "r8") is option("method", "8") is None


@each(
    "choices",
    [
        ("rank=5,r8", "ne=1,0.25"),
        *(
            (f"rank={call}", "ne=ne1,quarter")
            for call in ("choice(5,8)", "range(5,9,3)", "sort(r8,r5)", "choice(8,5,8)")
        ),
    ],
)
def test_sweeps_over_numbers(choices: tuple[str, ...]) -> None:
    _, jobs, _ = requests_of(CONF, [*TINY, "method=heart_lora", *choices])
    found = [[word for word in job if re.match("rank|ne", word)] for job in jobs.values()]
    assert sorted(map(sorted, found)) == [
        [ne, rank] for ne in ("ne=ne1", "ne=quarter") for rank in ("rank=r5", "rank=r8")
    ]
    _, same, _ = requests_of(CONF, [*TINY, "method=heart_lora", "rank=r5,r8", "ne=ne1,quarter"])
    assert jobs.keys() == same.keys()


def train(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HEADWISE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONWARNINGS", None)
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False, timeout=600)


def test_a_number_on_the_command_line(tmp_path: Path) -> None:
    """Equal values by number and by name are one run in one folder; in a sweep as well."""
    options = [*FAST, "method=heart_lora", "method.rank=${rank.global}", f"root={tmp_path / 'out'}"]
    run(compose_config(*options, "rank=r4", "ne=ne1"))
    assert "already finished" in train("-m", *options, "rank=4", "ne=1", cache=tmp_path).stdout
    assert len(list((tmp_path / "out").glob("runs/**/result.json"))) == 1


@each(
    "wrong, answer",
    [
        ("rank=0", "rank.global must be a whole number of at least 1, got 0"),
        ("rank=8x0", "rank.head must be a whole number of at least 1, got 0"),
        ("rank=-8", "rank.global must be a whole number of at least 1, got -8"),
        ("ne=1.5", "ne.ratio must be in [0, 1), got 1.5"),
        ("ne=-1", "ne.count must be a whole number of at least 0, got -1"),
        ("rank=eight", "unknown rank 'eight'"),
        ("rank=8.5", "or a number (rank=8; with that per head rank=16x4)"),
        ("ne=many", "or a number of heads (ne=3), or a share (ne=0.25)"),
        ("method=5", "unknown method '5'"),
        ("dataset=true", "unknown dataset 'true'"),
    ],
)
def test_sizes_that_are_none(wrong: str, answer: str) -> None:
    given = [word for word in TINY if word.partition("=")[0] != wrong.partition("=")[0]]
    with pytest.raises((ConfigError, HydraException)) as refused:
        plan_run(compose_config(*readable([*given, wrong])))
    assert answer in text_of(refused.value)
    assert "\n" not in text_of(refused.value)

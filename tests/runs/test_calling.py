"""headwise.train: the same runs as train.py, under the same names, taken up by each other."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import headwise
from headwise.errors import ConfigError, SweepError
from headwise.results.store import Result
from headwise.runs.calling import _words
from made_cases import each
from made_networks import REPO

TINY: dict[str, Any] = {
    "backbone": "vit_tiny_random",
    "dataset": "dsprites_loc",
    "data": "synthetic",
    "protocol": "smoke",
    "trainer": "cpu",
    "trainer.threads": 1,
    "trainer.progress": False,
    "logger.pictures": False,
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The launcher of a sweep sets up logging, as on the command line."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def test_a_run_is_that_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**TINY, "method": "lora", "rank": 4, "method.scale": 2.0, "root": tmp_path / "my runs"}
    result = headwise.train(**options)
    assert isinstance(result, Result) and result.phases[0].method["rank"] == 4
    assert "already finished" not in capsys.readouterr().out
    assert HydraConfig.instance().cfg is None and not GlobalHydra.instance().is_initialized()
    again = headwise.train(**options)
    assert again == result and "already finished" in capsys.readouterr().out
    words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items()]
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=REPO, env=os.environ, capture_output=True, text=True, check=False
    )
    assert f"already finished: {result.key.path(tmp_path / 'my runs')}" in done.stdout, done.stderr
    assert "scale2.0" in result.key.variant
    assert headwise.load(result.key.path(tmp_path / "my runs")).classify([]) == []


def test_lists_are_a_sweep_in_order(tmp_path: Path) -> None:
    results = headwise.train(**TINY, method=["lora", "head_lora"], seed=[1, 0], rank=4, root=tmp_path)
    assert isinstance(results, list)
    found = [(result.key.method, result.key.seed) for result in results]
    assert found == [("lora", 1), ("lora", 0), ("head_lora", 1), ("head_lora", 0)]
    alone = headwise.train(**TINY, method="lora", seed=0, rank=4, root=tmp_path)
    assert alone == results[1]
    with pytest.raises(SweepError, match="1 of 2 runs failed"):
        headwise.train(**TINY, method="lora", **{"method.rank": [4, 49]}, root=tmp_path)


@each(
    "options, said",
    [
        ({"method": "lroa"}, r"unknown method 'lroa' \(did you mean 'lora'"),
        (
            {"method": "lora", "method.rnak": 3},
            r"unknown configuration key 'method\.rnak' \(did you mean 'method\.rank'",
        ),
        ({"protocol": {"epoch": 3}}, r"unknown configuration key 'protocol\.epoch' \(did you mean 'protocol\.epochs'"),
        ({"seed": -1}, r"seed must be"),
        ({"seed": []}, r"seed=\[\] is a sweep over nothing"),
        ({"seed": {1}}, r"seed=\{1\}: allowed are text, numbers"),
    ],
)
def test_mistakes_are_answered_as_on_the_command_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        headwise.train(**{**TINY, "protocol": options.pop("protocol", "smoke")}, **options)
    assert not GlobalHydra.instance().is_initialized()


def test_values_are_typed_as_a_user_would() -> None:
    words = list(
        _words(
            {
                "method": "hs/pissa",
                "protocol": {"epochs": 3, "lr": 1e-5},
                "method.targets": ("q", "v"),
                "variant": None,
                "dataset.class_names": ("a cat", "1"),
                "wait": True,
                "notes": "x, y",
                "seed": [0, 1],
                "number": "1",
            }
        )
    )
    assert words == [
        "method=hs/pissa",
        "protocol.epochs=3",
        "protocol.lr=1e-05",
        "method.targets=[q,v]",
        "variant=null",
        "dataset.class_names=[a cat,'1']",
        "wait=true",
        "notes='x, y'",
        "seed=0,1",
        "number='1'",
    ]

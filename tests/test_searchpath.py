"""A method in a folder of the user's own, as docs/howto/own_method.md shows it: trains, merges, passes every check."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from headwise.artifacts.export import export_merged
from headwise.errors import ConfigError
from headwise.methods.base import build_method
from headwise.runs.experiment import run
from made_networks import NETWORKS, REPO, compose_config, network
from made_phases import unfolded
from made_words import FAST
from test_conformance import CHECKS, run_checks

TEXT = (REPO / "docs" / "howto" / "own_method.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page describes."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "method").mkdir()
    (folder / "krona.py").write_text(block("python"))
    (folder / "method" / "krona.yaml").write_text(block("yaml"))
    return folder


@pytest.fixture
def place(own: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The override that names the folder, whose module can be imported."""
    monkeypatch.syspath_prepend(str(own))
    return f"hydra.searchpath=[file://{own}]"


def composed(place: str, *overrides: str) -> Any:
    cfg = compose_config(place, "method=krona", "backbone=vit_tiny_random", *overrides)
    return instantiate(OmegaConf.to_container(cfg, resolve=True)["method"], _convert_="all")  # type: ignore[index]


def test_the_method_is_short() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]
    assert len(lines) <= 30
    assert not list(REPO.glob("src/**/krona*")) + list(REPO.glob("conf/**/krona*"))


def test_it_trains_from_the_command_line_merges_and_is_exported(place: str, tmp_path: Path) -> None:
    arguments = [place, "method=krona", *FAST, f"root={tmp_path}"]
    accuracy = run(compose_config(*arguments))
    (file,) = tmp_path.glob("runs/krona/dsprites_loc/base/seed-0/result.json")
    assert accuracy is not None and 0 <= accuracy <= 100
    phase = json.loads(file.read_text())["phases"][0]
    assert phase["num_tunable"] == 4 * (8 * 8 + 6 * 6)
    assert phase["steps"] > 0
    assert run(compose_config(*arguments)) == accuracy  # the stored one
    with pytest.raises(ConfigError, match=r"'krona\.KronA' is not a method of headwise.*trust='krona'.*--trust krona"):
        export_merged(file.parent, tmp_path / "timm.safetensors")
    assert export_merged(file.parent, tmp_path / "timm.safetensors", trust="krona").random_difference <= 1e-5


@pytest.mark.slow
def test_the_documented_command(own: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(own), "OMP_NUM_THREADS": "1", "HEADWISE_CACHE": str(tmp_path)}
    place = os.path.relpath(own, REPO)
    command = [sys.executable, "train.py", f"hydra.searchpath=[file://{place}]", "method=krona", *FAST]
    done = subprocess.run(
        [*command, f"root={tmp_path}"], cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/krona/**/result.json"))


@pytest.mark.parametrize("family", NETWORKS)
def test_it_passes_conformance(place: str, family: str, tmp_path: Path) -> None:
    phases = unfolded(composed(place), family)
    assert len(phases) == 1
    assert len(run_checks(phases, CHECKS[family], tmp_path)) >= len(CHECKS[family]) - 3


def test_it_can_be_a_first_phase_and_is_rebuilt_from_its_record(place: str) -> None:
    cfg = compose_config(place, "method=hs_lora", "method@method.first=krona", "backbone=vit_tiny_random", "rank=r4")
    both = instantiate(OmegaConf.to_container(cfg, resolve=True)["method"], _convert_="all")  # type: ignore[index]
    assert [phase.label for phase in both.phases()] == ["krona", "head_lora"]
    method = composed(place)
    assert build_method(method.spec(), "krona", trust="krona") == method


def test_its_mistakes_are_answered(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"size must divide the sides of s0\.b0\.q, \(48, 48\), got 7"):
        composed(place, "method.size=7").install(network("vit"))
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "lost.yaml").write_text("_target_: nowhere.Lost\nlabel: lost\n")
    arguments = [f"hydra.searchpath=[file://{tmp_path}]", "method=lost", *FAST, f"root={tmp_path}"]
    with pytest.raises(ConfigError, match=r"nowhere"):
        run(compose_config(*arguments))

"""Where a sweep runs: the same tables from every launcher that is installed, and a hint where one is not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from made_cases import each
from made_networks import CONF, REPO

SWEEP = ["-m", "method=lora,head_lora", "seed=0,1", "backbone=vit_tiny_random", "dataset=dsprites_loc", "rank=r4"]
SWEEP += ["data=synthetic", "protocol=smoke", "trainer=cpu", "trainer.threads=1", "trainer.progress=false"]
PLUGINS = {
    "processes": "hydra_joblib_launcher",
    "ray_local": "hydra_ray_launcher",
    "ray_cluster": "hydra_ray_launcher",
    "slurm": "hydra_submitit_launcher",
    "slurm_local": "hydra_submitit_launcher",
}


def installed(preset: str) -> bool:
    return importlib.util.find_spec(f"hydra_plugins.{PLUGINS[preset]}") is not None


def command(script: str, *arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HEADWISE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONWARNINGS", None)
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def table(root: Path, *options: str) -> dict[str, bytes]:
    """Run the sweep below `root`; the bytes of its tables."""
    done = command("train.py", *SWEEP, f"root={root}", *options, cache=root / "cache")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    names = ["--root", str(root), "--out", str(root / "t.md"), "--json", str(root / "t.json")]
    assert command("scripts/make_tables.py", *names, cache=root / "cache").returncode == 0
    return {name: (root / name).read_bytes() for name in ("t.md", "t.json")}


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return table(tmp_path_factory.mktemp("basic"))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["processes", "ray_local", "slurm_local"])
def test_every_launcher_gives_the_same_tables(preset: str, basic: dict[str, bytes], tmp_path: Path) -> None:
    if not installed(preset):
        pytest.skip(f"{PLUGINS[preset]} is not installed")
    assert table(tmp_path, f"hydra/launcher={preset}") == basic


@each("file", sorted((CONF / "hydra" / "launcher").glob("*.yaml")))
def test_a_preset_is_one_of_hydras_own_launchers(file: Path) -> None:
    assert file.stem in PLUGINS
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"hydra/launcher={file.stem}" in lines[1]
    content = yaml.safe_load(file.read_text())
    (base,) = content["defaults"]
    assert base in ("joblib", "ray", "submitit_local", "submitit_slurm")
    if base == "ray":
        assert content["ray"]["remote"]["max_retries"] == 0


@each(
    "preset, answer",
    [
        ("proceses", "unknown hydra/launcher 'proceses' (did you mean 'processes'?)"),
        ("processes", "pip install -e '.[launchers]'"),
    ],
)
def test_a_launcher_that_is_not_there(preset: str, answer: str, tmp_path: Path) -> None:
    if preset in PLUGINS and installed(preset):
        pytest.skip("it is installed")
    done = command("train.py", *SWEEP, f"root={tmp_path / 'out'}", f"hydra/launcher={preset}", cache=tmp_path)
    assert done.returncode == 1
    assert answer in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()

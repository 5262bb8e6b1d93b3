"""The README keeps what it promises: its commands compose, its own-method example works, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from made_cases import each
from made_networks import REPO, compose_config
from made_phases import unfolded
from test_conformance import CHECKS, run_checks

TEXT = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Arguments of every line of a bash block that runs `program`."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith(program)]
    return [shlex.split(line.removeprefix(program), comments=True) for line in lines]


@each("arguments", commands("python train.py"))
def test_commands_compose(arguments: list[str]) -> None:
    if "--help" in arguments:
        return
    overrides = [argument for argument in arguments if argument != "-m"]
    assert "-m" in arguments or not any("," in override and "[" not in override for override in overrides)
    cfg = compose_config(*(o if "[" in o else o.partition(",")[0] for o in overrides))
    assert cfg.method.label


def test_scripts_and_targets_exist() -> None:
    scripts = re.findall(r"python (scripts/\w+\.py)", TEXT)
    assert scripts and all((REPO / script).is_file() for script in scripts)
    makefile = (REPO / "Makefile").read_text()
    targets = [arguments[0] for arguments in commands("make ")]
    assert {"setup", "demo"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links and all((REPO / link).is_file() for link in links)


@pytest.fixture(scope="module")
def pasted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository to which the two files of the README's own method were added, and nothing else."""
    place = tmp_path_factory.mktemp("pasted")
    for name in ("src", "conf", "tests", "scripts"):
        shutil.copytree(REPO / name, place / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "train.py"):
        shutil.copy(REPO / name, place)
    (code,) = (block for block in blocks("python") if "class FourierFT" in block)
    (recipe,) = blocks("yaml")
    files = {"src/headwise/methods/fourier.py": code, "conf/method/fourier.yaml": recipe}
    assert all(f"`{file}`" in TEXT and not (place / file).exists() for file in files)
    for file, text in files.items():
        (place / file).write_text(text, encoding="utf-8")
    return place


def python(place: Path, *arguments: str) -> str:
    """What a Python of that copy prints; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(place / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ASKING = (
    "test_conformance.py",
    "test_families.py",
    "methods/test_catalog.py",
    "test_configs.py",
    "methods/test_fitting.py",
    "runs/test_method_page.py",
    "test_layers.py",
)
"""Tests that take every method there is, one by one or all in one."""
ALL_IN_ONE = ("every_method", "import_each_other", "no_file_is_unsafe", "opens_with")


def test_own_method_passes_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in blocks("python") if "class FourierFT" in block)
    (recipe,) = blocks("yaml")
    module = ModuleType("headwise.methods.fourier")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "README.md", "exec"), vars(module))
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "fourier.yaml").write_text(recipe)
    cfg = compose_config(f"hydra.searchpath=[file://{tmp_path}]", "method=fourier", "backbone=vit_tiny_random")
    method = instantiate(OmegaConf.to_container(cfg, resolve=True)["method"], _convert_="all")
    for family, checks in CHECKS.items():
        assert len(run_checks(unfolded(method, family), checks, tmp_path / family)) >= len(checks) - 3


@pytest.mark.slow
def test_own_method_passes_what_every_method_must(pasted: Path) -> None:
    files = [f"tests/{name}" for name in ASKING]
    chosen = " or ".join(["(fourier and not fourierft)", *ALL_IN_ONE])
    said = python(pasted, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, *files)
    (passed,) = re.findall(r"(\d+) passed", said)
    assert int(passed) >= 10, said


def test_own_method_is_in_the_catalogue_with_its_paper_and_size(pasted: Path) -> None:
    said = python(pasted, "scripts/list_methods.py", "fourier", "--backbone", "vit_tiny_random")
    (row,) = (line for line in said.splitlines() if line.startswith("| fourier"))
    name, _, paper, places, merges, size, *_ = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, paper) == ("fourier", "Gao et al., arXiv:2405.03003")
    assert (places, merges, size) == ("q, v", "yes", "4,000")

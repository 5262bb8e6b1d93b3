"""The README keeps what it promises: its commands compose, its own-method example works, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from types import ModuleType

import pytest
import yaml
from hydra.utils import instantiate

from made_networks import REPO, compose_config, distance, images, logits, network, perturb

TEXT = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Arguments of every line of a bash block that runs `program`."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith(program)]
    return [shlex.split(line.removeprefix(program), comments=True) for line in lines]


@pytest.mark.parametrize("arguments", commands("python train.py"), ids=" ".join)
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


def test_own_method_works(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in blocks("python") if "class FourierFT" in block)
    (recipe,) = blocks("yaml")
    module = ModuleType("headwise.methods.fourier")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "fourier.py", "exec"), module.__dict__)
    method = instantiate(yaml.safe_load(recipe))
    net, x = network("vit"), images()
    before = logits(net, x)
    installed = method.install(net)
    assert distance(logits(net, x), before) <= 1e-5
    assert all(tensor.shape == (1000,) for tensor in installed.adapter().values())
    perturb(list(installed.adapter().values()), size=1.0)
    trained = logits(net, x)
    assert distance(trained, before) > 1e-3
    installed.merge()
    assert distance(logits(net, x), trained) <= 1e-5

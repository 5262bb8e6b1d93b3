"""What the jobs of a sweep share: as hydra composes it, without the fields of groups whose options are tried."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from headwise.commands.shared import SharedLoader
from made_cases import each
from made_loaders import ReadOnce, hydras_own

REPO = Path(__file__).parents[2]
Loaders = tuple[SharedLoader, ConfigLoaderImpl]


@pytest.fixture
def loaders() -> Iterator[Loaders]:
    with initialize_config_dir(version_base="1.3", config_dir=str(REPO / "conf")):
        path = GlobalHydra.instance().config_loader().get_search_path()
        ours = SharedLoader(path)
        ours.repository = ReadOnce(path)
        yield ours, hydras_own(path)


@each(
    "words, left",
    [
        (["method=lora,dora", "method.rank=8", "seed=3"], ["method.rank=8"]),
        (["method.scale=2", "method=glob(l*)", "protocol.lr=0.1"], ["method.scale=2"]),
        (["method=lora,dora", "method.label='1'", "method.epochs=null", "method.checkpoint="], "all"),
        (["method=lora,dora", "method.rank=4,8", "+method.lr_ratio=8"], "all"),
        (["method=hs_lora", "method@method.first=convpass,lora", "method.first.hidden=8"], ["method.first.hidden=8"]),
        (["experiment=rank_effect", "method.scale=1"], ["method.scale=1"]),
        (["experiment=rank_effect", "method=dora", "method.scale=1"], []),
        (["dataset=svhn,eurosat", "method=lora", "method.rank=8"], []),
        (["method=lora", "method.rank=8", "protocol.lr=0.1,1"], []),
        ([], []),
    ],
)
def test_fields_of_groups_that_are_tried_are_left_to_the_jobs(
    words: list[str], left: list[str] | str, loaders: Loaders
) -> None:
    ours, hydras = loaders
    gone = [word for word in words if word.lstrip("+").startswith("method.")] if left == "all" else left
    shared = ours.load_configuration("config", words, RunMode.MULTIRUN)
    expected = hydras.load_configuration("config", [word for word in words if word not in gone], RunMode.MULTIRUN)
    assert shared.hydra.overrides.task == words
    for cfg in (shared, expected):
        cfg.hydra.overrides.task = []
        cfg.hydra.job.override_dirname = ""
    assert OmegaConf.to_container(shared) == OmegaConf.to_container(expected)


@each("words", [[], ["a=y"], ["b=y"], ["a=y", "b=z"], ["a=no"], ["b=no"]])
def test_an_option_that_is_named_by_another_choice_is_found_wherever_it_is_asked_for(
    words: list[str], tmp_path: Path
) -> None:
    """In the first file, in that of an option, and by a choice that there is none for."""
    files = {
        "config": "defaults: [a: x, b: x, c: '${a}', optional d: '${a}_${b}']\n",
        **{f"a/{name}": f"own: {name}\n" for name in "xy"},
        "b/x": "own: 1\n",
        "b/y": "defaults: [/c@deep: '${a}']\n",
        "b/z": "defaults: ['/c/${a}', /c@deep: '${b}']\n",
        **{f"c/{name}": f"value: {name}\n" for name in "xyz"},
        "d/y_y": "last: true\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        path = GlobalHydra.instance().config_loader().get_search_path()
        said = []
        for loader in (SharedLoader(path), ConfigLoaderImpl(path)):
            try:
                said.append(OmegaConf.to_container(loader.load_configuration("config", words, RunMode.RUN)))
            except HydraException as error:
                said.append(f"{type(error)} {error}")
    assert said[0] == said[1]


def test_a_field_of_no_group_is_refused_before_any_job(loaders: Loaders) -> None:
    for loader in loaders:
        with pytest.raises(HydraException, match=r"protocl"):
            loader.load_configuration("config", ["method=lora,dora", "protocl.lr=1"], RunMode.MULTIRUN)


def test_an_option_without_the_field_is_named_once_before_anything_is_said(tmp_path: Path) -> None:
    given = ["-m", "method=lora,bitfit", "method.rank=4", "dataset=svhn", f"root={tmp_path}", "seed=0,1"]
    done = subprocess.run(
        [sys.executable, "train.py", *given], cwd=REPO, capture_output=True, text=True, check=False, timeout=300
    )
    why = "unknown configuration key 'method.rank'; allowed: epochs, label, lr, targets"
    assert (done.stdout, done.stderr) == ("", f"error: of the sweep's method=bitfit: {why}\n")
    assert done.returncode == 1

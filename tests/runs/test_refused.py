"""What no run of a sweep can have is refused once, before anything is launched or written."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from headwise.commands.composition import KeptLoader
from headwise.errors import ConfigError
from headwise.protocol.plan import settled
from headwise.runs.jobs import Look, check_jobs, elsewhere, requests_of
from made_cases import each
from made_networks import CONF, REPO

QUICK = ("heart_fig4", "hs_table1", "standins")
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
TINY = ["data=synthetic", "backbone=vit_nano", "trainer=cpu"]


def refused(*arguments: str, look: Look = settled) -> str:
    """What the jobs of a sweep are refused with; empty if they are not."""
    shared, jobs, sources = requests_of(CONF, [*TINY, *arguments])
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        loader = KeptLoader(GlobalHydra.instance().config_loader().get_search_path())
        composed = functools.partial(loader.load_sweep_config, shared)
        try:
            check_jobs(list(jobs.values()), composed, tuple(sources), look)
        except ConfigError as error:
            return str(error)
    return ""


def test_the_command_refuses_once_and_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "results"
    command = [sys.executable, "train.py", "experiment=heart_fig4", "trainer=cpu", f"root={root}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr == "error: data.root must be given: add data.root=VALUE to the command\n"
    assert done.stdout == ""
    assert not root.exists()


def test_what_all_jobs_have_is_refused_without_blaming_one() -> None:
    swept = ["method=lora,head_lora", "seed=0,1"]
    assert refused(*swept) == ""
    assert refused(*swept, "protocol.epochs=0").startswith("protocol.epochs must be a whole number of at least 1")
    missing = refused(*swept, "data=folder", "data.root=/nowhere")
    assert missing.startswith("data.root='/nowhere' is not a folder")


def test_images_may_be_on_the_machines_that_train_only() -> None:
    swept = ["method=lora,head_lora", "data=folder"]
    for dataset in ("svhn", "own/folder"):
        assert refused(*swept, f"dataset={dataset}", "data.root=/nowhere", look=elsewhere) == ""
        assert refused(*swept, f"dataset={dataset}", look=elsewhere).startswith(
            "data.root must be given: add data.root="
        )
    assert refused(*swept, "protocol.epochs=0", "data.root=/nowhere", look=elsewhere).startswith("protocol.epochs must")


@each(
    "wrong, choice",
    [
        ("rank=r4,r0", "sweep's rank=r0"),
        ("seed=0,-1", "seed=-1"),
        ("seed=-1,0", "seed=-1"),
        ("protocol.epochs=2,0", "=0"),
    ],
)
def test_what_some_jobs_have_is_refused_with_their_choices(wrong: str, choice: str) -> None:
    assert refused("method=lora,head_lora", wrong).partition(":")[0].endswith(choice)


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPERIMENTS]
)
def test_how_far_a_sweep_is_can_be_asked_without_its_images(experiment: str) -> None:
    assert requests_of(CONF, [f"experiment={experiment}"], check=True)[1]


def test_how_far_a_sweep_over_own_images_is_can_be_asked_without_them() -> None:
    for source in ("auto", "folder"):
        jobs = requests_of(CONF, ["dataset=own/folder", f"data={source}", "method=lora,head_lora"], check=True)[1]
        assert len(jobs) == 2
    with pytest.raises(ConfigError, match=r"protocol\.epochs must be"):
        requests_of(CONF, ["experiment=heart_fig4", "protocol.epochs=0"], check=True)

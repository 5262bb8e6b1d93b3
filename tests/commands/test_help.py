"""``--help`` is one screen whose examples and options are there; ``--help-all`` is everything."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from headwise.commands.command import _in_order
from made_cases import each
from made_networks import CONF, REPO, compose_config
from test_configs import overrides_of

LINES, COLUMNS = 40, 100
Help = Callable[..., str]


@pytest.fixture(scope="module")
def printed() -> Help:
    known: dict[tuple[str, ...], str] = {}

    def run(*words: str) -> str:
        if words not in known:
            command = [sys.executable, "train.py", *words]
            done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            known[words] = done.stdout
        return known[words]

    return run


def test_it_fits_one_screen(printed: Help) -> None:
    lines = printed("--help").splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


def test_its_examples_compose(printed: Help) -> None:
    examples = [line for line in printed("--help").splitlines() if line.startswith("python train.py")]
    assert len(examples) >= 4
    for example in examples:
        assert compose_config(*overrides_of(example)).method.label


def test_its_options_are_there(printed: Help) -> None:
    text = printed("--help").partition("Choose GROUP=OPTION")[2].partition("Set KEY=VALUE")[0]
    shown = 0
    for group, options in re.findall(r"^  (\w+) {2,}(.+)$", text, flags=re.MULTILINE):
        assert (CONF / group).is_dir()
        for option in re.sub(r"\(.*?\)", "", options).split(","):
            assert (CONF / group / f"{option.strip()}.yaml").is_file(), f"{group}={option}"
            shown += 1
    assert shown > 25


def test_its_pages_and_scripts_are_there(printed: Help) -> None:
    found = re.findall(r"(?:docs|scripts)/[\w.]+", printed("--help"))
    assert found and all((REPO / path).is_file() for path in found)


def test_all_of_it_names_every_option_and_value(printed: Help) -> None:
    text = printed("--help-all")
    assert "method/peft: c3a, delora" in text and "\n  eval_batch_size: " in text


def test_choices_are_shown_in_all_of_it(printed: Help) -> None:
    assert "\n  label: ssf" in printed("--help", "method=ssf")
    assert "\n  label: ssf" in printed("method=ssf", "--help-all")


def test_the_page_that_is_asked_for_is_printed(printed: Help) -> None:
    assert printed("--help", "hydra/help=short") == printed("--help")
    assert _in_order(["--help", "hydra/help=all"]).count("hydra/help=all") == 1
    assert _in_order(["method=ssf", "hydra/help=short", "--help-all"])[-1] == "hydra/help=short"


@each("words", [["--help-all"], ["--help", "--resolve"], ["--help-all", "--resolve"]])
def test_what_is_asked_of_hydra(words: list[str]) -> None:
    asked = _in_order(words)
    assert asked[-1] == "hydra/help=all" and "--help" in asked and "--help-all" not in asked

"""Choices as they are typed: any path works, what cannot be read is answered with a spelling that can."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from headwise.commands.overrides import explained, readable
from headwise.errors import ConfigError
from headwise.protocol.plan import plan_run, root_of
from made_cases import each
from made_networks import REPO, compose_config

TINY = ("backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "method=lora")
FAST = (*TINY, "trainer=cpu", "trainer.threads=1", "trainer.progress=false", "rank=r4")
NAMES = ("/home/j/\u00fc", "/a=b", "/a(b", "/a(b)", "/dog's", "/a b", "/[a]", "/a{b}", "/a'b\"c", "/a#b;c&d")
ODD = (*NAMES, "2024", "/x:y", "a\\b(", "~you/x")
"""Paths that a user may have; most of them Hydra's grammar does not read."""


def read(word: str) -> object:
    return OverridesParser.create().parse_override(word).value()


def train(*arguments: str, shell: str | None = None) -> subprocess.CompletedProcess[str]:
    """train.py in a process of its own; `shell`: as a line for a shell."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONWARNINGS", None)
    command = shlex.join([sys.executable, "train.py", *arguments]) + (f" {shell}" if shell else "")
    return subprocess.run(
        command, shell=True, cwd=REPO, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@each("path", ODD)
@each("key", ["root", "data.root", "backbone.weights", "+method.first.checkpoint"])
def test_any_path_is_read_as_it_is_typed(key: str, path: str) -> None:
    (word,) = readable([f"{key}={path}"])
    assert read(word) == path


def test_the_home_folder_is_meant_by_its_sign() -> None:
    for typed in ("root=~/runs", "root='~/runs'"):
        (word,) = readable([typed])
        assert read(word) == str(Path("~/runs").expanduser())
    assert root_of("~/runs") == Path("~/runs").expanduser()


def test_a_comma_parts_the_paths_of_a_sweep() -> None:
    _, word = readable(["-m", "backbone.weights=/\u00fc/a.npz,/b c/d.npz"])
    override = OverridesParser.create().parse_override(word)
    assert [choice.text for choice in override.sweep_iterator()] == ["/\u00fc/a.npz", "/b c/d.npz"]
    (word,) = readable(["root=/\u00fc/a,b"])
    assert read(word) == "/\u00fc/a,b"


@each(
    "word",
    [
        *("-m", "--config-dir", "method=lora", "root=/a/b", "root='/a/\u00fc'", "root=${oc.env:HOME}/x", "root="),
        *("root=null", "method.scale=0.1,1", "name=dog's", "root='unclosed", "backbone.weights=/a,/b"),
        "method.targets=[q,v]",
    ],
)
def test_what_is_read_already_or_may_mean_more_stays(word: str) -> None:
    assert readable([word]) == [word]


@each(
    "word, meant",
    [
        ("dataset.class_names=[dog's,cat]", ["dog's", "cat"]),
        ("dataset.class_names=[caf\u00e9, a=b ,x]", ["caf\u00e9", "a=b", "x"]),
        ("method.targets=[q,v", ["q", "v"]),
        ("dataset.class_names=[dog's,cat", ["dog's", "cat"]),
        ("backbone.overrides={a:b'}", {"a": "b'"}),
        ("name=dog's", "dog's"),
        ("name=a=b", "a=b"),
        ("name=f(x)", "f(x)"),
        ("name=a'b\"c", "a'b\"c"),
        ("variant=~x", "~x"),
    ],
)
def test_a_spelling_that_works_is_shown(word: str, meant: object) -> None:
    """15.12: the shown word, given to a shell, says what was meant."""
    with pytest.raises(HydraException):
        read(word)
    answer = explained(word)
    assert answer.startswith(word)
    assert "\n" not in answer
    (shown,) = shlex.split(answer.rpartition("type ")[2])
    assert read(shown) == meant


@each("word", ["foo", "=3", "r\u00f6ot=3", "a b=c"])
def test_what_is_no_choice_is_said(word: str) -> None:
    assert "KEY=VALUE" in explained(word) or "is no key" in explained(word)


@each("root", ["''", "' '", "null"])
def test_no_root_is_refused(root: str) -> None:
    """15.8: results never go to wherever the command was given."""
    with pytest.raises(ConfigError, match=r"root names the folder of all results, got (''|' '|None)"):
        plan_run(compose_config(*TINY, f"root={root}"))


ERRORS = {
    "grammar": ("dataset.class_names=[dog's,cat]", r"class_names=\[dog's,cat\] holds characters that need quotes"),
    "option": ("method=lorra", r"unknown method 'lorra' \(did you mean 'lora'\?\)"),
    "value": ("protocol.test_images=100000", "is not a subset"),
    "late": ("method.rank=99", r"rank must be in 1\.\.48"),
    "flag": ("--multirum", r"unknown flag '--multirum' \(did you mean '--multirun'\?\)"),
    "folder": ("--config-dir=/nowhere", "/nowhere"),
}


@pytest.mark.parametrize("wrong", ERRORS)
def test_an_error_is_one_line(wrong: str, tmp_path: Path) -> None:
    """15.12: once, without hydra's own words, and with a status."""
    word, answer = ERRORS[wrong]
    done = train(*FAST, f"root={tmp_path}", word)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(answer, line), line
    assert not re.search(r"HYDRA|hydra.cc|Traceback|Error executing|failed:", done.stderr + done.stdout)


def test_a_sweep_says_each_failure_once_and_the_summary(tmp_path: Path) -> None:
    done = train(*FAST, "-m", f"root={tmp_path}/\u00fc", "seed=1,2", "method.rank=99")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == ["failed", "failed", "error"]
    assert not re.search(r"hydra.cc|Traceback|Error executing|\[HYDRA\]", done.stderr)


def test_the_shown_spelling_runs(tmp_path: Path) -> None:
    done = train(*FAST, f"root={tmp_path}", "name=dog's", "seed=-1")
    shown = done.stderr.rpartition("type ")[2].strip()
    again = train(*FAST, f"root={tmp_path}", "seed=-1", shell=shown)
    assert again.stderr.startswith("error: seed")

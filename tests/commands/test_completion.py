"""Completion, asked as a shell asks: by the line and the place of the cursor in it."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headwise.commands import completion
from headwise.commands.completion import INSTALL, answered, candidates
from made_cases import each
from made_loaders import hydras_own
from made_networks import CONF, REPO

TRAIN = REPO / "train.py"


@pytest.fixture(autouse=True)
def files_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line would read all of them again, as each is answered by a process of its own."""
    monkeypatch.setattr(completion, "ConfigLoaderImpl", hydras_own)


def after(line: str) -> list[str]:
    return candidates(TRAIN, f"python train.py {line}")


def options(folder: str) -> set[str]:
    return {file.stem for file in (CONF / folder).glob("*.yaml")}


@each("group", ["method", "dataset", "backbone", "protocol", "experiment", "logger"])
def test_every_option_of_a_group(group: str) -> None:
    folders = {f"{group}={path.name}/" for path in (CONF / group).iterdir() if path.is_dir()}
    assert set(after(f"{group}=")) == {f"{group}={name}" for name in options(group)} | folders


@each(
    "line, found",
    [
        ("method=hs_lora method@method.first=pis", ["method@method.first=pissa"]),
        ("method=hs_lora method@method.heads=head_", ["method@method.heads=head_lora"]),
        ("method@", ["method@method.first=", "method@method.heads="]),
        ("method=lora method@", []),
        ("method=peft/ol", ["method=peft/olora"]),
        ("method@method.first=peft/oft", ["method@method.first=peft/oft"]),
        ("-m method=lora,hs/pissa_l", ["method=lora,hs/pissa_long"]),
        ("-m seed=0,1 dataset=fewshot/p", ["dataset=fewshot/pets"]),
        ("dataset=fewshot/pets seed=range(1,3) protocol.few", []),
        ("protocol.epo", ["protocol.epochs="]),
        ("method=hs_lora method.first.ra", ["method.first.rank="]),
        ("method=heart_lora method.bi", ["method.bits="]),
        ("see", ["seed="]),
        ("resu", ["resume="]),
        ("wait=", ["wait=false", "wait=true"]),
        ("method.gate=h", ["method.gate=heart"]),
        ("+consistency@method.f", ["+consistency@method.first.consistency="]),
        ("+consistency@method.first.consistency=pace_l", ["+consistency@method.first.consistency=pace_lazy"]),
        ("hydra/launcher=ba", ["hydra/launcher=basic"]),
        ("experiment=lossy data.lo", ["data.lossy="]),
        ("--help", ["--help", "--help-all"]),
        ("method=nonsense dataset=dt", ["dataset=dtd"]),
        ("root='half dataset=dt", ["dataset=dtd"]),
        ("nothing", []),
        ("nothing.at.all=", []),
    ],
)
def test_what_may_follow(line: str, found: list[str]) -> None:
    assert after(line) == found


def test_nodes_and_groups_of_a_name_are_told_apart() -> None:
    assert after("metho") == ["method.", "method=", "method@method.first=", "method@method.heads="]
    assert not any(name.startswith("hydra") for name in after(""))


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "impure.npz").touch()
    for key in ("data.root", "backbone.weights", "from", "+method.checkpoint"):
        assert after(f"{key}={tmp_path}/im") == [f"{key}={tmp_path}/images/", f"{key}={tmp_path}/impure.npz"]
    assert after("root=sr") == ["root=src/"]


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "krona.yaml").write_text("label: krona\n")
    for where in (f"--config-dir {tmp_path}", f"hydra.searchpath=[file://{tmp_path}]"):
        assert after(f"{where} method=kro") == ["method=krona"]


def test_other_programs_are_left_alone() -> None:
    assert candidates(TRAIN, "python scripts/list_methods.py method=") == []


@each("words", [["method=lora"], ["-sc"], ["-sc", "query=tcsh"], ["-sc", "query"], ["-sc", "query=bash", "x=1"]])
def test_what_is_no_question_is_left_to_others(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert not answered(["train.py", *words])
    assert capsys.readouterr().out == ""


def test_words_behind_the_cursor_do_not_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "python train.py method=pis dataset=svhn"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(line.index(" dataset")))
    assert answered([str(TRAIN), "-sc", "query=bash"])
    assert capsys.readouterr().out == "method=pissa\n"


def test_a_shell_does_not_wait() -> None:
    """Neither torch nor pydantic is loaded, and the answer takes less than a second of a processor."""
    environment = {**os.environ, "COMP_LINE": "python train.py method@method.first=", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "importtime", "train.py", "-sc", "query=bash"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "method@method.first=lora\n" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert loaded & {"torch", "pydantic", "numpy", "peft", "headwise.runs.experiment"} == set()
    assert after.ru_utime - before.ru_utime < 1


BREAKS = " \t\n\"'@><=;|&(:"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@each(
    "words, typed, found",
    [
        (["method", "@", "method.first", "=", "pis"], "method@method.first=pis", ["pissa"]),
        (["method", "@", "method.fi"], "method@method.fi", ["method.first="]),
        (["protocol.epo"], "protocol.epo", ["protocol.epochs="]),
        (["method", "=", "peft/ol"], "method=peft/ol", ["peft/olora"]),
    ],
)
def test_bash_puts_in_what_is_missing(words: list[str], typed: str, found: list[str]) -> None:
    """Bash has parted the line at its separators, and replaces the last of the parts."""
    line = f"python train.py {typed}"
    python = shlex.quote(sys.executable)
    script = f"""{INSTALL["bash"]}
COMP_WORDBREAKS={shlex.quote(BREAKS)} COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
COMP_WORDS=({python} train.py {shlex.join(words)}); COMP_CWORD={len(words) + 1}
_headwise; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == found


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@each("name", ["train.py", "./train.py", "sub/train.py"])
def test_another_projects_train_is_not_run(name: str, tmp_path: Path) -> None:
    """A word is typed behind a train.py that is not this project's, and TAB is pressed."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("import pathlib\npathlib.Path('ran').touch()\nprint('method=pissa')\n")
    line = f"python {name} method=pis"
    script = f"""{INSTALL["bash"]}
COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
COMP_WORDS=({shlex.quote(sys.executable)} {name} method = pis); COMP_CWORD=4
_headwise; echo "${{#COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert not (tmp_path / "ran").exists()


@each("shell", ["zsh", "fish"])
def test_every_shell_looks_into_the_file_before_it_is_run(shell: str) -> None:
    script = INSTALL[shell]
    assert 0 < script.index("headwise\\.commands") < script.index(f"-sc query={shell}")


@each("shell", ["bash", "zsh", "fish"])
@each("work", ["install", "uninstall"])
def test_a_shell_reads_what_is_installed(shell: str, work: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered([str(TRAIN), "-sc", f"{work}={shell}"])
    script = capsys.readouterr().out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)

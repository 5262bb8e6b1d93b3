"""Scripts replace their own files only; `--force` replaces any."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headwise.commands.written import writing
from headwise.errors import ConfigError
from made_cases import each
from made_networks import REPO
from made_scripts import SCRIPTS, loaded, started

RECORDS = str(REPO / "docs" / "results" / "records")
MINE = "somebody's own\n"
ASKED = {
    "compare": ["lora", "--json", "FILE"],
    "compare_twins": ["--out", "FILE"],
    "evaluate": ["RUN", "--json", "FILE"],
    "export_merged": ["RUN", "--out", "FILE"],
    "import_bilora": ["READ", "FILE"],
    "import_cara": ["READ", "FILE"],
    "list_methods": ["lora", "--backbone", "vit_tiny_random", "--json", "FILE"],
    "list_methods of runs": ["--runs", "methods", "--root", RECORDS, "--out", "FILE"],
    "make_report": ["--out", "FILE"],
    "make_tables": ["--out", "FILE"],
    "prepare_vtab": ["--status", "--json", "FILE"],
    "pretrain_nano": ["--out", "FILE"],
    "show_task": ["svhn", "--data", "synthetic", "--out", "FILE"],
    "sweep_status": ["method=lora", "--json", "FILE"],
}
"""How each script is asked to write a file."""
NOT_ASKED = {
    "analyse": "a folder; tests/analysis/test_kinds.py shows that nothing of somebody else in it is replaced",
    "keep_records": "a store of results, which refuses to replace a record of another configuration",
}


def test_every_script_is_known():
    assert {file.stem for file in SCRIPTS.glob("*.py")} == {name.split()[0] for name in (*ASKED, *NOT_ASKED)}


@each("name", ASKED)
@each("kind", ["own", "folder", "link"])
def test_a_file_of_somebody_else_stays(name, kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    file, own = tmp_path / "out.md", tmp_path / "own.txt"
    file = file.with_suffix({"show_task": ".png", "export_merged": ".safetensors"}.get(name, ".md"))
    own.write_text(MINE)
    if kind == "own":
        file.write_text(MINE)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(own)
    (run, *_) = Path(RECORDS).glob("methods/lora/**/result.json")
    words = {"FILE": str(file), "RUN": str(run.parent), "READ": str(run)}
    status = started(loaded(name.split()[0]), [words.get(word, word) for word in ASKED[name]])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status in (1, 2)
    (line,) = errors
    assert str(file) in line
    assert ("--force replaces it" in line) == (kind != "folder")
    assert own.read_text() == MINE
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "own.txt", file.name}


def test_what_was_written_may_be_written_again(tmp_path):
    file = tmp_path / "table.md"
    for text in ("one", "two"):
        with writing(file, None, force=False):
            file.write_text(text)
    file.write_text("edited by hand")
    with pytest.raises(ConfigError, match=r"table\.md was not written by this tool, or changed since; --force"):
        writing(file, force=False).__enter__()
    with writing(file, force=True):
        file.write_text("three")
    with writing(file, force=False):
        pass


def test_a_failure_inside_notes_what_was_written(tmp_path):
    file = tmp_path / "table.md"
    with pytest.raises(KeyboardInterrupt), writing(file, force=False):
        file.write_text("whole, but the command was stopped")
        raise KeyboardInterrupt
    with writing(file, force=False):
        pass


def test_one_file_is_not_written_twice(tmp_path):
    with pytest.raises(ConfigError, match="written twice"), writing(tmp_path / "x", tmp_path / "x", force=True):
        pass


def test_the_tensors_of_a_run_are_not_exported_over(tmp_path, capsys):
    (record, *_) = Path(RECORDS).glob("methods/lora/**/result.json")
    shutil.copy(record, tmp_path)
    (tmp_path / "phase-1.safetensors").write_text("{}")
    for name, said in (("result.json", "must end in"), ("phase-1.safetensors", "belongs to a finished run")):
        before = (tmp_path / name).read_bytes()
        assert started(loaded("export_merged"), [str(tmp_path), "--out", str(tmp_path / name), "--force"])
        assert f"{tmp_path / name} {said}" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before


@each("record", ["result.json", "phase.json"])
@each("name", ["", "config.yaml", "metrics.csv", "curve.png", "phase-2.safetensors", "last.ckpt", "claim-1"])
def test_nothing_of_a_finished_run_is_replaced_whatever_force_says(record, name, tmp_path):
    (tmp_path / record).write_text("{}")
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    for folder in (tmp_path, link):
        file = folder / (name or record)
        with pytest.raises(ConfigError, match="belongs to a finished run or phase, which nothing replaces"):
            writing(file, force=True).__enter__()
    with writing(tmp_path / "table.md", force=True):
        pass

"""The ledger: done, running, failed or missing, from results, claims and notes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headwise.results.store import ResultStore
from headwise.runs.ledger import Entry, Ledger, finished_requests, folder_of
from headwise.storage.claims import Claim
from made_results import KEY, result

ASKED = "0123456789abcdef"
PATH = KEY.path("").as_posix()


def state(root):
    return Ledger(root).states([ASKED])[ASKED]


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def test_nothing_is_missing(tmp_path):
    assert state(tmp_path).name == "missing"
    assert state(tmp_path).entry is None


def test_a_run_from_its_beginning_to_its_end(tmp_path, ledger):
    ledger.write(ASKED, Entry(overrides=("method=lora",), path=PATH))
    assert state(tmp_path).name == "missing"
    with Claim(KEY.path(tmp_path)):
        found = state(tmp_path)
        assert found.name == "running"
        assert found.holder["pid"]
        assert found.holder["since"] > 0
    assert state(tmp_path).name == "missing", "released: it was stopped and can go on"
    ResultStore(tmp_path).put(KEY, result(request=ASKED))
    found = state(tmp_path)
    assert found.name == "done"
    assert found.finished.key == KEY
    assert finished_requests(tmp_path) == {ASKED: found.finished}


def test_a_failure_is_remembered_until_the_next_attempt(tmp_path, ledger):
    ledger.write(ASKED, Entry(overrides=("method=lora",), path=PATH, failure="no room"))
    assert (state(tmp_path).name, state(tmp_path).why) == ("failed", "no room")
    with Claim(KEY.path(tmp_path)):
        assert state(tmp_path).name == "running"


def test_a_worker_that_died_is_a_failed_run(tmp_path, ledger):
    ledger.write(ASKED, Entry(overrides=("method=lora",), path=PATH))
    lines = ["import os, sys", "from pathlib import Path", "from headwise.storage.claims import Claim"]
    code = "\n".join([*lines, "Claim(Path(sys.argv[1])).__enter__()", "os._exit(9)"])
    subprocess.run([sys.executable, "-c", code, str(KEY.path(tmp_path))], check=False)
    found = state(tmp_path)
    assert found.name == "failed"
    assert found.why.startswith("its worker died (process ")


def test_a_damaged_note_counts_as_none(tmp_path, ledger):
    for text in ("", "{", "[]", '{"overrides": 3}', '{"overrides": [], "more": 1}'):
        ledger.path(ASKED).parent.mkdir(exist_ok=True)
        ledger.path(ASKED).write_text(text)
        assert ledger.read(ASKED) is None
        assert state(tmp_path).name == "missing"


def test_the_notes_are_no_runs(tmp_path, ledger):
    ledger.write(ASKED, Entry(overrides=("a=1", "b=2"), path=PATH))
    assert ledger.read(ASKED) == Entry(overrides=("a=1", "b=2"), path=PATH)
    assert list(ledger.entries()) == [ASKED]
    assert ResultStore(tmp_path).finished() == {}
    assert folder_of(tmp_path, KEY) == PATH

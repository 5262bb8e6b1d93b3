"""A page that is renewed while runs go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headwise.report.page import Watch, report
from headwise.report.watching import watch
from headwise.results.store import ResultStore
from made_cases import each
from made_results import run
from made_scripts import loaded, started

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_report.py"


def test_it_is_renewed_when_something_changed_and_when_it_was_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    states, ready, made, slept = iter("aaabbc"), iter([False, True, True, True]), [], []
    now = [""]

    def state() -> str:
        now[0] = next(states)
        return now[0]

    def renew() -> bool:
        made.append(now[0])
        return next(ready)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    handler = signal.getsignal(signal.SIGTERM)
    watch(renew, state, 30)
    assert made == ["a", "a", "b", "c"] and set(slept) == {30}
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_watched_page_says_when_it_was_made_and_reads_itself_again() -> None:
    page = report([run()], watch=Watch(30, "2030-01-02 03:04:05 UTC"))
    assert '<meta http-equiv="refresh" content="30">' in page
    assert "Made 2030-01-02 03:04:05 UTC; read again every 30 s while runs go on." in page
    assert '<meta http-equiv="refresh"' not in report([run()]) and "Made " not in report([run()])


def wait(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


@each("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_waits_renews_and_ends_when_told(number: signal.Signals, tmp_path: Path) -> None:
    root, out = tmp_path / "outputs", tmp_path / "page.html"
    command = [sys.executable, str(SCRIPT), "--root", str(root), "--out", str(out), "--watch", "1"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("waiting: no finished run under")
    store = ResultStore(root)
    for place, name in enumerate(("first_method", "second_method"), start=1):
        made = run(name)
        store.put(made.key, made)
        assert process.stdout.readline() == f"written: {out} ({place} runs)\n"
        page = out.read_text()
        assert page.endswith("</html>") and f"{name}</th>" in page
        assert re.search(r'http-equiv="refresh" content="1">', page)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert said == f"written: {out} (2 runs)\n"
    assert '<meta http-equiv="refresh"' not in out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "page.html"]


@each("seconds", ["0", "-1", "x", "1.5"])
def test_seconds_are_a_whole_number(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert started(loaded("make_report"), [f"--watch={seconds}"]) == 2
    assert capsys.readouterr().err.startswith("error: --watch must be a whole number in 1..86400, got ")

"""Workers end with their sweep."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from headwise.runs import lifeline
from headwise.storage import claims

SWEEP = """
import subprocess, sys, time
from headwise.runs import lifeline
with lifeline.thrown():
    worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(worker.pid, worker.stdout.readline(), flush=True)
time.sleep(60)
"""
WORKER = """
import time
from headwise.runs import lifeline
print(lifeline.hold(), lifeline.hold(), flush=True)
time.sleep(60)
"""


def test_a_worker_ends_when_its_sweep_is_killed():
    sweep = subprocess.Popen([sys.executable, "-c", SWEEP, WORKER], stdout=subprocess.PIPE, text=True)
    worker, *held = sweep.stdout.readline().split()
    assert held == ["True", "True"]
    assert claims.alive(int(worker))
    sweep.kill()
    sweep.communicate()
    until = time.monotonic() + 20
    while claims.alive(int(worker)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not claims.alive(int(worker))


def test_only_workers_hold_on(monkeypatch):
    monkeypatch.delenv(lifeline.VARIABLE, raising=False)
    assert not lifeline.hold()
    with lifeline.thrown():
        assert lifeline.VARIABLE in os.environ
        assert not lifeline.hold(), "a sweep does not wait for its own end"
        with lifeline.thrown():
            pass
        assert lifeline.VARIABLE in os.environ
    assert lifeline.VARIABLE not in os.environ
    for value in ("", "{", "3", '{"pid": 1}', '{"pid": 1, "started": "0", "host": "elsewhere", "space": ""}'):
        monkeypatch.setenv(lifeline.VARIABLE, value)
        assert not lifeline.hold()

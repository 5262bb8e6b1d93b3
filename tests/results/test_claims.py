"""Claims: one worker at a time, whatever happens to the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from headwise.errors import ConfigError
from headwise.storage.claims import BusyError, Claim, alive, describe, standing
from made_cases import each
from made_threads import in_another_thread

FAST = {"heartbeat": 0.1, "expiry": 1.0}

HOLDER = """
import sys, time
from pathlib import Path
from headwise.storage.claims import Claim
with Claim(Path(sys.argv[1]), heartbeat=0.1, expiry=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""

WORKER = """
import sys, time
from pathlib import Path
from headwise.storage.claims import Claim
folder = Path(sys.argv[1])
print("ready", flush=True)
with Claim(folder, heartbeat=0.1, expiry=1.0, done=lambda: (folder / "done").exists()) as claim:
    if claim.held:
        (folder / "work").mkdir()      # fails if another worker is inside
        time.sleep(0.3)
        with (folder / "log").open("a") as log:
            log.write("worked\\n")
        (folder / "work").rmdir()
        (folder / "done").touch()
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def end(process: subprocess.Popen) -> str:
    process.kill()
    return process.communicate()[1]


def claim_file(folder: Path, **content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "claim-1"
    path.write_text(json.dumps({"host": "elsewhere", "space": "x", "pid": 1, "expiry": 1.0, **content}))
    return path


@each("error", [None, RuntimeError, KeyboardInterrupt])
def test_released_on_every_exit(tmp_path, error):
    def work():
        with Claim(tmp_path, **FAST) as claim:
            assert claim.held
            with pytest.raises(BusyError, match=f"claimed by process {os.getpid()} on "):
                in_another_thread(lambda: Claim(tmp_path, wait=False, **FAST).__enter__())
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    with Claim(tmp_path, wait=False, **FAST) as claim:
        assert claim.held
    assert not claim.held


def test_claims_do_not_nest(tmp_path):
    with Claim(tmp_path, **FAST), pytest.raises(ConfigError, match="already claimed by this thread"):
        Claim(tmp_path, **FAST).__enter__()


def test_expiry_must_exceed_two_heartbeats(tmp_path):
    with pytest.raises(ConfigError, match="expiry=10 and heartbeat=5"):
        Claim(tmp_path, heartbeat=5, expiry=10)


def test_heartbeat_keeps_a_claim_longer_than_its_expiry(tmp_path):
    with Claim(tmp_path, heartbeat=0.05, expiry=0.3) as claim:
        time.sleep(0.8)
        with pytest.raises(BusyError):
            in_another_thread(lambda: Claim(tmp_path, wait=False, heartbeat=0.05, expiry=0.3).__enter__())
        assert not claim.lost


def test_killed_holder_is_succeeded_at_once(tmp_path):
    process = start(HOLDER, tmp_path, 3600)
    try:
        with pytest.raises(BusyError):
            Claim(tmp_path, wait=False, heartbeat=0.1, expiry=3600).__enter__()
        process.send_signal(signal.SIGKILL)  # not waited for: it stays a zombie, which is dead enough
        began = time.monotonic()
        with Claim(tmp_path, heartbeat=0.1, expiry=3600) as claim:
            assert claim.held
        assert time.monotonic() - began < 5
    finally:
        end(process)


def test_stopped_holder_expires_and_notices_its_loss(tmp_path):
    process = start(HOLDER, tmp_path, 0.5)
    try:
        process.send_signal(signal.SIGSTOP)
        seen = []
        with Claim(tmp_path, heartbeat=0.1, expiry=0.5, on_wait=seen.append) as claim:
            assert claim.held
            assert seen[0]["pid"] == process.pid
            assert seen[-1]["waited"] > seen[0]["waited"]
            process.send_signal(signal.SIGCONT)
            time.sleep(0.3)
            assert not claim.lost
    finally:
        end(process)


def test_a_claim_taken_over_knows_it_is_lost(tmp_path):
    with Claim(tmp_path, **FAST) as claim:
        (tmp_path / "claim-2").write_text("{}")
        time.sleep(0.4)
        assert claim.lost
    (tmp_path / "claim-2").unlink()


def test_reused_pid_is_not_taken_for_the_holder():
    assert alive(os.getpid())
    assert not alive(os.getpid(), started="long ago")
    assert not alive(0)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not alive(child.pid)


@each("content", ["", "{", "[]", "null"])
def test_unreadable_claim_is_held_until_it_expires(tmp_path, content):
    path = tmp_path / "claim-1"
    path.write_text(content)
    with pytest.raises(BusyError, match=r"process \(unknown\)"):
        Claim(tmp_path, wait=False, **FAST).__enter__()
    os.utime(path, (1, 1))
    with Claim(tmp_path, wait=False, **FAST) as claim:
        assert claim.held


def test_claim_of_another_machine_is_judged_by_its_age_and_its_own_expiry(tmp_path):
    path = claim_file(tmp_path, expiry=1000.0)
    os.utime(path, (time.time() - 500, time.time() - 500))
    with pytest.raises(BusyError, match="process 1 on elsewhere"):
        Claim(tmp_path, wait=False, **FAST).__enter__()
    os.utime(path, (time.time() - 1500, time.time() - 1500))
    with Claim(tmp_path, wait=False, **FAST) as claim:
        assert claim.held


def test_waiting_ends_when_the_work_is_done(tmp_path):
    claim_file(tmp_path, expiry=1000.0)
    answers = iter([False, False, True])
    with Claim(tmp_path, **FAST, done=lambda: next(answers)) as claim:
        assert not claim.held


def test_on_wait_can_give_up(tmp_path):
    def give_up(holder):
        raise TimeoutError

    claim_file(tmp_path, expiry=1000.0)
    with pytest.raises(TimeoutError):
        Claim(tmp_path, **FAST, on_wait=give_up).__enter__()


def test_many_waiters_race_for_one_stale_claim(tmp_path):
    """Threads have no start-up to hide a race behind: all see the stale claim, one at a time works."""
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        os.utime(claim_file(folder), (1, 1))
        gate, inside, most, held = threading.Barrier(8), [], [], []

        def wait(folder=folder, gate=gate, inside=inside, most=most, held=held):
            gate.wait()
            with Claim(folder, **FAST, done=(folder / "done").exists) as claim:
                if claim.held:
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.02)
                    held.append(1)
                    if len(held) == 3:
                        (folder / "done").touch()
                    inside.pop()

        threads = [threading.Thread(target=wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(most) == {1}
        assert len(held) == 3
        assert [path.name for path in folder.iterdir()] == ["done"]


def test_processes_race_for_one_stale_claim(tmp_path):
    os.utime(claim_file(tmp_path), (1, 1))
    workers = [start(WORKER, tmp_path) for _ in range(3)]
    for worker in workers:
        _, errors = worker.communicate(timeout=30)
        assert worker.returncode == 0, errors
    assert (tmp_path / "log").read_text() == "worked\n"
    assert not list(tmp_path.glob("claim-*"))


def test_a_slow_waiter_cannot_push_out_the_successor(tmp_path, monkeypatch):
    """Between its judgement and its attempt another worker takes over, fails and releases; then a third holds."""
    os.utime(claim_file(tmp_path), (1, 1))
    slow = Claim(tmp_path, wait=False, **FAST)
    judge = Claim._over
    third: list[Claim] = []

    def judge_slowly(self, holder):
        verdict = judge(self, holder)
        if self is slow and not third:
            with Claim(tmp_path, wait=False, **FAST) as second:
                assert second.held
            third.append(Claim(tmp_path, wait=False, **FAST))
            assert third[0].__enter__().held
        return verdict

    monkeypatch.setattr(Claim, "_over", judge_slowly)
    with pytest.raises(BusyError):
        slow.__enter__()
    third[0].__exit__(None, None, None)


def test_standing_tells_how_it_is_without_touching_anything(tmp_path):
    folder = tmp_path / "run"
    assert standing(folder) == ("free", {})
    with Claim(folder, **FAST):
        state, holder = standing(folder)
        assert (state, holder["pid"]) == ("held", os.getpid())
        assert abs(holder["since"] - time.time()) < 60
    assert standing(folder)[0] == "released"
    process = start(HOLDER, folder, 3600)
    assert standing(folder)[0] == "held"
    end(process)
    assert standing(folder)[0] == "dead"
    assert {path.name for path in folder.iterdir()} == {"claim-1", "claim-2"}


def test_standing_of_another_machine_is_judged_by_age(tmp_path):
    path = claim_file(tmp_path, expiry=1000.0)
    assert standing(tmp_path)[0] == "held"
    os.utime(path, (time.time() - 2000, time.time() - 2000))
    assert standing(tmp_path)[0] == "dead"


STRANGE = [
    '{"expiry": "abc"}',
    '{"expiry": 1e300}',
    '{"expiry": -5}',
    '{"expiry": [1]}',
    '{"pid": "x", "since": "yesterday"}',
    '{"pid": 99999999999999999999}',
    '{"pid": 4.5, "host": 3}',
    '{"pid": -1, "started": 5}',
    '{"pid": true, "host": "gone.example", "space": ["x"]}',
    '{"since": 1e308, "host": "gone.example"}',
    '{"host": null}',
    "[]",
    "3",
    "",
    "{",
    "\udcff\udcfe",
    "[" * 100_000,
    '{"expiry": ' + "9" * 5000 + "}",
]
"""What a file ``claim-1`` may hold that nobody of us wrote."""


@each("said", STRANGE)
def test_a_claim_that_says_nonsense_is_waited_for_and_then_taken_over(tmp_path, said):
    path = tmp_path / "claim-1"
    path.write_bytes(said.encode("utf-8", "surrogateescape"))
    assert standing(tmp_path)[0] == "held"
    with pytest.raises(BusyError, match=r"is claimed by process .* on "):
        Claim(tmp_path, wait=False, **FAST).__enter__()
    old = time.time() - 3700
    os.utime(path, (old, old))
    assert standing(tmp_path)[0] == "dead"
    with Claim(tmp_path, wait=False, **FAST) as claim:
        assert claim.path is not None
        assert claim.path.name == "claim-2"


@each("ahead", [4000, 10**6, 10**9])
def test_a_claim_of_the_future_is_none(tmp_path, ahead):
    path = claim_file(tmp_path, expiry=120.0)
    os.utime(path, (time.time() + ahead,) * 2)
    assert standing(tmp_path)[0] == "dead"
    with Claim(tmp_path, wait=False, **FAST) as claim:
        assert claim.held


def test_a_claim_that_is_a_little_ahead_is_explained(tmp_path):
    os.utime(claim_file(tmp_path, expiry=1000.0), (time.time() + 500,) * 2)
    with pytest.raises(BusyError, match=r"its claim is dated (499|500) s ahead; it ends 1000 s after that"):
        Claim(tmp_path, wait=False, **FAST).__enter__()


def test_a_host_that_is_gone_is_explained_and_waited_for_an_hour_at_most(tmp_path):
    path = claim_file(tmp_path, expiry=1e9)
    os.utime(path, (time.time() - 600,) * 2)
    with pytest.raises(BusyError, match=r"no sign of life for 60\d s; it is taken for dead after 3600 s"):
        Claim(tmp_path, wait=False, **FAST).__enter__()
    told = []

    def stop(holder):
        told.append(describe(holder))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Claim(tmp_path, on_wait=stop, **FAST).__enter__()
    assert "it is taken for dead after 3600 s" in told[0]
    os.utime(path, (time.time() - 3700,) * 2)
    with Claim(tmp_path, wait=False, **FAST) as claim:
        assert claim.held


@each("kind", ["folder", "pipe", "link"])
def test_what_is_no_claim_holds_nothing_and_stays(tmp_path, kind):
    path = tmp_path / "claim-3"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("nowhere")}[kind]()
    assert standing(tmp_path)[0] in ("released", "free")
    done = []
    with Claim(tmp_path, wait=False, done=lambda: bool(done), **FAST) as claim:
        assert claim.path is not None
        assert claim.path.name == "claim-4"
        done.append(True)
    assert not (tmp_path / "claim-4").exists()
    if kind == "folder":
        assert path.is_dir()


def test_numbers_without_end_are_no_claims(tmp_path):
    (tmp_path / f"claim-{'9' * 200}").touch()
    (tmp_path / "claim-\u0663").touch()
    with Claim(tmp_path, wait=False, **FAST) as claim:
        assert claim.path is not None
        assert claim.path.name == "claim-1"
    last = tmp_path / f"claim-{'9' * 9}"
    last.touch()
    os.utime(last, (0, 0))
    with pytest.raises(ConfigError, match="delete it"):
        Claim(tmp_path, wait=False, **FAST).__enter__()

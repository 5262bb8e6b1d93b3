"""The status of a sweep, beside any number of workers and for thousands of runs."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headwise.protocol.request import request_of
from headwise.results.records import RunKey
from headwise.results.store import ResultStore
from headwise.runs.ledger import Entry, Ledger
from headwise.runs.status import span, survey, text
from headwise.storage.claims import Claim
from made_networks import CONF, REPO
from made_results import phase, result
from made_scripts import loaded

JOBS = [["experiment=e", f"method={method}", f"seed={seed}"] for method in ("lora", "cara") for seed in range(4)]
FAMILIES = [("lora", "svhn"), ("lora", "dtd"), ("pissa", "svhn"), ("pissa", "dtd")]
FOLDERS: list[str] = []
ASKED = {request_of(job, FOLDERS): job for job in JOBS}


def note(root, job, *more, path=True, **fields) -> RunKey:
    """What a run leaves when it begins; `more` overrides than the job's change its request."""
    chosen = dict(word.split("=") for word in job)
    key = RunKey("runs", chosen["method"], "svhn", "base", int(chosen["seed"]))
    place = key.path("").as_posix() if path else None
    Ledger(root).write(request_of([*job, *more], FOLDERS), Entry(overrides=(*job, *more), path=place, **fields))
    return key


def finish(root, job, *more, seconds=100.0, accuracy=50.0, **fields):
    key = note(root, job, *more)
    phases = fields.pop("phases", [phase(accuracy=accuracy, seconds=seconds)])
    made = result(key, phases=phases, request=request_of([*job, *more], FOLDERS), **fields)
    ResultStore(root).put(key, made)
    return key.path(root)


def test_every_state(tmp_path):
    finish(tmp_path, JOBS[0], seconds=100.0, accuracy=12.5)
    finish(tmp_path, JOBS[1], seconds=300.0)
    note(tmp_path, JOBS[2], failure="no room")
    note(tmp_path, JOBS[4], failure="bad", path=False)
    with Claim(note(tmp_path, JOBS[3]).path(tmp_path)):
        status = survey(tmp_path, ASKED, FOLDERS)
    assert [run.state for run in status.runs] == ["done"] * 2 + ["failed", "running", "failed"] + ["missing"] * 3
    assert status.counts == {"done": 2, "running": 1, "failed": 2, "missing": 3}
    assert (status.runs[0].accuracy, status.runs[0].asked) == (12.5, "method=lora seed=0")
    assert status.runs[3].pid == os.getpid()
    assert status.spent == 400.0
    assert status.left == pytest.approx(6 * 200.0, abs=60.0)
    said = text(status, "e")
    assert said.startswith("e: 2 of 8 runs done, 1 running, 2 failed, 3 missing\n")
    assert f"method=lora seed=3 by process {os.getpid()} on " in said
    assert "method=lora seed=2: no room" in said
    assert "left about 20 min with 1 worker(s), 20 min of computing" in said
    assert json.loads(json.dumps(status.to_json()))["counts"] == status.counts


@pytest.mark.parametrize(
    ("peak", "gib", "said"),
    [
        (
            2 * 2**30,
            24.0,
            "24 GiB in training; 7 runs at once, if tests take no more, with hydra.launcher.ray.remote.num_gpus=0.142",
        ),
        (20 * 2**30, 24.0, "at most 20.0 of 24 GiB in training"),
        (2**20, 140.0, "at most 0.0 of 140 GiB in training; 16 runs at once"),
    ],
)
def test_how_many_runs_a_gpu_has_memory_for(tmp_path, peak, gib, said):
    phases = [phase(peak_memory=peak // 2), phase(peak_memory=peak)]
    finish(tmp_path, JOBS[0], phases=phases, machine={"accelerator": "a GPU", "accelerator_gib": gib})
    finish(tmp_path, JOBS[1], phases=[phase(peak_memory=2**40)], machine={"accelerator": "cpu"})
    status = survey(tmp_path, ASKED, FOLDERS)
    line = next(line for line in text(status, "e").splitlines() if line.startswith("GPU memory: "))
    assert said in line and (" runs at once" in line) == (" runs at once" in said)
    assert status.to_json()["gpu"]["peak_memory"] == peak


@pytest.mark.parametrize("gib", [None, "24", True, 0, -1])
def test_without_a_gpu_or_its_size_nothing_is_said_of_memory(tmp_path, gib):
    finish(tmp_path, JOBS[0], phases=[phase(peak_memory=2**30)], machine={"accelerator_gib": gib})
    status = survey(tmp_path, ASKED, FOLDERS)
    assert status.shares is None and "GPU memory" not in text(status, "e")


def test_nothing_yet_and_everything(tmp_path):
    status = survey(tmp_path, ASKED, FOLDERS)
    assert status.counts["missing"] == 8
    assert "left unknown until one run is finished" in text(status, "e")
    for job in JOBS:
        finish(tmp_path, job)
    status = survey(tmp_path, ASKED, FOLDERS)
    assert status.counts["done"] == 8
    assert "left" not in text(status, "e")
    assert status.elapsed == pytest.approx(100.0, abs=30.0)


def test_overrides_that_are_no_choices_may_be_left_out(tmp_path):
    finish(tmp_path, JOBS[0], "data.root=/images")
    note(tmp_path, JOBS[1], "data.root=/images", failure="no room")
    finish(tmp_path, [*JOBS[2][:2], "seed=9"], "data.root=/images")
    counts = survey(tmp_path, ASKED, FOLDERS).counts
    assert counts == {"done": 1, "running": 0, "failed": 1, "missing": 6}


def test_runs_of_another_configuration_do_not_count(tmp_path):
    key = note(tmp_path, JOBS[0])
    stale = "f" * 16
    Ledger(tmp_path).path(next(iter(ASKED))).replace(Ledger(tmp_path).path(stale))
    ResultStore(tmp_path).put(key, result(key, request=stale))
    assert survey(tmp_path, ASKED, FOLDERS).counts["missing"] == 8


def test_a_damaged_result_is_missing(tmp_path):
    finish(tmp_path, JOBS[0])
    finish(tmp_path, JOBS[1])
    file = tmp_path / "runs" / "lora" / "svhn" / "base" / "seed-0" / "result.json"
    file.write_text(file.read_text()[:100])
    status = survey(tmp_path, ASKED, FOLDERS)
    assert (status.counts["done"], status.counts["missing"]) == (1, 7)
    assert status.damaged == ["runs/lora/svhn/base/seed-0/result.json"]
    assert "1 damaged record(s) count as missing: runs/lora/svhn/base/seed-0/result.json" in text(status, "e")
    assert status.to_json()["damaged"] == status.damaged


def test_a_finished_run_that_trains_again_is_running(tmp_path):
    folder = finish(tmp_path, JOBS[0])
    finish(tmp_path, JOBS[1])
    with Claim(folder):
        assert survey(tmp_path, ASKED, FOLDERS).counts["running"] == 1
    assert survey(tmp_path, ASKED, FOLDERS).counts["done"] == 2


def test_what_runs_share_is_counted_once(tmp_path):
    first = phase(seconds=100.0, fingerprint="a" * 16)
    for job, day in ((JOBS[0], 2), (JOBS[1], 1)):
        phases = [first, phase(seconds=20.0, fingerprint=str(day) * 16)]
        finish(tmp_path, job, phases=phases, created=f"2026-01-0{day}T00:00:00+00:00")
    status = survey(tmp_path, ASKED, FOLDERS)
    assert [run.seconds for run in status.runs[:2]] == [20.0, 120.0], "by who came first"
    assert status.spent == 140.0
    assert status.left == 6 * 70.0


def test_a_run_takes_its_tests_and_trials_as_well(tmp_path):
    begun = 1_700_000_000
    for job, ended in ((JOBS[0], begun + 500), (JOBS[1], begun - 9)):
        folder = finish(tmp_path, job, created=datetime.fromtimestamp(ended, UTC).isoformat())
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", (begun, begun))
    done = survey(tmp_path, ASKED, FOLDERS).runs[:2]
    assert [run.seconds for run in done] == [500.0, 100.0], "a copy has another time: what its phases say"


def test_the_estimate_is_that_of_the_nearest_runs(tmp_path):
    first = "method@method.first"
    tasks = [[f"{first}={name}", f"dataset={task}", f"seed={seed}"] for name, task in FAMILIES for seed in (0, 1)]
    asked = {request_of(job, FOLDERS): job for job in tasks}
    for job, seconds in zip(tasks[::2], (10.0, 50.0, 300.0), strict=False):
        key = RunKey("runs", "hs", job[1][8:], job[0][len(first) + 1 :], 0)
        made = result(key, phases=[phase(seconds=seconds)], request=request_of(job, FOLDERS))
        ResultStore(tmp_path).put(key, made)
    status = survey(tmp_path, asked, FOLDERS)
    assert status.counts == {"done": 3, "running": 0, "failed": 0, "missing": 5}
    assert status.left == 10.0 + 50.0 + 300.0 + 2 * 300.0, "of the task, else of the method"


def test_times_for_a_person():
    assert [span(s) for s in (3, 89, 100, 5000, 5400, 11100)] == [
        "3 s",
        "89 s",
        "2 min",
        "83 min",
        "1 h 30 min",
        "3 h 05 min",
    ]


def status_command(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/sweep_status.py", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=300, **options)


def test_the_command(tmp_path):
    file = tmp_path / "status.json"
    done = status_command("nano_worth", "--root", str(tmp_path / "none"), "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nano_worth: 0 of 12 runs done, 0 running, 0 failed, 12 missing\n")
    assert json.loads(file.read_text())["counts"]["missing"] == 12
    assert not (tmp_path / "none").exists()
    wrong = status_command("nano_wort")
    assert wrong.returncode == 1
    assert "unknown experiment 'nano_wort' (did you mean 'nano_worth'?)" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_choices_may_stand_behind_an_option(tmp_path):
    options = loaded("sweep_status").parse(["nano_worth", "--root", str(tmp_path), "seed=0"])
    assert (options.sweep, options.root) == (["nano_worth", "seed=0"], tmp_path)
    assert loaded("sweep_status").parse(["--", "-strange", "seed=0"]).sweep == ["-strange", "seed=0"]


MEASURED = """
import re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(re.search("VmHWM:.*", open("/proc/self/status").read())[0], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_two_thousand_finished_runs(tmp_path):
    """In under 10 s and 500 MB, with records of their real size; prints what it took."""
    arguments = ["method=lora,cara", f"seed={','.join(map(str, range(1000)))}"]
    overrides = [["method=lora", f"seed={seed}"] for seed in range(1000)]
    overrides += [["method=cara", f"seed={seed}"] for seed in range(1000)]
    full = {"config": {f"key{i}": "value" * 4 for i in range(300)}}
    ledger, store = Ledger(tmp_path), ResultStore(tmp_path)
    for job in overrides:
        key = RunKey("runs", job[0].removeprefix("method="), "svhn", "base", int(job[1].removeprefix("seed=")))
        asked = request_of(job, [str(CONF)])
        ledger.write(asked, Entry(overrides=tuple(job), path=key.path("").as_posix()))
        path = store.root / key.path("") / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result(key, request=asked, **full).to_json()))
    for what in ("without an index", "with an index"):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, "-c", MEASURED, "scripts/sweep_status.py", *arguments, "--root", str(tmp_path)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=300)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        peak = int(done.stderr.split()[-2]) / 1024
        print(f"{what}: {seconds:.1f} s of computing, {wall:.1f} s in all, at most {peak:.0f} MB")
        assert done.stdout.startswith("runs: 2000 of 2000 runs done"), done.stderr
        assert seconds < 10  # of the processor: the wall clock says how busy the machine is
        assert peak < 500
    assert Path(tmp_path / "index.jsonl").is_file()

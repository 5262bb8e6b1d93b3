"""Sweeps: what is left of one, what its launcher is given, and what is said of those that failed."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from hydra.core.utils import JobStatus

from headwise.errors import ConfigError, SweepError
from headwise.protocol.plan import plan_run, still_holds
from headwise.results.records import Result, RunKey
from headwise.results.store import ResultStore
from headwise.runs import sweep
from headwise.runs.jobs import answered, requests_of
from headwise.runs.ledger import Entry, Ledger
from headwise.runs.sweep import Sweep
from headwise.storage import claims
from headwise.storage.claims import Claim
from made_networks import CONF, compose_config
from made_results import phase

TINY = ["backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu"]
CHOICES = ["method=lora,head_lora", "seed=0,1"]


class Made:
    """A sweep whose launcher does what a test says instead of training.

    Attributes:
        does: by the overrides of a job, what becomes of it: a number, or an exception, "busy" or "dies".
        launched: the jobs it was given, one list a launch.
    """

    def __init__(self, root, *arguments, **does):
        self.root, self.does, self.launched = root, does, []
        self.config, self.jobs, _ = requests_of(CONF, [*TINY, *CHOICES, f"root={root}", *arguments])
        self.ledger = Ledger(root)

    def key(self, job):
        chosen = dict(word.split("=", 1) for word in job)
        return RunKey("runs", chosen["method"], "dsprites_loc", "base", int(chosen["seed"]))

    def name(self, job):
        key = self.key(job)
        return f"{key.method}_{key.seed}"

    def request(self, name):
        return next(request for request, job in self.jobs.items() if self.name(job) == name)

    def finish(self, name, accuracy=50.0):
        job = self.jobs[self.request(name)]
        key = self.key(job)
        made = Result(key=key, identity={"n": name}, phases=[phase(accuracy=accuracy)], request=self.request(name))
        ResultStore(self.root).put(key, made)

    def launch(self, batch, first):
        self.launched.append([self.name(job) for job in batch])
        assert all(job[-1] == "wait=false" for job in batch)
        returns = []
        for job in batch:
            name, key = self.name(job), self.key(job)
            place = key.path(self.root)
            entry = Entry(overrides=tuple(job), path=place.relative_to(self.root).as_posix())
            self.ledger.write(self.request(name), entry)
            what = self.does.get(name, 50.0)
            if what == "dies":
                place.mkdir(parents=True)
                gone = {**claims.myself(), "pid": 2**22 + 1, "expiry": 120}
                (place / "claim-1").write_text(json.dumps(gone))
                raise RuntimeError("a worker was terminated")
            value = math.nan
            if isinstance(what, float):
                self.finish(name, what)
                value = what
            elif isinstance(what, Exception):
                why = Entry(overrides=tuple(job), path=entry.path, failure=str(what))
                self.ledger.write(self.request(name), why)
            elif what == "escapes":
                returns.append(Escaped())
                continue
            returns.append(SimpleNamespace(status=JobStatus.COMPLETED, return_value=value))
        return returns

    def run(self):
        batches = []
        made = Sweep(self.config, list(self.jobs.values()), self.launch, batches.append)
        numbers = made.run()
        assert [len(batch) for batch in batches] == [len(names) for names in self.launched[:1]]
        return numbers


class Escaped:
    status = JobStatus.FAILED

    @property
    def return_value(self):
        raise ValueError("could not be composed there")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sweep, "POLL", 0.05)
    monkeypatch.setattr(sweep, "still_holds", lambda result: True)


def test_every_job_once(tmp_path, capsys):
    made = Made(tmp_path, lora_1=75.0)
    assert made.run() == [50.0, 75.0, 50.0, 50.0]
    assert made.launched == [["lora_0", "lora_1", "head_lora_0", "head_lora_1"]]
    assert "4 runs: 0 finished, 4 to do" in capsys.readouterr().out


def test_finished_runs_are_not_composed(tmp_path, capsys):
    made = Made(tmp_path)
    made.finish("lora_0", 12.5)
    made.finish("head_lora_1", 25.0)
    assert made.run() == [12.5, 50.0, 50.0, 25.0]
    assert made.launched == [["lora_1", "head_lora_0"]]
    again = Made(tmp_path)
    assert again.run() == [12.5, 50.0, 50.0, 25.0]
    assert again.launched == []
    said = capsys.readouterr().out
    assert "4 runs: 2 finished, 2 to do" in said
    assert f"already finished: {tmp_path}/runs/lora/dsprites_loc/base/seed-0: 12.50 %" in said


def test_a_result_that_no_longer_holds_is_asked_for_again(tmp_path, monkeypatch):
    made = Made(tmp_path)
    made.finish("lora_0")
    monkeypatch.setattr(sweep, "still_holds", lambda result: False)
    made.run()
    assert "lora_0" in made.launched[0]


def test_force_launches_everything_and_never_refuses_what_is_there(tmp_path):
    made = Made(tmp_path, "resume=force", lora_0=60.0)
    made.finish("lora_0", 12.5)
    assert made.run()[0] == 60.0
    assert len(made.launched[0]) == 4
    made = Made(tmp_path, "resume=never")
    with pytest.raises(SweepError, match=r"4 of 4 runs failed.*(?s:.)*resume=never forbids that"):
        made.run()
    assert made.launched == []


def test_with_force_an_old_result_does_not_hide_a_failure(tmp_path):
    made = Made(tmp_path, "resume=force", lora_0=ValueError("no room"))
    made.finish("lora_0")
    with pytest.raises(SweepError, match="1 of 4 runs failed"):
        made.run()


def test_failures_are_summed_up(tmp_path):
    made = Made(tmp_path, lora_1=ValueError("rank must be in 1..48, got 0"), head_lora_0="escapes")
    note = made.key(made.jobs[made.request("lora_1")]).path(tmp_path) / "failure.txt"
    note.parent.mkdir(parents=True)
    note.write_text("Traceback ...")
    with pytest.raises(SweepError) as caught:
        made.run()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("2 of 4 runs failed.")
    assert lines[1] == f"  {note.parent}: rank must be in 1..48, got 0"
    assert lines[2] == f"    traceback: {note}"
    assert lines[3].startswith("    alone: python train.py backbone=vit_tiny_random ")
    assert "method=lora seed=1" in lines[3]
    assert "ValueError: could not be composed there" in lines[4]
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 2


def test_a_worker_that_dies_is_one_failed_run_and_the_others_go_on(tmp_path, capsys):
    made = Made(tmp_path, lora_1="dies")
    with pytest.raises(SweepError, match=r"1 of 4 runs failed(.|\n)*its worker died \(process"):
        made.run()
    assert made.launched == [["lora_0", "lora_1", "head_lora_0", "head_lora_1"], ["head_lora_0", "head_lora_1"]]
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 3
    assert "the launcher gave up (RuntimeError: a worker was terminated)" in capsys.readouterr().out
    made.does = {}
    made.launched = []
    assert made.run() == [50.0] * 4
    assert made.launched == [["lora_1"]]


def test_a_launcher_that_does_nothing_is_an_error(tmp_path):
    made = Made(tmp_path)

    def launch(batch, first):
        raise RuntimeError("no cluster")

    with pytest.raises(RuntimeError, match="no cluster"):
        Sweep(made.config, list(made.jobs.values()), launch, lambda batch: None).run()


@pytest.mark.parametrize("finished", [True, False])
def test_what_others_compute_is_taken_at_the_end_and_what_they_leave_is_begun_again(
    finished, tmp_path, monkeypatch, capsys
):
    made = Made(tmp_path, lora_0="busy")
    place = made.key(made.jobs[made.request("lora_0")]).path(tmp_path)
    other = Claim(place).__enter__()

    def pause(seconds):
        if finished:
            made.finish("lora_0", 33.0)
        else:
            made.does = {}
        other.__exit__(None, None, None)

    monkeypatch.setattr(sweep.time, "sleep", pause)
    assert made.run() == [33.0 if finished else 50.0, 50.0, 50.0, 50.0]
    assert made.launched[1:] == ([] if finished else [["lora_0"]])
    assert "computed elsewhere, by process " in capsys.readouterr().out


def test_a_run_that_leaves_no_trace_is_not_launched_for_ever(tmp_path):
    made = Made(tmp_path, lora_0="vanishes")
    with pytest.raises(SweepError, match="neither a result nor a reason"):
        made.run()
    assert len(made.launched) == sweep.TRIES


def test_an_experiment_brings_its_choices_and_the_command_line_beats_them():
    _, jobs, folders = requests_of(CONF, ["experiment=nano_worth"])
    assert len(jobs) == 12
    assert str(CONF) in folders
    _, jobs, _ = requests_of(CONF, ["experiment=nano_worth", "seed=5"])
    assert len(jobs) == 4
    assert all("seed=5" in job for job in jobs.values())
    _, jobs, _ = requests_of(CONF, ["dataset=glob(*)"])
    assert len(jobs) == 19
    with (
        pytest.raises(ConfigError, match=r"unknown experiment 'nano_wort' \(did you mean 'nano_worth'\?\)"),
        answered(),
    ):
        requests_of(CONF, ["experiment=nano_wort"])


def test_a_choice_that_matches_nothing_is_an_error():
    with pytest.raises(
        ConfigError, match=r"dataset=glob\(svnh\*\) matches nothing \(did you mean 'svhn'\?\); allowed: "
    ):
        requests_of(CONF, ["method=lora", "dataset=glob(svnh*)"])
    with pytest.raises(ConfigError, match=r"seed=range\(0,0\) matches nothing$"):
        requests_of(CONF, ["method=lora", "seed=range(0,0)"])


def test_experiments_are_swept_one_at_a_time():
    with pytest.raises(ConfigError, match=r"experiment=methods,standins: one experiment at a time.*bring their own"):
        requests_of(CONF, ["experiment=methods,standins"])


def test_a_result_holds_as_long_as_what_it_was_made_with():
    plan = plan_run(compose_config(*TINY, "method=lora", "rank=r4"))
    made = Result(key=plan.key, identity=plan.identity, config=plan.config, phases=[phase()])
    assert still_holds(made)
    for changed in ({"seed": 3}, {"data": {**plan.config["data"], "lossy": True}}, {"protocol": {"epochs": 0}}):
        other = Result(key=plan.key, identity=plan.identity, config={**plan.config, **changed}, phases=[phase()])
        assert not still_holds(other), changed
    assert not still_holds(Result(key=plan.key, identity=plan.identity, phases=[phase()]))


def test_missing_controls_are_named_once_at_the_end_of_what_was_launched(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sweep, "missing_controls", lambda results, store: asked.append(len(results)) or ["? controls"])
    made = Made(tmp_path, lora_1=RuntimeError("no"))
    with pytest.raises(SweepError):
        made.run()
    assert asked == [3]
    assert capsys.readouterr().out.count("? controls") == 1
    made.does, made.launched = {}, []
    made.run()
    assert asked == [3, 4]
    made.launched = []
    made.run()
    assert asked == [3, 4]  # nothing was launched, so nothing new is to be said

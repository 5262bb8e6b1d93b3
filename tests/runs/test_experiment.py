"""Runs from the command line: what they leave, that they are not repeated, and how mistakes are answered."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from headwise.errors import ConfigError, Interrupted, ResultConflict, StorageError, WeightsError
from headwise.protocol import job, plan, request, subsets
from headwise.results.store import PhaseStore, Result, ResultStore
from headwise.runs import experiment
from headwise.runs.experiment import plan_run, run
from headwise.runs.ledger import Ledger
from headwise.storage.claims import BusyError
from headwise.training import loop
from made_cases import each
from made_networks import CONF, REPO, compose_config, plain_timm
from made_results import gated, masked_suite, phase, result
from made_words import FAST

LORA = [*FAST, "method=lora", "rank=r4"]
HS_LORA = [*FAST[:-1], "method=hs_lora", "rank=r4"]


def train(*arguments: str, cache: Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """train.py in a process of its own; `code` runs it from within other code."""
    command = [sys.executable, "train.py"] if code is None else [sys.executable, "-c", code]
    environment = {**os.environ, "HEADWISE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONWARNINGS", None)
    return subprocess.run(
        [*command, *arguments], cwd=REPO, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep of two jobs: the first asks for what cannot be, the second finishes."""
    root = tmp_path_factory.mktemp("sweep")
    return root, train("-m", *HS_LORA, "method.first.rank=49,2", f"root={root}", cache=cache)


@pytest.fixture(scope="module")
def folder(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The finished run's folder."""
    (file,) = sweep[0].glob("runs/**/result.json")
    return file.parent


def test_a_failing_job_does_not_stop_the_others(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    root, done = sweep
    assert done.returncode == 1
    assert "rank must be in 1..48 for s0.b0.q with 1 row group(s), got 49" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(root.glob("runs/**/result.json"))) == 1
    (failure,) = root.glob("runs/**/failure.txt")
    assert "Traceback" in failure.read_text()
    assert failure.parent.parent.name != next(root.glob("runs/**/result.json")).parent.parent.name


def test_a_two_phase_run_says_what_its_controls_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*FAST, "rank=r4", f"root={tmp_path}", "trainer.progress=false"]
    run(compose_config(*options, "method=hs_control_long"))
    assert "over its controls" not in capsys.readouterr().out
    run(compose_config(*options, "method=hs_lora"))
    said = capsys.readouterr().out
    assert re.search(r"[+-]\d+\.\d\d  longer P1 \(the first method alone", said)
    assert "?  equal-size LoRA (" in said
    assert "not run with these options: method=hs_control_lora" in said
    assert "not run with these options: method=hs_control_head" in said
    run(compose_config(*options, "method=hs_control_head"))
    assert "over its controls" not in capsys.readouterr().out  # it is one, and its own is not there
    run(compose_config(*options, "method=hs_lora"))
    assert re.search(r"[+-]\d+\.\d\d  longer P2 \(the second method alone", capsys.readouterr().out)


def test_a_summary_keeps_its_columns_apart() -> None:
    wide = result(phases=[phase(num_tunable=85_798_656, num_head=305_293, stored_bytes=343_194_624, seconds=12345.6)])
    row = experiment.summary(wide).splitlines()[2]
    assert row.split() == ["1", "lora", "91.25", "%", "85,798,656", "305,293", "343,194,624", "B", "12345.6"]


def test_a_summary_measures_heads_off_by_their_controls() -> None:
    others = masked_suite(seeds=[0])
    said = experiment.summary(gated("heart_lora", 0, 89.0, 1), others)
    assert "Percentage points over its controls, same seed:" in said
    assert "   -1.00  no head off (the same run with no head off)" in said
    assert "   +2.00  random heads off (the same run with as many random heads off)" in said
    alone = experiment.summary(gated("heart_lora", 0, 89.0, 1))
    assert (
        "       ?  no head off (the same run with no head off; not run with these options: the same with ne=ne0)"
        in alone
    )
    assert "controls" not in experiment.summary(gated("heart_random", 0, 87.0, 1, "random"), others)


def test_what_a_run_says(sweep: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    said = sweep[1].stdout
    assert "hs_lora on dsprites_loc, seed 0 [stand-in weights, synthetic, smoke, subset]" in said
    assert "phase" in said
    assert "gain" in said
    assert "GPU available" not in said + sweep[1].stderr
    assert "Warning" not in said + sweep[1].stderr


def test_what_a_run_leaves(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {
        "result.json",
        "config.yaml",
        "metrics.csv",
        "curve.png",
        "confusion.csv",
        "confusion.png",
        "phase-1.safetensors",
        "phase-2.safetensors",
    }
    assert folder.name == "seed-0"
    assert folder.parent.parent.name == "dsprites_loc"
    assert folder.parents[2].name == "hs_lora"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["label"], row["epoch"]) for row in rows] == [
        (phase, label, epoch) for phase, label in (("1", "lora"), ("2", "head_lora")) for epoch in ("1", "2")
    ]
    with Image.open(folder / "curve.png") as image:
        image.verify()
    assert set(load_file(folder / "phase-1.safetensors")) >= {"s0.b0.q.A", "s0.b1.v.B", "head.weight"}


def test_what_a_result_says(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert {"method": "hs_lora", "dataset": "dsprites_loc", "seed": 0, "name": "runs"}.items() <= result.items()
    assert result["labels"] == ["stand-in weights", "synthetic", "smoke", "subset"]
    assert len(result["fingerprint"]) == 16
    assert {"weights", "data", "protocol"} <= result["provenance"].keys()
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert result["config"]["method"]["first"]["rank"] == 2
    first, second = result["phases"]
    for trained, num_tunable, label in ((first, 4 * 2 * 96, "lora"), (second, 4 * 3 * (4 * 48 + 48), "head_lora")):
        assert trained["label"] == label
        assert trained["num_tunable"] == num_tunable
        assert trained["num_head"] == 49 * 16
        assert trained["stored_bytes"] == 4 * num_tunable
        assert trained["num_test"] == 32
        assert trained["steps"] == 2
        assert trained["seconds"] > 0
        assert 0 <= trained["accuracy"] <= 100
    assert Result.read(folder / "result.json").accuracy == second["accuracy"]


QUICK = """
import runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
print("heavy:", [name for name in ("torch", "tensorflow", "tensorflow_datasets", "timm") if name in sys.modules])
"""


def test_a_finished_run_is_recognised_without_torch(folder: Path, cache: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    again = train(*HS_LORA, "method.first.rank=2", f"root={folder.parents[4]}", cache=cache, code=QUICK)
    assert again.returncode == 0, again.stderr
    assert f"already finished: {folder}" in again.stdout
    assert "heavy: []" in again.stdout
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_finished_run_is_shown_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = compose_config(*FAST, "method=linear", f"root={tmp_path}", "trainer.progress=false")
    first = run(options)

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("ledger cannot be written: Read-only file system")

    monkeypatch.setattr(plan, "asked", lambda: "0" * 16)
    monkeypatch.setattr(Ledger, "write", refuse)
    capsys.readouterr()
    assert run(options) == first
    assert "already finished" in capsys.readouterr().out


def test_a_finished_sweep_is_recognised_before_its_jobs_are_composed(folder: Path, cache: Path) -> None:
    again = train("-m", *HS_LORA, "method.first.rank=2", f"root={folder.parents[4]}", cache=cache, code=QUICK)
    assert again.returncode == 0, again.stderr
    assert f"already finished: {folder}: " in again.stdout
    assert "1 run: 1 finished, 0 to do" in again.stdout
    assert "Launching" not in again.stdout
    assert "heavy: []" in again.stdout


def test_another_configuration_does_not_land_in_the_same_folder(folder: Path, cache: Path) -> None:
    root, variant = folder.parents[4], folder.parent.name
    done = train(*HS_LORA, "method.first.rank=3", f"variant={variant}", f"root={root}", cache=cache)
    assert done.returncode == 1
    assert "method.first.rank: 2 vs 3" in done.stderr
    assert "Choose another name=" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        ("method=lorra", r"unknown method 'lorra' (did you mean 'lora'?); allowed: "),
        ("metod=lora", "unknown configuration key 'metod' (did you mean 'method'?)"),
        ("seed=-1", "seed must be a whole number in 0..4294967295, got -1"),
    ],
)
def test_a_slip_is_answered_and_leaves_nothing(wrong: str, answer: str, cache: Path, tmp_path: Path) -> None:
    given = [word for word in HS_LORA if word.partition("=")[0] != wrong.partition("=")[0]]
    done = train(*given, wrong, f"root={tmp_path / 'out'}", cache=cache)
    assert done.returncode == 1
    assert answer in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def in_process(*overrides: str) -> float | None:
    return run(compose_config(*overrides))


@each(
    "overrides, message",
    [
        (["method.rank=-1"], r"method\.rank must be a whole number of at least 1, got -1"),
        (["method.rank=99"], r"rank must be in 1\.\.48 .*got 99"),
        (["method.targets=[q,w]"], "target 'w' matches no projection of this backbone"),
        (["method.dropout=1.5"], r"method\.dropout must be in \[0, 1\), got 1\.5"),
        (["backbone.img_size=36"], "backbone.img_size must be a positive multiple of 8, got 36"),
        (["protocol.test_images=100000"], "protocol.test_images=100000 is not a subset of the 73728 test images"),
    ],
)
def test_values_that_do_not_fit_the_network(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        in_process(*LORA, *overrides, f"root={tmp_path}")
    assert not list(tmp_path.glob("**/result.json"))


def test_a_head_rank_is_at_most_the_heads_width(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.12 for s0\.b0\.q with 4 row group\(s\), got 13"):
        in_process(*FAST, "method=head_lora", "method.rank=13", f"root={tmp_path}")


def test_two_phases_are_not_a_first_phase(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.first must be a single-phase method, got TwoPhase"):
        in_process(*HS_LORA, "method@method.first=hs_lora", f"root={tmp_path}")


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop.PhaseModule.training_step

    def interrupted(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.installed.owners["s0.b0.q"].A.shape[0] > 1:  # the second phase
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(loop.PhaseModule, "training_step", interrupted)
    with pytest.raises(Interrupted):
        in_process(*HS_LORA, f"root={tmp_path}")
    assert not list(tmp_path.glob("**/failure.txt"))
    monkeypatch.undo()
    phases = {file.parent.name: file.stat().st_mtime_ns for file in tmp_path.glob("phases/*/phase.json")}
    assert len(phases) == 1
    in_process(*HS_LORA, f"root={tmp_path}")
    (result,) = ResultStore(tmp_path).all()
    kept = {file.parent.name: file.stat().st_mtime_ns for file in tmp_path.glob("phases/*/phase.json")}
    assert phases.items() < kept.items()
    assert [phase.label for phase in result.phases] == ["lora", "head_lora"]


def test_force_replaces_a_result_only_when_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*HS_LORA, f"root={tmp_path}"]
    accuracy = in_process(*arguments)
    (file,) = tmp_path.glob("runs/**/result.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(PhaseStore, "adopt", full)
        with pytest.raises(OSError, match="no space left"):
            in_process(*arguments, "resume=force")
    kept = {path: path.read_bytes() for path in before if path.name not in ("config.yaml", "index.jsonl")}
    assert kept.items() <= before.items()
    assert in_process(*arguments, "resume=force") == accuracy
    assert json.loads(file.read_text())["created"] > json.loads(before[file])["created"]
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == {
        path.relative_to(tmp_path) for path in before
    }


def test_never_refuses_what_is_finished(folder: Path) -> None:
    arguments = [*HS_LORA, "method.first.rank=2", f"variant={folder.parent.name}", f"root={folder.parents[4]}"]
    with pytest.raises(ResultConflict, match="already holds this result, and resume=never forbids that"):
        in_process(*arguments, "resume=never")
    with pytest.raises(ConfigError, match=r"unknown resume 'newer' \(did you mean 'never'\?\)"):
        in_process(*arguments, "resume=newer")


def test_a_run_that_another_process_computes_is_left_to_it(tmp_path: Path) -> None:
    arguments = [*LORA, f"root={tmp_path}", "wait=false"]
    place = plan_run(compose_config(*arguments)).folder
    code = "import sys, time; from pathlib import Path; from headwise.storage.claims import Claim\n"
    code += "with Claim(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"is claimed by process {other.pid} on "):
            in_process(*arguments)
    finally:
        other.kill()
        other.communicate()
    assert in_process(*arguments) is not None


def identity(*overrides: str) -> dict[str, Any]:
    return plan_run(compose_config(*LORA, *overrides)).identity


def test_what_makes_a_result_another_one(tmp_path: Path) -> None:
    same = identity()
    for overrides in (
        ["root=elsewhere", "name=mine", "variant=x"],
        ["method.label=y"],
        ["logger=wandb"],
        ["trainer.progress=true"],
        ["rank=r4"],
        ["ne=ne1"],
    ):
        assert identity(*overrides) == same, overrides
    for overrides in (
        ["seed=1"],
        ["method.rank=2"],
        ["+method.revision=2"],
        ["protocol.lr=0.1"],
        ["protocol.test_images=255"],
        ["trainer.threads=2"],
        ["backbone.seed=1"],
        ["backbone=swin_tiny_random"],
        ["dataset=dsprites_ori"],
    ):
        given = [word for word in LORA if word.partition("=")[0] != overrides[0].partition("=")[0]]
        changed = plan_run(compose_config(*given, *overrides)).identity
        assert changed != same, overrides


def test_weights_count_by_content_not_by_place(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in plain_timm("vit").state_dict().items() if not name.startswith("head.")}
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "sub").mkdir()
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "sub" / "b.safetensors")
    save_file(state | {"norm.bias": state["norm.bias"] + 1}, tmp_path / "c.safetensors")
    here, moved, changed = (identity(f"backbone.weights={tmp_path}/{n}.safetensors") for n in ("a", "sub/b", "c"))
    assert here == moved
    assert here != changed
    assert str(tmp_path) not in json.dumps(here)
    with pytest.raises(WeightsError, match=r"weights file .*d.safetensors' does not exist"):
        identity(f"backbone.weights={tmp_path}/d.safetensors")


def test_what_must_be_given_is_named() -> None:
    with pytest.raises(ConfigError, match=r"backbone.weights must be given: add backbone.weights=VALUE"):
        plan_run(compose_config(*[word for word in LORA if "backbone" not in word], "backbone=vit_s14_dinov2"))


def test_a_conflict_is_found_before_anything_is_trained(folder: Path) -> None:
    root, variant = folder.parents[4], folder.parent.name
    with pytest.raises(ResultConflict, match=r"protocol.lr: .*vs"):
        in_process(*HS_LORA, "method.first.rank=2", "protocol.lr=0.5", f"variant={variant}", f"root={root}")


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """Overrides of a run on images of one's own, of three classes."""
    for number in range(6):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    lines = [f"{number}.png {number % 3}\n" for number in range(6)]
    for name, some in {"train": lines, "train800": lines[:3], "val200": lines[3:], "test": lines}.items():
        (tmp_path / "photos" / f"{name}.txt").write_text("".join(some))
    return [
        *("method=lora", "rank=r4", "backbone=vit_tiny_random", "protocol=smoke", "trainer=cpu", "trainer.threads=1"),
        *("dataset=own/folder", "data=folder", f"data.root={tmp_path / 'photos'}", "dataset.num_classes=3"),
    ]


def test_images_that_a_search_chooses_on_count(own: list[str], tmp_path: Path) -> None:
    def found(*overrides: str) -> dict[str, Any]:
        return plan_run(compose_config(*own, *overrides)).identity

    search = "+protocol.search.scale=[1,10]"
    plain, searched = found(), found(search)
    assert searched["data"]["fingerprint"] == plain["data"]["fingerprint"]
    assert "searched" not in plain["data"]
    file = tmp_path / "photos" / "val200.txt"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert found() == plain
    assert found(search) != searched


def test_how_stored_images_become_pixels_counts(own: list[str]) -> None:
    plain, grey = (plan_run(compose_config(*own, *more)).identity for more in ([], ["+dataset.channels=1"]))
    assert grey["dataset"] == {**plain["dataset"], "channels": 1}
    assert grey["data"] == plain["data"]


@pytest.mark.parametrize(("key", "kind"), [("test_images", "test"), ("train_images", "training")])
def test_a_subset_of_own_images_is_smaller_than_their_number(own: list[str], key: str, kind: str) -> None:
    strict = [part for part in own if not part.startswith("protocol=")]
    for limit in (6, 500):
        with pytest.raises(
            ConfigError, match=rf"protocol.{key}={limit} is not a subset of the 6 {kind} images of folder"
        ):
            plan_run(compose_config(*strict, f"++protocol.{key}={limit}"))
    assert plan_run(compose_config(*strict, f"++protocol.{key}=5"))
    smoke = plan_run(compose_config(*own)).protocol
    assert subsets.MINIATURE[key] == getattr(smoke, key) > 6, "the limits of protocol=smoke are upper bounds"
    with pytest.raises(ConfigError, match="not a subset of the 1000 training images of svhn"):
        plan_run(compose_config("method=lora", "backbone=vit_tiny_random", "++protocol.train_images=1000"))


def test_depth_found_in_own_images_is_recorded(own: list[str], tmp_path: Path) -> None:
    assert plan_run(compose_config(*own)).config["dataset"]["depth"] is None
    Image.fromarray(np.full((32, 32), 1000, np.uint16)).save(tmp_path / "photos" / "0.png")
    found = plan_run(compose_config(*own))
    assert found.config["dataset"]["depth"] == 10
    assert found.identity == plan_run(compose_config(*own, "dataset.depth=10")).identity
    assert found.identity != plan_run(compose_config(*own, "dataset.depth=16")).identity


@each(
    "given, expected",
    [
        ("trainer=cuda", "gpu"),
        ("trainer.accelerator=cuda", "gpu"),
        ("trainer.accelerator=gpu", "gpu"),
        ("trainer.accelerator=cpu", "cpu"),
    ],
)
def test_spellings_of_a_device_are_one_device(given: str, expected: str) -> None:
    planned, plain = (plan_run(compose_config(*LORA, option)) for option in (given, f"trainer={expected}"))
    assert planned.config["trainer"]["accelerator"] == expected and planned.identity == plain.identity


@each(
    "given, message",
    [
        ("mps", "trainer.accelerator=mps: Apple's GPUs have no float64"),
        ("tpu", r"unknown trainer.accelerator 'tpu' .*allowed: auto, cpu, cuda, gpu"),
        ("GPU", r"unknown trainer.accelerator 'GPU'"),
        ("1", r"trainer.accelerator"),
        ("null", r"trainer.accelerator"),
    ],
)
def test_other_devices_are_refused(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_run(compose_config(*LORA, f"trainer.accelerator={given}"))


def test_the_chosen_device_is_said_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(compose_config(*LORA, f"root={tmp_path}", "trainer=cpu"))
    assert re.search(r"^device: CPU, .+(?<!auto\))$", capsys.readouterr().out, re.M)
    (file,) = (tmp_path / "runs").glob("**/result.json")
    assert Result.read(file).machine["accelerator"] == "cpu"


def test_auto_contradicted_by_torch_asks_for_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that the cheap look misses (WSL, ROCm): neither a slow run without a word, nor another identity."""
    monkeypatch.setattr(plan, "DEVICES", tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "Radeon")
    with pytest.raises(
        ConfigError, match=r"trainer=auto: .* torch can use one \(Radeon\); .* trainer=gpu or trainer=cpu"
    ):
        run(compose_config(*LORA, f"root={tmp_path}", "trainer=auto"))


def test_a_gpu_is_what_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> str:
        return str(plan_run(compose_config(*LORA, "trainer=auto")).config["trainer"]["accelerator"])

    monkeypatch.setattr(plan, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert chosen() == "cpu"
    (tmp_path / "nvidia3").touch()
    assert chosen() == "gpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen() == "cpu"


def test_what_a_run_asks_for_does_not_depend_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = request.request_of(["method=lora"], [CONF])
    request._code.cache_clear()
    monkeypatch.setattr(Path, "exists", lambda self, **_: True)
    assert request.request_of(["method=lora"], [CONF]) == before
    assert "nvidia" not in Path(request.__file__).read_text()


@each("launcher, expected", [("hydra_joblib_launcher.JoblibLauncher", 5), ("BasicLauncher", 0)])
def test_processes_take_the_gpus_in_turn(launcher: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = OmegaConf.create({"launcher": {"_target_": launcher}, "job": {"num": 5}})
    monkeypatch.setattr(job.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(job.HydraConfig, "get", lambda: hydra)
    assert job.turn() == expected


def test_a_phase_says_what_trained_it(folder: Path) -> None:
    record = json.loads((folder / "result.json").read_text())
    made = {"git": record["git"], "torch": record["versions"]["torch"], "device": record["machine"]["cpu"]}
    assert [phase["extra"]["made"] for phase in record["phases"]] == [made, made]

"""Many runs in one process give the bits of single processes, whatever the order; nothing goes from one to another."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwise.data.kept import KeptImages
from headwise.errors import ConfigError
from headwise.network.backbone import BackboneSpec
from headwise.network.kept import Networks
from headwise.runs import execution
from headwise.runs.experiment import run
from headwise.training import features
from made_networks import REPO, compose_config
from made_words import QUIET, TINY

FAST = [*TINY, *QUIET, "rank=r4"]
SEARCH = ["+protocol.search.scale=[1,10]"]
JOBS: list[list[str]] = [
    ["method=lora"],
    ["method=lora", "seed=1"],
    ["method=hs_lora"],
    ["method=heart_lora", "ne=ne1"],
    ["method=full"],
    ["method=linear"],
    ["method=linear", "seed=1"],
    ["method=lora", "dataset=svhn"],
]


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept of the tests before."""
    begin(monkeypatch)


def begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "NETWORKS", Networks())
    monkeypatch.setattr(execution, "IMAGES", KeptImages())
    monkeypatch.setattr(features, "KEPT", features.KeptFeatures())


def made(root: Path) -> dict[str, Any]:
    """By run, everything that it has computed: numbers, hashes of tensors, curves; no times."""
    runs = {}
    for file in sorted(root.glob("runs/**/result.json")):
        result = json.loads(file.read_text())
        phases = [
            {key: phase[key] for key in ("label", "accuracy", "sha256", "train_loss", "fingerprint", "num_tunable")}
            for phase in result["phases"]
        ]
        tensors = [tensors.read_bytes() for tensors in sorted(file.parent.glob("phase-*.safetensors"))]
        curves = []
        for phase in result["phases"]:
            with (root / "phases" / phase["fingerprint"] / "metrics.csv").open() as text:
                curves.append([(row["epoch"], row["train_loss"], row["lr"]) for row in csv.DictReader(text)])
        key = file.parent.relative_to(root).as_posix()
        runs[key] = (phases, tensors, curves, result["identity"], result["provenance"], result["labels"])
    return runs


def compute(root: Path, jobs: Sequence[Sequence[str]]) -> dict[str, Any]:
    for job in jobs:
        run(compose_config(*FAST, *job, f"root={root}"))
    return made(root)


def test_the_order_of_runs_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone: dict[str, Any] = {}
    for index, job in enumerate(JOBS):
        begin(monkeypatch)
        alone |= compute(tmp_path / f"alone{index}", [job])
    assert len(alone) == len(JOBS)
    begin(monkeypatch)
    assert compute(tmp_path / "order", random.Random(0).sample(JOBS, len(JOBS))) == alone


LEAVING: dict[str, list[str]] = {
    "weights": ["method=full", "protocol.lr=1"],
    "gates": ["method=heart_lora", "ne=ne1"],
    "parts that stay": ["method=vpt_deep"],
    "another network": ["method=lora", "backbone.overrides.depth=3"],
    "another family": ["method=lora", "backbone=swin_tiny_random"],
    "precision": ["method=lora", "protocol.precision=bf16"],
    "threads": ["method=lora", "trainer.threads=2"],
    "seed": ["method=lora", "seed=3"],
    "images": ["method=lora", "dataset=svhn"],
    "fewer images": ["method=lora", "protocol.train_images=4"],
    "augmented images": ["method=lora", "+protocol.augment=fewshot"],
    "a search": ["method=lora", *SEARCH],
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        begin(patch)
        return compute(tmp_path_factory.mktemp("calm"), [["method=lora"]])


@pytest.mark.parametrize("what", LEAVING)
def test_nothing_of_a_run_is_found_in_the_next(what: str, calm: dict[str, Any], tmp_path: Path) -> None:
    compute(tmp_path / "before", [LEAVING[what]])
    assert compute(tmp_path / "after", [["method=lora"]]) == calm
    assert torch.get_default_dtype() is torch.float32


def test_nothing_of_a_run_that_failed_is_found_in_the_next(calm: dict[str, Any], tmp_path: Path) -> None:
    for wrong in (["method=lora", "method.rank=49"], ["method=hs_lora", "method.heads.rank=49"]):
        with pytest.raises(ConfigError):
            compute(tmp_path / "wrong", [wrong])
    assert compute(tmp_path / "after", [["method=lora"]]) == calm


def test_no_random_state_is_taken_over(calm: dict[str, Any], tmp_path: Path) -> None:
    for seed in (11, 12):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert compute(tmp_path / str(seed), [["method=lora"]]) == calm


def test_a_search_builds_and_reads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, read = [], []
    build = BackboneSpec.build
    monkeypatch.setattr(BackboneSpec, "build", lambda self, drop=0.0: built.append(self.name) or build(self, drop))
    from headwise.data.synthetic.drawn import SyntheticSource

    load = SyntheticSource.load
    monkeypatch.setattr(
        SyntheticSource, "load", lambda self, task, split, *how: read.append(split) or load(self, task, split, *how)
    )
    compute(tmp_path, [["method=lora", *SEARCH], ["method=lora", "seed=1", *SEARCH]])
    assert built == ["vit_tiny_random"]
    assert len(read) == len(set(read)) == 4


def trained(root: Path, cache: Path, *words: str) -> dict[str, Any]:
    """The same, by train.py in a process of its own."""
    environment = {**os.environ, "HEADWISE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *words, f"root={root}"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return made(root)


@pytest.mark.slow
def test_a_sweep_in_one_process_gives_what_single_processes_give(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    alone: dict[str, Any] = {}
    for method in ("lora", "heart_lora"):
        for seed in (0, 1):
            root = tmp_path / f"alone-{method}-{seed}"
            alone |= trained(root, cache, *FAST, f"method={method}", "ne=ne1", f"seed={seed}")
    for order, words in enumerate((["method=lora,heart_lora", "seed=0,1"], ["seed=1,0", "method=heart_lora,lora"])):
        assert trained(tmp_path / f"sweep{order}", cache, "-m", *FAST, "ne=ne1", *words) == alone

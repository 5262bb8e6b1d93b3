"""The benchmark runs and records what it promises; its times are not tested."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "step_time.py"


@pytest.fixture(scope="module")
def step_time():
    spec = importlib.util.spec_from_file_location("step_time", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_record_of_a_small_run(step_time, threads, tmp_path, capsys):
    file = tmp_path / "new" / "times.json"
    arguments = ["--backbone", "tiny", "--batch", "2", "--pairs", "2", "--threads", str(threads), "--json", str(file)]
    step_time.main(arguments)
    record = json.loads(file.read_text())

    assert record["batch"] == 2
    assert record["machine"]["threads"] == threads
    assert record["machine"]["versions"].keys() == {"torch", "timm", "peft", "headwise"}
    names = {(result["contender"], result["precision"]) for result in record["results"]}
    assert names == {(name, precision) for name in step_time.CONTENDERS for precision in ("bf16", "fp32")}
    printed = capsys.readouterr().out
    for result in record["results"]:
        assert len(result["pairs"]) == len(result["cpu_pairs"]) == 2
        assert all(seconds > 0 for pair in result["pairs"] for seconds in pair)
        low, middle, high = result["quartiles"]
        assert low <= middle <= high
        assert result["logit_difference"] <= 1e-5  # every update starts at zero
        assert result["contender"] in printed
    flops = {result["contender"]: result["flop_ratio"] for result in record["results"]}
    assert flops["bound against itself"] == 1.0
    assert all(ratio > 1.0 for name, ratio in flops.items() if name != "bound against itself")


def test_gradient_reaches_the_first_block_in_every_contender(step_time):
    architecture = step_time.BACKBONES["tiny"]
    for build in (step_time.bound, *step_time.CONTENDERS.values()):
        model = build(architecture)
        seen = []
        blocks = next(module for name, module in model.named_modules() if name.endswith("blocks"))
        blocks[0].norm1.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0]))
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        assert seen[0].is_leaf
        assert seen[0].grad is not None


@pytest.mark.parametrize("arguments", [["--pairs", "1"], ["--only", "nothing like it"]])
def test_options_that_cannot_be_measured_are_refused(step_time, arguments, capsys):
    with pytest.raises(SystemExit):
        step_time.parse(arguments)
    assert {"--pairs": "at least 2", "--only": "HS-LoRA Phase 2"}[arguments[0]] in capsys.readouterr().err

"""The benchmark runs and records what it promises; its times are not tested."""

import importlib
import json
from pathlib import Path

import pytest
import torch
import yaml

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """Modules of benchmarks/ can be imported, as they are when one of them is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def step_time(scripts):
    return importlib.import_module("step_time")


@pytest.fixture(scope="module")
def method_cost(scripts):
    return importlib.import_module("method_cost")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.parametrize(("ratio", "limit", "over"), [(1.2, 1.1, True), (1.1, 1.1, False), (9.0, None, None)])
def test_a_ratio_is_over_its_limit_where_it_has_one(step_time, ratio, limit, over, capsys):
    row = step_time.stepping.judged("x", ratio, limit, kind="dense")
    assert row == {"contender": "x", "kind": "dense", "limit": limit, "ratio": ratio, "over": over}
    step_time.stepping.say([row], "method(s)", "kind")
    counts = [over is False, over is True, over is None]
    told = "{} method(s) within their bound, {} over, {} without one".format(*map(int, counts))
    assert capsys.readouterr().out.splitlines() == [*["over: x (dense) 1.200 > 1.10"] * (over is True), told]


def test_record_of_a_small_run(step_time, threads, tmp_path, capsys):
    file = tmp_path / "new" / "times.json"
    arguments = ["--backbone", "tiny", "--batch", "2", "--pairs", "2", "--threads", str(threads), "--json", str(file)]
    step_time.main(arguments)
    record = json.loads(file.read_text())

    assert record["batch"] == 2
    assert record["machine"]["threads"] == threads
    assert record["machine"]["versions"].keys() == {"torch", "timm", "peft", "headwise"}
    assert [(row["theirs"], row["precision"]) for row in record["against"]] == [
        (name, precision) for precision in ("bf16", "fp32") for name in step_time.THEIRS
    ]
    assert all(row["ratio"] > 0 and row["cpu_ratio"] > 0 for row in record["against"])
    assert all(row["over"] == (row["ratio"] > row["limit"]) for row in record["against"])
    names = {(result["contender"], result["precision"]) for result in record["results"]}
    assert names == {(name, precision) for name in step_time.CONTENDERS for precision in ("bf16", "fp32")}
    printed = capsys.readouterr().out
    over = sum(row["over"] for row in record["against"])
    assert f"{4 - over} ratio(s) to peft within their bound, {over} over, 0 without one" in printed
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
    architecture = step_time.stepping.BACKBONES["tiny"]
    for build in (step_time.bound, *step_time.CONTENDERS.values()):
        seen = first_input(build(architecture))
        assert seen.is_leaf
        assert seen.grad is not None


def first_input(model):
    """What the first block was given in a step, with its gradient."""
    seen = []
    blocks = next(module for name, module in model.named_modules() if name.endswith("blocks"))
    norm = next(module for name, module in blocks[0].named_modules() if name.endswith("norm1"))
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    y = model(torch.randn(2, 3, 32, 32)).sum()
    seen[0].retain_grad()
    y.backward()
    return seen[0]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--pairs", "1"], "in 2..10000"),
        (["--only", "nothing like it"], "HS-LoRA Phase 2"),
        (["--only", "merged"], "measured with --test alone"),
    ],
)
def test_options_that_cannot_be_measured_are_refused(step_time, arguments, why, capsys):
    with pytest.raises(SystemExit):
        step_time.parse(arguments)
    assert why in capsys.readouterr().err


def test_a_test_is_timed_with_adapters_at_work_and_merged(step_time, threads, tmp_path):
    file = tmp_path / "tests.json"
    arguments = ["--backbone", "tiny", "--batch", "2", "--pairs", "2", "--threads", str(threads), "--json", str(file)]
    step_time.main([*arguments, "--test", "--precision", "fp32", "--only", "HS-LoRA", "itself"])
    record = json.loads(file.read_text())
    assert record["test"] and "against" not in record
    flops = {result["contender"]: result["flop_ratio"] for result in record["results"]}
    assert flops.pop("HS-LoRA Phase 2, r'=3") > 1.0
    assert flops == {"HS-LoRA, merged": 1.0, "bound against itself": 1.0}


SMALL = ["rank=r4", "method.rank=4"]


def test_memory_is_counted_as_autograd_keeps_it(scripts, threads, tmp_path, capsys):
    step_memory = importlib.import_module("step_memory")
    rows = {}
    for flag in ((), ("--checkpointing",)):
        file = tmp_path / f"{len(flag)}.json"
        common = ["--backbone", "tiny", "--threads", str(threads), "--only", "lora", "full", "--precision", "fp32"]
        assert step_memory.main([*common, "--batch", "3", "--json", str(file), *flag]) == 0
        rows[bool(flag)] = {row["contender"]: row for row in json.loads(file.read_text())["results"]}
    plain, again = rows[False], rows[True]
    assert plain.keys() == again.keys() >= {"lora", "head_lora", "full", step_memory.BOUND}
    for name, row in plain.items():
        assert 0 < again[name]["image"] < row["image"], name
        assert row["total"] == row["once"] + 3 * row["image"] + row["weights"] + 3 * row["tunable"]
    assert plain["lora"]["image"] < plain["full"]["image"]
    assert "3 images" in capsys.readouterr().out


def test_every_method_of_the_line_up_has_a_place(method_cost):
    """But the linear probe, which is the bound, and HS-LoRA, whose second phase stands for it."""
    sweep = yaml.safe_load((REPO / "conf" / "experiment" / "methods.yaml").read_text())["hydra"]["sweeper"]["params"]
    names = {name.strip() for name in sweep["method"].split(",")}
    assert set(method_cost.KINDS) >= names - {"linear", "hs_lora"}
    assert all((REPO / "conf" / "method" / f"{name}.yaml").is_file() for name in method_cost.KINDS)
    assert len(method_cost.KINDS) == sum(len(names) for _, names in method_cost.BOUNDS.values())


@pytest.mark.parametrize("name", ["cara", "adaptformer", "vpt_shallow", "ssf", "spt_lora"])
def test_gradient_reaches_the_first_block_in_every_method(method_cost, step_time, name):
    overrides = SMALL if name in ("cara", "spt_lora") else ()
    model, installed = method_cost.contender(step_time.stepping.BACKBONES["tiny"], name, overrides)
    assert first_input(model.train()).grad is not None
    assert all(tensor.grad is not None for tensor in installed.adapter().values())


def test_methods_against_their_bounds(method_cost, threads, tmp_path, capsys):
    file = tmp_path / "cost.json"
    options = ["--backbone", "tiny", "--batch", "2", "--pairs", "2", "--threads", str(threads), "--json", str(file)]
    method_cost.main([*options, "--only", "mora", "bitfit", "--set", "rank=r4"])
    record = json.loads(file.read_text())
    assert record["attention"] == "plain"
    mora, bitfit = record["bounds"]
    assert (mora["contender"], mora["kind"], mora["limit"]) == ("mora", "dense gradient", 1.65)
    assert mora["over"] == (mora["ratio"] > 1.65)
    assert bitfit["over"] is None
    assert [result["contender"] for result in record["results"]] == ["mora", "bitfit"]
    printed = capsys.readouterr().out
    assert ("over: mora (dense gradient)" in printed) == mora["over"]
    assert "1 without one" in printed


@pytest.fixture(scope="module")
def packing(scripts):
    return importlib.import_module("packing")


SMALL_PACKED = ["--backbone", "tiny", "--batch", "2", "--runs", "3", "--pairs", "2"]


def test_packed_runs_are_the_runs_alone(packing, threads, tmp_path, capsys):
    file = tmp_path / "packing.json"
    assert packing.main([*SMALL_PACKED, "--threads", str(threads), "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert record["machine"]["threads"] == threads
    rows = {(row["method"], row["precision"], row["way"]): row for row in record["results"]}
    assert rows.keys() == {(m, p, w) for m in packing.METHODS for p in ("bf16", "fp32") for w in packing.WAYS}
    for row in rows.values():
        assert max(row["difference_fp32"].values()) <= packing.LIMIT
        assert max(row["difference"].values()) <= (packing.LIMIT if row["precision"] == "fp32" else 0.1)
        assert len(row["pairs"]) == len(row["cpu_pairs"]) == 2
    assert f"of {len(rows)} rows at least 1.2 times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["update", "random numbers", "images"])
def test_a_packed_run_that_is_another_is_told(packing, threads, fault, monkeypatch):
    if fault == "update":

        def first_for_all(x, weight, bias, runs):
            return packing.own_updates(x, weight, bias, [runs[0]] * len(runs))

        monkeypatch.setitem(packing.WAYS, "bmm", first_for_all)
    elif fault == "random numbers":
        init = packing.PackedDropPath.__init__
        monkeypatch.setattr(packing.PackedDropPath, "__init__", lambda self, rate, own: init(self, rate, own[::-1]))
        monkeypatch.setattr(packing, "DROP_PATH", 0.5)
    else:
        losses = packing.Packed.losses
        monkeypatch.setattr(packing.Packed, "losses", lambda self, x, y, bf16: losses(self, x.flip(0), y, bf16))
    options = ["--precision", "fp32", "--method", "LoRA r=16", "--threads", str(threads)]
    assert packing.main([*SMALL_PACKED, *options]) == 1


@pytest.mark.parametrize(("ours", "status"), [((20.0, 81.0), 0), ((20.0, 83.0), 1), ((50.0, 80.5), 1)])
def test_a_whole_job_is_judged_by_its_time_and_its_accuracy(scripts, ours, status, monkeypatch, tmp_path):
    whole_job = importlib.import_module("whole_job")
    monkeypatch.setattr(whole_job, "by_loop", lambda options, seed: (100.0 + seed, 81.5))
    monkeypatch.setattr(whole_job, "by_run", lambda options, seed, folder, precision: ours)
    weights, file = tmp_path / "w.safetensors", tmp_path / "job.json"
    weights.touch()
    given = ["--data-root", str(tmp_path), "--weights", str(weights), "--precision", "bf16", "--json", str(file)]
    assert whole_job.main(given) == status
    row = json.loads(file.read_text())["rows"]["bf16"]
    assert row == {"times_as_fast": round(101 / ours[0], 3), "points_apart": ours[1] - 81.5}

"""Costs on paper: what is counted once, what is multiplied, and the saved record."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from headwise.methods.base import Method
from headwise.methods.lora import LoRA

REPO = Path(__file__).parent.parent
STEPS, IMAGES = 15, 960
PLAIN = {
    f"experiment={name}": ["protocol=hs_paper", "dataset=svhn", f"method={method}", "seed=0"]
    for name, method in (("hs_table1", "lora"), ("hs_table2", "ssf"))
}


@pytest.fixture(scope="module")
def paper_cost() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "benchmarks"))
        yield importlib.import_module("paper_cost")


@pytest.fixture
def unit(paper_cost: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every image costs 1 in training, and every test 0."""
    monkeypatch.setattr(paper_cost, "cost_of", lambda *_: paper_cost.Cost(step=0, image=1, test=0))
    return paper_cost


def jobs(*changes: str, seeds: int = 1) -> list[list[str]]:
    common = ["protocol=heart_paper", "dataset=svhn", *changes]
    return [[*common, f"seed={seed}"] for seed in range(seeds)]


def test_seeds_multiply(unit: Any) -> None:
    bill = unit.bill(jobs("method=ssf", seeds=3))
    assert (bill.runs, bill.phases, bill.trials) == (3, 3, 0)
    assert bill.train_flops == 3 * 100 * IMAGES


def test_a_search_adds_its_trials(unit: Any) -> None:
    bill = unit.bill(jobs("method=bi_lora"))
    assert (bill.phases, bill.trials) == (1, 5)
    assert bill.train_flops == 100 * IMAGES + 5 * 100 * 768
    bill = unit.bill(jobs("method=heart_lora"))
    assert bill.trials == 5 + 3 * 3
    assert bill.train_flops == 100 * IMAGES + (5 * 100 + 9 * 90 + 10) * 768, "nine trials share one warm-up"


def test_what_runs_share_is_counted_once(unit: Any) -> None:
    plain = ["protocol=hs_paper", "dataset=svhn", "method=hs/pissa"]
    bill = unit.bill([[*plain, "rank=r16_h2"], [*plain, "rank=r16_h4"]])
    assert (bill.runs, bill.phases) == (2, 3)
    curves = [["protocol=hs_paper", "dataset=svhn", "method=heart_lora", f"ne=ne{n}"] for n in (1, 3)]
    assert unit.bill(curves).train_flops == (100 + 90) * IMAGES


def test_what_experiments_share_is_counted_once_in_all(unit: Any) -> None:
    seen: set[Any] = set()
    first, again = (unit.bill(jobs("method=ssf", seeds=3), seen) for _ in range(2))
    assert (first.phases, again.phases, again.runs) == (3, 0, 3)
    assert again.train_flops == 0
    other = unit.bill(jobs("method=ssf", "protocol.normalize=imagenet", seeds=3), seen)
    assert other.train_flops == first.train_flops, "other pixels are other runs"


def test_a_search_on_some_images_tests_on_those(paper_cost: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_cost, "cost_of", lambda *_: paper_cost.Cost(step=0, image=0, test=1))
    shots = ["protocol=fewshot", "dataset=fewshot/food101", "shots=1", "method=noah", "method.search=evolution"]
    scale = "+protocol.search={fields: {lr: [0.1]}, optional: true, images: 1000}"
    tested = [paper_cost.bill([[*shots, *more]]).test_flops for more in ([], [scale])]
    assert tested[0] - tested[1] == pytest.approx(800 * 19_200, abs=20_200)


def test_a_linear_probe_computes_its_features_once(paper_cost: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_cost, "cost_of", lambda *_: paper_cost.Cost(step=0, image=100, test=1))
    assert paper_cost.bill(jobs("method=linear", "protocol.select=last", seeds=3)).train_flops == 3 * 1000


def test_an_interrupted_count_keeps_what_it_did(
    paper_cost: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, counted = tmp_path / "cost.json", list[str]()
    monkeypatch.setattr(
        paper_cost, "_counted", lambda method, _: counted.append(method.label) or paper_cost.Cost(1, 1, 1)
    )
    monkeypatch.setattr(paper_cost, "requests_of", lambda _, words: (None, {word: PLAIN[word] for word in words}))
    monkeypatch.setattr(paper_cost, "is_ours", lambda *_: False)
    names = ["hs_table1", "hs_table2"]

    def stopped(jobs: Any, seen: Any = None) -> Any:
        if any("method=ssf" in job for job in jobs):
            raise KeyboardInterrupt
        return bill(jobs, seen)

    bill = paper_cost.bill
    monkeypatch.setattr(paper_cost, "bill", stopped)
    assert paper_cost.main(["--only", *names, "--json", str(file)]) == 130
    record = json.loads(file.read_text())
    assert list(record["experiments"]) == names[:1] and record["together"]["runs"] == 1
    assert record["complete"] is False
    assert sorted(counted) == ["full", "lora"] and len(record["methods"]) == 2
    monkeypatch.setattr(paper_cost, "bill", bill)
    assert paper_cost.main(["--only", *names, "--json", str(file)]) == 0
    assert sorted(counted) == ["full", "lora", "ssf"]
    whole = file.read_bytes()
    assert list(json.loads(whole)["experiments"]) == names and "complete" not in json.loads(whole)
    monkeypatch.setattr(paper_cost, "bill", stopped)
    assert paper_cost.main(["--only", *names, "--json", str(file)]) == 130
    assert file.read_bytes() == whole, "an incomplete count replaces no complete one"
    monkeypatch.setattr(paper_cost, "bill", bill)
    assert paper_cost.main(["--only", names[1], "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())["methods"]) == 2, "what a whole count does not ask for is left out"


def test_runs_of_neither_paper_are_ours(paper_cost: Any) -> None:
    assert not paper_cost.is_ours("heart_table6", ["method=heart/front", "seed=0"])
    assert paper_cost.is_ours("heart_table6", ["method=heart/random", "seed=0"])
    assert paper_cost.is_ours("hs_controls", ["method=hs_lora"])
    assert {*paper_cost.OURS} < {*paper_cost.experiments()}


def test_a_card_reaches_a_share_of_its_peak(paper_cost: Any) -> None:
    card = paper_cost.LARGE
    made = paper_cost.Bill(train_flops=0.3 * 989e12, test_flops=0.05 * 989e12)
    assert card.seconds(made, "any", None, "bf16") == pytest.approx(1)
    assert card.seconds(made, "any", None, "tf32") == pytest.approx(989 / 495)


def test_arithmetic_of_a_small_network(paper_cost: Any) -> None:
    """Twice the width of everything a forward pass multiplies, and of LoRA's own factors; nothing is computed."""
    backbone = json.dumps({"name": "x", "timm_name": "vit_tiny_patch16_224", "img_size": 32, "overrides": {"depth": 2}})
    method: Method = LoRA(label="lora", rank=4, targets=("q", "v"))
    cost = paper_cost.cost_of(method, backbone)
    assert 0 < cost.test < cost.image < 3 * cost.test
    assert cost.step > 0, "W + BA is formed once a step"


def test_the_saved_record_is_of_these_experiments(paper_cost: Any) -> None:
    record = json.loads((REPO / "benchmarks" / "results" / "paper_cost.json").read_text())
    assert list(record["experiments"]) == paper_cost.experiments()
    assert {row["backbone"] for row in record["experiments"].values()} == set(record["gpus"]["rtx3090"]["rates"])
    for count in ("runs", "phases", "trials"):
        assert record["papers"][count] + record["ours"][count] == record["together"][count]
    networks = [paper_cost.composed(f"experiment={name}").backbone for name in ("heart_table1", "heart_table4")]
    known = {json.dumps(OmegaConf.to_container(network), sort_keys=True) for network in networks}
    assert {json.loads(key)[1] for key in record["methods"]} == known, "left over from other configurations"
    page = (REPO / "docs" / "cost.md").read_text()
    for name, row in record["experiments"].items():
        assert f"| `{name}` | {row['runs']:,} |" in page


def test_the_roofline_is_that_of_the_page(paper_cost: Any) -> None:
    record = json.loads((REPO / "benchmarks" / "results" / "paper_cost.json").read_text())["roofline"]
    peak, page = paper_cost.LARGE.peaks["bf16"], (REPO / "docs" / "speed.md").read_text()
    for share in paper_cost.SHARES:
        speed = record["images_per_second"][f"{share:.0%}"]
        assert speed * record["flop_per_image"] == pytest.approx(share * peak)
        assert f"{speed:,.0f}" in page
    assert record["flop_per_byte"] == pytest.approx(record["flop_per_image"] / record["bytes_per_image"])
    assert record["flop_per_byte_of_the_gpu"] == pytest.approx(peak / paper_cost.BANDWIDTH)
    said = f"{record['flop_per_byte']:.0f} operations for\neach byte it must move; memory would allow "
    assert f"{said}{record['flop_per_byte_of_the_gpu']:.0f}:" in page

"""The comparison of lossy with lossless data: what is paired, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from headwise.results.store import ResultStore
from made_results import run

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "lossy.py"


@pytest.fixture(scope="module")
def lossy():
    spec = importlib.util.spec_from_file_location("lossy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def finished(accuracy: float, is_lossy: bool, seed: int):
    one = run(name="lossy", accuracy=(accuracy,), seed=seed, variant=f"lossy{is_lossy}", recipe={"lossy": is_lossy})
    return dataclasses.replace(one, config={**one.config, "data": {"lossy": is_lossy}})


def test_pairs_of_one_seed(lossy, tmp_path, capsys) -> None:
    store = ResultStore(tmp_path)
    for args in ((80.0, False, 0), (77.0, True, 0), (82.0, False, 1), (81.0, True, 1), (50.0, False, 2)):
        one = finished(*args)
        store.put(one.key, one)
    assert lossy.main(["--root", str(tmp_path), "--json", str(tmp_path / "new" / "lossy.json")]) == 0
    assert "| svhn | 2 | 81.00 \u00b1 1.41 | 79.00 \u00b1 2.83 | -2.00 \u00b1 1.41 |" in capsys.readouterr().out
    (first, _) = json.loads((tmp_path / "new" / "lossy.json").read_text())["pairs"]
    assert first == {"dataset": "svhn", "seed": 0, "lossless": 80.0, "lossy": 77.0}


def test_nothing_to_compare(lossy, tmp_path, capsys) -> None:
    assert lossy.main(["--root", str(tmp_path)]) == 1
    assert "no pair of finished runs in" in capsys.readouterr().err

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwise.comparison.twins import markdown, pairs, spread
from headwise.results.records import PhaseResult, Result, RunKey
from headwise.results.store import ResultStore
from made_scripts import loaded


def result(
    method: str, seed: int, accuracy: float, off: int | None, rank: int = 8, variant: str | None = None
) -> Result:
    extra: dict[str, Any] = {}
    spec: dict[str, Any] = {"_target_": "m.BiLoRA", "rank": rank}
    if off is not None:
        active = [0] * off + [1] * (4 - off)
        spec["gate"] = {"count": off}
        extra = {
            "gate": {"mode": "heart", "count": off, "ratio": None, "budget": None, "scoring_seconds": 2.0},
            "heads": [{"stage": 0, "block": 0, "proj": "q", "active": active, "score": None}],
            "paper_bytes": 75,
        }
    phase = PhaseResult(
        label=method,
        accuracy=accuracy,
        num_tunable=1,
        num_head=1,
        stored_bytes=100 - 10 * (off or 0),
        seconds=20.0,
        epochs=10,
        method=spec,
        extra=extra,
    )
    identity = {"seed": seed, "method": spec}
    variant = variant or ("base" if off is None else f"ne{off}")
    return Result(key=RunKey("x", method, "svhn", variant, seed), identity=identity, phases=[phase])


def test_pairs_by_seed_and_by_everything_but_the_gate() -> None:
    results = [
        result("bi_lora", 0, 80.0, None),
        result("bi_lora", 1, 82.0, None),
        result("heart_lora", 0, 81.0, 1),
        result("heart_lora", 1, 82.5, 1),
        result("heart_lora", 0, 79.0, 1, rank=4, variant="ne1-r4"),
        result("other", 0, 85.0, 0, rank=4),
    ]
    found, notes = pairs(results)
    assert [(p.row, p.repeat[0], p.gated, p.plain) for p in found] == [
        ("heart_lora", 0, 81.0, 80.0),
        ("heart_lora", 1, 82.5, 82.0),
        ("heart_lora (r4)", 0, 79.0, 85.0),
    ]
    assert notes == ["Every row: ne1."]
    assert found[0].scoring == pytest.approx(1.0)
    assert (found[0].bytes, found[0].paper_bytes, found[0].plain_bytes) == (90, 75, 100)


def test_table() -> None:
    results = [result("bi_lora", 0, 80.0, None), result("bi_lora", 1, 82.0, None)]
    results += [result("heart_lora", 0, 81.0, 1), result("heart_lora", 1, 82.5, 1), result("heart_lora", 2, 70.0, 1)]
    *_, line = markdown(*pairs(results)).splitlines()
    assert line == (
        "| svhn | heart_lora (ne1) | 3 | 77.83 +- 6.83 (3) | 81.00 +- 1.41 (2) | +0.75 +- 0.35 (2) "
        "| 90 | 75 | 100 | 1.00 |"
    )


def test_what_differs_is_no_seed() -> None:
    results = [result("heart_lora", 0, 81.0, 1), result("heart_lora", 1, 82.5, 1), result("heart_lora", 1, 70.0, 2)]
    other = result("heart_lora", 2, 60.0, 1)
    other.identity["protocol"] = {"lr": 1.0}
    found, notes = pairs([*results, other])
    assert [line.split(" | ")[1:3] for line in markdown(found, notes).splitlines() if line.startswith("| svhn")] == [
        ["heart_lora (ne1)", "2"],
        ["heart_lora (ne1) [2]", "1"],
        ["heart_lora (ne2)", "1"],
    ]
    (note,) = notes
    assert "kept apart as heart_lora (ne1) [2]: protocol" in note
    assert markdown(found, notes).startswith(f"- {note}\n\n| dataset |")


def test_spread() -> None:
    assert spread([]) == ""
    assert spread([1.0], sign=True) == "+1.00"
    assert spread([1.0, 3.0]) == "2.00 +- 1.41 (2)"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = loaded("compare_twins")
    store = ResultStore(tmp_path)
    for made in (result("bi_lora", 0, 80.0, None), result("heart_lora", 0, 81.0, 1)):
        store.put(made.key, made)
    assert module.main(["x", "--root", str(tmp_path), "--out", str(tmp_path / "twins.md")]) == 0
    assert "| svhn | heart_lora (ne1) | 1 | 81.00 | 80.00 | +1.00 |" in (tmp_path / "twins.md").read_text()
    assert module.main(["y", "--root", str(tmp_path)]) == 1
    assert "no finished run of 'y'" in capsys.readouterr().err
    next(tmp_path.glob("x/heart_lora/*/*/*/result.json")).write_text("{")
    assert module.main(["x", "--root", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "seed-0/result.json is not a usable record" in captured.err
    assert "no finished run with a head off" in captured.err

"""Curves of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from headwise.report.pictures import learning_curves, score_map
from made_cases import each


def history(file: Path, epochs: int, loss: float) -> Path:
    lines = ["epoch,step,train_loss,lr,seconds"]
    lines += [f"{epoch},{15 * epoch},{loss / epoch},0.001,1.5" for epoch in range(1, epochs + 1)]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_phases_are_joined(tmp_path: Path) -> None:
    histories = [history(tmp_path / "a.csv", 3, 2.0), history(tmp_path / "b.csv", 1, 1.0)]
    learning_curves(histories, ["lora", "heads"], tmp_path)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows[0] == "phase,label,epoch,step,train_loss,lr,seconds"
    assert [row.split(",")[:3] for row in rows[1:]] == [
        ["1", "lora", "1"],
        ["1", "lora", "2"],
        ["1", "lora", "3"],
        ["2", "heads", "1"],
    ]
    with Image.open(tmp_path / "curve.png") as image:
        assert min(image.size) >= 400
        assert len(image.convert("RGB").getcolors(10**7)) > 10
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "b.csv", "curve.png", "metrics.csv"]


def test_numbers_without_pictures(tmp_path: Path) -> None:
    learning_curves([history(tmp_path / "a.csv", 2, 2.0)], ["lora"], tmp_path, draw=False)
    rows = [{"stage": 0, "block": 0, "proj": "q", "active": [1, 0], "score": [0.5, -0.5]}]
    score_map([rows], ["lora"], tmp_path, draw=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "heads.csv", "metrics.csv"]


def test_each_phase_needs_a_label(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        learning_curves([history(tmp_path / "a.csv", 1, 1.0)], [], tmp_path)


def test_score_map_of_layers_with_different_heads(tmp_path: Path) -> None:
    rows = [
        {"stage": 0, "block": 0, "proj": "q", "active": [1, 0], "score": [0.5, -0.25]},
        {"stage": 1, "block": 0, "proj": "q", "active": [1, 1, 0, 1], "score": [1.0, 2.0, -3.0, 0.0]},
        {"stage": 0, "block": 0, "proj": "v", "active": [0, 1], "score": None},
    ]
    score_map([None, rows], ["lora", "heads"], tmp_path)
    lines = (tmp_path / "heads.csv").read_text().splitlines()
    assert lines[0] == "phase,stage,block,proj,head,score,active"
    assert lines[1:4] == ["2,0,0,q,0,0.5,1", "2,0,0,q,1,-0.25,0", "2,1,0,q,0,1.0,1"]
    assert lines[-2:] == ["2,0,0,v,0,,0", "2,0,0,v,1,,1"]
    assert (tmp_path / "heads.png").stat().st_size > 1000


def test_no_score_map_without_a_gate(tmp_path: Path) -> None:
    score_map([None], ["lora"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@each(
    "text", ["", "epoch\nx\n", "epoch,step,train_loss,lr\n1,1,x,1\n", "epoch,step,train_loss,lr\n1,1,1\n", "\x00", '"']
)
def test_damaged_curves_of_a_phase_are_left_out(tmp_path: Path, text: str) -> None:
    whole, damaged = tmp_path / "a.csv", tmp_path / "b.csv"
    whole.write_text("epoch,step,train_loss,lr\n1,4,0.5,0.1\n")
    damaged.write_text(text)
    learning_curves([whole, damaged], ["=a,b", "c"], tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == 'phase,label,epoch,step,train_loss,lr\n1,"\'=a,b",1,4,0.5,0.1\n'

"""A checkpoint that cannot be read is set aside and never stops a phase; leftovers of killed writers are removed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import HEADS, LORA, RECIPE, after_epoch, folder_of, quiet, rows, run, timeless, whole  # noqa: F401

from headwise.errors import CheckpointError
from headwise.methods.lora import LoRA
from headwise.results.records import PhaseResult, ResultError
from headwise.results.store import PhaseStore
from headwise.training.address import CHECKPOINT, TENSORS, read_tensors, set_aside
from headwise.updates.gate import Gate
from made_cases import each


def flipped(data: bytes, place: float) -> bytes:
    at = int(len(data) * place)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def largest(data: bytes) -> int:
    """Where the bytes of a stored tensor begin that is not empty."""
    return data.index(b"state_dict") if b"state_dict" in data else len(data) // 3


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"not a checkpoint\n",
    "one bit of the records": lambda data: flipped(data, largest(data) / len(data)),
    "the end is missing": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "a pickle": lambda data: b"cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(damage, whole, tmp_path, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        patch.setattr(*after_epoch(RuntimeError))
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path)
    file = folder_of(tmp_path) / CHECKPOINT
    broken = DAMAGES[damage](file.read_bytes())
    file.write_bytes(broken)
    said: list[str] = []
    _, (result,) = run(tmp_path, said=said)
    assert timeless(result) == timeless(whole[1])
    assert rows(tmp_path) == rows(whole[0])
    (line,) = [line for line in said if "damaged" in line]
    assert str(file) in line
    assert "it starts again from its beginning" in line
    assert (folder_of(tmp_path) / f"{CHECKPOINT}.damaged").read_bytes() == broken
    stored, expected = (read_tensors(folder_of(root) / TENSORS) for root in (tmp_path, whole[0]))
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path):
    """torch itself loads such a file without a word."""
    sound = tmp_path / "sound.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(64.0)}}, sound)
    data = sound.read_bytes()
    start = data.index(torch.arange(64.0).numpy().tobytes())
    assert set_aside(sound) is None
    for offset in range(0, 256, 5):
        file = tmp_path / "last.ckpt"
        file.write_bytes(data[: start + offset] + bytes([data[start + offset] ^ 4]) + data[start + offset + 1 :])
        assert set_aside(file) is not None
        assert not file.exists()
    assert set_aside(tmp_path / "absent.ckpt") is None


def test_leftovers_of_killed_writers_are_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(*after_epoch(RuntimeError))
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path)
    folder = folder_of(tmp_path)
    leftovers = [folder / name for name in (".last.4711.0123abcd.tmp.ckpt", ".metrics.12.89abcdef.tmp.csv")]
    mine = folder / ".notes.tmp"
    for file in (*leftovers, mine):
        file.write_bytes(b"half")
    run(tmp_path)
    assert not any(file.exists() for file in leftovers)
    assert mine.exists()


def test_a_damaged_shared_warm_up_is_trained_again(tmp_path: Path) -> None:
    gated = LoRA(label="gated", rank=4, gate=Gate(count=1, warmup=1).spec())
    other = replace(gated, gate=Gate(count=2, warmup=1).spec())
    run(tmp_path / "calm", (other,))
    run(tmp_path / "hit", (gated,))
    (trunk,) = [file.parent for file in (tmp_path / "hit" / "phases").glob(f"*/{CHECKPOINT}")]
    (trunk / CHECKPOINT).write_bytes(b"")
    said: list[str] = []
    _, (result,) = run(tmp_path / "hit", (other,), said=said)
    stored, expected = (tmp_path / root / "phases" / result.fingerprint / TENSORS for root in ("hit", "calm"))
    assert stored.read_bytes() == expected.read_bytes()
    assert any("damaged" in line and "trained again" in line for line in said)


def bits_of(file: Path) -> list[int]:
    """Places of a tensors file: in its header, in the first tensor, in the middle, in the last byte."""
    size = file.stat().st_size
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    return [header // 2, header, (header + size) // 2, size - 1]


def flip(file: Path, place: int) -> None:
    """Another file in its place: those that share its blocks stay."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.unlink()
    file.write_bytes(bytes(data))


@each("place", range(4))
def test_a_flipped_bit_of_a_stored_phase_is_never_trained_on(place: int, tmp_path: Path) -> None:
    """Issue 14, A3: a second phase, and the same again, are refused; nothing is left of the second."""
    short = replace(RECIPE, epochs=1)
    _, (first,) = run(tmp_path, [LORA], short)
    file = folder_of(tmp_path) / TENSORS
    assert first.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    run(tmp_path, [LORA], short)
    flip(file, bits_of(file)[place])
    for methods in ([LORA], [LORA, HEADS]):
        with pytest.raises(CheckpointError, match=r"phase\.safetensors .*delete its folder and run again"):
            run(tmp_path, methods, short)
    assert len(list(tmp_path.glob("phases/*/phase.json"))) == 1


def test_a_phase_of_a_record_without_a_hash_is_taken_as_it_is(tmp_path: Path) -> None:
    short = replace(RECIPE, epochs=1)
    _, (first,) = run(tmp_path, [LORA], short)
    file = folder_of(tmp_path) / "phase.json"
    record = json.loads(file.read_text())
    del record["sha256"]
    file.write_text(json.dumps(record))
    said: list[str] = []
    _, (again,) = run(tmp_path, [LORA], short, said=said)
    assert again == replace(first, sha256=None)
    assert any("already trained" in line for line in said)


def test_damaged_phases_of_another_store_are_not_taken_over(tmp_path: Path) -> None:
    short = replace(RECIPE, epochs=1)
    for name in ("old", "again"):
        run(tmp_path / name, [LORA], short)
    before = {file.name: file.read_bytes() for file in folder_of(tmp_path / "old").iterdir() if file.is_file()}
    file = folder_of(tmp_path / "again") / TENSORS
    flip(file, bits_of(file)[2])
    with pytest.raises(CheckpointError, match=r"phase\.safetensors is damaged: .*resume=force"):
        PhaseStore(tmp_path / "old").adopt(PhaseStore(tmp_path / "again"))
    assert before == {file.name: file.read_bytes() for file in folder_of(tmp_path / "old").iterdir() if file.is_file()}


@each("bad", ["", "abc", "A" * 64, 5])
def test_a_hash_is_a_hash(bad: Any, tmp_path: Path) -> None:
    record = {"label": "x", "accuracy": 1.0, "num_tunable": 1, "num_head": 1, "stored_bytes": 1, "seconds": 1.0}
    with pytest.raises(ResultError, match=r"sha256 of phase 'x' must be 64 hex digits"):
        PhaseResult.from_json({**record, "sha256": bad}, tmp_path / "phase.json")

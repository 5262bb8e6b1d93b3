"""Results made by hand, for the tests of everything that reads them."""

from __future__ import annotations

from headwise.results import PhaseResult, Result, RunKey

KEY = RunKey("runs", "lora", "svhn", "base", 0)


def phase(label: str = "lora", accuracy: float | None = 91.25, **fields) -> PhaseResult:
    needed = {"num_tunable": 294912, "num_head": 7690, "stored_bytes": 1179648, "seconds": 12.5}
    return PhaseResult(label=label, accuracy=accuracy, **{**needed, **fields})


def result(key: RunKey = KEY, rank: int = 8, **fields) -> Result:
    identity = {"seed": key.seed, "method": {"rank": rank}, "dataset": {"name": key.dataset}}
    phases = [phase(num_test=26032, epochs=100, steps=1600, method={"_target_": "m.LoRA", "rank": rank})]
    return Result(key=key, identity=identity, **{"phases": phases, **fields})


def full() -> Result:
    return result(
        config={"root": "outputs", "method": {"rank": 8, "lr": 1.0}},
        labels=["synthetic"],
        provenance={"weights": {"sha256": "ab"}},
        versions={"torch": "2.14.1", "timm": None},
        git={"commit": "0" * 40, "dirty": True},
        machine={"cores": 2},
        request="r",
        phases=[
            phase("warm-up", None, num_test=None, train_loss=0.5),
            phase("heads", 92, active_heads=[9, 8], images_per_second=100.5, extra={"x": [1]}),
        ],
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

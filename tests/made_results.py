"""Results made by hand, for the tests of everything that reads them."""

from __future__ import annotations

import dataclasses

from headwise.comparison.tables import GROUP_SIZES
from headwise.results.store import PhaseResult, Result, RunKey

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
            phase("heads", 92, active_heads=[9, 8], images_per_second=100.5, peak_memory=2**30, extra={"x": [1]}),
        ],
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


WEIGHTS = {"name": "vit_b16", "sha256": "ab"}
PROTOCOL = {"name": "strict", "epochs": 100, "lr": 1e-3}
LORA = {"_target_": "headwise.methods.lora.LoRA", "rank": 8}
TASKS = [(f"{group[:3]}{i}", group) for group, size in GROUP_SIZES.items() for i in range(size)]


def run(method="lora", dataset="svhn", seed=0, *, accuracy=(90.0,), group="natural", epochs=100, **fields) -> Result:
    """A run of one tested phase per accuracy; None gives a phase without a test."""
    key = RunKey(fields.pop("name", "runs"), method, dataset, fields.pop("variant", "base"), seed)
    provenance = {
        "weights": fields.pop("weights", WEIGHTS),
        "protocol": fields.pop("protocol", PROTOCOL),
        "data": {"fingerprint": fields.pop("data", f"data of {dataset}"), "source": "folder", "labels": []},
    }
    spec = fields.pop("spec", LORA)
    phases = [
        phase(
            f"p{i}", value, epochs=epochs, num_tunable=100 * (i + 1), stored_bytes=10, method={**spec, "label": method}
        )
        for i, value in enumerate(accuracy)
    ]
    identity = {"seed": seed, "method": fields.pop("recipe", {"m": method, "e": epochs}), "provenance": str(provenance)}
    config = {"dataset": {"name": dataset, "group": group}}
    return Result(key=key, identity=identity, config=config, phases=phases, provenance=provenance, **fields)


FEWSHOT = ("aircraft", "cars196", "flowers102", "food101", "pets")


def few(method="lora", dataset="pets", number=1, draw=0, *, accuracy=90.0, **fields) -> Result:
    """A run on a few-shot set, as a sweep over shots and draws leaves it: other images for each."""
    variant = fields.pop("variant", f"draw{draw}-shots{number}")
    data = f"{dataset} {number} {draw}"
    made = run(method, dataset, accuracy=(accuracy,), group="fewshot", variant=variant, data=data, **fields)
    made.identity["data"] = {"fingerprint": data}
    made.identity["provenance"] = ""
    made.config["dataset"] |= {"shots": number, "draw": draw}
    return made


def gated(method, seed, accuracy, off, mode="heart", **gate) -> Result:
    """A run with heads off, whose twin without a gate is one of the recipe ``bi``."""
    made = run(method, seed=seed, accuracy=(accuracy,), variant=f"ne{off}", recipe={"m": "bi"})
    spec = {**LORA, "gate": {"mode": mode, "count": off}}
    rows = [
        {"stage": 0, "block": block, "proj": proj, "active": [0] * off + [1] * (4 - off), "score": scores}
        for block in range(3)
        for proj in "qv"
        for scores in ([[0.5, -0.25, 0.125, 0.0]] if mode == "heart" else [None])
    ]
    full = {"mode": mode, "score": "taylor_neg", "scope": "global", "count": off, "budget": None, **gate}
    extra = {"gate": full, "heads": rows, "paper_bytes": 75}
    return dataclasses.replace(made, phases=[dataclasses.replace(made.phases[0], method=spec, extra=extra)])


def masked_suite(seeds=(0, 1)) -> list[Result]:
    """Heads off by score, one and two, with all controls."""
    made = []
    for seed in seeds:
        plain = run("bi_lora", seed=seed, accuracy=(90.0,), recipe={"m": "bi"})
        made.append(dataclasses.replace(plain, phases=[dataclasses.replace(plain.phases[0], method=LORA)]))
        for off in (1, 2):
            made.append(gated("heart_lora", seed, 90.5 - off, off))
            made.append(gated("heart_random", seed, 88.0 - off, off, "random"))
    return made


def suite(method="lora", seeds=(0, 1), skip=(), **fields):
    return [
        run(method, task, seed, group=group, accuracy=(50.0 + place + seed,), **fields)
        for seed in seeds
        for place, (task, group) in enumerate(TASKS)
        if (task, seed) not in skip
    ]


VIT = {"timm_name": "vit_base_patch16_224.orig_in21k", "img_size": 224}


def published_run(method="lora", dataset="svhn", seed=0, *, accuracy=(90.0,), **fields) -> Result:
    """A run that may stand beside the papers' rows; ``dataset`` is a name, or the fields of a task."""
    task = dataset if isinstance(dataset, dict) else {"name": dataset, "group": fields.pop("group", "natural")}
    backbone, spec = fields.pop("backbone", VIT), {"rank": 8, "fused": False, **fields.pop("base", {})}
    protocol = {"name": "strict", "epochs": 100, "normalize": "model", "resize": "pil_bicubic", "select": "last"}
    protocol |= {"schedule": "cosine", **fields.pop("protocol", {})}
    made = run(
        method,
        task["name"],
        seed,
        accuracy=accuracy,
        spec=fields.pop("spec", spec),
        weights={**backbone, "content": "hub:x"},
        protocol=protocol,
        **fields,
    )
    made.identity["backbone"] = dict(backbone)
    made.config["dataset"] = dict(task)
    made.provenance["data"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    return made

"""How tables scale: time and memory of scripts/make_tables.py over thousands of finished runs.

Results are written as runs leave them (their size on disk is printed): every method of a few families with Phase 2 and
controls, on the 19 tasks, three seeds each. The command then runs as a process of its own, from cold Python to the
written file, for every format. Exits with status 1 if a format takes 10 s or 500 MB or more.

Run: python benchmarks/table_scale.py --json benchmarks/results/table_scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from headwise.cli import script
from headwise.commands.arguments import Parser, Whole, record_file
from headwise.errors import HeadwiseError
from headwise.results import provenance
from headwise.results.fingerprint import canonical, fingerprint
from headwise.results.records import PhaseResult, Result, RunKey
from headwise.storage import atomic

REPO = Path(__file__).resolve().parent.parent
MOST_SECONDS, MOST_MEGABYTES = 10.0, 500.0
"""What is promised for 2,000 results."""
SUFFIXES = ("md", "tex", "csv", "json")
SEEDS = (0, 1, 2)
FAMILY = 4 * 19 * len(SEEDS)
"""Results of one family: four rows on all tasks."""
WRAPPER = """
import pathlib, runpy, sys
record, script, *rest = sys.argv[1:]
sys.argv = [script, *rest]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        pathlib.Path(record).write_text(status.read_text())
"""
"""Runs a script and leaves its own memory record: what the system reports to the parent may be the parent's memory."""
NAME = "scale"


def write(root: Path, count: int) -> int:
    """Write `count` results below `root`; returns their bytes."""
    total = 0
    for result, _ in zip(_results(), range(count), strict=False):
        text = json.dumps(canonical(result.to_json(), merge=False), indent=2)
        file = result.key.path(root) / "result.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        total += file.write_text(text, encoding="utf-8")
    return total


def _results() -> Iterator[Result]:
    """Families without end: a first method, two phases over it, and both controls."""
    tasks = [yaml.safe_load(file.read_text()) for file in sorted((REPO / "conf" / "dataset").glob("*.yaml"))]
    rng = random.Random(0)
    family = 0
    while True:
        first = f"first{family}"
        for kind in (first, f"hs_{first}", f"{first}_long", f"{first}_then_lora"):
            for task in tasks:
                for seed in SEEDS:
                    yield _result(kind, first, family, task, seed, rng)
        family += 1


def _result(kind: str, first: str, family: int, task: dict[str, Any], seed: int, rng: random.Random) -> Result:
    protocol = yaml.safe_load((REPO / "conf" / "protocol" / "strict.yaml").read_text())
    backbone = yaml.safe_load((REPO / "conf" / "backbone" / "vit_b16_in21k.yaml").read_text())
    spec = {"_target_": "headwise.methods.lora.LoRA", "targets": ["q", "v"], "rank": family + 1, "scale": 1.0}
    second = {"_target_": "headwise.methods.hs_lora.HeadLoRA", "targets": ["q", "v"], "rank": 3}
    start = round(70 + 20 * random.Random(f"{first} {task['name']} {seed}").random(), 4)
    specs = {first: [spec], f"hs_{first}": [spec, second], f"{first}_long": [spec]}
    methods = specs.get(kind, [spec, {**second, "_target_": "headwise.methods.hs_lora.MatchedLoRA"}])
    phases = [
        PhaseResult(
            label=f"phase{place}",
            accuracy=start if place == 0 and not kind.endswith("_long") else round(start + 10 * rng.random(), 4),
            num_tunable=294912,
            num_head=769 * task["num_classes"],
            stored_bytes=1179648,
            seconds=100.0,
            num_test=task["num_test"],
            epochs=200 if kind.endswith("_long") else 100,
            steps=1500,
            fingerprint=fingerprint({"task": task["name"], "seed": seed, "specs": methods[: place + 1]}),
            method=method,
            train_loss=0.1,
            extra={"plan": None, "warmup_steps": 150},
        )
        for place, method in enumerate(methods)
    ]
    identity = {
        "method": {"parts": methods, "epochs": phases[0].epochs},
        "backbone": {**backbone, "weights": f"hub:{backbone['timm_name']}"},
        "dataset": {"name": task["name"], "num_classes": task["num_classes"]},
        "data": {"fingerprint": fingerprint({"task": task["name"]}, 64)},
        "protocol": protocol,
        "trainer": {"accelerator": "gpu", "threads": 1, "attention": "timm"},
        "seed": seed,
    }
    return Result(
        key=RunKey(NAME, kind, task["name"], "base", seed),
        identity=identity,
        phases=phases,
        config={"dataset": task, "protocol": protocol, "backbone": backbone, "method": {"label": kind}, "seed": seed},
        provenance={
            "weights": {"name": backbone["name"], "timm_name": backbone["timm_name"], "content": "ab" * 32},
            "protocol": protocol,
            "data": {**identity["data"], "source": "tfds", "mean": [0.5] * 3, "std": [0.5] * 3, "img_size": 224},
        },
        versions=provenance.versions(),
        machine={"cores": 2},
    )


def measure(root: Path, out: Path, extra: Sequence[str] = ()) -> dict[str, float]:
    """Run the command once: wall and processor seconds, and its largest resident set, MB (1e6 bytes)."""
    script, status = REPO / "scripts" / "make_tables.py", out.with_suffix(".status")
    arguments = [str(script), NAME, "--root", str(root), "--out", str(out), *extra]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", WRAPPER, str(status), *arguments])
    _, code, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise HeadwiseError(f"{' '.join(arguments)} failed with status {process.returncode}")
    peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    if status.exists():
        peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1.024e-3
    return {
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "megabytes": round(peak, 1),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Whole(FAMILY, 1_000_000), default=2000, help="how many (2000)")
    parser.add_argument("--json", type=record_file, help="record to write")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "outputs"
        size = write(root, options.results)
        print(f"{options.results} results, {size / 1e6:.1f} MB of JSON")
        found = {suffix: measure(root, Path(folder) / f"table.{suffix}") for suffix in SUFFIXES}
        rows = ("hs_first0", "first0_long")
        found["compare"] = measure(root, Path(folder) / "compare.md", ("--compare", *rows))
    for name, row in found.items():
        print(f"{name:<8}{row['wall_seconds']:7.2f} s{row['cpu_seconds']:8.2f} s cpu{row['megabytes']:8.1f} MB")
    if options.json:
        machine = provenance.machine(threads=int(os.environ.get("OMP_NUM_THREADS", 0)) or None)
        facts = {
            "results": options.results,
            "json_bytes": size,
            "load": [round(x, 1) for x in os.getloadavg()],
            "nice": os.nice(0),
        }
        record = {**facts, "measured": found, "machine": machine}
        atomic.write_json(options.json, {**record, "versions": provenance.versions(("headwise", "numpy", "pandas"))})
    slow = [row for row in found.values() if row["wall_seconds"] >= MOST_SECONDS or row["megabytes"] >= MOST_MEGABYTES]
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

"""How much processor time runs cost beside their training: start, sweeps in one process, composition, finished sweeps.

Everything is train.py in processes of its own, and what is measured is their processor time, all threads together: a
shared machine changes it less than the clock. With `--against` another checkout (a `git worktree` of an older commit)
does the same, by turns; its figures come first in the file.

    run          protocol=smoke with vit_nano on drawn images: some tenths of a second of training
    sweep        20 such runs with -m in one process, against 20 processes
    composition  what a sweep of the largest experiment does before it launches its first run
    repeated     the sweep again, when all its runs are finished

Run: python benchmarks/start_time.py --json benchmarks/results/start_time.json
     python benchmarks/start_time.py --against OTHER --pairs 3
     python benchmarks/start_time.py --pairs 1 --only run    # does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from headwise.cli import script
from headwise.commands.arguments import Parser, Whole, old_folder, record_file
from headwise.errors import HeadwiseError
from headwise.results import provenance
from headwise.runs.jobs import requests_of
from headwise.storage import atomic

REPO = Path(__file__).resolve().parent.parent
SMALL = ["dataset=svhn", "data=synthetic", "backbone=vit_nano", "protocol=smoke", "trainer=cpu", "trainer.threads=1"]
METHODS, SEEDS = ("lora", "head_lora", "bi_lora", "linear"), range(5)
GOALS = {"run": 4.0, "further run": 0.5, "sweep over single": 0.5}
"""Seconds of a run as a whole process, and of each after the first in one process; a sweep over as many processes."""
PLANNED = """
import runpy, sys
from headwise.runs.sweep import Sweep
Sweep.run = lambda sweep: sweep.validate([sweep._overrides(request) for request in sweep.jobs]) or []
sys.argv = ["train.py", *sys.argv[1:]]
sys.path.insert(0, ".")
runpy.run_path("train.py", run_name="__main__")
"""
"""A sweep that ends before it launches anything."""


def spent(repo: Path, *words: str, code: str | None = None) -> float:
    """Processor seconds of one process of train.py in a checkout, its children included."""
    command = [sys.executable, *(["train.py"] if code is None else ["-c", code]), *words]
    environment = {**os.environ, "PYTHONPATH": str(repo / "src"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's Python compiles the code once and keeps it
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise HeadwiseError(f"{' '.join(words)} in {repo}: {done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(repo: Path, folder: Path) -> dict[str, float]:
    """One small run."""
    return {"run": spent(repo, *SMALL, "method=lora", f"root={folder}")}


def sweep(repo: Path, folder: Path) -> dict[str, float]:
    """Many small runs in one process, again when they are finished, and each in a process of its own."""
    words = [*SMALL, f"method={','.join(METHODS)}", f"seed={','.join(map(str, SEEDS))}", f"root={folder / 'sweep'}"]
    together = spent(repo, "-m", *words)
    repeated = spent(repo, "-m", *words)
    root = f"root={folder / 'single'}"
    single = sum(spent(repo, *SMALL, f"method={m}", f"seed={seed}", root) for m in METHODS for seed in SEEDS)
    count = len(METHODS) * len(SEEDS)
    further = (together - single / count) / (count - 1)
    figures = {"sweep": together, "repeated": repeated, "single": single, "further run": further}
    return {**figures, "sweep over single": together / single}


def composition(repo: Path, folder: Path) -> dict[str, float]:
    """All that comes before the first launch of the largest experiment."""
    words = ("-m", f"experiment={largest()[0]}", "data=synthetic", f"root={folder}")
    return {"composition": spent(repo, *words, code=PLANNED)}


def largest() -> tuple[str, int]:
    """The experiment of conf/ with most runs, and their number."""
    names = sorted(file.stem for file in (REPO / "conf" / "experiment").glob("*.yaml"))
    counts = {name: len(requests_of(REPO / "conf", [f"experiment={name}"])[1]) for name in names}
    return max(counts.items(), key=lambda item: item[1])


WHAT: dict[str, Callable[[Path, Path], dict[str, float]]] = {"run": run, "sweep": sweep, "composition": composition}


def measured(what: Sequence[str], repos: dict[str, Path], pairs: int) -> dict[str, dict[str, list[float]]]:
    """By checkout and figure, its values; the checkouts by turns, since a machine's speed changes."""
    values: dict[str, dict[str, list[float]]] = {name: {} for name in repos}
    for kind in what:
        for pair in range(pairs if kind == "run" else 1):
            for name, repo in sorted(repos.items(), reverse=bool(pair % 2)):
                with tempfile.TemporaryDirectory(prefix="start-time-") as folder:
                    for figure, value in WHAT[kind](repo, Path(folder)).items():
                        values[name].setdefault(figure, []).append(round(value, 3))
                        print(f"{name}: {figure} {value:.2f}", flush=True)
    return values


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=old_folder, help="another checkout, measured by turns with this one")
    parser.add_argument("--pairs", type=Whole(1, 100), default=3, help="times that the small run is measured (3)")
    parser.add_argument("--only", choices=WHAT, action="append", help="measure only this; may be repeated")
    parser.add_argument("--json", type=record_file, help="also write the times")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit status 1 if a goal is missed."""
    options = parse(arguments)
    repos = {"before": options.against.resolve()} if options.against else {}
    repos["after"] = REPO
    load = os.getloadavg()[0]
    values = measured(options.only or list(WHAT), repos, options.pairs)
    medians = {figure: statistics.median(seen) for figure, seen in values["after"].items()}
    missed = [figure for figure, goal in GOALS.items() if medians.get(figure, 0.0) > goal]
    for figure in missed:
        print(f"{figure}: {medians[figure]:.2f}, goal {GOALS[figure]}")
    if options.json:
        experiment, jobs = largest()
        record = {
            "machine": provenance.machine("cpu", 1) | {"load": [load, os.getloadavg()[0]]},
            "versions": provenance.versions(),
            "commits": {name: (provenance.git_state(repo) or {}).get("commit") for name, repo in repos.items()},
            "sweep": {"runs": len(METHODS) * len(SEEDS)},
            "composition": {"experiment": experiment, "jobs": jobs},
            "processor_seconds": values,
            "goals": GOALS,
        }
        atomic.write_text(options.json, json.dumps(record, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kill a sweep of two workers with SIGKILL at ten seeded moments, run it again each time, and compare all it leaves.

python benchmarks/kill_sweep.py --json docs/results/kill.json
Tables and stored tensors must be byte-identical to those of a sweep that nobody disturbed, and results the same but
for times: tensors right after each kill, as far as they are there, and everything at the end. Each launcher has its ten
kills, the last one while a table is written. With pair the workers are two commands that share a folder; any other is
one of conf/hydra/launcher.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from headwise.cli import earlier_record, script
from headwise.commands.arguments import SEED, Parser, Whole, out_folder, record_file
from headwise.errors import ConfigError
from headwise.results import provenance
from headwise.storage import atomic, claims, plain

REPO = Path(__file__).parents[1]
SWEEP = [
    "-m",
    "method=lora,hs_lora,heart_lora,adalora",
    "seed=0,1",
    "backbone=vit_tiny_random",
    "dataset=dsprites_loc",
    "data=synthetic",
    "protocol=smoke",
    "protocol.epochs=5",
    "protocol.train_images=128",
    "protocol.test_images=64",
    "rank=r4",
    "ne=ne1",
    "trainer=cpu",
    "trainer.threads=1",
]
MAX_STARTS = 40
LAUNCHERS = {"pair": None, "processes": "hydra_joblib_launcher", "ray_local": "hydra_ray_launcher"}
"""Those that are tried, and what has to be installed."""
PATIENCE = 120.0
"""Seconds within which every process of a killed command must be gone: ours go at once, agents of Ray need a minute."""
TIMES = ("seconds", "images_per_second", "peak_memory", "created", "scoring_seconds", "machine")
"""What a result says of the machine and the clock."""
_LISTED = plain.each(plain.fields({"launcher": plain.text}))
RECORD = plain.fields({"sweep": plain.each(plain.text), "kills": _LISTED, "launchers": _LISTED})
"""What is read of an earlier record."""
TABLE = """
import runpy, sys, time
from headwise.storage import atomic

def flush(path):
    print("writing", flush=True)
    time.sleep(600)

atomic.flush = flush
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass
class Moment:
    """When to kill, whom, and what was hit.

    Attributes:
        kind: what should be going on.
        line: of the output after which to kill; a pattern.
        method: whose run is to be hit.
        whole: every process of the sweep, or only the worker of that run.
        delay: seconds after the line.
        hit: what the killed processes held, and when.
        tensors: stored ones right after the kill, by file; hashes.
    """

    kind: str
    line: str
    method: str
    whole: bool
    delay: float = 0.0
    hit: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)

    def record(self, launcher: str, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
        """What is told of the kill.

        Args:
            launcher: of the sweep.
            before: hashes of every file of the sweep that nobody disturbed.
            after: those of the killed one at its end.
        """
        folders = sorted(folder for held in self.hit["held"].values() for folder in held)
        concerned = [name for name in before if not folders or any(name.startswith(f"{f}/") for f in folders)]
        return {
            "launcher": launcher,
            "phase": self.kind,
            "second": self.hit["second"],
            "after_line": self.hit["after"],
            "processes_killed": self.hit["killed"],
            "seconds_until_all_are_gone": self.hit.get("gone_after"),
            "held": folders,
            "tensor_files_then": len(self.tensors),
            "tensors_byte_equal": all(before.get(name) == sha for name, sha in self.tensors.items()),
            "files_of_what_was_hit": len(concerned),
            "rerun_equal": all(after.get(name) == before[name] for name in concerned),
        }


MOMENTS = [
    ("start of the sweep", r"to do$", "", True),
    ("phase 1", r"phase 1/[12] lora: epoch 3/", "lora", False),
    ("phase 2", r"phase 2/2 head_lora: epoch 1/", "hs_lora", False),
    ("phase 2", r"phase 2/2 head_lora: epoch 2/", "hs_lora", True),
    ("phase 2", r"phase 2/2 head_lora: epoch 4/", "hs_lora", False),
    ("Heart-LoRA after its mask", r"phase 1/1 heart_lora: epoch 2/", "heart_lora", True),
    ("Heart-LoRA after its mask", r"phase 1/1 heart_lora: epoch 3/", "heart_lora", False),
    ("AdaLoRA", r"phase 1/1 adalora: epoch 2/", "adalora", False),
    ("AdaLoRA", r"phase 1/1 adalora: epoch 4/", "adalora", True),
]


class Commands:
    """The processes of one sweep, and what they print.

    Args:
        root: of the results.
        launcher: see the command line.
    """

    def __init__(self, root: Path, launcher: str) -> None:
        self.root, self.launcher = root, launcher
        self.lines: queue.Queue[tuple[int, str]] = queue.Queue()
        self.running: dict[int, subprocess.Popen[str]] = {}
        self.starts = 0
        self.log = root.parent / f"{root.name}.log"

    @property
    def wanted(self) -> int:
        """Processes that make two workers."""
        return 2 if self.launcher == "pair" else 1

    def start(self) -> None:
        """Start what is missing."""
        while len(self.running) < self.wanted:
            self.starts += 1
            if self.starts > MAX_STARTS:
                raise SystemExit(f"the sweep was started {MAX_STARTS} times and did not end; see {self.log}")
            options = [] if self.launcher == "pair" else [f"hydra/launcher={self.launcher}"]
            process = run(["train.py", *SWEEP, f"root={self.root}", *options], self.root)
            self.running[process.pid] = process
            threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        with process.stdout or io.StringIO() as lines:
            for line in lines:
                self.lines.put((process.pid, line.rstrip("\n")))

    def next(self) -> str | None:
        """The next line, or None if there is none for a moment."""
        try:
            pid, line = self.lines.get(timeout=0.1)
        except queue.Empty:
            return None
        with self.log.open("a") as log:
            log.write(f"{pid}: {line}\n")
        return line

    def ended(self) -> list[int]:
        """Exit statuses of processes that are gone; they are forgotten."""
        gone = [pid for pid, process in self.running.items() if process.poll() is not None]
        return [self.running.pop(pid).returncode for pid in gone]

    def kill(self, pids: Sequence[int]) -> None:
        """SIGKILL, and forget those of our own."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            if pid in self.running:
                self.running.pop(pid).wait()

    def holders(self) -> dict[int, list[str]]:
        """What is claimed by living processes: runs and phases below the root, by process."""
        held: dict[int, list[str]] = {}
        for folder in sorted({file.parent for file in self.root.rglob("claim-*")}):
            state, holder = claims.standing(folder)
            if state == "held":
                held.setdefault(int(holder["pid"]), []).append(folder.relative_to(self.root).as_posix())
        return held

    def orphans(self) -> list[int]:
        """Processes of commands that are gone which still live when patience is over."""
        until = time.monotonic() + PATIENCE
        while (found := self._others()) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _others(self) -> list[int]:
        """Living processes that work below the root and were not started here."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) in self.running:
                continue
            try:
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"KILL_SWEEP={self.root}".encode() in environment.split(b"\0") and state not in "ZX":
                found.append(int(entry.name))
        return found


def run(command: Sequence[str], root: Path) -> subprocess.Popen[str]:
    """A Python process of the repository whose output can be read; the environment marks it and what it starts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HEADWISE_CACHE": f"{root}-cache", "KILL_SWEEP": str(root)}
    environment |= {"RAY_DEDUP_LOGS": "0", "NO_COLOR": "1"}  # every line is seen, at once
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPO,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def sweep(root: Path, launcher: str, moments: Sequence[Moment] = ()) -> dict[str, Any]:
    """Run the sweep to its end, with a kill at each of `moments` and, if there are any, one of a table.

    Returns:
        What happened, as plain values.
    """
    began = time.monotonic()
    commands = Commands(root, launcher)
    waiting, hit = list(moments), []
    orphans: list[int] = []
    failed: list[int] = []
    commands.start()
    while commands.running or waiting:
        line = commands.next()
        moment = next((m for m in waiting if line is not None and re.search(m.line, line)), None)
        if moment is not None:
            time.sleep(moment.delay)
            held = commands.holders()
            mine = [pid for pid, folders in held.items() if any(f"runs/{moment.method}/" in f for f in folders)]
            victims = list(commands.running) if moment.whole else mine[:1]
            if moment.method and not mine:
                continue  # that run was over before the signal; the line comes again with the other seed
            commands.kill(victims)
            waiting.remove(moment)
            place = {str(pid): held.get(pid, []) for pid in {*victims, *mine}}
            moment.hit = {"second": round(time.monotonic() - began, 1), "killed": len(victims), "held": place}
            moment.hit["after"] = line
            moment.tensors = tensors(root)
            hit.append(moment)
            print(f"{launcher} {len(hit)}: {moment.kind}: killed {victims} after {line!r}, {place}", flush=True)
            if moment.whole:
                killed = time.monotonic()
                orphans += commands.orphans()
                moment.hit["gone_after"] = round(time.monotonic() - killed, 1)
            commands.start()
        statuses = commands.ended()
        if any(statuses):  # a launcher gave up, because one of its workers was killed
            failed += [status for status in statuses if status]
            commands.start()
        elif waiting and not commands.running:
            raise SystemExit(f"the sweep ended before {[m.kind for m in waiting]} came; see {commands.log}")
    if moments:
        hit.append(table_moment(root, began))
        print(f"{len(hit)}: {hit[-1].kind}: {hit[-1].hit}", flush=True)
    orphans += commands.orphans()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "starts": commands.starts,
        "failed_statuses": failed,
        "orphans": orphans,
        "moments": hit,
    }


def table_moment(root: Path, began: float) -> Moment:
    """Kill a process while it writes a table that is already there; the old one must be left whole."""
    out = root / "early.md"
    arguments = ["scripts/make_tables.py", "--root", str(root), "--out", str(out)]
    wait_for(run(arguments, root))
    before = out.read_bytes()
    with run(["-c", f"import sys; sys.argv = sys.argv[1:]\n{TABLE}", *arguments], root) as process:
        for line in process.stdout or ():
            if line.strip() == "writing":
                break
        parts = sorted(path.name for path in root.glob(".early.*"))
        process.kill()
    if out.read_bytes() != before or not parts:
        raise SystemExit(f"the table was not whole after a kill, or none was being written: {parts}")
    hit = {"second": round(time.monotonic() - began, 1), "killed": 1, "held": {}, "after": "writing"}
    return Moment("a table is written", line="writing", method="", whole=False, hit=hit, tensors=tensors(root))


def wait_for(process: subprocess.Popen[str]) -> None:
    """Wait for a process that must succeed."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)


def tensors(root: Path) -> dict[str, str]:
    """Hashes of the stored tensors of every run and phase, by place below the root."""
    files = sorted(path for path in root.glob("*/**/*.safetensors") if not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sums(root: Path) -> dict[str, str]:
    """Hashes of the tables, of every stored tensor file, and of every result without its times."""
    wait_for(
        run(["scripts/make_tables.py", "--root", str(root), "--out", f"{root}.md", "--json", f"{root}.json"], root)
    )
    found = tensors(root)
    for name in ("result.json", "phase.json"):
        for path in root.glob(f"*/**/{name}"):
            record = timeless(json.loads(path.read_text().replace(str(root), "ROOT")))
            text = json.dumps(record, sort_keys=True).encode()
            found[path.relative_to(root).as_posix()] = hashlib.sha256(text).hexdigest()
    for name, path in (("table.md", Path(f"{root}.md")), ("table.json", Path(f"{root}.json"))):
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(found.items()))


def timeless(value: Any) -> Any:
    """Plain data without what the clock and the machine say."""
    if isinstance(value, dict):
        return {name: timeless(child) for name, child in value.items() if name not in TIMES}
    return [timeless(child) for child in value] if isinstance(value, list) else value


def tried(launcher: str, work: Path, draw: random.Random, count: int, whole: Mapping[str, str]) -> dict[str, Any]:
    """One sweep that is killed again and again: what happened, and whether it differs from the undisturbed one.

    Args:
        launcher: of the sweep.
        work: folder to work in.
        draw: of the delays.
        count: the first so many moments, and the table.
        whole: hashes of all that the undisturbed sweep left.
    """
    moments = [Moment(*fields, delay=round(draw.uniform(0.0, 0.3), 3)) for fields in MOMENTS[:count]]
    record = sweep(work / launcher, launcher, moments)
    killed = sums(work / launcher)
    return {
        "launcher": launcher,
        "version": None if (needed := LAUNCHERS[launcher]) is None else metadata.version(needed),
        **record,
        "moments": [moment.record(launcher, whole, killed) for moment in record["moments"]],
        "files_compared": len(whole),
        "files_that_differ": sorted(n for n in whole.keys() | killed.keys() if whole.get(n) != killed.get(n)),
        "table_sha256": killed["table.md"],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=SEED, default=0, help="of the delays")
    parser.add_argument("--launcher", action="append", choices=[*LAUNCHERS], help="all of them if left out")
    parser.add_argument(
        "--moments", type=Whole(1, len(MOMENTS)), default=len(MOMENTS), help="the first so many, and the table"
    )
    parser.add_argument("--work", type=out_folder, help="folder to work in, kept; a temporary one if left out")
    parser.add_argument(
        "--json", type=record_file, help="write what happened; the file's other launchers stay as they are"
    )
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit status 1 if anything differs or is left over."""
    options = parse(arguments)
    launchers = options.launcher or [*LAUNCHERS]
    for launcher in launchers:
        needed = LAUNCHERS[launcher]
        if needed is not None and importlib.util.find_spec(f"hydra_plugins.{needed}") is None:
            raise ConfigError(f"--launcher {launcher} needs {needed}: pip install -e '.[launchers]'")
    kept = earlier_record(options.json, RECORD)
    work = options.work or Path(tempfile.mkdtemp(prefix="kill-sweep-"))
    work.mkdir(parents=True, exist_ok=True)
    draw = random.Random(options.seed)
    calm = sweep(work / "calm", "pair")
    whole = sums(work / "calm")
    found = [tried(launcher, work, draw, options.moments, whole) for launcher in launchers]
    if options.json:
        atomic.write_json(options.json, told(options.seed, calm["seconds"], found, kept))
    for one in found:
        differ = f"{len(one['files_that_differ'])} of {len(whole)} files differ"
        print(f"{one['launcher']}: {len(one['moments'])} kills, {differ}, orphans: {one['orphans']}")
    bad = [one for one in found if one["files_that_differ"] or one["orphans"]]
    bad += [kill for one in found for kill in one["moments"] if not kill["tensors_byte_equal"]]
    if options.work is None and not bad:
        shutil.rmtree(work)
    return 1 if bad else 0


def told(seed: int, calm_seconds: float, found: Sequence[Mapping[str, Any]], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The record: every kill, then what each launcher's sweep came to.

    Args:
        seed: of the delays.
        calm_seconds: of the undisturbed sweep.
        found: what `tried` says of each launcher.
        kept: a record of the same sweep, whose launchers stay where they were not tried again.
    """
    kills = {one["launcher"]: one["moments"] for one in found}
    whole = {one["launcher"]: {name: value for name, value in one.items() if name != "moments"} for one in found}
    if kept and kept["sweep"] == SWEEP:
        for one in kept["launchers"]:
            if whole.setdefault(one["launcher"], one) is one:
                kills[one["launcher"]] = [kill for kill in kept["kills"] if kill["launcher"] == one["launcher"]]
    launchers = [launcher for launcher in LAUNCHERS if launcher in whole]
    return {
        "sweep": SWEEP,
        "seed": seed,
        "calm_seconds": calm_seconds,
        "kills": [kill for launcher in launchers for kill in kills[launcher]],
        "launchers": [whole[launcher] for launcher in launchers],
        "machine": provenance.machine(None, 1),
        "versions": provenance.versions(),
    }


if __name__ == "__main__":
    sys.exit(main())

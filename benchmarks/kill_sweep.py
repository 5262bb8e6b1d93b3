"""Kill a sweep of two workers with SIGKILL at ten seeded moments, run it again each time, and compare its tables.

python benchmarks/kill_sweep.py --json docs/results/kill.json
The tables, and every stored tensor, must be byte-identical to those of a sweep that nobody disturbed. With
--launcher pair the workers are two commands that share a folder; any other is one of conf/hydra/launcher.
"""

from __future__ import annotations

import argparse
import hashlib
import io
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headwise.results import provenance
from headwise.storage import atomic, claims

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
    "protocol.test_images=256",
    "rank=r4",
    "ne=ne1",
    "trainer=cpu",
    "trainer.threads=1",
]
MAX_STARTS = 40
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
    """

    kind: str
    line: str
    method: str
    whole: bool
    delay: float = 0.0
    hit: dict[str, Any] = field(default_factory=dict)


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
            moment.hit = {"seconds": round(time.monotonic() - began, 1), "killed": len(victims), "held": place}
            moment.hit["after"] = line
            hit.append(moment)
            print(f"{len(hit)}: {moment.kind}: killed {victims} after {line!r}, {place}", flush=True)
            time.sleep(2.0 if moment.whole else 0.0)
            orphans += commands.orphans() if moment.whole else []
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
    time.sleep(2.0)
    orphans += commands.orphans()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "starts": commands.starts,
        "failed_statuses": failed,
        "moments": [asdict(moment) for moment in hit],
        "orphans": orphans,
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
    hit = {"seconds": round(time.monotonic() - began, 1), "killed": 1, "held": parts, "after": "writing"}
    return Moment(kind="a table is written", line="writing", method="", whole=False, hit=hit)


def wait_for(process: subprocess.Popen[str]) -> None:
    """Wait for a process that must succeed."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(output)


def sums(root: Path) -> dict[str, str]:
    """Hashes of the tables and of every stored tensor file."""
    wait_for(
        run(["scripts/make_tables.py", "--root", str(root), "--out", f"{root}.md", "--json", f"{root}.json"], root)
    )
    files = {path.relative_to(root).as_posix(): path for path in root.glob("runs/**/*.safetensors")}
    files |= {"table.md": Path(f"{root}.md"), "table.json": Path(f"{root}.json")}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit status 1 if anything differs or is left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the delays")
    parser.add_argument("--launcher", default="pair", help="pair, or a launcher of hydra such as processes")
    parser.add_argument("--moments", type=int, default=len(MOMENTS), help="the first so many, and the table")
    parser.add_argument("--work", type=Path, help="folder to work in, kept; a temporary one if left out")
    parser.add_argument("--json", type=Path, help="write what happened")
    options = parser.parse_args(arguments)
    work = options.work or Path(tempfile.mkdtemp(prefix="kill-sweep-"))
    work.mkdir(parents=True, exist_ok=True)
    draw = random.Random(options.seed)
    moments = [Moment(*fields, delay=round(draw.uniform(0.0, 0.3), 3)) for fields in MOMENTS[: options.moments]]
    calm = sweep(work / "calm", options.launcher)
    record = sweep(work / "killed", options.launcher, moments)
    whole, killed = sums(work / "calm"), sums(work / "killed")
    differ = sorted(name for name in whole.keys() | killed.keys() if whole.get(name) != killed.get(name))
    record = {
        "sweep": SWEEP,
        "launcher": options.launcher,
        "seed": options.seed,
        "calm_seconds": calm["seconds"],
        **record,
        "files_compared": len(whole),
        "files_that_differ": differ,
        "table_sha256": killed["table.md"],
        "machine": provenance.machine(None, 1),
        "versions": provenance.versions(),
    }
    if options.json:
        atomic.write_json(options.json, record)
    print(f"{len(record['moments'])} kills, {len(differ)} of {len(whole)} files differ, orphans: {record['orphans']}")
    if options.work is None and not differ:
        shutil.rmtree(work)
    return 1 if differ or record["orphans"] else 0


if __name__ == "__main__":
    sys.exit(main())

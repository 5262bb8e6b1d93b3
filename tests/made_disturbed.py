"""A run whose n-th write fails, or during whose n-th write the process is killed; each in a process of its own.

Started as ``python made_disturbed.py FOLDER STRIDE FAULT...`` by tests/test_faults.py: every STRIDE-th write has
each FAULT once, each fault beginning with another write. Everything is imported once and then forked. Prints one line
of JSON.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning  # noqa: F401  imported before the fork
import matplotlib.figure  # noqa: F401
import timm  # noqa: F401
import torch

from headwise.errors import StorageError
from headwise.runs.experiment import run
from headwise.storage import atomic
from headwise.training import loop
from headwise.training.address import set_aside
from made_networks import compose_config

RUN = ("method=hs_lora", "+gate@method.heads.gate=heart", "ne=ne1", "rank=r4", "backbone=vit_tiny_random")
RUN += ("dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu", "trainer.threads=1")
RUN += ("trainer.progress=false",)
ERRORS = {"full": errno.ENOSPC, "forbidden": errno.EACCES, "broken": errno.EIO}
KILLS = ("killed before", "killed after")
"""The rename that makes the new file visible."""
FAULTS = (*ERRORS, *KILLS)
FINE, REFUSED, ASTRAY = 0, 3, 4
BESIDE = re.compile(r"claim-\d+|index\.jsonl|\.time-[0-9a-f]+|\..+\.\d+\.[0-9a-f]{8}\.tmp(\.\w+)?")
"""What may be opened for writing below a root: parts of whole files, and files that are appended to or made at once."""
TIMES = ("seconds", "images_per_second", "peak_memory", "created", "scoring_seconds", "machine", "resident")


class Shim:
    """Counts the writes of `atomic` and lets one of them fail."""

    def __init__(self, fault: str | None = None, number: int = -1) -> None:
        self.fault, self.number, self.count = fault, number, 0
        self.flush = atomic.flush
        atomic.flush = self  # type: ignore[assignment]

    def __call__(self, path: Path) -> None:
        is_after = path.is_dir()  # the folder is flushed once the file has its name
        if not is_after:
            self.count += 1
        if self.count - 1 == self.number and self.fault is not None:
            if self.fault in ERRORS and not is_after:
                raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]))
            if self.fault == KILLS[is_after]:
                os.kill(os.getpid(), signal.SIGKILL)
        self.flush(path)


def child(work: Callable[[], int]) -> int:
    """Run `work` in a fork; its exit status, or minus the signal that ended it."""
    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        status = work()
    except StorageError as error:
        status = REFUSED if "\n" not in str(error) and ".tmp" not in str(error) else ASTRAY
    except BaseException:
        traceback.print_exc()
        status = ASTRAY
    sys.stderr.flush()
    os._exit(status)


def once(root: Path, shim: Callable[[], Shim] = Shim, count: Path | None = None) -> int:
    """The run under `root`; the number of its writes, then all modules by now, go into the file `count`."""
    strange: list[str] = []

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[0], str) and isinstance(details[2], int):
            path = Path(details[0])
            if details[2] & (os.O_WRONLY | os.O_RDWR) and path.is_relative_to(root) and not BESIDE.fullmatch(path.name):
                strange.append(details[0])

    sys.addaudithook(watch)
    os.environ["HEADWISE_CACHE"] = str(root.with_name(f"{root.name}-cache"))
    loop.hush()
    torch.set_num_threads(1)
    counter = shim()
    run(compose_config(*RUN, f"root={root}"))
    if count is not None:
        count.write_text("\n".join([str(counter.count), *sys.modules]))
    if strange:
        print(f"written past atomic: {strange}", file=sys.stderr)
    return ASTRAY if strange else FINE


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: timeless(child) for name, child in value.items() if name not in TIMES}
    return [timeless(child) for child in value] if isinstance(value, list) else value


def left(root: Path) -> dict[str, Any]:
    """The result without times, and hashes of the tensors, by place below the root."""
    found: dict[str, Any] = {}
    for file in sorted(root.rglob("*.safetensors")):
        found[file.relative_to(root).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    for name in ("result.json", "phase.json"):
        for file in sorted(root.rglob(name)):
            record = json.loads(file.read_text().replace(str(root), "ROOT"))
            found[file.relative_to(root).as_posix()] = timeless(record)
    return found


def broken(root: Path) -> list[str]:
    """Files below the root that are not whole."""
    bad = []
    for file in root.rglob("*"):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".safetensors" and ".tmp" not in file.name:
                loop.read_tensors(file)
            elif file.name == "last.ckpt" and (why := set_aside(file)):
                bad.append(why)
        except ValueError as error:
            bad.append(f"{file}: {error}")
    return bad


def main(folder: Path, stride: int, faults: Sequence[str]) -> None:
    """See the top."""
    calm, count = folder / "calm", folder / "count"
    compose_config(*RUN)  # its files are read once, before the fork
    answer: dict[str, Any] = {"calm": child(lambda: once(calm, count=count)), "cases": []}
    writes, *modules = count.read_text().split("\n") if count.is_file() else ["0"]
    answer["writes"] = int(writes)
    for name in modules:  # what a run loads on its way is loaded once for all others
        with contextlib.suppress(Exception):  # not all that is listed there can be imported by its name
            importlib.import_module(name)
    expected = left(calm)
    for fault in faults:
        for number in range(7 * FAULTS.index(fault) % stride, answer["writes"], stride):
            answer["cases"].append(disturbed(folder / "root", fault, number, expected))
    print(json.dumps(answer))


def disturbed(root: Path, fault: str, number: int, expected: dict[str, Any]) -> dict[str, Any]:
    """What a fault at one write did, and whether the same run again is the run that nobody disturbed."""
    for place in (root, root.with_name(f"{root.name}-cache")):
        shutil.rmtree(place, ignore_errors=True)
    hit = child(lambda: once(root, lambda: Shim(fault, number)))
    bad = broken(root)
    again = child(lambda: once(root))
    temporaries = [file.name for file in root.rglob(".*.tmp*")]
    same = left(root) == expected
    return {
        "fault": fault,
        "write": number,
        "hit": hit,
        "broken": bad,
        "again": again,
        "same": same,
        "left": temporaries,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

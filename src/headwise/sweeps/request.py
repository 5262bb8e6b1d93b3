"""What asked for a run, as a hash that is known before the run is composed. Standard library only.

A request is the overrides of one job, the content of the configuration folders, and the code that turns both into a
run. Equal requests compose equal runs, so a finished one is found in an index. Experiments other than the job's are no
part of it, nor are the comments that a file opens with: to add the one or edit the other makes no finished run unknown.
Nor is what files hold (images, weights): a run that is found this way is still checked against its files. Nor is the
machine: a login node without a GPU must know what its jobs have finished on one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from headwise.results.fingerprint import fingerprint

NOT_ASKED = ("root", "resume", "wait", "logger", "trainer.progress")
"""Keys that say where results lie, or how the work is done and shown, and not which run it is."""
CODE = (
    "sweeps/request",
    "plan",
    "evolution",
    "experiment",
    "results/fingerprint",
    "gate",
    "naming",
    "pertask",
    "presets",
    "protocol",
    "sizes",
    "variants",
    "weights",
)
"""Modules that decide what a configuration becomes."""


def request_of(overrides: Sequence[str], folders: Sequence[str | Path]) -> str:
    """The request of a job, 16 hex digits.

    Args:
        overrides: of the job, ``key=value``; their order does not matter, the last of a key wins.
        folders: of the configuration, each with its YAML files at any depth.
    """
    chosen: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if not (key in NOT_ASKED or key.startswith(("hydra.", "hydra/", "logger."))):
            chosen[key] = value
    experiment = next((value for key, value in chosen.items() if key.lstrip("+") == "experiment"), "")
    return fingerprint(
        {"overrides": chosen, "content": [_content(str(folder), experiment) for folder in folders], "code": _code()}
    )


@functools.cache
def _content(folder: str, experiment: str) -> str:
    """Hash of a folder's YAML files and their names; of experiments only one and those that it mentions."""
    root = Path(folder)
    files = {file.relative_to(root).as_posix(): file for file in root.rglob("*.yaml") if file.is_file()}
    others = {name.removesuffix(".yaml"): name for name in files if name.startswith("experiment/")}
    texts = [f"experiment/{experiment}"]
    while texts:
        text = texts.pop()
        for name in [name for name in others if name.removeprefix("experiment/") in text]:
            texts.append(_told(files[others.pop(name)].read_bytes()).decode("utf-8", "replace"))
    return _hash({name: file for name, file in files.items() if name not in others.values()})


@functools.cache
def _code() -> str:
    """Hash of the code and the published values."""
    here = Path(__file__).parents[1]
    files = {name: here / f"{name}.py" for name in CODE} | {"scales": here / "paper" / "scales.csv"}
    return _hash(files)


def _hash(files: dict[str, Path]) -> str:
    sha = hashlib.sha256()
    for name, file in sorted(files.items()):
        sha.update(f"{name} {hashlib.sha256(_told(file.read_bytes())).hexdigest()}\n".encode())
    return sha.hexdigest()


def _told(content: bytes) -> bytes:
    """What a file says: all but the comments that it opens with. Hydra's own comment stays, it names the package."""
    lines = content.splitlines(keepends=True)
    opening = list(itertools.takewhile(lambda line: line.startswith(b"#") or not line.strip(), lines))
    return b"".join([*(line for line in opening if b"@package" in line), *lines[len(opening) :]])

"""What asked for a run, as a hash that is known before the run is composed. Standard library only.

A request is the overrides of one job, the content of the configuration folders, and the code that turns both into a
run. Equal requests compose equal runs, so a finished one is found in an index. Experiments other than the job's are no
part of it, nor are the comments that a file opens with: to add the one or edit the other makes no finished run unknown.
Nor is what files hold (images, weights): a run that is found this way is still checked against its files. Nor is the
machine: a login node without a GPU must know what its jobs have finished on one.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from headwise.results.fingerprint import fingerprint
from headwise.storage.hashes import Remembered, stamp_of

NOT_ASKED = ("root", "resume", "wait", "logger", "trainer.progress", "trainer.checkpointing")
"""Keys that say where results lie, or how the work is done and shown, and not which run it is."""
DECIDING = "headwise.protocol.plan"
"""The module that turns a configuration into a run. What it imports decides with it, and what that imports.

So do what reads a method's own fields, which the method names in ``written`` (see `headwise.protocol.filling`).
"""
APART = {
    "headwise.data.found": "classes, which are found beside images",
    "headwise.data.sources": "images, which are no part of a request",
    "headwise.results.store": "results, which are looked for by it",
}
"""What is imported but decides nothing, nor does anything that is only imported there."""


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
def _code(root: Path = Path(__file__).parents[2]) -> str:
    """Hash of what the code says, which is neither comments nor docstrings, and of the published values.

    It is remembered until one of the files changes: to parse them takes as long as to find a hundred finished runs.
    """
    scales = root / "headwise" / "paper" / "scales.csv"
    files = [scales, *sorted((root / "headwise").rglob("*.py"))]
    stamp = stamp_of(*(file.stat() for file in files))
    # another Python parses in another way, and a file that has another name keeps its times
    name = hashlib.sha256(repr((sys.version_info, files)).encode()).hexdigest()
    remembered = Remembered("code", root)
    if known := remembered.get(name, stamp):
        return known[0]
    parsed = _parsed(root, scales.read_bytes())
    remembered.keep(name, stamp, parsed)
    remembered.save()
    return parsed


def _parsed(root: Path, scales: bytes) -> str:
    """Hash of the modules that decide and of what they import, as they are parsed."""
    sha, waiting, seen = hashlib.sha256(scales), [DECIDING, *_readers(root)], {*APART}
    while waiting:
        name = waiting.pop()
        file = root.joinpath(*name.split(".")).with_suffix(".py")
        if name in seen or not file.is_file():  # seen, or no module but a name in one
            continue
        seen.add(name)
        tree = ast.parse(file.read_bytes())
        # in the order of names, from the end of the list: the hash must not depend on the order of a set
        waiting += sorted(_imported(tree), reverse=True)
        sha.update(f"{name} {hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()}\n".encode())
    return sha.hexdigest()


def _readers(root: Path) -> list[str]:
    """Modules of what methods name in ``written``."""
    files = sorted((root / "headwise" / "methods").glob("*.py"))
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_bytes())))
    named = (n.value for n in nodes if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "written" and n.value)
    return sorted({reader.rpartition(".")[0] for value in named for reader in ast.literal_eval(value).values()})


def _imported(tree: ast.Module) -> set[str]:
    """Dotted names below the package that a module imports; a name that is taken from a module may be one itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("headwise.")}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The module without strings that stand alone: docstrings, also those of constants."""
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            lines = getattr(node, name, None)
            if isinstance(lines, list):
                texts = [line for line in lines if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)]
                setattr(node, name, [line for line in lines if line not in texts])
    return tree


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

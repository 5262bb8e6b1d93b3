"""Where a number was made: package versions, commit, machine. Standard library only; nothing here raises."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES: tuple[str, ...] = (
    "headwise",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "peft",
    "numpy",
    "pillow",
    "safetensors",
    "hydra-core",
    "omegaconf",
)
"""Distributions whose version can change a number."""
OID, NO_COMMIT = "# branch.oid ", "(initial)"
"""How git's status names the commit, and that there is none."""


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is not installed; imports none of them."""
    return {name: _version(name) for name in names}


@functools.cache
def _version(name: str) -> str | None:
    """Looked up once: what a process has loaded stays as it is."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(repo: str | Path = ".") -> dict[str, Any] | None:
    """Return ``{"commit": 40 hex digits, "dirty": bool}``, or None outside a repository with a commit.

    None too where git is not installed. Untracked files do not make it dirty.
    """
    # one process where it answers: a sweep asks before every run
    status = _git(repo, "status", "--porcelain=v2", "--branch", "--no-ahead-behind", "--untracked-files=no")
    if status is None:
        commit = (_git(repo, "rev-parse", "--verify", "HEAD") or "").strip()
        return {"commit": commit, "dirty": None} if commit else None
    lines = status.splitlines()
    commit = next((line.removeprefix(OID) for line in lines if line.startswith(OID)), NO_COMMIT)
    dirty = any(not line.startswith("#") for line in lines)
    return None if commit == NO_COMMIT else {"commit": commit, "dirty": dirty}


def _git(repo: str | Path, *arguments: str) -> str | None:
    # without the first, git status takes the lock of the index from whoever commits; the second keeps its English
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            ["git", "-C", str(repo), *arguments], capture_output=True, text=True, timeout=20, env=environment
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return answer.stdout if answer.returncode == 0 else None


def machine(accelerator: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """Describe the hardware: CPU model, cores present and usable, memory in GiB, platform, python.

    The host's name is left out: it is private and changes no number.

    Args:
        accelerator: name of the device that computed, from the caller, so that torch is not needed here.
        threads: compute threads of the run.
    """
    # a container or a scheduler may give the process fewer cores than the machine has
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "threads": threads,
        "memory_gib": _memory_gib(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "python": platform.python_version(),
        "accelerator": accelerator,
    }


def now() -> str:
    """Return the present time, UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None

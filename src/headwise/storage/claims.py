"""Who is working on a folder, across processes and machines, on any shared file system.

A claim is a file ``claim-<n>`` made with O_CREAT|O_EXCL; the highest number holds. Its holder refreshes the file's
modification time; a holder that stopped is succeeded by whoever creates number n + 1, which only one can. Numbers
are never used again while the work is open, so a slow waiter cannot push out the successor of the claim it judged.
A release sets the time to 0. Ages are differences between times given by the same file system, so the clocks of
machines do not matter. No locks. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import socket
import stat
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headwise.errors import ConfigError, HeadwiseError, StorageError
from headwise.storage import atomic
from headwise.storage.plain import Misfit, Shape, between, maybe, read_json, text, whole

_NAME = re.compile(r"claim-([0-9]{1,9})")
LONGEST = 3600.0
"""Seconds that a claim may ask to be waited for without a sign of life, whatever it says itself."""
_SILENT = 30.0
_SIZE = 1 << 16


def _pid(value: Any, where: str) -> None:
    """The number of a process."""
    whole(value, where)
    between(1, 2**31)(value, where)


_FIELDS: dict[str, Shape] = {
    "host": text,
    "space": text,
    "pid": _pid,
    "started": maybe(text),
    "thread": between(0, 2**64),
    "token": text,
    "since": between(0, 2**40),
    "expiry": between(0, 2**40),
}
"""What a claim says; what is of another kind is left out, so that a damaged claim is one that says less."""


class BusyError(HeadwiseError):
    """Another process holds the claim, and the caller did not want to wait."""


class Claim:
    """A context manager: inside it, nobody else holds a claim on ``folder``.

    Args:
        folder: made if missing.
        heartbeat: seconds between refreshes.
        expiry: seconds without a refresh after which a holder is taken for dead; more than two heartbeats. A dead
            process of the same machine is noticed at once.
        wait: False raises `BusyError` instead of waiting.
        on_wait: called with the holder's description and ``waited`` (seconds) when waiting starts and about once per
            heartbeat; what it raises ends the waiting.
        done: asked before every attempt; True ends the waiting without a claim.
    Raises:
        ConfigError: for an expiry of two heartbeats or less, or if this thread already holds the claim.
    """

    def __init__(
        self,
        folder: Path,
        *,
        heartbeat: float = 10.0,
        expiry: float = 120.0,
        wait: bool = True,
        on_wait: Callable[[Mapping[str, Any]], None] | None = None,
        done: Callable[[], bool] = lambda: False,
    ) -> None:
        if not 0 < 2 * heartbeat < expiry:
            raise ConfigError(f"expiry must exceed two heartbeats, got expiry={expiry} and heartbeat={heartbeat}")
        self.folder, self.heartbeat, self.expiry = Path(folder), heartbeat, expiry
        self.wait, self.on_wait, self.done = wait, on_wait, done
        self.path: Path | None = None
        self._token = uuid.uuid4().hex
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """True between entry and exit, unless `done` ended the waiting."""
        return self.path is not None

    @property
    def lost(self) -> bool:
        """True if another worker took this claim over, because it was not refreshed for ``expiry`` seconds."""
        return self._lost.is_set()

    def __enter__(self) -> Self:
        began, told_at = time.monotonic(), -self.heartbeat
        while not self.done():
            holder = self._attempt()
            if holder is None:
                self._begin()
                if self.done():  # finished between the question and the claim
                    self.__exit__(None, None, None)
                break
            waited = time.monotonic() - began
            if not self.wait:
                raise BusyError(f"{self.folder} is claimed by {describe(self._explained(holder))}")
            if self.on_wait is not None and waited - told_at >= self.heartbeat:
                told_at = waited
                self.on_wait({**self._explained(holder), "waited": waited})
            time.sleep(self.heartbeat / 10 * random.uniform(0.5, 1.0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beat is not None:
            self._stop.set()
            self._beat.join()
            self._beat = None
        if self.path is None:
            return
        path, self.path = self.path, None
        with contextlib.suppress(OSError):
            if self.done():
                for number, claim in sorted(_claims(self.folder).items()):
                    if number <= _number(path):
                        with contextlib.suppress(OSError):  # a folder, perhaps
                            claim.unlink(missing_ok=True)
            elif path.exists():
                os.utime(path, (0, 0))

    def _attempt(self) -> dict[str, Any] | None:
        """Take the claim (None), or return who holds it."""
        atomic.make_folder(self.folder)
        claims = _claims(self.folder)
        last = max(claims, default=0)
        if last and (holder := _read(claims[last])) is not None and not self._over(holder):
            return holder
        path = self.folder / f"claim-{last + 1}"
        if not _NAME.fullmatch(path.name):
            raise ConfigError(f"{claims[last]} is the last claim that there can be, and is not held: delete it")
        content = json.dumps({**myself(), "token": self._token, "expiry": self.expiry, "since": time.time()})
        try:
            with atomic.errors_naming(path), path.open("xb") as file:
                file.write(content.encode())
        except StorageError as error:
            if error.errno == errno.EEXIST:  # another one was faster
                return _read(path) or {}
            path.unlink(missing_ok=True)
            raise
        self.path = path
        return None

    def _over(self, holder: Mapping[str, Any]) -> bool:
        """Whether a holder released its claim, died, or stopped refreshing."""
        mine = myself()
        if holder["mtime"] != 0 and all(holder.get(key) == value for key, value in mine.items()):
            raise ConfigError(f"{self.folder} is already claimed by this thread; claims do not nest")
        return _ended(self.folder, holder, self.expiry) is not None

    def _explained(self, holder: Mapping[str, Any]) -> dict[str, Any]:
        """A holder with ``silent`` and ``longest``: seconds without a sign of life, and when it is taken for dead."""
        silent, longest = _patience(self.folder, {"mtime": time.time(), **holder}, self.expiry)
        return {**holder, "silent": silent, "longest": longest}

    def _begin(self) -> None:
        self._stop.clear()
        self._lost.clear()
        atomic.tidy(self.folder)
        self._beat = threading.Thread(target=self._refresh, name=f"claim {self.folder.name}", daemon=True)
        self._beat.start()

    def _refresh(self) -> None:
        path = self.path
        while path is not None and not self._stop.wait(self.heartbeat):
            try:
                if max(_claims(self.folder), default=0) > _number(path):
                    self._lost.set()
                    return
                os.utime(path)
            except FileNotFoundError:
                self._lost.set()
                return
            except OSError:
                continue  # a file system that hiccups; the expiry leaves room for several attempts


def standing(folder: Path) -> tuple[str, dict[str, Any]]:
    """How it stands with a folder, without touching its claims.

    Returns:
        ``held``, ``released``, ``dead`` (its holder was killed or stopped refreshing) or ``free`` (no claim), and the
        description of the last holder: host, pid, ``since`` (seconds since 1970, by the holder's clock), ...
    """
    try:
        claims = _claims(folder)
    except FileNotFoundError:
        return "free", {}
    holder = _read(claims[max(claims)]) if claims else None
    return ("free", {}) if holder is None else (_ended(folder, holder) or "held", holder)


def _ended(folder: Path, holder: Mapping[str, Any], expiry: float = 0.0) -> str | None:
    """Why a claim no longer holds: ``released`` or ``dead``; None while it does."""
    if holder["mtime"] == 0:
        return "released"
    mine = myself()
    if all(holder.get(key) == mine[key] for key in ("host", "space")):
        if all(holder.get(key) == mine[key] for key in ("pid", "started")):
            return None
        if not alive(holder.get("pid", 0), holder.get("started")):
            return "dead"
    age, longest = _patience(folder, holder, expiry)
    return "dead" if abs(age) > longest else None


def _patience(folder: Path, holder: Mapping[str, Any], expiry: float) -> tuple[float, float]:
    """Seconds since a holder's last sign of life, and how many are waited for.

    A sign of life that lies as far ahead as that is none: the clock that stamps it is the folder's own.
    """
    longest = max(expiry, min(holder.get("expiry", expiry or LONGEST), LONGEST))
    return _file_system_time(folder) - holder["mtime"], longest


def _file_system_time(folder: Path) -> float:
    """Now, by the clock that stamps the files of a folder; this machine's where nothing may be written."""
    probe = folder / f".time-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def describe(holder: Mapping[str, Any]) -> str:
    """Name a holder for a message: ``process 4711 on node3``, and why it is still waited for if it is silent."""
    name = f"process {holder.get('pid', '(unknown)')} on {holder.get('host', '(unknown host)')}"
    silent, longest = holder.get("silent", 0.0), holder.get("longest", 0.0)
    if silent < -_SILENT:
        return f"{name} (its claim is dated {-silent:.0f} s ahead; it ends {longest:.0f} s after that)"
    if silent > _SILENT:
        return f"{name} (no sign of life for {silent:.0f} s; it is taken for dead after {longest:.0f} s)"
    return name


def alive(pid: int, started: str | None = None) -> bool:
    """Whether a process of this machine runs; with ``started``, whether it is still the same one.

    A killed process that its parent has not collected yet (a zombie) counts as dead.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists and belongs to somebody else
    state, begun = _process(pid)
    if state in ("Z", "X"):
        return False
    return started is None or begun is None or begun == started


def _process(pid: int) -> tuple[str | None, str | None]:
    """State letter and start time of a process, each None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        pass
    try:
        answer = subprocess.run(
            ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=10
        )
        state, _, begun = answer.stdout.strip().partition(" ")
        return state[:1] or None, begun.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None, None


def myself() -> dict[str, Any]:
    """This process: its host, the space its pid counts in (one boot, one container), pid, start time, thread."""
    boot = space = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return {
        "host": socket.gethostname(),
        "space": f"{boot} {space}".strip(),
        "pid": os.getpid(),
        "started": _process(os.getpid())[1],
        "thread": threading.get_ident(),
    }


def _claims(folder: Path) -> dict[int, Path]:
    with os.scandir(folder) as entries:
        return {int(m[1]): folder / entry.name for entry in entries if (m := _NAME.fullmatch(entry.name))}


def _number(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _read(path: Path) -> dict[str, Any] | None:
    """Contents and ``mtime`` of a claim; only the time while it is being written; None if it is gone.

    What is no file (a folder, a pipe) was made by nobody who works here: it holds nothing.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return {"mtime": 0}
        content = read_json(path, _SIZE)
    except FileNotFoundError:
        return None
    except (OSError, Misfit):
        content = {}
    claimed = content if isinstance(content, dict) else {}
    return {
        **{name: claimed[name] for name, shape in _FIELDS.items() if _fits(shape, claimed, name)},
        "mtime": status.st_mtime,
    }


def _fits(shape: Shape, content: Mapping[str, Any], name: str) -> bool:
    try:
        shape(content[name], name)
    except (KeyError, Misfit):
        return False
    return True

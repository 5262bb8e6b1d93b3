"""Download upstream's sets, write them as records, and cache their images. Runs in a process of its own.

The only module that may bring TensorFlow into a process, and only when it downloads: training reads what is written
here and never imports it. Directories that are prepared already are cached without TensorFlow.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from headwise.data.pixels import Cacheable
from headwise.data.preparing import tfds_aircraft
from headwise.data.preparing.cachebuild import build
from headwise.data.preparing.upstream import UPSTREAM, Upstream
from headwise.data.stores.cache import KINDS, Cache, candidates, default_root
from headwise.data.stores.fewshot import UNOFFICIAL
from headwise.data.stores.folder import FolderSource
from headwise.data.stores.prepared import find, versions_present
from headwise.data.stores.tfds import TFDSSource
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError, DataError, HeadwiseError, suggest
from headwise.storage.atomic import at_home
from headwise.storage.claims import BusyError, Claim
from headwise.storage.hashes import cache_folder

Say = Callable[[str], None]
STATES = ("ready", "missing", "damaged", "manual")


@dataclass(frozen=True)
class Place:
    """Where things lie and what is wanted.

    Args:
        root: folder of prepared sets, or of a list-file tree; None: ``$HEADWISE_CACHE/records``.
        cache: folder of the caches; None: ``$HEADWISE_CACHE/vtab``.
        size: S of the network.
        resize: how larger images are brought to it.
        official: whether other counts than the official ones are an error.
    """

    root: Path | None = None
    cache: Path | None = None
    size: int = 224
    resize: str = "pil_bicubic"
    official: bool = True

    @property
    def records(self) -> Path:
        """Folder of prepared sets."""
        return cache_folder() / "records" if self.root is None else at_home(self.root)

    @property
    def caches(self) -> Path:
        """Folder of the caches."""
        return default_root() if self.cache is None else at_home(self.cache)

    @property
    def manual(self) -> Path:
        """Folder of what is downloaded by hand."""
        return self.records / "downloads" / "manual"


@dataclass(frozen=True)
class SetState:
    """State of one set.

    Args:
        task: its name here.
        state: ready, missing, damaged or manual.
        bytes: on disk where it is ready, else of the download that is needed (0: none).
        source: what it comes from or would come from.
        next: what to do, empty where it is ready.
    """

    task: str
    state: str
    bytes: int
    source: str
    next: str


def read_tasks(folder: Path) -> list[VTABTask]:
    """The 19 tasks and the five few-shot sets from their YAML files; ConfigError if the folder holds none."""
    tasks = []
    for file in [*sorted(folder.glob("*.yaml")), *sorted((folder / "fewshot").glob("*.yaml"))]:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
        plain.pop("_target_")
        if plain.get("shots") is not None:
            # any would do: what is prepared is the whole set, from which every draw is taken
            plain |= {"shots": 1, "draw": 0}
        tasks.append(VTABTask(**plain))
    if not tasks:
        raise ConfigError(f"no task in {str(folder)!r}; run the script from where the repository is")
    return tasks


def choose(tasks: Sequence[VTABTask], names: Sequence[str]) -> list[VTABTask]:
    """Tasks by name, alias, folder or builder, ``all`` of them by that word; ConfigError for an unknown name."""
    chosen: list[VTABTask] = []
    for name in names:
        exact = [task for task in tasks if name in (task.name, "all")]
        matching = exact or [task for task in tasks if name in (*task.aliases, *task.folders, task.builder)]
        if not matching:
            raise ConfigError(f"unknown task {name!r}{suggest(name, [*(task.name for task in tasks), 'all'])}")
        chosen += [task for task in matching if task not in chosen]
    return chosen


def is_fewshot(task: VTABTask) -> bool:
    """Whether a task is read from its records, because its crops need larger images."""
    return task.shots is not None


def status(task: VTABTask, place: Place, verify: bool = False) -> SetState:
    """What there is of a task and what to do next; with `verify` every byte of its cache is read again."""
    facts = UPSTREAM.get(str(task.builder), Upstream(0, 0))
    again = f"python scripts/prepare_vtab.py --tasks {task.name}"
    if not is_fewshot(task):
        for path in candidates(place.caches, task, KINDS):
            try:
                cache = Cache.open(path)
                if cache.holds(task) and cache.meta["pixels"] in ("native", f"{place.size}-{place.resize}"):
                    cache.check(verify)
                    labels = cache.meta["tasks"][task.name]["labels"]
                    return SetState(
                        task.name, "ready", cache.num_bytes, _stamped(f"cache of {cache.meta['kind']}", labels), ""
                    )
            except DataError as error:
                return SetState(task.name, "damaged", 0, f"cache {path.name}", f"{again} ({error})")
    present = versions_present(place.records, str(task.builder), task.config)
    if present:
        try:
            prepared = find(place.records, str(task.builder), task.config, task.versions, task.name)
            labels = TFDSSource(place.records, official=False).slice_labels(task)
        except DataError as error:
            return SetState(task.name, "damaged", 0, f"records {', '.join(present)}", str(error))
        size = sum(file.stat().st_size for shards in prepared.shards.values() for file, _ in shards)
        records = _stamped(f"records {prepared.version}", labels)
        if is_fewshot(task):
            return SetState(task.name, "ready", size, records, "")
        return SetState(task.name, "missing", 0, records, f"{again} (converts, no download)")
    if place.records.is_dir() and FolderSource(place.records).has_lists(task):
        if is_fewshot(task):
            return SetState(task.name, "ready", 0, "list files", "")
        try:
            lists = _stamped("list files", FolderSource(place.records).count_labels(task))
        except DataError as error:
            return SetState(task.name, "damaged", 0, "list files", str(error))
        return SetState(task.name, "missing", 0, lists, f"{again} (converts, no download)")
    awaited = missing_by_hand(task, place)
    if awaited:
        where = f"{facts.how}; awaited in {place.manual}: {', '.join(awaited)}"
        return SetState(task.name, "manual", facts.download, "by hand", where)
    return SetState(task.name, "missing", facts.download, "download", f"{again}; {facts.dead}" if facts.dead else again)


def _stamped(source: str, labels: Sequence[str]) -> str:
    """A source, and whether its results will say that its split is not the official one."""
    return f"{source}, {UNOFFICIAL}" if UNOFFICIAL in labels else source


def missing_by_hand(task: VTABTask, place: Place) -> list[str]:
    """Names that are awaited in the folder of manual downloads."""
    facts = UPSTREAM.get(str(task.builder))
    return [name for name in (facts.manual if facts else ()) if not (place.manual / name).exists()]


def prepare(tasks: Sequence[VTABTask], place: Place, say: Say = print) -> list[SetState]:
    """Prepare the sets of tasks one after the other; what is ready is left alone, a failure does not end the rest.

    Returns:
        the state of each task afterwards; ``next`` holds the reason where something failed.
    """
    done: dict[str, SetState] = {}
    sets: dict[Any, list[VTABTask]] = {}
    for task in tasks:
        shared = (task.builder, task.config, tuple(task.splits.items()), is_fewshot(task))
        sets.setdefault(shared, []).append(task)
    for number, members in enumerate(sets.values(), start=1):
        head = f"[{number}/{len(sets)}] {', '.join(task.name for task in members)}"
        failed = None
        try:
            _prepare_set(members, place, _under(head, say))
        except HeadwiseError as error:
            failed = f"{type(error).__name__ if isinstance(error, BusyError) else 'failed'}: {error}"
            say(f"{head}: {failed}")
        for task in members:
            state = status(task, place)
            if failed and state.state != "ready":
                state = SetState(state.task, state.state, state.bytes, state.source, failed)
            done[task.name] = state
            if state.state == "ready":
                say(f"{head}: {task.name} is ready ({state.bytes / 1e6:,.0f} MB, {state.source})")
    return [done[task.name] for task in tasks]


def _under(head: str, say: Say) -> Say:
    return lambda line: say(f"{head}: {line}")


def _prepare_set(tasks: Sequence[VTABTask], place: Place, say: Say) -> None:
    first = tasks[0]
    if all(status(task, place).state == "ready" for task in tasks):
        return
    name = "-".join(filter(None, (str(first.builder), first.config)))
    with Claim(_made(place.records) / ".claims" / name, wait=False):
        source: Cacheable
        tree = FolderSource(place.records)
        if versions_present(place.records, str(first.builder), first.config):
            source = TFDSSource(place.records, place.official)
        elif any(tree.has_lists(task) for task in tasks):
            for task in tasks:
                build(tree, [task], place.size, place.resize, _made(place.caches), say)
            return
        else:
            download(first, place, say)
            source = TFDSSource(place.records, place.official)
        for task in tasks:
            # raises for records that cannot be used
            source.origin(task)
        if not is_fewshot(first):
            _check_room(place.caches, UPSTREAM.get(str(first.builder), Upstream(0, 0)).cache if place.official else 0)
            build(source, tasks, place.size, place.resize, place.caches, say)


def download(task: VTABTask, place: Place, say: Say) -> None:
    """Download a set and write it as array_record files through upstream's builder. Needs TensorFlow but for aircraft.

    Files that were downloaded before are used again, also those placed by hand; checksums are verified by upstream's
    table. The directory appears when it is complete.

    Raises:
        DataError: if something must be fetched by hand, TensorFlow is absent, or upstream fails.
    """
    facts = UPSTREAM.get(str(task.builder), Upstream(0, 0))
    awaited = missing_by_hand(task, place)
    if awaited:
        raise DataError(f"{facts.how}; awaited in {place.manual}: {', '.join(awaited)}")
    if task.builder == tfds_aircraft.NAME:
        tfds_aircraft.prepare(place.manual, place.records)
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError("downloading needs TensorFlow: pip install -e '.[prepare]' (reading what is prepared does not)")
    if place.official:
        _check_room(place.records, 2 * (0 if facts.manual else facts.download))
    import tensorflow_datasets as tfds

    name = str(task.builder) if task.config is None else f"{task.builder}/{task.config}"
    # what is known to be dead is no news where the archive lies here already
    dead = "" if not facts.dead or (place.manual / facts.archive).is_file() else facts.dead
    note = "".join(f"; {text}" for text in (facts.note, dead) if text)
    say(f"downloading about {facts.download / 1e6:,.0f} MB into {place.records}{note}")
    _made(place.manual)
    try:
        builder = tfds.builder(name, data_dir=place.records)
        # under the claim of the set nobody else writes it: these are of a process that was killed
        for leftover in (place.records / name).glob("incomplete.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        settings = tfds.download.DownloadConfig(manual_dir=place.manual)
        builder.download_and_prepare(
            download_dir=place.records / "downloads", download_config=settings, file_format="array_record"
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"the disk of {str(place.records)!r} is full; free some space and start again") from error
        raise DataError(
            f"upstream's builder {name!r} failed ({type(error).__name__}: {_short(error)}){note}"
        ) from error
    say(f"records are written ({builder.version})")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(_made(folder)).free
    if free < needed:
        raise DataError(
            f"the disk of {str(folder)!r} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed"
        )


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror})") from error
    return folder


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def table(states: Sequence[SetState]) -> str:
    """The states as text, one line per set and a sum."""
    head = ("set", "state", "size", "source", "next")
    rows = [(s.task, s.state, _megabytes(s), s.source, s.next) for s in states]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in [head, *rows]
    ]
    ready = sum(state.state == "ready" for state in states)
    return "\n".join([*lines, "", f"{ready} of {len(states)} are ready"])


def _megabytes(state: SetState) -> str:
    if not state.bytes:
        return "-"
    text = f"{state.bytes / 1e6:,.0f} MB" if state.bytes >= 1e6 else f"{state.bytes / 1e3:,.0f} kB"
    return text if state.state == "ready" else f"({text})"


def as_json(states: Sequence[SetState]) -> str:
    """The states as JSON."""
    return json.dumps([asdict(state) for state in states], indent=2) + "\n"

"""The images of a split as one array: in memory, or in a file of ``$HEADWISE_CACHE/pixels`` where they are too many.

What fits into the memory but takes long to decode is kept in such a file as well, for the next process.
Images come in chunks, and each is held once, colour plane by colour plane, which is how a network takes them. A file is
written under a claim beside its place and renamed when it is whole; it is named by the content of what it was made
from, and checked by hash when it is opened for the first time. No torch.

Legend: N images, H, W height and width, S the side of the square that the network sees, C channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import mmap
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.data.decode import NATIVE_LIMIT, RESIZES, check_resize
from headwise.data.notices import say_once
from headwise.data.pixels import CHUNK, Pixels, decoder
from headwise.errors import ConfigError, DataError, HeadwiseError
from headwise.storage import atomic
from headwise.storage.claims import Claim, describe
from headwise.storage.hashes import cache_folder, file_sha256, sha256_of
from headwise.storage.plain import STORES, read_json

MEMORY = 1.0
"""GiB of decoded images of one split that are held in memory unless told otherwise."""
WORTH = 128 << 20
"""Bytes of decoded images from which a split is kept for later runs: 1,000 images of 224 pixels are 150 MB."""
MARGIN = 256 << 20
"""Bytes that stay free on the disk."""
REVISION = 1
"""Of the layout of kept files."""
FILES = ("images.npy", "labels.npy")
Array = NDArray[np.uint8]


class MixedError(Exception):
    """Images turned out not to be all of one small size."""


def check_memory(memory: float) -> float:
    """Return data.memory; ConfigError unless it is a number of at least 0."""
    if isinstance(memory, bool) or not isinstance(memory, int | float) or not 0 <= memory < math.inf:
        raise ConfigError(f"data.memory is a number of GiB, 0 or more, got {memory!r}")
    return float(memory)


@dataclass(frozen=True, kw_only=True)
class Bulk:
    """A split that is to become one array.

    Attributes:
        title: for what is said: task, split.
        count: N.
        size, resize: S, and how images are brought to it.
        channels: C.
        chunks: gives the images from the first on, some hundred at a time, each native or S x S as `Pixels` says.
        content: hash of what decides the pixels before resizing; asked for only where there may be many.
        memory: GiB that may be held in memory.
    """

    title: str
    count: int
    size: int
    resize: str
    channels: int
    chunks: Callable[[], Iterable[Pixels]]
    content: Callable[[], str]
    memory: float = MEMORY

    def load(self) -> Pixels:
        """All images, as one source gives them: native if all are of one small size, else S x S.

        Raises:
            DataError: if the source gives fewer images than it has, or the disk has no room for them.
        """
        check_resize(self.resize)
        # an upper bound: whether images stay native is known when they have been read
        largest = self.count * self.channels * max(self.size, NATIVE_LIMIT) ** 2
        kept = self._place() if largest > min(self._limit, WORTH) else None
        if kept is not None and kept.is_dir():
            pixels = _read(kept)
            return pixels if pixels.images.nbytes > self._limit else _in_memory(pixels)
        try:
            return self._gather(kept, shrink=False)
        # images of one small size came first and others after them: from the beginning, all of them resized
        except MixedError:
            return self._gather(kept, shrink=True)

    @property
    def _limit(self) -> int:
        return int(self.memory * (1 << 30))

    def _place(self) -> Path:
        """The folder of this content at this size."""
        parts = [REVISION, self.content(), self.count, self.size, self.resize, self.channels, decoder()]
        return cache_folder() / "pixels" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def _gather(self, kept: Path | None, shrink: bool) -> Pixels:
        """The chunks put together, with ``shrink`` native ones resized; MixedError if they do not fit together so."""
        stream = Stream(self.chunks(), self.size, self.resize, shrink)
        planes: Iterator[Array] = (images.transpose(0, 3, 1, 2) for images in stream)
        head = next(planes, None)
        if head is None:
            raise DataError(f"{self.title}: there is no image")
        shape = (self.count, *head.shape[1:])
        planes = itertools.chain([head], planes)
        if kept is not None:
            planes = _watched(planes, f"{self.title}: decoding", self.count)
        if math.prod(shape) > self._limit and kept is not None:
            return self._keep(kept, shape, stream, planes)
        images, done = np.empty(shape, dtype=np.uint8), 0
        for piece in planes:
            done += len(piece)
            # more images than there is room for are only counted, for the error below
            if done <= self.count:
                images[done - len(piece) : done] = piece
        if done != self.count:
            raise DataError(f"{self.title}: the source gave {done} of {self.count} images")
        if kept is not None and images.nbytes >= WORTH:
            self._save(kept, images, stream)
        return Pixels(images.transpose(0, 2, 3, 1), stream.classes, tuple(stream.keys), stream.facts)

    def _save(self, folder: Path, images: Array, stream: Stream) -> None:
        """Keep images, (N, C, H, W), for later runs; where that fails, those decode them again."""
        what = f"{self.title}: {len(images):,} decoded images"
        with (
            contextlib.suppress(HeadwiseError, OSError),
            Claim(folder.parent / ".claims" / folder.name, wait=False),
        ):
            if not folder.is_dir():
                check_room(folder.parent, images.nbytes, what)
                self._put(folder, images.shape, stream, iter([images]))
                say_once(
                    f"{what} are kept for later runs in {folder} ({images.nbytes / 1e9:.1f} GB); it may be removed"
                )

    def _keep(self, folder: Path, shape: tuple[int, ...], stream: Stream, planes: Iterator[Array]) -> Pixels:
        """Write the images to a file, unless another process has meanwhile."""
        root, images = folder.parent, f"{self.title}: {shape[0]:,} decoded images"

        def waiting(holder: Mapping[str, Any]) -> None:
            say_once(f"{images}: waiting for {describe(holder)}, which writes them")

        with Claim(root / ".claims" / folder.name, on_wait=waiting):
            # written by another process while this one waited for the claim
            if folder.is_dir():
                return _read(folder)
            check_room(root, math.prod(shape), images)
            say_once(
                f"{images} are more than data.memory={self.memory:g} GiB and are kept in {folder} "
                f"({math.prod(shape) / 1e9:.1f} GB); it may be removed when no run uses it"
            )
            self._put(folder, shape, stream, planes)
        # its files were hashed as they were written
        return _read(folder, fresh=True)

    def _put(self, folder: Path, shape: tuple[int, ...], stream: Stream, planes: Iterator[Array]) -> None:
        """Write a folder, whole or not at all; the caller has claimed it."""
        root = folder.parent
        # under the claim nobody else writes here: what lies there is of a process that was killed
        for leftover in root.glob(f".building-{folder.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        part = root / f".building-{folder.name}-{uuid.uuid4().hex[:8]}"
        try:
            with atomic.errors_naming(folder):
                self._write(part, shape, stream, planes)
                part.rename(folder)
                atomic.flush(root)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write(self, part: Path, shape: tuple[int, ...], stream: Stream, planes: Iterator[Array]) -> None:
        part.mkdir(parents=True)
        files = {FILES[0]: write_array(part / FILES[0], shape, planes, "uint8")}
        labels = stream.classes
        files[FILES[1]] = write_array(part / FILES[1], labels.shape, iter([labels]), "int64")
        meta = {"files": files, "facts": stream.facts, "keys": stream.keys, "title": self.title}
        atomic.write_json(part / "meta.json", meta)


class Stream(Iterator[Array]):
    """Images of the chunks of a split, (n, H, W, C) of one size, and what else the chunks said so far.

    With `shrink` native ones are resized as well. `shape`, (H, W, C) and whether it is native, is that of the first
    image unless it is given.
    """

    def __init__(
        self, chunks: Iterable[Pixels], size: int, resize: str, shrink: bool, shape: tuple[int, ...] | None = None
    ) -> None:
        self._chunks, self._size, self._resize, self._shrink = iter(chunks), size, resize, shrink
        self.shape = shape
        self.labels: list[int] = []
        self.keys: list[str] = []
        self.facts: dict[str, Any] = {}

    def __next__(self) -> Array:
        chunk = next(self._chunks)
        images, is_native = chunk.images, chunk.provenance["resize"] == "native"
        if self._shrink and is_native:
            images, is_native = np.stack([RESIZES[self._resize](image, self._size) for image in images]), False
        shape = (*images.shape[1:], is_native)
        if self.shape not in (None, shape):
            raise MixedError
        self.shape = shape
        self.labels += chunk.labels.tolist()
        self.keys += chunk.keys
        self.facts = {**chunk.provenance, "resize": "native" if is_native else self._resize}
        return images

    @property
    def classes(self) -> NDArray[np.int64]:
        """Labels of all images, (N,)."""
        return np.array(self.labels, dtype=np.int64)


def _read(folder: Path, fresh: bool = False) -> Pixels:
    """A kept split, its images memory-mapped; DataError if a file of it is damaged."""
    try:
        meta = read_json(folder / "meta.json", STORES)
        planes, labels = (_mapped(folder / name, meta["files"][name], fresh) for name in FILES)
        if not len(planes) == len(labels) == len(meta["keys"]):
            raise ValueError("its files do not belong together")
        return Pixels(planes.transpose(0, 2, 3, 1), np.array(labels), tuple(meta["keys"]), dict(meta["facts"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, ConfigError) as error:
        raise DataError(f"{folder} is damaged ({error}); remove it and run again") from error


def _in_memory(pixels: Pixels) -> Pixels:
    """Kept images as if they had been decoded: no batch reads a file."""
    mapped_planes = pixels.images.transpose(0, 3, 1, 2)
    planes = np.empty(mapped_planes.shape, dtype=np.uint8)
    for start in range(0, len(planes), CHUNK):
        planes[start : start + CHUNK] = mapped_planes[start : start + CHUNK]
        release(pixels.images)  # else the images would be there twice
    return replace(pixels, images=planes.transpose(0, 2, 3, 1))


def _watched(pieces: Iterator[Array], title: str, count: int) -> Iterator[Array]:
    """Pieces of `count` images, on a terminal with a bar that tells how far they are."""
    if not sys.stderr.isatty():
        yield from pieces
        return
    from rich.console import Console  # only here
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=count)
        for piece in pieces:
            yield piece
            bar.advance(task, len(piece))


def _mapped(file: Path, entry: dict[str, Any], fresh: bool) -> NDArray[Any]:
    if file.stat().st_size != entry["bytes"] or (not fresh and file_sha256(file) != entry["sha256"]):
        raise ValueError(f"{file.name} is not what was written")
    array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):  # an archive of arrays
        raise ValueError(f"{file.name} holds no array")
    if list(array.shape) != entry["shape"] or array.dtype != entry["dtype"]:
        raise ValueError(f"{file.name} holds {array.dtype} {array.shape}")
    return array


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse to write more than the disk of a folder holds; DataError with the ways out."""
    atomic.make_folder(folder)
    free = shutil.disk_usage(folder).free
    if free < num_bytes + MARGIN:
        raise DataError(
            f"{what} are {num_bytes / 1e9:.1f} GB, and the disk of {folder} has {free / 1e9:.1f} GB left; make room, "
            "let HEADWISE_CACHE name a folder elsewhere, or hold them in memory with data.memory=GIB"
        )


def write_array(file: Path, shape: tuple[int, ...], pieces: Iterator[NDArray[Any]], dtype: str) -> dict[str, Any]:
    """Write an .npy file piece by piece with plain writes, so that a full disk is an error; returns its description."""
    rows = 0
    with file.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for piece in pieces:
            if piece.shape[1:] != shape[1:]:
                raise MixedError
            rows += len(piece)
            stream.write(np.ascontiguousarray(piece, dtype=dtype).data)
    if rows != shape[0]:
        raise DataError(f"{file.stem}: the source gave {rows} of {shape[0]} items")
    atomic.flush(file)
    return {"shape": list(shape), "dtype": dtype, "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def release(array: NDArray[Any]) -> None:
    """Let go of the pages of a memory-mapped array that were read; the system keeps them as long as it has room."""
    file = mapped(array)
    if file is not None and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def mapped(array: NDArray[Any]) -> mmap.mmap | None:
    """The file in which an array lies; None for one in memory."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None

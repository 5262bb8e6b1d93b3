"""Drawn images as real upstream directories: the builder with its generator replaced, PNG bytes, no TensorFlow.

A generator that marks itself SLOW is drawn once, into ``$HEADWISE_CACHE/synthetic``; from then on the ordinary reader
of prepared directories reads it, slices, order and labels included.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headwise.data.stored import opened
from headwise.data.stores.prepared import MARKER, versions_present
from headwise.data.tasks import VTABTask
from headwise.errors import DataError
from headwise.storage import atomic
from headwise.storage.claims import Claim, describe
from headwise.storage.hashes import cache_folder

CHUNK = 64
"""Images that are drawn at a time."""


def prepared_root(generator: ModuleType, task: VTABTask, lossy: bool = False) -> Path:
    """Folder that holds the drawn set as ``<builder>/<version>``, drawing it first if it is not there.

    The task says which builder in which versions; `lossy` stores JPEG of default quality instead of PNG. DataError if
    the folder cannot be written.
    """
    builder = str(task.builder)
    root = cache_folder() / "synthetic" / f"{builder}@{generator.REVISION}{'-lossy' if lossy else ''}"

    def is_done() -> bool:
        return bool(versions_present(root, builder, task.config))

    if is_done():
        return root
    try:
        with Claim(root / "claim", done=is_done, on_wait=lambda holder: _waiting(holder, builder)) as claim:
            if claim.held and not is_done():
                _fill(root, generator, builder, task, lossy)
    except OSError as error:
        raise DataError(
            f"drawn images cannot be written to {str(root)!r} ({error.strerror or error}); "
            "make room or set HEADWISE_CACHE to another folder"
        ) from error
    return root


def _waiting(holder: Mapping[str, Any], builder: str) -> None:
    if holder["waited"] < 1:
        print(f"waiting for {describe(holder)}, which draws {builder!r}", file=sys.stderr, flush=True)


def _fill(root: Path, generator: ModuleType, builder: str, task: VTABTask, lossy: bool) -> None:
    total = sum(generator.SIZES.values())
    print(f"drawing {total:,} images of {builder!r}, once, into {root}", file=sys.stderr, flush=True)
    start, part = time.monotonic(), root / f".part-{uuid.uuid4().hex[:8]}"
    try:
        written = write(part, generator, builder, task.versions, lossy=lossy, scale=task.pixel_scale)
        atomic.write_json(written / MARKER, {"generator": builder, "revision": generator.REVISION})
        # only when it is whole: who looks for the folder takes it for finished
        (part / builder).replace(root / builder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"drew {builder!r} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def write(
    root: Path,
    generator: Any,
    builder: str,
    versions: Sequence[str] = ("*",),
    sizes: Mapping[str, int] | None = None,
    lossy: bool = False,
    scale: int = 1,
) -> Path:
    """Write drawn examples through the upstream builder as array_record files.

    Args:
        root: data folder of the builder.
        generator: ``key``, ``examples``, ``render`` and ``SIZES``, see ``headwise.data.synthetic``.
        builder: upstream's name.
        versions: acceptable ones; the newest that the installed library offers is written.
        sizes: examples of each split; None: the generator's.
        lossy: JPEG of default quality instead of PNG.
        scale: what upstream's pixels are multiplied by when they are read; the drawn ones are divided by it.
    Returns:
        the version's folder.
    """
    import tensorflow_datasets as tfds

    kind = tfds.builder_cls(builder)
    offered = sorted([kind.VERSION, *(kind.SUPPORTED_VERSIONS or [])], reverse=True)
    version = next(v for v in offered if any(fnmatchcase(str(v), pattern) for pattern in versions))
    upstream = tfds.builder(f"{builder}:{version}", data_dir=root)
    features = upstream.info.features
    counts = dict(generator.SIZES if sizes is None else sizes)
    # upstream's builder keeps its features, its order and its shards; only where examples come from is another place
    upstream._split_generators = lambda manager: {
        split: _examples(generator, split, count, features, lossy, scale) for split, count in counts.items()
    }
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of a download that does not happen
        upstream.download_and_prepare(file_format="array_record")
    return Path(upstream.data_dir)


def _examples(
    generator: Any, split: str, count: int, features: Mapping[str, Any], lossy: bool, scale: int
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Keys and examples as the builder's own generator would give them."""
    import tensorflow_datasets as tfds

    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    for start in range(0, count, CHUNK):
        indices = np.arange(start, min(start + CHUNK, count), dtype=np.int64)
        rows = generator.examples(split, indices)
        for index, pixels, example in zip(indices.tolist(), generator.render(split, indices), rows, strict=True):
            example = {"id": f"{split}_{index:06d}", **example} if "id" in features else dict(example)
            data = encoded(pixels // scale, "JPEG" if lossy else "PNG")
            yield generator.key(split, index), {**example, **{name: io.BytesIO(data) for name in images}}


def encoded(pixels: NDArray[np.uint8], form: str) -> bytes:
    """One image (H, W, C) as the bytes of a PNG, or of a JPEG as PIL writes it by default: quality 75, 4:2:0."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, form)
    return file.getvalue()


def through_jpeg(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, C) images as they come back from default-quality JPEG."""
    copies = [np.asarray(opened(encoded(image, "JPEG"))) for image in images]
    return np.stack(copies).reshape(images.shape) if copies else images

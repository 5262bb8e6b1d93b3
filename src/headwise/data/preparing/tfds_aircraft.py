"""FGVC-Aircraft as a prepared set: upstream has no builder for it, so this is one, for the unpacked original archive.

Writing and reading need no TensorFlow. The 100 variants are the classes, in the order of the archive's own list.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headwise.errors import DataError

NAME, VERSION = "fgvc_aircraft", "1.0.0"
ARCHIVE = "fgvc-aircraft-2013b"
SPLITS = {"train": "train", "validation": "val", "test": "test"}


def prepare(source: Path, root: Path) -> Path:
    """Write the set as array_record files, as upstream's builders do; returns ``<root>/fgvc_aircraft/1.0.0``.

    `source` is the unpacked ``fgvc-aircraft-2013b``, or the folder that holds it. DataError if a list or an image is
    missing.
    """
    import tensorflow_datasets as tfds

    folders = [d for d in (source / ARCHIVE / "data", source / "data") if (d / "variants.txt").is_file()]
    if not folders:
        raise DataError(f"no {ARCHIVE}/data/variants.txt in {str(source)!r}; unpack {ARCHIVE}.tar.gz there")
    data, variants = folders[0], _lines(folders[0] / "variants.txt")

    class Aircraft(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The builder that upstream lacks."""

        name = NAME

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=variants),
                    "file_name": tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(part) for name, part in SPLITS.items()}

        def _generate_examples(self, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for number, variant in _rows(data / f"images_variant_{part}.txt", variants):
                file = data / "images" / f"{number}.jpg"
                if not file.is_file():
                    raise DataError(f"images_variant_{part}.txt names {file}, which is not there; unpack it again")
                yield number, {"image": io.BytesIO(file.read_bytes()), "label": variant, "file_name": file.name}

    Aircraft.VERSION = tfds.core.Version(VERSION)
    tfds.disable_progress_bar()
    builder = Aircraft(data_dir=root)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of a download that does not happen
        builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); unpack {ARCHIVE}.tar.gz again") from error


def _rows(file: Path, variants: list[str]) -> Iterator[tuple[str, str]]:
    """Number and variant of each image of a list."""
    for line in _lines(file):
        number, _, variant = line.partition(" ")
        if variant not in variants or not number.isdigit():
            raise DataError(f"{file}: {line!r} is no 'number variant' with a variant of variants.txt")
        yield number, variant

"""Whether records are the official ones in the official order: sizes, golden keys, and the md5 order of the keys.

Upstream sorts records by md5 of split and key. Where records carry what their key was made of, the order is checked
record by record; for running numbers the members are recomputed exactly. Numpy only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headwise.data.splits import numbered_order
from headwise.errors import DataError

SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "cifar100": {"train": (50_000,), "test": (10_000,)},
    "caltech101": {"train": (3_060,), "test": (6_084,)},
    "dtd": {"train": (1_880,), "validation": (1_880,), "test": (1_880,)},
    "oxford_flowers102": {"train": (1_020,), "validation": (1_020,), "test": (6_149,)},
    "oxford_iiit_pet": {"train": (3_680,), "test": (3_669,)},
    "svhn_cropped": {"train": (73_257,), "test": (26_032,)},
    "sun397": {"train": (76_128, 76_127), "validation": (10_875,), "test": (21_750,)},
    "patch_camelyon": {"train": (262_144,), "validation": (32_768,), "test": (32_768,)},
    "eurosat": {"train": (27_000,)},
    "resisc45": {"train": (31_500,)},
    "diabetic_retinopathy_detection": {"train": (35_126,), "validation": (10_906,), "test": (42_670,)},
    "clevr": {"train": (70_000,), "validation": (15_000,)},
    "dmlab": {"train": (65_550,), "validation": (22_628,), "test": (22_735,)},
    "kitti": {"train": (6_347,), "validation": (423,), "test": (711,)},
    "dsprites": {"train": (737_280,)},
    "smallnorb": {"train": (24_300,), "test": (24_300,)},
    "food101": {"train": (75_750,), "validation": (25_250,)},
    "cars196": {"train": (8_144,), "test": (8_041,)},
}
"""Examples of each upstream split. SUN397's builder skips one undecodable image, which older versions kept."""

GOLDEN: dict[str, dict[tuple[str, str], tuple[str, ...]]] = {
    "cifar100": {
        ("train", "train800"): ("16399", "1680", "47917", "17307", "27051"),
        ("train", "val200"): ("13431", "9237", "17462"),
    },
    "svhn_cropped": {
        ("train", "train800"): ("16399", "1680", "47917", "17307", "27051"),
        ("train", "val200"): ("21145", "64736", "23870"),
    },
    "dsprites": {
        ("train", "train800"): ("16399", "634903", "206287", "470425", "352707"),
        ("train", "val200"): ("220697", "85843", "84902"),
    },
    "smallnorb": {
        ("train", "train800"): ("16399", "1680", "17307", "1456", "19135"),
        ("test", "val200"): ("23018", "16932", "19084"),
    },
    "clevr": {
        ("train", "train800"): tuple(f"CLEVR_train_{n:06d}.png" for n in (43876, 33421, 62025, 21419, 4851)),
        ("train", "val200"): tuple(f"CLEVR_train_{n:06d}.png" for n in (35084, 29360, 4525)),
    },
    "patch_camelyon": {
        ("train", "train800"): tuple(f"train_{n}" for n in (251464, 132287, 133786, 86259, 230288)),
        ("validation", "val200"): tuple(f"valid_{n}" for n in (3270, 10310, 20603)),
    },
    "eurosat": {
        ("train", "train800"): tuple(
            f"{name.rpartition('_')[0]}_{name}.jpg"
            for name in ("Forest_687", "Residential_188", "HerbaceousVegetation_1056", "Residential_1762", "Forest_943")
        ),
        ("train", "val200"): tuple(
            f"{name.rpartition('_')[0]}_{name}.jpg" for name in ("SeaLake_804", "Forest_1554", "River_2237")
        ),
    },
    "resisc45": {
        ("train", "train800"): tuple(
            f"{name.rpartition('_')[0]}_{name}.jpg"
            for name in ("dense_residential_068", "palace_207", "golf_course_450", "tennis_court_572", "runway_596")
        ),
        ("train", "val200"): tuple(
            f"{name.rpartition('_')[0]}_{name}.jpg" for name in ("cloud_238", "roundabout_303", "dense_residential_278")
        ),
    },
}
"""First keys of the official train800 and val200: (upstream split, ours) -> keys."""

NUMBERED = ("cifar100", "svhn_cropped", "dsprites", "smallnorb")
"""Builders whose keys are the running number of the example."""
DSPRITES_FACTORS = {
    "label_shape": 3,
    "label_scale": 6,
    "label_orientation": 40,
    "label_x_position": 32,
    "label_y_position": 32,
}

Example = Mapping[str, Any]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _feature(name: str) -> Callable[[Example, Sequence[str]], str]:
    return lambda example, class_names: _text(example[name])


def _number(example: Example, class_names: Sequence[str]) -> str:
    match = re.search(r"(\d+)$", _text(example["id"]))
    if match is None:
        raise KeyError("id")
    return str(int(match[1]))


def _with_class(example: Example, class_names: Sequence[str]) -> str:
    return f"{class_names[int(example['label'])]}_{_text(example['filename'])}"


KEYS: dict[str, Callable[[Example, Sequence[str]], str]] = {
    **dict.fromkeys(NUMBERED, _number),
    **dict.fromkeys(("clevr", "dtd", "oxford_flowers102", "oxford_iiit_pet", "sun397"), _feature("file_name")),
    **dict.fromkeys(("eurosat", "resisc45"), _with_class),
    "kitti": _feature("image/file_name"),
    "patch_camelyon": _feature("id"),
    "diabetic_retinopathy_detection": _feature("name"),
    "dmlab": _feature("filename"),
}
"""How an example's key follows from its features. Caltech101's does not: its folder is not stored."""


def key_of(builder: str, example: Example, class_names: Sequence[str] = ()) -> str | None:
    """The key an example was stored under, None where its features do not tell."""
    rule = KEYS.get(builder)
    try:
        return None if rule is None else rule(example, class_names)
    except (KeyError, IndexError):
        return None


def wrong_sizes(builder: str, sizes: Mapping[str, int], used: Sequence[str]) -> list[str]:
    """Splits of a builder whose number of examples is not the official one, as ``train: 30 instead of 50000``."""
    official = SIZES.get(builder, {})
    return [
        f"{name}: {sizes.get(name, 0)} instead of {official[name][0]}"
        for name in used
        if name in official and sizes.get(name, 0) not in official[name]
    ]


class Membership:
    """Checks the records of one run as they are read, from the one at `first` of an upstream split with `size` records.

    `name` is upstream's name of the split, `split` ours; golden keys hold where the sizes are the official ones.
    """

    def __init__(
        self, builder: str, name: str, split: str, first: int, size: int, is_official: bool, where: str
    ) -> None:
        self.builder, self.name, self.first, self.size, self.where = builder, name, first, size, where
        self.golden = GOLDEN.get(builder, {}).get((name, split), ()) if is_official else ()
        self.is_official = is_official
        self.last = b""
        self.seen = self.checked = 0
        self.salt = hashlib.md5(name.encode())

    def see(self, position: int, example: Example, key: str | None) -> None:
        """Check the next record, positions ascending; DataError if it is not the record that belongs there."""
        self.seen += 1
        if key is None:
            if self.builder == "dsprites" and self.is_official:
                self._see_latents(position, example)
            return
        self.checked += 1
        digest = self.salt.copy()
        digest.update(key.encode())
        # upstream stores records by the hash of split and key; an equal one would be an example twice
        if digest.digest() <= self.last:
            self._refuse(position, f"key {key!r} is out of order")
        self.last = digest.digest()
        if position - self.first < len(self.golden) and key != self.golden[position - self.first]:
            self._refuse(position, f"key {key!r} instead of {self.golden[position - self.first]!r}")
        if self.builder in NUMBERED:
            expected = str(numbered_order(self.name, self.size)[position])
            if key != expected:
                self._refuse(position, f"key {key!r} instead of {expected!r}")

    def _see_latents(self, position: int, example: Example) -> None:
        """Version 2.0.0 stores no key, but the number of a sprite says what it shows."""
        index = int(numbered_order(self.name, self.size)[position])
        expected = np.unravel_index(index, tuple(DSPRITES_FACTORS.values()))
        if [int(example[name]) for name in DSPRITES_FACTORS] != [int(value) for value in expected]:
            self._refuse(position, f"labels that are not those of sprite {index}")
        self.checked += 1

    def _refuse(self, position: int, what: str) -> None:
        raise DataError(
            f"{self.where}: record {position} of {self.name!r} has {what}; these are not the official records"
        )

    @property
    def verdict(self) -> str:
        """``checked`` or, where the records carry nothing to check, ``not checkable``."""
        return "checked" if self.seen and self.checked == self.seen else "not checkable"

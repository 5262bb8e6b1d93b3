"""Golden keys: the first records of upstream builders, from their published names."""

from __future__ import annotations

import numpy as np
import pytest
from made_trees import REPO, load_task

from headwise.data.splits import parse_slice, record_order, split_ranges, subset
from headwise.errors import ConfigError, DataError
from made_cases import each

SIZES = {
    "cifar100": {"train": 50_000, "test": 10_000},
    "caltech101": {"train": 3_060, "test": 6_084},
    "dtd": {"train": 1_880, "validation": 1_880, "test": 1_880},
    "oxford_flowers102": {"train": 1_020, "validation": 1_020, "test": 6_149},
    "oxford_iiit_pet": {"train": 3_680, "test": 3_669},
    "svhn_cropped": {"train": 73_257, "test": 26_032, "extra": 531_131},
    "sun397": {"train": 76_128, "validation": 10_875, "test": 21_750},
    "patch_camelyon": {"train": 262_144, "validation": 32_768, "test": 32_768},
    "eurosat": {"train": 27_000},
    "resisc45": {"train": 31_500},
    "diabetic_retinopathy_detection": {"train": 35_126, "validation": 10_906, "test": 42_670},
    "clevr": {"train": 70_000, "validation": 15_000, "test": 15_000},
    "dmlab": {"train": 65_550, "validation": 22_628, "test": 22_735},
    "kitti": {"train": 6_347, "validation": 423, "test": 711},
    "dsprites": {"train": 737_280},
    "smallnorb": {"train": 24_300, "test": 24_300},
}
VAL = {
    "cifar100": ("train", 45_000),
    "caltech101": ("train", 2_754),
    "pets": ("train", 2_944),
    "svhn": ("train", 65_931),
    "eurosat": ("train", 16_200),
    "resisc45": ("train", 18_900),
    "clevr_count": ("train", 63_000),
    "clevr_dist": ("train", 63_000),
    "dsprites_loc": ("train", 589_824),
    "dsprites_ori": ("train", 589_824),
    "smallnorb_azi": ("test", 0),
    "smallnorb_ele": ("test", 0),
}
"""First record of val200, where it is not the first of ``validation``."""
TEST = {
    "eurosat": ("train", 21_600, 27_000),
    "resisc45": ("train", 25_200, 31_500),
    "clevr_count": ("validation", 0, 15_000),
    "clevr_dist": ("validation", 0, 15_000),
    "dsprites_loc": ("train", 663_552, 737_280),
    "dsprites_ori": ("train", 663_552, 737_280),
    "smallnorb_azi": ("test", 12_150, 24_300),
    "smallnorb_ele": ("test", 12_150, 24_300),
}


@each("name", sorted(path.stem for path in (REPO / "conf" / "dataset").glob("*.yaml")))
def test_split_rules_give_the_official_records(name: str) -> None:
    task = load_task(name)
    sizes = SIZES[str(task.builder)]
    split, first = VAL.get(name, ("validation", 0))
    assert split_ranges(task, "train800", sizes) == [("train", 0, 800)]
    assert split_ranges(task, "val200", sizes) == [(split, first, first + 200)]
    assert split_ranges(task, "train800val200", sizes) == [("train", 0, 800), (split, first, first + 200)]
    assert split_ranges(task, "test", sizes) == [TEST.get(name, ("test", 0, task.num_test))]
    ((_, begin, end),) = split_ranges(task, "test", sizes)
    assert end - begin == task.num_test


@each(
    "split, keys, first, expected",
    [
        ("train", [str(i) for i in range(50_000)], 0, "16399 1680 47917 17307 27051"),
        ("train", [str(i) for i in range(50_000)], 45_000, "13431 9237 17462"),
        ("train", [str(i) for i in range(73_257)], 65_931, "21145 64736 23870"),
        ("train", [str(i) for i in range(24_300)], 0, "16399 1680 17307 1456 19135"),
        ("test", [str(i) for i in range(24_300)], 0, "23018 16932 19084"),
        ("train", [f"CLEVR_train_{i:06d}.png" for i in range(70_000)], 0, "43876 33421 62025 21419 4851"),
        ("train", [f"CLEVR_train_{i:06d}.png" for i in range(70_000)], 63_000, "35084 29360 4525"),
        ("train", [f"train_{i}" for i in range(262_144)], 0, "251464 132287 133786 86259 230288"),
        ("validation", [f"valid_{i}" for i in range(32_768)], 0, "3270 10310 20603"),
    ],
)
def test_record_order(split: str, keys: list[str], first: int, expected: str) -> None:
    wanted = [int(number) for number in expected.split()]
    order = record_order(split, keys)
    assert order[first : first + len(wanted)].tolist() == wanted
    assert len(np.unique(order)) == len(keys)


def test_slices() -> None:
    sizes = {"train": 73_257, "test": 11}
    assert parse_slice("train[:90%]", sizes) == ("train", 0, 65_931)
    assert parse_slice("train[90%:]", sizes) == ("train", 65_931, 73_257)
    assert parse_slice("test[2:5]", sizes) == ("test", 2, 5)
    assert parse_slice("test", sizes) == ("test", 0, 11)
    with pytest.raises(ConfigError, match=r"'train\[800\]' is not a slice; allowed"):
        parse_slice("train[800]", sizes)
    with pytest.raises(ConfigError, match=r"unknown split 'tests' \(did you mean 'test'\?\)"):
        parse_slice("tests", sizes)
    with pytest.raises(DataError, match=r"reaches record 12, but split 'test' has 11"):
        parse_slice("test[:12]", sizes)


def test_too_few_records() -> None:
    with pytest.raises(DataError, match="train800 needs 800 records, 'train' has 500"):
        split_ranges(load_task("dtd"), "train800", {"train": 500, "validation": 200, "test": 1})
    with pytest.raises(ConfigError, match=r"unknown split 'train' .*did you mean 'train800'"):
        split_ranges(load_task("dtd"), "train", {})


def test_subset() -> None:
    assert subset(7, None).tolist() == subset(7, 7).tolist() == subset(7, 100).tolist() == list(range(7))
    picked = subset(1000, 100)
    assert len(np.unique(picked)) == 100 and (np.diff(picked) > 0).all()
    assert picked[:5].tolist() == subset(1000, 100)[:5].tolist()
    assert set(subset(1000, 10)) <= set(picked)
    assert np.histogram(picked, 4, (0, 1000))[0].min() >= 15
    with pytest.raises(ConfigError, match="a subset needs at least 1 image, got 0"):
        subset(7, 0)

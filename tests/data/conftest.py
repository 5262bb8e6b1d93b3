"""Small list-file trees and tasks for the data tests; the cache lies in a temporary folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from headwise.data.tasks import VTABTask

REPO = Path(__file__).parents[2]
SHARED = Path(os.environ.get("HEADWISE_SHARED", REPO.parent / "shared"))
COUNTS = {"train800": 4, "val200": 2, "train800val200": 6, "test": 5}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HEADWISE_CACHE", str(folder))
    return folder


def load_task(name: str, **changes: object) -> VTABTask:
    plain = yaml.safe_load((REPO / "conf" / "dataset" / f"{name}.yaml").read_text())
    assert plain.pop("_target_") == "headwise.data.tasks.VTABTask"
    return VTABTask(**(plain | changes))


def write_tree(
    folder: Path, counts: dict[str, int] | None = None, num_classes: int = 3, size: tuple[int, int] = (120, 100)
) -> Path:
    """A list-file tree with random images; train800val200 names the images of its parts."""
    counts = counts or COUNTS
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {}
    for split in ("train800", "val200", "test"):
        (folder / "images" / split).mkdir(parents=True)
        lines[split] = []
        for i in range(counts[split]):
            path = f"images/{split}/{i}.png"
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / path)
            lines[split].append(f"{path} {i % num_classes}")
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for split, rows in lines.items():
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Root with one task folder, ``toy``."""
    write_tree(tmp_path / "root" / "toy")
    return tmp_path / "root"


@pytest.fixture
def toy() -> VTABTask:
    return VTABTask(name="toy", group="natural", num_classes=3, num_test=5, folders=["toy", "other"])


@pytest.fixture
def shared_tree() -> Path:
    root = SHARED / "data" / "vtab-1k"
    if not root.is_dir():
        pytest.skip(f"{root} is absent; set HEADWISE_SHARED")
    return root



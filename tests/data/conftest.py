"""Fixtures of the data tests: a small list-file tree, its task, and a cache in a temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_trees import SHARED, write_tree

from headwise.data.tasks import VTABTask


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HEADWISE_CACHE", str(folder))
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Root of a tree with one task folder, ``toy``."""
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

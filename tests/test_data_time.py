"""The benchmark of reading measures what it says; its times are not tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwise.data.preparing.cachebuild import build
from headwise.data.sources import CacheSource, FolderSource
from made_scripts import loaded


@pytest.fixture(scope="module")
def data_time() -> Any:
    return loaded("data_time")


def test_both_sides_give_the_same_batches(data_time: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
    task = data_time.write_photos(tmp_path / "tree", 9)
    folder = FolderSource(tmp_path / "tree")
    build(folder, [task], data_time.SIZE, "pil_bicubic", tmp_path / "caches")
    cache = CacheSource(tmp_path / "caches")
    one, two = (source.load(task, "test", data_time.SIZE).images for source in (folder, cache))
    np.testing.assert_array_equal(one, two)
    assert one.std() > 10, "a photograph's contrast"
    assert all(data_time.test_rate(lambda source=source: source, task) > 0 for source in (folder, cache))


def test_options_that_cannot_be_measured_are_refused(data_time: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        data_time.parse(["--images", "0"])
    assert "--images must be a whole number in 1.." in capsys.readouterr().err

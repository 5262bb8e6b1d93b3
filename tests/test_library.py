"""docs/howto/library.md: its code, block after block, and the package that it is installed from."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headwise.artifacts import published
from made_networks import REPO, distance

BLOCKS = re.findall(
    r"```python\n(.*?)```", (REPO / "docs" / "howto" / "library.md").read_text("utf-8"), flags=re.DOTALL
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the images that the page names."""
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "photos/a.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_of_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the export itself, which test_published.py looks at on smaller networks."""

    def export(*given: Any, **options: Any) -> None:
        Path(signature.bind(*given, **options).arguments["file"]).touch()

    signature = inspect.signature(published.write_onnx)
    monkeypatch.setattr(published, "write_onnx", export)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "library.md", "exec"), names)
    assert [row.path for row in names["rows"]] == ["a.png"] and (place / "answers.csv").is_file()
    assert (place / "pets" / "adapter.json").is_file() and names["result"].accuracy is not None
    logits = {name: value.detach() for name, value in names["logits"].items()}
    assert distance(logits["default"], logits["pets"]) < 1e-5, "one and the same"
    assert tuple(logits[None].shape) == (8, 192), "no classifier: features"
    assert (place / "hub" / "README.md").is_file() and (place / "pets.onnx").is_file()
    assert len(BLOCKS) == 5


@pytest.mark.slow
def test_an_installed_package_needs_no_checkout(tmp_path: Path) -> None:
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    with tarfile.open(tmp_path / "source.tar", "w") as archive:
        for name in filter(None, listed):
            if not name.startswith("docs/results"):
                archive.add(REPO / name, name)
    with tarfile.open(tmp_path / "source.tar") as archive:
        archive.extractall(source, filter="data")
    build = f"from setuptools import build_meta as b; b.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    options = "weights='none', num_classes=2"
    code = f"import headwise; print(headwise.__file__); headwise.adapt('vit_tiny_random', {options}).merge()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and str(tmp_path / "installed") in done.stdout, done.stderr

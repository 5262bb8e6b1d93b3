"""Tasks from the configuration and small list-file trees with random images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from headwise.data.tasks import VTABTask

REPO = Path(__file__).parents[2]
SHARED = Path(os.environ.get("HEADWISE_SHARED", REPO.parent / "shared"))
COUNTS = {"train800": 4, "val200": 2, "test": 5}


def load_task(name: str, **changes: object) -> VTABTask:
    plain = yaml.safe_load((REPO / "conf" / "dataset" / f"{name}.yaml").read_text())
    assert plain.pop("_target_") == "headwise.data.tasks.VTABTask"
    return VTABTask(**(plain | changes))


def write_tree(
    folder: Path, counts: dict[str, int] = COUNTS, num_classes: int = 3, size: tuple[int, int] = (120, 100)
) -> Path:
    """List files and PNG images (height, width); train800val200 names the images of its two parts."""
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
        write_lines(folder / f"{split}.txt", rows)
    return folder


def write_lines(file: Path, rows: list[str]) -> None:
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")

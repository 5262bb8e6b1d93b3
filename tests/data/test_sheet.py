"""Contact sheets, and the script that writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from made_trees import REPO, load_task
from PIL import Image

from headwise.data.pixels import Pixels
from headwise.data.sheet import contact_sheet
from made_cases import each


def test_images_stand_in_the_order_of_their_classes() -> None:
    images = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    images[0], images[1], images[2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    sheet = contact_sheet(Pixels(images, np.array([2, 0, 1])), load_task("cifar100"), "title", columns=2, side=20)
    assert sheet.getpixel((10, 30)) == (0, 255, 0) and sheet.getpixel((40, 30)) == (0, 0, 255)
    assert sheet.getpixel((10, 70)) == (255, 0, 0)
    assert sheet.size == (160, 22 + 2 * 40 + 6)


@each("channels", [1, 3])
def test_grey_and_long_names(channels: int) -> None:
    images = np.full((1, 4, 4, channels), 200, dtype=np.uint8)
    sheet = contact_sheet(Pixels(images, np.array([300])), load_task("sun397"), "t" * 200, columns=8, side=30)
    assert sheet.getpixel((10, 30)) == (200, 200, 200)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = REPO / "scripts" / "show_task.py"
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_script_writes_a_picture(tmp_path: Path) -> None:
    done = run("fewshot/pets", "--data", "synthetic", "--rows", "1", "--columns", "3", "--shots", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "outputs" / "fewshot_pets.png") as sheet:
        assert sheet.size == (3 * 102 + 6, 22 + 116 + 6)


@each(
    "arguments, message",
    [
        (["cifar10"], "error: unknown task 'cifar10' (did you mean 'cifar100'?)"),
        (["../config"], "error: unknown task '../config'"),
        (["svhn", "--data", "tfds"], "error: --data tfds needs --root PATH"),
        (["own/folder"], "error: own/folder needs --num-classes"),
        (["svhn", "--rows", "0"], "error: --rows must be a whole number in 1.."),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2) and message in done.stderr and not list(tmp_path.iterdir())

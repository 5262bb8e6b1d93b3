"""Images that are no squares: squeezed, their middle, or the whole of them between bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_trees import load_task, write_tree
from PIL import Image

from headwise.data.decode import RESIZES, SHAPES, squared
from headwise.data.sources import AutoSource, FolderSource
from headwise.errors import ConfigError
from made_cases import each

IMAGE = np.arange(4 * 10 * 3, dtype=np.uint8).reshape(4, 10, 3)


def test_the_middle_or_bars_in_the_mean_colour() -> None:
    assert squared(IMAGE, "squash") is IMAGE
    assert (squared(IMAGE, "crop") == IMAGE[:, 3:7]).all()
    padded = squared(IMAGE.transpose(1, 0, 2), "pad")
    assert padded.shape == (10, 10, 3) and (padded[:, 3:7] == IMAGE.transpose(1, 0, 2)).all()
    assert (padded[:, [0, 1, 2, 7, 8, 9]] == np.rint(IMAGE.mean((0, 1)))).all()


def test_a_crop_is_that_of_a_resized_short_side() -> None:
    smooth = np.asarray(Image.fromarray(IMAGE).resize((300, 120), Image.Resampling.BILINEAR))
    ours = RESIZES["pil_bicubic"](squared(smooth, "crop"), 40).astype(int)
    whole = np.asarray(Image.fromarray(smooth).resize((100, 40), Image.Resampling.BICUBIC))[:, 30:70].astype(int)
    assert np.abs(ours - whole)[:, 2:-2].max() <= 2, "but for what lies beyond the edges of the crop"


@each("size", [(120, 200), (40, 60)])
def test_sources_give_squares_and_say_so_in_the_fingerprint(size: tuple[int, int], tmp_path: Path) -> None:
    write_tree(tmp_path / "dtd", size=size)
    task = load_task("dtd")
    sources = {shape: FolderSource(tmp_path, resize=shape) for shape in SHAPES}
    assert sources["squash"].fingerprint(task) == FolderSource(tmp_path).fingerprint(task)
    assert len({source.fingerprint(task) for source in sources.values()}) == 3
    pixels = {shape: source.load(task, "test", 32).images for shape, source in sources.items()}
    assert all(
        (pixels["squash"].shape != image.shape) or (pixels["squash"] != image).any()
        for image in (pixels["crop"], pixels["pad"])
    )
    for shape in ("crop", "pad"):
        assert pixels[shape].shape[1] == pixels[shape].shape[2]
        assert (AutoSource(tmp_path, resize=shape).load(task, "test", 32).images == pixels[shape]).all()


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown data\.resize='padd' \(did you mean 'pad'\?\)"):
        FolderSource(tmp_path, resize="padd")
    with pytest.raises(ConfigError, match=r"data\.resize=crop is for images as they lie"):
        AutoSource(resize="crop").fingerprint(load_task("dsprites_loc"))

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from headwise.data.decode import RESIZES, decode, decode_all, fit_all
from headwise.errors import ConfigError, DataError
from made_cases import each

RGB = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def saved(tmp_path: Path, image: Image.Image, suffix: str = ".png") -> Path:
    path = tmp_path / f"image{suffix}"
    image.save(path)
    return path


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    alpha = np.full((8, 10, 1), 77, dtype=np.uint8)
    grey3 = np.repeat(GREY[..., None], 3, axis=2)
    deep = GREY.astype(np.uint16) * 257
    palette = Image.fromarray(GREY % 4).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [1, 2, 3]], dtype=np.uint8)
    cases = {
        "rgb": (Image.fromarray(RGB), ".png", RGB),
        "rgba": (Image.fromarray(np.concatenate([RGB, alpha], axis=2)), ".png", RGB),
        "grey": (Image.fromarray(GREY), ".png", grey3),
        "grey and alpha": (Image.fromarray(np.stack([GREY, alpha[..., 0]], axis=2)), ".png", grey3),
        "16 bit": (Image.fromarray(deep), ".png", grey3),
        "32 bit": (Image.fromarray(deep.astype(np.int32)), ".tif", grey3),
        "palette": (palette, ".png", colours[np.asarray(palette)]),
        "1 bit": (Image.fromarray(GREY > 127), ".png", np.repeat((GREY > 127)[..., None], 3, axis=2) * 255),
        "cmyk": (Image.fromarray(RGB).convert("CMYK"), ".tif", RGB),
    }
    for name, (image, suffix, expected) in cases.items():
        decoded = decode(saved(tmp_path, image, suffix), 3, "here")
        assert decoded.dtype == np.uint8 and decoded.flags.writeable, name
        np.testing.assert_array_equal(decoded, expected, err_msg=name)


def test_palette_with_transparency_warns_of_nothing(tmp_path: Path) -> None:
    image = Image.fromarray(GREY % 4).convert("P")
    image.save(tmp_path / "p.png", transparency=bytes([0, 128, 255, 255]))
    assert decode(tmp_path / "p.png", 3, "here").shape == (8, 10, 3)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 16), (200, 30, 60))
    decoded = decode(saved(tmp_path, flat.convert("CMYK"), ".jpg"), 3, "here")
    assert np.abs(decoded.astype(int) - [200, 30, 60]).max() <= 6


def test_grey_tasks_keep_one_channel(tmp_path: Path) -> None:
    decoded = decode(saved(tmp_path, Image.fromarray(GREY)), 1, "here")
    np.testing.assert_array_equal(decoded, GREY[..., None])
    assert decode(saved(tmp_path, Image.fromarray(RGB)), 1, "here").shape == (8, 10, 1)


def jpeg_bytes() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@each(
    "content, message",
    [
        (b"", r"test.txt, line 7: image .*broken.jpg' is empty \(0 bytes\)"),
        (b"no image at all", r"test.txt, line 7: image .*broken.jpg' cannot be decoded \(cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "as one of BMP, GIF, JPEG"),
        (jpeg_bytes()[:1500], r"test.txt, line 7: image .*broken.jpg' cannot be decoded \(.*truncated"),
        (jpeg_bytes()[:40], r"test.txt, line 7: image .*broken.jpg' cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, r"test.txt, line 7: image .*broken.jpg' cannot be decoded"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message):
        decode_all([(tmp_path / "broken.jpg", "test.txt, line 7")], 3, 32, "pil_bicubic")


def test_values_without_an_8_bit_equivalent(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), ".tif")
    with pytest.raises(DataError, match=r"line 1: image .* no 8-bit equivalent"):
        decode(path, 3, "line 1")


def test_large_images_are_resized_as_pil_does(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(image))
    images, native = decode_all([(path, "")], 3, 32, "pil_bicubic")
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    assert not native
    np.testing.assert_array_equal(images[0], expected)


def test_small_images_stay_native_if_all_agree(tmp_path: Path) -> None:
    paths = []
    for name, side in (("a", 20), ("b", 20), ("c", 24)):
        paths.append(tmp_path / f"{name}.png")
        Image.new("L", (side, side)).save(paths[-1])
    images, native = decode_all([(path, "") for path in paths[:2]], 1, 32, "pil_bicubic")
    assert native and images.shape == (2, 20, 20, 1)
    images, native = decode_all([(path, "") for path in paths], 1, 32, "pil_bicubic")
    assert not native and images.shape == (3, 32, 32, 1)


def test_drawn_images_are_resized_only_above_the_native_limit() -> None:
    small, large = np.zeros((2, 96, 96, 1), np.uint8), np.zeros((2, 97, 90, 3), np.uint8)
    assert fit_all(small, 32, "pil_bicubic")[0] is small
    images, native = fit_all(large, 32, "tf_bilinear")
    assert images.shape == (2, 32, 32, 3) and not native


@each("shape", [(37, 61, 3), (200, 150, 3), (5, 9, 1)])
def test_tf_bilinear_is_interpolate_without_antialiasing(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    expected = F.interpolate(tensor, (48, 48), mode="bilinear", align_corners=False, antialias=False)
    difference = RESIZES["tf_bilinear"](image, 48) - expected[0].permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 0.51


def test_unknown_resize() -> None:
    with pytest.raises(ConfigError, match=r"unknown resize 'bicubic' \(did you mean 'pil_bicubic'\?\)"):
        decode_all([], 3, 32, "bicubic")

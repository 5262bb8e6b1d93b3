"""A user's own images: upright, with all their bits, and looked at before a number is made with them."""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_trees import load_task, write_lines
from numpy.typing import NDArray
from PIL import Image, ImageOps

from headwise.data import notices, own
from headwise.data.decode import decode
from headwise.data.own import look, notes
from headwise.data.stored import Facts, Reading, facts
from headwise.data.stores.folder import FolderSource
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError, DataError
from made_cases import each

ORIENTATIONS = range(1, 9)
RNG = np.random.default_rng(0)
SCENE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setattr(own, "FEW", 0)  # that these folders have few test images is no news


def png16(values: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a value, which PIL cannot write in colour: (H, W) or (H, W, 2 .. 4)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    kind = 0 if values.ndim == 2 else {2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values: NDArray[np.uint16], order: str) -> bytes:
    """An uncompressed TIFF of three values of 16 bits, (H, W, 3), in byte order ``<`` or ``>``."""
    height, width, _ = values.shape
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14)]
    tags += [(277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, values.nbytes), (284, 3, 1, 1)]
    pixels = values.astype(f"{order}u2").tobytes()
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        pair = struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + pair
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 14 + len(pixels))
    return head + struct.pack(f"{order}HHH", 16, 16, 16) + pixels + directory + struct.pack(f"{order}I", 0)


def save(path: Path, content: Image.Image | bytes, orientation: int = 1) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        exif = content.getexif()
        exif[0x0112] = orientation
        content.save(path, **({"exif": exif} if orientation != 1 else {}))
    return path


def tree(root: Path, images: dict[str, Image.Image | bytes], **lists: list[str]) -> tuple[FolderSource, VTABTask]:
    """A user's folder of images and list files, and its task of as many classes as there are."""
    root.mkdir(exist_ok=True)
    for name, content in images.items():
        save(root / name, content)
    for name, rows in lists.items():
        write_lines(root / f"{name}.txt", rows)
    most = max(int(row.rpartition(" ")[2]) for rows in lists.values() for row in rows)
    return FolderSource(root), load_task("own/folder", num_classes=max(2, most + 1))


def plain(number: int) -> Image.Image:
    return Image.new("RGB", (100, 110), (number, 2 * number, 3))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_own_photographs_are_turned_upright_and_official_ones_are_not(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    file = save(tmp_path / f"photo{suffix}", Image.fromarray(SCENE), orientation)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        stored = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(file, 3, "here", Reading()), expected)
    np.testing.assert_array_equal(decode(file, 3, "here"), stored)
    assert facts(file).orientation == (1 if suffix == ".tif" else orientation), "PIL turns a TIFF by itself"
    assert decode(file, 3, "here", Reading()).flags.writeable


@each("value", [0, 9, 65535, "6", (6, 6)])
def test_an_orientation_that_is_none_is_ignored(value: object) -> None:
    image = Image.fromarray(SCENE)
    image.getexif()[0x0112] = value
    assert facts(image) == Facts()


@pytest.mark.parametrize("seed", range(40))
def test_damaged_exif_never_ends_in_a_traceback(tmp_path: Path, seed: int) -> None:
    save(tmp_path / "photo.jpg", Image.fromarray(SCENE), 6)
    content = bytearray((tmp_path / "photo.jpg").read_bytes())
    random = np.random.default_rng(seed)
    for place in random.integers(20, 80, 3):
        content[place] = random.integers(256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of the damage
        file = save(tmp_path / "damaged.jpg", bytes(content))
        assert facts(file).orientation in ORIENTATIONS
        try:
            assert decode(file, 3, "here", Reading()).shape[2] == 3
        except DataError as error:
            assert "here: image" in str(error)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["grey", "grey and alpha", "rgb", "rgba", "tiff <", "tiff >", "grey tiff"])
def test_all_bits_of_deep_images_count(tmp_path: Path, bits: int, kind: str) -> None:
    top = 2**bits - 1
    values = np.linspace(0, top, 20 * 13 * 3).round().astype(np.uint16).reshape(20, 13, 3)
    alpha = np.full((20, 13, 1), top, np.uint16)
    grey = np.repeat(values[..., :1], 3, axis=2)
    content, expected = {
        "grey": (png16(values[..., 0]), grey),
        "grey and alpha": (png16(np.concatenate([values[..., :1], alpha], axis=2)), grey),
        "rgb": (png16(values), values),
        "rgba": (png16(np.concatenate([values, alpha], axis=2)), values),
        "tiff <": (tiff16(values, "<"), values),
        "tiff >": (tiff16(values, ">"), values),
        "grey tiff": (_grey_tiff(values[..., 0]), grey),
    }[kind]
    file = save(tmp_path / "deep", content)
    found = decode(file, 3, "here", Reading())
    largest = int(expected.max())
    assert facts(file).depth == next(depth for depth in (8, 10, 12, 14, 16) if largest < 2**depth)
    np.testing.assert_array_equal(decode(file, 3, "here", Reading(bits)), np.rint(expected / top * 255))
    np.testing.assert_array_equal(found, decode(file, 3, "here", Reading(facts(file).depth)))
    if bits < 16:
        np.testing.assert_array_equal(decode(file, 3, "here", Reading(16)), np.rint(expected / 65535 * 255))


def _grey_tiff(values: NDArray[np.uint16]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF", compression="tiff_lzw")
    return stream.getvalue()


def test_official_images_of_16_bits_stay_as_they_were(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (5, 7, 3)).astype(np.uint16)
    grey, colour = save(tmp_path / "grey.png", png16(values[..., 0])), save(tmp_path / "rgb.png", png16(values))
    np.testing.assert_array_equal(decode(grey, 1, "here")[..., 0], (values[..., 0].astype(int) + 128) // 257)
    np.testing.assert_array_equal(decode(colour, 3, "here"), values >> 8)


def test_depth_is_one_for_all_images_found_or_stated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dark, bright = np.full((100, 100), 500, np.uint16), np.full((100, 100), 4000, np.uint16)
    images: dict[str, Image.Image | bytes] = {"a.png": png16(dark), "b.png": png16(bright), "c.png": plain(1)}
    source, task = tree(tmp_path / "own", images, train=["a.png 0", "c.png 1"], test=["b.png 1", "c.png 1"])
    assert source.depth(task) == 12, "a value is as bright in every image as in any other"
    assert source.load(task, "train800val200", 32).images[:, 0, 0, 0].tolist() == [round(500 / 4095 * 255), 1]
    assert "2 images of more than 8 bits a value, read as 12 bits (found from the largest value" in caplog.text
    stated = replace(task, depth=16)
    assert source.depth(stated) == 16
    assert source.load(stated, "test", 32).images[0, 0, 0, 0] == round(4000 / 257)
    assert source.fingerprint(task) == source.fingerprint(replace(task, depth=12)) != source.fingerprint(stated)
    with pytest.raises(DataError, match=r"test.txt, line 1: image .*b.png' .*up to 4000, which do not fit 11 bits"):
        source.load(replace(task, depth=11), "test", 32)
    for depth in (7, 17, True, 2.5):
        with pytest.raises(ConfigError, match=r"depth.*(must be a whole number|8 to 16 bits)"):
            replace(task, depth=depth)
    with pytest.raises(ConfigError, match="only a user's own images"):
        load_task("svhn", depth=12)


def test_identity_changes_exactly_where_pixels_do(tmp_path: Path) -> None:
    """Same files: an official task's fingerprint never moves, an own one's where EXIF or depth now counts."""
    tilted = Image.fromarray(SCENE)
    tilted.getexif()[0x0112] = 6
    stream = io.BytesIO()
    tilted.save(stream, "PNG", exif=tilted.getexif())
    deep = png16(np.full((9, 9, 3), 4000, np.uint16))
    for name, content, changes in (
        ("plain", plain(3), False),
        ("tilted", stream.getvalue(), True),
        ("deep", deep, True),
    ):
        images: dict[str, Image.Image | bytes] = {"a.png": content, "b.png": plain(1)}
        source, task = tree(tmp_path / name, images, train=["a.png 0"], test=["b.png 1"])
        write_lines(tmp_path / name / "train800val200.txt", ["a.png 0"])
        as_stored = replace(task, group="natural")
        assert (source.fingerprint(task) != source.fingerprint(as_stored)) is changes, name
        assert source.fingerprint(task, ("test",)) == source.fingerprint(as_stored, ("test",)), name


def test_a_photograph_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images: dict[str, Image.Image | bytes] = {f"{i}.png": plain(i) for i in range(4)}
    source, task = tree(tmp_path / "own", images, train=["0.png 0", "1.png 1"], test=["2.png 0", "3.png 1"])
    first = source.fingerprint(task)
    monkeypatch.setattr(own, "facts", lambda file: pytest.fail(f"{file} opened again"))
    assert FolderSource(tmp_path / "own").fingerprint(task) == first


def test_two_labels_of_one_image_are_refused(tmp_path: Path) -> None:
    """Same path or same bytes, within a list or across lists, also by lists that a run does not use."""
    images: dict[str, Image.Image | bytes] = {
        "a.png": plain(1),
        "b.png": plain(2),
        "copy.png": plain(1),
        "d.png": plain(4),
    }
    cases = [
        ({"train": ["a.png 0", "b.png 1", "a.png 1"], "test": ["d.png 0"]},
         r"1 image with two labels .*'a.png' is 0 \(train.txt, line 1\) and 1 \(train.txt, line 3\)"),
        ({"train": ["a.png 0", "b.png 1"], "test": ["copy.png 1"]},
         r"'a.png' is 0 \(train.txt, line 1\) and as 'copy.png' 1 \(test.txt, line 1\)"),
        ({"train": ["a.png 0", "b.png 1"], "test": ["d.png 0"], "val": ["b.png 0"]}, r"'b.png' is "),
        ({"train": ["a.png 0", "b.png 0"], "test": ["a.png 1", "b.png 1"]}, r"2 images with two labels .*; 'b.png' is"),
    ]  # fmt: skip
    for number, (lists, message) in enumerate(cases):
        source, task = tree(tmp_path / str(number), images, **lists)
        with pytest.raises(DataError, match=message):
            source.fingerprint(task)
        write_lines(tmp_path / str(number) / "train800val200.txt", lists["train"])
        assert source.fingerprint(replace(task, group="natural")), "official lists are what they are"


def test_test_images_in_train_are_a_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images: dict[str, Image.Image | bytes] = {f"{i}.png": plain(i) for i in range(5)} | {"copy.png": plain(0)}
    source, task = tree(
        tmp_path / "own", images, train=["0.png 0", "1.png 1", "2.png 0"], test=["1.png 1", "copy.png 0", "3.png 0"]
    )
    assert source.labels(task) == ["own data", "test images in train: 2"]
    source.load(task, "train800val200", 32)
    FolderSource(tmp_path / "own").load(task, "test", 32)
    line = "task 'folder': 2 images of test.txt also in train.txt (same bytes): '1.png', 'copy.png'"
    assert caplog.messages.count(line) == 1 and len(caplog.messages) == 1


def test_the_rest_is_said_once_with_counts_and_examples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images: dict[str, Image.Image | bytes] = {f"{i}.png": plain(i) for i in range(6)} | {"copy.png": plain(1)}
    source, task = tree(
        tmp_path / "own",
        images,
        train=["0.png 0", "1.png 1", "0.png 0", "copy.png 1", "1.png 1", "4.png 3"],
        val=["2.png 0", "1.png 1"],
        test=["3.png 0", "2.png 0"],
    )
    named = replace(task, num_classes=5, class_names=["a", "b", "c", "d", "e"])
    assert source.labels(named) == ["own data"]
    with caplog.at_level(logging.WARNING):
        source.load(named, "train800val200", 32)
        source.load(named, "test", 32)
    said = [message.removeprefix("task 'folder': ") for message in caplog.messages]
    assert said == [
        "1 image of test.txt also in val.txt (same bytes): '2.png'",
        "1 image of val.txt also in train.txt (same bytes): '1.png'",
        "3 images listed more than once in train.txt (same bytes): '0.png', 'copy.png', ...",
        "2 of 5 classes without training images: 2 (c), 4 (e)",
        "4 of 5 classes without test images: 1 (b), 2 (c), ...",
    ]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_several_pictures_the_first_is_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    first, *rest = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "white"))
    file = tmp_path / f"moving{suffix}"
    first.save(file, save_all=True, append_images=rest, lossless=True)
    assert facts(file).has_more
    red, *others = decode(file, 3, "here", Reading())[0, 0]
    assert red > 250
    assert others == [0, 0]
    assert notes(facts(file), None) == ["of files with several pictures the first is taken"]


def test_a_folder_whose_name_is_no_text_is_read(tmp_path: Path) -> None:
    link = tmp_path / "folder"
    there = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff"))
    there.mkdir()
    link.symlink_to(there)
    assert look({}, {}, link) == {}


def test_a_clean_folder_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images: dict[str, Image.Image | bytes] = {f"{i}.png": plain(i) for i in range(6)}
    lists = {"train": ["0.png 0", "1.png 1", "2.png 0"], "val": ["2.png 0"], "test": ["4.png 0", "5.png 1"]}
    source, task = tree(tmp_path / "own", images, **lists)
    source.load(task, "train800val200", 32)
    assert source.labels(task) == ["own data"] and not caplog.messages, "val.txt may be a part of train.txt"

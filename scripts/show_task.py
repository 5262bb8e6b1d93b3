"""Look at a task: python scripts/show_task.py TASK writes a contact sheet with class names, from any source.

TASK is a file of conf/dataset: svhn, clevr_dist, fewshot/pets (with --shots).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headwise.cli import exclusive, force_option, script
from headwise.commands.arguments import OutFile, Parser, Whole, old_folder

if TYPE_CHECKING:
    from headwise.data.sources import Source
    from headwise.data.tasks import VTABTask

MOST_PIXELS = 100_000_000
LABEL = 32
"""Pixels that an image's place takes at least."""
CONF = Path(__file__).resolve().parent.parent / "conf" / "dataset"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", metavar="TASK", help="name of a file in conf/dataset")
    parser.add_argument("--data", default="auto", choices=("auto", "folder", "tfds", "synthetic"), help="where from")
    parser.add_argument("--root", type=old_folder, help="folder of the images or records")
    parser.add_argument("--split", default="train800val200", help="train800, val200, train800val200 or test")
    parser.add_argument("--rows", type=Whole(1, MOST_PIXELS), default=4, help="rows of images (4)")
    parser.add_argument("--columns", type=Whole(1, MOST_PIXELS), default=8, help="images in a row (8)")
    parser.add_argument("--side", type=Whole(1, MOST_PIXELS), default=96, help="pixels of an image on the sheet (96)")
    parser.add_argument("--shots", type=Whole(1, 16), help="of a few-shot set (4)")
    parser.add_argument("--draw", type=Whole(0, 2), help="of a few-shot set (0)")
    parser.add_argument("--lossy", action="store_true", help="drawn images as they come back from JPEG")
    parser.add_argument("--num-classes", type=Whole(2, MOST_PIXELS), help="of your own images (own/folder)")
    parser.add_argument("--out", type=OutFile(), help="PNG to write (outputs/TASK.png)")
    force_option(parser)
    return parser.parse_args(arguments)


def read_task(name: str, options: argparse.Namespace) -> VTABTask:
    """The task of a file in conf/dataset."""
    import yaml

    from headwise.data.found import with_classes
    from headwise.data.tasks import VTABTask
    from headwise.errors import ConfigError, suggest

    file = (CONF / f"{name}.yaml").resolve()
    if not file.is_file() or CONF not in file.parents:
        known = [path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml")]
        raise ConfigError(f"unknown task {name!r}{suggest(name, known)}")
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    del plain["_target_"]
    if "shots" in plain:
        usual = {"shots": 4, "draw": 0}
        plain |= {key: usual[key] if (given := getattr(options, key)) is None else given for key in usual}
    else:
        exclusive({"--shots": options.shots, "--draw": options.draw}, f"to task {name}, which is no few-shot set")
    if options.num_classes is not None:
        if plain["num_classes"] is not None:
            exclusive(
                {"--num-classes": options.num_classes}, f"to task {name}, which has {plain['num_classes']} classes"
            )
        plain["num_classes"] = options.num_classes
    if plain["num_classes"] is None and options.root is None:
        raise ConfigError(f"{name} needs --num-classes, or --root PATH to find them in")
    plain = with_classes(plain, {"root": str(options.root)})
    return VTABTask(**plain)


def open_source(options: argparse.Namespace) -> Source:
    """The source that ``--data`` names."""
    from headwise.data.sources import AutoSource, FolderSource, SyntheticSource, TFDSSource
    from headwise.errors import ConfigError

    if options.data == "auto":
        return AutoSource(options.root)
    if options.data == "synthetic":
        exclusive({"--root": options.root}, "to drawn images (--data synthetic)")
        return SyntheticSource(lossy=options.lossy)
    if options.root is None:
        raise ConfigError(f"--data {options.data} needs --root PATH")
    return FolderSource(options.root) if options.data == "folder" else TFDSSource(options.root)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    from headwise.commands.written import writing
    from headwise.data.sheet import contact_sheet
    from headwise.errors import ConfigError
    from headwise.storage import atomic

    if options.rows * options.columns * max(options.side, LABEL) ** 2 > MOST_PIXELS:
        raise ConfigError(
            f"--rows {options.rows} --columns {options.columns} --side {options.side} is a sheet of more than "
            f"{MOST_PIXELS // 10**6} million pixels; choose less of one"
        )
    if options.lossy and options.data != "synthetic":
        raise ConfigError(f"--lossy is for drawn images, with --data synthetic; got --data {options.data}")
    task, source = read_task(options.task, options), open_source(options)
    out = options.out or Path("outputs") / f"{task.name}.png"
    if out.suffix not in ("", ".png") or not out.name:
        raise ConfigError(f"--out names a PNG file, got {str(options.out)!r}")
    out = out if out.is_dir() else out.with_suffix(".png")
    with writing(out, force=options.force):
        pixels = source.load(task, options.split, options.side, limit=options.rows * options.columns)
        total, labels = source.count(task, options.split), "".join(f" [{label}]" for label in source.labels(task))
        title = f"{task.name}: {options.split}, {total:,} images{labels}"
        sheet = contact_sheet(pixels, task, title, options.columns, options.side)
        with atomic.replacing(out) as part:
            sheet.save(part, optimize=True)
        print(f"{out}: {len(pixels.labels)} of {total:,} images{labels}")
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""How much memory images take: the peak of a process that trains on, or tests, many of one's own at 224 pixels.

Photo-like JPEG files are written once and linked under as many names as are asked for. Each measurement is a process of
its own that reads every batch once, as a run does, without a network. The same batches from memory and from a file
give one digest; where they do not, the exit status is 1. With ``--task retinopathy`` the images lie in a list-file tree
of that task, with as many test images as it has.

    python benchmarks/data_memory.py --images 6000 20000
    python benchmarks/data_memory.py --task retinopathy
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from headwise.cli import script
from headwise.commands.arguments import Parser, Real, Whole, old_folder, record_file
from headwise.errors import HeadwiseError
from headwise.storage import atomic

REPO = Path(__file__).resolve().parents[1]
SIZE, BATCH, EVAL_BATCH, NUM_PHOTOS, SIDE = 224, 64, 256, 8, 128
GIB = 1 << 30


def write_tree(root: Path, images: int, is_own: bool) -> None:
    """A training and a test list of as many images, links to a few JPEG files; an official set trains on 1,000."""
    rng = np.random.default_rng(0)
    for number in range(NUM_PHOTOS):
        noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(root / f"photo{number}.jpg", quality=90)
    for split, several, file in (
        ("train", images if is_own else 1000, "train" if is_own else "train800val200"),
        ("test", images, "test"),
    ):
        (root / split).mkdir()
        for number in range(several):
            os.link(root / f"photo{number % NUM_PHOTOS}.jpg", root / split / f"{number}.jpg")
        lines = (f"{split}/{number}.jpg {number % NUM_PHOTOS % 2}\n" for number in range(several))
        (root / f"{file}.txt").write_text("".join(lines))


def measure(root: Path, task: str, split: str, memory: float | None) -> dict[str, Any]:
    """Read all batches of a split in this process; the peak of memory, and a digest of what was read."""
    from headwise.data.stores.folder import FolderSource
    from headwise.data.tasks import VTABTask
    from headwise.data.vtab import VTABDataModule

    plain = yaml.safe_load((REPO / "conf" / "dataset" / f"{task}.yaml").read_text())
    plain |= {"num_classes": 2, "folders": ["."]}
    plain.pop("_target_"), plain.pop("class_names", None)
    options = {} if memory is None else {"memory": memory}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    data = VTABDataModule(VTABTask(**plain), FolderSource(root, **options), SIZE, BATCH, eval_batch_size=EVAL_BATCH)
    sha, count = hashlib.sha256(), 0
    for images, labels in data.train_dataloader() if split == "train" else data.test_dataloader():
        sha.update(images.contiguous().numpy().data)
        count += len(labels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - began
    return {
        "split": split,
        "read": count,
        "gib_of_images": round(count * SIZE * SIZE * 3 / GIB, 2),
        "memory": memory,
        "gib_before": round(before / (1 << 20), 2),
        "gib_peak": round(peak / (1 << 20), 2),
        "seconds": round(seconds, 1),
        "digest": sha.hexdigest(),
    }


def tasks() -> list[str]:
    """Names of the files whose images may lie in a list-file tree with a list for each split."""
    folder = REPO / "conf" / "dataset"
    files = [*folder.glob("*.yaml"), *(folder / "own").glob("*.yaml")]
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images",
        type=Whole(1, 1_000_000),
        nargs="+",
        default=[6000],
        help="of the training and of the test set (6000)",
    )
    parser.add_argument(
        "--task", choices=tasks(), default="own/folder", metavar="TASK", help="file in conf/dataset (own/folder)"
    )
    parser.add_argument("--splits", nargs="+", choices=("train", "test"), default=["train", "test"])
    parser.add_argument(
        "--memory", type=Real(least=-1, most=1e6), nargs="+", default=[1.0], help="of data.memory in GiB (1)"
    )
    parser.add_argument("--json", type=record_file, help="write everything here")
    parser.add_argument("--measure", type=old_folder, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if batches depend on where images are kept."""
    options = parse(arguments)
    if options.measure:
        split, memory = options.splits[0], options.memory[0]
        print(json.dumps(measure(options.measure, options.task, split, None if memory < 0 else memory)))
        return 0
    if options.task == "retinopathy":
        options.images, options.splits = [42670], ["test"]
    rows: list[dict[str, Any]] = []
    for count in options.images:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name) / "images"
            root.mkdir()
            write_tree(root, count, options.task.startswith("own"))
            environment = {**os.environ, "HEADWISE_CACHE": str(Path(name) / "cache")}
            for split in options.splits:
                for memory in options.memory:
                    command = [sys.executable, __file__, "--task", options.task, "--measure", str(root)]
                    command += ["--splits", split, "--memory", str(memory)]
                    done = subprocess.run(command, env=environment, check=False, stdout=subprocess.PIPE, text=True)
                    if done.returncode:  # it has said why
                        raise HeadwiseError(f"{count} images of {split} could not be read with data.memory={memory}")
                    rows.append({"images": count, **json.loads(done.stdout.splitlines()[-1])})
                    print(
                        "{images:>7,} images  {split:<6} data.memory={memory}  {gib_of_images:>6} GiB of pixels  "
                        "peak {gib_peak:>6} GiB (before any image {gib_before})  {seconds} s".format(**rows[-1]),
                        flush=True,
                    )
    if options.json:
        atomic.write_json(options.json, {"size": SIZE, "rows": rows})
    digests: dict[tuple[int, str], set[str]] = {}
    for row in rows:
        digests.setdefault((row["images"], row["split"]), set()).add(row["digest"])
    return int(any(len(found) > 1 for found in digests.values()))


if __name__ == "__main__":
    sys.exit(main())

"""How fast images arrive: the cache against decoding JPEG files, and the share of an epoch that waits for data.

Photo-like JPEG files (500 x 375) are written to a temporary folder, cached at 224 pixels, and read back as test batches
from both. The cache is read warm, after its first check; both sides end as the tensors that a test receives. Then one
epoch of 1000 images trains vit_nano's blocks, timing what the loop waits for its batches. Repeated, medians.

Run: python benchmarks/data_time.py --json benchmarks/results/data_time.json
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from headwise.cli import script
from headwise.commands.arguments import THREADS, Parser, Whole, record_file
from headwise.data.preparing.cachebuild import build
from headwise.data.sources import CacheSource, FolderSource, Source
from headwise.data.tasks import VTABTask
from headwise.data.vtab import VTABDataModule
from headwise.network.backbone import BackboneSpec
from headwise.results import provenance
from headwise.storage import atomic

SIZE, BATCH, EVAL_BATCH = 224, 64, 256
PHOTO = (375, 500)
NUM_TRAIN = 1000
BACKBONES = Path(__file__).resolve().parent.parent / "conf" / "backbone"
LEAST_SPEEDUP, LARGEST_WAIT = 20.0, 0.02
"""What is promised: test images from the cache over JPEG decoding, and the share of an epoch that waits."""


def write_photos(folder: Path, num_test: int) -> VTABTask:
    """A list-file tree of JPEG files with the spectrum of photographs: noise on all scales, quality 90."""
    rng = np.random.default_rng(0)
    files = [_photo(rng) for _ in range(8)]
    counts = {"train800": 20, "val200": 5, "test": num_test}
    for split, count in counts.items():
        (folder / "photos" / split).mkdir(parents=True)
        for i in range(count):
            (folder / "photos" / split / f"{i}.jpg").write_bytes(files[i % len(files)])
        (folder / "photos" / f"{split}.txt").write_text("".join(f"{split}/{i}.jpg {i % 2}\n" for i in range(count)))
    parts = [(folder / "photos" / f"{split}.txt").read_text() for split in ("train800", "val200")]
    (folder / "photos" / "train800val200.txt").write_text("".join(parts))
    return VTABTask(name="photos", group="natural", num_classes=2, num_test=num_test, folders=["photos"])


def _photo(rng: np.random.Generator) -> bytes:
    image = np.zeros((*PHOTO, 3), dtype=np.float32)
    for side, height in ((4, 90.0), (16, 45.0), (64, 22.0), (250, 10.0)):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image += (np.asarray(noise.resize(PHOTO[::-1], Image.Resampling.BICUBIC), np.float32) / 255 - 0.5) * height
    stream = io.BytesIO()
    Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def test_rate(make: Callable[[], Source], task: VTABTask) -> float:
    """Test images per second: from opening the source to the last batch."""
    source = make()
    began = time.perf_counter()
    data = VTABDataModule(task, source, SIZE, eval_batch_size=EVAL_BATCH)
    seen = sum(len(labels) for _, labels in data.test_dataloader())
    return seen / (time.perf_counter() - began)


def waiting_share(backbone: str) -> tuple[float, float]:
    """Share of a training epoch that waits for batches, and the seconds of the epoch."""
    plain = yaml.safe_load((BACKBONES / f"{backbone}.yaml").read_text())
    net = BackboneSpec(**plain).build()
    net.new_head(16)
    net.requires_grad_(True)
    task = VTABTask(name="noise", group="natural", num_classes=16, num_test=1, folders=["noise"])
    data = VTABDataModule(task, Noise(), net.img_size, BATCH, mean=net.mean, std=net.std)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    batches = data.train_batches()

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(data.preprocess(images)), labels).backward()
        optimizer.step()

    step(*next(iter(batches)))
    waited, began = 0.0, time.perf_counter()
    last = began
    for images, labels in batches:
        waited += time.perf_counter() - last
        step(images, labels)
        last = time.perf_counter()
    total = time.perf_counter() - began
    return waited / total, total


class Noise(CacheSource):
    """1000 images of 64 pixels in memory, as a cache gives them."""

    def load(self, task, split, size, resize="pil_bicubic", limit=None):  # type: ignore[no-untyped-def]
        """Random pixels and classes."""
        from headwise.data.pixels import Pixels

        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (NUM_TRAIN, 64, 64, 3), dtype=np.uint8)
        return Pixels(images, np.arange(NUM_TRAIN) % task.num_classes, (), {"source": "noise", "resize": "native"})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Whole(1, 1_000_000), default=1024, help="test images (1024)")
    parser.add_argument("--repeats", type=Whole(1, 10_000), default=5, help="of every measurement (5)")
    backbones = sorted(file.stem for file in BACKBONES.glob("*.yaml"))
    parser.add_argument(
        "--backbone", choices=backbones, default="vit_nano", metavar="NAME", help="for the share of an epoch (vit_nano)"
    )
    parser.add_argument("--threads", type=THREADS, default=len(os.sched_getaffinity(0)), help="compute threads")
    parser.add_argument("--json", type=record_file, help="write everything here")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if a promise is not kept."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HEADWISE_CACHE"] = str(folder / "cache")
        task = write_photos(folder / "tree", options.images)
        build(FolderSource(folder / "tree"), [task], SIZE, "pil_bicubic", folder / "caches")
        makers: dict[str, Callable[[], Source]] = {
            "JPEG files": lambda: FolderSource(folder / "tree"),
            "cache": lambda: CacheSource(folder / "caches"),
        }
        time.sleep(2.1)  # a file this young is hashed at every opening
        test_rate(makers["cache"], task)
        rates: dict[str, list[float]] = {kind: [] for kind in makers}
        for _ in range(options.repeats):
            for kind, make in makers.items():
                rates[kind].append(test_rate(make, task))
    for kind, values in rates.items():
        print(f"{kind:<12}{statistics.median(values):>10,.0f} test images a second at {SIZE} pixels", flush=True)
    shares = [waiting_share(options.backbone) for _ in range(options.repeats)]
    speedup = statistics.median(c / j for c, j in zip(rates["cache"], rates["JPEG files"], strict=True))
    share = statistics.median(share for share, _ in shares)
    print(f"{'ratio':<12}{speedup:>10.1f}   (promised: at least {LEAST_SPEEDUP:.0f})")
    promised = f"(promised: below {100 * LARGEST_WAIT:.0f} %)"
    print(f"{'waiting':<12}{100 * share:>10.2f} % of an epoch of {options.backbone} {promised}")
    if options.json:
        record = {
            "images": options.images,
            "size": SIZE,
            "test_images_per_second": rates,
            "speedup": speedup,
            "backbone": options.backbone,
            "epochs": [{"waiting": waited, "seconds": seconds} for waited, seconds in shares],
            "waiting": share,
            "machine": provenance.machine("cpu", options.threads) | {"load": [load_before, os.getloadavg()]},
            "versions": provenance.versions(("torch", "numpy", "pillow", "headwise")),
        }
        atomic.write_json(options.json, record)
    return 0 if speedup >= LEAST_SPEEDUP and share < LARGEST_WAIT else 1


if __name__ == "__main__":
    sys.exit(main())

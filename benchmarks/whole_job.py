"""A whole job, from its command to its accuracy: train.py beside the loop that one would write instead.

The loop is timm's network with peft's LoRA on the fused qkv, torchvision's JPEG loading in worker processes, AdamW with
a warm-up and a cosine, and one test at the end: some forty lines, in float32, as one would write them. The run has the
same weights, images, size, epochs, batch and LoRA, and the precision that `--precision` names, bf16 unless told
otherwise. Both are processes of their own, by turns, a pair for each seed, and find no cache; seconds are of the clock,
from start to exit. Images are real ones in VTAB-1k's list-file layout, the network timm's ViT-S/14.

Run: python benchmarks/whole_job.py --data-root PATH --weights FILE --json benchmarks/results/whole_job.json
     python benchmarks/whole_job.py --data-root PATH --weights FILE --epochs 1 --seeds 1    # does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from headwise.cli import script
from headwise.commands.arguments import THREADS, Parser, Whole, old_file, old_folder, record_file
from headwise.errors import HeadwiseError
from headwise.results import provenance
from headwise.storage import atomic

REPO = Path(__file__).resolve().parent.parent
BATCH, TEST_BATCH, RATE, LEAST_RATE, DECAY, RANK = 64, 256, 1e-3, 1e-5, 1e-4, 16
NETWORK, MEAN, STD = "vit_small_patch14_dinov2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GOAL, MOST_APART = 2.5, 1.0
"""How many times as fast as the loop a job is to be, and points of accuracy that the two may be apart on average."""


def loop(options: argparse.Namespace) -> float:
    """The usual loop; accuracy on the test images, percent."""
    import timm
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.loop)
    shape = transforms.Compose(
        [
            transforms.Resize((options.size, options.size), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    class Images(Dataset[tuple[torch.Tensor, int]]):
        def __init__(self, split: str) -> None:
            lines = (options.data_root / options.task / f"{split}.txt").read_text().splitlines()
            self.rows = [(name, int(label)) for name, label in (line.rsplit(" ", 1) for line in lines)]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            name, label = self.rows[index]
            with Image.open(options.data_root / options.task / name) as image:
                return shape(image.convert("RGB")), label

    train, test = Images("train800val200"), Images("test")
    classes = 1 + max(label for _, label in train.rows)
    net = timm.create_model(
        NETWORK,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(options.weights)},
        img_size=options.size,
        num_classes=classes,
        drop_path_rate=0.1,
    )
    net = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"]), net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("head."))
    tunable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(tunable, lr=RATE, weight_decay=DECAY)
    batches = DataLoader(train, BATCH, shuffle=True, drop_last=True, num_workers=options.workers)
    steps = options.epochs * len(batches)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm), LEAST_RATE),
        ],
        [warm],
    )
    for _ in range(options.epochs):
        net.train()
        for images, labels in batches:
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    right = 0
    with torch.no_grad():
        for images, labels in DataLoader(test, TEST_BATCH, num_workers=options.workers):
            right += int((net(images).argmax(1) == labels).sum())
    return 100 * right / len(test)


def by_loop(options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """Seconds and accuracy of the loop."""
    words = [str(Path(__file__).resolve()), "--loop", str(seed), "--data-root", str(options.data_root)]
    words += ["--task", options.task, "--epochs", str(options.epochs), "--size", str(options.size)]
    words += ["--workers", str(options.workers), "--threads", str(options.threads)]
    words += ["--weights", str(options.weights)]
    seconds, said = _timed(words, options.threads)
    return seconds, float(said.strip().splitlines()[-1])


def by_run(options: argparse.Namespace, seed: int, folder: Path, precision: str) -> tuple[float, float]:
    """Seconds and accuracy of train.py."""
    words = [
        str(REPO / "train.py"),
        "method=lora",
        "method.targets=[q,k,v]",
        "method.fused=true",
        f"rank=r{RANK}",
        f"dataset={options.task}",
        "data=folder",
    ]
    words += [f"data.root={options.data_root}", "backbone=vit_s14_dinov2", f"backbone.img_size={options.size}"]
    words += [f"backbone.weights={options.weights}"]
    words += ["protocol=fixed", f"protocol.epochs={options.epochs}", f"protocol.precision={precision}"]
    words += ["trainer=cpu", f"trainer.threads={options.threads}", f"seed={seed}", f"root={folder}"]
    seconds, _ = _timed(words, options.threads, folder / "cache")
    (record,) = folder.glob("*/**/result.json")
    return seconds, float(json.loads(record.read_text())["phases"][-1]["accuracy"])


def _timed(words: Sequence[str], threads: int, cache: Path | None = None) -> tuple[float, str]:
    """Seconds of a Python process, from start to exit, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(REPO / "src"), "OMP_NUM_THREADS": str(threads)}
    environment |= {} if cache is None else {"HEADWISE_CACHE": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's Python compiles the code once and keeps it
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise HeadwiseError(f"{' '.join(words[:2])}: {done.stderr[-2000:]}")
    return seconds, done.stdout


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=old_folder, required=True, help="folder of tasks as list files and images")
    parser.add_argument("--task", default="eurosat", help="task of that folder (eurosat)")
    parser.add_argument("--weights", type=old_file, required=True, help="pretrained weights, as timm loads them")
    parser.add_argument("--epochs", type=Whole(1, 1000), default=10, help="of both (10)")
    parser.add_argument("--size", type=Whole(14, 518), default=98, help="side of the images, a multiple of 14 (98)")
    parser.add_argument("--seeds", type=Whole(1, 100), default=3, help="pairs of jobs (3)")
    parser.add_argument("--workers", type=Whole(0, 64), default=2, help="processes of the loop that load images (2)")
    parser.add_argument("--threads", type=THREADS, default=2, help="threads of each job (2)")
    parser.add_argument("--precision", action="append", help="of train.py; may be repeated (bf16)")
    parser.add_argument("--loop", type=Whole(0, 2**31), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=record_file, help="also write the times")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit status 1 if the accuracies are apart or the goal is missed."""
    options = parse(arguments)
    if options.loop is not None:
        print(loop(options))
        return 0
    precisions = options.precision or ["bf16"]
    sides = ["loop", *precisions]
    load = os.getloadavg()[0]
    seen: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for seed in range(options.seeds):
        for side in sorted(sides, key=sides.index, reverse=bool(seed % 2)):
            with tempfile.TemporaryDirectory(prefix="whole-job-") as folder:
                if side == "loop":
                    figures = by_loop(options, seed)
                else:
                    figures = by_run(options, seed, Path(folder), side)
            seen[side].append(figures)
            print(f"{side}, seed {seed}: {figures[0]:.1f} s, {figures[1]:.2f} %", flush=True)
    rows = {}
    for side in precisions:
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(seen["loop"], seen[side], strict=True)]
        apart = statistics.fmean(ours[1] - theirs[1] for theirs, ours in zip(seen["loop"], seen[side], strict=True))
        rows[side] = {"times_as_fast": round(statistics.median(ratios), 3), "points_apart": round(apart, 3)}
        print(f"{side}: {rows[side]['times_as_fast']:.2f} times as fast as the loop, {apart:+.2f} points")
    if options.json:
        record = {
            "machine": provenance.machine("cpu", options.threads) | {"load": [load, os.getloadavg()[0]]},
            "versions": provenance.versions(),
            "job": {name: getattr(options, name) for name in ("task", "epochs", "size", "workers", "threads")}
            | {"network": NETWORK, "batch": BATCH, "rank": RANK},
            "seconds_and_accuracy": seen,
            "rows": rows,
            "goal": GOAL,
        }
        atomic.write_text(options.json, json.dumps(record, indent=1) + "\n")
    best = max(row["times_as_fast"] for row in rows.values())
    level = all(abs(row["points_apart"]) <= MOST_APART for row in rows.values())
    return 0 if level and best >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

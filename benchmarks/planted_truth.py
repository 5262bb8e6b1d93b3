"""Does the comparison find a truth that was planted? Made-up images on which it is known whether heads must differ.

python benchmarks/planted_truth.py OUT_DIR --json benchmarks/results/planted_truth.json
python scripts/make_tables.py planted_truth --root OUT_DIR/outputs

Every image has three by three fields of noise, and each of the nine heads of a one-block network looks at one of them.
A teacher, the same network with other rows in its v projection, gives the classes:

- each: what is needed is one update of rank 1 for all heads, and another of rank 1 for each head;
- alike: one update of rank 6 for all heads;
- one: an update of the rows of a single head.

So plain LoRA of equal size (a first phase of rank 1, then rank 5 against rank 1 a head) has too few directions for the
first, per-head updates have too few for the second.

So a second, head-wise phase must pay on `each` and not on `alike`, and switching heads off on `one` and not on `each`.
OUT_DIR keeps images, weights and runs: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwise.cli import script
from headwise.commands.arguments import Parser, Whole, out_folder, record_file
from headwise.comparison.comparable import distinct, places
from headwise.comparison.controls import MASK, PHASE, lacking, matches
from headwise.comparison.verdicts import Judgement, Verdict, judged
from headwise.errors import ConfigError
from headwise.results import provenance, reading
from headwise.storage import atomic

REPO = Path(__file__).resolve().parent.parent
NAME = "planted_truth"
SIDE, PATCH, WIDTH = 3, 8, 72
HEADS, SIZE = SIDE**2, SIDE * PATCH
"""A field is one patch."""
ROWS, MARKS = WIDTH // HEADS, HEADS + 1
"""Rows of one head; channels that tell the fields and the class token apart."""
SHAPE = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": 1, "num_heads": HEADS}
LOUD, SHARP = 1.0, 4.0
"""A mark's value, as loud as the noise, so that updates of v see both alike; and what q multiplies it by, so that it
decides where a head looks."""
NOISY = 24
"""Channels that hold noise; fewer are learnt from fewer images."""
TRAIN, TEST, CLASSES = {"each": 2000, "alike": 2000, "one": 800}, 2000, 24
"""Few images of `one`: updates of the other heads can only learn them by heart."""
EPOCHS, BATCH, RATE = 12, 128, 0.02
V = slice(2 * WIDTH, 3 * WIDTH)
"""Rows of v in the fused projection."""


def network(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of the frozen network in timm's layout: head i of its class token looks at field i."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0, **SHAPE)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for name in ("norm.weight", "blocks.0.norm1.weight", "blocks.0.norm2.weight"):
        state[name].fill_(1.0)
    pixels = 3 * PATCH**2
    basis = torch.linalg.qr(torch.randn(pixels, pixels, generator=generator)).Q[:NOISY]
    # noise is uniform in -1 .. 1: every channel gets a variance of one
    state["patch_embed.proj.weight"][MARKS : MARKS + NOISY] = math.sqrt(3) * basis.reshape(-1, 3, PATCH, PATCH)
    state["pos_embed"][0, 0, HEADS] = LOUD
    for field in range(HEADS):
        state["pos_embed"][0, 1 + field, field] = LOUD
    qkv = state["blocks.0.attn.qkv.weight"]
    for head in range(HEADS):
        qkv[head * ROWS, HEADS] = SHARP
        qkv[WIDTH + head * ROWS, head] = 1.0
    state["blocks.0.attn.proj.weight"].copy_(torch.eye(WIDTH))
    for name in ("fc1", "fc2"):  # next to nothing: weights that are zero throughout would be refused
        weight = state[f"blocks.0.mlp.{name}.weight"]
        weight.copy_(drawn(*weight.shape, generator) / 100)
    return state


def drawn(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    """A random matrix (O, I) that keeps the length of what it multiplies."""
    return torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)


def each(generator: torch.Generator) -> Tensor:
    """A shared part of rank 1, and one of rank 1 for each head: what HS-LoRA's two phases can learn, (WIDTH, WIDTH)."""
    shared = drawn(1, WIDTH, generator)
    return torch.cat(
        [
            drawn(ROWS, 1, generator) @ shared + drawn(ROWS, 1, generator) @ drawn(1, WIDTH, generator)
            for _ in range(HEADS)
        ]
    )


def alike(generator: torch.Generator) -> Tensor:
    """One update of rank 6 for all heads, (WIDTH, WIDTH)."""
    return drawn(WIDTH, 6, generator) @ drawn(6, WIDTH, generator)


def one(generator: torch.Generator) -> Tensor:
    """An update of rank 4 of the rows of the fifth head, (WIDTH, WIDTH)."""
    update = torch.zeros(WIDTH, WIDTH)
    update[4 * ROWS : 5 * ROWS] = drawn(ROWS, 4, generator) @ drawn(4, WIDTH, generator)
    return update


TRUTHS: dict[str, Callable[[torch.Generator], Tensor]] = {"each": each, "alike": alike, "one": one}


@torch.no_grad()
def labels(state: Mapping[str, Tensor], update: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
    """Classes of images (N, 3, S, S) by what the update of v changes in the network's output, (N,).

    Each class is one direction of that change; all directions are scaled alike, so that no class is rare.
    """
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0, **SHAPE).eval()
    model.norm = torch.nn.Identity()
    outputs = []
    for factor in (0.0, 1.0):
        weights = {name: tensor.clone() for name, tensor in state.items() if not name.startswith("norm.")}
        weights["blocks.0.attn.qkv.weight"][V] += factor * update
        model.load_state_dict(weights)
        outputs.append(torch.cat([model(part) for part in images.split(500)]))
    change = outputs[1] - outputs[0]
    scores = change @ drawn(CLASSES, WIDTH, generator).T
    return ((scores - scores.mean(0)) / scores.std(0)).argmax(1)


def plant(folder: Path) -> Path:
    """Write the weights and the images of every truth, as far as they are missing; returns the file of weights."""
    weights = folder / "network.safetensors"
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(network(torch.Generator().manual_seed(0)), weights)
    state = load_file(weights)
    for number, (truth, update) in enumerate(TRUTHS.items(), start=1):
        place = folder / "images" / truth
        if (place / "test.txt").exists():
            continue
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(256, (TRAIN[truth] + TEST, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
        images = pixels.permute(0, 3, 1, 2) / 127.5 - 1
        classes = labels(state, update(generator), images, generator).tolist()
        (place / "images").mkdir(parents=True, exist_ok=True)
        lines = []
        for index, (array, label) in enumerate(zip(np.asarray(pixels), classes, strict=True)):
            Image.fromarray(array).save(place / "images" / f"{index}.png")
            lines.append(f"images/{index}.png {label}\n")
        (place / "train.txt").write_text("".join(lines[: TRAIN[truth]]))
        (place / "test.txt").write_text("".join(lines[TRAIN[truth] :]))
    return weights


@dataclass(frozen=True)
class Planted:
    """A question whose answer is known.

    Attributes:
        claim: `PHASE` or `MASK`.
        truth: a name of `TRUTHS`.
        answer: which verdicts are right.
        choices: of the command line, of the runs that are asked about and of their controls.
    """

    claim: str
    truth: str
    answer: Verdict
    choices: Sequence[Sequence[str]]


_RANKS = ("rank.global=1", "rank.head=1", "variant=planted", "method.first.targets=[v]")
TWO_PHASES = (
    ["method=hs_lora,hs_control_lora", *_RANKS, "method.heads.targets=[v]"],
    ["method=hs_control_long,hs_control_head", *_RANKS],
)
_HEART = ("method=heart/fp32", "method.rank=4", "method.targets=[v]", "method.gate.score=taylor_abs")
HEADS_OFF = (
    [*_HEART, "ne=ne0", "variant=all_on"],
    [*_HEART, "ne=8", "variant=scored"],
    [*_HEART, "ne=8", "variant=random", "gate@method.gate=random"],
)
PLANTED = (
    Planted(PHASE, "each", Verdict.YES, TWO_PHASES),
    Planted(PHASE, "alike", Verdict.NO, TWO_PHASES),
    Planted(MASK, "one", Verdict.YES, HEADS_OFF),
    Planted(MASK, "each", Verdict.NO, HEADS_OFF),
)


def train(folder: Path, weights: Path, planted: Planted, seeds: int) -> None:
    """Run what is asked about and its controls; finished runs are kept."""
    for choices in planted.choices:
        command = [
            *(sys.executable, "train.py", "-m", f"name={NAME}", f"root={folder / 'outputs'}", "trainer=cpu"),
            *(
                "trainer.threads=1",
                "trainer.progress=false",
                "backbone=vit_tiny_random",
                f"backbone.img_size={SIZE}",
                f"backbone.weights={weights}",
            ),
            *("backbone.overrides=" + json.dumps(SHAPE).replace('"', ""), "protocol=fixed", f"protocol.lr={RATE}"),
            *(
                f"protocol.epochs={EPOCHS}",
                f"protocol.batch_size={BATCH}",
                "dataset=own/folder",
                f"dataset.name={planted.truth}",
                "data=folder",
            ),
            *(f"data.root={folder / 'images' / planted.truth}", f"dataset.num_classes={CLASSES}"),
            *(*choices, "seed=" + ",".join(map(str, range(seeds)))),
        ]
        if subprocess.run(command, cwd=REPO).returncode:
            raise ConfigError(f"a run on {planted.truth} failed; what it said stands above")


def verdict(folder: Path, planted: Planted) -> Judgement:
    """What the comparison says of the planted question."""
    results = distinct(reading.read(folder / "outputs", NAME).results)
    results = [result for result in results if result.key.dataset == planted.truth]
    where, _ = places(results)
    pairs = matches(results, results)
    found = [one for one in judged(pairs, where, lacking(results, where, pairs)) if one.claim == planted.claim]
    if len(found) != 1:
        raise ConfigError(f"{len(found)} rows of {folder / 'outputs'} claim what is asked on {planted.truth}, not one")
    return found[0]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=out_folder, help="folder of images, weights and runs")
    parser.add_argument(
        "--seeds", type=Whole(1, 100), default=6, help="runs of each arm; six are needed for a verdict (6)"
    )
    parser.add_argument("--json", type=record_file, help="also write the verdicts")
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Plant, train, judge; exit status 1 if a verdict is not the planted answer."""
    options = parse(arguments)
    weights = plant(options.out)
    rows = []
    for planted in PLANTED:
        train(options.out, weights, planted, options.seeds)
        found = verdict(options.out, planted)
        right = found.verdict is planted.answer
        print(f"{planted.truth}: {found} Planted: {planted.answer.value}.{'' if right else ' WRONG'}", flush=True)
        pairs = {pairs.against: asdict(pairs.sum) for pairs in found.pairs}
        rows.append({"truth": planted.truth, "claim": planted.claim, "row": found.row, "pairs": pairs})
        rows[-1] |= {"verdict": found.verdict.value, "planted": planted.answer.value, "right": right}
    if options.json:
        record = {"versions": provenance.versions(), "seeds": options.seeds, "epochs": EPOCHS, "rows": rows}
        atomic.write_text(options.json, json.dumps(record, indent=1) + "\n")
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

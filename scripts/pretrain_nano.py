"""Pretrain `vit_nano`, the small vision transformer that ships with the package, on pictures drawn on the fly.

    python scripts/pretrain_nano.py --out src/headwise/assets/vit_nano.safetensors

Every image is a procedural scene: a textured background (stripes, checks, fractal noise, Voronoi fields, ridges, ...),
in some a second texture over part of it, and up to four coloured polygons on top. One network predicts what the painter
knows about the scene; the linear heads that do so are thrown away. No image and no label of a downstream task is used:
the painter draws no square, ellipse or heart, no solid body, no digit, and knows no bins. The recipe counts steps, not
minutes: the same seed, thread count and library versions repeat it.

Legend: B images, N objects, A entries of a radius table, S = 64 pixels a side, T = 64 patches.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from headwise.cli import force_option, script
from headwise.commands.arguments import SEED, THREADS, OutFile, Parser, Real, Whole
from headwise.commands.written import writing
from headwise.storage import atomic

SIZE, PATCH, WIDTH = 64, 8, 192
ARCHITECTURE = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 6, "num_heads": 6, "num_classes": 0}

TEXTURES = ("flat", "gradient", "waves", "stripes", "checks", "noise", "fields", "spots", "ridges")
SHAPES = ("triangle", "pentagon", "hexagon", "star3", "star4", "star5", "star6", "drop", "fan", "irregular")
VERTICES = torch.tensor([3, 5, 6, 6, 8, 10, 12, 10, 12, 7])
COUNTS = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4])  # objects in a scene, drawn uniformly from this list
MAX_VERTICES, MAX_OBJECTS, TABLE = 12, 4, 256
WAVELENGTHS = (128.0, 64.0, 32.0, 16.0, 8.0)  # pixels; the centre of an object is predicted as its phases at these
HARMONICS = 6  # angular orders of an outline's pose

# name: (outputs, weight of the loss). The first table reads the class token, the second every patch token.
# fmt: off
CLASS_HEADS = {
    "texture": (len(TEXTURES), 0.5), "count": (MAX_OBJECTS + 1, 0.3),
    "shape": (len(SHAPES), 0.5),  # shape, centre, pose and area only where the scene has exactly one object
    "angle": (2, 0.5), "scale": (1, 0.3),  # of the background: direction as a double angle, fineness
    "centre": (4 * len(WAVELENGTHS), 4.0), "pose": (2 * HARMONICS, 4.0), "area": (1, 0.3),
    "mask": (256, 1.0), "thumbnail": (192, 1.0),  # share that objects cover, at 16 x 16; colours at 8 x 8
}
PATCH_HEADS = {
    "patch_shape": (len(SHAPES) + 1, 0.3),  # of the object at the middle of the patch, 0 = none
    "patch_centre": (4 * len(WAVELENGTHS), 3.0), "patch_pose": (2 * HARMONICS, 3.0),
    "cover": (16, 1.0), "pixels": (48, 1.0),  # share that objects cover, undisturbed colours; at half resolution
}
# fmt: on


class Scenes(NamedTuple):
    """A batch of images and, by head, its targets and the weights of its regressions."""

    images: Tensor  # disturbed, (B, 3, S, S) in [-1, 1]
    targets: dict[str, Tensor]  # class ids (-100 = not asked), probabilities ("mask", "cover") or real values
    weights: dict[str, Tensor]  # in 0..1; broadcasts against its target


class Painter:
    """Draws scenes from one seeded generator: the same seed gives the same sequence of batches."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        line = torch.arange(SIZE) + 0.5
        self.y, self.x = torch.meshgrid(line, line, indexing="ij")

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self.rng) * (high - low) + low

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.rng)

    def noise(self, roughness: Tensor) -> Tensor:
        """Fractal noise, amplitude f^-roughness, each image of zero mean and unit deviation, (B, S, S)."""
        spectrum = torch.fft.rfft2(torch.randn(len(roughness), SIZE, SIZE, generator=self.rng))
        frequency = torch.hypot(torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None])
        frequency[0, 0] = math.inf
        field = torch.fft.irfft2(spectrum * frequency[None] ** -roughness[:, None, None], s=(SIZE, SIZE))
        return field / field.std(dim=(1, 2), keepdim=True).clamp_min(1e-6)

    def textures(self, family: Tensor, angle: Tensor, scale: Tensor) -> Tensor:
        """One grey field per image, (B, S, S) in 0..1; angle in radians, scale = fineness in 0..1, both (B,)."""
        field, pixels = torch.full((len(family), SIZE, SIZE), 0.5), torch.stack([self.x, self.y], dim=-1).view(-1, 2)
        for index, name in enumerate(TEXTURES[1:], start=1):
            (rows,) = torch.nonzero(family == index, as_tuple=True)
            if not len(rows):
                continue
            wave = math.tau / (32.0 * 8.0 ** -scale[rows])[:, None, None]  # wavelength 32 to 4 pixels
            cos, sin = (f(angle[rows])[:, None, None] for f in (torch.cos, torch.sin))
            along, across = self.x * cos + self.y * sin, self.y * cos - self.x * sin
            shift = self.uniform(2, len(rows), 1, 1, high=math.tau)
            first, second = torch.sin(along * wave + shift[0]), torch.sin(across * wave + shift[1])
            if name == "gradient":
                drawn = 0.5 + (along - SIZE / 2 * (cos + sin)) / SIZE
            elif name == "waves":
                drawn = 0.5 + 0.5 * first
            elif name == "stripes":
                drawn = 0.5 + 0.5 * torch.tanh(8 * (first - self.uniform(len(rows), 1, 1, low=-0.7, high=0.7)))
            elif name == "checks":
                drawn = 0.5 + 0.5 * torch.tanh(12 * first * second)
            elif name == "spots":
                drawn = torch.sigmoid(10 * (first + second - 0.8))
            elif name == "fields":
                sites, grey = self.uniform(len(rows), 40, 2, high=float(SIZE)), self.uniform(len(rows), 40)
                absent = torch.arange(40) >= (4 * 10 ** scale[rows])[:, None]  # 4 to 40 Voronoi cells
                distance = torch.cdist(pixels.expand(len(rows), -1, -1), sites).masked_fill(absent[:, None], math.inf)
                drawn = grey.gather(1, distance.argmin(dim=2)).view(-1, SIZE, SIZE)
            else:
                drawn = self.noise(2.2 - 1.6 * scale[rows])
                drawn = torch.exp(-((drawn / 0.25) ** 2)) if name == "ridges" else 0.5 + 0.25 * drawn
            field[rows] = drawn.clamp(0, 1)
        return field

    def surface(self, family: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Textures between two colours each (grey, muted or free), half of them shaded: (B, 3, S, S), angle, scale."""
        number = len(family)
        angle, scale = self.uniform(number, high=math.tau), self.uniform(number)
        field = self.textures(family, angle, scale)[:, None]
        colours, saturation = self.uniform(number, 2, 3), self.integers(3, number, 1, 1) / 2
        dark, light = colours.mean(dim=2, keepdim=True).lerp(colours, saturation)[..., None, None].unbind(1)
        strength = self.uniform(number).sub(0.5).clamp_min(0) * 0.3
        shading = self.noise(self.uniform(number, low=0.4, high=1.8)) * strength[:, None, None]
        return (dark.lerp(light, field) + shading[:, None]).clamp(0, 1), angle, scale

    def outlines(self, shape: Tensor, angle: Tensor) -> Tensor:
        """Radius of squeezed, turned polygons in direction 2 pi a / A from an inner point, (N, A), the largest 1."""
        name_is = {name: (shape == index)[:, None] for index, name in enumerate(SHAPES)}
        is_star = name_is["star3"] | name_is["star4"] | name_is["star5"] | name_is["star6"]
        step, rows, count = torch.arange(MAX_VERTICES)[None], len(shape), VERTICES[shape][:, None]
        valley = self.uniform(rows, 1, low=0.35, high=0.6)
        radii = torch.where(is_star & (step % 2 == 1) | name_is["drop"] & (step > 0), valley, 1.0)
        radii = torch.where(name_is["fan"] & (step >= 4 + self.integers(5, rows, 1)), 0.15, radii)
        radii = torch.where(name_is["irregular"], self.uniform(rows, MAX_VERTICES, low=0.3), radii)

        squeeze = torch.where(self.uniform(rows, 1) < 0.5, 1.0, self.uniform(rows, 1, low=0.45))
        direction = torch.arange(TABLE)[None] * (math.tau / TABLE) - angle[:, None]
        sine, cosine = direction.sin() / squeeze, direction.cos()
        turn = torch.atan2(sine, cosine).remainder(math.tau) / math.tau * count
        vertex, sector = turn.long().minimum(count - 1), math.tau / count
        within = (turn - vertex) * sector
        here, after = radii.gather(1, vertex), radii.gather(1, (vertex + 1) % count)
        edge = here * after * sector.sin() / (after * (sector - within).sin() + here * within.sin())
        table = edge / torch.hypot(sine, cosine)
        return table / table.amax(dim=1, keepdim=True)

    def coverage(self, table: Tensor, origin: Tensor, hole: Tensor) -> Tensor:
        """Soft inside of outlines, (N, S, S) in 0..1; table (N, A), origin (N, 2), radius of a hole (N,), in pixels."""
        dx, dy = self.x - origin[:, 0, None, None], self.y - origin[:, 1, None, None]
        distance = torch.hypot(dx, dy)
        entry = (torch.atan2(dy, dx).remainder(math.tau) * (TABLE / math.tau)).round().long() % TABLE
        radius = table.gather(1, entry.flatten(1)).view_as(distance)
        sharpness = 2 + 8 * self.uniform(len(table), 1, 1) ** 2
        outside_hole = torch.sigmoid((distance - hole[:, None, None]) * sharpness).where(hole[:, None, None] > 0, 1.0)
        return torch.sigmoid((radius - distance) * sharpness) * outside_hole

    def add_object(self, canvas: Tensor, notes: dict[str, Tensor], rows: Tensor, layer: int) -> None:
        """Paint one more object on the given rows of the canvas (B, 3, S, S) and note it; both change in place."""
        number, families = len(rows), len(TEXTURES)
        shape = self.integers(len(SHAPES), number)
        reach = self.uniform(number, low=5.0, high=17.0)
        table = self.outlines(shape, self.uniform(number, high=math.tau)) * reach[:, None]
        hole = torch.where((self.uniform(number) < 0.15) & (shape < 3), reach * 0.3, 0.0)
        centre = self.uniform(number, 2, low=10.0, high=SIZE - 10.0)
        centroid, pose, area = describe(table)
        inside = self.coverage(table, centre - torch.view_as_real(centroid), hole)
        paint, _, _ = self.surface(self.integers(2 * families, number).sub(families).clamp_min(0))
        ground = (canvas[rows] * inside[:, None]).sum(dim=(2, 3)) / inside.sum(dim=(1, 2))[:, None].clamp_min(1)
        camouflaged = (paint.mean(dim=(2, 3)) - ground).abs().amax(dim=1) < 0.25
        paint[camouflaged] = (paint[camouflaged] + 0.5) % 1.0
        canvas[rows] = canvas[rows].lerp(paint, inside[:, None])
        notes["owner"][rows] = torch.where(inside > 0.5, layer + 1, notes["owner"][rows])
        for name, value in (("shape", shape), ("centre", centre), ("pose", pose), ("area", area)):
            notes[name][rows, layer] = value

    def draw(self, batch: int) -> Scenes:
        """Draw one batch of scenes with their targets; half of the images get noise, a third some blank patches."""
        families = len(TEXTURES)
        texture = torch.where(self.uniform(batch) < 0.45, 0, self.integers(families, batch))
        canvas, angle, scale = self.surface(texture)
        (rows,) = torch.nonzero((self.uniform(batch) < 0.4) & (texture > 0), as_tuple=True)
        if len(rows):
            other, _, _ = self.surface(self.integers(families, len(rows)))
            border = self.noise(self.uniform(len(rows), low=1.5, high=2.5)) - 0.4
            canvas[rows] = canvas[rows].lerp(other, torch.sigmoid(border * 12)[:, None])

        notes = {"texture": texture, "angle": angle, "scale": scale, "count": COUNTS[self.integers(len(COUNTS), batch)]}
        notes["owner"] = torch.zeros(batch, SIZE, SIZE, dtype=torch.long)  # the object each pixel shows, 0 = none
        notes["shape"] = torch.zeros(batch, MAX_OBJECTS, dtype=torch.long)
        notes["centre"], notes["area"] = torch.zeros(batch, MAX_OBJECTS, 2), torch.zeros(batch, MAX_OBJECTS)
        notes["pose"] = torch.zeros(batch, MAX_OBJECTS, HARMONICS, dtype=torch.complex64)
        for layer in range(MAX_OBJECTS):
            (rows,) = torch.nonzero(notes["count"] > layer, as_tuple=True)
            if len(rows):
                self.add_object(canvas, notes, rows, layer)

        clean = canvas * 2 - 1
        grain = self.uniform(batch, 1, 1, 1).sub(0.5).clamp_min(0) * 0.3
        images = clean + grain * torch.randn(clean.shape, generator=self.rng)
        blank = self.uniform(batch, 1, SIZE // PATCH, SIZE // PATCH) < 0.2 * (self.uniform(batch, 1, 1, 1) < 0.3)
        images = images.masked_fill(blank.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3), 0.0)
        return Scenes(images.clamp(-1, 1), *supervise(clean, notes))


def describe(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centroid, pose and size of outlines given as radius tables (N, A) in pixels.

    The centroid, complex (N,), is x + iy from the table's origin. The pose, complex (N, HARMONICS), holds the outline's
    moments of angular order 1..HARMONICS about the centroid, magnitude 0..1; turning by t turns order m by exp(i m t).
    The size, (N,), is the log of the area over 100 square pixels.
    """
    direction = torch.polar(torch.ones(TABLE), torch.arange(TABLE) * (math.tau / TABLE))
    area = table.square().mean(dim=1) * math.pi
    centroid = (table**3 * direction).mean(dim=1) * (math.tau / 3) / area
    point = table * direction - centroid[:, None]
    weight = table.square() * point.abs()
    heading = point / point.abs().clamp_min(1e-6)
    pose = [(weight * heading**m).sum(dim=1) / weight.sum(dim=1) for m in range(1, HARMONICS + 1)]
    return centroid, torch.stack(pose, dim=1), torch.log(area / 100)


def patches(half: Tensor) -> Tensor:
    """Cut half-size maps (B, C, S/2, S/2) into the values of each patch, (B, T, 16 C)."""
    return F.pixel_unshuffle(half, PATCH // 2).flatten(2).transpose(1, 2)


def supervise(clean: Tensor, notes: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Targets and weights of every head from undisturbed images (B, 3, S, S) and the painter's notes."""
    texture, count, shape = notes["texture"], notes["count"], notes["shape"]
    phase = notes["centre"][..., None] * (math.tau / torch.tensor(WAVELENGTHS))
    centre = torch.cat([phase.cos(), phase.sin()], dim=-1).flatten(2)
    order = notes["pose"].abs().clamp_min(1e-6)
    pose = torch.view_as_real(notes["pose"] / order).flatten(2)
    certain = (order / 0.15).clamp(max=1).repeat_interleave(2, dim=-1)  # a symmetric outline has no order-m direction
    covered = (notes["owner"] > 0).float()[:, None]
    owner = notes["owner"][:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].flatten(1)
    at = torch.arange(len(clean))[:, None], (owner - 1).clamp_min(0)
    shown, single = (owner > 0).float()[:, :, None], (count == 1).float()[:, None]
    directed = (texture >= 1) & (texture <= 4) | (texture == TEXTURES.index("spots"))

    targets = {"texture": texture, "count": count, "shape": torch.where(count == 1, shape[:, 0], -100)}
    targets["angle"] = torch.stack([(2 * notes["angle"]).cos(), (2 * notes["angle"]).sin()], dim=1)
    targets["scale"], targets["area"] = notes["scale"][:, None] * 2 - 1, notes["area"][:, :1] / 3
    targets["centre"], targets["pose"] = centre[:, 0], pose[:, 0]
    targets["mask"] = F.adaptive_avg_pool2d(covered, 16).flatten(1)
    targets["thumbnail"] = F.adaptive_avg_pool2d(clean, 8).flatten(1)
    targets["patch_shape"] = torch.where(owner > 0, shape[at] + 1, 0)
    targets["patch_centre"], targets["patch_pose"] = centre[at], pose[at]
    targets["cover"] = patches(F.adaptive_avg_pool2d(covered, SIZE // 2))
    targets["pixels"] = patches(F.adaptive_avg_pool2d(clean, SIZE // 2))
    weights = {"angle": directed.float()[:, None], "scale": (texture > 1).float()[:, None], "area": single}
    weights["centre"], weights["pose"] = single, single * certain[:, 0]
    weights["patch_centre"], weights["patch_pose"] = shown, shown * certain[at]
    return targets, weights


class Pretrainer(nn.Module):
    """The backbone and two linear layers, over the class token and over the patch tokens, that hold every head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = VisionTransformer(**ARCHITECTURE)
        for block in self.backbone.blocks:
            block.attn.fused_attn = False  # at 65 tokens the fused kernel's backward is several times slower on a CPU
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                nn.init.xavier_uniform_(linear.weight)
        side = SIZE // PATCH
        phase = torch.arange(side)[:, None] * 10.0 ** -torch.linspace(0, 1.5, WIDTH // 4)
        waves = torch.cat([phase.sin(), phase.cos()], dim=1) / 2
        self.backbone.pos_embed.data[0, 1:, : WIDTH // 2] = waves.repeat(side, 1)  # columns, then rows
        self.backbone.pos_embed.data[0, 1:, WIDTH // 2 :] = waves.repeat_interleave(side, 0)
        self.class_head = nn.Linear(WIDTH, sum(outputs for outputs, _ in CLASS_HEADS.values()))
        self.patch_head = nn.Linear(WIDTH, sum(outputs for outputs, _ in PATCH_HEADS.values()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predictions in fp32 by head: (B, outputs) from the class token, (B, T, outputs) from the patch tokens."""
        tokens = self.backbone.forward_features(images)
        whole = self.class_head(tokens[:, 0]).float().split([n for n, _ in CLASS_HEADS.values()], dim=-1)
        local = self.patch_head(tokens[:, 1:]).float().split([n for n, _ in PATCH_HEADS.values()], dim=-1)
        return dict(zip((*CLASS_HEADS, *PATCH_HEADS), (*whole, *local), strict=True))


def losses(predicted: dict[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
    """Unweighted loss by head: cross-entropy (binary for "mask" and "cover") or weighted mean squared error."""
    result = {}
    for name, output in predicted.items():
        target = scenes.targets[name]
        if name in ("mask", "cover"):
            result[name] = F.binary_cross_entropy_with_logits(output, target)
        elif target.dtype == torch.long:
            result[name] = F.cross_entropy(output.flatten(0, -2), target.flatten())
        else:
            weight = scenes.weights.get(name, torch.ones(())).expand_as(target)
            result[name] = (weight * (output - target) ** 2).sum() / weight.sum().clamp_min(1)
    return result


def pretrain(steps: int, batch: int, seed: int, peak: float) -> Pretrainer:
    """Train: Muon for the matrices of the blocks, AdamW for the rest; bf16 arithmetic, fp32 weights, 5 % warm-up."""
    torch.manual_seed(seed)
    master = Pretrainer()
    worker = copy.deepcopy(master).bfloat16()
    pairs = list(zip(worker.parameters(), master.parameters(), strict=True))
    inner = [p for p in master.backbone.blocks.parameters() if p.ndim == 2]
    outer = [p for p in master.parameters() if not any(p is q for q in inner)]
    muon = torch.optim.Muon(inner, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(outer, weight_decay=0.01, betas=(0.9, 0.98))
    painter, started, warmup = Painter(seed), time.perf_counter(), max(1, steps // 20)
    for step in range(steps):
        for low, full in pairs:
            low.data.copy_(full.data)
        scenes = painter.draw(batch)
        parts = losses(worker(scenes.images.bfloat16()), scenes)
        total = sum(weight * parts[name] for name, (_, weight) in (CLASS_HEADS | PATCH_HEADS).items())
        worker.zero_grad()
        total.backward()
        for low, full in pairs:
            full.grad = low.grad.float()
        nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = peak * (step + 1) / warmup if step < warmup else peak * cosine
            optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            heads = " ".join(f"{name} {loss.item():.2f}" for name, loss in parts.items())
            progress = f"step {step + 1}/{steps} {time.perf_counter() - started:.0f}s loss {total.item():.3f}"
            print(f"{progress} | {heads}", flush=True)
    return master


@torch.no_grad()
def evaluate(model: Pretrainer, seed: int, num_batches: int) -> dict[str, float]:
    """Percent by head on 100 freshly drawn scenes a batch: accuracy for class ids, else variance explained."""
    painter, scores = Painter(seed), {}
    drawn = [painter.draw(100) for _ in range(num_batches)]
    predicted = [model(scenes.images) for scenes in drawn]
    for name in predicted[0]:
        output, target = torch.cat([p[name] for p in predicted]), torch.cat([s.targets[name] for s in drawn])
        if target.dtype == torch.long:
            scores[name] = 100 * (output.argmax(-1) == target)[target >= 0].float().mean().item()
            continue
        output = output.sigmoid() if name in ("mask", "cover") else output
        weight = torch.cat([s.weights.get(name, torch.ones_like(s.targets[name])) for s in drawn]).expand_as(target)
        across = tuple(range(target.ndim - 1))
        mean = (weight * target).sum(across, keepdim=True) / weight.sum(across, keepdim=True)
        unexplained = (weight * (output - target) ** 2).sum() / (weight * (mean - target) ** 2).sum()
        scores[name] = 100 * (1 - unexplained.item())
    return scores


def save(backbone: VisionTransformer, path: Path, metadata: dict[str, str]) -> None:
    """Write the backbone in fp16 under timm's own keys; the file appears whole or not at all."""
    with atomic.replacing(path) as part:
        save_file({key: value.half().contiguous() for key, value in backbone.state_dict().items()}, part, metadata)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Read the command line and run; returns the scores of `evaluate`."""
    parser = Parser(description="Pretrain vit_nano; the defaults are the recipe of the shipped file.")
    parser.add_argument("--out", type=OutFile(), default=Path("vit_nano.safetensors"))
    parser.add_argument("--steps", type=Whole(1, 10**7), default=2600)
    parser.add_argument("--batch", type=Whole(1, 4096), default=64)
    parser.add_argument("--lr", type=Real(above=0, most=100), default=2e-3, help="peak learning rate of Muon and AdamW")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--threads", type=THREADS, default=2, help="part of the recipe: it changes the order of sums")
    parser.add_argument("--eval-batches", type=Whole(1, 1000), default=20, help="of 100 held-out scenes each")
    force_option(parser)
    args = parser.parse_args(arguments)
    with writing(args.out, force=args.force):
        return run(args)


def run(args: argparse.Namespace) -> dict[str, float]:
    """Pretrain, score and store as the command line says."""
    torch.set_num_threads(args.threads)
    wall, cpu = time.perf_counter(), time.process_time()
    model = pretrain(args.steps, args.batch, args.seed, args.lr)
    wall, cpu = (time.perf_counter() - wall) / 60, (time.process_time() - cpu) / 60
    for parameter in model.backbone.parameters():
        parameter.data = parameter.data.half().float()  # score what is stored
    scores = evaluate(model.eval(), args.seed + 1_000_003, args.eval_batches)
    recipe = {name: getattr(args, name) for name in ("steps", "batch", "lr", "seed", "threads")}
    metadata = {"name": "vit_nano", "architecture": json.dumps(ARCHITECTURE), "recipe": json.dumps(recipe)}
    metadata |= {"mean": "0.5 0.5 0.5", "std": "0.5 0.5 0.5", "torch": torch.__version__}
    metadata["scores"] = json.dumps({name: round(score, 1) for name, score in scores.items()})
    save(model.backbone, args.out, metadata)
    print(f"{args.out}: {wall:.1f} min wall, {cpu:.1f} min of processor time on {args.threads} threads")
    print("held-out scenes, %: " + " ".join(f"{name} {score:.1f}" for name, score in scores.items()))
    return scores


@script
def command(arguments: Sequence[str] | None = None) -> int:
    """Run `main`; returns the exit status."""
    main(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(command())

"""Pretrain `vit_nano`, the small vision transformer that ships with the package, on pictures drawn on the fly.

    python scripts/pretrain_nano.py --out src/headwise/assets/vit_nano.safetensors

Every image is a procedural scene: a textured background (stripes, checks, fractal noise, Voronoi fields, spots, ridges), sometimes a
second texture over part of it, and up to four coloured star-shaped polygons on top. One network predicts everything the painter knows
about the scene; the linear heads that do so are thrown away and only the backbone is stored. No image and no label of a downstream task
takes part: the painter draws no square, ellipse or heart, no three-dimensional solid, no digit, and it assigns no bins.

The recipe is counted in steps, never in minutes, so the same seed, thread count and library versions repeat it.

Legend: B images, N objects, V polygon vertices, A entries of a radius table, S = 64 pixels a side, T = 64 patches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SIZE, PATCH = 64, 8
ARCHITECTURE = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 192, "depth": 6, "num_heads": 6, "num_classes": 0}

TEXTURES = ("flat", "gradient", "waves", "stripes", "checks", "noise", "fields", "spots", "ridges")
SHAPES = ("triangle", "pentagon", "hexagon", "star3", "star4", "star5", "star6", "drop", "fan", "irregular")
VERTICES = torch.tensor([3, 5, 6, 6, 8, 10, 12, 10, 12, 7])
MAX_VERTICES, MAX_OBJECTS, TABLE = 12, 4, 256
WAVELENGTHS = (128.0, 64.0, 32.0, 16.0, 8.0)  # pixels; the centre of an object is predicted as phases at these
HARMONICS = 6  # angular orders of an outline's pose

CLASS_HEADS = {"texture": len(TEXTURES), "count": MAX_OBJECTS + 1, "shape": len(SHAPES), "angle": 2, "scale": 1,
               "centre": 4 * len(WAVELENGTHS), "pose": 2 * HARMONICS, "area": 1, "mask": 256, "thumbnail": 192}  # fmt: skip
PATCH_HEADS = {"part": len(SHAPES) + 1, "offset": 2, "cover": 16, "pixels": 48}
LOSS_WEIGHTS = {"texture": 0.5, "count": 0.3, "shape": 0.5, "angle": 0.5, "scale": 0.3, "centre": 3.0, "pose": 3.0, "area": 0.3,
                "mask": 1.0, "thumbnail": 1.0, "part": 0.3, "offset": 1.0, "cover": 1.0, "pixels": 1.0}  # fmt: skip


class Scenes(NamedTuple):
    """A batch of drawn images and everything the painter knows about them.

    Attributes:
        images: what the network sees, (B, 3, S, S) in [-1, 1]: noisy and with a few patches blanked.
        targets: name of a head -> target; class ids (-100 = ignore), probabilities for "mask" and "cover", else real values.
        weights: name of a regression head -> weight in 0..1 that broadcasts against its target.
    """

    images: Tensor
    targets: dict[str, Tensor]
    weights: dict[str, Tensor]


class Painter:
    """Draws scenes from one seeded generator: the same seed gives the same sequence of batches."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        line = torch.arange(SIZE) + 0.5
        self.y, self.x = torch.meshgrid(line, line, indexing="ij")

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high)."""
        return torch.rand(shape, generator=self.rng) * (high - low) + low

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in 0..high-1."""
        return torch.randint(high, shape, generator=self.rng)

    # -- textures ------------------------------------------------------------------------------------------------------------------

    def noise(self, roughness: Tensor) -> Tensor:
        """Fractal noise with amplitude spectrum f^-roughness, each image scaled to zero mean and unit deviation, (B, S, S)."""
        spectrum = torch.fft.rfft2(torch.randn(len(roughness), SIZE, SIZE, generator=self.rng))
        frequency = torch.hypot(torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None])
        frequency[0, 0] = math.inf
        field = torch.fft.irfft2(spectrum * frequency[None] ** -roughness[:, None, None], s=(SIZE, SIZE))
        return field / field.std(dim=(1, 2), keepdim=True).clamp_min(1e-6)

    def textures(self, family: Tensor, angle: Tensor, scale: Tensor) -> Tensor:
        """Draw one grey field per image.

        Args:
            family: index into TEXTURES, (B,).
            angle: direction of the wave vector in radians, (B,).
            scale: fineness in 0..1, (B,): wavelength 32 to 4 pixels, 4 to 40 cells, or smooth to rough noise.
        Returns:
            (B, S, S) in 0..1.
        """
        field = torch.full((len(family), SIZE, SIZE), 0.5)
        for index, name in enumerate(TEXTURES[1:], start=1):
            (rows,) = torch.nonzero(family == index, as_tuple=True)
            if not len(rows):
                continue
            wave = math.tau / (32.0 * 8.0 ** -scale[rows])[:, None, None]
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
                drawn = self.fields(scale[rows])
            else:
                drawn = self.noise(2.2 - 1.6 * scale[rows])
                drawn = torch.exp(-((drawn / 0.25) ** 2)) if name == "ridges" else 0.5 + 0.25 * drawn
            field[rows] = drawn.clamp(0, 1)
        return field

    def fields(self, scale: Tensor) -> Tensor:
        """Voronoi cells of random grey, 4 to 40 of them: a patchwork seen from above, (B, S, S) in 0..1."""
        sites = self.uniform(len(scale), 40, 2, high=float(SIZE))
        pixels = torch.stack([self.x.flatten(), self.y.flatten()], dim=1)
        distance = torch.cdist(pixels.expand(len(scale), -1, -1), sites)
        absent = torch.arange(40) >= (4 * 10**scale)[:, None]
        owner = distance.masked_fill(absent[:, None], math.inf).argmin(dim=2)
        return self.uniform(len(scale), 40).gather(1, owner).view(-1, SIZE, SIZE)

    def palette(self, count: int) -> Tensor:
        """Two colours per row, (count, 2, 3) in 0..1: a third grey, a third muted, a third free."""
        colours = self.uniform(count, 2, 3)
        saturation = self.integers(3, count, 1, 1) / 2
        return colours.mean(dim=2, keepdim=True).lerp(colours, saturation)

    def surface(self, family: Tensor, angle: Tensor, scale: Tensor) -> Tensor:
        """Coloured texture, (B, 3, S, S) in 0..1, with a little fractal shading in half of the images."""
        field = self.textures(family, angle, scale)[:, None]
        dark, light = self.palette(len(family))[..., None, None].unbind(1)
        strength = self.uniform(len(family)).sub(0.5).clamp_min(0) * 0.3
        shading = self.noise(self.uniform(len(family), low=0.4, high=1.8)) * strength[:, None, None]
        return (dark.lerp(light, field) + shading[:, None]).clamp(0, 1)

    # -- outlines ------------------------------------------------------------------------------------------------------------------

    def outlines(self, shape: Tensor, angle: Tensor) -> Tensor:
        """Radius of each outline over direction, about an inner point, largest radius 1.

        Every outline is a polygon whose V vertices are equally spaced in angle, then squeezed by a random factor and turned.

        Args:
            shape: index into SHAPES, (N,).
            angle: rotation in radians, (N,).
        Returns:
            (N, A); entry a is the radius in direction 2 pi a / A.
        """
        step = torch.arange(MAX_VERTICES)[None]
        count, rows = VERTICES[shape][:, None], len(shape)
        valley = self.uniform(rows, 1, low=0.35, high=0.6)
        radii = torch.ones(rows, MAX_VERTICES)
        is_star = ((shape >= SHAPES.index("star3")) & (shape <= SHAPES.index("star6")))[:, None]
        radii = torch.where(is_star & (step % 2 == 1), valley, radii)
        radii = torch.where((shape == SHAPES.index("drop"))[:, None] & (step > 0), valley, radii)
        open_from = 4 + self.integers(5, rows, 1)
        radii = torch.where((shape == SHAPES.index("fan"))[:, None] & (step >= open_from), 0.15, radii)
        radii = torch.where((shape == SHAPES.index("irregular"))[:, None], self.uniform(rows, MAX_VERTICES, low=0.3), radii)

        squeeze = torch.where(self.uniform(rows, 1) < 0.5, 1.0, self.uniform(rows, 1, low=0.45))
        direction = torch.arange(TABLE)[None] * (math.tau / TABLE) - angle[:, None]
        sine, cosine = direction.sin() / squeeze, direction.cos()
        turn = torch.atan2(sine, cosine).remainder(math.tau) / math.tau * count
        vertex = turn.long().minimum(count - 1)
        sector = math.tau / count
        within = (turn - vertex) * sector
        here, after = radii.gather(1, vertex), radii.gather(1, (vertex + 1) % count)
        edge = here * after * sector.sin() / (after * (sector - within).sin() + here * within.sin())
        table = edge / torch.hypot(sine, cosine)
        return table / table.amax(dim=1, keepdim=True)

    def coverage(self, table: Tensor, origin: Tensor, hole: Tensor) -> Tensor:
        """Anti-aliased inside of outlines, (N, S, S) in 0..1; table in pixels, origin (N, 2) as (x, y), hole in pixels (N,)."""
        dx, dy = self.x - origin[:, 0, None, None], self.y - origin[:, 1, None, None]
        distance = torch.hypot(dx, dy)
        entry = (torch.atan2(dy, dx).remainder(math.tau) * (TABLE / math.tau)).round().long() % TABLE
        radius = table.gather(1, entry.flatten(1)).view_as(distance)
        sharpness = 2 + 8 * self.uniform(len(table), 1, 1) ** 2
        outside_hole = torch.sigmoid((distance - hole[:, None, None]) * sharpness).where(hole[:, None, None] > 0, 1.0)
        return torch.sigmoid((radius - distance) * sharpness) * outside_hole

    # -- scenes --------------------------------------------------------------------------------------------------------------------

    def draw(self, batch: int) -> Scenes:
        """Draw one batch of scenes with their targets."""
        families = len(TEXTURES)
        texture = torch.where(self.uniform(batch) < 0.35, 0, self.integers(families, batch))
        angle, scale = self.uniform(batch, high=math.tau), self.uniform(batch)
        canvas = self.surface(texture, angle, scale)

        (rows,) = torch.nonzero((self.uniform(batch) < 0.4) & (texture > 0), as_tuple=True)
        other = self.surface(self.integers(families, len(rows)), self.uniform(len(rows), high=math.tau), self.uniform(len(rows)))
        border = self.noise(self.uniform(len(rows), low=1.5, high=2.5)) - 0.4
        canvas[rows] = canvas[rows].lerp(other, torch.sigmoid(border * 12)[:, None])

        num_objects = torch.tensor([0, 1, 1, 1, 1, 1, 1, 2, 3, 4])[self.integers(10, batch)]
        main_shape = torch.full((batch,), -100)
        centre, pose, area = torch.zeros(batch, 2), torch.zeros(batch, HARMONICS, dtype=torch.complex64), torch.zeros(batch)
        owner = torch.zeros(batch, SIZE, SIZE, dtype=torch.long)  # 0 background, else 1 + shape
        middle = torch.zeros(batch, 2, SIZE, SIZE)  # centre of the object that owns a pixel
        for layer in range(MAX_OBJECTS):
            (rows,) = torch.nonzero(num_objects > layer, as_tuple=True)
            number = len(rows)
            if not number:
                continue
            shape = self.integers(len(SHAPES), number)
            reach = self.uniform(number, low=5.0, high=17.0)
            table = self.outlines(shape, self.uniform(number, high=math.tau)) * reach[:, None]
            hole = torch.where((self.uniform(number) < 0.15) & (shape < 3), reach * 0.3, 0.0)
            place = self.uniform(number, 2, low=10.0, high=SIZE - 10.0)
            centroid, harmonics, size = describe(table)
            inside = self.coverage(table, place - torch.view_as_real(centroid), hole)
            paint = self.surface(self.integers(2 * families, number).sub(families).clamp_min(0),
                                 self.uniform(number, high=math.tau), self.uniform(number))  # fmt: skip
            ground = (canvas[rows] * inside[:, None]).sum(dim=(2, 3)) / inside.sum(dim=(1, 2))[:, None].clamp_min(1)
            likeness = (paint.mean(dim=(2, 3)) - ground).abs().amax(dim=1) < 0.25
            paint[likeness] = (paint[likeness] + 0.5) % 1.0  # a camouflaged object gets another colour
            canvas[rows] = canvas[rows].lerp(paint, inside[:, None])
            solid = inside > 0.5
            owner[rows] = torch.where(solid, 1 + shape[:, None, None], owner[rows])
            middle[rows] = torch.where(solid[:, None], place[:, :, None, None], middle[rows])
            main_shape[rows], centre[rows], pose[rows], area[rows] = shape, place, harmonics, size

        return self.finish(canvas, texture, angle, scale, num_objects, main_shape, centre, pose, area, owner, middle)

    def finish(self, canvas: Tensor, texture: Tensor, angle: Tensor, scale: Tensor, num_objects: Tensor, main_shape: Tensor,
               centre: Tensor, pose: Tensor, area: Tensor, owner: Tensor, middle: Tensor) -> Scenes:  # fmt: skip
        """Turn the painter's notes into targets, then disturb the image: noise in half of them, blanked patches in half."""
        batch = len(canvas)
        clean = canvas * 2 - 1
        single = (num_objects == 1).float()[:, None]  # with several objects, "the" centre, pose, area and shape mean nothing
        directed = (texture >= 1) & (texture <= 4) | (texture == TEXTURES.index("spots"))
        phase = centre[:, :, None] * (math.tau / torch.tensor(WAVELENGTHS))
        order = pose.abs().clamp_min(1e-6)
        mask = (owner > 0).float()[:, None]
        at_patch = slice(PATCH // 2, None, PATCH)
        part = owner[:, at_patch, at_patch].flatten(1)
        grid = torch.stack([self.x, self.y])[:, at_patch, at_patch]
        targets = {
            "texture": texture,
            "count": num_objects,
            "shape": torch.where(num_objects == 1, main_shape, -100),
            "angle": torch.stack([(2 * angle).cos(), (2 * angle).sin()], dim=1),
            "scale": scale[:, None] * 2 - 1,
            "centre": torch.cat([phase.cos(), phase.sin()], dim=2).flatten(1),
            "pose": torch.view_as_real(pose / order).flatten(1),
            "area": area[:, None] / 3,
            "mask": F.adaptive_avg_pool2d(mask, 16).flatten(1),
            "thumbnail": F.adaptive_avg_pool2d(clean, 8).flatten(1),
            "part": part,
            "offset": ((middle[:, :, at_patch, at_patch] - grid) / 8).flatten(2).transpose(1, 2),
            "cover": patches(F.adaptive_avg_pool2d(mask, SIZE // 2)),
            "pixels": patches(F.adaptive_avg_pool2d(clean, SIZE // 2)),
        }
        weights = {
            "angle": directed.float()[:, None],
            "scale": ((texture > 1).float())[:, None],
            "centre": single,
            "pose": single * (order / 0.15).clamp(max=1).repeat_interleave(2, dim=1),
            "area": single,
            "offset": (part > 0).float()[:, :, None],
        }
        grain = self.uniform(batch, 1, 1, 1).sub(0.5).clamp_min(0) * 0.3
        images = clean + grain * torch.randn(clean.shape, generator=self.rng)
        blank = self.uniform(batch, 1, SIZE // PATCH, SIZE // PATCH) < 0.2 * self.integers(2, batch, 1, 1, 1)
        images = images.masked_fill(blank.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3), 0.0)
        return Scenes(images.clamp(-1, 1), targets, weights)


def describe(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centroid, pose and size of outlines given as radius tables (N, A) in pixels.

    Returns:
        centroid relative to the table's origin, complex x + iy (N,); pose, (N, HARMONICS) complex: the order-m angular moments of the
        outline about its centroid, which turn by exp(i m t) when the outline turns by t, magnitude 0..1; log of the area over 100
        square pixels (N,).
    """
    direction = torch.polar(torch.ones(TABLE), torch.arange(TABLE) * (math.tau / TABLE))
    area = table.square().mean(dim=1) * math.pi
    centroid = (table**3 * direction).mean(dim=1) * (math.tau / 3) / area
    point = table * direction - centroid[:, None]
    weight = table.square() * point.abs()
    heading = point / point.abs().clamp_min(1e-6)
    pose = torch.stack([(weight * heading**m).sum(dim=1) / weight.sum(dim=1) for m in range(1, HARMONICS + 1)], dim=1)
    return centroid, pose, torch.log(area / 100)


def patches(half: Tensor) -> Tensor:
    """Cut half-size maps (B, C, S/2, S/2) into the values of each patch, (B, T, 16 C)."""
    return F.pixel_unshuffle(half, PATCH // 2).flatten(2).transpose(1, 2)


class Pretrainer(nn.Module):
    """The backbone and two linear layers, one over the class token and one over the patch tokens, that hold every head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = VisionTransformer(**ARCHITECTURE)
        for block in self.backbone.blocks:
            block.attn.fused_attn = False  # the fused kernel's backward is several times slower on a CPU at 65 tokens
        self.class_head = nn.Linear(ARCHITECTURE["embed_dim"], sum(CLASS_HEADS.values()))
        self.patch_head = nn.Linear(ARCHITECTURE["embed_dim"], sum(PATCH_HEADS.values()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predictions by head: (B, outputs) for the class token's heads, (B, T, outputs) for the patch heads, in fp32."""
        tokens = self.backbone.forward_features(images)
        whole = self.class_head(tokens[:, 0]).float().split(list(CLASS_HEADS.values()), dim=-1)
        local = self.patch_head(tokens[:, 1:]).float().split(list(PATCH_HEADS.values()), dim=-1)
        return dict(zip((*CLASS_HEADS, *PATCH_HEADS), (*whole, *local), strict=True))


def losses(predicted: dict[str, Tensor], scenes: Scenes) -> dict[str, Tensor]:
    """Unweighted loss of every head: cross-entropy for class ids, binary cross-entropy for coverage, else (weighted) squared error."""
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


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 5 % of the steps, then a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def batches(seed: int, batch: int, steps: int) -> Iterator[Scenes]:
    """The training stream: `steps` batches drawn one after the other."""
    painter = Painter(seed)
    for _ in range(steps):
        yield painter.draw(batch)


def pretrain(steps: int, batch: int, seed: int, peak: float, log_every: int) -> Pretrainer:
    """Train with AdamW; the arithmetic is bf16, the weights and the optimiser's state stay fp32."""
    torch.manual_seed(seed)
    master = Pretrainer()
    worker = Pretrainer().bfloat16()
    decayed = [p for p in master.parameters() if p.ndim > 1 and p.shape[0] > 1]
    others = [p for p in master.parameters() if not (p.ndim > 1 and p.shape[0] > 1)]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98))
    started = time.perf_counter()
    for step, scenes in enumerate(batches(seed, batch, steps)):
        with torch.no_grad():
            for copy, own in zip(worker.parameters(), master.parameters(), strict=True):
                copy.copy_(own)
        parts = losses(worker(scenes.images.bfloat16()), scenes)
        total = sum(LOSS_WEIGHTS[name] * loss for name, loss in parts.items())
        worker.zero_grad()
        total.backward()
        for copy, own in zip(worker.parameters(), master.parameters(), strict=True):
            own.grad = copy.grad.float()
        nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.step()
        if (step + 1) % log_every == 0 or step + 1 == steps:
            heads = " ".join(f"{name} {loss.item():.2f}" for name, loss in parts.items())
            print(f"step {step + 1}/{steps} {time.perf_counter() - started:.0f}s loss {total.item():.3f} | {heads}", flush=True)
    return master

"""A small ray-caster: ellipsoids, boxes and cylinders on a ground plane, lamps, hard shadows. Numpy only.

A solid is a unit ball, cube (half side 1) or cylinder (radius 1, half height 1, axis z) under an affine map, so a ray
is carried to the unit solid by one matrix and its entry keeps the same parameter t.

Legend: N rays, K solids; points and directions are (3, N) float32; world z points up and the ground is z = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BALL, CUBE, CYLINDER = "ball", "cube", "cylinder"
TINY = np.float32(1e-9)
LIFT = np.float32(2e-3)
"""Shadow rays start this far above their surface, in world units."""
BOUND = {BALL: 1.0, CUBE: math.sqrt(3.0), CYLINDER: math.sqrt(2.0)}


@dataclass(frozen=True)
class Solid:
    """One shape in the scene.

    Args:
        kind: ball, cube or cylinder.
        centre: (3,).
        half: (3,) half lengths along its own axes.
        turn: (3, 3) rotation; its columns are the shape's axes in the world.
        colour: (3,) in 0..1.
        metal: shiny and tinted rather than matt.
    """

    kind: str
    centre: Floats
    half: Floats
    turn: Floats
    colour: Floats
    metal: bool = False

    @property
    def to_unit(self) -> Floats:
        """(3, 3) map of world offsets from the centre to the unit solid."""
        return (self.turn / self.half).T.astype(np.float32)

    @property
    def radius(self) -> float:
        """Of a ball around the centre that holds the solid."""
        return float(self.half.max()) * BOUND[self.kind]


@dataclass(frozen=True)
class Lamp:
    """A point light.

    Args:
        place: (3,).
        strength: brightness of a surface that faces it, 1 is white.
        shadow: share of its light that a shadow takes away.
    """

    place: Floats
    strength: float
    shadow: float = 0.0


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        place: (3,).
        right, up, back: (3,) unit vectors; it looks along -back.
        focal: focal length as a multiple of the sensor's width.
        width, height: pixels.
    """

    place: Floats
    right: Floats
    up: Floats
    back: Floats
    focal: float
    width: int
    height: int

    def rays(self) -> Floats:
        """(3, height * width) directions whose component along the camera's axis is 1: t is depth."""
        x = (np.arange(self.width) + 0.5 - self.width / 2) / (self.width * self.focal)
        y = (self.height / 2 - np.arange(self.height) - 0.5) / (self.width * self.focal)
        grid = x[None, :, None] * self.right + y[:, None, None] * self.up - self.back
        return np.ascontiguousarray(grid.reshape(-1, 3).T, dtype=np.float32)

    def project(self, point: NDArray[np.float64]) -> tuple[float, float, float]:
        """Column, row and depth of a point, in pixels and world units."""
        offset = point - self.place
        depth = -float(offset @ self.back)
        scale = self.focal * self.width / depth
        return (
            self.width / 2 + float(offset @ self.right) * scale,
            self.height / 2 - float(offset @ self.up) * scale,
            depth,
        )


def looking_at(
    target: NDArray[np.float64], azimuth: float, elevation: float, distance: float, focal: float, side: int
) -> Camera:
    """A camera of ``side`` x ``side`` pixels on a sphere around ``target``; angles in radians."""
    back = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    place, right, up, back = (
        v.astype(np.float32) for v in (target + distance * back, right, np.cross(back, right), back)
    )
    return Camera(place, right, up, back, focal, side, side)


def turned(angle: float) -> Floats:
    """Rotation by ``angle`` radians about z."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=np.float32)


def span(kind: str, start: Floats, ray: Floats) -> tuple[Floats, Floats]:
    """Where rays, (3, N), from (3, N) or (3, 1), enter and leave the unit solid of a kind, (N,) near and far.

    A ray misses it if it would enter after it leaves.
    """
    if kind == CUBE:
        return _slabs(start, ray)
    axes = slice(0, 3) if kind == BALL else slice(0, 2)
    # a ray along a cylinder's axis moves nothing across it, and a is divided by
    a = np.square(ray[axes]).sum(axis=0) + TINY
    b = (start[axes] * ray[axes]).sum(axis=0)
    c = np.square(start[axes]).sum(axis=0) - np.float32(1)
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    near = np.where(inside > 0, (-b - root) / a, np.float32(np.inf))
    far = (root - b) / a
    if kind == CYLINDER:
        top, bottom = _slabs(start[2:], ray[2:])
        near, far = np.maximum(near, top), np.minimum(far, bottom)
    return near, far


def _slabs(start: Floats, ray: Floats) -> tuple[Floats, Floats]:
    inverse = 1 / np.where(np.abs(ray) < TINY, TINY, ray)
    first, second = (-1 - start) * inverse, (1 - start) * inverse
    return np.minimum(first, second).max(axis=0), np.maximum(first, second).min(axis=0)


def _normals(solid: Solid, points: Floats) -> Floats:
    """(3, N) unit normals at points on the surface."""
    local = solid.to_unit @ (points - solid.centre[:, None])
    if solid.kind == CUBE:
        axis = np.abs(local).argmax(axis=0)[None]
        normal = np.zeros_like(local)
        np.put_along_axis(normal, axis, np.sign(np.take_along_axis(local, axis, 0)), 0)
    elif solid.kind == CYLINDER:
        cap = np.abs(local[2]) > np.hypot(local[0], local[1])
        normal = np.where(cap, np.stack([0 * local[0], 0 * local[1], np.sign(local[2])]), local * _FLAT)
    else:
        normal = local
    world = solid.to_unit.T @ normal
    return world / np.sqrt(np.square(world).sum(axis=0) + TINY)


_FLAT = np.array([[1], [1], [0]], dtype=np.float32)


def first_hits(camera: Camera, rays: Floats, solids: Sequence[Solid]) -> tuple[Floats, NDArray[np.int8]]:
    """Depth and number of the first solid on each ray, (height * width,); inf and -1 where there is none."""
    depth = np.full((camera.height, camera.width), np.inf, dtype=np.float32)
    owner = np.full((camera.height, camera.width), -1, dtype=np.int8)
    grid = rays.reshape(3, camera.height, camera.width)
    for number, solid in enumerate(solids):
        column, row, distance = camera.project(solid.centre.astype(np.float64))
        # only pixels around the projected solid are tried, with some room for the perspective
        reach = 1.2 * solid.radius * camera.focal * camera.width / max(distance - solid.radius, 0.1) + 1
        rows = slice(max(0, int(row - reach)), max(0, int(row + reach) + 1))
        columns = slice(max(0, int(column - reach)), max(0, int(column + reach) + 1))
        part = grid[:, rows, columns]
        if not part.size:
            continue
        start = solid.to_unit @ (camera.place - solid.centre)[:, None]
        near, far = span(solid.kind, start, solid.to_unit @ part.reshape(3, -1))
        near = np.where((near < far) & (near > 0), near, np.float32(np.inf)).reshape(part.shape[1:])
        closer = near < depth[rows, columns]
        # slices are views: both arrays are written through them
        depth[rows, columns][closer] = near[closer]
        owner[rows, columns][closer] = number
    return depth.reshape(-1), owner.reshape(-1)


def shade(
    camera: Camera,
    solids: Sequence[Solid],
    lamps: Sequence[Lamp],
    ground: Floats,
    ambient: float,
    hits: tuple[Floats, NDArray[np.int8]] | None = None,
) -> Floats:
    """Draw a scene, (height, width, 3), 0 black and 1 white, unclipped.

    `ground` is a colour, (3,), and `ambient` light that comes from everywhere; `hits` are of ``first_hits``, if known.
    """
    rays = camera.rays()
    depth, owner = first_hits(camera, rays, solids) if hits is None else hits
    floor = -camera.place[2] / np.minimum(rays[2], -np.float32(1e-3))
    # above the horizon a ray never meets the ground: it ends 60 units away
    depth = np.where(owner < 0, np.minimum(floor, np.float32(60)), depth)
    points = camera.place[:, None] + depth * rays
    normals = np.zeros_like(points)
    normals[2] = 1
    colours = np.repeat(ground.astype(np.float32)[:, None], points.shape[1], axis=1)
    shine = np.zeros(points.shape[1], dtype=np.float32)
    for number, solid in enumerate(solids):
        mine = owner == number
        if mine.any():
            normals[:, mine] = _normals(solid, points[:, mine])
            colours[:, mine] = solid.colour[:, None]
            shine[mine] = 1.0 if solid.metal else 0.25
    light, gloss = _light(points, normals, rays, lamps, solids)
    mirrored = rays[2] - 2 * (rays * normals).sum(axis=0) * normals[2]  # height of the reflected ray
    room = 0.3 + 0.5 * np.clip(mirrored, -0.5, 1)
    result = colours * np.where(shine > 0.5, 0.5 * (ambient + light) + room, ambient + light)
    result += gloss * shine
    return result.T.reshape(camera.height, camera.width, 3)


def _light(
    points: Floats, normals: Floats, rays: Floats, lamps: Sequence[Lamp], solids: Sequence[Solid]
) -> tuple[Floats, Floats]:
    """Diffuse light and highlights at points, (N,) each."""
    light = np.zeros(points.shape[1], dtype=np.float32)
    gloss = np.zeros_like(light)
    start = points + LIFT * normals
    toward = -rays / np.sqrt(np.square(rays).sum(axis=0))
    for lamp in lamps:
        ray = lamp.place[:, None] - start
        distance = np.sqrt(np.square(ray).sum(axis=0))
        facing = np.maximum((ray * normals).sum(axis=0) / distance, 0)
        lit = np.float32(lamp.strength) * np.ones_like(light)
        if lamp.shadow:
            hidden = np.zeros(light.shape, dtype=bool)
            for solid in solids:
                offset: Floats = start - solid.centre[:, None]
                near, far = span(solid.kind, solid.to_unit @ offset, solid.to_unit @ ray)
                # the lamp is at t = 1: what lies behind it casts no shadow
                hidden |= (near < far) & (far > 0) & (near < 1)
            lit -= np.float32(lamp.strength * lamp.shadow) * hidden
        light += lit * facing
        half = ray / distance + toward
        half_facing = np.maximum((half * normals).sum(axis=0), 0) / np.sqrt(np.square(half).sum(axis=0) + TINY)
        # the 32nd power, by five squarings
        gloss += lit * np.square(np.square(np.square(np.square(np.square(half_facing)))))
    return light, gloss

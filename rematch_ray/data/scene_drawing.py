"""Draws a scene: smooth shapes on white, sizes and places jittered by seed.

Which scenes exist, and what they are called, is `data/scenes.py`. Middle floor.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from rematch_ray.data.scenes import COLOURS, Scene

SIDE = 64
MARGIN = 2
LARGEST = 27  # pixels across, two objects
SUPERSAMPLE = 4

Point = tuple[float, float]


def draw_scene(scene: Scene, *, seed: int = 0) -> Image.Image:
    """Draw a scene.

    Objects keep clear of each other along the relation's axis and stray less across it, so that the
    relation is never in doubt.

    Args:
        scene: what to draw.
        seed: of the jitter; the same scene and seed give the same pixels.

    Returns:
        RGB, 64 x 64.
    """
    draw = random.Random(f"{scene.id}:{seed}")
    canvas = Image.new("RGB", (SIDE * SUPERSAMPLE, SIDE * SUPERSAMPLE), "white")
    pen = ImageDraw.Draw(canvas)
    slot = SIDE / len(scene.objects)
    largest = min(LARGEST, slot - MARGIN)
    for i, thing in enumerate(scene.objects):
        across = largest * draw.uniform(0.8, 1.0)
        slack = max(0.0, (slot - across) / 2 - MARGIN / 2)
        along = slot * (i + 0.5) + draw.uniform(-slack, slack)
        stray = SIDE / 2 + draw.uniform(-7, 7)
        x, y = (along, stray) if scene.relation == "left of" else (stray, along)
        colour = tuple(
            min(255, max(0, level + draw.randint(-12, 12))) for level in COLOURS[thing.colour]
        )
        _DRAW[thing.shape](pen, x * SUPERSAMPLE, y * SUPERSAMPLE, across * SUPERSAMPLE / 2, colour)
    return canvas.reduce(SUPERSAMPLE)


def _circle(
    pen: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, ...]
) -> None:
    pen.ellipse((x - half, y - half, x + half, y + half), fill=colour)


def _ring(
    pen: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, ...]
) -> None:
    _circle(pen, x, y, half, colour)
    _circle(pen, x, y, half * 0.5, (255, 255, 255))


def _square(
    pen: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, ...]
) -> None:
    side = half * 0.88
    pen.rectangle((x - side, y - side, x + side, y + side), fill=colour)


def _bar(
    pen: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, ...]
) -> None:
    pen.rectangle((x - half, y - half * 0.36, x + half, y + half * 0.36), fill=colour)


def _cross(
    pen: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, ...]
) -> None:
    arm = half * 0.32
    pen.rectangle((x - half, y - arm, x + half, y + arm), fill=colour)
    pen.rectangle((x - arm, y - half, x + arm, y + half), fill=colour)


def _polygon(corners: int, *, inner: float | None = None) -> Callable[..., None]:
    """A regular polygon, one corner up; with `inner`, a star with inner corners at that radius."""
    radii = [1.0] if inner is None else [1.0, inner]
    count = corners * len(radii)
    unit: list[Point] = [
        (
            radii[i % len(radii)] * math.sin(2 * math.pi * i / count),
            -radii[i % len(radii)] * math.cos(2 * math.pi * i / count),
        )
        for i in range(count)
    ]
    drop = 0.2 if corners == 3 else 0.0  # a triangle's middle lies below its circle's

    def draw(
        pen: ImageDraw.ImageDraw, x: float, y: float, half: float, colour: tuple[int, ...]
    ) -> None:
        pen.polygon([(x + half * a, y + half * (b + drop)) for a, b in unit], fill=colour)

    return draw


_DRAW: dict[str, Callable[..., None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _polygon(3),
    "bar": _bar,
    "star": _polygon(5, inner=0.45),
    "cross": _cross,
    "ring": _ring,
    "diamond": _polygon(4),
}

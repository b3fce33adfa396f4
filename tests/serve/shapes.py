"""Pictures of one shape in one colour, drawn and read back."""

import io

import numpy as np
from PIL import Image, ImageDraw

from rematch_ray.data.media import decode_image
from rematch_ray.errors import UserError

COLOURS = {
    "red": (222, 60, 54),
    "orange": (240, 150, 40),
    "green": (46, 160, 90),
    "teal": (30, 160, 170),
    "blue": (52, 98, 222),
    "purple": (140, 84, 200),
}
SHAPES = ["circle", "square", "triangle", "star", "ring"]


def draw(shape: str, colour: tuple[int, int, int], size: int = 192) -> bytes:
    """One shape on white, as PNG."""
    big = size * 3
    image = Image.new("RGB", (big, big), "white")
    pen = ImageDraw.Draw(image)
    low, high, middle = big * 0.14, big * 0.86, big / 2
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=colour)
    elif shape == "ring":
        pen.ellipse((low, low, high, high), outline=colour, width=big // 8)
    elif shape == "square":
        pen.rounded_rectangle((low, low, high, high), big // 24, fill=colour)
    else:
        turns = np.arange(3 if shape == "triangle" else 10)
        radii = np.where((len(turns) == 10) & (turns % 2 == 1), 0.382, 1.0) * big * 0.4
        angles = turns * 2 * np.pi / len(turns) - np.pi / 2
        pen.polygon(
            [(middle + r * np.cos(a), middle + r * np.sin(a)) for r, a in zip(radii, angles)],
            fill=colour,
        )
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def name_of_colour(image: bytes) -> str:
    """The colour of a picture; UserError when it cannot be read."""
    try:
        pixels = np.asarray(decode_image(image, max_pixels=4_000_000).convert("RGB"))
    except UserError as bad:
        raise UserError(f"the query's image cannot be read: {bad}") from bad
    inked = pixels[pixels.min(axis=-1) < 200].astype(float)
    mean = inked.mean(axis=0) if len(inked) else np.full(3, 255.0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))

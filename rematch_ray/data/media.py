"""Turns untrusted image bytes into an RGB picture, or says by name why it cannot.

The header's size is checked before a pixel is decoded; formats that run programs or are not
pictures are refused. It does not know rows, models or files. Middle floor.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from rematch_ray.errors import UserError

MAX_PIXELS = 40_000_000
MAX_ASPECT = 200  # the image processors of Qwen-VL refuse longer strips
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what Pillow's readers raise on damaged data, beside OSError
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class MediaError(UserError):
    """Bytes that are not a picture we can or want to decode; the message is the reason."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image.

    Args:
        data: an encoded image of one of `FORMATS`.
        max_pixels: largest width x height to decode.

    Returns:
        RGB, 8 bits a channel, turned upright by its EXIF orientation. Transparency is laid on
        white; of an animation the first frame; 16-bit grey is scaled by 1/257, 32-bit and float
        grey from least to greatest value.

    Raises:
        MediaError: empty, not an image, too many pixels, no pixels, too long a strip, or damaged.
    """
    if not data:
        raise MediaError("the image is empty (0 bytes)")
    image = _open(data, max_pixels)
    try:
        image.load()
        _check_size(image, max_pixels)
        return _upright(_to_rgb(image), _orientation(image))
    except MediaError:
        raise
    except _DAMAGE as error:
        raise MediaError(f"the {image.format} image is truncated or damaged: {error}") from error


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in the header, checked as in `decode_image`; nothing is decoded."""
    return _open(data, max_pixels).size


def encode_png(image: Image.Image) -> bytes:
    """An image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header, so that size is known and checked while pixels are still encoded."""
    _quieten_pillow()
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise MediaError(
            f"{len(data)} bytes are not an image we read, or its header is damaged; "
            f"formats: {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"the image has too many pixels, at most {max_pixels}: {error}") from error
    except _DAMAGE as error:
        raise MediaError(f"the image header is damaged: {error}") from error
    _check_size(image, max_pixels)
    return image


@lru_cache(maxsize=1)
def _quieten_pillow() -> None:
    # it warns of large sizes and damaged metadata; we refuse the first below its limit, and by name
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError(f"the image has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise MediaError(
            f"the image has too many pixels: {width} x {height} = {width * height}, "
            f"at most {max_pixels}"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError(
            f"the image is too long a strip: {width} x {height}, "
            f"at most {MAX_ASPECT} times its shorter side"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16" or image.mode.startswith("I;16"):
        grey = np.asarray(image.convert("I")) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretched(np.asarray(image, dtype=np.float64))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, picture).convert("RGB")
    return image.convert("RGB")


def _stretched(grey: np.ndarray) -> np.ndarray:
    """(H, W) numbers of unknown range as uint8, least to 0, greatest to 255; NaN is the least."""
    finite = grey[np.isfinite(grey)]
    if finite.size == 0:
        raise MediaError("the image holds no finite number")
    least, greatest = finite.min(), finite.max()
    scaled = (np.nan_to_num(grey, nan=least, posinf=greatest, neginf=least) - least) / max(
        greatest - least, np.finfo(np.float64).tiny
    )
    return (scaled * 255).round().astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 when there is none; damaged EXIF says nothing about the pixels."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:
        return 1
    return found if isinstance(found, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _ORIENTATIONS.get(orientation)
    return image if turn is None else image.transpose(turn)

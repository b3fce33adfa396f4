"""Turns untrusted image bytes into an RGB picture, or says by name why it cannot.

The header's size is checked before a pixel is decoded; formats that run programs or are not
pictures are refused. It does not know rows, models or files. Middle floor.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from rematch_ray.errors import UserError

MAX_PIXELS = 40_000_000
MAX_ASPECT = 200  # the image processors of Qwen-VL refuse longer strips
ITEM_IMAGES = 128  # of one item; each is decoded, and takes hundreds of tokens
MAX_SCANS = 100  # of a progressive JPEG: a small file of many costs minutes
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
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_SCAN = b"\xff\xda"
_ROWS_AT_ONCE = 256
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
    AssertionError,
    RuntimeError,
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
        MediaError: empty, not an image, too many pixels, no pixels, too long a strip, too many
            scans, text or profiles that unpack to too much, or damaged.
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
    except MemoryError as error:
        raise MediaError(f"the {image.format} image needs more memory than there is") from error
    except _DAMAGE as error:
        raise _damaged(f"the {image.format} image is truncated or damaged", error) from error


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
        if data.startswith(_PNG_START) and bytes(4) in (data[16:20], data[20:24]):
            raise MediaError("the image has no pixels: its header says 0") from error
        raise MediaError(
            f"{len(data)} bytes are not an image we read, or its header is damaged; "
            f"formats: {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        most = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise MediaError(f"the image has too many pixels, at most {most}") from error
    except MemoryError as error:
        raise MediaError("the image's header asks for more memory than there is") from error
    except _DAMAGE as error:
        raise _damaged("the image header is damaged", error) from error
    if image.format == "JPEG" and (scans := data.count(_JPEG_SCAN)) > MAX_SCANS:
        raise MediaError(f"the JPEG image has too many scans: {scans}, at most {MAX_SCANS}")
    _check_size(image, max_pixels)
    return image


def _damaged(what: str, error: BaseException) -> MediaError:
    # Pillow's limits on text chunks and colour profiles, which a few bytes can unpack to
    if "Decompressed data too large" in str(error) or "MAX_TEXT_MEMORY" in str(error):
        return MediaError("the image's text or colour profile unpacks to too much")
    return MediaError(f"{what}: {error or type(error).__name__}")


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
    if image.mode.startswith("I;16"):
        return _eight_bits(np.asarray(image), lambda rows: (rows.astype(np.uint32) + 128) // 257)
    if image.mode in ("I", "F"):
        return _eight_bits(*_stretched(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, picture).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray, scale: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """An RGB picture of (H, W) grey.

    Scaled a few rows at a time: wide numbers of all at once would take several times its memory.
    """
    made = np.empty(grey.shape, np.uint8)
    for start in range(0, len(grey), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        made[rows] = scale(grey[rows])
    return Image.fromarray(made).convert("RGB")


def _stretched(grey: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Grey of unknown range, and what maps its least to 0, its greatest to 255, NaN to 0."""
    finite = grey[np.isfinite(grey)]
    if finite.size == 0:
        raise MediaError("the image holds no finite number")
    least, greatest = float(finite.min()), float(finite.max())
    step = max(greatest - least, float(np.finfo(np.float64).tiny))

    def scale(rows: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a signalling NaN complains of being copied
            wide = rows.astype(np.float64)
        known = np.nan_to_num(wide, nan=least, posinf=greatest, neginf=least)
        return ((known - least) / step * 255).round()

    return grey, scale


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

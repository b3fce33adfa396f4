"""Images that must not hurt: ten kinds that are refused, and bombs of a few bytes.

Everything is made here from a few lines of code and a seed; nothing is a captured file.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
MEGABYTE = 1 << 20


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def noise(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    width, height = size
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(width * height * 3))


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file, its checksum right."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes whose header promises any number of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return PNG_START + body


def png_with(extra: bytes, *, at_end: bool = False) -> bytes:
    """A sound picture with more chunks before its pixels, or after them."""
    data = encoded(noise())
    place = data.index(b"IDAT") - 4 if not at_end else len(data) - 12
    return data[:place] + extra + data[place:]


def text_bomb(*, at_end: bool = False) -> bytes:
    """A kilobyte of text chunk that unpacks to many megabytes."""
    packed = zlib.compress(bytes(80 * MEGABYTE), 9)
    return png_with(chunk(b"zTXt", b"Comment\0\0" + packed), at_end=at_end)


def many_texts(count: int = 80) -> bytes:
    """Text chunks that are small enough one by one."""
    packed = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(MEGABYTE - 16), 9))
    return png_with(packed * count)


def profile_bomb() -> bytes:
    """A colour profile that unpacks to many megabytes."""
    return png_with(chunk(b"iCCP", b"ICC\0\0" + zlib.compress(bytes(80 * MEGABYTE), 9)))


def damaged_pixels(seed: int = 0) -> bytes:
    """A PNG whose chunks are whole and whose compressed pixels are not."""
    data = encoded(noise(seed))
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    body = bytearray(data[start + 4 : start + 4 + length])
    middle = len(body) // 2
    body[middle : middle + 40] = bytes(40)
    return data[: start - 4] + chunk(b"IDAT", bytes(body)) + data[start + 8 + length :]


def gif_that_outgrows_its_screen() -> bytes:
    data = bytearray(encoded(Image.new("P", (10, 10)), "GIF"))
    frame = data.index(b"\x2c")
    data[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


def tiff_that_points_at_itself() -> bytes:
    """Its directory of tags is followed by itself, for ever, and holds no picture."""
    return b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8)


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "empty": lambda seed: b"",
    "truncated png": lambda seed: encoded(noise(seed))[: 60 + seed % 400],
    "truncated jpeg": lambda seed: encoded(noise(seed), "JPEG", quality=95)[: 700 + seed % 900],
    "pixel bomb": lambda seed: png_claiming(50_000 + seed % 9, 50_000),
    "no pixels": lambda seed: png_claiming(seed % 2 and 5, 5 - 5 * (seed % 2)),
    "long strip": lambda seed: encoded(Image.new("L", (1000 + seed % 50, 2))),
    "text bomb": lambda seed: many_texts(70 + seed % 3),
    "damaged pixels": damaged_pixels,
    "frame outgrows": lambda seed: gif_that_outgrows_its_screen(),
    "no image": lambda seed: [
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        b"<html>404 Not Found</html>",
        tiff_that_points_at_itself(),
        random.Random(seed).randbytes(500),
    ][seed % 5],
}

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rematch_ray.data.media import FORMATS, MediaError, decode_image, encode_png, image_size

# pytest resets the filters that the module sets once in a process
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

NOISE = Image.effect_noise((40, 30), 90).convert("RGB")
RED = (255, 0, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes whose header promises any number of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_we_name_is_decoded(kind):
    image = decode_image(encoded(NOISE, kind))
    assert (image.mode, image.size) == ("RGB", NOISE.size)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_a_media_error(kind, share):
    data = encoded(NOISE, kind)
    with pytest.raises(MediaError):
        decode_image(data[: int(share * len(data))])


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size):
    data = png_claiming(*size)
    assert len(data) < 100
    with pytest.raises(MediaError, match="too many pixels"):
        decode_image(data)


def test_the_pixel_limit_is_the_callers():
    data = encoded(NOISE)
    assert decode_image(data, max_pixels=1200).size == (40, 30)
    with pytest.raises(MediaError, match="40 x 30 = 1200, at most 1199"):
        decode_image(data, max_pixels=1199)


def test_a_gif_whose_frame_outgrows_its_screen_is_measured_by_the_frame():
    data = bytearray(encoded(Image.new("P", (10, 10)), "GIF"))
    frame = data.index(b"\x2c")
    data[frame + 5 : frame + 9] = struct.pack("<HH", 5000, 5000)
    with pytest.raises(MediaError):
        decode_image(bytes(data), max_pixels=1_000_000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        bytes(1000),
        png_claiming(0, 5),
        png_claiming(5, 0),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.4\n",
    ],
)
def test_what_is_no_image_is_refused_with_a_one_line_reason(data):
    with pytest.raises(MediaError) as refused:
        decode_image(data)
    assert str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_image_says_so():
    with pytest.raises(MediaError, match="0 bytes"):
        decode_image(b"")


def test_a_strip_that_image_processors_refuse_is_refused_here():
    with pytest.raises(MediaError, match="too long a strip: 1000 x 2"):
        decode_image(encoded(Image.new("RGB", (1000, 2))))
    assert decode_image(encoded(Image.new("RGB", (400, 2)))).size == (400, 2)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (4, 4), (*RED, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (*RED, 255)), RED),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("L", (4, 4), 7), (7, 7, 7)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("I;16", (4, 4), 65535), (255, 255, 255)),
        (Image.new("I;16", (4, 4), 257 * 7), (7, 7, 7)),
    ],
)
def test_transparency_is_white_paper_and_depth_is_scaled(image, expected):
    assert decode_image(encoded(image)).getpixel((0, 0)) == expected


def test_a_palette_with_a_transparent_colour_is_laid_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 1), 1)
    decoded = decode_image(encoded(image, transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 1)) == RED


def test_cmyk_becomes_the_colour_it_prints():
    decoded = decode_image(
        encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    )
    assert np.abs(np.subtract(decoded.getpixel((3, 3)), RED)).max() <= 3


def test_float_and_wide_grey_is_stretched_over_its_own_range():
    ramp = np.linspace(-3, 5, 16, dtype=np.float32).reshape(4, 4)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(ramp), "TIFF")))
    assert (decoded[0, 0, 0], decoded[3, 3, 0]) == (0, 255)
    flat = np.full((4, 4), np.nan, dtype=np.float32)
    with pytest.raises(MediaError, match="no finite number"):
        decode_image(encoded(Image.fromarray(flat), "TIFF"))


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((2, 2)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(NOISE, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode_image(data)
    assert decoded.size == expected.size
    assert decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_impossible_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode_image(encoded(NOISE, exif=exif)).tobytes() == NOISE.tobytes()


def test_damaged_exif_does_not_cost_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(NOISE, "JPEG", exif=exif))
    start = data.index(b"Exif\0\0") + 6
    data[start : start + 8] = b"\xff" * 8
    assert decode_image(bytes(data)).size == NOISE.size


def test_the_size_is_known_without_decoding():
    data = encoded(NOISE)
    assert image_size(data) == (40, 30)
    assert image_size(data[:200]) == (40, 30)
    with pytest.raises(MediaError):
        image_size(png_claiming(60_000, 60_000))


def test_png_round_trip_is_exact():
    assert decode_image(encode_png(NOISE)).tobytes() == NOISE.tobytes()


SEEDS = [
    encoded(NOISE.convert(mode), kind)
    for kind in FORMATS
    for mode in ("RGB", "L")
    if (kind, mode) != ("TIFF", "RGB")  # raw pixels: nothing in it to damage
]


@given(st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_either_decode_or_are_a_media_error(seed):
    draw = random.Random(seed)
    data = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(min(len(data), draw.choice((32, 128, len(data)))))] = draw.randrange(
            256
        )
    if draw.random() < 0.2:
        del data[draw.randrange(len(data)) :]
    try:
        image = decode_image(bytes(data), max_pixels=100_000)
    except MediaError:
        return
    assert image.mode == "RGB"

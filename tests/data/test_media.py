import io
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rematch_ray.data.media import (
    FORMATS,
    MAX_SCANS,
    MediaError,
    decode_image,
    encode_png,
    image_size,
)
from tests import hostile
from tests.hostile import HOSTILE, encoded, png_claiming

# pytest resets the filters that the module sets once in a process
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

NOISE = Image.effect_noise((40, 30), 90).convert("RGB")
RED = (255, 0, 0)


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


REASONS = {
    "empty": "0 bytes",
    "truncated png": "truncated",
    "truncated jpeg": "(?i)truncated",
    "pixel bomb": "too many pixels, at most",
    "no pixels": "no pixels",
    "long strip": "too long a strip",
    "text bomb": "unpacks to too much",
    "damaged pixels": "truncated or damaged",
    "frame outgrows": "too many pixels",
    "no image": "not an image we read",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_every_hostile_kind_has_a_reason_by_name(kind: str) -> None:
    for seed in range(3 if kind == "text bomb" else 100):
        with pytest.raises(MediaError, match=REASONS[kind]):
            decode_image(HOSTILE[kind](seed))


@pytest.mark.parametrize(
    "bomb", [hostile.text_bomb, lambda: hostile.text_bomb(at_end=True), hostile.profile_bomb]
)
def test_a_chunk_that_unpacks_to_much_is_refused_before_it_is_unpacked(
    bomb: Callable[[], bytes],
) -> None:
    data = bomb()
    assert len(data) < 100_000
    with pytest.raises(MediaError, match="text or colour profile unpacks to too much"):
        decode_image(data)


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = encoded(NOISE, "JPEG", progressive=True)
    assert decode_image(data).size == NOISE.size
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * MAX_SCANS + b"\xff\xd9"
    with pytest.raises(MediaError, match=f"too many scans: .*at most {MAX_SCANS}"):
        decode_image(many)


def test_a_limit_above_pillows_own_is_told_as_it_holds() -> None:
    with pytest.raises(MediaError, match="at most 178956970"):
        decode_image(png_claiming(60_000, 60_000), max_pixels=10**12)


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


def test_a_palette_whose_colours_are_transparent_by_degrees_is_laid_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 1), 1)
    decoded = decode_image(encoded(image, transparency=bytes([128, 255])))
    assert decoded.getpixel((0, 0)) == (127, 127, 127)
    assert decoded.getpixel((1, 1)) == RED


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_rounded_to_eight(kind):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(deep), kind)))
    assert (decoded[..., 0] == np.rint(deep / 257)).all()


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


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
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


def sound_images() -> list[bytes]:
    """Every format in every mode that it can hold, plain, animated and turned."""
    made = [encoded(NOISE.convert("L").convert("I;16"), kind) for kind in ("PNG", "TIFF")]
    for kind in FORMATS:
        for mode in ("RGB", "L", "RGBA", "P", "CMYK", "1", "LA"):
            try:
                made.append(encoded(NOISE.convert(mode), kind))
            except (OSError, ValueError):
                continue  # this format has no such mode
    made += [
        encoded(NOISE, "TIFF", compression=packing)
        for packing in ("tiff_lzw", "tiff_deflate", "packbits")
    ]
    for kind in ("GIF", "WEBP", "PNG"):
        made.append(encoded(NOISE, kind, save_all=True, append_images=[NOISE.rotate(90)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    made += [encoded(NOISE, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    return [*made, encoded(NOISE, "JPEG", progressive=True)]


SEEDS = sound_images()
NUMBERS = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")


def damaged(draw: random.Random) -> bytes:
    """A sound image with bytes changed, lost, doubled or replaced by extreme numbers."""
    data = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(min(len(data), draw.choice((32, 128, len(data)))) or 1)
        match draw.randrange(6):
            case 0:
                del data[place : place + draw.randint(1, 64)]
            case 1:
                other = draw.randrange(len(data) or 1)
                data[place:place] = data[other : other + draw.randint(1, 64)]
            case 2:
                data[place : place + 4] = draw.choice(NUMBERS)
            case _:
                data[place : place + 1] = bytes([draw.randrange(256)])
    if draw.random() < 0.2:
        del data[draw.randrange(len(data) or 1) :]
    return bytes(data)


@given(st.integers(0, 2**32))
@settings(max_examples=500, deadline=None)
def test_damaged_bytes_either_decode_or_are_a_media_error(seed):
    data = damaged(random.Random(seed))
    try:
        image = decode_image(data, max_pixels=100_000)
    except MediaError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 100_000

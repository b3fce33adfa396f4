"""Renders the colour emoji of a font once, names them, splits them, and writes the shipped shards.

Needs what the package itself does not: the font (Debian `fonts-noto-color-emoji`), the `emoji`
package (official English names) and Unicode's own files (Debian `unicode-data` and
`unicode-cldr-core`: order, groups, keywords). `data/emoji.py` reads the result. Middle floor.
"""

from __future__ import annotations

import io
import math
import random
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rematch_ray.data.emoji import EmojiRow, rows_to_table
from rematch_ray.data.emoji_sequence import decompose, emoji_name, hex_sequence, plain_name
from rematch_ray.data.schema import write_parquet
from rematch_ray.errors import UserError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
ANNOTATIONS = tuple(
    Path(f"/usr/share/unicode/cldr/common/{folder}/en.xml")
    for folder in ("annotations", "annotationsDerived")
)

FONT_SIZE = 109  # the only size the font's bitmaps have
SINGLE_GLYPH_WIDTH = 140  # a sequence that the font does not join is at least twice as wide
GLYPH_WIDTH, GLYPH_HEIGHT = 136, 128
SIDE = 64
COLOURS = 128  # mean error under 1 of 255 levels, half the bytes of true colour

NUM_COMPOSED = 300
NUM_NOVEL_BASES = 150
LARGEST_NOVEL_BASE = 30  # the couples have 100 and more compositions: a few would fill the split
NUM_SHARDS = 4


@dataclass(frozen=True)
class Place:
    """Where an emoji stands in Unicode's own order."""

    order: float
    group: str
    subgroup: str


def render(*, seed: int, font: Path = FONT) -> list[EmojiRow]:
    """Render, name, merge and split every fully qualified emoji that the font has.

    Args:
        seed: of the held-out parts.
        font: the colour font file.

    Returns:
        Rows in Unicode's order; pixel-identical glyphs are one row with several names, and an alias
        that another row also answers to is dropped.

    Raises:
        UserError: a file or package that rendering needs is not there.
    """
    for needed in (font, EMOJI_TEST, *ANNOTATIONS):
        if not needed.exists():
            raise UserError(
                f"{needed} is not there; rendering needs Debian's fonts-noto-color-emoji, "
                "unicode-data and unicode-cldr-core (apt-get install)"
            )
    places = read_places(EMOJI_TEST.read_text(encoding="utf-8"))
    keywords, spoken = read_annotations(ANNOTATIONS)
    typeface = ImageFont.truetype(str(font), FONT_SIZE)
    rows = []
    for emoji, name, aliases in official_names():
        image = draw_glyph(emoji, typeface)
        if image is None:
            continue
        key = hex_sequence(emoji)
        place = place_of(emoji, places)
        composition = decompose(emoji)
        names = (emoji_name(emoji, name),)
        row = EmojiRow(
            id=f"emoji-{key}",
            image=image,
            emoji=(emoji,),
            names=names,
            aliases=_distinct(map(plain_name, [*aliases, *spoken.get(key, ())]), without=names),
            keywords=_distinct(map(plain_name, keywords.get(key, ())), without=names),
            group=place.group,
            subgroup=place.subgroup,
            base=composition.base,
            family=composition.family,
            gender=composition.gender,
            tone=composition.tone,
            split="train",
        )
        rows.append((place.order, row))
    rows.sort(key=lambda pair: (pair[0], pair[1].id))
    merged = merge_identical([row for _, row in rows])
    taken = Counter(word for row in merged for word in {*row.names, *row.aliases})
    clear = [
        replace(row, aliases=tuple(alias for alias in row.aliases if taken[alias] == 1))
        for row in merged
    ]
    return split(clear, seed=seed)


def official_names() -> list[tuple[str, str, list[str]]]:
    """Every fully qualified emoji with its official English name and its aliases."""
    try:
        import emoji
    except ImportError as error:
        raise UserError(
            "the package 'emoji' is not installed; rendering needs it (pip install emoji)"
        ) from error
    qualified = emoji.STATUS["fully_qualified"]
    return [
        (key, data["en"], list(data.get("alias", ())))
        for key, data in emoji.EMOJI_DATA.items()
        if data["status"] == qualified
    ]


def draw_glyph(emoji: str, typeface: ImageFont.FreeTypeFont) -> bytes | None:
    """One glyph on white as a palette PNG of 64 x 64; None when the font has no single glyph."""
    if typeface.getlength(emoji) > SINGLE_GLYPH_WIDTH or typeface.getmask(emoji).getbbox() is None:
        return None
    canvas = Image.new("RGBA", (GLYPH_WIDTH, GLYPH_WIDTH), (255, 255, 255, 255))
    ImageDraw.Draw(canvas).text(
        (0, (GLYPH_WIDTH - GLYPH_HEIGHT) // 2), emoji, font=typeface, embedded_color=True
    )
    small = canvas.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return palette_png(small)


def palette_png(image: Image.Image) -> bytes:
    """An RGB image as a PNG of at most `COLOURS` colours, in which white stays exactly white."""
    indexed = image.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE)
    white = np.asarray(image).min(axis=2) == 255
    palette = indexed.getpalette() or []
    for index in np.unique(np.asarray(indexed)[white]):
        palette[3 * index : 3 * index + 3] = [255, 255, 255]
    indexed.putpalette(palette)
    buffer = io.BytesIO()
    indexed.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def read_places(emoji_test: str) -> dict[str, Place]:
    """Order and groups from Unicode's `emoji-test.txt`, by hex sequence and by first code point."""
    places: dict[str, Place] = {}
    group = subgroup = ""
    for number, line in enumerate(emoji_test.splitlines()):
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif "; fully-qualified" in line:
            points = [
                f"{int(point, 16):x}" for point in line.partition(";")[0].split() if point != "FE0F"
            ]
            place = Place(float(number), group, subgroup)
            places["-".join(points)] = place
            places.setdefault(points[0], place)
    return places


def place_of(emoji: str, places: Mapping[str, Place]) -> Place:
    """The emoji's place; one newer than the file stands right after its first code point."""
    key = hex_sequence(emoji)
    if key in places:
        return places[key]
    near = places.get(key.partition("-")[0], Place(math.inf, "Other", "other"))
    return replace(near, order=near.order + 0.5)


def read_annotations(
    files: Iterable[Path],
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """CLDR keywords and spoken names by hex sequence."""
    keywords: dict[str, list[str]] = {}
    spoken: dict[str, list[str]] = {}
    for file in files:
        for node in ElementTree.parse(file).iter("annotation"):
            found = spoken if node.get("type") == "tts" else keywords
            found[hex_sequence(node.get("cp", ""))] = [
                word.strip() for word in (node.text or "").split("|")
            ]
    return keywords, spoken


def merge_identical(rows: Sequence[EmojiRow]) -> list[EmojiRow]:
    """Rows whose pixels are the same become one, under the first's id, with all the names."""
    by_pixels: dict[bytes, EmojiRow] = {}
    for row in rows:
        pixels = Image.open(io.BytesIO(row.image)).convert("RGB").tobytes()
        first = by_pixels.setdefault(pixels, row)
        if first is not row:
            names = _distinct((*first.names, *row.names))
            by_pixels[pixels] = replace(
                first,
                emoji=(*first.emoji, *row.emoji),
                names=names,
                aliases=_distinct((*first.aliases, *row.aliases), without=names),
                keywords=_distinct((*first.keywords, *row.keywords), without=names),
            )
    return list(by_pixels.values())


def split(rows: Sequence[EmojiRow], *, seed: int) -> list[EmojiRow]:
    """Mark the held-out parts: `composed-*` and `novel-*`, each validation and test.

    Novel: whole bases with every composition. Composed: emoji with a skin tone, outside the novel
    bases, at most a third of a family (the emoji that differ in tone alone), each with its family,
    and its tone on another base, left in training.

    Args:
        rows: distinct documents.
        seed: of both draws.

    Returns:
        The same rows in the same order, `split` set.
    """
    draw = random.Random(seed)
    sizes = Counter(row.base for row in rows)
    bases = sorted(base for base, size in sizes.items() if size <= LARGEST_NOVEL_BASE)
    novel_bases = draw.sample(bases, NUM_NOVEL_BASES)
    half = NUM_NOVEL_BASES // 2
    marks = {
        base: "novel-validation" if i < half else "novel-test" for i, base in enumerate(novel_bases)
    }
    composed = _draw_composed([row for row in rows if row.base not in marks], draw)
    half = len(composed) // 2
    by_id = {
        row.id: "composed-validation" if i < half else "composed-test"
        for i, row in enumerate(composed)
    }
    return [replace(row, split=by_id.get(row.id) or marks.get(row.base, "train")) for row in rows]


def _draw_composed(rows: Sequence[EmojiRow], draw: random.Random) -> list[EmojiRow]:
    family_sizes = Counter(row.family for row in rows)
    held: Counter[str] = Counter()
    candidates = [row for row in rows if row.tone]
    bases_of_tone: dict[str, set[str]] = defaultdict(set)
    for row in candidates:
        bases_of_tone[row.tone].add(row.base)
    chosen: list[EmojiRow] = []
    for row in draw.sample(candidates, len(candidates)):
        if len(chosen) == NUM_COMPOSED:
            break
        if held[row.family] + 1 > family_sizes[row.family] // 3 or len(bases_of_tone[row.tone]) < 2:
            continue
        held[row.family] += 1
        chosen.append(row)
    kept = {row.id for row in rows} - {row.id for row in chosen}
    for row in chosen:
        assert any(o.base == row.base and o.id in kept for o in rows)
        assert any(o.tone == row.tone and o.base != row.base and o.id in kept for o in rows)
    return chosen


def write_shards(rows: Sequence[EmojiRow], folder: Path, *, seed: int) -> list[Path]:
    """Write the rows as `emoji-N-of-M.parquet`, in order; returns the files."""
    size = math.ceil(len(rows) / NUM_SHARDS)
    files = []
    for number in range(NUM_SHARDS):
        table = rows_to_table(rows[number * size : (number + 1) * size])
        table = table.replace_schema_metadata(
            {**table.schema.metadata, b"split_seed": str(seed).encode()}
        )
        files.append(write_parquet(table, folder / f"emoji-{number}-of-{NUM_SHARDS}.parquet"))
    return files


def _distinct(words: Iterable[str], without: Iterable[str] = ()) -> tuple[str, ...]:
    """The words once each, in order; short codes such as `+1` are not words."""
    seen = set(without)
    kept = []
    for word in words:
        if word not in seen and sum(char.isalpha() for char in word) > 1:
            seen.add(word)
            kept.append(word)
    return tuple(kept)

"""Contact sheets: search results as a picture, one row per query, one thumbnail per hit.

Pillow only. A hit without a readable picture is shown by its name. Middle floor.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from rematch_ray.index.hits import Hit, SearchResult

TILE = 96
_LABEL = 30
_GAP = 8
_TITLE_WIDTH = 220
_TITLE_FIELDS = ("name", "title", "caption", "text")
_MEDIA_FIELDS = ("media", "uri")


def contact_sheet(
    results: SearchResult | Sequence[SearchResult],
    out: Path,
    *,
    title: str | Sequence[str],
    media_root: Path | None = None,
    highlight: Sequence[frozenset[str]] | None = None,
) -> Path:
    """Draws results as a grid and writes it.

    Args:
        results: one result, or one per query.
        out: image file; the ending chooses the format.
        title: what was asked, one per result.
        media_root: where relative paths in the payload's `media` or `uri` start; None = here.
        highlight: ids to frame, one set per result: what is right.

    Returns:
        `out`.

    Raises:
        ValueError: not one title per result.
    """
    rows = [results] if isinstance(results, SearchResult) else list(results)
    titles = [title] if isinstance(title, str) else list(title)
    if len(rows) != len(titles):
        raise ValueError(f"{len(titles)} titles for {len(rows)} results: give one each")
    columns = max((len(row.hits) for row in rows), default=0)
    height = TILE + _LABEL + _GAP
    size = (_TITLE_WIDTH + columns * (TILE + _GAP) + _GAP, len(rows) * height + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for position, (result, asked) in enumerate(zip(rows, titles)):
        top = _GAP + position * height
        heading = f"{asked}\n[{result.budget}]"
        _write(draw, (_GAP, top), heading, _TITLE_WIDTH - 2 * _GAP, size=14, lines=6)
        framed = highlight[position] if highlight else frozenset()
        for column, hit in enumerate(result.hits):
            left = _TITLE_WIDTH + column * (TILE + _GAP)
            _draw_hit(sheet, draw, hit, (left, top), media_root, hit.id in framed)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    return out


def _draw_hit(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    hit: Hit,
    corner: tuple[int, int],
    media_root: Path | None,
    framed: bool,
) -> None:
    left, top = corner
    name = _name_of(hit)
    thumbnail = _thumbnail(hit, media_root)
    if thumbnail is None:
        _write(draw, (left + 4, top + 4), name, TILE - 8, size=11, lines=6)
    else:
        inset = ((TILE - thumbnail.width) // 2, (TILE - thumbnail.height) // 2)
        sheet.paste(thumbnail, (left + inset[0], top + inset[1]))
    box = (left, top, left + TILE - 1, top + TILE - 1)
    draw.rectangle(box, outline="#2a9d3a" if framed else "#c8c8c8", width=3 if framed else 1)
    _write(draw, (left, top + TILE + 2), f"{hit.score:.3f} {name}", TILE, size=10, lines=2)


def _thumbnail(hit: Hit, media_root: Path | None) -> Image.Image | None:
    """The picture that the payload refers to; None when it has none or it cannot be read."""
    for field in _MEDIA_FIELDS:
        reference = hit.payload.get(field)
        if not isinstance(reference, str) or "://" in reference:
            continue
        try:
            with Image.open((media_root or Path()) / reference) as picture:
                thumbnail = picture.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
        scale = min(TILE / thumbnail.width, TILE / thumbnail.height)
        width = max(1, round(thumbnail.width * scale))
        return thumbnail.resize((width, max(1, round(thumbnail.height * scale))))
    return None


def _name_of(hit: Hit) -> str:
    for field in _TITLE_FIELDS:
        value = hit.payload.get(field)
        if isinstance(value, str) and value:
            return value
    return hit.id


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    width: int,
    *,
    size: int,
    lines: int,
) -> None:
    font = ImageFont.load_default(size)
    per_line = max(4, int(width / (0.52 * size)))
    wrapped = [part for line in text.splitlines() for part in textwrap.wrap(line, per_line) or [""]]
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + "…"]
    draw.multiline_text(corner, "\n".join(wrapped), fill="black", font=font, spacing=2)

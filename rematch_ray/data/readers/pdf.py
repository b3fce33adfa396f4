"""PDF files: format `pdf`, a row per page: the page drawn as an image, its text in the payload.

`id` is `name.pdf#page=3`, `parent_id` the file's path below the folder. A file or page that cannot
be drawn is a row with a reason. Drawing is PDFium's, through pypdfium2. Middle floor.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.files import (
    FileEntry,
    Place,
    StorageError,
    join,
    parent,
    read_bytes,
)
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "pdf"
SUFFIX = ".pdf"
PAYLOAD = pa.struct(
    [
        ("file", pa.string()),
        ("page", pa.int64()),
        ("num_pages", pa.int64()),
        ("text", pa.string()),
    ]
)
FILE_BYTES = 2**31 - 1
# small files that one read task opens
UNIT_PDFS = 64
POINTS_PER_INCH = 72
JPEG_QUALITY = 92


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    entries = place.ending(SUFFIX) or (() if place.is_folder else place.files)
    if not entries:
        raise UserError(f"{place.path}: no *{SUFFIX} file")
    folder = place.path if place.is_folder else parent(place.path)
    for group in _groups(entries, settings.unit_bytes):
        begins = [0]
        if len(group) == 1:
            begins = list(range(0, _num_pages(group[0]), settings.unit_files)) or [0]
        for begin in begins:
            yield Unit(
                format=NAME,
                path=folder,
                rows=rows,
                num_rows=None,
                num_bytes=sum(entry.size for entry in group) // len(begins),
                first_row=begin,
                begin=begin,
                end=begin + settings.unit_files if begin != begins[-1] else 2**31,
                members=tuple(entry.name for entry in group),
                stamp=",".join(entry.stamp for entry in group),
                payload=PAYLOAD,
                settings=settings,
            )


def _groups(entries: Sequence[FileEntry], unit_bytes: int) -> Iterator[list[FileEntry]]:
    """Small files together, a large one alone."""
    group: list[FileEntry] = []
    for entry in entries:
        size = entry.size + sum(other.size for other in group)
        if group and (size > unit_bytes or len(group) == UNIT_PDFS):
            yield group
            group = []
        group.append(entry)
    yield group


def _num_pages(entry: FileEntry) -> int:
    """Pages of a file, 0 for one that cannot be opened: reading says why."""
    try:
        with _opened(entry.path) as document:
            return len(document)
    except StorageError:
        raise
    except UserError:
        return 0


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    rows = (row for name in unit.members for row in _file_rows(name, unit))
    # a batch of pages is large: 16 of them rather than hundreds
    yield from to_batches(rows, item_schema(unit.payload), max_rows=16)


def _file_rows(name: str, unit: Unit) -> Iterator[Row]:
    source = unit.settings.source
    try:
        with _opened(join(unit.path, name)) as document:
            if not len(document):
                raise UserError(f"{join(unit.path, name)}: no pages")
            for number in range(unit.begin, min(unit.end, len(document))):
                page_id = f"{name}#page={number + 1}"
                try:
                    yield {
                        "id": page_id,
                        "parent_id": name,
                        "source": source,
                        **_page(document, number, name, unit.settings),
                    }
                except UserError as error:
                    yield {**error_row(str(error), id=page_id, source=source), "parent_id": name}
    except StorageError:
        raise
    except UserError as error:
        yield error_row(str(error), id=name, source=source)


def _page(document: Any, number: int, name: str, settings: ReaderSettings) -> Row:
    import pypdfium2

    try:
        with closing(document[number]) as page:
            image = _drawn(page, settings)
            with closing(page.get_textpage()) as text_page:
                text = text_page.get_text_bounded()
    except (pypdfium2.PdfiumError, ValueError, MemoryError) as error:
        raise UserError(f"{name}, page {number + 1}: cannot be drawn: {error}") from error
    payload = {"file": name, "page": number + 1, "num_pages": len(document), "text": _clean(text)}
    return {"parts": [{"kind": "image", "image": image}], "payload": payload}


def scale(width: float, height: float, settings: ReaderSettings) -> float:
    """Pixels per point at which a page is drawn; both sides are then rounded up to whole pixels.

    Args:
        width: of the page in points (1/72 inch).
        height: likewise.
        settings: resolution, and the most pixels.

    Raises:
        ValueError: the page has no area.

    >>> round(scale(612, 792, ReaderSettings(pdf_dpi=144)), 3)
    2.0
    """
    if not (width > 0 and height > 0 and math.isfinite(width * height)):
        raise ValueError(f"a page of {width} x {height} points")
    wanted = settings.pdf_dpi / POINTS_PER_INCH
    most = math.sqrt(settings.pdf_pixels / (width * height))
    return min(wanted, most)


def _drawn(page: Any, settings: ReaderSettings) -> bytes:
    width, height = page.get_size()
    with closing(page.render(scale=scale(width, height, settings))) as bitmap:
        image = bitmap.to_pil().convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _clean(text: str) -> str | None:
    """The text layer as plain lines; what is no character (half a pair, NUL) falls out."""
    lines = text.replace("\0", "").encode(errors="ignore").decode().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip() or None


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import pypdfium2
    except ImportError as error:
        raise UserError(
            'PDF files are read through pypdfium2; install it: pip install "rematch-ray[pdf]"'
        ) from error
    content = read_bytes(path, limit=FILE_BYTES)
    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        raise UserError(f"{path}: not a PDF that can be opened: {error}") from error
    with closing(document):
        yield document


def _detect(place: Place) -> str | None:
    found = place.ending(SUFFIX)
    return f"{len(found)} PDF files" if found else None


FORMATS = (
    Format(
        name=NAME,
        claim="PDF files, a row per page",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        uses=frozenset({"pdf_dpi", "pdf_pixels", "unit_bytes", "unit_files"}),
    ),
)

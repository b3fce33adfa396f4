"""PDF files: format `pdf`, a row per page: the page drawn as an image, its text in the payload.

`id` is `name.pdf#page=3`, `parent_id` the file's path below the folder. A file or page that cannot
be drawn is a row with a reason, and so are all pages behind many that are not there: how many there
are is only what the file says. Drawing is PDFium's, through pypdfium2. Middle floor.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import (
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
# pages in a row that are not there, after which a file is taken to have no more
LOST_PAGES = 32
# a file alone is cut into pieces by its pages, which only reading it tells: so much is read for it
# when the data is listed; with more, there are files enough to be read side by side
COUNTED_BYTES = 2**30
POINTS_PER_INCH = 72
# a JPEG's sides end a little above
SIDE_PIXELS = 65_000
JPEG_QUALITY = 92


class _Lost(UserError):
    """A page that the file counts and does not have."""


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    entries = _pdfs(place) or (() if place.is_folder else place.files)
    if not entries:
        raise UserError(f"{place.path}: no *{SUFFIX} file")
    folder = place.path if place.is_folder else parent(place.path)
    counted = 0
    for group in _groups(entries, settings.unit_bytes):
        begins = [0]
        if len(group) == 1 and counted < COUNTED_BYTES:
            counted += group[0].size
            begins = _begins(group[0], settings.unit_files)
        for begin, end in zip(begins, [*begins[1:], 2**31]):
            yield Unit(
                format=NAME,
                path=folder,
                rows=rows,
                num_rows=None,
                num_bytes=sum(entry.size for entry in group) // len(begins),
                first_row=begin,
                begin=begin,
                end=end,
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


def _begins(entry: FileEntry, unit_pages: int) -> list[int]:
    """The first pages of a file's pieces; one that cannot be opened is one: reading says why."""
    try:
        with _opened(entry.path) as document:
            more = range(unit_pages, len(document), unit_pages)
            return [0, *(begin for begin in more if _has_pages(document, begin, entry.name))]
    except StorageError:
        raise
    except UserError:
        return [0]


def _has_pages(document: Any, begin: int, name: str) -> bool:
    """Whether one of the pages from here is there, before so many are lost that reading ends."""
    for number in range(begin, min(begin + LOST_PAGES, len(document))):
        try:
            _loaded(document, number, name).close()
        except _Lost:
            continue
        return True
    return False


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    rows = (row for name in unit.members for row in _file_rows(name, unit))
    # a batch of pages is large: 16 of them rather than hundreds
    yield from to_batches(rows, item_schema(unit.payload), max_rows=16)


def _file_rows(name: str, unit: Unit) -> Iterator[Row]:
    try:
        with _opened(join(unit.path, name)) as document:
            if not len(document):
                raise UserError(f"{join(unit.path, name)}: no pages")
            yield from _page_rows(document, name, unit)
    except StorageError:
        raise
    except UserError as error:
        yield error_row(str(error), id=name, source=unit.settings.source)


def _page_rows(document: Any, name: str, unit: Unit) -> Iterator[Row]:
    lost: list[Row] = []
    end = min(unit.end, len(document))
    for number in range(unit.begin, end):
        try:
            row = _page(document, number, name, unit.settings)
        except _Lost as error:
            lost.append(_bad_page(str(error), number, name, unit))
            if len(lost) == LOST_PAGES:
                first = number + 1 - LOST_PAGES
                told = (
                    f"{name}: {LOST_PAGES} pages from page {first + 1} on are not there; pages "
                    f"{first + 1} to {end} are left out"
                )
                yield _bad_page(told, first, name, unit)
                return
            continue
        except UserError as error:
            row = _bad_page(str(error), number, name, unit)
        yield from lost
        yield row
        lost = []
    yield from lost


def _bad_page(reason: str, number: int, name: str, unit: Unit) -> Row:
    row = error_row(reason, id=_page_id(name, number), source=unit.settings.source)
    return {**row, "parent_id": name}


def _page(document: Any, number: int, name: str, settings: ReaderSettings) -> Row:
    import pypdfium2

    try:
        with closing(_loaded(document, number, name)) as page:
            image = _drawn(page, settings)
            with closing(page.get_textpage()) as text_page:
                text = text_page.get_text_bounded()
    except _Lost:
        raise
    # OSError: Pillow's encoder
    except (pypdfium2.PdfiumError, ValueError, MemoryError, OSError) as error:
        raise UserError(f"{name}, page {number + 1}: cannot be drawn: {error}") from error
    return {
        "id": _page_id(name, number),
        "parent_id": name,
        "source": settings.source,
        "parts": [{"kind": "image", "image": image}],
        "payload": {
            "file": name,
            "page": number + 1,
            "num_pages": len(document),
            "text": _clean(text),
        },
    }


def _page_id(name: str, number: int) -> str:
    return f"{name}#page={number + 1}"


def _loaded(document: Any, number: int, name: str) -> Any:
    """A page that the caller closes."""
    import pypdfium2

    try:
        return document[number]
    except pypdfium2.PdfiumError as error:
        raise _Lost(f"{name}, page {number + 1}: cannot be drawn: {error}") from error


def scale(width: float, height: float, settings: ReaderSettings) -> float:
    """Pixels per point at which a page is drawn; both sides are then rounded up to whole pixels.

    No side has more than 65,000, and both together not more than the settings say.

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
    return min(wanted, most, SIDE_PIXELS / max(width, height))


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


def _pdfs(place: Place) -> FileList:
    return place.ending(SUFFIX)


def _detect(place: Place) -> str | None:
    found = _pdfs(place)
    return f"{len(found)} PDF files" if found else None


FORMATS = (
    Format(
        name=NAME,
        claim="PDF files, a row per page",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        reads=lambda place, settings: _pdfs(place),
        uses=frozenset({"pdf_dpi", "pdf_pixels", "unit_bytes", "unit_files"}),
    ),
)

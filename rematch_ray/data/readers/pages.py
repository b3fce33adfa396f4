"""Queries and the page that answers each: vidore/colpali_train_set and VisRAG's training data.

Both hold `query, image` with the page's bytes; ColPali's names the page in `image_filename`, by
which pages that several queries share are known. VLM2Vec trains the former from page and query to
the answer's text; here it is query to page, as it is searched. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence

from rematch_ray.data.readers.row_files import Layout
from rematch_ray.data.readers.sample_rows import Row, content, image_part, item, sample

COLUMNS = ("query", "image")


def looks_like(columns: Sequence[str]) -> bool:
    """Whether columns are these; beside negatives they are sentence-transformers'."""
    found = set(columns)
    return set(COLUMNS) <= found and bool({"source", "image_filename"} & found)


def to_sample(row: Row) -> Row:
    """One row as a Sample: the query, and the page as its positive.

    Raises:
        UserError: no query, or a page that is no image.
    """
    return sample(
        item(content(row["query"])),
        [item([image_part(row["image"])], id=row.get("image_filename") or None)],
        source=row.get("source"),
    )


FORMATS = (
    Layout(
        name="pages",
        claim="colpali_train_set and VisRAG: columns query, image (a page), perhaps source",
        rows="samples",
        columns=COLUMNS,
        convert=to_sample,
        detected=looks_like,
    ).to_format(),
)

"""What an evaluation reads of a data set: its queries, and what is right for them.

Both from any layout of queries and judgements. Unlike a corpus, whose bad rows are put aside and
counted, a set of queries is read whole or not at all. Middle floor.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from rematch_ray.data.item import Item
from rematch_ray.data.readers import mmeb_eval, mmeb_eval_files
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, formats, list_data, read_data
from rematch_ray.data.readers.qrels import read_qrels
from rematch_ray.data.readers.row_files import detect_columns
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import item_from_row
from rematch_ray.errors import UserError


def read_queries(path: str | Path, settings: ReaderSettings) -> list[Item]:
    """The queries at a path; of a data set that holds a corpus too, its queries.

    Raises:
        UserError: not a readable format of items, or a query that cannot be read; names it.
    """
    known = formats().get(settings.format or "") or detect(look(path), "items", settings)[0]
    if "part" in known.uses:
        settings = settings.model_copy(update={"part": "queries"})
    queries = []
    for unit in list_data(path, settings, rows="items"):
        rows = (row for batch in read_data(unit) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=unit.first_row):
            if row.get("error"):
                raise UserError(f"{unit.path}, row {number}: {row['error']}")
            queries.append(item_from_row(row, where=f"{unit.path}, row {number}"))
    return queries


def read_judgements(path: str | Path, *, split: str | None = None) -> pa.Table:
    """Judgements at a path: a table of them, or the rows of MMEB-eval; as `read_qrels`."""
    if Path(path).exists() and detect_columns(look(path), needed=mmeb_eval.COLUMNS):
        return mmeb_eval_files.read_qrels(path, split=split)
    return read_qrels(path, split=split)

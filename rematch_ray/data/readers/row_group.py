"""One row group of a Parquet file, decoded a few rows at a time, whatever its size.

pyarrow writes a million rows to a group unless told otherwise: one that is decoded whole takes more
memory than a reader has. It does not know units or what the columns mean. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rematch_ray.data.readers.files import FAILURES, Damaged, filesystem, is_stored
from rematch_ray.errors import UserError

BATCH_ROWS = 256
BATCH_BYTES = 16 * 2**20
# in which a dictionary is looked for; the first that is no null has it
LOOK_ROWS = 32
# of a column, read from storage at once; without it a column is fetched whole
BUFFER_BYTES = 2 * 2**20


@contextmanager
def parquet_file(path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file anywhere; what goes wrong is the file system's or pyarrow's own error."""
    system, inner = filesystem(path)
    with (
        system.open_input_file(inner) as source,
        pq.ParquetFile(source, buffer_size=BUFFER_BYTES) as file,
    ):
        yield file


def group_batches(
    path: str, number: int, *, num_rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a row group, in batches of at most 256 rows and about 16 MiB.

    Args:
        path: the file.
        number: of the row group.
        num_rows: that it had when the file was listed.
        columns: those that are decoded, in this order; None = all.

    Raises:
        UserError: the file is gone, cannot be reached, or is not what it was when it was listed.
        Damaged: its bytes are there and are no rows; comes behind the rows before them.
    """
    done = 0
    try:
        with parquet_file(path) as file:
            check_group(file, path, number, num_rows=num_rows)
            for batch in file.iter_batches(
                batch_size=batch_rows(path, file.metadata, number, columns),
                row_groups=[number],
                columns=columns,
                use_threads=False,
            ):
                done += len(batch)
                yield batch if columns is None else batch.select(list(columns))
    except FAILURES as error:
        told = f"{path}: row group {number} cannot be read: {error}"
        raise (Damaged if _is_damaged(path, number) else UserError)(told) from error
    if done != num_rows:
        raise Damaged(f"{path}: row group {number} has {done} rows, its footer says {num_rows}")


def check_group(file: pq.ParquetFile, path: str, number: int, *, num_rows: int | None) -> None:
    """Refuse a row group that has not as many rows as when the file was listed.

    Raises:
        UserError: the file was written to since.
    """
    groups = file.metadata.num_row_groups
    if number >= groups or file.metadata.row_group(number).num_rows != num_rows:
        raise UserError(
            f"{path}: row group {number} is no longer what it was when the data was listed; do "
            "not write to a data set while it is being read"
        )


def batch_rows(
    path: str, footer: pq.FileMetaData, number: int, columns: Sequence[str] | None = None
) -> int:
    """Rows of a row group that have about 16 MiB together once they are decoded, at most 256.

    The footer counts what stands in a dictionary once, however many rows have it. So where that
    could be much, the longest value of a dictionary is taken for that of every row.

    Args:
        path: the file.
        footer: of the file.
        number: of the row group.
        columns: those that are decoded; None = all.
    """
    group = footer.row_group(number)
    chunks = [
        chunk
        for chunk in map(group.column, range(group.num_columns))
        if columns is None or _top(chunk.path_in_schema, columns)
    ]
    stated = sum(chunk.total_uncompressed_size for chunk in chunks)
    coded = [c for c in chunks if c.has_dictionary_page and "BYTE_ARRAY" in c.physical_type]
    most = {c.path_in_schema: c.total_uncompressed_size for c in chunks}
    # as if every value were all that the column holds
    most |= {c.path_in_schema: c.total_uncompressed_size * c.num_values for c in coded}
    for chunk in sorted(coded, key=lambda c: -most[c.path_in_schema]):
        name, size = chunk.path_in_schema, chunk.total_uncompressed_size
        is_little = most[name] * len(coded) <= stated
        if is_little or BATCH_ROWS * sum(most.values()) <= BATCH_BYTES * group.num_rows:
            break
        longest = _longest_value(path, footer, number, name)
        if longest is not None:
            most[name] = max(size, longest * chunk.num_values)
    num_bytes = sum(most.values())
    return max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, num_bytes)))


def _longest_value(path: str, footer: pq.FileMetaData, number: int, column: str) -> int | None:
    """Bytes of the longest value in the dictionary of a column; None where it cannot be told."""
    system, inner = filesystem(path)
    # what goes wrong here goes wrong again when the rows are read, which says so
    with suppress(*FAILURES), system.open_input_file(inner) as source:
        file = pq.ParquetFile(
            source, metadata=footer, read_dictionary=[column], buffer_size=BUFFER_BYTES
        )
        return _longest(file.iter_batches(LOOK_ROWS, [number], [column], use_threads=False))
    return None


def _longest(batches: Iterator[pa.RecordBatch]) -> int | None:
    """Bytes of the longest value in a dictionary, which is whole in the first rows that use it."""
    for batch in batches:
        column = batch.column(0)
        while pa.types.is_nested(column.type):
            column = column.field(0) if pa.types.is_struct(column.type) else column.values
        kind = column.type
        if pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal(kind):
            return kind.byte_width
        if not pa.types.is_dictionary(kind):
            return None
        if len(column.dictionary):
            return int(pc.max(pc.binary_length(column.dictionary)).as_py())
    return 0


def _top(path: str, columns: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _is_damaged(path: str, number: int) -> bool:
    """Whether a row group fails a second time, and not because storage does."""
    try:
        with parquet_file(path) as file:
            group = file.metadata.row_group(number)
    except FAILURES:
        return False
    try:
        with parquet_file(path) as file:
            rows = batch_rows(path, file.metadata, number)
            for _ in file.iter_batches(rows, [number], use_threads=False):
                pass
    except FAILURES:
        return _is_stored(path, group)
    return False


def _is_stored(path: str, group: pq.RowGroupMetaData) -> bool:
    for chunk in map(group.column, range(group.num_columns)):
        begin = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
        if not is_stored(path, begin, chunk.total_compressed_size):
            return False
    return True

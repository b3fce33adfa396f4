"""What is right for which query, from any table of judgements.

Our own Parquet (`query_id`, `document_id`, `score`), BEIR's TSV and the Parquet of mteb and ViDoRe
(`query-id`, `corpus-id`, `score`), and TREC's four columns. It knows neither queries nor documents.
Middle floor.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from rematch_ray.data.schema import QRELS_SCHEMA
from rematch_ray.errors import UserError

_NAMES = {
    "query_id": ("query_id", "query-id", "qid"),
    "document_id": ("document_id", "corpus-id", "corpus_id", "docid", "doc-id", "pid"),
    "score": ("score", "relevance", "rel", "label"),
}
_TREC = ("query_id", "iteration", "document_id", "score")
_SUFFIXES = (".parquet", ".tsv", ".txt", ".trec", ".qrels", ".jsonl")


def read_qrels(path: str | Path, *, split: str | None = None) -> pa.Table:
    """Read judgements.

    Args:
        path: a file, or a folder of them (a data set's folder with `qrels/` in it, too).
        split: only files whose names begin with it; None = `test` where there are several splits.

    Returns:
        A table of `QRELS_SCHEMA`; ids as text. A score of 0 or less is not relevant.

    Raises:
        UserError: no such file, a missing column, an id or a score that is none.
    """
    files = _files(Path(path), split)
    return pa.concat_tables([_canonical(_read(file), file) for file in files])


def _files(path: Path, split: str | None) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} cannot be read as qrels: no such file or folder")
    folder = path / "qrels" if (path / "qrels").is_dir() else path
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    splits = {_split_of(file) for file in files}
    wanted = split or ("test" if "test" in splits and len(splits) > 1 else None)
    chosen = [file for file in files if wanted in (None, _split_of(file))]
    if not chosen:
        of_split = f" of split {wanted!r}" if wanted else ""
        raise UserError(
            f"{folder} holds no qrels{of_split}; found: "
            f"{', '.join(file.name for file in files) or 'nothing'}"
        )
    if wanted is None and len(splits) > 1:
        raise UserError(
            f"{folder} holds qrels of several splits ({', '.join(sorted(splits))}); name one file"
        )
    return chosen


def _split_of(file: Path) -> str:
    return file.name.split(".")[0].split("-")[0]


def _read(file: Path) -> pa.Table:
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        if file.suffix == ".jsonl":
            return pyarrow.json.read_json(file)
        return _read_text(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{file} cannot be read as qrels (query_id, document_id, score): {error}"
        ) from error


def _read_text(file: Path) -> pa.Table:
    """TSV with a line of names, or three or four nameless columns; ids stay text (007 is not 7)."""
    with file.open(encoding="utf-8") as lines:
        first = lines.readline().rstrip("\n")
    separator = "\t" if "\t" in first else " "
    cells = first.split(separator)
    named = any(cell in names for cell in cells for names in _NAMES.values())
    if not named and len(cells) not in (3, 4):
        raise UserError(
            f"{file} cannot be read as qrels: its first line has {len(cells)} columns; allowed: "
            "query-id, corpus-id, score, or TREC's four"
        )
    names = cells if named else list(_TREC if len(cells) == 4 else QRELS_SCHEMA.names)
    return pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=int(named)),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def _canonical(table: pa.Table, file: Path) -> pa.Table:
    columns = []
    for field in QRELS_SCHEMA:
        found = next((name for name in _NAMES[field.name] if name in table.column_names), None)
        if found is None:
            raise UserError(
                f"{file} cannot be read as qrels: no column {field.name!r} "
                f"(or {', '.join(_NAMES[field.name][1:])}); columns: "
                f"{', '.join(table.column_names) or 'none'}"
            )
        try:
            columns.append(table[found].cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"{file}: column {found!r}: {error}") from error
    read = pa.table(columns, schema=QRELS_SCHEMA)
    for name in QRELS_SCHEMA.names:
        if read[name].null_count:
            row = pc.index(pc.is_null(read[name]), True).as_py()
            raise UserError(f"{file}: row {row} has no {name}")
    return read

"""What the tasks of a mining job do to one row group: scan it, collect documents, mine it.

Each task writes its files whole or not at all, the one that says it is done last, so a task may run
twice and a job that was killed goes on with what is missing. Top floor.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.prompts import Side
from rematch_ray.data.readers.formats import read_data
from rematch_ray.data.readers.parquet import NAME as OWN_FORMAT
from rematch_ray.data.readers.parquet import read_unit
from rematch_ray.data.readers.units import Unit
from rematch_ray.data.schema import Item, item_from_row, items_to_table, write_parquet
from rematch_ray.errors import UserError
from rematch_ray.index.mining.documents import ItemStore, write_items
from rematch_ray.index.mining.miner import Gallery, Mined, Miner, MinerSettings
from rematch_ray.index.mining.pinned import PinnedIndex
from rematch_ray.index.mining.references import Reference, ReferenceMaker
from rematch_ray.index.mining.rows import RowScanner, add_negatives, document_of
from rematch_ray.index.query_shards import read_queries

ITEMS_KEY = b"items"


@dataclass(frozen=True)
class Workspace:
    """Where an unfinished mining job keeps its files.

    Args:
        root: directory of the job, beside its output.
    """

    root: Path

    def scan(self, unit: int) -> Path:
        """What a row group of training rows names."""
        return self.root / "scan" / f"{unit:06d}.parquet"

    def problems(self, unit: int) -> Path:
        """Items of a row group that cannot be read."""
        return self.root / "problems" / f"{unit:06d}.parquet"

    def queries(self, unit: int) -> Path:
        """Queries of a row group, as Items."""
        return self.root / "queries" / f"{unit:06d}.parquet"

    def items(self, part: int, *, store: str = "items") -> Path:
        """One part of the documents that can become negatives."""
        return self.root / store / f"{part:06d}.arrow"

    def documents(self, part: int, *, folder: str = "documents") -> Path:
        """One part of the documents that are embedded, as Items."""
        return self.root / folder / f"{part:06d}.parquet"

    def rows(self, unit: int) -> Path:
        """A finished row group of the output."""
        return self.root / "rows" / f"part-{unit:06d}.parquet"

    def counts(self, unit: int) -> Path:
        """What was mined for a row group; written last."""
        return self.root / "counts" / f"{unit:06d}.json"

    @property
    def links(self) -> Path:
        """What is right for what is asked."""
        return self.root / "links.npy"

    def lines(self, gallery: str) -> Path:
        """What is known of every row of an index."""
        return self.root / f"{gallery}.npy"


def query_id(unit: int, row: int) -> str:
    """Id under which a row's query is embedded; ids sort as the rows do."""
    return f"{unit:06d}-{row:08d}"


@dataclass(frozen=True)
class ScanUnit:
    """Task: what a row group of training rows names, and its queries.

    Args:
        unit: the row group.
        number: of the unit.
        workspace: where to write.
        max_pixels: larger images are not decoded.
        instructions: the model's default instructions, per source and side.
    """

    unit: Unit
    number: int
    workspace: Workspace
    max_pixels: int
    instructions: Mapping[str, Mapping[Side, str]]

    def __call__(self) -> list[pa.Table]:
        """Write problems and queries, then the scan."""
        table = pa.Table.from_batches(read_data(self.unit))
        scanner = RowScanner(self.max_pixels, self.instructions)
        scan = scanner(table, where=self.unit.path, first_row=self.unit.first_row)
        queries = [
            Item(query_id(self.number, row), query.parts, source=query.source)
            for row, query in scan.queries.items()
        ]
        write_parquet(scan.problems, self.workspace.problems(self.number))
        write_parquet(items_to_table(queries), self.workspace.queries(self.number))
        rows = scan.rows.replace_schema_metadata({ITEMS_KEY: str(scan.items)})
        write_parquet(rows, self.workspace.scan(self.number))
        return done(scan.items)


@dataclass(frozen=True)
class CollectDocuments:
    """Task: chosen documents of a row group of training rows, to embed and to take from.

    Args:
        unit: the row group.
        number: of the unit.
        workspace: where its scan lies.
        chosen: (n,) places in the scan's documents, row after row.
        documents: file of Items to write.
        items: file of the item store to write.
    """

    unit: Unit
    number: int
    workspace: Workspace
    chosen: np.ndarray
    documents: Path
    items: Path

    def __call__(self) -> list[pa.Table]:
        """Write the Items, then the store."""
        rows = pa.Table.from_batches(read_data(self.unit)).to_pylist() if len(self.chosen) else []
        named = pq.read_table(self.workspace.scan(self.number))["documents"].to_pylist()
        flat = [(row, entry) for row, entries in enumerate(named) for entry in entries]
        found = []
        for place in self.chosen.tolist():
            row, entry = flat[place]
            item = document_of(rows[row], is_positive=entry["is_positive"], place=entry["place"])
            keys = ("id_key", "source_key", "content", "modality")
            found.append((document_id(item), item, Reference(*(entry[key] for key in keys))))
        plain = [Item(name, item.parts, source=item.source) for name, item, _ in found]
        write_parquet(items_to_table(plain), self.documents)
        write_items(self.items, found)
        return done(len(found))


def document_id(item: Item) -> str:
    """Id of a training document in an index of several sources.

    >>> document_id(Item.of("a", id="1", source="my:notes"))
    'my%3Anotes:1'
    """
    source = item.source.replace("%", "%25").replace(":", "%3A")
    return f"{source}:{item.id}"


@dataclass(frozen=True)
class CollectCorpus:
    """Task: the documents of a row group of a corpus, to take from; what is no Item is left out.

    Args:
        unit: the row group.
        max_pixels: larger images are not decoded.
        items: file of the item store to write.
    """

    unit: Unit
    max_pixels: int
    items: Path

    def __call__(self) -> list[pa.Table]:
        """Write the store."""
        make, found = ReferenceMaker(self.max_pixels), []
        for row in pa.Table.from_batches(read_unit(self.unit)).to_pylist():
            try:
                item = item_from_row(row)
            except UserError:
                # the embedding job names it; an index that is given does not hold it
                continue
            found.append((item.id, item, make.of(item)))
        write_items(self.items, found)
        return done(len(found))


@dataclass(frozen=True)
class Galleries:
    """Where candidates are searched, and positives that are not among them.

    Args:
        index: of the candidates, at the state that lines are known of.
        outside: the same of positives that the corpus lacks, or None.
        workspace: where links, lines and items lie.
        settings: what is searched and taken.
        run: names this run: a process that outlives it must not answer from what it had open.
    """

    index: PinnedIndex
    outside: PinnedIndex | None
    workspace: Workspace
    settings: MinerSettings
    run: str


@dataclass(frozen=True)
class MineUnit:
    """Task: a row group of training rows with the negatives mined for it.

    Args:
        unit: the row group.
        number: of the unit.
        first_row: number of its first row in all the data.
        galleries: what is searched.
        vectors: embedding shards that hold its queries.
        search_rows: rows searched together.
    """

    unit: Unit
    number: int
    first_row: int
    galleries: Galleries
    vectors: tuple[Path, ...]
    search_rows: int

    def __call__(self) -> list[pa.Table]:
        """Write the rows, then the counts."""
        workspace = self.galleries.workspace
        scan = pq.read_table(workspace.scan(self.number))
        mined = self._mine(scan)
        opened = _open(self.galleries)
        table = pa.Table.from_batches(read_data(self.unit))
        added = []
        for one in mined:
            kinds = one.selection.kinds if one.selection else ()
            items = opened.items.items(opened.lines[one.rows])
            added.append(list(zip(items, kinds, one.scores.tolist(), strict=True)))
        if self.unit.format == OWN_FORMAT and table["error"].null_count == len(table):
            # what is written is in the layout of what was read
            table = table.drop_columns("error")
        write_parquet(add_negatives(table, added), workspace.rows(self.number))
        write_whole(workspace.counts(self.number), json.dumps(count_mined(mined)))
        return done(table.num_rows)

    def _mine(self, scan: pa.Table) -> list[Mined]:
        miner = _open(self.galleries).miner
        mined = [Mined.nothing()] * scan.num_rows
        low, high = query_id(self.number, 0), query_id(self.number + 1, 0)
        ids, vectors = read_queries(self.vectors, low, high)
        rows = np.array([name.split("-")[1] for name in ids], np.int64)
        for start in range(0, len(rows), self.search_rows):
            block = slice(start, start + self.search_rows)
            found = miner.mine(
                scan.take(pa.array(rows[block])), vectors[block], self.first_row + rows[block]
            )
            for row, one in zip(rows[block].tolist(), found, strict=True):
                mined[row] = one
        return mined


def count_mined(mined: Sequence[Mined]) -> dict[str, Any]:
    """Count a row group's outcome: rows, negatives by kind, candidates dropped by reason."""
    kinds: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for one in mined:
        if one.selection is not None:
            kinds.update(one.selection.kinds)
            dropped.update(one.selection.dropped)
    return {
        "rows": len(mined),
        "rows_not_searched": sum(one.selection is None for one in mined),
        "rows_without": sum(one.selection is not None and not len(one.rows) for one in mined),
        "mined": dict(kinds),
        "dropped": dict(dropped),
    }


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is whole or absent."""
    partial = path.with_name(f".{path.name}.unfinished")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def done(count: int) -> list[pa.Table]:
    """What a task hands Ray: one small row."""
    return [pa.table({"count": [count]})]


@dataclass(frozen=True)
class _Opened:
    miner: Miner
    items: ItemStore
    lines: np.ndarray


@lru_cache(maxsize=1)
def _open(galleries: Galleries) -> _Opened:
    """Open indexes and items once per process."""
    workspace = galleries.workspace
    lines = np.load(workspace.lines("items"))
    outside = None
    if galleries.outside is not None:
        outside = Gallery.of(galleries.outside.open(), np.load(workspace.lines("outside")))
    links = np.load(workspace.links, mmap_mode="r")
    gallery = Gallery.of(galleries.index.open(), lines)
    miner = Miner(gallery, galleries.settings, links, outside)
    return _Opened(miner, ItemStore(workspace.root / "items"), lines)

"""Recall of a model on held-out sets, at every budget, scored exactly: what validation measures.

Reads Items with qrels, or Samples, draws at most so many of them and encodes all in memory: no
index, no cluster. Middle floor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from rematch_ray.data.prompts import Side
from rematch_ray.data.readers.formats import list_data, open_links, read_links
from rematch_ray.data.readers.parquet import list_units, read_table, read_unit
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Unit
from rematch_ray.data.schema import Item, Sample, items_from_table, sample_from_row
from rematch_ray.errors import UserError
from rematch_ray.evaluation.metrics import Relevance, rank_relevant, recall_at
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.embeddings import Embeddings
from rematch_ray.scoring.budget import Budget

RECALL_AT = (1, 10)
_NAMED_IDS = 3


@dataclass(frozen=True)
class Entry:
    """An item of a held-out set; its instruction, None = the model's default for its source."""

    item: Item
    source: str
    instruction: str | None = None


@dataclass(frozen=True)
class HeldOut:
    """Queries, documents, and which of them are right.

    Args:
        name: for metrics and messages.
        queries: B.
        documents: C.
        relevance: right columns of every query.
    """

    name: str
    queries: tuple[Entry, ...]
    documents: tuple[Entry, ...]
    relevance: Relevance


@dataclass(frozen=True)
class Draw:
    """How much of a set is taken, by which seed; None = all."""

    max_queries: int | None = None
    max_documents: int | None = None
    seed: int = 0

    def take(self, kind: str, ids: Sequence[str], limit: int | None) -> list[str]:
        """At most `limit` of the ids, the same ones for the same seed and ids, in their order."""
        if limit is None or len(ids) <= limit:
            return list(ids)
        chosen = set(random.Random(f"{self.seed}:{kind}").sample(sorted(ids), limit))
        return [name for name in ids if name in chosen]


def read_items(name: str, queries: Path, corpus: Path, qrels: Path, draw: Draw) -> HeldOut:
    """Read a set of Items and qrels.

    Args:
        name: of the set.
        queries: Parquet of Items.
        corpus: Parquet of Items, file or folder.
        qrels: Parquet with query_id, document_id and score; a score of 0 or less is not relevant.
        draw: how many queries and documents.

    Raises:
        UserError: a file that cannot be read, a query without a relevant document, a relevant
            document that the corpus does not hold.
    """
    asked = items_from_table(read_table(queries, rows="items"), where=str(queries))
    wanted = set(draw.take("queries", [item.id for item in asked], draw.max_queries))
    asked = [item for item in asked if item.id in wanted]
    right = _right_documents(qrels, wanted)
    _refuse(name, "queries", [q.id for q in asked if q.id not in right], f"have no line in {qrels}")
    documents = _documents(name, corpus, {d for of in right.values() for d in of}, draw)
    column = {item.id: place for place, item in enumerate(documents)}
    lost = [d for of in right.values() for d in of if d not in column]
    _refuse(name, "relevant documents", lost, f"are not in {corpus}")
    return HeldOut(
        name,
        tuple(Entry(item, item.source) for item in asked),
        tuple(Entry(item, item.source) for item in documents),
        Relevance.of([[column[d] for d in right[query.id]] for query in asked], len(documents)),
    )


def check_items(name: str, queries: Path, corpus: Path, qrels: Path) -> None:
    """Refuse what `read_items` would refuse, reading nothing but ids; arguments as there.

    Where items have no ids of their own, only the files' columns are checked.
    """
    asked = _all_ids(list_units(queries, rows="items"))
    held = _all_ids(list_units(corpus, rows="items"))
    right = _right_documents(qrels, set(asked or ()))
    if asked is not None:
        _refuse(name, "queries", [q for q in asked if q not in right], f"have no line in {qrels}")
    if held is not None:
        lost = {d for of in right.values() for d in of} - set(held)
        _refuse(name, "relevant documents", sorted(lost), f"are not in {corpus}")


def read_samples(
    name: str, path: Path, draw: Draw, *, reader: ReaderSettings | None = None
) -> HeldOut:
    """Read a set of Samples: positives and hard negatives of the drawn ones are the documents.

    Args:
        name: of the set.
        path: Samples in any format, file or folder.
        draw: how many samples, and how many documents beside the positives.
        reader: how they are read; None detects the format.

    Raises:
        UserError: the path cannot be read as Samples, or a drawn row cannot be read.
    """
    samples = _drawn_samples(path, draw, reader)
    queries: dict[str, Entry] = {}
    documents: dict[str, Entry] = {}
    right: dict[str, list[str]] = {}
    for sample in samples:
        asked = _key(sample, sample.query)
        queries.setdefault(asked, Entry(sample.query, sample.source, sample.instruction))
        for positive in sample.positives:
            key = _key(sample, positive.item)
            documents.setdefault(key, Entry(positive.item, sample.source))
            if key not in right.setdefault(asked, []):
                right[asked].append(key)
    wrong = {_key(s, n.item): Entry(n.item, s.source) for s in samples for n in s.negatives}
    others = [key for key in wrong if key not in documents]
    room = None if draw.max_documents is None else max(0, draw.max_documents - len(documents))
    documents |= {key: wrong[key] for key in draw.take("documents", others, room)}
    column = {key: place for place, key in enumerate(documents)}
    relevant = [[column[key] for key in right[asked]] for asked in queries]
    entries = tuple(queries.values()), tuple(documents.values())
    return HeldOut(name, *entries, Relevance.of(relevant, len(documents)))


def measure_recall(
    model: Embedder,
    held_out: HeldOut,
    *,
    batch_size: int = 32,
    goes_on: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Recall at 1 and 10 at every budget, every document scored.

    Args:
        model: in any mode; it is put into evaluation mode and back.
        held_out: the set.
        batch_size: items per forward pass.
        goes_on: called between parts of the work; may raise to end it.

    Returns:
        `recall@<k>/<rung>` -> mean over the queries, 0..1; rungs `fused` (where the model has it)
        and those of its ladder.
    """
    query = encode_entries(model, held_out.queries, "query", batch_size)
    goes_on()
    document = encode_entries(model, held_out.documents, "document", batch_size)
    goes_on()
    rungs = [*([Budget.FUSED] if model.has_fused else []), *model.ladder.rungs]
    found: dict[str, float] = {}
    for rung in rungs:
        scores = model.similarity(query, document, rung).cpu().numpy()
        ranking = rank_relevant(scores, held_out.relevance)
        for k in RECALL_AT:
            found[f"recall@{k}/{rung}"] = float(recall_at(ranking, k).mean())
    return found


def with_means(by_set: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics of all sets under their names, and their means.

    >>> with_means({"a": {"recall@1/1x1": 0.5}, "b": {"recall@1/1x1": 1.0}})
    {'recall@1/1x1': 0.75, 'a/recall@1/1x1': 0.5, 'b/recall@1/1x1': 1.0}
    """
    names = next(iter(by_set.values()))
    means = {name: sum(of[name] for of in by_set.values()) / len(by_set) for name in names}
    named = {f"{part}/{name}": v for part, of in by_set.items() for name, v in of.items()}
    return means | named


def encode_entries(
    model: Embedder, entries: Sequence[Entry], side: Side, batch_size: int
) -> Embeddings:
    """Embeddings of entries in their order, each with its own instruction."""
    by_text: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        default = side == "document" or entry.instruction is None
        text = model.instruction_for(side, entry.source) if default else entry.instruction
        by_text.setdefault(text or "", []).append(place)
    parts = [
        model.encode([entries[p].item for p in places], side, instruction=t, batch_size=batch_size)
        for t, places in by_text.items()
    ]
    order = torch.tensor([place for places in by_text.values() for place in places])
    together, back = Embeddings.concatenate(parts), torch.argsort(order)
    fused = together.fused
    return Embeddings(together.vectors[back], None if fused is None else fused[back])


def _right_documents(qrels: Path, queries: set[str]) -> dict[str, list[str]]:
    try:
        table = pq.read_table(qrels, columns=["query_id", "document_id", "score"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{qrels} cannot be read as qrels (query_id, document_id, score): {error}"
        ) from error
    right: dict[str, dict[str, None]] = {}
    for line in table.to_pylist():
        if line["query_id"] in queries and line["score"] > 0:
            right.setdefault(line["query_id"], {})[line["document_id"]] = None
    return {query: list(documents) for query, documents in right.items()}


def _documents(name: str, corpus: Path, right: set[str], draw: Draw) -> list[Item]:
    """The corpus, or its right documents and others up to the limit; only those are read whole."""
    units = list_units(corpus, rows="items")
    if draw.max_documents is None:
        return [item for unit in units for item in _items(unit)]
    ids = _all_ids(units)
    if ids is None:
        raise UserError(
            f"validation set '{name}': documents of {corpus} have no id, so none can be drawn "
            "without reading all: give them ids, or set validation.max_documents to null"
        )
    room = max(0, draw.max_documents - len(right))
    wanted = right | set(draw.take("documents", [i for i in ids if i not in right], room))
    chosen = pa.array(sorted(wanted))
    return [item for unit in units for item in _items(unit, pc.field("id").isin(chosen))]


def _all_ids(units: Sequence[Unit]) -> list[str] | None:
    """The ids of all rows, None when a row has none."""
    ids: list[str] = []
    for batch in (batch for unit in units for batch in read_unit(unit, columns=["id"])):
        if "id" not in batch.schema.names or batch["id"].null_count:
            return None
        ids += batch["id"].to_pylist()
    return ids


def _items(unit: Unit, where: pc.Expression | None = None) -> Iterable[Item]:
    for batch in read_unit(unit):
        kept = batch if where is None else batch.filter(where)
        yield from items_from_table(kept, where=unit.path)


def _drawn_samples(path: Path, draw: Draw, reader: ReaderSettings | None) -> list[Sample]:
    units = list_data(path, reader, rows="samples")
    rows = [f"{u}:{row}" for u, unit in enumerate(units) for row in range(unit.counted_rows)]
    chosen: dict[int, list[int]] = {}
    for address in draw.take("queries", rows, draw.max_queries):
        u, row = address.split(":")
        chosen.setdefault(int(u), []).append(int(row))
    return [sample for u, places in chosen.items() for sample in _samples(units[u], places)]


def _samples(unit: Unit, places: Sequence[int]) -> Iterator[Sample]:
    """Some rows of a unit; a set that is measured is read whole or not at all."""
    table = pa.Table.from_batches(read_links(unit)).take(pa.array(places))
    for place, row in zip(places, open_links(table, unit).to_pylist(), strict=True):
        where = f"{unit.path}, row {unit.first_row + place}"
        if row.get("error"):
            raise UserError(f"{where}: {row['error']}")
        yield sample_from_row(row, where=where)


def _key(sample: Sample, item: Item) -> str:
    return f"{item.source or sample.source}\0{item.id}"


def _refuse(name: str, what: str, ids: Sequence[str], problem: str) -> None:
    if ids:
        shown = ", ".join(repr(wrong) for wrong in ids[:_NAMED_IDS])
        more = f" and {len(ids) - _NAMED_IDS} more" if len(ids) > _NAMED_IDS else ""
        raise UserError(f"validation set '{name}': {len(ids)} {what} {problem}: {shown}{more}")

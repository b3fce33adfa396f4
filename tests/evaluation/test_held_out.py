"""Recall on held-out sets is that of a plain loop; what is drawn keeps every right document."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import (
    Item,
    Positive,
    items_to_table,
    samples_to_table,
    write_parquet,
)
from rematch_ray.errors import UserError
from rematch_ray.evaluation.held_out import (
    Draw,
    Entry,
    encode_entries,
    measure_recall,
    read_items,
    read_samples,
)
from rematch_ray.model.embedder import Embedder
from tests.data.readers.layouts import write_image, write_rows
from tests.tiny import COLOURS, new_embedder, png, text_sample

COUNT = 24


@pytest.fixture(scope="module")
def embedder(tiny_base: Path) -> Embedder:
    return new_embedder(tiny_base)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    queries = [Item.of(f"which is {COLOURS[n % 8]} {n}", id=f"q{n}") for n in range(6)]
    documents = [Item.of(f"{COLOURS[n % 8]} bar {n}", id=f"d{n}") for n in range(COUNT)]
    paths = {name: tmp_path / f"{name}.parquet" for name in ("queries", "corpus", "qrels")}
    write_parquet(items_to_table(queries), paths["queries"])
    write_parquet(items_to_table(documents), paths["corpus"])
    lines = [(f"q{n}", f"d{d}", 1.0) for n in range(6) for d in (n, n + 8)] + [("q0", "d5", 0.0)]
    columns = dict(zip(("query_id", "document_id", "score"), zip(*lines)))
    pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), paths["qrels"])
    return paths


def ids(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.item.id for entry in entries]


def test_recall_is_that_of_a_loop_over_all_documents(
    embedder: Embedder, files: dict[str, Path]
) -> None:
    held_out = read_items("emoji", **files, draw=Draw())
    assert len(held_out.documents) == COUNT
    found = measure_recall(embedder, held_out, batch_size=4)
    assert set(found) == {
        f"recall@{k}/{rung}" for k in (1, 10) for rung in ("fused", "1x1", "2x3", "4x6")
    }
    query = embedder.encode_query([e.item for e in held_out.queries])
    document = embedder.encode_document([e.item for e in held_out.documents])
    scores = embedder.similarity(query, document, "2x3").numpy()
    best = np.argsort(-scores, axis=1)[:, :10]
    expected = np.mean([np.isin([n, n + 8], best[n]).mean() for n in range(6)])
    assert found["recall@10/2x3"] == pytest.approx(expected)


def test_what_is_drawn_is_the_same_each_time_and_holds_what_is_right(
    files: dict[str, Path],
) -> None:
    draw = Draw(max_queries=3, max_documents=10, seed=1)
    first, again = (read_items("emoji", **files, draw=draw) for _ in range(2))
    assert ids(first.queries) == ids(again.queries)
    assert ids(first.documents) == ids(again.documents)
    assert (len(first.queries), len(first.documents)) == (3, 10)
    other = read_items("emoji", **files, draw=replace(draw, seed=2))
    assert ids(other.documents) != ids(first.documents)
    for row, query in enumerate(ids(first.queries)):
        columns = first.relevance.document[first.relevance.query == row]
        right = {first.documents[column].item.id for column in columns}
        number = int(query[1:])
        assert right == {f"d{number}", f"d{number + 8}"}


def test_samples_make_a_gallery_of_positives_and_hard_negatives(
    embedder: Embedder, tmp_path: Path
) -> None:
    samples = [text_sample(n, negatives=2) for n in range(6)]
    # the same question again, with another right answer
    samples.append(replace(samples[0], positives=(Positive(Item.of("another", id="d99")),)))
    path = tmp_path / "held.parquet"
    write_parquet(samples_to_table(samples), path)
    held_out = read_samples("notes", path, Draw())
    assert len(held_out.queries) == 6
    assert sorted(ids(held_out.documents)) == sorted(
        [f"d{n}" for n in range(6)] + ["d99"] + [f"h{n}.{i}" for n in range(6) for i in range(2)]
    )
    of_first = held_out.relevance.document[held_out.relevance.query == 0]
    assert {held_out.documents[c].item.id for c in of_first} == {"d0", "d99"}
    small = read_samples("notes", path, Draw(max_queries=4, max_documents=6))
    assert len(small.documents) == 6
    assert all(0 <= value <= 1 for value in measure_recall(embedder, small).values())


def test_every_entry_is_encoded_with_its_own_instruction(embedder: Embedder) -> None:
    items = [Item.of("red bar", id=f"q{n}") for n in range(3)]
    entries = [
        Entry(items[0], "a", "find it"),
        Entry(items[1], "a"),
        Entry(items[2], "a", "find it"),
    ]
    made = encode_entries(embedder, entries, "query", 2)
    plain = embedder.encode_query(["red bar"])
    told = embedder.encode_query(["red bar"], instruction="find it")
    assert not torch.allclose(plain.vectors, told.vectors, atol=1e-3)
    for row, expected in enumerate((told, plain, told)):
        torch.testing.assert_close(made.vectors[row], expected.vectors[0])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("document_id", "d77", r"'emoji': 1 relevant documents are not in .*: 'd77'"),
        ("query_id", "q77", r"'emoji': 1 queries have no line in .*: 'q0'"),
    ],
)
def test_qrels_that_do_not_fit_are_refused(
    files: dict[str, Path], column: str, value: str, message: str
) -> None:
    table = pq.read_table(files["qrels"])
    changed = table.to_pylist()
    for line in changed:
        if line["query_id"] == "q0" and (column == "query_id" or line["document_id"] == "d0"):
            line[column] = value
    pq.write_table(pa.Table.from_pylist(changed), files["qrels"])
    with pytest.raises(UserError, match=message):
        read_items("emoji", **files, draw=Draw())


def test_a_file_that_is_no_qrels_is_refused_by_name(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"corpus\.parquet cannot be read as qrels"):
        read_items("emoji", files["queries"], files["corpus"], files["corpus"], Draw())


def test_samples_of_any_layout_are_held_out_whole_or_not_at_all(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", png("red"))
    pairs = [{"anchor": f"q{n}", "positive": "a.png", "negative": f"n{n}"} for n in range(4)]
    path = write_rows(tmp_path / "pairs.jsonl", pairs)
    reader = ReaderSettings(source="pairs")
    held_out = read_samples("pairs", path, Draw(), reader=reader)
    assert [entry.item.text for entry in held_out.queries] == ["q0", "q1", "q2", "q3"]
    assert held_out.documents[0].item.images[0].image == png("red")
    assert {entry.source for entry in held_out.queries} == {"pairs"}
    assert len(held_out.documents) == 1 + 4
    write_rows(path, [*pairs, {"anchor": "q4", "positive": "b.png"}])
    with pytest.raises(UserError, match=r"pairs\.jsonl, row 4: .*b\.png"):
        read_samples("pairs", path, Draw(), reader=reader)

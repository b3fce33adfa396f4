"""Samples of a rank-step: links, draws, documents that several rows share, and rows that fail."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from rematch_ray.data.rows import RowEncoder, rows_from_table
from rematch_ray.data.samples import MASKED_ID, STEP_SCHEMA, SampleEncoder
from rematch_ray.data.schema import Item, Negative, Part, Positive, Sample, samples_to_table
from rematch_ray.data.train_batch import TrainBatch, collate_train
from rematch_ray.errors import UserError
from tests.tiny import picture, png, step_table, text_sample


def batch_of(table: pa.Table, step: int = 0) -> TrainBatch:
    return collate_train(table, step=step, num_query_meta=4, num_document_meta=6, pad_id=0)


def encode(encoder: RowEncoder, samples: Sequence[Sample], **options: Any) -> pa.Table:
    settings: dict[str, Any] = {"max_negatives": 2, "seed": 0} | options
    step = settings.pop("step", 0)
    return SampleEncoder(encoder, **settings)([samples_to_table(samples)], step)


def document_ids(table: pa.Table) -> list[str]:
    return [row.id for row in rows_from_table(table)[sum(table["is_query"].to_pylist()) :]]


def test_a_step_is_plain_arrow_queries_first(tiny_encoder: RowEncoder) -> None:
    table = step_table(tiny_encoder, [[text_sample(0, negatives=1)], [text_sample(1)]])
    assert table.schema == STEP_SCHEMA
    assert table["id"].to_pylist() == ["q0", "q1", "d0", "h0.0", "d1"]
    assert table["is_query"].to_pylist() == [True, True, False, False, False]
    assert table["sub_batch"].to_pylist() == [0, 1, None, None, None]


def test_links_lead_from_queries_to_their_documents(tiny_encoder: RowEncoder) -> None:
    samples = [text_sample(0, negatives=2), text_sample(1, image=True), text_sample(2, negatives=1)]
    batch = batch_of(step_table(tiny_encoder, [samples[:2], samples[2:]]))
    names = batch.documents.ids
    assert [names[slot] for slot in batch.positive_slot] == ["d0", "d1", "d2"]
    wrong = [[names[slot] for slot in row if slot >= 0] for row in batch.negative_slot]
    assert [sorted(row) for row in wrong] == [["h0.0", "h0.1"], [], ["h2.0"]]
    assert batch.negative_slot.shape == (3, 2)
    assert batch.sub_batch.tolist() == [0, 0, 1]
    assert batch.valid.all()
    assert (batch.listed_ids[:, 0] == batch.document_ids[batch.positive_slot]).all()


def test_a_shared_document_is_encoded_once(tiny_encoder: RowEncoder) -> None:
    first = text_sample(0)
    second = Sample(Item.of("another", id="q9"), first.positives, source="notes")
    batch = batch_of(step_table(tiny_encoder, [[first, second]]))
    assert batch.documents.ids == ("d0",)
    assert batch.positive_slot.tolist() == [0, 0]


def test_two_sources_may_number_their_documents_alike(tiny_encoder: RowEncoder) -> None:
    """A document is its source and its id; else the wrong content would be trained as right."""
    one = Sample(Item.of("a", id="1"), (Positive(Item.of("red", id="1")),), source="colours")
    two = Sample(Item.of("b", id="1"), (Positive(Item.of("bar", id="1")),), source="shapes")
    batch = batch_of(step_table(tiny_encoder, [[one], [two]]))
    assert len(batch.documents) == 2
    assert batch.query_ids[0] != batch.query_ids[1]
    assert batch.document_ids[0] != batch.document_ids[1]
    # two training sources over one corpus share its documents
    positives = (Positive(Item.of("red", id="1", source="corpus")),)
    shared = [replace(one, positives=positives), replace(two, positives=positives)]
    assert len(batch_of(step_table(tiny_encoder, [shared[:1], shared[1:]])).documents) == 1


def many(number: int) -> Sample:
    positives = tuple(Positive(Item.of(f"right {i}", id=f"p{i}")) for i in range(6))
    negatives = tuple(Negative(Item.of(f"wrong {i}", id=f"n{i}")) for i in range(6))
    return Sample(Item.of(f"query {number}", id=f"q{number}"), positives, negatives, source="s")


def test_draws_depend_on_seed_step_and_row_alone(tiny_encoder: RowEncoder) -> None:
    alone = document_ids(encode(tiny_encoder, [many(1)], step=3))
    batch = batch_of(encode(tiny_encoder, [many(0), many(1)], step=3))
    names = batch.documents.ids
    among = [names[batch.positive_slot[1]], *(names[slot] for slot in batch.negative_slot[1])]
    assert alone == among
    others = {
        tuple(document_ids(encode(tiny_encoder, [many(1)], step=step, seed=seed)))
        for step, seed in ((3, 0), (4, 0), (5, 0), (3, 1), (3, 2))
    }
    assert len(others) > 1


def test_at_most_the_asked_number_of_negatives_is_drawn(tiny_encoder: RowEncoder) -> None:
    for count in (0, 1, 3, 9):
        names = document_ids(encode(tiny_encoder, [many(0)], max_negatives=count))
        assert len(names) == 1 + min(count, 6)
        assert len(set(names)) == len(names)


def test_every_positive_is_listed_whichever_is_drawn(tiny_encoder: RowEncoder) -> None:
    batch = batch_of(encode(tiny_encoder, [many(0), text_sample(1)]))
    assert (batch.listed_ids[0] >= 0).sum() == 6
    assert (batch.listed_ids[1] >= 0).sum() == 1
    assert batch.document_ids[batch.positive_slot[0]] in batch.listed_ids[0]


def test_a_sample_that_cannot_be_encoded_keeps_its_place_and_says_why(
    tiny_encoder: RowEncoder,
) -> None:
    good, bad = text_sample(0, negatives=1), text_sample(1, negatives=1)
    broken = Item("d1", (Part("image", image=b"no image"),))
    bad = replace(bad, positives=(Positive(broken),))
    batch = batch_of(step_table(tiny_encoder, [[bad, good]]))
    assert batch.valid.tolist() == [False, True]
    assert len(batch.errors) == 1
    assert "item 'd1'" in batch.errors[0]
    assert batch.queries.ids == ("q1", "q0")
    # nothing of the bad sample is left but a placeholder
    names = batch.documents.ids
    assert [names[slot] for slot in batch.positive_slot[1:]] == ["d0"]
    assert "d1" not in names
    assert "h1.0" not in names


def test_a_row_that_a_reader_could_not_read_keeps_its_place_and_its_reason(
    tiny_encoder: RowEncoder,
) -> None:
    table = samples_to_table([text_sample(0), text_sample(1), text_sample(2)])
    rows = table.to_pylist()
    rows[0] |= {"query": None, "positives": None, "error": "images/a.png: no such file"}
    rows[2]["positives"] = []
    read = pa.Table.from_pylist(rows, schema=table.schema.append(pa.field("error", pa.string())))
    batch = batch_of(SampleEncoder(tiny_encoder, max_negatives=1, seed=0)([read], 0))
    assert batch.valid.tolist() == [False, True, False]
    assert batch.errors[0] == "images/a.png: no such file"
    assert "at least one positive" in batch.errors[1]
    assert batch.queries.ids == ("images/a.png: no such file", "q1", "q2")
    assert len(set(batch.query_ids.tolist())) == 3


def test_masked_rows_keep_the_shape_and_are_no_errors(tiny_encoder: RowEncoder) -> None:
    encode = SampleEncoder(tiny_encoder, max_negatives=1, seed=0)
    tables = [samples_to_table([text_sample(n, negatives=1) for n in (0, 1)])]
    batch = batch_of(encode(tables, 0, masked_rows=2))
    assert batch.valid.tolist() == [True, True, False, False]
    assert batch.errors == ()
    assert batch.sub_batch.tolist() == [0, 0, 1, 1]
    assert batch.query_ids[2:].tolist() == [MASKED_ID, MASKED_ID]
    assert batch.negative_slot[2:].max() == -1
    assert not (batch.positive_slot[:2, None] == batch.positive_slot[None, 2:]).any()
    alone = batch_of(encode([], 0, masked_rows=3))
    assert alone.valid.tolist() == [False] * 3
    assert (alone.num_queries, alone.num_documents) == (3, 1)


def test_a_document_called_like_the_placeholder_is_not_mistaken_for_it(
    tiny_encoder: RowEncoder,
) -> None:
    dash = Sample(Item.of("dash", id="q0"), (Positive(Item.of("a red bar", id="-")),), source="s")
    bad = Sample(Item("q1", (Part("image", image=b""),)), (Positive(Item.of("x", id="x")),))
    for samples in ([dash, bad], [bad, dash]):
        batch = batch_of(encode(tiny_encoder, samples))
        assert len(batch.documents) == 2
        assert len(set(batch.positive_slot.tolist())) == 2


def test_instructions_come_from_the_sample_or_from_its_source(tiny_encoder: RowEncoder) -> None:
    instructions: Any = {"notes": {"query": "find it", "document": "store it"}}
    table = encode(tiny_encoder, [text_sample(0)], instructions=instructions)
    query, document = rows_from_table(table)
    positive = text_sample(0).positives[0].item
    want = tiny_encoder.encode(text_sample(0).query, "query", "find it")
    assert query.input_ids.tolist() == want.input_ids.tolist()
    want = tiny_encoder.encode(positive, "document", "store it")
    assert document.input_ids.tolist() == want.input_ids.tolist()

    own = replace(text_sample(0), instruction="my own")
    query = rows_from_table(encode(tiny_encoder, [own], instructions=instructions))[0]
    want = tiny_encoder.encode(text_sample(0).query, "query", "my own")
    assert query.input_ids.tolist() == want.input_ids.tolist()


def test_a_table_that_holds_no_samples_is_refused(tiny_encoder: RowEncoder) -> None:
    with pytest.raises(UserError, match="query"):
        SampleEncoder(tiny_encoder, max_negatives=1, seed=0)([pa.table({"text": ["a"]})], 0)


def test_a_step_without_negatives_has_no_columns_for_them(tiny_encoder: RowEncoder) -> None:
    batch = batch_of(step_table(tiny_encoder, [[text_sample(0), text_sample(1)]]))
    assert batch.negative_slot.shape == (2, 0)
    assert batch.negative_slot.dtype == torch.int64


def test_a_train_batch_moves_with_what_it_holds(tiny_encoder: RowEncoder) -> None:
    batch = batch_of(step_table(tiny_encoder, [[text_sample(0)]])).to("meta")
    assert batch.queries.input_ids.device.type == "meta"
    assert batch.positive_slot.device.type == "meta"
    assert batch.step == 0


def test_a_negative_says_whether_a_miner_found_it(tiny_encoder: RowEncoder) -> None:
    kinds = {"a": "swap:colour", "b": "mined", "c": "mined:modality"}
    sample = replace(
        text_sample(0),
        negatives=tuple(
            Negative(Item.of(f"other {name}", id=name), kind=kind) for name, kind in kinds.items()
        ),
    )
    batch = batch_of(encode(tiny_encoder, [sample, text_sample(1, negatives=1)], max_negatives=3))
    names = [
        [batch.documents.ids[slot] for slot in row if slot >= 0] for row in batch.negative_slot
    ]
    found = dict(zip(names[0], batch.negative_mined[0].tolist(), strict=True))
    assert found == {"a": False, "b": True, "c": True}
    assert not batch.negative_mined[1].any()


def test_equal_pixels_are_equal_content_whatever_the_file(tiny_encoder: RowEncoder) -> None:
    def as_file(format: str, colour: str) -> bytes:
        buffer = io.BytesIO()
        picture(colour).save(buffer, format)
        return buffer.getvalue()

    items = [
        Item.of(as_file("PNG", "red"), id="png"),
        Item.of(as_file("BMP", "red"), id="bmp"),
        Item.of(as_file("PNG", "blue"), id="blue"),
        Item.of("red", id="text"),
        Item.of("red", id="same text"),
    ]
    samples = [
        replace(text_sample(number), positives=(Positive(item),))
        for number, item in enumerate(items)
    ]
    batch = batch_of(encode(tiny_encoder, samples))
    png, bmp, blue, text, same_text = batch.document_content[batch.positive_slot].tolist()
    assert png == bmp and text == same_text
    assert len({png, blue, text}) == 3
    assert len(set(batch.document_ids.tolist())) == 5


def test_a_part_reads_the_documents_of_its_queries(tiny_encoder: RowEncoder) -> None:
    samples = [text_sample(n, negatives=n % 2, image=n == 2) for n in range(4)]
    batch = batch_of(step_table(tiny_encoder, [samples[:2], samples[2:]]))
    part = batch.part(batch.sub_batch == 1)
    assert part.queries.ids == ("q2", "q3")
    assert [part.documents.ids[slot] for slot in part.positive_slot] == ["d2", "d3"]
    wrong = [[part.documents.ids[slot] for slot in row if slot >= 0] for row in part.negative_slot]
    assert wrong == [[], ["h3.0"]]
    assert sorted(part.documents.ids) == ["d2", "d3", "h3.0"]
    assert (part.listed_ids[:, 0] == part.document_ids[part.positive_slot]).all()


def test_the_order_of_parts_is_part_of_their_content(tiny_encoder: RowEncoder) -> None:
    image, other = (Part("image", image=png(colour)) for colour in ("red", "blue"))
    a, b = Part("text", text="a"), Part("text", text="b")
    forms = [
        (image, a), (a, image), (image, a), (a, b), (b, a), (image, a, other), (image, other, a),
        (other, image, a), (a, b, image), (a, image, b), (Part("text", text="a\0b"),),
    ]  # fmt: skip
    samples = [
        Sample(Item.of(f"query {n}", id=f"q{n}"), (Positive(Item(f"d{n}", parts)),), source="notes")
        for n, parts in enumerate(forms)
    ]
    batch = batch_of(step_table(tiny_encoder, [samples]))
    contents = batch.document_content[batch.positive_slot].tolist()
    assert contents[0] == contents[2]
    assert len(set(contents)) == len(forms) - 1

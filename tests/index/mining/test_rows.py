"""Training rows are read item by item, and written back with nothing changed but negatives."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rematch_ray.data.item import Item, Negative, Positive, Sample
from rematch_ray.data.rows import RowEncoder
from rematch_ray.data.schema import samples_from_table, samples_to_table
from rematch_ray.errors import UserError
from rematch_ray.index.mining.references import ReferenceMaker, References
from rematch_ray.index.mining.rows import RowScanner, add_negatives, linked, links_of
from tests.tiny import png, text_sample

SCANNER = RowScanner(10_000, {"notes": {"query": "Find it"}})


def key(name: str, source: str = "notes") -> tuple[int, int]:
    made = ReferenceMaker(10_000).of(Item.of("-", id=name, source=source))
    return made.id_key, made.source_key


def ids(found: References) -> set[tuple[int, int]]:
    return set(zip(found.id_key.tolist(), found.source_key.tolist(), strict=True))


def test_a_row_names_its_documents_in_order() -> None:
    scan = SCANNER(samples_to_table([text_sample(0, negatives=2)]))
    [row] = scan.rows.to_pylist()
    named = [(d["id_key"], d["source_key"], d["is_positive"], d["place"]) for d in row["documents"]]
    expected = [("d0", True, 0), ("h0.0", False, 0), ("h0.1", False, 1)]
    assert named == [(*key(name), right, place) for name, right, place in expected]
    assert scan.items == 4
    assert scan.problems.num_rows == 0


@pytest.mark.parametrize(
    ("instruction", "before"), [(None, ["Find it\n"]), ("", []), ("Ask", ["Ask\n"])]
)
def test_a_query_stands_behind_the_instruction_that_training_gives_it(
    instruction: str | None, before: list[str]
) -> None:
    sample = Sample(
        Item.of("what", id="q"), (Positive(Item.of("a")),), (), instruction, None, "notes"
    )
    [query] = SCANNER(samples_to_table([sample])).queries.values()
    assert [part.text for part in query.parts] == [*before, "what"]
    assert query.source == "notes"


def test_the_model_reads_such_a_query_as_it_does_in_training(tiny_encoder: RowEncoder) -> None:
    query = Item.of(png(), "and a bar", id="q")
    sample = Sample(query, (Positive(Item.of("a")),), instruction="Find it, please")
    [scanned] = SCANNER(samples_to_table([sample])).queries.values()
    ours = tiny_encoder.encode(scanned, "query", "")
    training = tiny_encoder.encode(query, "query", "Find it, please")
    assert ours.input_ids.tolist() == training.input_ids.tolist()
    assert ours.positions.tolist() == training.positions.tolist()


def test_items_that_cannot_be_read_are_named_and_harm_no_other() -> None:
    broken = Item.of(png()[:40], id="broken")
    rows = [
        Sample(Item.of("q", id="q0"), (Positive(Item.of("a", id="a")), Positive(broken))),
        Sample(broken, (Positive(Item.of("a", id="a")),), (Negative(Item.of("b", id="b")),)),
    ]
    scan = SCANNER(samples_to_table(rows), where="f.parquet", first_row=7)
    assert [(p["where"], p["id"]) for p in scan.problems.to_pylist()] == [
        ("f.parquet row 7, positive 1", "broken"),
        ("f.parquet row 8, query", "broken"),
    ]
    assert all("damaged" in p["reason"] for p in scan.problems.to_pylist())
    assert set(scan.queries) == {0}
    readable = [[d["readable"] for d in row["documents"]] for row in scan.rows.to_pylist()]
    assert readable == [[True, False], [True, True]]


def test_an_item_without_parts_is_named_and_the_row_goes_on() -> None:
    table = samples_to_table([text_sample(0, negatives=1)])
    rows = table.to_pylist()
    rows[0]["negatives"][0]["item"]["parts"] = []
    scan = SCANNER(pa.Table.from_pylist(rows, table.schema))
    assert "'parts' is empty" in scan.problems.to_pylist()[0]["reason"]
    assert len(scan.rows.to_pylist()[0]["documents"]) == 1


def test_an_unknown_modality_is_refused_with_its_row() -> None:
    sample = Sample(Item.of("q"), (Positive(Item.of("a")),), target_modality="smell")
    with pytest.raises(UserError, match=r"f row 3: target_modality 'smell' is not known"):
        SCANNER(samples_to_table([sample]), where="f", first_row=3)


def test_positives_of_every_row_that_asks_the_same_are_linked() -> None:
    def row(query: Item, right: str, source: str = "notes") -> Sample:
        return Sample(query, (Positive(Item.of(right, id=right)),), source=source)

    rows = [
        row(Item.of("smile", id="1"), "a"),
        row(Item.of("smile", id="2"), "b"),
        row(Item.of("a smile", id="1"), "c"),
        row(Item.of("frown", id="3"), "d"),
        row(Item.of("frown", id="1"), "e", "other"),
    ]
    scan = SCANNER(samples_to_table(rows)).rows
    links = links_of([scan.slice(0, 2), scan.slice(2)])
    right = [
        ids(linked(links, (line["asked_id"], line["asked_content"]))) for line in scan.to_pylist()
    ]
    # equal text and instruction, or equal source and id
    assert right[0] == {key("a"), key("b"), key("c")}
    assert right[1] == {key("a"), key("b")}
    assert right[2] == {key("a"), key("c")}
    assert right[3] == {key("d")}
    assert right[4] == {key("e", "other")}


def test_nothing_but_negatives_changes_and_own_ones_stay_first() -> None:
    table = samples_to_table([text_sample(n, negatives=n) for n in range(3)])
    table = table.append_column("mine", pa.array([1, 2, 3]))
    new = {
        "id": "n",
        "parent_id": None,
        "source": "notes",
        "parts": [{"kind": "text", "text": "x"}],
    }
    made = add_negatives(table, [[(new, "mined", 0.5)], [], [(new, "mined:modality", 0.25)]])
    assert made.drop_columns("negatives").equals(table.drop_columns("negatives"))
    before, after = samples_from_table(table), samples_from_table(made)
    for old, now in zip(before, after, strict=True):
        assert now.negatives[: len(old.negatives)] == old.negatives
    assert [n.kind for n in after[0].negatives] == ["mined"]
    assert after[2].negatives[2].kind == "mined:modality"
    assert after[2].negatives[2].teacher_score == 0.25
    assert after[1].negatives == before[1].negatives


@pytest.mark.parametrize("payload", [True, False])
def test_rows_without_negatives_or_with_payloads_get_them_too(payload: bool) -> None:
    document = Item.of("a", id="a", payload={"name": "x"} if payload else {})
    table = samples_to_table(
        [Sample(Item.of("q"), (Positive(document),), (Negative(document, "own"),))]
    )
    if not payload:
        table = table.drop_columns("negatives")
    new: dict[str, Any] = {"id": "n", "source": "", "parts": [{"kind": "image", "image": png()}]}
    [sample] = samples_from_table(add_negatives(table, [[(new, "mined", 0.5)]]))
    assert sample.negatives[-1].item.parts[0].image == png()
    assert len(sample.negatives) == (2 if payload else 1)
    if payload:
        assert sample.negatives[0].item.payload == {"name": "x"}


def test_links_of_nothing_are_empty() -> None:
    assert len(links_of([])) == 0
    assert len(linked(links_of([]), (1, 2))) == 0
    assert np.dtype(links_of([]).dtype).names == ("asked", "id_key", "source_key", "content")

"""The frame of the readers: which format a place holds, what is said where none fits, settings."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, formats, list_data, read_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import fingerprint
from rematch_ray.data.schema import (
    Item,
    Part,
    Positive,
    Sample,
    item_schema,
    items_to_table,
    samples_to_table,
    write_parquet,
)
from rematch_ray.errors import UserError
from tests.data.readers.corpora import errors, good, read_items, texts, write_lines
from tests.tiny import png


def test_an_unknown_folder_lists_what_could_be_named(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError) as caught:
        list_data(tmp_path)
    message = str(caught.value)
    assert "notes.md" in message
    assert "--format, format of a source" in message
    for name, known in formats().items():
        assert f"{name}: {known.claim}" in message


def test_only_formats_that_give_the_rows_needed_are_listed(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError) as caught:
        list_data(tmp_path, rows="items")
    assert "pdf: " in str(caught.value)
    assert "mmeb: " not in str(caught.value)


def test_a_mistyped_format_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"unknown format 'jsnl'; did you mean jsonl\?"):
        list_data(tmp_path, ReaderSettings(format="jsnl"))
    with pytest.raises(UserError, match="format jsonl is read as items, here samples are needed"):
        list_data(tmp_path, ReaderSettings(format="jsonl"), rows="samples")


def test_a_named_format_must_find_its_files(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    for name in ("parquet", "jsonl", "csv", "images", "webdataset", "pdf", "lance", "rematch"):
        with pytest.raises(UserError, match=r"no .*(file|dataset)"):
            list_data(tmp_path, ReaderSettings(format=name))


def test_ours_comes_before_any_parquet_and_columns_mean_a_table(tmp_path: Path) -> None:
    write_parquet(items_to_table([Item.of("a", payload={"n": 1})]), tmp_path / "a.parquet")
    assert detect(look(tmp_path))[0].name == "rematch"
    pq.write_table(pa.table({"caption": ["a"], "key": ["k"]}), tmp_path / "a.parquet")
    settings = ReaderSettings(columns="text=caption")
    assert detect(look(tmp_path), "items", settings)[0].name == "parquet"


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("mmeb", ("qry", "qry_image_path", "pos_text", "pos_image_path", "text")),
        ("pages", ("query", "image", "image_filename")),
        ("tevatron-legacy", ("query", "positive_passages", "text")),
        ("sentence-transformers", ("anchor", "positive", "text")),
        ("ms-swift", ("messages", "positive_messages", "text")),
        ("nemo-inline", ("question", "pos_doc", "text")),
    ],
)
@pytest.mark.parametrize("file", ["a.parquet", "a.jsonl"])
def test_training_rows_are_not_taken_for_any_table(
    tmp_path: Path, file: str, name: str, columns: tuple[str, ...]
) -> None:
    row = dict.fromkeys(columns, "x")
    if file == "a.jsonl":
        write_lines(tmp_path / file, [row])
    else:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / file)
    with pytest.raises(UserError, match=f"training rows, format {name} .*here items are needed"):
        list_data(tmp_path, rows="items")
    assert list_data(tmp_path, rows="samples")[0].format == name
    told = ReaderSettings(columns=f"text={columns[0]}")
    assert len(list_data(tmp_path, told, rows="items")) == 1
    if "text" in columns:
        named = ReaderSettings(format=file.rpartition(".")[2])
        assert len(list_data(tmp_path, named, rows="items")) == 1


def test_a_setting_that_a_format_does_not_use_is_refused(tmp_path: Path) -> None:
    write_parquet(items_to_table([Item.of("a")]), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"format rematch does not use pdf_dpi .it uses: image_root"
    ):
        list_data(tmp_path, ReaderSettings(format="rematch", pdf_dpi=72))


def test_places_of_several_formats_are_one_corpus(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"id": "a", "text": "one", "n": 1}])
    pq.write_table(pa.table({"text": ["two"], "m": ["x"]}), tmp_path / "b.parquet")
    units = list_data([tmp_path / "a.jsonl", tmp_path / "b.parquet"], rows="items")
    assert [u.format for u in units] == ["jsonl", "parquet"]
    tables = [pa.Table.from_batches(read_data(unit)) for unit in units]
    assert tables[0].schema == tables[1].schema
    assert pa.concat_tables(tables)["payload"].to_pylist() == [
        {"n": 1, "other_fields": None, "m": None},
        {"n": None, "other_fields": None, "m": "x"},
    ]


def test_our_own_files_may_refer_to_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png("red"))
    uris = ["images/a.png", "images/gone.png", "../../a.png"]
    items = [Item.of("t", Part("image", uri=uri), id=uri) for uri in uris]
    write_parquet(items_to_table(items), tmp_path / "rows.parquet")
    rows = read_items(tmp_path, source="s")
    assert [texts(r) for r in good(rows)] == [["t", png("red")]]
    assert rows[0]["parts"][1]["uri"] == "images/a.png"
    assert {r["source"] for r in rows} == {"s"}
    assert ["cannot be opened" in errors(rows)[0], "lies outside" in errors(rows)[1]] == [True] * 2
    samples = [Sample(items[0], (Positive(Item.of("d")),))]
    write_parquet(samples_to_table(samples), tmp_path / "samples" / "a.parquet")
    settings = ReaderSettings(image_root=str(tmp_path))
    [unit] = list_data(tmp_path / "samples", settings)
    [row] = [row for batch in read_data(unit) for row in batch.to_pylist()]
    assert row["query"]["parts"][1]["image"] == png("red")


def test_a_unit_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"id": "a", "text": "one", "n": 1}])
    [unit] = list_data(tmp_path, ReaderSettings(columns="text=text", url_hosts="a.example"))
    assert pickle.loads(pickle.dumps(unit)) == unit
    assert len(pickle.dumps(unit)) < 5000


def test_how_a_corpus_is_read_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "one", "title": "x"}])
    plain = fingerprint(list_data(tmp_path))
    assert fingerprint(list_data(tmp_path, ReaderSettings(columns="text=title"))) != plain
    assert fingerprint(list_data(tmp_path, ReaderSettings(image_root="/elsewhere"))) == plain


def test_settings_are_the_same_from_yaml_and_from_the_command_line() -> None:
    told = yaml.safe_load("columns: {image: [front, back], text: title, id: key, payload: []}")
    flags = ReaderSettings(columns="image=front+back, text=title,id=key,payload=")
    assert ReaderSettings(**told) == flags
    assert ReaderSettings.model_validate_json(flags.model_dump_json()) == flags
    assert flags.columns_for("image") == ("front", "back")


def test_a_value_that_arrow_cannot_hold_spoils_its_own_row_only() -> None:
    schema = item_schema(pa.struct([("n", pa.int64())]))
    rows = [
        {"id": "a", "parts": [{"kind": "text", "text": "fine"}], "payload": {"n": 1}},
        {"id": "b", "parts": [{"kind": "text", "text": "\ud800"}]},
        {"id": "c", "parts": [{"kind": "text", "text": "x"}], "payload": {"n": 2**70}},
        {"id": "\udc00", "parts": [{"kind": "text", "text": "x"}]},
        error_row("two\nlines", id="e"),
    ]
    [batch] = to_batches(rows, schema)
    found = batch.to_pylist()
    assert [r["id"] for r in found] == ["a", "b", "c", "\\udc00", "e"]
    assert [r["error"] is None for r in found] == [True, False, False, False, False]
    assert found[4]["error"] == "two lines"


def test_batches_are_bounded_in_rows_and_bytes() -> None:
    rows = [{"parts": [{"kind": "image", "image": bytes(2**20)}]} for _ in range(40)]
    assert [b.num_rows for b in to_batches(rows, item_schema())] == [16, 16, 8]
    few = [{"id": str(n)} for n in range(5)]
    assert [b.num_rows for b in to_batches(few, item_schema(), max_rows=2)] == [2, 2, 1]
    assert list(to_batches([], item_schema())) == []

"""Folders with more than one kind of file: rows are never left out silently, layouts stay whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.data.readers import unread
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, formats, list_data
from rematch_ray.data.readers.judged import read_queries
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows
from rematch_ray.data.readers.unread import refuse_unread
from rematch_ray.data.schema import (
    Item,
    Positive,
    Sample,
    items_to_table,
    samples_to_table,
    write_parquet,
)
from rematch_ray.errors import UserError
from tests.data.readers.corpora import read_items
from tests.data.readers.layouts import write_rows
from tests.tiny import png

OWN = items_to_table([Item.of("a", id="a")])
MINED = samples_to_table([Sample(Item.of("q"), (Positive(Item.of("d")),))])
PAGES = {"corpus-id": "1", "image": "a.png"}
TRAIN = {"qry": "q", "qry_image_path": "", "pos_text": "t", "pos_image_path": ""}
EVAL = {"qry_text": "q", "qry_img_path": "", "tgt_text": ["t"], "tgt_img_path": [""]}


def fill(folder: Path, *names: str) -> Path:
    """A folder with files of these names, each with a row that its own name is the text of."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            write_rows(path, [{"text": name}])
        else:
            path.write_text(json.dumps({"text": name}) + "\n")
    return folder


def check(folder: Path, rows: Rows = "items") -> str:
    """The format of a folder that none of its rows are left out of."""
    place = look(folder)
    found, _ = detect(place, rows)
    refuse_unread(found, place, rows, ReaderSettings(), formats().values())
    return found.name


@pytest.mark.parametrize(
    ("names", "format", "left"),
    [
        (("a.pdf", "b.pdf", "c.pdf", "logo.png"), "images", "3 .*a.pdf, b.pdf, c.pdf"),
        (("a.parquet", "b.jsonl"), "parquet", r"1 .*b\.jsonl"),
        (("a.parquet", "b.jsonl.gz", "c.tsv"), "parquet", r"2 .*b\.jsonl\.gz, c\.tsv"),
        (("a.jsonl", "deep/b.csv"), "jsonl", "1 .*deep/b.csv"),
        (("a.tar", "rows.jsonl"), "webdataset", r"1 .*rows\.jsonl"),
        (("a.tar", "b.parquet"), "webdataset", r"1 .*b\.parquet"),
        (("a.tar", "photos/a.png"), "webdataset", r"1 .*photos/a\.png"),
        (("a.pdf", "rows.csv"), "pdf", r"1 .*rows\.csv"),
        (("a.png", "metadata.csv", "b.tar"), "webdataset", "2 .*a.png, metadata.csv"),
        (("x.lance/_versions/1.manifest", "x.lance/data/1.lance", "b.csv"), "lance", "1 .*b.csv"),
        (("x.lance/_versions/1.manifest", "a.tar"), "lance", r"1 .*a\.tar"),
        ((*(f"{n}.csv" for n in range(9)), "a.jsonl"), "jsonl", r"9 .*2\.csv, \.\.\.\)"),
    ],
)  # fmt: skip
def test_a_folder_of_which_a_part_would_be_read_is_refused(
    tmp_path: Path, names: tuple[str, ...], format: str, left: str
) -> None:
    fill(tmp_path, *names)
    with pytest.raises(UserError, match=rf"format {format} was detected.* would leave out {left}"):
        list_data(tmp_path, rows="items")


def test_own_parquet_below_own_parquet_is_not_left_out(tmp_path: Path) -> None:
    write_parquet(OWN, tmp_path / "a.parquet")
    write_parquet(OWN, tmp_path / "sub" / "p1.parquet")
    with pytest.raises(UserError, match=r"format rematch .* would leave out 1 .*sub/p1\.parquet"):
        list_data(tmp_path)
    assert len(list_data([tmp_path / "a.parquet", tmp_path / "sub"])) == 2


def test_a_named_format_reads_its_own_files_alone(tmp_path: Path) -> None:
    fill(tmp_path, "a.parquet", "b.jsonl", "c.pdf")
    (tmp_path / "logo.png").write_bytes(png("red"))
    for name in ("parquet", "jsonl", "images"):
        assert len(read_items(tmp_path, format=name)) == 1
    assert len(list_data([tmp_path / "a.parquet", tmp_path / "b.jsonl"])) == 2
    assert len(list_data(tmp_path, ReaderSettings(format="pdf"))) == 1


@pytest.mark.parametrize(
    ("names", "format"),
    [
        # img2dataset, and the indexes of readers of tars
        (("00.tar", "00.parquet", "00_stats.json", "01.tar", "01.parquet", "00.idx"), "webdataset"),
        (("data/a.tar", "data/a-1.tar.gz", "data/index.json", "README.md"), "webdataset"),
        (("a.jpg", "a.txt", "b.jpg", "b.json", "LICENSE", "dataset_info.json"), "images"),
        (("train/a.jpg", "train/metadata.csv", "test/b.jpg", "test/metadata.jsonl"), "images"),
        (("annotations/instances.json", "val/a.jpg", "README.md", "notes.md"), "images"),
        (("rows.jsonl", "images/a.jpg", "state.json", ".cache/b.parquet"), "jsonl"),
        (("rows.jsonl.gz", "images/a.jpg"), "jsonl"),
        (("data/train-0.parquet", "data/test-0.parquet", "assets/plot.png"), "parquet"),
        (("a.csv", "b.tsv", "c.csv.gz", "images/a.jpg"), "csv"),
        (("a.pdf", "b/c.pdf", "metadata.csv", "LICENSE.txt"), "pdf"),
        (("x.lance/_versions/1.manifest", "x.lance/data/1.lance", "README.md"), "lance"),
        (("_versions/1.manifest", "data/1.lance", "_indices/i/index.idx"), "lance"),
    ],
)
def test_what_belongs_to_a_layout_is_left_alone(
    tmp_path: Path, names: tuple[str, ...], format: str
) -> None:
    assert check(fill(tmp_path, *names)) == format


def test_data_sets_of_several_tables_are_left_alone(tmp_path: Path) -> None:
    beir = fill(tmp_path / "beir", "qrels/test.tsv", "other.csv")
    write_rows(beir / "corpus.jsonl", [{"_id": "a", "text": "b"}])
    write_rows(beir / "queries.jsonl", [{"_id": "a", "text": "b"}])
    assert check(beir) == "beir"
    vidore = fill(tmp_path / "vidore", "qrels/test.parquet", "queries/test.parquet", "pdfs/a.pdf")
    write_rows(vidore / "corpus" / "test-00000-of-00001.parquet", [PAGES])
    assert check(vidore) == "beir"
    tevatron = fill(tmp_path / "tevatron", "qrels.dev.tsv", "images/1.png", "README.md")
    write_rows(tevatron / "corpus-0.parquet", [{"docid": "1", "text": "a"}])
    assert check(tevatron) == "beir"
    write_rows(tevatron / "more.csv", [])
    with pytest.raises(UserError, match=r"format beir .* would leave out 1 .*more\.csv"):
        check(tevatron)


def test_archives_of_images_belong_to_the_rows_that_name_them(tmp_path: Path) -> None:
    given = ("images.tar.gz", "images/CIRR/a.jpg", "README.md", "dataset_infos.json")
    write_rows(fill(tmp_path / "train", *given) / "CIRR" / "original-0.parquet", [TRAIN])
    assert check(tmp_path / "train", "samples") == "mmeb"
    write_rows(fill(tmp_path / "eval", *given) / "CIRR" / "test-0.parquet", [EVAL])
    assert check(tmp_path / "eval") == "mmeb-eval"


def test_files_that_hold_no_rows_of_the_kind_needed_are_no_loss(tmp_path: Path) -> None:
    write_parquet(MINED, tmp_path / "part-000000.parquet")
    assert check(fill(tmp_path, "plot.png", "log.csv", "manifest.json"), "samples") == "rematch"
    # mining writes what it could not read beside its rows
    assert check(fill(tmp_path, "unreadable.jsonl"), "samples") == "rematch"
    write_rows(tmp_path / "more.jsonl", [{"anchor": "a", "positive": "b"}])
    with pytest.raises(UserError, match=r"format rematch .* would leave out 1 .*more\.jsonl"):
        check(tmp_path, "samples")
    rows = [{"question": "q", "pos_doc": [{"id": "d"}]}]
    (tmp_path / "nemo").mkdir()
    (tmp_path / "nemo" / "train.json").write_text(json.dumps({"corpus": [], "data": rows}))
    assert check(fill(tmp_path / "nemo", "corpus/part.parquet"), "samples") == "nemo"


EMBEDDINGS = {"identity": {"digest": "a"}, "side": "document", "shards": []}
MINING = {"rows": 1, "mined": {}, "job": {"model": "a"}}


def test_embeddings_may_stand_beside_their_data(tmp_path: Path) -> None:
    write_parquet(OWN, tmp_path / "a.parquet")
    fill(tmp_path, "out/part-00000.parquet", "out/quarantine.parquet", "out/manifest.json")
    # a manifest of something else
    with pytest.raises(UserError, match=r"out/part-00000\.parquet, out/quarantine\.parquet"):
        check(tmp_path)
    (tmp_path / "out/manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"out/part-00000\.parquet, out/quarantine\.parquet"):
        check(tmp_path)
    # as a job leaves it that was killed before its summary, too
    (tmp_path / "out/manifest.json").write_text(json.dumps(EMBEDDINGS))
    assert check(tmp_path) == "rematch"
    assert len(list_data(tmp_path)) == 1


def test_unfinished_embeddings_may_stand_beside_their_data(tmp_path: Path) -> None:
    write_parquet(OWN, tmp_path / "a.parquet")
    # all that a job leaves of which too many rows are bad
    assert check(fill(tmp_path, "out/refused.parquet")) == "rematch"
    assert check(fill(tmp_path, "new/part-00000.parquet", "new/.progress/job.json")) == "rematch"


def test_mined_rows_may_stand_beside_those_they_were_mined_from(tmp_path: Path) -> None:
    write_parquet(MINED, tmp_path / "train.parquet")
    write_parquet(MINED, tmp_path / "mined" / "part-000000.parquet")
    with pytest.raises(UserError, match=r"would leave out 1 .*mined/part-000000\.parquet"):
        check(tmp_path, "samples")
    fill(tmp_path, "mined/unreadable.jsonl", "mined/manifest.json")
    (tmp_path / "mined/manifest.json").write_text(json.dumps(MINING))
    assert check(tmp_path, "samples") == "rematch"


@pytest.mark.parametrize("name", ["corpus/train-0.parquet", "corpus/rows.jsonl", "queries/a.csv"])
def test_a_folder_may_be_called_as_a_part_of_a_data_set(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name, "README.md")
    if name.endswith(".csv"):
        (tmp_path / name).write_text("text\na\n")
    assert [unit.path for unit in list_data(tmp_path, rows="items")] == [str(tmp_path / name)]


def test_what_is_read_below_such_a_folder_is_counted_once(tmp_path: Path) -> None:
    fill(tmp_path, "corpus/a.parquet", "corpus/b.jsonl", "b.jsonl")
    told = r"reads 1 files here and would leave out 1 that hold rows too \(b\.jsonl\)"
    with pytest.raises(UserError, match=told):
        list_data(tmp_path, rows="items")


def test_columns_are_read_of_what_would_be_another_format(tmp_path: Path) -> None:
    write_rows(tmp_path / "corpus.jsonl", [{"_id": "a", "text": "b"}])
    fill(tmp_path, "qrels/test.tsv")
    settings = ReaderSettings(columns=(("text", "text"),))
    assert {unit.format for unit in list_data(tmp_path, settings)} == {"jsonl"}
    write_rows(tmp_path / "eval" / "corpus" / "test-0.parquet", [EVAL])
    assert {unit.format for unit in list_data(tmp_path / "eval")} == {"mmeb-eval"}


def test_queries_are_read_beside_whatever_the_corpus_is(tmp_path: Path) -> None:
    write_rows(tmp_path / "queries.jsonl", [{"_id": "q", "text": "b"}])
    fill(tmp_path, "qrels.tsv", "pdfs/a.pdf")
    assert [item.id for item in read_queries(tmp_path, ReaderSettings())] == ["q"]
    with pytest.raises(UserError, match=r"format beir .* would leave out 1 .*pdfs/a\.pdf"):
        list_data(tmp_path)


@pytest.mark.parametrize(
    ("name", "rows", "is_told"),
    [
        ("corpus/p.parquet", OWN, False),
        ("queries.jsonl", [{"_id": "1", "text": "a"}], False),
        ("queries.jsonl", [{"id": "1", "text": "a"}], True),
        ("validation/part.parquet", MINED, True),
        ("valid/v.jsonl", [{"anchor": "a", "positive": "b"}], True),
    ],
)
def test_training_rows_may_lie_beside_their_corpus_queries_and_held_out_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, rows: Any, is_told: bool
) -> None:
    write_parquet(MINED, tmp_path / "train.parquet")
    if isinstance(rows, list):
        write_rows(tmp_path / name, rows)
    else:
        write_parquet(rows, tmp_path / name)
    assert len(list_data(tmp_path, rows="samples")) == 1
    told = f"{tmp_path} is read as rematch; 1 files beside it are left out ({name})"
    assert caplog.messages == [told] * is_told


def test_a_corpus_may_lie_beside_its_training_rows_and_queries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(OWN, tmp_path / "a.parquet")
    write_parquet(MINED, tmp_path / "rows" / "a.parquet")
    assert check(tmp_path) == "rematch"
    assert not caplog.messages
    assert check(fill(tmp_path, "queries/q.jsonl", "images.tar")) == "rematch"
    assert "(queries/q.jsonl)" in caplog.text
    assert check(fill(tmp_path, "pdfs/a.pdf")) == "rematch"
    assert "2 files beside it are left out (queries/q.jsonl, pdfs/a.pdf)" in caplog.text


def test_many_tables_are_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "LOOKED_AT", 2)
    write_parquet(MINED, tmp_path / "train.parquet")
    for number in range(5):
        write_parquet(OWN, tmp_path / "corpus" / f"{number}.parquet")
    assert check(tmp_path, "samples") == "rematch"
    write_parquet(MINED, tmp_path / "rows" / "a.parquet")
    with pytest.raises(UserError, match=r"would leave out .*rows/a\.parquet"):
        check(tmp_path, "samples")


def test_a_figure_does_not_make_rows_of_metadata(tmp_path: Path) -> None:
    fill(tmp_path, "data/a.tar", "data/metadata.jsonl", "teaser.png", "README.md")
    (tmp_path / "README.md").write_text("![teaser](teaser.png)\n")
    assert check(tmp_path) == "webdataset"


def test_an_index_of_an_archive_is_known_by_any_ending(tmp_path: Path) -> None:
    tars = ("a-0.tar", "sub/b.TAR.GZ", "a-0.jsonl.gz", "a-0.idx", "sub/b.csv.zst", "a-0.parquet")
    assert check(fill(tmp_path, *tars)) == "webdataset"
    with pytest.raises(UserError, match=r"would leave out 1 .*\(b\.csv\)"):
        check(fill(tmp_path, "b.csv"))


def test_figures_of_the_readme_are_no_rows(tmp_path: Path) -> None:
    fill(tmp_path, "a.tar", "doc_images/page.png", "README.md")
    with pytest.raises(UserError, match=r"would leave out 1 .*doc_images/page\.png"):
        check(tmp_path)
    (tmp_path / "README.md").write_text("# Pages\n\n![a page](./doc_images/page.png)\n")
    assert check(tmp_path) == "webdataset"
    (tmp_path / "README.md").write_text("# Pages\n\n![another](my-doc_images/page.png)\n")
    with pytest.raises(UserError, match=r"would leave out 1 .*doc_images/page\.png"):
        check(tmp_path)

"""Folders with more than one kind of file: rows are never left out silently, layouts stay whole."""

import json
from pathlib import Path

import pytest

from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import detect, formats, list_data
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
    refuse_unread(found, place, rows, formats().values())
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
    with pytest.raises(UserError, match=r"format rematch .* would leave out 1 .*more\.jsonl"):
        check(fill(tmp_path, "more.jsonl"), "samples")
    rows = [{"question": "q", "pos_doc": [{"id": "d"}]}]
    (tmp_path / "nemo").mkdir()
    (tmp_path / "nemo" / "train.json").write_text(json.dumps({"corpus": [], "data": rows}))
    assert check(fill(tmp_path / "nemo", "corpus/part.parquet"), "samples") == "nemo"


def test_embeddings_may_stand_beside_their_data(tmp_path: Path) -> None:
    write_parquet(OWN, tmp_path / "a.parquet")
    fill(tmp_path, "out/part-00000.parquet", "out/quarantine.parquet", "out/manifest.json")
    with pytest.raises(UserError, match=r"out/part-00000\.parquet, out/quarantine\.parquet"):
        check(tmp_path)
    assert check(fill(tmp_path, "out/summary.json")) == "rematch"
    assert len(list_data(tmp_path)) == 1


def test_figures_of_the_readme_are_no_rows(tmp_path: Path) -> None:
    fill(tmp_path, "a.tar", "doc_images/page.png", "README.md")
    with pytest.raises(UserError, match=r"would leave out 1 .*doc_images/page\.png"):
        check(tmp_path)
    (tmp_path / "README.md").write_text("# Pages\n\n![a page](./doc_images/page.png)\n")
    assert check(tmp_path) == "webdataset"
    (tmp_path / "README.md").write_text("# Pages\n\n![another](my-doc_images/page.png)\n")
    with pytest.raises(UserError, match=r"would leave out 1 .*doc_images/page\.png"):
        check(tmp_path)

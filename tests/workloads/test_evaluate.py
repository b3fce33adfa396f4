"""An evaluation reads its tables, restricts the gallery to a source and reports every rung."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.config import EvaluationConfig, TaskSettings
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import QRELS_SCHEMA, Item, items_to_table, write_parquet
from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.search import SearchIndex
from rematch_ray.model.embedder import Embedder
from rematch_ray.workloads.evaluate import evaluate, gallery_of, read_triplets
from tests.data.readers.layouts import write_rows
from tests.index.made import write_embeddings
from tests.tiny import COLOURS, png

DOCUMENTS = [
    Item.of(png(colour, 32 + 16 * big), id=f"{colour}-{big}", source=f"source-{number % 2}")
    for number, (colour, big) in enumerate((c, b) for c in COLOURS for b in (0, 1))
]


@pytest.fixture(scope="module")
def model(tiny_export: Path) -> Embedder:
    return Embedder.from_pretrained(tiny_export, device="cpu")


@pytest.fixture(scope="module")
def index(model: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    made = model.encode_document(DOCUMENTS)
    assert made.fused is not None
    assert model.identity is not None
    # `write_embeddings` gives every second document another source, in row order
    path = write_embeddings(
        folder / "embeddings",
        made.vectors.numpy(),
        made.fused.numpy(),
        ids=[document.id for document in DOCUMENTS],
        ladder=model.identity.ladder,
        num_shards=1,
    )
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["identity"] = model.identity.to_json()
    (path / "manifest.json").write_text(json.dumps(manifest))
    build_index(path, folder / "index")
    return folder / "index"


@pytest.fixture
def task(tmp_path: Path) -> TaskSettings:
    """Each small picture asks for itself; its family is the colour, the big one its swap."""
    queries = [
        Item.of(png(colour), id=f"q-{colour}", payload={"warm": colour in ("red", "orange")})
        for colour in COLOURS
    ]
    write_parquet(items_to_table(queries), tmp_path / "queries.parquet")
    asked = [query.id for query in queries]
    small, big = ([f"{colour}-{size}" for colour in COLOURS] for size in (0, 1))
    qrels = pa.table({"query_id": asked, "document_id": small, "score": [1.0] * len(asked)})
    write_parquet(qrels.cast(QRELS_SCHEMA), tmp_path / "qrels.parquet")
    swaps = pa.table({"query_id": asked, "document_id": big, "kind": ["size"] * len(asked)})
    write_parquet(swaps, tmp_path / "swaps.parquet")
    families = {"document_id": [*small, *big], "family": [*COLOURS, *COLOURS]}
    write_parquet(pa.table(families), tmp_path / "families.parquet")
    write_parquet(items_to_table(DOCUMENTS), tmp_path / "corpus" / "a.parquet")
    files = {
        name: tmp_path / f"{name}.parquet" for name in ("queries", "qrels", "swaps", "families")
    }
    return TaskSettings(name="toy", corpus=tmp_path / "corpus", slice_field="warm", **files)


def config(
    index: Path, export: Path, out: Path, task: TaskSettings, **changes: object
) -> EvaluationConfig:
    given = {"timed_queries": 2, "matching_triplets": 3, "plots": False} | changes
    return EvaluationConfig(index=index, model=str(export), out=out, tasks=(task,), **given)


def test_every_rung_is_measured_with_costs_slices_and_the_matching_stage(
    index: Path, tiny_export: Path, task: TaskSettings, tmp_path: Path
) -> None:
    result = evaluate(config(index, tiny_export, tmp_path / "out", task))
    [report] = result["reports"]
    assert report["rungs"].keys() == {"fused", "1x1", "2x3", "4x6"}
    for rung in report["rungs"].values():
        assert rung["bytes_per_document"] > 0
        assert rung["ms_per_query"] > 0
        assert {name: part["queries"] for name, part in rung["slices"].items()} == {
            "warm=True": 2,
            "warm=False": 6,
        }
    assert report["documents"] == len(DOCUMENTS)
    assert report["chance"]["recall@1"] == pytest.approx(1 / 16)
    assert report["matching"]["triplets"] == 3
    assert Path(result["files"]["json"]).exists()


def test_plots_are_drawn_and_without_matplotlib_the_tables_stand(
    index: Path,
    tiny_export: Path,
    task: TaskSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn = evaluate(config(index, tiny_export, tmp_path / "a", task, plots=True))["files"]
    assert Path(drawn["bytes_per_document"]).read_bytes().startswith(b"\x89PNG")
    assert Path(drawn["ms_per_query"]).exists()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    capsys.readouterr()
    bare = evaluate(config(index, tiny_export, tmp_path / "b", task, plots=True))["files"]
    assert bare.keys() == drawn.keys() - {"bytes_per_document", "ms_per_query"}
    said = capsys.readouterr().err
    assert "4x6" in said
    assert said.endswith("no plots: plots need matplotlib: pip install 'rematch-ray[eval]'\n")


def test_a_model_finds_what_it_was_given_on_the_other_side_of_the_same_bank(
    index: Path, model: Embedder
) -> None:
    documents = model.encode_document(DOCUMENTS)
    scores = SearchIndex.open(index).score_all(
        type(documents)(documents.vectors[:, :4], documents.fused)
    )
    assert (np.argmax(scores["fused"], axis=1) == np.arange(len(DOCUMENTS))).all()


def test_the_gallery_of_one_source_leaves_the_others_out(index: Path) -> None:
    opened = SearchIndex.open(index)
    gallery = gallery_of(opened, "source-1")
    assert gallery.ids == [document.id for document in DOCUMENTS[1::2]]
    assert opened.ids(gallery.filter) == gallery.ids
    assert gallery_of(opened, None).ids == opened.ids()
    with pytest.raises(UserError, match="no document of source 'nowhere'"):
        gallery_of(opened, "nowhere")


def test_triplets_are_the_query_its_document_and_the_swap(task: TaskSettings) -> None:
    queries = [Item.of("x", id=f"q-{colour}") for colour in COLOURS]
    triplets = read_triplets(task, queries, 4)
    drawn = {(t.query.id, t.right.id, t.wrong.id, t.kind) for t in triplets}
    assert len(drawn) == 4
    assert drawn <= {(f"q-{colour}", f"{colour}-0", f"{colour}-1", "size") for colour in COLOURS}
    shown = {document.id: document.parts[0].image for document in DOCUMENTS}
    assert all(t.right.parts[0].image == shown[t.right.id] for t in triplets)


def test_triplets_meet_every_kind_of_swap_however_the_kinds_repeat(
    task: TaskSettings, tmp_path: Path
) -> None:
    kinds = ("swap:a", "swap:b", "swap:c")
    rows = [
        {"query_id": f"q-{colour}", "document_id": f"{colour}-1", "kind": kind}
        for colour in COLOURS
        for kind in kinds
    ]
    swaps = tmp_path / "swaps.parquet"
    pq.write_table(pa.Table.from_pylist(rows), swaps)
    queries = [Item.of("x", id=f"q-{colour}") for colour in COLOURS]
    changed = task.model_copy(update={"swaps": swaps})
    triplets = read_triplets(changed, queries, len(rows) // 3)
    assert len({triplet.kind for triplet in triplets}) > 1


def test_a_task_whose_documents_are_not_in_the_gallery_is_refused(
    index: Path, tiny_export: Path, task: TaskSettings, tmp_path: Path
) -> None:
    half = task.model_copy(update={"source": "source-1"})
    with pytest.raises(UserError, match="are not in the index"):
        evaluate(config(index, tiny_export, tmp_path / "out", half))


def test_a_judged_document_in_quarantine_is_counted_and_told_and_the_task_goes_on(
    index: Path,
    tiny_export: Path,
    task: TaskSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for table in ("qrels", "swaps"):
        path = tmp_path / f"{table}.parquet"
        rows = pq.read_table(path).to_pylist()
        name = rows[0]["document_id"]
        rows[0]["document_id"] = f"{name}-gone"
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    result = evaluate(config(index, tiny_export, tmp_path / "out", task))
    [report] = result["reports"]
    first = COLOURS[0]
    assert report["missing"] == {
        "relevant documents": {"number": 1, "ids": [f"{first}-0-gone"]},
        "swaps": {"number": 1, "ids": [f"{first}-1-gone"]},
    }
    assert all(rung["recall@10"] <= 7 / 8 for rung in report["rungs"].values())
    assert report["matching"]["triplets"] == 3
    told = f"toy: 1 relevant documents not in the index, never found: '{first}-0-gone'"
    assert told in capsys.readouterr().err
    assert told in (tmp_path / "out" / "report.md").read_text()


def test_triplets_are_those_of_the_split_and_of_documents_that_could_be_read(
    task: TaskSettings, tmp_path: Path
) -> None:
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    for split, size in (("test", 1), ("dev", 0)):
        judged = "".join(f"q-{colour}\t{colour}-{size}\t1\n" for colour in COLOURS)
        path = tmp_path / "beir" / "qrels" / f"{split}.tsv"
        path.write_text("query-id\tcorpus-id\tscore\n" + judged)
    update = {"qrels": tmp_path / "beir", "reader": ReaderSettings(split="dev")}
    queries = [Item.of("x", id=f"q-{colour}") for colour in COLOURS]
    held = {document.id for document in DOCUMENTS} - {f"{COLOURS[0]}-0", f"{COLOURS[1]}-1"}
    triplets = read_triplets(task.model_copy(update=update), queries[:-1], 100, held=held)
    assert {triplet.right.id for triplet in triplets} == {f"{c}-0" for c in COLOURS[2:-1]}


def test_queries_and_judgements_of_beir_are_ranked_among_listed_candidates(
    index: Path, tiny_export: Path, tmp_path: Path
) -> None:
    rows = [{"_id": f"q-{colour}", "text": f"the {colour} one"} for colour in COLOURS]
    write_rows(tmp_path / "beir" / "queries.jsonl", rows)
    write_rows(tmp_path / "beir" / "corpus.jsonl", [{"_id": "red-0", "text": "in the index"}])
    judged = "".join(f"q-{c}\t{c}-0\t1\nq-{c}\t{c}-1\t0\n" for c in COLOURS[1:])
    (tmp_path / "beir" / "qrels").mkdir()
    for split in ("train", "test"):
        path = tmp_path / "beir" / "qrels" / f"{split}.tsv"
        path.write_text("query-id\tcorpus-id\tscore\n" + (judged if split == "test" else ""))
    given = {"name": "beir", "queries": tmp_path / "beir", "qrels": tmp_path / "beir"}
    with pytest.raises(UserError, match=r"1 queries have no relevant document .*'q-red'"):
        evaluate(config(index, tiny_export, tmp_path / "out", TaskSettings(**given)))
    local = TaskSettings(**given, candidates="listed", unjudged="leave_out")
    [report] = evaluate(config(index, tiny_export, tmp_path / "out", local))["reports"]
    assert report["queries"] == len(COLOURS) - 1
    assert report["chance"]["hit@1"] == pytest.approx(1 / 2)
    assert all(rung["recall@10"] == 1 for rung in report["rungs"].values())
    other = local.model_copy(update={"qrels": tmp_path / "beir" / "qrels" / "train.tsv"})
    with pytest.raises(UserError, match=r"train\.tsv judges none of the 8 queries"):
        evaluate(config(index, tiny_export, tmp_path / "out", other))


def test_a_missing_table_is_refused_by_path(
    index: Path, tiny_export: Path, task: TaskSettings, tmp_path: Path
) -> None:
    without = task.model_copy(update={"qrels": tmp_path / "none.parquet"})
    with pytest.raises(UserError, match=r"none\.parquet cannot be read"):
        evaluate(config(index, tiny_export, tmp_path / "out", without))


def test_a_report_that_would_take_the_place_of_a_file_is_refused_before_anything_is_measured(
    index: Path, tiny_export: Path, task: TaskSettings, tmp_path: Path
) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(UserError, match=r"out: .*report is a file; name a directory"):
        evaluate(config(index, tiny_export, tmp_path / "report", task))

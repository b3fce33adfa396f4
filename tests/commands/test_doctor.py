"""`rematch-ray doctor` as a user runs it: a table, advice, and an index that is calibrated."""

import json
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.cli import main
from rematch_ray.commands.doctor import _reader
from rematch_ray.data.schema import QRELS_SCHEMA
from rematch_ray.evaluation import diagnosis
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import delete_documents, merge_segments
from rematch_ray.index.search import SearchIndex
from rematch_ray.model.embedder import Embedder
from tests.index.made import queries, unit, write_embeddings
from tests.tiny import COLOURS

NUM_DOCUMENTS = 70
IDS = [f"q{number}" for number in range(24)]


@pytest.fixture(autouse=True)
def _leave_the_signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    vectors, fused = unit((NUM_DOCUMENTS, 8, 16), 1), unit((NUM_DOCUMENTS, 24), 2)
    build_index(write_embeddings(tmp_path / "documents", vectors, fused), tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    made = queries(len(IDS))
    return write_embeddings(tmp_path / "queries", made.vectors, made.fused, ids=IDS, side="query")


def write_qrels(path: Path, ids: list[str], documents: list[str]) -> Path:
    rows = {"query_id": ids, "document_id": documents, "score": [1.0] * len(ids)}
    pq.write_table(pa.table(rows, schema=QRELS_SCHEMA), path)
    return path


def test_it_calibrates_the_index_and_says_what_it_found(
    index: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    qrels = write_qrels(tmp_path / "qrels.parquet", IDS, ["doc-0001"] * len(IDS))
    plot = tmp_path / "out.png"
    given = ["doctor", "--index", str(index), "--queries", str(asked), "--qrels", str(qrels)]
    assert main([*given, "--plot", str(plot), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert found["generation"] == SearchIndex.open(index).generation == "generation-000002"
    assert found["calibration"]["ndcg"]["queries"] == len(IDS)
    assert plot.stat().st_size > 1000
    for line in (*found["advice"], *found["notes"], "truth: 24 of 24 queries"):
        assert line in captured.err
    [result] = SearchIndex.open(index).search(queries(1), target_recall=0.1)
    assert result.expected_recall is not None
    info = SearchIndex.open(index).info()["calibration"]
    assert (info["void"], info["queries"]["count"]) == (None, len(IDS))


def test_writes_of_a_service_meanwhile_do_not_end_the_visit(
    index: Path, asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = diagnosis.diagnose

    def late(*given: Any, **options: Any) -> Any:
        delete_documents(index, ["doc-0001"])
        merge_segments(index)
        delete_documents(index, ["doc-0002"])
        return real(*given, **options)

    monkeypatch.setattr(diagnosis, "diagnose", late)
    given = ["doctor", "--index", str(index), "--queries", str(asked), "--dry-run"]
    assert main(given) == 0, capsys.readouterr().err


def test_a_dry_run_leaves_the_index_as_it_was(
    index: Path, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["doctor", "--index", str(index), "--queries", str(asked), "--max-queries", "22"]
    assert main([*given, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["calibration"]["queries"]["count"] == 22
    assert SearchIndex.open(index).info()["calibration"] is None


def test_an_interrupt_leaves_the_index_as_it_was(
    index: Path,
    asked: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {file.name: file.read_bytes() for file in (index / "generations").iterdir()}
    calls: list[Any] = []

    def interrupted(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original: Any = diagnosis.try_plan
    monkeypatch.setattr(diagnosis, "try_plan", interrupted)
    assert main(["doctor", "--index", str(index), "--queries", str(asked)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (index / "generations").iterdir()} == before


def change_identity(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["identity"] |= {"digest": "e2" * 32}
    (path / "manifest.json").write_text(json.dumps(manifest))


def narrow(path: Path) -> None:
    for file in path.glob("*"):
        file.unlink()
    path.rmdir()
    write_embeddings(path, unit((24, 4, 8), 1), None, ids=IDS, side="query")


def empty(path: Path) -> None:
    for file in path.glob("*"):
        file.unlink()
    path.rmdir()
    write_embeddings(path, unit((19, 4, 16), 1), None, ids=IDS[:19], side="query")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (change_identity, "does not fit this index"),
        (narrow, "do not fit this index"),
        (empty, "19 queries"),
        (lambda path: (path / "part-00000.parquet").unlink(), "part-00000.parquet"),
    ],
    ids=["another model", "another width", "too few", "a shard missing"],
)
def test_queries_that_do_not_fit_are_one_line(
    index: Path, asked: Path, capsys: pytest.CaptureFixture[str], spoil: Any, says: str
) -> None:
    spoil(asked)
    capsys.readouterr()
    assert main(["doctor", "--index", str(index), "--queries", str(asked)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert SearchIndex.open(index).generation == "generation-000001"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--qrels", "{tmp}/other.parquet"], "name no relevant document"),
        (["--qrels", "{tmp}/nothing.tsv"], "nothing.tsv"),
        (["--queries", "{tmp}/missing"], "missing"),
        (["--index", "{tmp}/nothing"], "is not an index"),
        (["--model", "{tmp}/nothing", "--qrels", "{tmp}/other.parquet"], "nothing"),
        (["--top-k", "0"], "whole number"),
    ],
)
def test_other_mistakes_are_one_line(
    index: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str],
    says: str,
) -> None:  # fmt: skip
    write_qrels(tmp_path / "other.parquet", ["nobody"], ["doc-0001"])
    given = ["doctor", "--index", str(index), "--queries", str(asked)]
    capsys.readouterr()
    assert main([*given, *(part.format(tmp=tmp_path) for part in more)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_rows_are_embedded_by_the_model_and_its_head_is_measured(
    tiny_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Embedder.from_pretrained(tiny_export, device="cpu")
    texts = [f"{first} {second}" for first in COLOURS for second in COLOURS]
    made = model.encode_document(texts)
    assert made.fused is not None
    source = write_embeddings(
        tmp_path / "documents", made.vectors.numpy(), made.fused.numpy(), ladder=["1x1", "2x3"]
    )
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["identity"] = json.loads(json.dumps(_identity(model)))
    (source / "manifest.json").write_text(json.dumps(manifest))
    build_index(source, tmp_path / "index", ladder=["1x1", "2x3"])
    rows = [{"id": f"q{n}", "text": text} for n, text in enumerate(texts[:30])]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\tdoc-{n:04d}\t1\n" for n in range(30))
    )
    given = ["doctor", "--index", str(tmp_path / "index"), "--model", str(tiny_export)]
    paths = ["--queries", str(tmp_path / "rows.jsonl"), "--qrels", str(tmp_path / "qrels.tsv")]
    capsys.readouterr()
    assert main([*given, *paths, "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["calibration"]["queries"]["count"] == 30
    assert found["calibration"]["matching"]["candidates"] == 100
    assert any("matching head" in line for line in found["advice"])
    assert np.isfinite(found["calibration"]["ndcg"]["rungs"]["2x3"]["mean"])


def _identity(model: Embedder) -> dict[str, Any]:
    from rematch_ray.index.identity import identity_json

    return identity_json(model.identity)


def test_a_column_may_be_called_anything() -> None:
    given = Namespace(format="jsonl", columns="text=\N{BUBBLE TEA}")
    assert _reader(given).columns == (("text", "\N{BUBBLE TEA}"),)

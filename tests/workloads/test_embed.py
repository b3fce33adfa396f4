"""Embedding accounts for every row, in plain Arrow, and never twice."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from rematch_ray.config import EmbedSettings
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.schema import Item, items_from_table, items_to_table, write_parquet
from rematch_ray.errors import UserError
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.model.embedder import Embedder
from rematch_ray.workloads.embed import embed
from rematch_ray.workloads.stages import OK, EmbedActor, EncodeItems
from tests.workloads.conftest import BAD_ROWS

ACCEPTING = EmbedSettings(batch_rows=8, max_bad_share=0.1)


def test_a_row_that_cannot_be_encoded_keeps_its_reason_and_harms_no_other(
    tiny_export: Path, corpus: Path, tmp_path: Path
) -> None:
    table = read_table(corpus, rows="items")
    payload = table.schema.field("payload").type
    encoded = EncodeItems(str(tiny_export), "document", None, payload)(table)
    made = EmbedActor(str(tiny_export), "document", 8, "cpu", str(tmp_path))(encoded)
    bad = {row["id"]: row["status"] for row in made.to_pylist() if row["status"] != OK}
    assert bad.keys() == BAD_ROWS.keys()
    assert all(name in reason for name, reason in bad.items())
    vectors = np.stack(made["vectors"].to_numpy(zero_copy_only=False)).astype(np.float32)
    norms = np.linalg.norm(vectors.reshape(len(vectors), 6, 16), axis=2)
    good = np.array(made["status"].to_pylist()) == OK
    assert np.allclose(norms[good], 1, atol=2e-3)
    assert not norms[~good].any()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnACluster:
    @pytest.fixture(autouse=True)
    def _restored_data_context(self) -> Iterator[None]:
        before = ray.data.DataContext.get_current().copy()
        yield
        ray.data.DataContext._set_current(before)

    @pytest.fixture(scope="class")
    def out(
        self, tiny_export: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Path:
        out = tmp_path_factory.mktemp("embeddings") / "documents"
        result = embed(model=tiny_export, data=corpus, out=out, settings=ACCEPTING)
        assert (result["rows_in"], result["embedded"], result["quarantined"]) == (63, 60, 3)
        return out

    def test_shards_equal_the_embedder_row_by_row(
        self, out: Path, tiny_export: Path, corpus: Path
    ) -> None:
        table = read_table(corpus, rows="items")
        items = [item for item in items_from_table(table) if item.id not in BAD_ROWS]
        expected = Embedder.from_pretrained(tiny_export, device="cpu").encode_document(items)
        batch = EmbeddingShards.open(out).read()
        assert batch.ids == [item.id for item in items]
        assert [payload["name"] for payload in batch.payloads] == [
            item.payload["name"] for item in items
        ]
        assert np.allclose(batch.vectors, expected.vectors.numpy(), atol=2e-3)
        assert batch.fused is not None
        assert expected.fused is not None
        assert np.allclose(batch.fused, expected.fused.numpy(), atol=2e-3)

    def test_every_file_is_plain_arrow_and_says_what_it_is(self, out: Path) -> None:
        shard = pq.read_schema(out / "part-00000.parquet")
        assert shard.field("vectors").type == pa.list_(pa.float16(), 6 * 16)
        assert shard.field("fused").type == pa.list_(pa.float16(), 24)
        assert {k: v for k, v in shard.metadata.items() if k in (b"R", b"D", b"F", b"side")} == {
            b"R": b"6", b"D": b"16", b"F": b"24", b"side": b"document",
        }  # fmt: skip
        for file in out.glob("*.parquet"):
            assert b"ray." not in pq.ParquetFile(file).schema_arrow.serialize().to_pybytes()
        assert not (out / ".unfinished").exists()

    def test_bad_rows_are_quarantined_by_name_and_reason(self, out: Path) -> None:
        rows = pq.read_table(out / "quarantine.parquet").to_pylist()
        assert {row["id"] for row in rows} == set(BAD_ROWS)
        assert all(row["reason"] and row["source"] for row in rows)

    def test_a_second_run_does_nothing_and_another_request_is_refused(
        self, out: Path, tiny_export: Path, corpus: Path, tmp_path: Path
    ) -> None:
        before = (out / "manifest.json").read_text()
        again = embed(model=tiny_export, data=corpus, out=out, settings=ACCEPTING)
        assert again["skipped"]
        assert again["embedded"] == 60
        with pytest.raises(UserError, match="made with instruction None, asked for is 'Find it'"):
            embed(model=tiny_export, data=corpus, out=out, instruction="Find it")
        with pytest.raises(UserError, match="made with side 'document', asked for is 'query'"):
            embed(model=tiny_export, data=corpus, out=out, side="query")
        shutil.copytree(corpus, tmp_path / "more")
        write_parquet(items_to_table([Item.of("new", id="new")]), tmp_path / "more" / "c.parquet")
        with pytest.raises(UserError, match="made with data"):
            embed(model=tiny_export, data=tmp_path / "more" / "a.parquet", out=out)
        assert (out / "manifest.json").read_text() == before

    def test_too_many_bad_rows_stop_the_job_with_their_names_and_no_manifest(
        self, tiny_export: Path, corpus: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"3 of 63 rows cannot be embedded.*truncated"):
            embed(model=tiny_export, data=corpus, out=tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()
        assert pq.read_table(tmp_path / "out" / "quarantine.parquet").num_rows == 3

    def test_a_damaged_file_is_one_line_that_names_it(
        self, tiny_export: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "damaged.parquet"
        write_parquet(items_to_table([Item.of(f"text {n}" * 99) for n in range(99)]), file)
        data = bytearray(file.read_bytes())
        data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
        file.write_bytes(data)
        with pytest.raises(
            UserError, match=r"damaged\.parquet: row group 0 cannot be read"
        ) as told:
            embed(model=tiny_export, data=file, out=tmp_path / "out")
        assert "Traceback" not in str(told.value)
        assert not (tmp_path / "out" / "manifest.json").exists()

    @pytest.mark.timeout(400)
    def test_a_killed_model_process_loses_no_row_and_doubles_none(
        self, tiny_export: Path, tmp_path: Path
    ) -> None:
        items = [Item.of(f"text {n}", id=f"d{n}") for n in range(2000)]
        write_parquet(items_to_table(items), tmp_path / "many.parquet")
        out = tmp_path / "out"
        killed: list[int] = []

        def kill() -> None:
            deadline = time.monotonic() + 300
            while not killed and time.monotonic() < deadline:
                for file in (out / ".unfinished" / "progress").glob("*"):
                    killed.append(int(file.name.split("-")[0]))
                    os.kill(killed[0], signal.SIGKILL)
                time.sleep(0.02)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        result = embed(model=tiny_export, data=tmp_path / "many.parquet", out=out)
        killer.join()
        assert killed
        assert result["embedded"] == len(items)
        assert EmbeddingShards.open(out).read().ids == [item.id for item in items]

    def test_an_id_that_occurs_twice_is_refused_with_its_places(
        self, tiny_export: Path, tmp_path: Path
    ) -> None:
        items = [Item.of(f"text {i % 4}", id=f"same-{i % 4}") for i in range(5)]
        write_parquet(items_to_table(items), tmp_path / "twice.parquet")
        with pytest.raises(UserError, match=r"'same-0' \(part-00000.parquet row 0, part-.* row 4"):
            embed(model=tiny_export, data=tmp_path / "twice.parquet", out=tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_files_with_different_payloads_are_refused_by_name(
    tiny_export: Path, tmp_path: Path
) -> None:
    for name, payload in (("a", {"name": "x"}), ("b", {"size": 3})):
        table = items_to_table([Item.of(name, id=name, payload=payload)])
        write_parquet(table, tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has a payload of .*b\.parquet of"):
        embed(model=tiny_export, data=tmp_path, out=tmp_path / "out")


def test_a_manifest_that_is_none_is_refused(
    tiny_export: Path, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": []}))
    with pytest.raises(UserError, match="is not a manifest"):
        embed(model=tiny_export, data=corpus, out=tmp_path)

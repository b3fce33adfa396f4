"""Embedding accounts for every row, in plain Arrow, and never twice."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import torch

from rematch_ray.config import EmbedSettings
from rematch_ray.data.collate import Batch
from rematch_ray.data.readers.formats import list_data
from rematch_ray.data.readers.keys import row_keys
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import Item, items_from_table, items_to_table, write_parquet
from rematch_ray.errors import UserError
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.model.embedder import Embedder
from rematch_ray.workloads.disk import held
from rematch_ray.workloads.embed import WriteOptions, embed, embed_bundles, pipeline, window_rows
from rematch_ray.workloads.embed_actor import ActorSettings, EmbedActor
from rematch_ray.workloads.embed_progress import stop_when_hopeless
from rematch_ray.workloads.embed_stages import EncodeItems, ReadItems
from rematch_ray.workloads.embedding_job import Job
from rematch_ray.workloads.staging import OK, Staging
from tests.data.readers.layouts import write_rows
from tests.workloads.conftest import BAD_ROWS

ACCEPTING = EmbedSettings(batch_rows=8, max_bad_share=0.1)


def actor_settings(export: Path, progress: Path, **changes: Any) -> ActorSettings:
    staging = Staging(progress)
    staging.begin_run()
    given: dict[str, Any] = {
        "export": str(export),
        "side": "document",
        "batch_rows": 8,
        "batch_tokens": 10**6,
        "batch_pixels": 10**9,
        "precision": None,
        "device": "cpu",
        "staging": staging,
    }
    return ActorSettings(**(given | changes))


def encoded(export: Path, corpus: Path) -> pa.Table:
    """The corpus as the encode stage hands it on."""
    table = read_table(corpus, rows="items")
    keyed = table.append_column("row_key", row_keys(table))
    payload = table.schema.field("payload").type
    return pa.concat_tables(EncodeItems(str(export), "document", None, payload)(keyed))


def vectors_of(made: pa.Table) -> np.ndarray:
    return np.stack(made["vectors"].to_numpy(zero_copy_only=False)).astype(np.float32)


def test_a_row_that_cannot_be_encoded_keeps_its_reason_and_harms_no_other(
    tiny_export: Path, corpus: Path, tmp_path: Path, device: str
) -> None:
    settings = replace(actor_settings(tiny_export, tmp_path), device=device)
    made = EmbedActor(settings)(encoded(tiny_export, corpus))
    bad = {row["id"]: row["status"] for row in made.to_pylist() if row["status"] != OK}
    assert bad.keys() == BAD_ROWS.keys()
    assert all(name in reason for name, reason in bad.items())
    vectors = vectors_of(made)
    norms = np.linalg.norm(vectors.reshape(len(vectors), 6, 16), axis=2)
    good = np.array(made["status"].to_pylist()) == OK
    assert np.allclose(norms[good], 1, atol=2e-3)
    assert not norms[~good].any()


def test_a_model_process_ends_when_the_run_was_told_to_stop(
    tiny_export: Path, corpus: Path, tmp_path: Path
) -> None:
    settings = actor_settings(tiny_export, tmp_path)
    actor = EmbedActor(settings)
    rows = encoded(tiny_export, corpus)
    actor(rows)
    stop_when_hopeless(settings.staging.actors, rows.num_rows, max_bad_share=0.01, max_processes=1)
    with pytest.raises(UserError, match="3 of 63 rows cannot be embedded so far"):
        actor(rows)


@pytest.mark.parametrize("limit", [{"batch_rows": 3}, {"batch_tokens": 99}, {"batch_pixels": 5000}])
def test_every_limit_of_a_batch_holds_and_changes_no_vector(
    tiny_export: Path,
    corpus: Path,
    tmp_path: Path,
    limit: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = encoded(tiny_export, corpus)
    whole = EmbedActor(actor_settings(tiny_export, tmp_path, batch_rows=100))(rows)
    actor = EmbedActor(actor_settings(tiny_export, tmp_path, **{"batch_rows": 100, **limit}))
    seen: list[Batch] = []
    embed_batch = actor._model.embed
    monkeypatch.setattr(
        actor._model, "embed", lambda b, side: (seen.append(b), embed_batch(b, side))[1]
    )
    assert np.allclose(vectors_of(actor(rows)), vectors_of(whole), atol=2e-3)
    held = {
        "batch_rows": [len(batch) for batch in seen],
        "batch_tokens": [batch.input_ids.numel() for batch in seen],
        "batch_pixels": [_pixels(batch, actor) for batch in seen],
    }
    ((name, most),) = limit.items()
    assert len(seen) > 5
    assert max(held[name]) <= most


def _pixels(batch: Batch, actor: EmbedActor) -> int:
    patches = 0 if batch.pixel_values is None else len(batch.pixel_values)
    return patches * actor._model.row_encoder.patch_pixels


def test_the_parent_of_a_row_stays_with_it(tiny_export: Path, tmp_path: Path) -> None:
    file = tmp_path / "pages.jsonl"
    rows = [{"page": f"d{n}", "doc": f"book {n // 2}", "body": f"text {n}"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = ReaderSettings.model_validate({"columns": "id=page,parent_id=doc,text=body"})
    staging = Staging(tmp_path / "progress")
    staging.begin_run()
    (unit,) = list_data(file, reader, rows="items")
    read = pa.concat_tables(ReadItems(unit, 0, staging)())
    kept = pa.concat_tables(EncodeItems(str(tiny_export), "document", None, None)(read))
    made = EmbedActor(actor_settings(tiny_export, tmp_path / "actor"))(kept)
    assert made["parent_id"].to_pylist() == ["book 0", "book 0", "book 1", "book 1"]


def test_a_lower_precision_stays_near_and_is_not_the_same(
    tiny_export: Path, corpus: Path, tmp_path: Path, device: str
) -> None:
    rows = encoded(tiny_export, corpus).slice(0, 12)
    whole = actor_settings(tiny_export, tmp_path, precision="fp32")
    full = EmbedActor(replace(whole, device=device))(rows)
    lower = actor_settings(tiny_export, tmp_path, precision="bf16")
    half = EmbedActor(replace(lower, device=device))(rows)
    distance = np.abs(vectors_of(full) - vectors_of(half)).max()
    assert 1e-3 < distance < 0.1
    assert half["status"].to_pylist() == full["status"].to_pylist()


def test_vectors_that_are_not_finite_are_a_reason(
    tiny_export: Path, corpus: Path, tmp_path: Path
) -> None:
    actor = EmbedActor(actor_settings(tiny_export, tmp_path))
    torch.nn.init.constant_(actor._model.banks["document"], float("nan"))
    made = actor(encoded(tiny_export, corpus).slice(0, 4))
    assert set(made["status"].to_pylist()) == {"the model's vectors are not finite"}
    assert not vectors_of(made).any()


def test_a_read_task_gives_every_row_its_key_and_notes_where_it_lies(
    corpus: Path, tmp_path: Path
) -> None:
    staging = Staging(tmp_path / "progress")
    staging.begin_run()
    units = list_data(corpus, rows="items")
    keys = []
    for number, unit in enumerate(units):
        task = ReadItems(unit, number, staging)
        for _ in range(2):  # a task that is retried notes the same once
            tables = pa.concat_tables(task())
        assert tables.column_names[0] == "row_key"
        keys += tables["row_key"].to_pylist()
    noted = pa.concat_tables(pq.read_table(file) for file in staging.input_files())
    assert noted["row_key"].to_pylist() == keys
    assert len(set(keys)) == staging.count_input() == 63
    assert noted["row"].to_pylist() == [*range(32), *range(31)]
    assert [Path(path).name for path in noted["path"].to_pylist()] == 32 * ["a.parquet"] + 31 * [
        "b.parquet"
    ]


def test_a_node_that_has_a_directory_of_its_own_is_named_whatever_it_is_to_do(
    tiny_export: Path, corpus: Path, tmp_path: Path
) -> None:
    here, there = Staging.of(tmp_path / "out"), Staging.of(tmp_path / "out")
    here.begin_run()
    there.begin_run()  # of an earlier job, or of another node's
    unit, *_ = list_data(corpus, rows="items")
    rows = encoded(tiny_export, corpus)
    actor = EmbedActor(replace(actor_settings(tiny_export, tmp_path / "other"), staging=here))
    for call in (lambda: list(ReadItems(unit, 0, here)()), lambda: actor(rows), WriteOptions(here)):
        with pytest.raises(
            UserError, match=r"out is not the same directory on every node: .* --out"
        ):
            call()
    assert not list(there.input.iterdir())


def test_what_the_last_run_left_writing_has_no_place_in_the_next(tmp_path: Path) -> None:
    last, now = Staging.of(tmp_path), Staging.of(tmp_path)
    last.begin_run()
    keys = pa.array([1, 2], pa.int64())
    last.write_input(0, keys, "a.parquet", 0)
    pq.write_table(pa.table({"row_key": keys}), last.done / "written.parquet")
    begun = (last.rows / "late.parquet").open("wb")
    assert Staging.latest(tmp_path) == last
    now.begin_run()
    assert Staging.latest(tmp_path) == now
    assert now.count_done() == 2
    assert not now.inputs_by_number()
    # what had its file open writes where Ray's recovery looks, what opens one finds no folder
    with begun:
        begun.write(b"half")
    assert [file.name for file in now.rows.iterdir()] == ["late.parquet"]
    with pytest.raises(FileNotFoundError):
        last.write_input(0, keys, "a.parquet", 0)
    with pytest.raises(FileNotFoundError):
        (last.done / "late.parquet").open("wb")
    with pytest.raises(UserError, match="not the same directory"):
        last.refuse_unshared()
    assert [folder.name for folder in tmp_path.glob(".progress/*")] == [now.folder.name]


def test_windows_are_smaller_where_items_are_large(corpus: Path) -> None:
    units = list_data(corpus, rows="items")
    assert window_rows(units, 256) == 256
    large = [replace(unit, num_bytes=2**20 * (unit.num_rows or 0)) for unit in units]
    assert window_rows(large, 256) == 16
    assert window_rows([replace(unit, num_rows=None) for unit in large], 256) == 256


def test_a_range_of_actors_asks_for_its_least_and_a_resumed_job_for_a_filter() -> None:
    bundles = embed_bundles(EmbedSettings(num_actors=(2, 8)), resumes=True)
    assert [(bundle.what, bundle.count) for bundle in bundles] == [
        ("embedding process", 2), ("data task", 1), ("filter of rows that are done", 1),
    ]  # fmt: skip


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
        assert not list(Staging.latest(out).rows.iterdir())

    def test_bad_rows_are_quarantined_by_name_and_reason(self, out: Path) -> None:
        rows = pq.read_table(out / "quarantine.parquet").to_pylist()
        assert {row["id"] for row in rows} == set(BAD_ROWS)
        assert all(row["reason"] and row["source"] for row in rows)

    def test_a_second_run_does_nothing_and_another_request_is_refused(
        self, out: Path, tiny_export: Path, corpus: Path
    ) -> None:
        before = (out / "manifest.json").read_text()
        again = embed(model=tiny_export, data=corpus, out=out, settings=ACCEPTING)
        assert again["skipped"]
        assert again["embedded"] == 60
        with pytest.raises(UserError, match="made with instruction None, asked for is 'Find it'"):
            embed(model=tiny_export, data=corpus, out=out, instruction="Find it")
        with pytest.raises(UserError, match="made with side 'document', asked for is 'query'"):
            embed(model=tiny_export, data=corpus, out=out, side="query")
        half = EmbedSettings(max_bad_share=0.1, precision="bf16")
        (out / "manifest.json").rename(out / "kept.json")
        with pytest.raises(UserError, match="made with precision None, asked for is 'bf16'"):
            embed(model=tiny_export, data=corpus, out=out, settings=half)
        (out / "kept.json").rename(out / "manifest.json")
        assert (out / "manifest.json").read_text() == before

    def test_what_may_wait_between_stages_is_bounded_and_no_other_pipeline_is_touched(
        self, tiny_export: Path, corpus: Path, tmp_path: Path
    ) -> None:
        settings = EmbedSettings(buffer_bytes=1000, num_actors=(1, 3))
        job = Job.of(tiny_export, settings, side="query", instruction=None, data="")
        units = list_data(corpus, rows="items")
        staging = Staging(tmp_path)
        dataset = pipeline(units, tiny_export, job, settings, staging)
        limits = dataset.context.execution_options.resource_limits
        assert limits.object_store_memory == 3000
        assert dataset.context.checkpoint_config is not None
        assert dataset.context.checkpoint_config.checkpoint_path == str(staging.done)
        assert ray.data.DataContext.get_current().checkpoint_config is None

    def test_the_result_says_how_busy_the_model_was_and_is_kept(self, out: Path) -> None:
        summary = json.loads((out / "summary.json").read_text())
        assert summary["embedded_now"] == 60
        assert 0 < summary["actor_utilisation"] <= 1
        assert 0 <= summary["padding_share"] < 0.5
        assert summary["tokens"] > 63 * 6

    def test_a_top_up_embeds_only_what_is_new_or_changed(
        self, tiny_export: Path, tmp_path: Path
    ) -> None:
        data, out = tmp_path / "data", tmp_path / "out"
        settings = EmbedSettings(num_actors=(1, 2), precision="fp32")

        def run(texts: dict[str, str]) -> dict[str, Any]:
            items = [Item.of(text, id=name) for name, text in texts.items()]
            write_parquet(items_to_table(items), data / "a.parquet")
            return embed(model=tiny_export, data=data, out=out, settings=settings)

        first = {f"d{n}": f"text {n}" for n in range(40)}
        assert run(first)["embedded_now"] == 40
        old = EmbeddingShards.open(out).read()
        second = {**first, "d7": "changed", "new": "added"}
        del second["d9"]
        result = run(second)
        assert (result["rows_in"], result["embedded"], result["embedded_now"]) == (40, 40, 2)
        batch = EmbeddingShards.open(out).read()
        assert sorted(batch.ids) == sorted(second)
        at = {name: batch.vectors[batch.ids.index(name)] for name in ("d7", "d8")}
        assert not np.allclose(at["d7"], old.vectors[7])
        assert np.array_equal(at["d8"], old.vectors[8])
        back = run(first)  # what was left out must not count as done
        assert (back["embedded"], back["embedded_now"]) == (40, 2)
        assert sorted(EmbeddingShards.open(out).read().ids) == sorted(first)

    def test_a_file_more_embeds_its_own_rows_alone_and_older_keys_are_told_once(
        self, tiny_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data, out = tmp_path / "data", tmp_path / "out"

        def run(name: str, *rows: dict[str, Any]) -> tuple[int, str]:
            write_rows(data / name, list(rows))
            made = embed(model=tiny_export, data=data, out=out)
            return made["embedded_now"], capsys.readouterr().err

        first = [{"id": f"a{n}", "text": f"text {n}", "price": float(n)} for n in range(20)]
        told = "was made by an earlier version"
        count, said = run("a.jsonl", *first)
        assert (count, told in said) == (20, False)
        for path in (out / "manifest.json", Staging.of(out).job):
            noted = json.loads(path.read_text())
            assert noted.pop("row_keys") == 2
            path.write_text(json.dumps(noted))
        # the column is of texts from here on
        count, said = run("b.jsonl", {"id": "b", "text": "other", "price": "n/a"})
        assert (count, said.count(told)) == (1, 1)
        count, said = run("c.jsonl", {"id": "c", "text": "third", "price": 1})
        assert (count, told in said) == (1, False)
        assert len(EmbeddingShards.open(out).read().ids) == 22

    def test_an_output_that_nodes_do_not_share_is_one_line_and_leaves_no_embeddings(
        self, tiny_export: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begin_run = Staging.begin_run

        def begin_elsewhere(staging: Staging) -> None:
            begin_run(staging)
            staging.mark.unlink()

        monkeypatch.setattr(Staging, "begin_run", begin_elsewhere)
        # the options of a write are asked for on this node, too
        monkeypatch.setattr(WriteOptions, "__call__", lambda self: {})
        with pytest.raises(UserError, match="not the same directory on every node") as told:
            embed(model=tiny_export, data=corpus, out=tmp_path / "out", settings=ACCEPTING)
        assert "Traceback" not in str(told.value)
        assert not (tmp_path / "out" / "manifest.json").exists()

    @pytest.mark.timeout(400)
    def test_the_rows_of_a_lost_shard_are_embedded_again(
        self, tiny_export: Path, tmp_path: Path
    ) -> None:
        data, out = tmp_path / "a.parquet", tmp_path / "out"
        settings = EmbedSettings(rows_per_shard=1, rows_per_write=8, window_rows=8)

        def run(count: int) -> dict[str, Any]:
            items = [Item.of(f"text {n}", id=f"d{n}") for n in range(count)]
            write_parquet(items_to_table(items), data)
            return embed(model=tiny_export, data=data, out=out, settings=settings)

        run(40)
        for count in (40, 41):  # the same data, and data that was added to
            manifest = json.loads((out / "manifest.json").read_text())
            lost, *_ = manifest["shards"]
            (out / lost["file"]).unlink()
            added = count - manifest["rows_in"]
            assert run(count)["embedded_now"] == lost["rows"] + added
            assert sorted(EmbeddingShards.open(out).read().ids) == sorted(
                f"d{n}" for n in range(count)
            )

    def test_too_many_bad_rows_stop_the_job_with_their_names_and_no_manifest(
        self, tiny_export: Path, corpus: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"3 of 63 rows cannot be embedded.*truncated"):
            embed(model=tiny_export, data=corpus, out=tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()
        assert pq.read_table(tmp_path / "out" / "refused.parquet").num_rows == 3

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
                for file in (out / ".progress").glob("run-*/actors/*.json"):
                    killed.append(int(file.name.split("-")[0]))
                    os.kill(killed[0], signal.SIGKILL)
                time.sleep(0.02)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        result = embed(model=tiny_export, data=tmp_path / "many.parquet", out=out)
        killer.join()
        assert killed
        assert result["embedded"] == len(items)
        # what the killed process held is written later than what came after it
        found = EmbeddingShards.open(out).read().ids
        assert sorted(found) == sorted(item.id for item in items)

    def test_an_id_that_occurs_twice_is_refused_with_its_places(
        self, tiny_export: Path, tmp_path: Path
    ) -> None:
        items = [Item.of(f"text {i % 4}", id=f"same-{i % 4}") for i in range(5)]
        write_parquet(items_to_table(items), tmp_path / "twice.parquet")
        with pytest.raises(UserError, match=r"'same-0' \(.*twice.parquet row 0, .*row 4"):
            embed(model=tiny_export, data=tmp_path / "twice.parquet", out=tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()


class SlowActor(EmbedActor):
    """A model that is slower than all that feeds it."""

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(1.5)
        return super().__call__(table)


def test_a_pool_of_model_processes_grows_with_the_work_that_waits(
    ray_cluster: None, tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rematch_ray.workloads.embed.EmbedActor", SlowActor)
    items = [Item.of(f"page {number}", id=f"{number}") for number in range(120)]
    write_parquet(items_to_table(items), tmp_path / "pages.parquet")
    settings = EmbedSettings(window_rows=4, batch_rows=4, num_actors=(1, 2))
    result = embed(
        model=tiny_export, data=tmp_path / "pages.parquet", out=tmp_path / "out", settings=settings
    )
    assert (result["embedded"], result["model_processes"]) == (120, 2)


def test_files_with_different_payloads_are_refused_by_name(
    tiny_export: Path, tmp_path: Path
) -> None:
    for name, payload in (("a", {"size": "x"}), ("b", {"size": 3})):
        table = items_to_table([Item.of(name, id=name, payload=payload)])
        write_parquet(table, tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=r"payload of .*b\.parquet does not go with .*a\.p"):
        embed(model=tiny_export, data=tmp_path, out=tmp_path / "out")


def test_a_start_beside_another_process_leaves_what_that_one_noted(
    tiny_export: Path, corpus: Path, tmp_path: Path
) -> None:
    staging = Staging.of(tmp_path)
    with held(tmp_path, staging.root):
        with pytest.raises(UserError, match="is being written by another process"):
            embed(model=tiny_export, data=corpus, out=tmp_path)
        # what it is made with is for the process to say that writes it
        assert not staging.job.exists()


def test_a_manifest_that_is_none_is_refused(
    tiny_export: Path, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": []}))
    with pytest.raises(UserError, match="is not a manifest"):
        embed(model=tiny_export, data=corpus, out=tmp_path)

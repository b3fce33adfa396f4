"""Mining keeps every row, adds what is wrong but near, and goes on after an interruption."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from rematch_ray.config import DataSettings, EmbedSettings, MineSettings
from rematch_ray.data.item import Item, Negative, Positive, Sample
from rematch_ray.data.order import OrderSettings
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.data.schema import (
    items_to_table,
    sample_from_row,
    samples_from_table,
    samples_to_table,
    write_parquet,
)
from rematch_ray.data.sources import SourceSettings
from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import delete_documents
from rematch_ray.index.mining.references import ReferenceMaker, item_modality, parse_modality
from rematch_ray.index.mining.selection import REASONS
from rematch_ray.workloads import mine as workload
from rematch_ray.workloads import mining_galleries
from rematch_ray.workloads.embed import embed
from rematch_ray.workloads.mine import mine
from rematch_ray.workloads.stream import open_data
from tests.data.readers.layouts import write_rows
from tests.tiny import COLOURS, png

BROKEN = png()[:40]
# an untrained model scores everything alike: limits would drop it all
SETTINGS = MineSettings(
    per_row=3,
    ranks=(1, 30),
    max_share=None,
    max_similarity=None,
    budget="2x3",
    embed=EmbedSettings(batch_rows=8, max_bad_share=0.1, store_dtype="int8"),
)


def photo(number: int) -> Item:
    colour = COLOURS[number % len(COLOURS)]
    return Item.of(png(colour, 32, 32 + 16 * (number // len(COLOURS))), id=f"p{number}")


def note(number: int) -> Item:
    return Item.of(f"the {COLOURS[number % 8]} bar {number}", id=f"n{number}")


def photo_row(number: int) -> Sample:
    return Sample(
        Item.of(f"a picture of {COLOURS[number % 8]}", id=f"qp{number}"),
        (Positive(photo(number)),),
        (Negative(photo((number + 1) % 24), "own"),),
        target_modality="image",
        source="photos",
    )


def note_row(number: int) -> Sample:
    return Sample(
        Item.of(f"which bar is {number}", id=f"qn{number}", payload={"asked": number}),
        (Positive(note(number)),),
        instruction="Find the note" if number % 2 else None,
        source="notes",
    )


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows that ask for pictures, 12 for notes; 1 query and 1 positive are broken."""
    folder = tmp_path_factory.mktemp("rows")
    photos = [photo_row(number) for number in range(24)]
    notes = [note_row(number) for number in range(12)]
    notes[3] = replace(notes[3], query=Item.of(BROKEN, id="broken-query"))
    notes[5] = replace(notes[5], positives=(Positive(Item.of(BROKEN, id="broken-positive")),))
    extra = pa.array([f"line {number}" for number in range(24)])
    write_parquet(samples_to_table(photos).append_column("note", extra), folder / "a.parquet")
    write_parquet(samples_to_table(notes), folder / "b.parquet")
    return folder


def items_of(samples: Sequence[Sample]) -> list[Item]:
    """Every readable document with the source it belongs to, once."""
    found: dict[str, Item] = {}
    for sample in samples:
        for named in (*sample.positives, *sample.negatives):
            if not named.item.id.startswith("broken"):
                found.setdefault(named.item.id, replace(named.item, source=sample.source))
    return list(found.values())


def read(folder: Path) -> list[Sample]:
    return [
        sample
        for file in sorted(folder.glob("*.parquet"))
        for sample in samples_from_table(pq.read_table(file))
    ]


def mined_ids(samples: Sequence[Sample]) -> list[list[tuple[str, str, str]]]:
    return [
        [(n.item.source, n.item.id, n.kind) for n in s.negatives if n.kind.startswith("mined")]
        for s in samples
    ]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(300)
class TestOnACluster:
    @pytest.fixture(autouse=True)
    def _restored_data_context(self) -> Iterator[None]:
        before = ray.data.DataContext.get_current().copy()
        yield
        ray.data.DataContext._set_current(before)

    @pytest.fixture(scope="class")
    def run(
        self, tiny_export: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp("mined") / "rows"
        return out, mine(model=tiny_export, data=rows, out=out, settings=SETTINGS)

    def test_every_row_comes_out_with_nothing_changed_but_negatives(
        self, run: tuple[Path, dict[str, Any]], rows: Path
    ) -> None:
        out, _ = run
        for before, after in zip(
            sorted(rows.glob("*")), sorted(out.glob("*.parquet")), strict=True
        ):
            old, new = pq.read_table(before), pq.read_table(after)
            assert new.drop_columns("negatives").equals(old.drop_columns("negatives"))
        for old_row, new_row in zip(read(rows), read(out), strict=True):
            assert new_row.negatives[: len(old_row.negatives)] == old_row.negatives

    def test_what_is_mined_is_wrong_and_none_comes_twice(
        self, run: tuple[Path, dict[str, Any]]
    ) -> None:
        make = ReferenceMaker(10**6)
        for sample in read(run[0]):
            right = {make.of(p.item).content for p in sample.positives}
            contents = [make.of(n.item).content for n in sample.negatives]
            assert not right & set(contents)
            assert len(set(contents)) == len(contents)
            for negative in sample.negatives:
                if negative.kind == "mined:modality":
                    wanted = parse_modality(sample.target_modality)
                    assert wanted not in (0, item_modality(negative.item))
                if negative.kind == "mined" and sample.target_modality:
                    assert item_modality(negative.item) == parse_modality(sample.target_modality)
                if negative.kind.startswith("mined"):
                    assert negative.item.source in ("photos", "notes")
                    assert negative.teacher_score is not None

    def test_counts_add_up_and_are_in_the_manifest(self, run: tuple[Path, dict[str, Any]]) -> None:
        out, result = run
        added = [n.kind for s in read(out) for n in s.negatives if n.kind.startswith("mined")]
        assert result["rows"] == 36
        assert result["mined"] == {kind: added.count(kind) for kind in set(added)}
        assert set(result["mined"]) == {"mined", "mined:modality"}
        assert set(result["dropped"]) <= set(REASONS)
        assert result["rows_not_searched"] == 2
        searched = [found for found in mined_ids(read(out)) if len(found) == 3]
        assert len(searched) == 34
        manifest = json.loads((out / "manifest.json").read_text())
        assert {key: manifest[key] for key in ("rows", "mined", "dropped")} == {
            key: result[key] for key in ("rows", "mined", "dropped")
        }
        assert not list(out.parent.glob(".*"))

    def test_unreadable_items_are_named_and_their_rows_kept(
        self, run: tuple[Path, dict[str, Any]], rows: Path
    ) -> None:
        out, result = run
        entries = [json.loads(line) for line in (out / "unreadable.jsonl").read_text().splitlines()]
        assert result["unreadable"] == 2
        file = rows / "b.parquet"
        assert [(entry["where"], entry["id"]) for entry in entries] == [
            (f"{file} row 3, query", "broken-query"),
            (f"{file} row 5, positive 0", "broken-positive"),
        ]
        assert all("not an image" in entry["reason"] for entry in entries)
        assert [row for row, found in enumerate(mined_ids(read(out))) if not found] == [27, 29]

    def test_training_reads_the_output_as_a_source(self, run: tuple[Path, dict[str, Any]]) -> None:
        settings = DataSettings(
            sources=(SourceSettings(name="mined", path=run[0]),),
            order=OrderSettings(global_batch=4, sub_batch=4),
        )
        assert open_data(settings, 0).plan.steps_per_epoch == 9
        table = read_table(run[0], rows="samples")
        assert b"ARROW:extension" not in table.schema.serialize().to_pybytes()

    def test_a_second_run_does_nothing_and_another_job_is_refused_by_what_differs(
        self, run: tuple[Path, dict[str, Any]], rows: Path, tiny_export: Path
    ) -> None:
        out, result = run
        before = (out / "manifest.json").stat().st_mtime_ns
        again = mine(model=tiny_export, data=rows, out=out, settings=SETTINGS)
        assert again["skipped"]
        assert again["mined"] == result["mined"]
        other = SETTINGS.model_copy(update={"ranks": (2, 30)})
        with pytest.raises(UserError, match=r"made with setting ranks \[1, 30\], asked for is \[2"):
            mine(model=tiny_export, data=rows, out=out, settings=other)
        with pytest.raises(UserError, match=r"was made with data '.*choose another --out"):
            mine(model=tiny_export, data=rows / "a.parquet", out=out, settings=SETTINGS)
        precise = SETTINGS.embed.model_copy(update={"store_dtype": "float16"})
        other = SETTINGS.model_copy(update={"embed": precise})
        with pytest.raises(UserError, match="made with setting store_dtype 'int8', asked for"):
            mine(model=tiny_export, data=rows, out=out, settings=other)
        # how a job is run is no part of what it is
        faster = SETTINGS.model_copy(update={"search_rows": 3})
        assert mine(model=tiny_export, data=rows, out=out, settings=faster)["skipped"]
        assert (out / "manifest.json").stat().st_mtime_ns == before

    def test_an_interrupted_run_goes_on_and_ends_in_the_same_rows(
        self,
        run: tuple[Path, dict[str, Any]],
        rows: Path,
        tiny_export: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def interrupted(*arguments: Any) -> None:
            raise KeyboardInterrupt

        out, staging = tmp_path / "rows", tmp_path / ".rows.unfinished"
        with monkeypatch.context() as patched:
            patched.setattr(workload, "publish", interrupted)
            with pytest.raises(KeyboardInterrupt):
                mine(model=tiny_export, data=rows, out=out, settings=SETTINGS)
        assert not out.exists()
        other = SETTINGS.model_copy(update={"seed": 1})
        with pytest.raises(UserError, match=r"\.rows\.unfinished was made with setting seed 0"):
            mine(model=tiny_export, data=rows, out=out, settings=other)
        kept = (staging / "rows" / "part-000000.parquet").stat().st_mtime_ns
        for lost in ("counts/000001.json", "rows/part-000001.parquet"):
            (staging / lost).unlink()
        (staging / "rows" / ".part-000001.parquet.half.unfinished").write_text("half")
        monkeypatch.setattr(workload, "make_galleries", self._only_finished(workload))
        result = mine(model=tiny_export, data=rows, out=out, settings=SETTINGS)
        assert (out / "part-000000.parquet").stat().st_mtime_ns == kept
        assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"]
        assert not list(out.glob(".*"))
        assert mined_ids(read(out)) == mined_ids(read(run[0]))
        counts = ("rows", "mined", "dropped", "rows_without", "unreadable")
        assert {k: result[k] for k in counts} == {k: run[1][k] for k in counts}

    @staticmethod
    def _only_finished(module: Any) -> Any:
        """`make_galleries`, failing when anything is embedded or collected anew."""
        real = module.make_galleries

        def checked(inputs: Any, workspace: Any) -> Any:
            times = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*.arrow")}
            vectors = (workspace.root / "vectors" / "manifest.json").stat().st_mtime_ns
            made = real(inputs, workspace)
            assert times == {path: path.stat().st_mtime_ns for path in times}
            assert vectors == (workspace.root / "vectors" / "manifest.json").stat().st_mtime_ns
            return made

        return checked

    def test_an_index_of_the_corpus_saves_embedding_and_finds_the_same(
        self,
        run: tuple[Path, dict[str, Any]],
        rows: Path,
        tiny_export: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        corpus = tmp_path / "corpus.parquet"
        write_parquet(items_to_table(items_of(read(rows))), corpus)
        embed(model=tiny_export, data=corpus, out=tmp_path / "vectors", settings=SETTINGS.embed)
        build_index(tmp_path / "vectors", tmp_path / "index")
        monkeypatch.setattr(mining_galleries, "embed", None)
        out = tmp_path / "mined"
        result = mine(
            model=tiny_export,
            data=rows,
            out=out,
            corpus=corpus,
            index=tmp_path / "index",
            settings=SETTINGS,
        )
        assert result["mined"] == run[1]["mined"]
        assert mined_ids(read(out)) == mined_ids(read(run[0]))
        with pytest.raises(UserError, match=r"was made with index '.*asked for is None"):
            mine(model=tiny_export, data=rows, out=out, corpus=corpus, settings=SETTINGS)

    def test_an_index_that_changes_meanwhile_is_refused_and_the_next_run_mines_it_as_it_is(
        self, rows: Path, tiny_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        corpus, index, out = (tmp_path / name for name in ("corpus.parquet", "index", "mined"))
        write_parquet(items_to_table(items_of(read(rows))), corpus)
        embed(model=tiny_export, data=corpus, out=tmp_path / "vectors", settings=SETTINGS.embed)
        build_index(tmp_path / "vectors", index)
        given = {"model": tiny_export, "data": rows, "out": out, "corpus": corpus, "index": index}
        real, gone = workload._embed_queries, {"n0", "p0"}

        def changing(*arguments: Any) -> None:
            real(*arguments)
            for name in gone:
                delete_documents(index, [name])

        with monkeypatch.context() as patched:
            patched.setattr(workload, "_embed_queries", changing)
            with pytest.raises(UserError, match=r"index has changed .* run the same command again"):
                mine(**given, settings=SETTINGS)
        assert not out.exists()
        assert mine(**given, settings=SETTINGS)["rows"] == 36
        found = {name for row in mined_ids(read(out)) for _, name, _ in row}
        assert found
        assert not found & gone

    @pytest.mark.slow
    def test_a_corpus_without_some_positives_still_serves_their_rows(
        self, rows: Path, tiny_export: Path, tmp_path: Path
    ) -> None:
        corpus = tmp_path / "corpus.parquet"
        write_parquet(items_to_table([note(number) for number in range(40)]), corpus)
        result = mine(
            model=tiny_export,
            data=rows / "a.parquet",
            out=tmp_path / "mined",
            corpus=corpus,
            settings=SETTINGS.model_copy(update={"modality_share": 0.0}),
        )
        # all of the corpus is text and every row asks for an image
        assert result["mined"] == {}
        assert result["rows_without"] == 24
        assert result["rows_not_searched"] == 0

    @pytest.mark.slow
    def test_rows_of_another_layout_are_mined_and_a_bad_one_keeps_its_reason(
        self, tiny_export: Path, tmp_path: Path
    ) -> None:
        pairs = [
            {"anchor": f"which bar is {n}", "positive": note(n).text, "negative": "own wrong"}
            for n in range(24)
        ]
        pairs[7]["positive"] = ""
        data = write_rows(tmp_path / "pairs.jsonl", pairs)
        out = tmp_path / "mined"
        result = mine(model=tiny_export, data=data, out=out, settings=SETTINGS)
        assert result["rows"] == 24
        [file] = sorted(out.glob("*.parquet"))
        table = pq.read_table(file).to_pylist()
        assert [row["error"] for row in table if row["error"]] == [
            "there is neither text nor image"
        ]
        assert table[7]["query"] is None
        good = [sample_from_row(row) for row in table if not row["error"]]
        assert all(sample.negatives[0].kind == "given" for sample in good)
        assert any(negatives for negatives in mined_ids(good))


def test_a_mistake_is_one_line_before_anything_starts(
    tiny_export: Path, tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    def refused(message: str, **given: Any) -> None:
        arguments: dict[str, Any] = {
            "model": tiny_export,
            "data": rows,
            "out": tmp_path / "out",
            "settings": SETTINGS,
        }
        with pytest.raises(UserError, match=message) as told:
            mine(**(arguments | given))
        assert "\n" not in str(told.value)
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / ".out.unfinished").exists()

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    write_parquet(items_to_table([note(1)]), tmp_path / "items.parquet")
    refused("no model at", model=tmp_path / "none")
    refused("no such file or folder", data=tmp_path / "none.parquet")
    refused("no column 'query'", data=tmp_path / "items.parquet")
    refused("holds something that is not mined rows", out=tmp_path / "full")
    refused("--index needs --corpus", index=tmp_path / "index")
    refused("is not an index", index=tmp_path / "none", corpus=tmp_path / "items.parquet")
    refused("no column 'parts'", corpus=rows)
    write_parquet(items_to_table([note(1)]), tmp_path / "corpus" / "items.parquet")
    (tmp_path / "corpus" / "more.jsonl").write_text('{"text": "a"}\n')
    # a corpus is our own Parquet, so that no other format can be named
    refused(
        r"leave out 1 .*\(more\.jsonl\); .*each as a path of its own$", corpus=tmp_path / "corpus"
    )
    refused(
        "budget '3x3' does not exist here; allowed: fused, 1x1",
        settings=SETTINGS.model_copy(update={"budget": "3x3"}),
    )
    refused(
        r"1 x mining task .* lower cpus_per_task",
        settings=SETTINGS.model_copy(update={"cpus_per_task": 999.0}),
    )
    greedy = SETTINGS.embed.model_copy(update={"num_actors": 999})
    refused("999 x embedding process", settings=SETTINGS.model_copy(update={"embed": greedy}))


def test_candidates_below_the_last_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="candidates 20 is below the last of ranks, 30"):
        MineSettings(ranks=(1, 30), candidates=20)


def test_a_prefix_of_the_vectors_is_refused_when_mining() -> None:
    with pytest.raises(ValueError, match=r"embed\.num_vectors cannot be set when mining: budget"):
        MineSettings(embed=EmbedSettings(num_vectors=3))


def test_an_index_of_another_model_is_refused(
    tiny_export: Path, tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    from tests.index.made import unit, write_embeddings

    write_parquet(items_to_table([note(1)]), tmp_path / "items.parquet")
    write_embeddings(tmp_path / "v", unit((9, 8, 16), 0), unit((9, 24), 1))
    build_index(tmp_path / "v", tmp_path / "index")
    with pytest.raises(UserError, match="does not fit this index"):
        mine(
            model=tiny_export,
            data=rows,
            out=tmp_path / "out",
            corpus=tmp_path / "items.parquet",
            index=tmp_path / "index",
        )

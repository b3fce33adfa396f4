import json
import math

import pyarrow.parquet as pq
import pytest

from rematch_ray.data.demo import (
    DEMO_SOURCES,
    blind_ceiling,
    blind_ceilings,
    write_demo,
)
from rematch_ray.data.demo_corpus import DemoSizes
from rematch_ray.data.demo_emoji import emoji_corpus
from rematch_ray.data.demo_scenes import scenes_corpus
from rematch_ray.data.emoji import HELD_OUT, rows_of
from rematch_ray.data.media import decode_image
from rematch_ray.data.readers.parquet import list_units, read_table
from rematch_ray.data.scenes import scene_families
from rematch_ray.data.schema import items_from_table, samples_from_table
from rematch_ray.errors import UserError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All three corpora, quick."""
    out = tmp_path_factory.mktemp("demo")
    return out, write_demo(out, sources=DEMO_SOURCES, quick=True)


def items(path):
    return items_from_table(read_table(path, rows="items"))


def samples(path):
    return samples_from_table(read_table(path, rows="samples"))


@pytest.mark.parametrize("source", DEMO_SOURCES)
def test_what_the_manifest_counts_is_what_lies_there(written, source):
    out, manifest = written
    counts = dict(manifest.counts[source])
    assert counts.pop("train") == len(samples(out / source / "train"))
    assert counts.pop("corpus") == len(items(out / source / "corpus"))
    for part, count in counts.items():
        queries = items(out / source / f"queries-{part}.parquet")
        assert len(queries) == count > 0
    expected = set(HELD_OUT) if source == "emoji" else {"validation", "test"}
    assert set(counts) == expected


@pytest.mark.parametrize("source", DEMO_SOURCES)
def test_every_query_is_answered_by_documents_of_the_gallery(written, source):
    out, manifest = written
    documents = {item.id: item for item in items(out / source / "corpus")}
    for part in set(manifest.counts[source]) - {"train", "corpus"}:
        asked = {item.id for item in items(out / source / f"queries-{part}.parquet")}
        qrels = pq.read_table(out / source / f"qrels-{part}.parquet").to_pylist()
        assert {row["query_id"] for row in qrels} == asked
        assert all(row["document_id"] in documents and row["score"] == 1.0 for row in qrels)


@pytest.mark.parametrize("source", DEMO_SOURCES)
def test_documents_are_one_picture_whose_file_the_payload_names(written, source):
    out, _ = written
    documents = items(out / source / "corpus")
    assert len({document.id for document in documents}) == len(documents)
    for document in documents:
        assert [part.kind for part in document.parts] == ["image"]
        assert document.payload["name"]
        assert (out / document.payload["media"]).read_bytes() == document.parts[0].image
    assert decode_image(documents[0].parts[0].image).mode == "RGB"


def test_payloads_of_all_corpora_have_one_type(written):
    out, _ = written
    kinds = {str(read_table(out / s / "corpus").schema.field("payload").type) for s in DEMO_SOURCES}
    assert len(kinds) == 1


@pytest.mark.parametrize("source", DEMO_SOURCES)
def test_no_training_row_shows_a_held_out_document_or_asks_a_held_out_query(written, source):
    out, manifest = written
    rows = samples(out / source / "train")
    shown = {p.item.id for row in rows for p in row.positives}
    shown |= {n.item.id for row in rows for n in row.negatives}
    texts = {row.query.text for row in rows}
    for part in set(manifest.counts[source]) - {"train", "corpus"}:
        qrels = pq.read_table(out / source / f"qrels-{part}.parquet")
        assert not shown & set(qrels["document_id"].to_pylist())
        if source != "pages":  # the names of two glyphs may well be asked for in both
            asked = {item.text for item in items(out / source / f"queries-{part}.parquet")}
            assert not texts & asked


def test_no_negative_is_right(written):
    out, _ = written
    for source in DEMO_SOURCES:
        right: dict[str, set[str]] = {}
        rows = samples(out / source / "train")
        for row in rows:
            right.setdefault(row.query.text, set()).update(p.item.id for p in row.positives)
        for row in rows:
            assert not right[row.query.text] & {n.item.id for n in row.negatives}


def test_scene_rows_have_all_three_swaps_and_swaps_are_listed_for_every_query(written):
    out, manifest = written
    kinds = {"swap:colour", "swap:position", "swap:relation"}
    assert all(
        {n.kind for n in row.negatives} == kinds for row in samples(out / "scenes" / "train")
    )
    swaps = pq.read_table(out / "scenes" / "swaps-test.parquet").to_pylist()
    assert len(swaps) == 3 * manifest.counts["scenes"]["test"]
    documents = {item.id for item in items(out / "scenes" / "corpus")}
    assert {row["document_id"] for row in swaps} <= documents


def test_training_pages_list_every_page_that_holds_all_named_glyphs(written):
    out, _ = written
    rows = samples(out / "pages" / "train")
    assert any(len(row.positives) > 1 for row in rows)
    holders: dict[str, set[frozenset[str]]] = {}
    for row in rows:
        holders.setdefault(row.query.text, set()).add(frozenset(p.item.id for p in row.positives))
    assert all(len(found) == 1 for found in holders.values())


def test_the_same_seed_writes_the_same_bytes_and_another_seed_keeps_the_splits(tmp_path):
    sizes = DemoSizes(emoji_train=40, emoji_held_out=5, scene_train_families=3)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_demo(tmp_path / name, seed=seed, sizes=sizes)
    a, b, c = (
        {f.relative_to(tmp_path / n): f.read_bytes() for f in (tmp_path / n).rglob("*.parquet")}
        for n in "abc"
    )
    assert a == b
    assert a.keys() == c.keys()
    assert a != c
    novel = {row.id for row in rows_of("novel-test")}
    queries = items(tmp_path / "c" / "emoji" / "queries-novel-test.parquet")
    assert {query.id.removeprefix("query-") for query in queries} <= novel


def test_a_second_run_leaves_a_finished_folder_alone_and_an_unfinished_one_is_written_again(
    tmp_path,
):
    sizes = DemoSizes(emoji_train=20, emoji_held_out=2)
    first = write_demo(tmp_path, sources=["emoji"], sizes=sizes)
    shard = next((tmp_path / "emoji" / "train").glob("*.parquet"))
    before = shard.stat().st_mtime_ns
    assert write_demo(tmp_path, sources=["emoji"], sizes=sizes) == first
    assert shard.stat().st_mtime_ns == before
    (tmp_path / "manifest.json").write_text("{ half")
    assert write_demo(tmp_path, sources=["emoji"], sizes=sizes) == first
    assert shard.stat().st_mtime_ns != before
    assert json.loads((tmp_path / "manifest.json").read_text())["counts"] == first.counts
    shard.unlink()
    assert write_demo(tmp_path, sources=["emoji"], sizes=sizes) == first
    assert shard.exists()


def test_an_unknown_source_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="'emojis' is unknown; did you mean emoji"):
        write_demo(tmp_path / "out", sources=["scenes", "emojis"])
    assert not (tmp_path / "out").exists()


def test_the_whole_emoji_corpus_holds_every_glyph_and_negatives_of_the_hardest_kinds():
    corpus = emoji_corpus(0, DemoSizes())
    assert len(corpus.documents) == 3771
    assert len(corpus.queries["composed-test"]) == 150
    toned = [row for row in corpus.train if "skin tone" in row.query.text]
    kinds = [{n.kind for n in row.negatives} for row in toned]
    assert sum("swap:tone" in found for found in kinds) > 0.98 * len(kinds)
    assert {len(row.negatives) for row in corpus.train} == {3}
    seen = [q.payload["all_words_seen"] for q in corpus.queries["novel-test"]]
    assert 0 < sum(seen) < len(seen)
    assert all(q.payload["all_words_seen"] for q in corpus.queries["composed-test"])


def test_the_whole_scene_gallery_is_every_held_out_family():
    corpus = scenes_corpus(0, DemoSizes(scene_train_families=1))
    held_out = {*scene_families("validation"), *scene_families("test")}
    assert {keys["family"] for keys in corpus.families.values()} == held_out
    assert len(corpus.documents) == 8 * len(held_out) == 936


def test_a_blind_model_gets_what_chance_inside_the_family_gives():
    families = dict.fromkeys("abcd", "four") | {"e": "one"}
    found = blind_ceiling(families, ["a", "e"])
    assert found.recall_at_1 == found.in_family == (1 / 4 + 1) / 2
    assert found.recall_at_10 == 1.0
    dcg = sum(1 / math.log2(1 + rank) for rank in range(1, 5)) / 4
    assert found.ndcg_at_10 == pytest.approx((dcg + 1) / 2)
    large = dict.fromkeys(map(str, range(26)), "couples")
    assert blind_ceiling(large, ["3"]).recall_at_10 == 10 / 26
    with pytest.raises(UserError, match="at least one query"):
        blind_ceiling(families, [])


def test_ceilings_are_read_from_a_written_corpus(written):
    out, _ = written
    ceilings = blind_ceilings(out / "scenes")
    assert set(ceilings) == {"validation", "test"}
    assert ceilings["test"].recall_at_1 == 0.125
    assert ceilings["test"].num_queries == 48
    tone, gender = blind_ceilings(out / "emoji"), blind_ceilings(out / "emoji", key="base")
    assert all(gender[part].recall_at_1 <= tone[part].recall_at_1 for part in HELD_OUT)


def test_units_of_all_training_folders_are_samples(written):
    out, _ = written
    for source in DEMO_SOURCES:
        assert {unit.rows for unit in list_units(out / source / "train")} == {"samples"}

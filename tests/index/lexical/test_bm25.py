"""BM25 over payload texts equals the formula, and an index after any changes one built anew."""

import math
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.generation import Generation
from rematch_ray.index.lexical import postings
from rematch_ray.index.lexical import settings as lexical_settings
from rematch_ray.index.lexical.bm25 import LexicalIndex, LexicalStatistics
from rematch_ray.index.lexical.postings import POSTINGS_FILES, Postings, write_postings
from rematch_ray.index.lexical.settings import LexicalSettings, choose_lexical
from rematch_ray.index.lexical.tokeniser import Tokeniser
from rematch_ray.index.payload import document_key
from rematch_ray.index.search import SearchIndex
from tests.index.made import unit, write_embeddings

WORDS = ["red", "blue", "circle", "bar", "left", "of", "a", "Straße", "東京", "タワー", "猫"]
POOL = 30


def embeddings_of(path: Path, payloads: Mapping[str, Mapping[str, Any]]) -> Path:
    count = len(payloads)
    vectors, fused = unit((count, 8, 16), 1), unit((count, 24), 2)
    return write_embeddings(
        path, vectors, fused, ids=list(payloads), payloads=list(payloads.values())
    )


def build(path: Path, texts: Mapping[str, str | None], **options: Any) -> LexicalIndex:
    payloads = {
        name: {"text": text, "odd": bool(n % 2)} for n, (name, text) in enumerate(texts.items())
    }
    build_index(embeddings_of(path / "embeddings", payloads), path / "index", **options)
    return open_lexical(path / "index")


def open_lexical(path: Path) -> LexicalIndex:
    return LexicalIndex(Generation(path))


def found_by(
    index: LexicalIndex, query: str, limit: int = 1000, **options: Any
) -> list[tuple[str, float]]:
    rows, scores = index.search(query, limit, **options)
    names = [name for name, _ in index._generation.documents(rows)]
    return list(zip(names, scores.tolist(), strict=True))


def naive(
    texts: Mapping[str, str | None], query: str, *, k1: float = 1.2, b: float = 0.75
) -> list[tuple[str, float]]:
    """The formula, document by document and term by term."""
    cut = Tokeniser().terms
    terms = {name: Counter(cut(text or "")) for name, text in texts.items()}
    lengths = {name: sum(found.values()) for name, found in terms.items()}
    documents = sum(length > 0 for length in lengths.values())
    average = sum(lengths.values()) / max(1, documents)
    found = {}
    for name in texts:
        score = 0.0
        for term in cut(query, is_query=True):
            df = sum(term in other for other in terms.values())
            tf = terms[name][term]
            idf = math.log(1 + (documents - df + 0.5) / (df + 0.5))
            if tf:
                score += idf * tf / (tf + k1 * (1 - b + b * lengths[name] / average))
        if score:
            found[name] = score
    return sorted(found.items(), key=lambda one: (-np.float32(one[1]), document_key(one[0])))


def assert_same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert dict(found) == pytest.approx(dict(expected), rel=1e-6)
    ranked = [score for _, score in found]
    assert ranked == sorted(ranked, reverse=True)


texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


@settings(max_examples=15, deadline=None)
@given(corpus=st.lists(texts, min_size=1, max_size=12), query=texts, data=st.data())
def test_scores_are_those_of_the_formula(
    corpus: Sequence[str], query: str, data: st.DataObject
) -> None:
    k1, b = data.draw(st.sampled_from([(1.2, 0.75), (1.5, 0.75), (0.0, 1.0), (2.0, 0.0)]))
    documents: dict[str, str | None] = {f"d{n}": text for n, text in enumerate(corpus)}
    with tempfile.TemporaryDirectory() as folder:
        chosen = LexicalSettings(fields=("text",), k1=k1, b=b)
        index = build(Path(folder), documents, lexical=chosen)
        assert_same(found_by(index, query), naive(documents, query, k1=k1, b=b))


def test_scores_of_any_text_are_those_of_the_formula(tmp_path: Path) -> None:
    documents = {
        "german": "Die Füße auf der Straße, größer als groß",
        "accents": "un café noir, two CAFES, déjà vu",
        "japanese": "東京タワーの猫と犬。東京の夜",
        "chinese": "一只猫在北京的街上",
        "korean": "고양이를 찾는 사람",
        "mixed": "Cat 猫 in 東京 🐱, 3月",
        "controls": "a\x00cat\x1bin\x07the\u2028hat\u200b",
        "numbers": "3.5 kg, 2026-11-21, C3PO",
        "huge": "cat " * 200_000 + "hat",
        "long word": "x" * 100_000,
        "blank": " \n",
        "empty": "",
        "none": None,
    }
    index = build(tmp_path, documents)
    asked = (
        "STRASSE|strasse füsse|café|Cafés|猫|東京|東京タワー|タワ|고양이|🐱|cat hat|3|cat cat dog"
    )
    for query in [*asked.split("|"), "北京 東京 cat", "x" * 70]:
        assert_same(found_by(index, query), naive(documents, query))
    assert {name for name, _ in found_by(index, "猫")} == {"japanese", "chinese", "mixed"}
    assert [name for name, _ in found_by(index, "strasse")] == ["german"]


@pytest.mark.parametrize("query", ["", "  ", "\x00", "?!", "unknown", "neither nor"])
def test_a_query_without_a_known_term_finds_nothing(query: str, tmp_path: Path) -> None:
    index = build(tmp_path, {"a": "red circle", "b": None})
    assert found_by(index, query) == []
    assert index.scores(query).tolist() == [0.0, 0.0]


def test_an_endless_query_is_answered(tmp_path: Path) -> None:
    index = build(tmp_path, {"a": "red circle", "b": "blue"})
    query = "red " * 100_000 + " ".join(f"w{n}" for n in range(100_000))
    assert [name for name, _ in found_by(index, query)] == ["a"]


def test_equal_scores_go_by_the_documents_keys_also_at_the_cut(tmp_path: Path) -> None:
    names = [f"d{n}" for n in range(40)]
    index = build(tmp_path, dict.fromkeys(names, "red circle"))
    expected = sorted(names, key=document_key)
    assert [name for name, _ in found_by(index, "red")] == expected
    assert [name for name, _ in found_by(index, "red", 7)] == expected[:7]


def test_a_filter_hides_documents_but_changes_no_score(tmp_path: Path) -> None:
    names = [f"d{n}" for n in range(20)]
    index = build(tmp_path, {name: f"red {n % 3}" for n, name in enumerate(names)})
    allowed = index._generation.select({"odd": True})
    scores = dict(found_by(index, "red 1"))
    found = found_by(index, "red 1", allowed=allowed)
    assert {name for name, _ in found} == {f"d{n}" for n in range(1, 20, 2)}
    assert all(score == scores[name] for name, score in found)


def random_text(draw: random.Random) -> str | None:
    if draw.random() < 0.1:
        return None
    return " ".join(draw.choices(WORDS, k=draw.randint(0, 9)))


def answers(index: LexicalIndex) -> Any:
    """All that can be seen of an index: statistics, matches and scores to the last bit."""
    queries = [*WORDS, "red circle left of a blue bar", "東京タワーの猫", "nothing of that"]
    return [
        (index.statistics(query), found_by(index, query), found_by(index, query, 3))
        for query in queries
    ]


@pytest.mark.parametrize("seed", range(3))
def test_after_any_changes_an_index_scores_as_one_built_anew(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    documents = {f"d{n}": random_text(draw) for n in range(draw.randint(1, 20))}
    build(tmp_path / "first", documents)
    path = tmp_path / "first" / "index"
    for step in range(8):
        kind = draw.choice(["add", "add", "delete", "merge"])
        if kind == "add":
            some = draw.sample(range(POOL), draw.randint(1, 12))
            new = {f"d{n}": random_text(draw) for n in some}
            payloads = {name: {"text": text} for name, text in new.items()}
            add_documents(path, embeddings_of(tmp_path / f"add-{step}", payloads))
            documents |= new
        elif kind == "delete":
            gone = [f"d{n}" for n in draw.sample(range(POOL), draw.randint(1, 12))]
            delete_documents(path, gone)
            documents = {name: text for name, text in documents.items() if name not in gone}
        else:
            merge_segments(path)
        index = open_lexical(path)
        assert_same(found_by(index, "red circle 猫"), naive(documents, "red circle 猫"))
        if documents:
            assert answers(index) == answers(build(tmp_path / f"anew-{step}", documents))
        SearchIndex.open(path).verify()


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_shards_that_know_the_sum_of_their_statistics_score_as_one_index(
    num_shards: int, tmp_path: Path
) -> None:
    draw = random.Random(num_shards)
    documents = {f"d{n}": random_text(draw) for n in range(40)}
    whole = build(tmp_path / "whole", documents)
    parts = [dict(list(documents.items())[n::num_shards]) for n in range(num_shards)]
    shards = [build(tmp_path / f"shard-{n}", part) for n, part in enumerate(parts)]
    for query in [*WORDS, "red circle left of a blue bar", "東京タワーの猫"]:
        statistics = LexicalStatistics.total([shard.statistics(query) for shard in shards])
        assert statistics == whole.statistics(query)
        found = [hit for shard in shards for hit in found_by(shard, query, statistics=statistics)]
        found.sort(key=lambda hit: (-hit[1], document_key(hit[0])))
        assert found == found_by(whole, query)


def test_an_index_whose_documents_are_gone_finds_nothing_and_takes_new_ones(
    tmp_path: Path,
) -> None:
    build(tmp_path, {"a": "red", "b": "red blue"})
    delete_documents(tmp_path / "index", ["a", "b"])
    empty = open_lexical(tmp_path / "index")
    assert empty.statistics("red") == LexicalStatistics(0, 0, {"red": 0})
    assert found_by(empty, "red") == []
    add_documents(tmp_path / "index", embeddings_of(tmp_path / "more", {"c": {"text": "red"}}))
    assert [name for name, _ in found_by(open_lexical(tmp_path / "index"), "red")] == ["c"]


def test_texts_of_several_fields_are_one_text(tmp_path: Path) -> None:
    payloads = {
        "a": {"title": "red", "inner": {"caption": "circle"}, "tags": ["left", "東"]},
        "b": {"title": "blue", "inner": {"caption": None}, "tags": ["京", "bar"]},
    }
    fields = ["title", "inner.caption", "tags"]
    build_index(embeddings_of(tmp_path / "e", payloads), tmp_path / "index", lexical=fields)
    index = open_lexical(tmp_path / "index")
    assert index.statistics("circle bar 東").frequencies == {"bar": 1, "circle": 1, "東": 1}
    assert index.statistics("東京").frequencies == {"東京": 0}  # no pair across texts
    assert Generation(tmp_path / "index").manifest.lexical == {
        "fields": fields, "stemmer": None, "k1": 1.2, "b": 0.75, "tokeniser": "words-1",
    }  # fmt: skip


def test_text_is_indexed_where_there_is_such_a_field_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    some = embeddings_of(tmp_path / "some", {"a": {"text": "red"}})
    none = embeddings_of(tmp_path / "none", {"a": {"name": "red", "text": 3}})
    build_index(some, tmp_path / "index")
    assert SearchIndex.open(tmp_path / "index").info()["lexical"]["fields"] == ["text"]
    build_index(some, tmp_path / "index", lexical=[])
    assert SearchIndex.open(tmp_path / "index").info()["lexical"] is None
    build_index(none, tmp_path / "index")
    assert SearchIndex.open(tmp_path / "index").info()["lexical"] is None
    with pytest.raises(UserError, match="has no lexical index: build it with --lexical FIELD"):
        open_lexical(tmp_path / "index")


FIELDS = {"text": "string", "tags": "list<item: string>", "n": "int64", "when": "timestamp[us]"}
REFUSED = {
    "no payload field 'txt' to index; did you mean text": ["txt"],
    "payload field 'n' is int64, no text; allowed: tags, text": ["text", "n"],
    "payload field 'when' is timestamp": ["when"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_field_without_text_is_refused(message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_lexical(REFUSED[message], FIELDS)


def test_texts_cut_by_another_tokeniser_are_not_searched_added_to_or_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, {"a": "red"})
    more = embeddings_of(tmp_path / "more", {"b": {"text": "red"}})
    add_documents(tmp_path / "index", more)
    monkeypatch.setattr(lexical_settings, "tokeniser_name", lambda stemmer: "words-2")
    for refused in (
        lambda: open_lexical(tmp_path / "index"),
        lambda: add_documents(tmp_path / "index", more),
        lambda: merge_segments(tmp_path / "index"),
    ):
        with pytest.raises(UserError, match="cut into terms by 'words-1', this software has"):
            refused()
    SearchIndex.open(tmp_path / "index")  # and vectors are searched as ever


def test_a_stemmer_is_kept_with_the_index(tmp_path: Path) -> None:
    pytest.importorskip("Stemmer")
    chosen = LexicalSettings(fields=("text",), stemmer="german")
    build(tmp_path, {"a": "zwei Häuser"}, lexical=chosen)
    more = embeddings_of(tmp_path / "more", {"b": {"text": "ein Haus"}})
    add_documents(tmp_path / "index", more)
    merge_segments(tmp_path / "index")
    assert {name for name, _ in found_by(open_lexical(tmp_path / "index"), "Hauses")} == {"a", "b"}


def test_the_files_open_with_plain_libraries(tmp_path: Path) -> None:
    build(tmp_path, {"a": "red red bar", "b": None, "c": "bar"})
    [segment] = (tmp_path / "index" / "segments").iterdir()
    with sqlite3.connect(segment / "lexical.sqlite") as database:
        found = database.execute("SELECT * FROM terms ORDER BY start").fetchall()
    assert found == [("bar", 0, 2), ("red", 2, 3)]
    assert np.load(segment / "lexical_rows.npy").tolist() == [0, 2, 0]
    assert np.load(segment / "lexical_counts.npy").tolist() == [1, 1, 2]
    assert np.load(segment / "lexical_lengths.npy").tolist() == [3, 0, 1]


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_of_any_size_give_the_same_files(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(3)
    corpus = [random_text(draw) or "" for _ in range(200)]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    counted = write_postings(tmp_path / "one", corpus, Tokeniser())
    monkeypatch.setattr(postings, "_BLOCK_TERMS", block)
    monkeypatch.setattr(postings, "_BLOCK_POSTINGS", block)
    assert write_postings(tmp_path / "two", iter(corpus), Tokeniser()) == counted
    for name in POSTINGS_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted(POSTINGS_FILES)
    stored = Postings(tmp_path / "two")
    for term, place in stored.find(Tokeniser().terms(" ".join(WORDS))).items():
        held = {row: Tokeniser().terms(text).count(term) for row, text in enumerate(corpus)}
        rows, counts = stored.rows[place].tolist(), stored.counts[place].tolist()
        assert dict(zip(rows, counts, strict=True)) == {r: n for r, n in held.items() if n}
        assert rows == sorted(rows)


def test_damaged_postings_are_named(tmp_path: Path) -> None:
    build(tmp_path, {"a": "red", "b": "blue"})
    [segment] = (tmp_path / "index" / "segments").iterdir()
    file = segment / "lexical_counts.npy"
    file.write_bytes(bytes(file.stat().st_size))
    index = open_lexical(tmp_path / "index")
    with pytest.raises(UserError, match=r"lexical_counts\.npy cannot be mapped"):
        index.search("red", 10)
    with pytest.raises(UserError, match=r"lexical_counts\.npy does not match its checksum"):
        SearchIndex.open(tmp_path / "index").verify()
    file.unlink()
    with pytest.raises(UserError, match=r"lexical_counts\.npy is missing"):
        SearchIndex.open(tmp_path / "index")

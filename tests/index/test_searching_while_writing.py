"""Searches while an index changes, and behind every kind of list: what a brute-force model says."""

import functools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.hits import SearchResult
from rematch_ray.index.search import SearchIndex
from tests.index.made import kinds, queries, unit
from tests.index.test_changes import embeddings_of

Model = dict[str, int]
QUERIES = queries(3)
TOP_K = 10
READERS = 2
# exact scores round a query to a grid and the sum to float32
CLOSE = 1e-5
BUDGETS = ("1x1", "4x8", "fused")


@functools.cache
def score(version: int, row: int, budget: str) -> float:
    """Brute force in double precision, from what was stored: float16."""
    if budget == "fused":
        fused = unit((24,), 1000 + version).astype(np.float16).astype(np.float64)
        return float(QUERIES.fused[row] @ fused)
    r_q, r_d = map(int, budget.split("x"))
    vectors = unit((8, 16), version).astype(np.float16).astype(np.float64)
    return float((QUERIES.vectors[row, :r_q] @ vectors[:r_d].T).max(axis=1).mean())


def check(
    result: SearchResult, documents: Model, row: int, *, complete: bool, odd: bool = False
) -> None:
    """No wrong, missing or repeated id; the best of all documents where all were scored."""
    allowed = {name: v for name, v in documents.items() if not odd or v % 2}
    scores = {name: score(v, row, result.budget) for name, v in allowed.items()}
    ids = [hit.id for hit in result.hits]
    assert len(set(ids)) == len(ids) == min(TOP_K, len(allowed))
    assert {hit.id: hit.payload["version"] for hit in result.hits} == {n: allowed[n] for n in ids}
    for hit in result.hits:
        assert hit.score == pytest.approx(scores[hit.id], abs=CLOSE)
    best = sorted(scores.values(), reverse=True)[:TOP_K]
    found = [hit.score for hit in result.hits]
    assert found == sorted(found, reverse=True)
    if complete:
        assert result.exact
        assert found == pytest.approx(best, abs=CLOSE)


@dataclass
class Changing:
    """An index that is changed at random, and the documents of each of its generations."""

    folder: Path
    draw: random.Random
    pool: int
    documents: Model = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    versions: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))
    steps: int = 0

    @property
    def path(self) -> Path:
        return self.folder / "index"

    def build(self, count: int, **options: Any) -> None:
        self.documents = {f"d{n}": next(self.versions) for n in range(count)}
        info = build_index(
            embeddings_of(self.folder / "first", self.documents), self.path, **options
        )
        self.models[info.generation] = dict(self.documents)

    def change(self, most: int) -> str:
        """Adds, replaces, deletes or merges; gives the generation that there is then."""
        self.steps += 1
        kind = self.draw.choice(["add", "add", "delete", "delete", "merge"])
        some = [f"d{n}" for n in self.draw.sample(range(self.pool), self.draw.randint(1, most))]
        if kind == "add":
            new = {name: next(self.versions) for name in some}
            self.documents |= new
            embeddings = embeddings_of(self.folder / f"add-{self.steps}", new)
            info = add_documents(self.path, embeddings).info
        elif kind == "delete":
            self.documents = {n: v for n, v in self.documents.items() if n not in some}
            info = delete_documents(self.path, some).info
        else:
            info = merge_segments(self.path).info
        self.models[info.generation] = dict(self.documents)
        return info.generation


@dataclass
class Seen:
    """Which generation each reader has answered from last."""

    told: threading.Condition = field(default_factory=threading.Condition)
    last: dict[int, str] = field(default_factory=dict)
    is_over: bool = False

    def tell(self, reader: int, generation: str) -> None:
        with self.told:
            self.last[reader] = generation
            self.told.notify_all()

    def wait_for(self, generation: str) -> None:
        """Until every reader has answered from a generation: files of two are kept."""
        with self.told:
            everybody = dict.fromkeys(range(READERS), generation)
            assert self.told.wait_for(lambda: self.is_over or self.last == everybody, timeout=120)


WAYS: tuple[dict[str, Any], ...] = (
    {"candidates": "all"},
    {"candidates": 12},
    {"candidates": "all", "filter": {"odd": True}},
)


def follow(path: Path, reader: int, seen: Seen) -> list[tuple[dict[str, Any], list[SearchResult]]]:
    """Searches the newest generation, over and over."""
    index, answers = SearchIndex.open(path), []
    try:
        for way, budget in zip(cycle(WAYS), cycle([*BUDGETS, BUDGETS[reader]])):
            if seen.is_over:
                break
            index = index.latest()
            answers.append((way, index.search(QUERIES, budget=budget, top_k=TOP_K, **way)))
            seen.tell(reader, index.generation)
    finally:
        with seen.told:
            seen.is_over = True
            seen.told.notify_all()
    return answers


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2))
def test_every_answer_is_that_of_the_generation_it_names_while_a_writer_works(
    tmp_path: Path, seed: int
) -> None:
    changing = Changing(tmp_path, random.Random(seed), pool=60)
    changing.build(40)
    seen = Seen()
    with ThreadPoolExecutor(READERS) as threads:
        readers = [threads.submit(follow, changing.path, n, seen) for n in range(READERS)]
        try:
            for _ in range(8):
                seen.wait_for(changing.change(most=20))
        finally:
            seen.is_over = True
        answers = [answer for reader in readers for answer in reader.result()]
    assert {result.generation for _, results in answers for result in results} == set(
        changing.models
    )
    for way, results in answers:
        for row, result in enumerate(results):
            check(
                result,
                changing.models[result.generation],
                row,
                complete=way["candidates"] == "all",
                odd="filter" in way,
            )


@pytest.mark.parametrize("kind", ["scan4", "scan1", "ivf"])
def test_after_any_changes_no_list_gives_a_wrong_a_missing_or_a_repeated_id(
    tmp_path: Path, kind: str
) -> None:
    changing = Changing(tmp_path, random.Random(kind), pool=500)
    changing.build(420, coarse="all", coarse_kind=kind)
    for _ in range(8):
        changing.change(most=30)
        index = SearchIndex.open(changing.path)
        assert sorted(index.ids()) == sorted(changing.documents)
        assert kind in {made for segment in kinds(index) for made in segment.values()}
        for budget in BUDGETS:
            found = index.search(QUERIES, budget=budget, candidates="all", top_k=TOP_K)
            for row, result in enumerate(found):
                check(result, changing.documents, row, complete=True)
            for coarse in index.coarse_choices:
                # so few that a list of one-bit codes proposes a part of the documents
                asked = {"candidates": TOP_K, "coarse": coarse, "top_k": TOP_K}
                for way in ({}, {"filter": {"odd": True}}):
                    found = index.search(QUERIES, budget=budget, **asked, **way)
                    for row, result in enumerate(found):
                        check(result, changing.documents, row, complete=False, odd=bool(way))

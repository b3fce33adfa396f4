"""Mining over an open index: search, the positive's own score, and the choice, row by row.

Composes search, documents and `select_negatives`; reads an index and writes nothing. Knows nothing
of training files or clusters. Middle floor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.exact import Float32
from rematch_ray.index.generation import Generation
from rematch_ray.index.hits import SearchResult
from rematch_ray.index.mining.documents import Documents
from rematch_ray.index.mining.references import Int64
from rematch_ray.index.mining.rows import linked, references_of
from rematch_ray.index.mining.selection import (
    Candidates,
    MiningRules,
    RowFacts,
    Selection,
    select_negatives,
)
from rematch_ray.index.planner import Candidates as CandidateCount
from rematch_ray.index.queries import Queries, QueryVectors
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.stages import score_documents


@dataclass(frozen=True)
class MinerSettings:
    """How candidates are searched.

    Args:
        rules: which of them are taken.
        budget: rung at which candidates and positives are scored; None = the top rung.
        candidates: documents that are scored: `auto`, `all` or a number.
        own_source: only documents of the row's own source are candidates.
    """

    rules: MiningRules
    budget: str | None = None
    candidates: CandidateCount = "auto"
    own_source: bool = False


@dataclass(frozen=True)
class Gallery:
    """An open index and what is known of its rows.

    Args:
        generation: the index.
        documents: one line per row of it.
    """

    generation: Generation
    documents: Documents

    @classmethod
    def of(cls, generation: Generation, lines: NDArray[Any]) -> Gallery:
        """An open index; `lines` are its rows, of `DOCUMENTS`, those of deleted rows ignored.

        Raises:
            UserError: `lines` are those of another index.
        """
        if len(lines) != generation.rows:
            raise UserError(
                f"{generation.path} holds {generation.rows} rows at {generation.name}, what is "
                f"known of it are {len(lines)}: the index has changed, run the same command again"
            )
        return cls(generation, Documents(lines, generation.live))

    def check(self, query: QueryVectors) -> Queries:
        """Query vectors as scoring reads them."""
        manifest, index = self.generation.manifest, SearchIndex(self.generation)
        return Queries.check(
            query,
            num_vectors=index.ladder.num_query_vectors,
            dim=manifest.dim,
            fused_dim=manifest.fused_dim,
        )

    def scores(self, query: QueryVectors, rows: Int64, budget: str | None) -> Float32:
        """(B, len(rows)) scores at a budget, as a search gives them."""
        index = SearchIndex(self.generation)
        rung = index.ladder.resolve(budget, has_fused=index.has_fused)
        found = score_documents(self.generation, self.check(query), rows, [rung])[str(rung)]
        return np.clip(found, -1.0, 1.0)

    def keys(self, rows: Int64) -> Float32:
        """(n, dim) fused vectors of some rows; the first of the multi-vectors without them."""
        if self.generation.manifest.fused_dim is not None:
            return self.generation.read_fused(rows).astype(np.float32)
        return self.generation.read_plane(0, rows)[:, 0].astype(np.float32)


@dataclass(frozen=True)
class Mined:
    """What was found for one row.

    Args:
        rows: documents of the gallery, in order of rank.
        scores: of each, at the budget of the search.
        selection: kinds and what was dropped; None for a row that could not be searched.
    """

    rows: Int64
    scores: Float32
    selection: Selection | None

    @classmethod
    def nothing(cls) -> Mined:
        """A row whose query or positives cannot be read."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float32), None)


@dataclass(frozen=True)
class _Positive:
    """Rows of a row's own positives in the gallery, or in that of positives outside the corpus."""

    in_gallery: Int64
    outside: Int64

    def __len__(self) -> int:
        return len(self.in_gallery) + len(self.outside)


class Miner:
    """Mines blocks of rows; safe to use for many blocks.

    Args:
        gallery: where candidates come from.
        settings: what is searched and taken.
        links: what is right for what is asked, see `links_of`.
        outside: positives that the gallery does not hold, or None.
    """

    def __init__(
        self,
        gallery: Gallery,
        settings: MinerSettings,
        links: NDArray[Any],
        outside: Gallery | None = None,
    ) -> None:
        self._gallery = gallery
        self._outside = outside
        self._settings = settings
        self._links = links
        self._index = SearchIndex(gallery.generation)

    def mine(self, scan: pa.Table, query: QueryVectors, numbers: Int64) -> list[Mined]:
        """Mines some rows.

        Args:
            scan: B rows of `SCAN_SCHEMA`, each with a readable query.
            query: their vectors.
            numbers: (B,) of the rows in all the data; with the seed they fix the draws.
        """
        lines = scan.to_pylist()
        positives = [self._own_positives(line) for line in lines]
        facts = [linked(self._links, (line["asked_id"], line["asked_content"])) for line in lines]
        found = self._search(lines, query, self._depth(facts))
        keys = self._candidate_keys(found)
        mined = []
        for row, line in enumerate(lines):
            if not len(positives[row]):
                mined.append(Mined.nothing())
                continue
            rows, scores = found[row]
            reference_score, reference_keys = self._positive(_one(query, row), positives[row])
            candidates = Candidates(
                references=self._gallery.documents.references(rows),
                scores=scores,
                modality=self._gallery.documents.modality(rows),
                similarity=_highest(keys[row], reference_keys),
            )
            is_own = [not entry["is_positive"] for entry in line["documents"]]
            own = [entry for entry, keep in zip(line["documents"], is_own, strict=True) if keep]
            said = RowFacts(
                positives=facts[row],
                negatives=references_of(own),
                query_content=line["query_content"],
                positive_score=reference_score,
                target_modality=line["target_modality"],
            )
            rules = self._settings.rules
            draw = np.random.default_rng((rules.seed, int(numbers[row])))
            selection = select_negatives(candidates, said, rules, draw)
            chosen = np.array(selection.chosen, np.int64)
            mined.append(Mined(rows[chosen], scores[chosen], selection))
        return mined

    def _own_positives(self, line: Mapping[str, Any]) -> _Positive:
        """The row's own positives, one row for each that can be found."""
        named = references_of(entry for entry in line["documents"] if entry["is_positive"])
        in_gallery = self._gallery.documents.find(named)
        missing = np.array([not len(rows) for rows in in_gallery], bool)
        outside: list[Int64] = []
        if self._outside is not None:
            outside = self._outside.documents.find(named[np.flatnonzero(missing)])
        return _Positive(_firsts(in_gallery), _firsts(outside))

    def _depth(self, facts: Sequence[Any]) -> int:
        """Hits to ask for: the last rank, and as many documents as are right for one row."""
        copies = [sum(map(len, self._gallery.documents.find(right))) for right in facts]
        return self._settings.rules.ranks[1] + max(copies, default=0)

    def _search(
        self, lines: Sequence[Mapping[str, Any]], query: QueryVectors, depth: int
    ) -> list[tuple[Int64, Float32]]:
        """Rows and scores of each row's candidates, best first."""
        groups: dict[str | None, list[int]] = defaultdict(list)
        for row, line in enumerate(lines):
            groups[line["source"] if self._settings.own_source else None].append(row)
        results: dict[int, SearchResult] = {}
        for source, members in groups.items():
            hits = self._index.search(
                _some(query, members),
                budget=self._settings.budget,
                candidates=self._candidates(depth),
                top_k=depth,
                filter=None if source is None else {"source": source},
            )
            results.update(zip(members, hits, strict=True))
        names = {hit.id for result in results.values() for hit in result.hits}
        rows = self._gallery.generation.rows_of(sorted(names))
        return [
            (
                np.array([rows[hit.id] for hit in results[row].hits], np.int64),
                np.array([hit.score for hit in results[row].hits], np.float32),
            )
            for row in range(len(lines))
        ]

    def _candidates(self, depth: int) -> CandidateCount:
        wanted = self._settings.candidates
        return wanted if isinstance(wanted, str) else max(wanted, depth)

    def _candidate_keys(self, found: Sequence[tuple[Int64, Float32]]) -> list[Float32]:
        """Keys of each row's candidates; a document that many rows meet is read once."""
        unique, place = np.unique(np.concatenate([rows for rows, _ in found]), return_inverse=True)
        if not len(unique):
            return [np.empty((0, 0), np.float32) for _ in found]
        keys = self._gallery.keys(unique)
        return np.split(keys[place], np.cumsum([len(rows) for rows, _ in found])[:-1])

    def _positive(self, query: QueryVectors, positive: _Positive) -> tuple[float, Float32]:
        """Score of the row's lowest positive, and the keys of all."""
        scores, keys = [], []
        for gallery, rows in (
            (self._gallery, positive.in_gallery),
            (self._outside, positive.outside),
        ):
            if gallery is not None and len(rows):
                scores.append(gallery.scores(query, rows, self._settings.budget)[0])
                keys.append(gallery.keys(rows))
        return float(np.concatenate(scores).min()), np.concatenate(keys)


@dataclass(frozen=True)
class _Vectors:
    vectors: Any
    fused: Any


def _some(query: QueryVectors, rows: Sequence[int]) -> _Vectors:
    return _Vectors(query.vectors[rows], None if query.fused is None else query.fused[rows])


def _one(query: QueryVectors, row: int) -> _Vectors:
    return _some(query, [row])


def _highest(keys: Float32, references: Float32) -> Float32:
    """(n,) highest cosine of each key with any reference."""
    if not len(keys):
        return np.empty(0, np.float32)
    highest: Float32 = (keys @ references.T).max(axis=1)
    return highest


def _firsts(rows: Sequence[Int64]) -> Int64:
    return np.array([found[0] for found in rows if len(found)], np.int64)

"""What each coarse choice keeps of the best documents, and what it costs: keys and kinds of lists.

Documents and queries are generated nested vectors (shapes/nested_vectors.py). The truth is the ten
best of each query by exhaustive MaxSim at (16,64); recall@C is the share of it among C candidates.
Every list is built as an index builds it and searched one query at a time; times are CPU times of a
query, medians. Choices of several keys merge their lists by rank and cost their sum. Nothing of the
stages behind the candidates is timed here.

    python benchmarks/coarse.py [--quick] [--documents 100000] [--threads 1] [--agreement 0.5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from shapes.nested_vectors import NestedVectors

from rematch_ray.evaluation.report import plain_table
from rematch_ray.index.coarse.bits import BitsList, write_bits
from rematch_ray.index.coarse.building import build_coarse
from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.keys import CHOICE_KEYS, COARSE_KEYS, QUERY_VECTORS
from rematch_ray.index.coarse.kinds import COARSE_KINDS, has_lists
from rematch_ray.index.coarse.lists import CoarseList
from rematch_ray.index.coarse.packed import PackedList, write_packed
from rematch_ray.index.coarse.scan import Coarse, ScanList
from rematch_ray.index.coarse.sizes import PACKED, SCAN, SCANS
from rematch_ray.index.planes import Listed, Plane, PlaneWriter
from rematch_ray.index.stages import interleave

TOP = 10
CANDIDATES = (100, 1000, 4000)
PROBES = (16, 64, 256)
TIMES_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Corpus:
    """What lists are made of, what is asked, and the truth (queries, TOP)."""

    entries: dict[str, Entries]
    queries: dict[str, np.ndarray]
    truth: np.ndarray


@dataclass(frozen=True)
class Measured:
    """One list at one setting: rows and milliseconds by candidates and query."""

    rows: dict[int, list[np.ndarray]]
    ms: dict[int, list[float]]
    build_s: float
    bytes_per_document: float


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.documents, options.queries = 10_000, 20
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    corpus = make_corpus(options)
    lists: dict[tuple[str, int], dict[str, Measured]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            for key in options.keys:
                print(f"{kind} {key} ...", file=sys.stderr, flush=True)
                for probes, measured in measure(corpus, kind, key, Path(folder)).items():
                    lists.setdefault((kind, probes), {})[key] = measured
    table = [
        row(corpus, kind, probes, choice, found)
        for (kind, probes), found in lists.items()
        for choice in CHOICE_KEYS
        if set(CHOICE_KEYS[choice]) <= set(found)
    ]
    print(plain_table([_HEADER, *(_printed(entry) for entry in table)]))
    for limit in CANDIDATES[:2]:
        print(f"\nbest recall@{limit} within a time\n{plain_table(at_equal_time(table, limit))}")
    print(json.dumps(summary(options, table)))
    return 0


def make_corpus(options: argparse.Namespace) -> Corpus:
    """Documents' first vectors and fused ones, queries, and the exhaustive truth."""
    made = NestedVectors(
        options.documents, agreement=options.agreement, blur=options.blur, seed=options.seed
    )
    vectors, fused_queries = made.queries(options.queries)
    flat = torch.from_numpy(vectors.reshape(-1, made.dim))
    prefix = np.empty((options.documents, 4, made.dim), np.float16)
    fused = np.empty((options.documents, made.dim), np.float16)
    scores = np.empty((options.queries, options.documents), np.float32)
    for block in made.blocks():
        rows = slice(block.start, block.start + len(block.vectors))
        prefix[rows], fused[rows] = block.vectors[:, :4], block.fused
        documents = torch.from_numpy(block.vectors.astype(np.float32)).reshape(-1, made.dim)
        cells = (flat @ documents.T).reshape(len(flat), -1, block.vectors.shape[1]).amax(dim=2)
        scores[:, rows] = cells.reshape(options.queries, -1, cells.shape[1]).mean(dim=1).numpy()
    return Corpus(
        entries={
            "fused": Entries.of(fused),
            "first": Entries.of(prefix[:, :1]),
            "prefix": Entries.of(prefix),
        },
        queries={
            "fused": fused_queries[:, None],
            **{key: vectors[:, :count] for key, count in QUERY_VECTORS.items()},
        },
        truth=np.argsort(-scores, axis=1)[:, :TOP],
    )


def measure(corpus: Corpus, kind: str, key: str, folder: Path) -> dict[int, Measured]:
    """Builds one list and searches it at every number of candidates and probes."""
    entries = corpus.entries[key]
    began = time.process_time()
    coarse, size = open_list(entries, kind, folder)
    build_s = time.process_time() - began
    measured = {}
    for probes in PROBES if has_lists(kind) else (0,):
        rows: dict[int, list[np.ndarray]] = {}
        ms: dict[int, list[float]] = {}
        for limit in CANDIDATES:
            coarse.search(corpus.queries[key][0], limit, nprobe=probes or None)
            rows[limit], ms[limit] = [], []
            for query in corpus.queries[key]:
                began = time.process_time()
                found, scores = coarse.search(query, limit, nprobe=probes or None)
                ms[limit].append((time.process_time() - began) * 1000)
                # a scan's documents come in no order
                rows[limit].append(found[np.argsort(-scores, kind="stable")[:limit]])
        measured[probes] = Measured(rows, ms, build_s, size)
    return measured


def open_list(entries: Entries, kind: str, folder: Path) -> tuple[Coarse, float]:
    """A list as an index builds and opens it, and its bytes a document beside the planes."""
    if kind not in SCANS:
        description = build_coarse(folder / "list", entries, kind=kind)
        return CoarseList(folder, description), _bytes_each(folder / "list", entries)
    shape = (entries.rows, entries.width, entries.dim)
    with ExitStack() as closing:
        writer = PlaneWriter(folder, "listed", shape, originals=False, closing=closing)
        vectors = entries.of_documents(slice(None)).reshape(shape)
        writer.append(vectors.astype(np.float16))
        writer.finish()
    listed = Listed(Plane(folder, "listed", shape, False), entries.width)
    # of several vectors a document an index keeps no file
    if kind == SCAN or entries.width > 1:
        return ScanList([listed]), 0.0
    write, opened = (write_packed, PackedList) if kind == PACKED else (write_bits, BitsList)
    description = write(folder, "key", entries)
    size = _bytes_each(folder / description["file"], entries)
    return opened(folder, description, listed), size


def _bytes_each(file: Path, entries: Entries) -> float:
    return file.stat().st_size / entries.rows


def row(
    corpus: Corpus, kind: str, probes: int, choice: str, found: dict[str, Measured]
) -> dict[str, Any]:
    """Recall, time, size and build of one choice over lists of one kind."""
    keys = CHOICE_KEYS[choice]
    recall, ms = {}, {}
    for limit in CANDIDATES:
        kept = [
            interleave([found[key].rows[limit][query] for key in keys], limit)
            for query in range(len(corpus.truth))
        ]
        hits = [len(np.intersect1d(best, some)) for best, some in zip(corpus.truth, kept)]
        recall[limit] = sum(hits) / corpus.truth.size
        ms[limit] = sum(statistics.median(found[key].ms[limit]) for key in keys)
    return {
        "kind": kind,
        "probes": probes,
        "choice": choice,
        "recall": recall,
        "ms": ms,
        "build_s": sum(found[key].build_s for key in keys),
        "bytes_per_document": sum(found[key].bytes_per_document for key in keys),
    }


_HEADER = [
    "kind",
    "probes",
    "choice",
    *(f"recall@{limit}" for limit in CANDIDATES),
    *(f"ms@{limit}" for limit in CANDIDATES),
    "build s",
    "B/doc",
]


def _printed(entry: dict[str, Any]) -> list[str]:
    return [
        entry["kind"],
        str(entry["probes"] or "-"),
        entry["choice"],
        *(f"{entry['recall'][limit]:.3f}" for limit in CANDIDATES),
        *(f"{entry['ms'][limit]:.2f}" for limit in CANDIDATES),
        f"{entry['build_s']:.1f}",
        f"{entry['bytes_per_document']:.0f}",
    ]


def at_equal_time(table: list[dict[str, Any]], limit: int) -> list[list[str]]:
    """For each choice, the best recall of any kind and probes within each time."""
    rows = [["choice", *(f"{ms} ms" for ms in TIMES_MS)]]
    for choice in CHOICE_KEYS:
        cells = []
        for allowed in TIMES_MS:
            within = [e for e in table if e["choice"] == choice and e["ms"][limit] <= allowed]
            best = max(within, key=lambda e: e["recall"][limit], default=None)
            probes = f"/{best['probes']}" if best and best["probes"] else ""
            cells.append(f"{best['recall'][limit]:.3f} {best['kind']}{probes}" if best else "-")
        rows.append([choice, *cells])
    return rows


def summary(options: argparse.Namespace, table: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line: recall of every choice when all are scanned, and what was run."""
    exact = {
        f"recall_{entry['choice']}_{limit}": round(entry["recall"][limit], 4)
        for entry in table
        if entry["kind"] == SCAN
        for limit in CANDIDATES
    }
    return {
        "benchmark": "coarse",
        **exact,
        "documents": options.documents,
        "queries": options.queries,
        "agreement": options.agreement,
        "blur": options.blur,
        "threads": options.threads,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, faiss {faiss.__version__}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 documents, 20 queries")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--agreement", type=float, default=0.5)
    parser.add_argument("--blur", type=float, default=1.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    kinds = [kind for kind in COARSE_KINDS if kind != "auto"]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--keys", nargs="+", default=list(COARSE_KEYS), choices=COARSE_KEYS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

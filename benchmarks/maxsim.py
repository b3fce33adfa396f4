"""What 8-bit MaxSim costs per document: our kernel beside a plain loop, libraries and matrices.

(a) One query of 16 vectors over all documents of 64, d = 128, every arm in turn in one process
(A B C ..., A B C ...; medians), once on documents that stay in the cache and once on more than any
cache holds. Ours reads the five planes of an index, carrying maxima; the plain VNNI loop
(`peers/plain_maxsim.c`, four or eight vectors at a time; the faster one counts) reads one block
with the same scales. Scores are compared first.
(b) Ours at every budget, over all documents and over random candidates.
(c) The first vectors alone, best 100, beside FAISS's exhaustive scans.
(d) One scale per document instead of one per vector: error and recall@10 against float scores.

Times are CPU times with one thread, wall times with more.

    python benchmarks/maxsim.py [--quick] [--threads 1]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

os.environ.update(  # before anything starts its threads; torch's and ours are arguments
    {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "RAYON")}
)

import numpy as np
import torch
from numpy.typing import NDArray
from peers import maxsim_loops
from peers.faiss_scan import faiss_scans
from peers.maxsim_loops import PLANES, Corpus, Scores, make_corpus

from rematch_ray.evaluation.report import plain_table
from rematch_ray.index.exact import order_best
from rematch_ray.index.maxsim_int8 import (
    available_paths,
    carry_maxima,
    mean_of_maxima,
    new_maxima,
    path_in_use,
)
from rematch_ray.index.quantisation import quantise, to_offset

DIM = 128
CACHED, QUICK, FULL = 512, 8_192, 25_600  # documents of 8 KiB
CANDIDATES = 4_000
FIRST_VECTORS, BEST = 100_000, 100
BUDGETS = [(1, 1), (2, 4), (4, 8), (8, 16), (16, 64)]
OURS, SCAN = "ours, 5 planes", "ours"
PLAIN = ("plain VNNI loop, 4 at once", "plain VNNI loop, 8 at once")
PEERS: dict[str, Callable[[Corpus], Scores]] = {
    PLAIN[0]: maxsim_loops.plain_vnni,
    f"{PLAIN[0]}, a scale per document": maxsim_loops.plain_vnni_scale_per_document,
    PLAIN[1]: functools.partial(maxsim_loops.plain_vnni, at_once=8),
    f"{PLAIN[1]}, a scale per document": functools.partial(
        maxsim_loops.plain_vnni_scale_per_document, at_once=8
    ),
    "torch int8 matrices": maxsim_loops.torch_int8,
    "torch float32 matrices": maxsim_loops.torch_float32,
    "numpy float32 matrices": maxsim_loops.numpy_float32,
    "maxsim-cpu": maxsim_loops.maxsim_cpu,
}
_KEYS = {
    "over_maxsim_cpu": "maxsim-cpu",
    "over_numpy": "numpy float32 matrices",
    "over_torch_int8": "torch int8 matrices",
    "over_torch_float32": "torch float32 matrices",
}
Arms = dict[str, Callable[[], Scores]]


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; see the module's text."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    rounds = 5 if options.quick else options.rounds
    cached = make_corpus(_unit((16, DIM), 1), _unit((CACHED, 64, DIM), 2))
    large = make_corpus(cached.query, _unit((QUICK if options.quick else FULL, 64, DIM), 3))
    taken = {
        "cache": _in_turn(_arms(cached, options.threads), rounds, CACHED, options.threads),
        "memory": _in_turn(
            _arms(large, options.threads), rounds, len(large.codes), options.threads
        ),
    }
    print(f"(16,64), d = {DIM}, us per document, {options.threads} thread(s)\n")
    print(plain_table(_arm_rows(taken)))
    print("\nours, ns per document\n")
    print(plain_table(_budget_rows(cached, large, rounds, options.threads)))
    scans = _first_vectors(rounds, options.threads)
    print(f"\n(1,1), {FIRST_VECTORS:,} documents, best {BEST}, ms per query\n")
    print(plain_table([[name, f"{statistics.median(s) * 1e3:.3f}"] for name, s in scans.items()]))
    quality = _quality()
    print("\n8-bit scores against float scores at (16,64), 2,000 documents, 50 queries\n")
    print(plain_table(quality))
    memory = taken["memory"]
    ratios = {
        key: round(_ratio(memory[OURS], memory[arm]), 3)
        for key, arm in _KEYS.items()
        if arm in memory
    }
    result = {
        "benchmark": "maxsim",
        "over_vnni_loop": _over_plain(memory),
        **ratios,
        "over_vnni_loop_in_cache": _over_plain(taken["cache"]),
        "over_faiss_flat_1x1": round(_ratio(scans[SCAN], scans["FAISS Flat"]), 3),
        "over_faiss_sq8_1x1": round(_ratio(scans[SCAN], scans["FAISS SQ8"]), 3),
        "us_per_document": round(statistics.median(memory[OURS]) * 1e6, 3),
        "path": path_in_use(),
        "documents": [CACHED, len(large.codes)],
        "rounds": rounds,
        "threads": options.threads,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}",
    }
    print(json.dumps(result))
    return 0


def score_all(corpus: Corpus, threads: int, path: str | None = None) -> Scores:
    """Ours: all documents at (16,64), plane by plane, as an exhaustive search reads them."""
    best = new_maxima(len(corpus.codes), len(corpus.query))
    for codes, scales in corpus.planes:
        carry_maxima(best, corpus.query_codes, codes, scales, threads=threads, path=path)
    return mean_of_maxima(best, corpus.query_scales, len(corpus.query))


def _score_at_once(corpus: Corpus, threads: int) -> Scores:
    best = new_maxima(len(corpus.codes), len(corpus.query))
    carry_maxima(best, corpus.query_codes, corpus.codes, corpus.scales, threads=threads)
    return mean_of_maxima(best, corpus.query_scales, len(corpus.query))


def _arms(corpus: Corpus, threads: int) -> Arms:
    """Every way to score the corpus; those of the same numbers are checked against each other."""
    arms: Arms = {
        OURS: functools.partial(score_all, corpus, threads),
        "ours, one plane": functools.partial(_score_at_once, corpus, threads),
    }
    for path in available_paths()[1:]:
        arms[f"ours, path {path}"] = functools.partial(score_all, corpus, threads, path)
    for name, peer in PEERS.items():
        if name != "maxsim-cpu" or find_spec("maxsim_cpu"):
            arms[name] = functools.partial(peer, corpus)
    wanted = arms[OURS]()
    for name, arm in arms.items():
        off = np.abs(arm() - wanted).max()
        exact = name.startswith("ours") or name in PLAIN
        assert off <= (0 if exact else 0.02), (name, off)
    return arms


def _in_turn(
    arms: Mapping[str, Callable[[], NDArray[Any]]],
    rounds: int,
    documents: int,
    threads: int,
    passes: int | None = None,
) -> dict[str, list[float]]:
    """Seconds per document: every arm once to warm up, then A B C, A B C, ..."""
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    passes = passes or max(1, QUICK // documents)
    for number in range(rounds + 1):
        for name, arm in arms.items():
            began = clock()
            for _ in range(passes):
                arm()
            if number:
                seconds[name].append((clock() - began) / (passes * documents))
    return seconds


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """Speed over speed, the median of each round's."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def _over_plain(seconds: dict[str, list[float]]) -> float:
    return round(min(_ratio(seconds[OURS], seconds[plain]) for plain in PLAIN), 3)


def _arm_rows(taken: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    rows = [["", "cache", "memory", "ours is faster by"]]
    memory = taken["memory"]
    for name in memory:
        medians = [statistics.median(taken[where][name]) * 1e6 for where in ("cache", "memory")]
        over = _ratio(memory[OURS], memory[name])
        rows.append([name, *(f"{median:.3f}" for median in medians), f"{over:.2f}"])
    return rows


def _budget_rows(cached: Corpus, large: Corpus, rounds: int, threads: int) -> list[list[str]]:
    rows = [["budget", "bytes", "cache, all", "cache, candidates", "memory, all", "candidates"]]
    for r_q, r_d in BUDGETS:
        cells = []
        for corpus in (cached, large):
            for candidates in (None, _random_rows(len(corpus.codes))):
                count = len(corpus.codes) if candidates is None else len(candidates)
                arm = functools.partial(_carry, corpus, r_q, r_d, candidates, threads)
                seconds = _in_turn({"": arm}, 2 * rounds, count, threads)[""]
                cells.append(f"{statistics.median(seconds) * 1e9:,.1f}")
        rows.append([f"{r_q}x{r_d}", f"{r_d * (DIM + 4):,}", *cells])
    return rows


def _carry(
    corpus: Corpus, r_q: int, r_d: int, rows: NDArray[np.int64] | None, threads: int
) -> Scores:
    best = new_maxima(len(corpus.codes) if rows is None else len(rows), r_q)
    query = corpus.query_codes[:r_q]
    for (codes, scales), (_, stop) in zip(corpus.planes, PLANES, strict=True):
        if stop <= r_d:
            carry_maxima(best, query, codes, scales, rows, threads=threads)
    return mean_of_maxima(best, corpus.query_scales[:r_q], r_q)


def _first_vectors(rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds per query of the scan at (1,1) with its best documents, ours and FAISS's."""
    query, vectors = _unit((1, DIM), 21), _unit((FIRST_VECTORS, DIM), 22)
    codes, scales = quantise(vectors[:, None])
    query_codes, query_scales = quantise(query[None])
    stored, keys = to_offset(codes), np.arange(len(vectors), dtype=np.uint64)

    def scan() -> NDArray[np.intp]:
        best = new_maxima(len(vectors), 1)
        carry_maxima(best, query_codes[0], stored, scales, threads=threads)
        return order_best(mean_of_maxima(best, query_scales[0], 1), keys, BEST)

    searches = {SCAN: scan, **faiss_scans(query[0], vectors, BEST, threads)}
    truth = set(searches["FAISS Flat"]())
    assert len(truth & set(scan())) >= 0.9 * BEST
    return _in_turn(searches, 4 * rounds, 1, threads, passes=8)


def _random_rows(documents: int) -> NDArray[np.int64]:
    return np.random.default_rng(5).integers(0, documents, CANDIDATES)


def _quality() -> list[list[str]]:
    """Error and recall of both kinds of scales, on even vectors and on ones with large entries."""
    rows = [["vectors", "scale per", "rms error", "recall@10"]]
    for name, power in (("even", 1.0), ("spiky", 2.0)):
        documents = _unit((2_000, 64, DIM), 11, power)
        queries = _unit((50, 16, DIM), 12, power)
        per_kind: dict[str, list[tuple[float, float]]] = {"vector": [], "document": []}
        for query in queries:
            corpus = make_corpus(query, documents)
            truth = maxsim_loops.numpy_float32(corpus)
            best = set(np.argsort(-truth)[:10])
            for kind, scores in (
                ("vector", score_all(corpus, 1)),
                ("document", maxsim_loops.plain_vnni_scale_per_document(corpus)),
            ):
                found = len(best & set(np.argsort(-scores)[:10])) / 10
                per_kind[kind].append((float(np.square(scores - truth).mean()), found))
        for kind, measured in per_kind.items():
            error, recall = np.mean(measured, axis=0)
            rows.append([name, kind, f"{np.sqrt(error):.5f}", f"{recall:.3f}"])
    return rows


def _unit(shape: tuple[int, ...], seed: int, power: float = 1.0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    drawn = np.sign(drawn) * np.abs(drawn) ** power
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer documents and rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

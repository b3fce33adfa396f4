"""Other ways to compute MaxSim of one query over all documents, each a function of a `Corpus`.

The plain VNNI loop is C beside this file, compiled for this machine when it is first called.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rematch_ray.index.quantisation import from_offset, quantise, to_offset

Scores = NDArray[np.float32]
Plane = tuple[NDArray[np.uint8], NDArray[np.float32]]
PLANES = [(0, 1), (1, 4), (4, 8), (8, 16), (16, 64)]
# documents that the matrix forms take at once: 128 documents' cells are half a MiB
BLOCK = 128


@dataclass(frozen=True)
class Corpus:
    """One query and documents, in float32 and in 8 bits.

    Attributes:
        query: (16, D) unit vectors.
        documents: (N, 64, D) unit vectors.
        query_codes: (16, D) int8, with `query_scales` (16,).
        codes: (N, 64, D) uint8, with `scales` (N, 64).
        planes: the same by token range, codes and scales each.
        document_codes: (N, 64, D) uint8 with `document_scales` (N,): one scale per document.
    """

    query: NDArray[np.float32]
    documents: NDArray[np.float32]
    query_codes: NDArray[np.int8]
    query_scales: NDArray[np.float32]
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    planes: list[Plane]
    document_codes: NDArray[np.uint8]
    document_scales: NDArray[np.float32]


def make_corpus(query: NDArray[np.float32], documents: NDArray[np.float32]) -> Corpus:
    """Quantises a query (16, D) and documents (N, 64, D)."""
    query_codes, query_scales = quantise(query[None])
    codes, scales = quantise(documents)
    stored = to_offset(codes)
    planes = [
        (np.ascontiguousarray(stored[:, a:b]), np.ascontiguousarray(scales[:, a:b]))
        for a, b in PLANES
    ]
    largest = np.abs(documents).max(axis=(1, 2), keepdims=True)
    coarse = np.rint(documents * (127 / largest)).astype(np.int8)
    return Corpus(
        query=query,
        documents=documents,
        query_codes=query_codes[0],
        query_scales=query_scales[0],
        codes=stored,
        scales=scales,
        planes=planes,
        document_codes=to_offset(coarse),
        document_scales=(largest[:, 0, 0] / 127).astype(np.float32),
    )


def plain_vnni(corpus: Corpus, at_once: int = 4) -> Scores:
    """The plain VNNI loop with one scale per vector."""
    return _plain("scale_per_vector", corpus, corpus.codes, corpus.scales, at_once)


def plain_vnni_scale_per_document(corpus: Corpus, at_once: int = 4) -> Scores:
    """The plain VNNI loop with one scale per document, maxima in int32."""
    codes, scales = corpus.document_codes, corpus.document_scales
    return _plain("scale_per_document", corpus, codes, scales, at_once)


def torch_int8(corpus: Corpus) -> Scores:
    """torch's int8 matrix product, then scales and maxima, by blocks."""
    query = torch.from_numpy(corpus.query_codes).T.contiguous()
    query_scales = torch.from_numpy(corpus.query_scales)
    scores = torch.empty(len(corpus.codes))
    for start in range(0, len(corpus.codes), BLOCK):
        block = torch.from_numpy(from_offset(corpus.codes[start : start + BLOCK]))
        dots = torch._int_mm(block.view(-1, block.shape[2]), query)
        scales = torch.from_numpy(corpus.scales[start : start + BLOCK])
        best = dots.view(*block.shape[:2], -1).float().mul_(scales[..., None]).amax(dim=1)
        scores[start : start + BLOCK] = (best * query_scales).mean(dim=1)
    return scores.numpy()


def torch_float32(corpus: Corpus) -> Scores:
    """torch's float32 matrix product and maxima, by blocks."""
    query = torch.from_numpy(corpus.query).T.contiguous()
    documents = torch.from_numpy(corpus.documents)
    parts = [(block @ query).amax(dim=1).mean(dim=1) for block in documents.split(BLOCK)]
    return torch.cat(parts).numpy()


def numpy_float32(corpus: Corpus) -> Scores:
    """numpy's float32 matrix product and maxima, by blocks."""
    query = np.ascontiguousarray(corpus.query.T)
    num_vectors, dim = corpus.documents.shape[1:]
    scores = np.empty(len(corpus.documents), np.float32)
    for start in range(0, len(scores), BLOCK):
        block = corpus.documents[start : start + BLOCK].reshape(-1, dim) @ query
        scores[start : start + BLOCK] = (
            block.reshape(-1, num_vectors, len(corpus.query)).max(axis=1).mean(axis=1)
        )
    return scores


def maxsim_cpu(corpus: Corpus) -> Scores:
    """The library of that name, float32; it adds up the maxima."""
    from maxsim_cpu import maxsim_scores

    return np.asarray(maxsim_scores(corpus.query, corpus.documents)) / len(corpus.query)


def _plain(
    name: str, corpus: Corpus, codes: NDArray[np.uint8], scales: Scores, at_once: int
) -> Scores:
    assert len(corpus.query) == 16
    assert codes.shape[1] % at_once == 0 and codes.shape[2] % 4 == 0
    scores = np.empty(len(codes), np.float32)
    query, query_scales, stored, stored_scales, found = (
        ctypes.c_void_p(array.ctypes.data)
        for array in (corpus.query_codes, corpus.query_scales, codes, scales, scores)
    )
    documents, vectors, dim = codes.shape
    library(at_once)[name](
        *(query, query_scales, dim, stored, stored_scales, vectors),
        *(ctypes.c_int64(documents), found),
    )
    return scores


@functools.cache
def library(at_once: int) -> Any:
    """The plain loops, compiled."""
    source = Path(__file__).with_name("plain_maxsim.c")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / f"plain_maxsim_{at_once}.so"
        command = ["cc", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
        command += [f"-DAT_ONCE={at_once}", "-o", str(built), str(source)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(built))

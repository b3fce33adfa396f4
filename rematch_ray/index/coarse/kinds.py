"""The kinds of coarse lists: what each is in FAISS, what it needs, and which fits a size.

    scan          every entry, from the planes     ivf           inverted lists, float16
    scan4         every entry, 4 bits a number     ivf_sq8       inverted lists, 8 bits
    scan1         every entry, 1 bit a number      ivf_pq        inverted lists, 2 bits a number
    flat          every entry, float16: exact      ivf_rabitq    inverted lists, 1 bit a number
    sq8           every entry, 8 bits              hnsw          a graph over 8-bit entries

The scans are no lists of FAISS: our kernel reads the planes' own codes (scan.py), their high bits
from a file (packed.py), or signs and then the codes of some (bits.py).

Whatever a kind approximates is set right by the MaxSim of the stages behind it, so no kind keeps
vectors to refine its own scores. Knows nothing of files, keys or searches. Middle floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import faiss

from rematch_ray.errors import UserError, did_you_mean
from rematch_ray.index.coarse.sizes import kind_by_size, lists_for
from rematch_ray.index.npy import overtaken

CoarseKind = Literal[
    "auto",
    "scan",
    "scan4",
    "scan1",
    "flat",
    "sq8",
    "ivf",
    "ivf_sq8",
    "ivf_pq",
    "ivf_rabitq",
    "hnsw",
]
COARSE_KINDS: tuple[str, ...] = get_args(CoarseKind)

TRAINING_ROWS_PER_LIST = 64
MOST_TRAINING_ROWS = 1_000_000
# fewer entries would leave inverted lists with fewer than four each
_LEAST_ENTRIES = 256


@dataclass(frozen=True)
class _Kind:
    """How FAISS writes a kind, whether it has inverted lists, and of what dims are multiples."""

    factory: str
    has_lists: bool = False
    dim_multiple: int = 1


_KINDS = {
    "flat": _Kind("SQfp16"),
    "sq8": _Kind("SQ8"),
    "ivf": _Kind("IVF{lists},SQfp16", has_lists=True),
    "ivf_sq8": _Kind("IVF{lists},SQ8", has_lists=True),
    # of the distances from the lists' centres (`r`): more of the best found, at the same size
    "ivf_pq": _Kind("IVF{lists},PQ{half}x4fsr", has_lists=True, dim_multiple=2),
    # a bit a number says little of a number that stands out: a rotation spreads them. Its fast-scan
    # form measured slower and larger, with the same recall
    "ivf_rabitq": _Kind("RR{dim},IVF{lists},RaBitQ", has_lists=True),
    "hnsw": _Kind("HNSW32,SQ8"),
}


def check_kind(kind: str) -> None:
    """Refuses a kind that does not exist.

    Raises:
        UserError: names those that do.
    """
    if kind not in COARSE_KINDS:
        raise UserError(f"coarse kind '{kind}' does not exist; {did_you_mean(kind, COARSE_KINDS)}")


def kind_for(kind: str, num_documents: int) -> str:
    """The kind to make: `auto` goes by the number of documents.

    >>> kind_for("auto", 1000), kind_for("hnsw", 1000)
    ('scan', 'hnsw')
    """
    check_kind(kind)
    return kind_by_size(num_documents) if kind == "auto" else kind


def has_lists(kind: str) -> bool:
    """Whether a kind has inverted lists, hence `nprobe`."""
    return kind in _KINDS and _KINDS[kind].has_lists


def holds(kind: str, num_entries: int) -> bool:
    """Whether there are enough entries for a kind."""
    return not has_lists(kind) or num_entries >= _LEAST_ENTRIES


def training_rows(kind: str, num_entries: int) -> int:
    """Entries that training reads, so that its time depends on the lists and not on the corpus.

    >>> training_rows("ivf", 1_000_000), training_rows("ivf", 10**9)
    (256000, 1000000)
    """
    lists = lists_for(num_entries) if has_lists(kind) else _LEAST_ENTRIES
    return min(MOST_TRAINING_ROWS, TRAINING_ROWS_PER_LIST * lists)


def make_untrained(kind: str, dim: int, num_entries: int, *, seed: int) -> Any:
    """An empty FAISS index of a kind.

    Args:
        kind: any but `auto` and the scans.
        dim: of the vectors.
        num_entries: that it will hold, about; the number of inverted lists follows.
        seed: of the training to come.

    Raises:
        UserError: a kind without a list, too few entries for it, or a dim that it cannot take.
    """
    check_kind(kind)
    if kind not in _KINDS:
        raise UserError(f"coarse kind '{kind}' has no list of its own: use {', '.join(_KINDS)}")
    needs = _KINDS[kind]
    if not holds(kind, num_entries):
        raise UserError(
            f"{num_entries} documents are too few for coarse kind '{kind}', which needs "
            f"{_LEAST_ENTRIES}: use coarse kind 'scan' or 'auto'"
        )
    if dim % needs.dim_multiple:
        raise UserError(
            f"coarse kind '{kind}' needs vectors of an even dim, not {dim}: use 'ivf_sq8'"
        )
    text = needs.factory.format(lists=lists_for(num_entries), dim=dim, half=dim // 2)
    index = faiss.index_factory(dim, text, faiss.METRIC_INNER_PRODUCT)
    if needs.has_lists:
        lists = faiss.extract_index_ivf(index)
        lists.cp.seed = seed
        # small corpora train on what they have; FAISS would print a warning for each
        lists.cp.min_points_per_centroid = 1
        if kind == "ivf":
            # the float16 values of the planes themselves, not their distance from a centre
            lists.by_residual = False
    return index


def read_list(path: Path, *, mapped: bool = False) -> Any:
    """Reads a FAISS index, or maps its entries.

    Raises:
        UserError: the file is missing or no such index.
    """
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as broken:
        if not path.exists():
            raise overtaken(path) from broken
        reason = str(broken).strip().splitlines()[-1]
        raise UserError(f"{path} cannot be read ({reason}): the index is damaged") from broken

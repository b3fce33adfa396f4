"""How many bytes an index of a given size takes on disk, part by part.

Pure functions of counts and of how vectors are stored; nothing is read or built. Knows nothing of
machines or time. Lexical lists are not counted. Middle floor.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.sizes import BITS, SCANS, lists_for
from rematch_ray.index.costs import CoarseList, choose_list
from rematch_ray.index.one_bit import GROUP, group_bytes
from rematch_ray.scoring.budget import DEFAULT_LADDER, Ladder

_COUNT = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([kKmMbBgG]?)\s*$")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def parse_count(text: str) -> int:
    """Reads a count as people write it.

    Raises:
        UserError: not a whole number of at least 1.

    >>> [parse_count(text) for text in ("1e9", "10M", "1_000", "2.5k", "1B")]
    [1000000000, 10000000, 1000, 2500, 1000000000]
    """
    found = _COUNT.match(text)
    number = float(found[1].replace("_", "")) * _UNITS[found[2].lower()] if found else 0.0
    if not math.isfinite(number) or number < 1 or number != int(number):
        raise UserError(
            f"{text!r} is not a count: write a whole number of at least 1, such as 250000, 1e9, "
            "10M or 2.5k"
        )
    return int(number)


def refuse_below(least: float, **numbers: float) -> None:
    """Refuses numbers that are too small, or no numbers.

    Raises:
        UserError: names the first of them.
    """
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= least):
            raise UserError(f"{name} {number} is not possible: give at least {least:g}")


def plane_bytes(count: int, dim: int, *, originals: bool = True) -> int:
    """Bytes of a plane of one document.

    Codes and a scale of each vector and, where originals can set an order right, one residual norm.

    >>> plane_bytes(1, 128), plane_bytes(48, 128), plane_bytes(1, 128, originals=False)
    (136, 6340, 132)
    """
    return count * (dim + 4) + (4 if originals else 0)


# SQLite: the payload once as JSON and once as lines that filters read, ids twice
_PAYLOAD_COPIES = 2.0
_PAYLOAD_ROW_BYTES = 60
_KEY_BYTES = 8
# headers and manifests of a segment
_SEGMENT_BYTES = 1 << 15


@dataclass(frozen=True)
class Corpus:
    """What is to be indexed.

    Args:
        num_documents: how many.
        dim: D of the vectors.
        fused_dim: F of the fused vector, or None.
        ladder: rungs to serve; its top says how many vectors a document has.
        originals: keep the float16 vectors beside the codes.
        payload_bytes: id and payload of one document, as JSON.
        coarse: `auto`, or one of `COARSE_LISTS`.

    Raises:
        UserError: a count below 1, or an unknown coarse list.
    """

    num_documents: int
    dim: int = 128
    fused_dim: int | None = 512
    ladder: Ladder = DEFAULT_LADDER
    originals: bool = True
    payload_bytes: int = 200
    coarse: str = "auto"

    def __post_init__(self) -> None:
        refuse_below(
            1, documents=self.num_documents, dim=self.dim, payload_bytes=self.payload_bytes
        )
        if self.fused_dim is not None:
            refuse_below(1, fused_dim=self.fused_dim)
        choose_list(self.num_documents, self.coarse)

    @property
    def coarse_list(self) -> CoarseList:
        """The coarse list that is built."""
        return choose_list(self.num_documents, self.coarse)

    def plane(self, start: int, stop: int) -> int:
        """Bytes of one document's plane of a token range."""
        return plane_bytes(stop - start, self.dim, originals=self.originals)

    @property
    def coarse_dim(self) -> int:
        """Width of the vector that the coarse stage compares: fused where there is one."""
        return self.fused_dim or self.dim


@dataclass(frozen=True)
class Component:
    """One part of an index on disk.

    Args:
        name: for people.
        per_document: bytes.
        files: names of its files in a segment, `*` for what may stand there.
        fixed: bytes whatever the number of documents.
    """

    name: str
    per_document: float
    files: tuple[str, ...] = ()
    fixed: int = 0

    def total(self, num_documents: int) -> int:
        """Bytes of the part.

        >>> Component("keys", 8).total(10**6)
        8000000
        """
        return math.ceil(self.per_document * num_documents) + self.fixed


def components(corpus: Corpus) -> list[Component]:
    """Every part of the index on disk.

    >>> [(part.name, part.per_document) for part in components(Corpus(10**5))][:2]
    [('plane 0:1', 136), ('plane 1:4', 400)]
    """
    dim, fused_dim = corpus.dim, corpus.fused_dim
    parts = [
        Component(f"plane {start}:{stop}", corpus.plane(start, stop), _codes(start, stop))
        for start, stop in corpus.ladder.planes()
    ]
    if corpus.originals:
        stored = 2 * corpus.ladder.num_document_vectors * dim
        parts.append(Component("originals", stored, ("originals_[0-9]*.npy",)))
    keys = {"first": dim}
    if fused_dim is not None:
        parts.append(Component("fused", plane_bytes(1, fused_dim), _codes("fused")))
        parts.append(Component("fused originals", 2 * fused_dim, ("originals_fused.npy",)))
        keys["fused"] = fused_dim
    parts += [coarse_component(corpus, key, width) for key, width in keys.items()]
    parts.append(Component("keys", _KEY_BYTES, ("keys.npy",)))
    payload = _PAYLOAD_COPIES * corpus.payload_bytes + _PAYLOAD_ROW_BYTES
    parts.append(Component("payload", payload, ("payload.sqlite",), _SEGMENT_BYTES))
    return [part for part in parts if part.per_document]


def coarse_component(corpus: Corpus, key: str, dim: int) -> Component:
    """The coarse list over a key (`fused`, `first`) of a width; nothing where codes are scanned."""
    kind = corpus.coarse_list
    name = f"coarse {key} ({kind})"
    files = (f"coarse_{key}.npy" if kind in SCANS else f"coarse_{key}.faiss",)
    if kind == BITS:
        return Component(name, group_bytes(dim) / GROUP, files)
    if kind in ("scan", "scan4", "flat", "sq8"):
        per_entry = {"scan": 0.0, "scan4": 0.5, "flat": 2.0, "sq8": 1.0}[kind]
        return Component(name, per_entry * dim, files)
    return Component(
        name, _list_bytes(kind, dim), files, fixed=4 * dim * lists_for(corpus.num_documents)
    )


def _codes(*tokens: object) -> tuple[str, ...]:
    """Files of the 8-bit vectors of a token range, or of the fused ones."""
    name = "_".join(map(str, tokens))
    return tuple(f"{kind}_{name}.npy" for kind in ("codes", "scales", "errors"))


def _list_bytes(kind: CoarseList, dim: int) -> float:
    """Bytes of one vector in inverted lists, its number included.

    >>> _list_bytes("ivf_sq8", 128), _list_bytes("ivf_pq", 128), _list_bytes("ivf_rabitq", 128)
    (136.0, 44.0, 35.0)
    """
    codes = {"ivf": 2 * dim, "ivf_sq8": dim, "ivf_pq": dim / 4 + 4, "ivf_rabitq": dim / 8 + 11}
    return codes[kind] + 8.0

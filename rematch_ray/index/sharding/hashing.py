"""Which shard of an index a document belongs to.

Its 64-bit key (payload.py), which depends on its id alone, modulo the number of shards. Knows
nothing of what a shard is made of. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.index.payload import document_key
from rematch_ray.index.shard_columns import read_column

# what a manifest says of `document_key`: 8 bytes of BLAKE2b, big endian
HASH_RULE = "blake2b-64"
Keys = NDArray[np.uint64]


def shard_of(document_id: str, num_shards: int) -> int:
    """Number of the shard that a document belongs to.

    >>> [shard_of(name, 4) for name in ("a", "b", "c")]
    [3, 1, 3]
    """
    return document_key(document_id) % num_shards


def shard_name(number: int, num_shards: int) -> str:
    """Directory of a shard.

    >>> shard_name(3, 4)
    'shard-00003-of-00004'
    """
    return f"shard-{number:05d}-of-{num_shards:05d}"


def keys_of(ids: Sequence[str]) -> Keys:
    """Key of each id, (n,)."""
    return np.fromiter(map(document_key, ids), np.uint64, len(ids))


def read_keys(rows: pa.RecordBatch | pa.Table, file: Path) -> Keys:
    """Keys of some rows of an embedding file, (n,).

    Raises:
        UserError: they have no ids.
    """
    return keys_of(read_column(rows, "id", file).to_pylist())


def owners(keys: Keys, num_shards: int) -> NDArray[np.int64]:
    """Number of the shard of each key, (n,)."""
    return (keys % np.uint64(num_shards)).astype(np.int64)


def route(ids: Sequence[str], num_shards: int) -> dict[int, list[str]]:
    """Ids by the number of their shard, each in the order given."""
    routed: dict[int, list[str]] = {}
    for name in ids:
        routed.setdefault(shard_of(name, num_shards), []).append(name)
    return routed

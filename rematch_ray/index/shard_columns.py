"""Columns of an embedding shard as numpy arrays, refused by name when they are not sound.

Knows what a shard may store, nothing of directories or manifests. Middle floor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.quantisation import dequantise

DTYPES = ("float16", "int8")
# float16 rounding of a unit vector moves its norm by less than 1e-3
_NORM_TOLERANCE = 1e-2


def read_vectors(
    batch: pa.RecordBatch | pa.Table, shape: tuple[int, int], dtype: str, file: Path
) -> NDArray[np.float16]:
    """The vectors of some rows of a shard.

    Args:
        batch: the rows; columns as in the shard.
        shape: R and D.
        dtype: what the shard stores.
        file: the shard, for messages.

    Returns:
        (n, R, D) float16.

    Raises:
        UserError: a column is missing, has nulls or another type.
    """
    num_vectors, dim = shape
    stored = _read_lists(batch, "vectors", getattr(pa, dtype)(), num_vectors * dim, file)
    stored = stored.reshape(batch.num_rows, num_vectors, dim)
    if dtype == "float16":
        return stored
    return dequantise(stored, _read_lists(batch, "scales", pa.float32(), num_vectors, file))


def read_fused(batch: pa.RecordBatch | pa.Table, fused_dim: int, file: Path) -> NDArray[np.float16]:
    """The fused vectors of some rows of a shard, (n, F); errors as in `read_vectors`."""
    return _read_lists(batch, "fused", pa.float16(), fused_dim, file)


def read_column(batch: pa.RecordBatch | pa.Table, name: str, file: Path) -> pa.Array:
    """One column of some rows of a shard.

    Raises:
        UserError: it is missing, or has nulls.
    """
    if name not in batch.schema.names:
        raise UserError(
            f"embedding shard {file} has no column '{name}'; it has {', '.join(batch.schema.names)}"
        )
    column = batch.column(name)
    if column.null_count:
        raise UserError(f"embedding shard {file} has {column.null_count} nulls in '{name}'")
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _read_lists(
    batch: pa.RecordBatch | pa.Table, name: str, kind: pa.DataType, size: int, file: Path
) -> NDArray[Any]:
    column = read_column(batch, name, file)
    wanted = pa.list_(kind, size)
    if column.type != wanted:
        raise UserError(
            f"column '{name}' of embedding shard {file} is {column.type}, "
            f"the manifest asks for {wanted}"
        )
    flat: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(batch.num_rows, size)


def check_unit_vectors(vectors_NRD: NDArray[np.floating], ids: list[str], where: object) -> None:
    """Refuses vectors that are not finite or not of unit norm.

    Raises:
        UserError: names the first such row.
    """
    wide = vectors_NRD.astype(np.float32)
    norms = np.sqrt(np.einsum("nrd,nrd->nr", wide, wide))
    wrong = ~(np.abs(norms - 1.0) <= _NORM_TOLERANCE)
    if wrong.any():
        row, vector = np.argwhere(wrong)[0]
        raise UserError(
            f"vector {vector} of '{ids[row]}' in {where} has norm {norms[row, vector]:.4g}: stored "
            "vectors must be finite and of unit norm; embed the row again"
        )

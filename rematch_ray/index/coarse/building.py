"""Making coarse lists: training one without entries, and filling it with a segment's vectors.

The vectors are the float16 values of the planes. Knows nothing of keys, segments or searches.
Middle floor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.kinds import (
    has_lists,
    kind_for,
    make_untrained,
    read_list,
    training_rows,
)
from rematch_ray.index.coarse.sizes import default_nprobe
from rematch_ray.index.manifest import sync_file

SEED = 1234
_ADD_ENTRIES = 16_384


def train_coarse(
    path: Path, sample: NDArray[np.float32], *, kind: str, num_entries: int, seed: int = SEED
) -> None:
    """Writes a trained list without entries.

    Args:
        path: file to write, durable when this returns.
        sample: (n, dim) float32 entries; of those of `training_rows` or more a good list is made.
        kind: any but `auto` and `flat`, which needs no training.
        num_entries: that a list will hold, about; the number of inverted lists follows.
        seed: makes the same file of the same sample.

    Raises:
        UserError: too few entries for the kind, or a dim that it cannot take.
    """
    index = make_untrained(kind, sample.shape[1], num_entries, seed=seed)
    index.train(sample)
    faiss.write_index(index, str(path))
    sync_file(path)


def coarse_file(key: str) -> str:
    """File name of the coarse list of a key."""
    return f"coarse_{key}.faiss"


def build_coarse(
    path: Path,
    vectors: Entries | NDArray[Any],
    *,
    kind: str = "auto",
    trained: Path | None = None,
    seed: int = SEED,
) -> dict[str, Any]:
    """Writes the coarse list of one segment.

    Args:
        path: file to write.
        vectors: the entries, or an array (N, dim) or (N, W, dim); may be memory maps.
        kind: see `coarse_kinds`; `auto` goes by the number of documents.
        trained: a file of `train_coarse` for this kind, of which the list is a filled copy; None
            trains anew.
        seed: of training.

    Returns:
        What the segment's manifest says of it: file, kind, `width` (entries per document), and
        `nlist`, `nprobe` where there are inverted lists.

    Raises:
        UserError: an unknown kind, too few documents or a dim that it cannot take, or a trained
            file of another dim.
    """
    entries = Entries.of(vectors)
    kind = kind_for(kind, entries.rows)
    if trained is None:
        index = make_untrained(kind, entries.dim, len(entries), seed=seed)
        index.train(entries.sample(training_rows(kind, len(entries)), seed))
    else:
        index = read_list(trained)
        if index.d != entries.dim:
            raise UserError(
                f"{trained} was trained for vectors of dim {index.d}, these have {entries.dim}: "
                "train anew, or use the model that it was trained with"
            )
    step = max(1, _ADD_ENTRIES // entries.width)
    for start in range(0, entries.rows, step):
        index.add(entries.of_documents(slice(start, start + step)))
    faiss.write_index(index, str(path))
    description: dict[str, Any] = {"file": path.name, "kind": kind, "width": entries.width}
    if has_lists(kind):
        num_lists = int(faiss.extract_index_ivf(index).nlist)
        description |= {"nlist": num_lists, "nprobe": default_nprobe(num_lists)}
    return description

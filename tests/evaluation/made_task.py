"""A small task: 40 documents in families of 4, 12 queries, two kinds of swap."""

import numpy as np
import pyarrow as pa

from rematch_ray.evaluation.tasks import RetrievalTask
from tests.index.made import Vectors, unit

DOCUMENT_IDS = [f"d{column:02d}" for column in range(40)]
QUERY_IDS = [f"q{row:02d}" for row in range(12)]
QRELS = pa.table(
    {
        "query_id": [*QUERY_IDS, "q-of-another-part"],
        "document_id": [f"d{3 * row:02d}" for row in range(12)] + ["d01"],
        "score": [1.0] * 13,
    }
)
FAMILIES = pa.table(
    {"document_id": DOCUMENT_IDS, "family": [f"f{column // 4}" for column in range(40)]}
)
SWAPS = pa.table(
    {
        "query_id": QUERY_IDS * 2,
        "document_id": [f"d{3 * row + 1:02d}" for row in range(12)]
        + [f"d{3 * row + 2:02d}" for row in range(12)],
        "kind": ["swap:colour"] * 12 + ["swap:position"] * 12,
    }
)


def make_task() -> RetrievalTask:
    return RetrievalTask.from_tables(
        "toy",
        QUERY_IDS,
        DOCUMENT_IDS,
        QRELS,
        families=FAMILIES,
        swaps=SWAPS,
        slices={"even": QUERY_IDS[::2]},
    )


def document_vectors() -> Vectors:
    return Vectors(unit((40, 8, 16), 21), unit((40, 24), 22))


def noisy_queries(noise: float) -> Vectors:
    """Queries that are their right document's vectors with noise."""
    documents = document_vectors()
    rows = np.arange(12) * 3
    vectors = documents.vectors[rows, :4] + noise * unit((12, 4, 16), 23)
    fused = documents.fused[rows] + noise * unit((12, 24), 24)
    return Vectors(
        vectors / np.linalg.norm(vectors, axis=-1, keepdims=True),
        fused / np.linalg.norm(fused, axis=-1, keepdims=True),
    )

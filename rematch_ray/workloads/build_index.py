"""Building an index from an embedding directory, unless that is done already.

Wraps the middle floor's builder; it needs no cluster. Top floor.
"""

import sys
import time
from pathlib import Path
from typing import Any

from rematch_ray.index.build import build_index as build


def build_index(*, embeddings: str | Path, out: str | Path, **options: Any) -> dict[str, Any]:
    """Build an index from embedding shards, or replace the documents of one.

    Args:
        embeddings: embedding directory of the document side.
        out: index directory.
        options: what else `rematch_ray.index.build.build_index` takes.

    Returns:
        What was published, and the seconds it took.

    Raises:
        UserError: not an embedding directory, a lexical field without text, or `out` holds
            something else.
    """
    started = time.monotonic()
    info = build(Path(embeddings), Path(out), **options)
    seconds = round(time.monotonic() - started, 2)
    print(f"index: {info.documents} documents in {seconds} s: {out}", file=sys.stderr, flush=True)
    return {**info.to_json(), "seconds": seconds}

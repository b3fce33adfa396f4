"""Building an index from an embedding directory, unless that is done already.

Wraps the middle floor's builder; it needs no cluster. Top floor.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rematch_ray.index.build import build_index as build
from rematch_ray.index.lexical_settings import LexicalSettings


def build_index(
    *,
    embeddings: str | Path,
    out: str | Path,
    lexical: Sequence[str] | LexicalSettings | None = None,
) -> dict[str, Any]:
    """Build an index from embedding shards, or replace the documents of one.

    Args:
        embeddings: embedding directory of the document side.
        out: index directory.
        lexical: payload fields whose texts are indexed, or settings; None takes `text` where there
            is such a field, and an empty sequence nothing.

    Returns:
        What was published, and the seconds it took.

    Raises:
        UserError: not an embedding directory, a lexical field without text, or `out` holds
            something else.
    """
    started = time.monotonic()
    info = build(Path(embeddings), Path(out), lexical=lexical)
    seconds = round(time.monotonic() - started, 2)
    print(f"index: {info.documents} documents in {seconds} s: {out}", file=sys.stderr, flush=True)
    return {**info.to_json(), "seconds": seconds}

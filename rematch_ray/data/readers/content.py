"""What a row says beside its parts, in bytes that depend on the row alone: what its key is made of.

A payload column has the type that all files of a corpus share: with another file beside it a number
may be stored as text, or a field leave `other_fields` for a column of its own. So the bytes are
taken before that, of the values as they were read, and travel in a column beside the payload until
there is a key. Middle floor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

# views into an array's own buffer: images are not copied
Bytes = bytes | memoryview
# what a payload says, where its column may say it otherwise
CONTENT = "payload_content"
CONTENT_FIELD = pa.field(CONTENT, pa.large_binary())
# here Python and Arrow spell a float alike, and Python is faster
_SHORT = (1e-4, 1e10)


def joined(values: Iterable[Bytes | None]) -> bytes:
    """Values as one, each with its length in front; none differs from an empty one.

    >>> joined([b"ab", None, b""])
    b'2:ab-0:'
    """
    return b"".join(
        piece
        for value in values
        for piece in ((b"-",) if value is None else (b"%d:" % len(value), value))
    )


def content_of(values: Mapping[str, Any]) -> bytes | None:
    """The fields of a row from JSON or a table of texts; null and missing are the same.

    The bytes are those of a payload column of which every field has the type of its value.

    >>> content_of({"b": 1.0, "a": "x", "c": None}) == content_of({"a": "x", "b": 1})
    True
    """
    names = sorted(name for name, value in values.items() if value is not None)
    return joined(_encoded(t) for name in names for t in (name, _spelled(values[name]))) or None


def json_text(value: Any) -> str:
    """A value as JSON, the same for the same value."""
    return json.dumps(value, sort_keys=True, default=str)


def _spelled(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return _float(value)
    return json_text(value)


def _float(value: float) -> str:
    """As Arrow spells it, 1.0 as 1: a column of floats has the keys of earlier versions."""
    if _SHORT[0] <= abs(value) < _SHORT[1]:
        return repr(value).removesuffix(".0")
    return str(pa.scalar(value, pa.float64()).cast(pa.string()).as_py())


def _encoded(text: str) -> bytes:
    # half of a surrogate pair makes an error row, later
    return text.encode(errors="surrogatepass")

"""ms-swift's embedding rows: chat messages of an anchor, its positive and its negatives.

`messages, images, positive_messages, positive_images, negative_messages, negative_images`, with
`<image>` where an image stands. A system message of the anchor is the instruction, one of a
document stands before its text. Middle floor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rematch_ray.data.readers.row_files import Layout
from rematch_ray.data.readers.sample_rows import Row, content, item, sample
from rematch_ray.errors import UserError

TAG = re.compile("<image>")
COLUMNS = ("messages", "positive_messages")


def to_sample(row: Row) -> Row:
    """One row as a Sample.

    Raises:
        UserError: images do not match the `<image>` tags, the label is not that of a match, or the
            row holds video or audio.
    """
    if row.get("label") is not None and row["label"] < 1:
        raise UserError(f"label {row['label']} is not that of a match; keep the rows with label 1")
    for kind in ("videos", "audios"):
        if any(row.get(f"{side}{kind}") for side in ("", "positive_", "negative_")):
            raise UserError(f"the row holds {kind}; only texts and images are read")
    system, text = _spoken(row["messages"], "messages")
    return sample(
        item(content(text, row.get("images") or (), tag=TAG)),
        _documents(row, "positive"),
        _documents(row, "negative"),
        instruction=system or None,
    )


def _documents(row: Row, side: str) -> list[Row]:
    conversations = row.get(f"{side}_messages") or []
    images = row.get(f"{side}_images") or [[] for _ in conversations]
    if len(images) != len(conversations):
        raise UserError(
            f"{side}_images has {len(images)} entries and {side}_messages {len(conversations)}; "
            "give a list of images for each"
        )
    return [
        item(content(" ".join(filter(None, _spoken(messages, f"{side}_messages"))), shown, tag=TAG))
        for messages, shown in zip(conversations, images)
    ]


def _spoken(messages: Any, name: str) -> tuple[str, str]:
    """What the system says, and what everybody else says, a line each."""
    if not isinstance(messages, Sequence) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f"{name} is not a list of messages {{role, content}}")
    said: dict[bool, list[str]] = {True: [], False: []}
    for message in messages:
        said[message.get("role") == "system"].append(_text(message.get("content"), name))
    return "\n".join(said[True]), "\n".join(said[False])


def _text(spoken: Any, name: str) -> str:
    if spoken is None or isinstance(spoken, str):
        return spoken or ""
    raise UserError(f"{name}: the content of a message is a {type(spoken).__name__}, not text")


FORMATS = (
    Layout(
        name="ms-swift",
        claim="ms-swift: columns messages, positive_messages",
        rows="samples",
        columns=COLUMNS,
        convert=to_sample,
    ).to_format(),
)

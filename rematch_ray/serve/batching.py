"""How much work a row is, and which rows may share a forward pass.

Serve asks for the size of a batch before it adds a row to it; here that is work (tokens and image
patches), expressed in parts of the largest batch, so that Serve's own limits keep their meaning.
Knows no model and no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rematch_ray.serve.backend import Side

if TYPE_CHECKING:
    from rematch_ray.data.rows import EncodedRow

# rows of one forward pass are padded to the longest: at most to so many times the shortest
MAX_PADDING = 2.0


@dataclass
class Queued:
    """A row that waits for its batch.

    Attributes:
        row: what the model reads.
        side: query or document.
        num_vectors: meta tokens that are appended to it.
    """

    row: EncodedRow
    side: Side
    num_vectors: int

    @property
    def num_tokens(self) -> int:
        """Length of the row, meta tokens included."""
        return len(self.row.input_ids) + self.num_vectors

    @property
    def work(self) -> int:
        """Tokens that the language model reads, and patches that the vision tower reads."""
        return self.num_tokens + int(self.row.grid.prod(axis=1).sum())


@dataclass
class Pack:
    """Rows that came together and are embedded together: what `serve.batch` puts into a batch.

    Attributes:
        rows: at most as many, and of as much work, as a batch holds; or a single one of more work.
        was_put_back: whether a batch was too full for it.
    """

    rows: list[Queued]
    was_put_back: bool = False


def packs_of(rows: Sequence[Queued], *, max_size: int, max_tokens: int) -> Iterator[list[int]]:
    """Places of rows in as few packs as their order allows, none too large for a batch."""
    pack: list[int] = []
    work = 0
    for place, row in enumerate(rows):
        if pack and (len(pack) == max_size or work + row.work > max_tokens):
            yield pack
            pack, work = [], 0
        pack.append(place)
        work += row.work
    if pack:
        yield pack


class BatchSize:
    """Size of a batch as `serve.batch` asks for it, 1 to `max_size` when it may run.

    A batch never holds more than `max_size` rows. One row of more work than a whole batch is a
    batch of its own. Serve puts a pack that does not fit at the end of its queue: under steady load
    a large one would be put back for ever, so on its second turn it is taken; such a batch holds
    at most twice the work.

    Args:
        max_size: Serve's `max_batch_size`.
        max_tokens: work of a full batch.
    """

    def __init__(self, max_size: int, max_tokens: int) -> None:
        self._max_size = max_size
        self._max_tokens = max_tokens

    def __call__(self, packs: Sequence[Pack]) -> int:
        """Size of these packs together; the last is the one that asks to be added."""
        count = sum(len(pack.rows) for pack in packs)
        work = sum(min(row.work, self._max_tokens) for pack in packs for row in pack.rows)
        size = max(count, math.ceil(work * self._max_size / self._max_tokens))
        if size <= self._max_size:
            return size
        last = packs[-1]
        if last.was_put_back and count <= self._max_size and work <= 2 * self._max_tokens:
            return self._max_size
        last.was_put_back = True
        return size


def groups_of(queued: Sequence[Queued]) -> Iterator[list[int]]:
    """Places of rows that share a forward pass: of one side, and of similar length."""
    sides: dict[Side, list[int]] = {}
    for place, one in enumerate(queued):
        sides.setdefault(one.side, []).append(place)
    for places in sides.values():
        places.sort(key=lambda place: queued[place].num_tokens)
        group: list[int] = []
        for place in places:
            if group and queued[place].num_tokens > MAX_PADDING * queued[group[0]].num_tokens:
                yield group
                group = []
            group.append(place)
        yield group

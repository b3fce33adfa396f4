"""Plans for the searches of one open index: each way of asking is thought through once.

A server asks the same over and over, and choosing takes as long as a small search. Middle floor.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from rematch_ray.index.choice import Choice, Table, choose_plan
from rematch_ray.index.wish import Wish
from rematch_ray.scoring.budget import Ladder

# choices kept at most; filters that pass another number of documents each are other questions
MOST_KEPT = 1024


class Chooser:
    """Chooses as `choose_plan` does, and remembers.

    Args:
        ladder: the index's.
        table: its calibration.
        has_fused: whether it has the fused rung.
        coarse_choices: what its coarse stage can go by.
        default_coarse: coarse choice where nothing else decides.
        num_live: live documents.
    """

    def __init__(
        self,
        ladder: Ladder,
        table: Table,
        *,
        has_fused: bool,
        coarse_choices: Sequence[str],
        default_coarse: str,
        num_live: int,
    ) -> None:
        self._ladder = ladder
        table = table.possible(ladder, coarse_choices, has_fused=has_fused)
        self._tables = {True: table, False: table.partly()}
        self._has_fused = has_fused
        self._coarse_choices = tuple(coarse_choices)
        self._default_coarse = default_coarse
        self._num_live = num_live
        self._kept: dict[Hashable, Choice] = {}

    def choose(self, *, full: bool, num_allowed: int, **asked: Any) -> Choice:
        """The plan of a search.

        Args:
            full: whether documents are searched as they were calibrated: no filter, no grouping.
            num_allowed: live documents that pass the filter.
            asked: the fields of a `Wish` as `Wish.of` takes them.

        Raises:
            UserError: what does not exist here, or what no calibration allows.
        """
        # types too: True is no number of documents, though it equals one
        key = (full, num_allowed, *asked.values(), *asked, *map(type, asked.values()))
        try:
            kept = self._kept.get(key)
        except TypeError:
            # a value that cannot be a key is none that can be asked for: refused by name
            return self._choose(full, num_allowed, asked)
        if kept is None:
            kept = self._choose(full, num_allowed, asked)
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = kept
        return kept

    def _choose(self, full: bool, num_allowed: int, asked: dict[str, Any]) -> Choice:
        return choose_plan(
            Wish.of(self._ladder, self._has_fused, self._coarse_choices, **asked),
            self._ladder,
            self._tables[full],
            num_allowed=num_allowed,
            num_live=self._num_live,
            default_coarse=self._default_coarse,
        )

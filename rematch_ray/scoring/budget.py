"""How many query and document vectors take part in a score, and the ladder of such budgets.

Knows nothing of tensors, models or indexes: a budget is a pair of counts with a name.
Ground floor: the standard library and our own error type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from rematch_ray.errors import UserError

_PAIR = re.compile(r"^\s*(\d+)\s*[xX]\s*(\d+)\s*$")
_NAMED = (("fast", (2, 4)), ("balanced", (8, 16)))


@dataclass(frozen=True)
class Budget:
    """A pair (r_q, r_d): the first r_q query and first r_d document vectors take part.

    `Budget.FUSED` is the rung below all pairs: one fused vector on each side. Inside it is (0, 0),
    because it reads none of the multi-vectors.

    Args:
        r_q: number of query vectors, at least 1.
        r_d: number of document vectors, at least 1.

    Raises:
        UserError: a count below 1 (other than the fused pair (0, 0)).

    Source: MetaEmbed (arXiv 2509.18095), test-time budgets; the fused vector as a rung is ours.

    >>> str(Budget(8, 16)), Budget(8, 16).dot_products, str(Budget.FUSED)
    ('8x16', 128, 'fused')
    """

    r_q: int
    r_d: int

    FUSED: ClassVar[Budget]

    def __post_init__(self) -> None:
        if (self.r_q, self.r_d) != (0, 0) and min(self.r_q, self.r_d) < 1:
            raise UserError(
                f"budget {self.r_q}x{self.r_d} is not possible: "
                "both counts must be at least 1, for example 4x8"
            )

    @property
    def is_fused(self) -> bool:
        """Whether this is the rung of the single fused vector."""
        return self.r_q == 0

    @property
    def dot_products(self) -> int:
        """Dot products that one query-document score costs."""
        return 1 if self.is_fused else self.r_q * self.r_d

    def contains(self, other: Budget) -> bool:
        """Whether every vector that `other` reads is read here too."""
        return self.r_q >= other.r_q and self.r_d >= other.r_d

    def __str__(self) -> str:
        return "fused" if self.is_fused else f"{self.r_q}x{self.r_d}"

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `8x16` or `fused`.

        Raises:
            UserError: the text is neither.

        >>> Budget.parse("4x8")
        Budget(r_q=4, r_d=8)
        """
        if text.strip().lower() == "fused":
            return cls.FUSED
        pair = _PAIR.match(text)
        if pair is None:
            raise UserError(
                f"budget {text!r} is not understood: write it as RxR, for example 4x8, or 'fused'"
            )
        return cls(int(pair.group(1)), int(pair.group(2)))


Budget.FUSED = Budget(0, 0)


@dataclass(frozen=True)
class Ladder:
    """The ordered budgets that a model was trained for, each nested in the next.

    Raises:
        UserError: no rungs, the fused rung among them, or rungs that are not nested.

    Source: MetaEmbed's groups (arXiv 2509.18095, section on Matryoshka multi-vector retrieval).

    >>> ladder = Ladder.parse(["1x1", "2x4", "4x8"])
    >>> str(ladder.top), ladder.planes()
    ('4x8', ((0, 1), (1, 4), (4, 8)))
    """

    rungs: tuple[Budget, ...]

    def __post_init__(self) -> None:
        if not self.rungs:
            raise UserError("a ladder needs at least one budget, for example 1x1")
        if any(rung.is_fused for rung in self.rungs):
            raise UserError("'fused' is always a rung of a model that has it; leave it out here")
        for lower, upper in zip(self.rungs, self.rungs[1:], strict=False):
            if lower == upper or not upper.contains(lower):
                raise UserError(
                    f"budget {upper} follows {lower} in the ladder but does not contain it: "
                    "order the budgets so that each has at least as many vectors on both sides"
                )

    @classmethod
    def parse(cls, rungs: Iterable[str | tuple[int, int] | Budget]) -> Ladder:
        """Builds a ladder from texts (`4x8`), pairs or budgets."""
        return cls(tuple(_as_budget(rung) for rung in rungs))

    @property
    def top(self) -> Budget:
        """The largest budget."""
        return self.rungs[-1]

    @property
    def num_query_vectors(self) -> int:
        """Vectors a query must have to serve every rung."""
        return self.top.r_q

    @property
    def num_document_vectors(self) -> int:
        """Vectors a document must have to serve every rung."""
        return self.top.r_d

    def texts(self) -> list[str]:
        """The rungs as written in files and URLs."""
        return [str(rung) for rung in self.rungs]

    def names(self) -> dict[str, Budget]:
        """The named budgets: the nearest rung not above the pair that the name stands for.

        >>> {name: str(rung) for name, rung in DEFAULT_LADDER.names().items()}
        {'fast': '2x4', 'balanced': '8x16', 'full': '16x64'}
        """
        named = {}
        for name, (r_q, r_d) in _NAMED:
            wanted = Budget(r_q, r_d)
            below = [rung for rung in self.rungs if wanted.contains(rung)]
            named[name] = below[-1] if below else self.rungs[0]
        named["full"] = self.top
        return named

    def resolve(self, budget: str | Budget | None, *, has_fused: bool) -> Budget:
        """Turns what a caller wrote into a rung of this ladder.

        Args:
            budget: a rung, its text, a name (`fast`, `balanced`, `full`, `fused`) or None for full.
            has_fused: whether the fused vector exists, hence the fused rung.

        Raises:
            UserError: not a rung; the message lists the rungs and names.
        """
        if budget is None:
            return self.top
        names = self.names()
        if isinstance(budget, str):
            key = budget.strip().lower()
            if key in names:
                return names[key]
        wanted = _as_budget(budget) if _is_budget(budget) else None
        if wanted is not None and (wanted in self.rungs or (wanted.is_fused and has_fused)):
            return wanted
        allowed = [*(["fused"] if has_fused else []), *self.texts(), *names]
        raise UserError(f"budget '{budget}' does not exist here; allowed: {', '.join(allowed)}")

    def planes(self) -> tuple[tuple[int, int], ...]:
        """Document token ranges [start, stop) that the rungs add one after another."""
        stops = sorted({rung.r_d for rung in self.rungs})
        return tuple(zip([0, *stops[:-1]], stops, strict=True))


def _is_budget(budget: str | Budget) -> bool:
    if isinstance(budget, Budget):
        return True
    return budget.strip().lower() == "fused" or _PAIR.match(budget) is not None


def _as_budget(rung: str | tuple[int, int] | list[int] | Budget) -> Budget:
    if isinstance(rung, Budget):
        return rung
    if isinstance(rung, str):
        return Budget.parse(rung)
    r_q, r_d = rung
    return Budget(r_q, r_d)


DEFAULT_LADDER = Ladder.parse(["1x1", "2x4", "4x8", "8x16", "16x64"])

"""Coarse keys: which vectors of a document a coarse list holds, and which lists a search reads.

    fused    the fused vector
    first    the first of the multi-vectors
    prefix   the first few of them, searched with the first two query vectors

Knows nothing of FAISS, files or scores. Middle floor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, get_args

from rematch_ray.errors import UserError, did_you_mean

CoarseKey = Literal["fused", "first", "prefix"]
COARSE_KEYS: tuple[str, ...] = get_args(CoarseKey)
CHOICE_KEYS: dict[str, tuple[str, ...]] = {
    "fused": ("fused",),
    "first": ("first",),
    "both": ("fused", "first"),
    "prefix": ("prefix",),
    "fused+prefix": ("fused", "prefix"),
    "all": ("fused", "first", "prefix"),
}
COARSE_CHOICES: tuple[str, ...] = tuple(CHOICE_KEYS)

# query vectors that a search of each multi-vector key takes
QUERY_VECTORS = {"first": 1, "prefix": 2}
# document vectors of the prefix key, where the ladder has a plane that ends there
_PREFIX_VECTORS = 4


def prefix_planes(planes: Sequence[tuple[int, int]]) -> int:
    """How many planes make the prefix: those within four vectors, but two where there are two.

    >>> prefix_planes([(0, 1), (1, 4), (4, 8)]), prefix_planes([(0, 1), (1, 2), (2, 4)])
    (2, 3)
    >>> prefix_planes([(0, 8), (8, 16)]), prefix_planes([(0, 1)])
    (2, 1)
    """
    within = sum(stop <= _PREFIX_VECTORS for _, stop in planes)
    return max(within, min(2, len(planes)))


def choices_of(keys: Collection[str]) -> tuple[str, ...]:
    """The choices that a search has over an index that stores these keys.

    >>> choices_of(["first", "fused"])
    ('fused', 'first', 'both')
    """
    return tuple(choice for choice, needed in CHOICE_KEYS.items() if set(needed) <= set(keys))


def choose_keys(
    keys: Iterable[str] | None, choice: str | None, *, has_fused: bool
) -> tuple[tuple[str, ...], str]:
    """The keys that an index stores and the choice that its searches take by default.

    Args:
        keys: what was asked for; None stores the fused and the first vector, and what `choice`
            needs.
        choice: the default choice; None takes the first that the keys allow.
        has_fused: whether documents have a fused vector.

    Returns:
        Keys in the order of `COARSE_KEYS`, and the choice.

    Raises:
        UserError: an unknown key or choice, or one that needs what is not there.

    >>> choose_keys(None, None, has_fused=True)
    (('fused', 'first'), 'fused')
    >>> choose_keys(None, "prefix", has_fused=False)
    (('first', 'prefix'), 'prefix')
    """
    possible = COARSE_KEYS if has_fused else COARSE_KEYS[1:]
    if keys is None:
        needed = set(CHOICE_KEYS.get(choice or "", ())) & set(possible)
        stored, allowed = {"first", possible[0], *needed}, choices_of(possible)
    else:
        stored, allowed = set(keys), choices_of(set(keys))
        for key in sorted(stored - set(possible)) or ([] if stored else [""]):
            raise UserError(
                f"coarse key '{key}' does not exist here; {did_you_mean(key, possible)}"
            )
    if choice is None:
        choice = choices_of(stored)[0]
    if choice not in allowed:
        raise UserError(f"coarse '{choice}' does not exist here; allowed: {', '.join(allowed)}")
    return tuple(key for key in COARSE_KEYS if key in stored), choice

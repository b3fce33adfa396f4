"""Generated scenes: coloured shapes in a relation, and the swaps that only binding can tell apart.

"a red bar left of a yellow triangle" and its swaps hold the same words, colours and shapes: a model
blind to which colour belongs to which shape, or to order, cannot rank them. Everything is a pure
function of attributes and seeds; pictures are `data/scene_drawing.py`. Middle floor.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from rematch_ray.errors import UserError

COLOURS = {
    "red": (221, 30, 37),
    "orange": (255, 140, 0),
    "yellow": (250, 216, 0),
    "green": (26, 156, 62),
    "blue": (32, 80, 222),
    "purple": (140, 50, 180),
    "black": (20, 20, 20),
    "grey": (160, 160, 160),
}
SHAPES = ("circle", "square", "triangle", "bar", "star", "cross", "ring", "diamond")
RELATIONS = ("left of", "right of", "above", "below")
CANONICAL = ("left of", "above")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_WORDINGS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "underneath"),
}

MAX_OBJECTS = 4
SPLITS = ("train", "validation", "test")
SWAP_KINDS = ("swap:colour", "swap:position", "swap:relation")

SPLIT_SEED = 0
HELD_OUT_SHARE = 117 / 784  # of the two-object families; half of it validation, half test


@dataclass(frozen=True, order=True)
class Shape:
    """One object of a scene."""

    colour: str
    shape: str

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects in a row or a column, in canonical form: "b right of a" is "a left of b".

    Attributes:
        objects: from left to right, or from top to bottom.
        relation: `left of` (a row) or `above` (a column).
    """

    objects: tuple[Shape, ...]
    relation: str

    def __post_init__(self) -> None:
        if self.relation not in CANONICAL:
            raise UserError(
                f"scene relation {self.relation!r} is not canonical; allowed: "
                f"{', '.join(CANONICAL)} (Scene.of accepts all four)"
            )
        if not 2 <= len(self.objects) <= MAX_OBJECTS:
            raise UserError(f"a scene has {len(self.objects)} objects; allowed: 2 to {MAX_OBJECTS}")
        for thing in self.objects:
            if thing.colour not in COLOURS or thing.shape not in SHAPES:
                raise UserError(
                    f"no such object: {thing}; colours: {', '.join(COLOURS)}; "
                    f"shapes: {', '.join(SHAPES)}"
                )

    @classmethod
    def of(cls, first: Shape, relation: str, *others: Shape) -> Scene:
        """The canonical scene for "first RELATION others[0] RELATION others[1] ...".

        >>> a, b = Shape("red", "bar"), Shape("yellow", "star")
        >>> Scene.of(a, "left of", b) == Scene.of(b, "right of", a)
        True
        """
        if relation not in RELATIONS:
            raise UserError(f"relation {relation!r} is unknown; allowed: {', '.join(RELATIONS)}")
        objects = (first, *others)
        if relation in CANONICAL:
            return cls(objects, relation)
        return cls(objects[::-1], _OPPOSITE[relation])

    @property
    def id(self) -> str:
        """Identity of the canonical scene, e.g. `scene-red-bar-left-yellow-star`."""
        word = self.relation.partition(" ")[0]
        return "scene-" + f"-{word}-".join(
            f"{thing.colour}-{thing.shape}" for thing in self.objects
        )

    @property
    def family(self) -> str:
        """Key of all scenes with the same colours and the same shapes, however bound and placed."""
        colours = sorted(thing.colour for thing in self.objects)
        shapes = sorted(thing.shape for thing in self.objects)
        return "+".join(colours) + ":" + "+".join(shapes)

    @property
    def split(self) -> str:
        """`train`, `validation` or `test`; the same for the whole family."""
        return family_split(self.family)

    @property
    def caption(self) -> str:
        """The canonical caption."""
        return f" {self.relation} ".join(str(thing) for thing in self.objects)

    @property
    def paraphrase(self) -> str:
        """The same scene told from the other end, e.g. "a yellow star right of a red bar"."""
        return f" {_OPPOSITE[self.relation]} ".join(str(thing) for thing in reversed(self.objects))

    @property
    def captions(self) -> tuple[str, ...]:
        """Every wording: the caption, the paraphrase, then other words for the relation."""
        forward, backward = self.relation, _OPPOSITE[self.relation]
        told = [(self.objects, word) for word in _WORDINGS[forward]]
        told += [(self.objects[::-1], word) for word in _WORDINGS[backward]]
        texts = [f" {word} ".join(str(thing) for thing in objects) for objects, word in told]
        return tuple(dict.fromkeys([self.caption, self.paraphrase, *texts]))


def scene(seed: int, *, num_objects: int = 2, split: str = "train") -> Scene:
    """A scene drawn from one split: distinct colours and distinct shapes.

    Args:
        seed: the draw.
        num_objects: 2 to 4.
        split: `train`, `validation` or `test`.

    Returns:
        The scene; the same for the same arguments.
    """
    draw = random.Random(f"scene:{seed}:{num_objects}")
    while True:
        colours = draw.sample(sorted(COLOURS), num_objects)
        shapes = draw.sample(SHAPES, num_objects)
        found = Scene(tuple(map(Shape, colours, shapes)), draw.choice(CANONICAL))
        if found.split == split:
            return found


def scene_families(split: str) -> tuple[str, ...]:
    """Keys of the two-object families (distinct colours, distinct shapes) of a split.

    Returns:
        667 for `train`, 58 for `validation`, 59 for `test`; each family has 8 scenes.
    """
    if split not in SPLITS:
        raise UserError(f"scene split {split!r} is unknown; allowed: {', '.join(SPLITS)}")
    return tuple(family for family in _pair_families() if _split_table()[family] == split)


def family_scenes(family: str) -> tuple[Scene, ...]:
    """Every scene of a family: bindings x orders x relations, 8 for two distinct objects."""
    colours, shapes = (part.split("+") for part in family.split(":"))
    found = (
        Scene(tuple(map(Shape, colour_order, shape_order)), relation)
        for relation in CANONICAL
        for shape_order in itertools.permutations(shapes)
        for colour_order in itertools.permutations(colours)
    )
    return tuple(dict.fromkeys(found))


def scenes_of(split: str) -> Iterator[Scene]:
    """All two-object scenes of a split, family by family."""
    for family in scene_families(split):
        yield from family_scenes(family)


def scene_swaps(source: Scene) -> tuple[tuple[str, Scene], ...]:
    """The hard negatives of a scene: what a swap of the canonical scene makes of it.

    Colour exchanges the colours of the first object and another one, position exchanges their
    places, relation turns the row into a column. A swap that equals its source (both objects red)
    or an earlier swap is left out, so every negative is false and counted once.

    Returns:
        Pairs `(kind, scene)`, kinds from `SWAP_KINDS`; all in the family of the source.

    >>> red_bar, red_star = Shape("red", "bar"), Shape("red", "star")
    >>> [kind for kind, _ in scene_swaps(Scene((red_bar, red_star), "above"))]
    ['swap:position', 'swap:relation']
    """
    first, *others = source.objects
    swapped: list[tuple[str, Scene]] = []
    for i, other in enumerate(others):
        colours = list(source.objects)
        colours[0] = Shape(other.colour, first.shape)
        colours[i + 1] = Shape(first.colour, other.shape)
        swapped.append(("swap:colour", Scene(tuple(colours), source.relation)))
    for i, other in enumerate(others):
        places = list(source.objects)
        places[0], places[i + 1] = other, first
        swapped.append(("swap:position", Scene(tuple(places), source.relation)))
    turned = CANONICAL[1 - CANONICAL.index(source.relation)]
    swapped.append(("swap:relation", Scene(source.objects, turned)))
    kept: dict[Scene, str] = {}
    for kind, swap in swapped:
        if swap != source:
            kept.setdefault(swap, kind)
    return tuple((kind, swap) for swap, kind in kept.items())


def family_split(family: str) -> str:
    """The split of a family of any number of objects.

    A family of more than two objects is held out as soon as two of its colours and two of its
    shapes form a held-out pair family, so no training scene shows a held-out pair.
    """
    colours, shapes = (part.split("+") for part in family.split(":"))
    pairs = {
        f"{'+'.join(sorted(two))}:{'+'.join(sorted(kinds))}"
        for two in itertools.combinations(colours, 2)
        for kinds in itertools.combinations(shapes, 2)
    }
    found = {_split_table()[pair] for pair in pairs}
    return next(split for split in ("test", "validation", "train") if split in found)


def _pair_families(repeats: bool = False) -> list[str]:
    """Two-object families: of distinct colours and distinct shapes, or those with a repeat."""
    families = []
    for colours in itertools.combinations_with_replacement(sorted(COLOURS), 2):
        for shapes in itertools.combinations_with_replacement(sorted(SHAPES), 2):
            if (colours[0] == colours[1] or shapes[0] == shapes[1]) == repeats:
                families.append(f"{'+'.join(colours)}:{'+'.join(shapes)}")
    return families


@lru_cache(maxsize=1)
def _split_table() -> dict[str, str]:
    table = {}
    for families in (_pair_families(), _pair_families(repeats=True)):
        random.Random(SPLIT_SEED).shuffle(families)
        num_held = round(HELD_OUT_SHARE * len(families))
        for i, family in enumerate(families):
            table[family] = (
                "train" if i >= num_held else "validation" if i < num_held // 2 else "test"
            )
    return table

"""The scenes corpus: a caption asks for a picture that stands among all its swaps.

Every training row has the swaps of its scene as hard negatives; the gallery is the held-out
families, whole. Pure functions of seed and sizes. Middle floor.
"""

from __future__ import annotations

import random

from rematch_ray.data.demo_corpus import DemoCorpus, DemoSizes, some, training_row
from rematch_ray.data.item import Item, Negative, Part, Sample
from rematch_ray.data.media import encode_png
from rematch_ray.data.scene_drawing import draw_scene
from rematch_ray.data.scenes import Scene, family_scenes, scene_families, scene_swaps

SOURCE = "scenes"
PARTS = ("validation", "test")
GALLERY_WORDING = -1  # pictures of the gallery are not those of any training row


def scenes_corpus(seed: int, sizes: DemoSizes) -> DemoCorpus:
    """The corpus; queries are told from either end ("a left of b", "b right of a")."""
    draw = random.Random(f"scenes:{seed}")
    rows = [
        row
        for family in some(scene_families("train"), sizes.scene_train_families, draw)
        for wording in range(sizes.scene_wordings)
        for row in _family_rows(family, jitter(seed, wording), draw)
    ]
    held_out = {
        part: [
            scene
            for family in some(scene_families(part), sizes.scene_held_out_families, draw)
            for scene in family_scenes(family)
        ]
        for part in PARTS
    }
    gallery = [scene for scenes in held_out.values() for scene in scenes]
    return DemoCorpus(
        source=SOURCE,
        train=rows,
        documents=[_document(scene, jitter(seed, GALLERY_WORDING)) for scene in gallery],
        queries={
            part: [
                Item.of(
                    draw.choice((scene.caption, scene.paraphrase)),
                    id=query_id(scene),
                    source=SOURCE,
                )
                for scene in scenes
            ]
            for part, scenes in held_out.items()
        },
        qrels={
            part: [(query_id(scene), scene.id, 1.0) for scene in scenes]
            for part, scenes in held_out.items()
        },
        families={scene.id: {"family": scene.family} for scene in gallery},
        swaps={
            part: [
                (query_id(scene), swap.id, kind)
                for scene in scenes
                for kind, swap in scene_swaps(scene)
            ]
            for part, scenes in held_out.items()
        },
    )


def picture(scene: Scene, seed: int) -> Item:
    """One drawing of a scene; every drawing of it is the same document."""
    return Item(scene.id, (Part.of_image(encode_png(draw_scene(scene, seed=seed))),), source=SOURCE)


def query_id(scene: Scene) -> str:
    """Id of the query that asks for a held-out scene."""
    return f"query-{scene.id}"


def jitter(seed: int, wording: int) -> int:
    """Seed of the drawings that go with a wording."""
    return 1000 * seed + wording


def _family_rows(family: str, jitter_seed: int, draw: random.Random) -> list[Sample]:
    """A row for each scene of a family; positives and negatives share the family's drawings."""
    pictures = {scene: picture(scene, jitter_seed) for scene in family_scenes(family)}
    return [
        training_row(
            SOURCE,
            draw.choice(scene.captions),
            [pictures[scene]],
            [Negative(pictures[swap], kind) for kind, swap in scene_swaps(scene)],
        )
        for scene in pictures
    ]


def _document(scene: Scene, seed: int) -> Item:
    payload = {
        "name": scene.caption,
        "group": scene.relation,
        "family": scene.family,
        "split": scene.split,
    }
    drawn = picture(scene, seed)
    return Item(drawn.id, drawn.parts, source=SOURCE, payload=payload)

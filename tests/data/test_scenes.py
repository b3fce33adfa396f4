from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.data.scenes import (
    CANONICAL,
    COLOURS,
    RELATIONS,
    SHAPES,
    SPLITS,
    SWAP_KINDS,
    Scene,
    Shape,
    family_scenes,
    family_split,
    scene,
    scene_families,
    scene_swaps,
    scenes_of,
)
from rematch_ray.errors import UserError

shapes = st.builds(Shape, st.sampled_from(sorted(COLOURS)), st.sampled_from(SHAPES))
scenes = st.builds(
    Scene, st.lists(shapes, min_size=2, max_size=4).map(tuple), st.sampled_from(CANONICAL)
)
BAR, STAR = Shape("red", "bar"), Shape("orange", "star")


def test_the_two_ways_to_say_a_scene_are_one_scene():
    assert Scene.of(BAR, "left of", STAR) == Scene.of(STAR, "right of", BAR)
    assert Scene.of(BAR, "above", STAR) == Scene.of(STAR, "below", BAR)
    assert Scene.of(BAR, "left of", STAR) != Scene.of(BAR, "right of", STAR)


def test_captions_say_what_is_where():
    told = Scene.of(BAR, "left of", STAR)
    assert told.caption == "a red bar left of an orange star"
    assert told.paraphrase == "an orange star right of a red bar"
    three = Scene.of(BAR, "above", STAR, Shape("grey", "ring"))
    assert three.caption == "a red bar above an orange star above a grey ring"
    assert three.paraphrase == "a grey ring below an orange star below a red bar"


def test_no_two_scenes_share_a_wording_or_an_id():
    captions, ids = Counter(), Counter()
    for split in SPLITS:
        for found in scenes_of(split):
            assert len(set(found.captions)) == 6
            captions.update(found.captions)
            ids[found.id] += 1
    assert len(ids) == 784 * 8
    assert max(ids.values()) == 1
    assert max(captions.values()) == 1


def test_families_have_eight_scenes_and_are_split_as_promised():
    families = {split: set(scene_families(split)) for split in SPLITS}
    assert [len(families[split]) for split in SPLITS] == [667, 58, 59]
    assert not any(one & other for one, other in combinations(families.values(), 2))
    for family in scene_families("test"):
        members = family_scenes(family)
        assert len(set(members)) == 8
        assert {member.family for member in members} == {family}


@given(scenes)
def test_a_swap_is_another_scene_of_the_same_family_and_side(source):
    swaps = scene_swaps(source)
    assert source not in [swap for _, swap in swaps]
    assert len({swap for _, swap in swaps}) == len(swaps)
    for kind, swap in swaps:
        assert kind in SWAP_KINDS
        assert swap.family == source.family
        assert swap.split == source.split
        assert swap.caption != source.caption


@given(st.permutations(sorted(COLOURS)), st.permutations(SHAPES), st.sampled_from(CANONICAL))
def test_distinct_objects_have_exactly_the_three_swaps(colours, kinds, relation):
    first, second = (Shape(colours[i], kinds[i]) for i in range(2))
    source = Scene((first, second), relation)
    turned = CANONICAL[1 - CANONICAL.index(relation)]
    assert dict(scene_swaps(source)) == {
        "swap:colour": Scene(
            (Shape(second.colour, first.shape), Shape(first.colour, second.shape)), relation
        ),
        "swap:position": Scene((second, first), relation),
        "swap:relation": Scene((first, second), turned),
    }


def test_a_swap_that_equals_its_source_is_not_made():
    same_colour = Scene((BAR, Shape("red", "star")), "left of")
    assert [kind for kind, _ in scene_swaps(same_colour)] == ["swap:position", "swap:relation"]
    twins = Scene((BAR, BAR), "left of")
    assert [kind for kind, _ in scene_swaps(twins)] == ["swap:relation"]


def test_a_colour_swap_that_is_also_a_position_swap_is_made_once():
    same_shape = Scene((BAR, Shape("blue", "bar")), "left of")
    assert [kind for kind, _ in scene_swaps(same_shape)] == ["swap:colour", "swap:relation"]


@pytest.mark.parametrize("num_objects", [2, 3, 4])
@pytest.mark.parametrize("split", SPLITS)
def test_draws_are_repeatable_and_stay_in_their_split(num_objects, split):
    drawn = [scene(seed, num_objects=num_objects, split=split) for seed in range(10)]
    assert drawn == [scene(seed, num_objects=num_objects, split=split) for seed in range(10)]
    assert {found.split for found in drawn} == {split}
    assert {len(found.objects) for found in drawn} == {num_objects}
    assert len(set(drawn)) > 5


def test_a_larger_training_scene_shows_no_held_out_pair():
    for seed in range(30):
        found = scene(seed, num_objects=3, split="train")
        for one, other in combinations(found.objects, 2):
            assert Scene((one, other), found.relation).split == "train"


def test_every_family_has_one_side():
    repeated = family_split("red+red:bar+star")
    assert repeated in SPLITS
    assert Scene((BAR, Shape("red", "star")), "above").split == repeated


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scene((BAR, STAR), "right of"), "not canonical"),
        (lambda: Scene.of(BAR, "beside", STAR), "'beside' is unknown.*" + RELATIONS[0]),
        (lambda: Scene((BAR,), "above"), "1 objects; allowed: 2 to 4"),
        (lambda: Scene((BAR, Shape("pink", "bar")), "above"), "a pink bar; colours: red"),
        (lambda: scene_families("dev"), "'dev' is unknown.*train"),
    ],
)
def test_what_cannot_be_a_scene_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()

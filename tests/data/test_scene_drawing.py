import numpy as np
import pytest

from rematch_ray.data.scene_drawing import SIDE, draw_scene
from rematch_ray.data.scenes import CANONICAL, COLOURS, SHAPES, Scene, Shape, scene


def mask(image, colour):
    """(H, W) bool: pixels near a colour."""
    return np.abs(np.asarray(image, int) - COLOURS[colour]).max(axis=2) <= 14


def test_a_drawing_is_repeatable_and_jittered_by_seed():
    found = scene(3)
    assert draw_scene(found, seed=1).tobytes() == draw_scene(found, seed=1).tobytes()
    assert draw_scene(found, seed=1).tobytes() != draw_scene(found, seed=2).tobytes()
    assert draw_scene(found).size == (SIDE, SIDE)
    assert draw_scene(found).mode == "RGB"


@pytest.mark.parametrize("relation", CANONICAL)
@pytest.mark.parametrize("shape", SHAPES)
def test_objects_stand_where_the_caption_says_and_do_not_touch(relation, shape):
    found = Scene((Shape("red", shape), Shape("blue", "square")), relation)
    axis = 1 if relation == "left of" else 0
    for seed in range(10):
        image = draw_scene(found, seed=seed)
        first, second = (np.argwhere(mask(image, colour))[:, axis] for colour in ("red", "blue"))
        assert len(first) > 60
        assert first.max() < second.min()


@pytest.mark.parametrize("num_objects", [2, 3, 4])
def test_every_object_lies_inside_and_shows_its_own_colour(num_objects):
    for seed in range(20):
        found = scene(seed, num_objects=num_objects)
        pixels = np.asarray(draw_scene(found, seed=seed))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all()
        for thing in found.objects:
            assert mask(pixels, thing.colour).sum() >= 12


def test_every_shape_is_drawn_differently():
    silhouettes = []
    for shape in SHAPES:
        found = Scene((Shape("red", shape), Shape("blue", "square")), "left of")
        drawn = [np.asarray(draw_scene(found, seed=seed), int) for seed in range(60)]
        red = np.mean([np.abs(d - COLOURS["red"]).max(axis=2) <= 14 for d in drawn], axis=0)
        silhouettes.append(red)
    for i, one in enumerate(silhouettes):
        for other in silhouettes[:i]:
            assert np.abs(one - other).sum() > 40

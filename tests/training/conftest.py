"""A fresh untrained embedder for every test; the base behind it is made once."""

import copy
from pathlib import Path

import pytest

from rematch_ray.model.embedder import Embedder
from tests.tiny import new_embedder


@pytest.fixture(scope="session")
def pristine(tiny_base: Path) -> Embedder:
    """The embedder that every test copies; nobody trains it."""
    return new_embedder(tiny_base)


@pytest.fixture
def embedder(pristine: Embedder) -> Embedder:
    """An untrained embedder of the test's own."""
    return copy.deepcopy(pristine)

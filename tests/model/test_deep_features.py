"""Features of images stay with their tokens, however rows are picked, cut and put together."""

import torch
from torch import Tensor

from rematch_ray.model.deep_features import DeepFeatures, join_features

WHERE = torch.tensor([[False, True, True, False], [True, False, False, False]])
OTHER = torch.tensor([[False, False], [False, True]])


def made(where: Tensor, seed: int) -> tuple[DeepFeatures, Tensor]:
    """Features of two layers, and where they are added: (layers, B, T, H), zero elsewhere."""
    random = torch.Generator().manual_seed(seed)
    layers = [torch.randn(int(where.sum()), 3, generator=random) for _ in range(2)]
    deep = DeepFeatures.of(where, layers)
    assert deep is not None
    dense = torch.zeros(2, *where.shape, 3)
    for number, layer in enumerate(layers):
        dense[number, where] = layer
    return deep, dense


def dense_of(deep: DeepFeatures | None) -> Tensor:
    """What a decoder adds."""
    assert deep is not None
    where, layers = deep.placed()
    found = torch.zeros(len(layers), *where.shape, 3)
    for number, layer in enumerate(layers):
        found[number, where] = layer
    return found


def embeds(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, columns, 3)


def test_rows_and_columns_take_theirs_along() -> None:
    deep, dense = made(WHERE, 1)
    torch.testing.assert_close(dense_of(deep), dense)
    rows = torch.tensor([1, 0, 1])
    torch.testing.assert_close(dense_of(deep.take(rows)), dense[:, rows])
    torch.testing.assert_close(dense_of(deep.take(rows).columns(1, 3)), dense[:, rows, 1:3])
    wide = torch.nn.functional.pad(dense, (0, 0, 0, 2))
    torch.testing.assert_close(dense_of(deep.padded(6)), wide)


def test_parts_side_by_side_and_one_below_the_other() -> None:
    (deep, dense), (other, other_dense) = made(WHERE, 1), made(OTHER, 2)
    text = embeds(2, 3)
    beside = join_features(
        [(other, embeds(2, 2)), (None, text), (deep, embeds(2, 4)), (other, embeds(2, 2))], dim=1
    )
    parts = [other_dense, torch.zeros(2, 2, 3, 3), dense, other_dense]
    torch.testing.assert_close(dense_of(beside), torch.cat(parts, dim=2))
    assert beside is not None
    assert len(beside.layers[0]) == 3 + 1  # the rows of one pass are held once
    below = join_features([(deep, embeds(2, 4)), (None, embeds(1, 4))], dim=0)
    torch.testing.assert_close(dense_of(below), torch.cat([dense, torch.zeros(2, 1, 4, 3)], dim=1))


def test_without_images_there_is_nothing() -> None:
    assert DeepFeatures.of(WHERE, []) is None
    assert join_features([(None, embeds(2, 3)), (None, embeds(2, 1))], dim=1) is None

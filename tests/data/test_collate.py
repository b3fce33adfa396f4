"""Rows padded into a batch: room for the meta tokens, segments, positions and images."""

import pytest
import torch

from rematch_ray.data.collate import CONTENT, END, HEADER, META, PAD, Batch, collate
from rematch_ray.data.rows import EncodedRow, RowEncoder
from rematch_ray.data.schema import Item
from tests.tiny import png

NUM_META = 6


@pytest.fixture(scope="module")
def rows(tiny_encoder: RowEncoder) -> list[EncodedRow]:
    items = [
        Item.of("a red circle", id="a"),
        Item.of(png("red", 48, 48), "and a longer text behind it", id="b"),
        Item.of(png("blue", 32, 64), png(), id="c"),
    ]
    return [tiny_encoder.encode(item, "document") for item in items]


@pytest.fixture(scope="module")
def batch(rows: list[EncodedRow]) -> Batch:
    return collate(rows, num_meta=NUM_META, pad_id=0)


def test_meta_tokens_stand_right_behind_each_row(rows: list[EncodedRow], batch: Batch) -> None:
    assert batch.input_ids.shape[1] == max(len(row.input_ids) for row in rows) + NUM_META
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        assert batch.input_ids[index, :length].tolist() == row.input_ids.tolist()
        assert batch.input_ids[index, length:].eq(0).all()
        assert batch.meta_positions[index].tolist() == list(range(length, length + NUM_META))


def test_segments_name_every_column(rows: list[EncodedRow], batch: Batch) -> None:
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        want = [HEADER] * row.header + [CONTENT] * (row.content - row.header)
        want += [END] * (length - row.content) + [META] * NUM_META
        want += [PAD] * (batch.input_ids.shape[1] - len(want))
        assert batch.segment[index].tolist() == want
    assert torch.equal(batch.mask, batch.segment != PAD)


def test_meta_positions_continue_behind_the_largest(rows: list[EncodedRow], batch: Batch) -> None:
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        assert (batch.position_ids[:, index, :length].numpy() == row.positions).all()
        meta = batch.position_ids[:, index, length : length + NUM_META]
        assert meta.tolist() == [list(range(row.positions.max() + 1, row.positions.max() + 7))] * 3


def test_images_follow_in_row_order(rows: list[EncodedRow], batch: Batch) -> None:
    assert batch.pixel_values is not None
    assert batch.image_grid_thw is not None
    assert batch.image_grid_thw.tolist() == [*rows[1].grid.tolist(), *rows[2].grid.tolist()]
    assert (batch.pixel_values[: len(rows[1].pixels)].numpy() == rows[1].pixels.unpack()).all()
    assert len(batch.pixel_values) == len(rows[1].pixels) + len(rows[2].pixels)


def test_a_batch_of_texts_has_no_images(rows: list[EncodedRow]) -> None:
    batch = collate(rows[:1], num_meta=0, pad_id=0)
    assert batch.pixel_values is batch.image_grid_thw is None
    assert batch.meta_positions.shape == (1, 0)
    assert batch.mask.all()


def test_a_batch_moves_as_a_whole(batch: Batch) -> None:
    moved = batch.to("meta")
    for name in ("input_ids", "mask", "segment", "position_ids", "meta_positions", "pixel_values"):
        assert getattr(moved, name).device.type == "meta"
    assert moved.ids == ("a", "b", "c")

"""One Item as the numbers a model reads: token ids, 3-axis positions and image patches.

The CPU half of encoding: decodes images, tokenises, lays out `[P][S][E]` and its positions. Holds a
tokenizer and an image processor but no weights, so it is cheap to send to CPU tasks. Rows travel as
plain Arrow columns. Middle floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rematch_ray.data.media import ITEM_IMAGES, decode_image
from rematch_ray.data.pixels import PackedPixels, PixelScale, pack
from rematch_ray.data.prompts import PromptTokens, Side, Template
from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError

# characters of a text that are looked at for each token that may come of them: a row of many
# megabytes costs no more than what is kept of it
CHARACTERS_PER_TOKEN = 64

# of one instruction; a longer one is refused, for half an instruction asks for something else
INSTRUCTION_TOKENS = 4096

ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("positions", pa.list_(pa.int32())),
        ("header", pa.int32()),
        ("content", pa.int32()),
        ("pixels", pa.large_binary()),
        ("grid", pa.list_(pa.int32())),
        ("truncated", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class EncodedRow:
    """One item as numpy arrays, without meta tokens.

    Attributes:
        id: the item's id.
        input_ids: (T,) int32, `[P][S][E]`.
        positions: (3, T) int32 temporal, height and width positions.
        header: number of tokens of P.
        content: number of tokens of P and S together.
        pixels: the patches of all images one after another, packed until they are needed.
        grid: (images, 3) int32, temporal, height and width in patches.
        truncated: whether text was cut at the token limit.
    """

    id: str
    input_ids: np.ndarray
    positions: np.ndarray
    header: int
    content: int
    pixels: PackedPixels
    grid: np.ndarray
    truncated: bool = False


class RowEncoder:
    """Turns Items into rows. Picklable; knows the template and the processors, not the weights.

    Args:
        tokenizer: Hugging Face tokenizer.
        image_processor: Hugging Face image processor of the Qwen-VL kind (patches and grids).
        template: the fixed strings.
        max_text_tokens: text tokens of one item beyond which the rest is cut, and text beyond
            `CHARACTERS_PER_TOKEN` characters for each of them.
        max_image_pixels: images with more pixels than this are refused before decoding.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        template: Template,
        *,
        max_text_tokens: int = 4096,
        max_image_pixels: int = 64_000_000,
    ) -> None:
        self._tokenizer = tokenizer
        self.prompt = PromptTokens(tokenizer, template)
        self.max_text_tokens = max_text_tokens
        self.max_image_pixels = max_image_pixels
        self._processor = image_processor
        self.merge_size = int(image_processor.merge_size)
        channels = 3 * int(image_processor.temporal_patch_size)
        self.patch_pixels = int(image_processor.patch_size) ** 2
        self.patch_dim = channels * self.patch_pixels
        self._scale = _pixel_scale(image_processor)

    def encode(self, item: Item, side: Side, instruction: str | None = None) -> EncodedRow:
        """Encodes one item.

        Args:
            item: text and image parts in order; images as bytes.
            side: which marker opens it.
            instruction: put before the parts; None or empty for none. It is never cut: more than
                `INSTRUCTION_TOKENS` tokens are refused.

        Raises:
            UserError: an image cannot be decoded or holds no bytes, there are too many, or the
                instruction is too long; the item's id is named.
        """
        if len(item.images) > ITEM_IMAGES:
            raise UserError(
                f"item {item.id!r} has {len(item.images)} images; at most {ITEM_IMAGES} are encoded"
            )
        ids = list(self.prompt.header)
        header = len(ids)
        ids += self.prompt.text(self.prompt.template.marker(side))
        if instruction:
            ids += self._instruction(item, instruction)
        pixels, grids, budget = [], [], self.max_text_tokens
        truncated = False
        for part in item.parts:
            if part.kind == "text":
                text = part.text or ""
                most = budget * CHARACTERS_PER_TOKEN
                tokens = self.prompt.user_text(text[:most])
                truncated = truncated or len(text) > most or len(tokens) > budget
                ids += tokens[:budget]
                budget -= min(budget, len(tokens))
            else:
                patches, grid = self._image(item, part.image)
                pixels.append(patches)
                grids.append(grid)
                num_tokens = int(grid.prod()) // self.merge_size**2
                ids += [self.prompt.vision_start, *[self.prompt.image] * num_tokens]
                ids.append(self.prompt.vision_end)
        content = len(ids)
        ids += self.prompt.end
        grid_k3 = np.array(grids, dtype=np.int32).reshape(-1, 3)
        return EncodedRow(
            id=item.id,
            input_ids=np.array(ids, dtype=np.int32),
            positions=self._positions(ids, header, grid_k3),
            header=header,
            content=content,
            pixels=pack(
                np.concatenate(pixels) if pixels else np.zeros((0, self.patch_dim), np.float32),
                self._scale,
            ),
            grid=grid_k3,
            truncated=truncated,
        )

    def save_processors(self, path: str | Path) -> None:
        """Writes tokenizer and image processor into a folder, as transformers reads them."""
        self._tokenizer.save_pretrained(path)
        self._processor.save_pretrained(path)

    def _instruction(self, item: Item, text: str) -> list[int]:
        tokens: list[int] | None = None
        # what is far too long is not even tokenised
        if len(text) <= INSTRUCTION_TOKENS * CHARACTERS_PER_TOKEN:
            tokens = self.prompt.user_text(text + "\n")
        if tokens is None or len(tokens) > INSTRUCTION_TOKENS:
            raise UserError(
                f"item {item.id!r}: its instruction of {len(text)} characters has more than the "
                f"{INSTRUCTION_TOKENS} tokens that are allowed: shorten it"
            )
        return tokens

    def _image(self, item: Item, data: bytes | None) -> tuple[np.ndarray, np.ndarray]:
        if data is None:
            raise UserError(
                f"item {item.id!r} has an image part without bytes: give the image itself, "
                "or read it through a reader that resolves its uri"
            )
        try:
            image = decode_image(data, max_pixels=self.max_image_pixels)
        except UserError as error:
            raise UserError(f"item {item.id!r}: {error}") from error
        features = self._processor(images=[image], return_tensors="np")
        patches = np.asarray(features["pixel_values"], dtype=np.float32)
        return patches, np.asarray(features["image_grid_thw"])[0].astype(np.int32)

    def _positions(self, ids: list[int], header: int, grid_k3: np.ndarray) -> np.ndarray:
        """3-axis positions: text counts up on all axes, an image spreads over rows and columns.

        S starts `match_gap` positions after P; the next token after an image starts one above the
        largest position used (Qwen2-VL's M-RoPE).
        """
        columns = [np.tile(np.arange(header), (3, 1))]
        next_position = header + self.prompt.template.match_gap
        index, image_index, num_tokens = header, 0, len(ids)
        while index < num_tokens:
            if ids[index] == self.prompt.image:
                frames, height, width = (int(x) for x in grid_k3[image_index])
                height, width = height // self.merge_size, width // self.merge_size
                block = np.stack(
                    np.meshgrid(
                        np.arange(frames), np.arange(height), np.arange(width), indexing="ij"
                    )
                ).reshape(3, -1)
                image_index += 1
            else:
                stop = index
                while stop < num_tokens and ids[stop] != self.prompt.image:
                    stop += 1
                block = np.tile(np.arange(stop - index), (3, 1))
            columns.append(block + next_position)
            next_position += int(block.max()) + 1
            index += block.shape[1]
        return np.concatenate(columns, axis=1).astype(np.int32)


def _pixel_scale(processor: Any) -> PixelScale | None:
    """What the processor does after resizing; None when it is not all of rescale and normalise."""
    if not (processor.do_rescale and processor.do_normalize) or len(processor.image_mean) != 3:
        return None
    return PixelScale(
        float(processor.rescale_factor),
        tuple(processor.image_mean),
        tuple(processor.image_std),
        int(processor.temporal_patch_size),
    )


def stable_id(text: str) -> int:
    """63-bit integer of an id, the same on every machine; never -1.

    >>> stable_id("a") == stable_id("a"), stable_id("a") != stable_id("b")
    (True, True)
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def rows_to_columns(rows: Sequence[EncodedRow]) -> dict[str, list[Any]]:
    """Rows as columns of `ROW_SCHEMA`."""
    return {
        "id": [row.id for row in rows],
        "input_ids": [row.input_ids for row in rows],
        "positions": [row.positions.reshape(-1) for row in rows],
        "header": [row.header for row in rows],
        "content": [row.content for row in rows],
        "pixels": [row.pixels.data for row in rows],
        "grid": [row.grid.reshape(-1) for row in rows],
        "truncated": [row.truncated for row in rows],
    }


def rows_to_table(rows: Sequence[EncodedRow]) -> pa.Table:
    """Rows as an Arrow table of `ROW_SCHEMA`."""
    return pa.Table.from_pydict(rows_to_columns(rows), schema=ROW_SCHEMA)


def rows_from_table(table: pa.Table | pa.RecordBatch) -> list[EncodedRow]:
    """Rows of a table whose columns include those of `ROW_SCHEMA`; pixels stay packed, uncopied."""
    rows = []
    columns = {name: table.column(name) for name in ROW_SCHEMA.names}
    for index in range(table.num_rows):
        ids = columns["input_ids"][index].values.to_numpy()
        grid = columns["grid"][index].values.to_numpy().reshape(-1, 3)
        rows.append(
            EncodedRow(
                id=columns["id"][index].as_py(),
                input_ids=ids,
                positions=columns["positions"][index].values.to_numpy().reshape(3, len(ids)),
                header=columns["header"][index].as_py(),
                content=columns["content"][index].as_py(),
                pixels=PackedPixels(memoryview(columns["pixels"][index].as_buffer())),
                grid=grid,
                truncated=columns["truncated"][index].as_py(),
            )
        )
    return rows

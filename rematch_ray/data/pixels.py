"""Image patches as they travel: one byte per pixel and compressed, bit for bit what they were.

A processor's patches are float32 and repeat each picture once per frame of a temporal patch, though
a resized picture holds one byte per channel. `pack` undoes what the processor did after resizing
and checks that `unpack` gives the very same numbers back; patches for which it does not (another
processor, a video) travel as they are. Knows no model. Middle floor.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

_CODEC = "zstd"
_LEVEL = 1  # a tenth of the time of level 9 for pictures a tenth larger
_RAW, _BYTES = 0, 1
# form, patches, numbers per patch, frames, rescale factor, mean and standard deviation
_HEADER = struct.Struct("<BIIId3d3d")
_CHANNELS = 3


@dataclass(frozen=True)
class PixelScale:
    """What an image processor does to a resized picture: `(value * factor - mean) / std`.

    Attributes:
        factor: of the rescaling, 1/255 as a rule.
        mean: per channel.
        std: per channel.
        frames: how often each picture is repeated, the temporal patch size.
    """

    factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    frames: int

    @property
    def table(self) -> np.ndarray:
        """(3, 256) float32: the value that each byte of each channel becomes."""
        return _table(self)


@dataclass(frozen=True, eq=False)
class PackedPixels:
    """The patches of one item's images, packed.

    Attributes:
        data: what `pack` wrote; bytes, or a view of an Arrow buffer.
    """

    data: bytes | memoryview

    @property
    def shape(self) -> tuple[int, int]:
        """(patches, numbers per patch) of what `unpack` returns."""
        _, patches, width, *_ = _HEADER.unpack_from(self.data)
        return patches, width

    def __len__(self) -> int:
        return self.shape[0]

    def unpack(self) -> np.ndarray:
        """The patches, (patches, numbers per patch) float32."""
        form, patches, width, frames, factor, *rest = _HEADER.unpack_from(self.data)
        body = memoryview(self.data)[_HEADER.size :]
        if form == _RAW:
            return np.frombuffer(body, dtype=np.float32).reshape(patches, width)
        scale = PixelScale(factor, _three(rest[:3]), _three(rest[3:]), frames)
        size = patches * width // frames
        plain = pa.Codec(_CODEC).decompress(pa.py_buffer(body), decompressed_size=size)
        picture = np.frombuffer(plain, dtype=np.uint8).reshape(patches, _CHANNELS, -1)
        return _unscaled(picture, scale)


def pack(patches: np.ndarray, scale: PixelScale | None) -> PackedPixels:
    """Packs patches without loss.

    Args:
        patches: (patches, channels * frames * side * side) float32.
        scale: what the processor did; None packs nothing.

    Returns:
        PackedPixels whose `unpack` equals `patches` bit for bit.

    >>> ramp = PixelScale(1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), frames=2)
    >>> patches = np.tile(ramp.table[:, None, 7:11], (1, 2, 1)).reshape(1, -1)
    >>> packed = pack(patches, ramp)
    >>> bool((packed.unpack() == patches).all()), packed.shape
    (True, (1, 24))
    """
    patches = np.ascontiguousarray(patches, dtype=np.float32)
    num_patches, width = patches.shape
    if scale is not None and num_patches and width % (_CHANNELS * scale.frames) == 0:
        picture = _bytes(patches, scale)
        if np.array_equal(_unscaled(picture, scale), patches):
            body = pa.Codec(_CODEC, compression_level=_LEVEL).compress(picture, asbytes=True)
            header = _HEADER.pack(
                _BYTES, num_patches, width, scale.frames, scale.factor, *scale.mean, *scale.std
            )
            return PackedPixels(header + body)
    header = _HEADER.pack(_RAW, num_patches, width, 1, 1.0, *[0.0] * 3, *[1.0] * 3)
    return PackedPixels(header + patches.tobytes())


def _bytes(patches: np.ndarray, scale: PixelScale) -> np.ndarray:
    """(patches, 3, side * side) uint8 of the first frame: the byte nearest to each number."""
    first = patches.reshape(len(patches), _CHANNELS, scale.frames, -1)[:, :, 0]
    mean, std = (np.array(x, dtype=np.float32)[:, None] for x in (scale.mean, scale.std))
    return np.rint((first * std + mean) / np.float32(scale.factor)).clip(0, 255).astype(np.uint8)


def _unscaled(picture: np.ndarray, scale: PixelScale) -> np.ndarray:
    num_patches, _, size = picture.shape
    patches = np.empty((num_patches, _CHANNELS, scale.frames, size), dtype=np.float32)
    for channel, table in enumerate(scale.table):
        patches[:, channel] = table.take(picture[:, channel])[:, None]
    return patches.reshape(num_patches, -1)


@lru_cache(maxsize=8)
def _table(scale: PixelScale) -> np.ndarray:
    # the operations and precisions of transformers' processors on PIL images, in their order
    ramp = (np.arange(256, dtype=np.uint8) * scale.factor).astype(np.float32)
    mean, std = (np.array(x, dtype=np.float32)[:, None] for x in (scale.mean, scale.std))
    return (ramp[None] - mean) / std


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third

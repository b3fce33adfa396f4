"""Packed patches: bit for bit what the processor made, and small."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rematch_ray.data.pixels import PackedPixels, PixelScale, pack

PROCESSOR = Qwen2VLImageProcessorPil()
SCALE = PixelScale(
    PROCESSOR.rescale_factor,
    tuple(PROCESSOR.image_mean),
    tuple(PROCESSOR.image_std),
    PROCESSOR.temporal_patch_size,
)


def photograph(seed: int, side: int = 140) -> Image.Image:
    """Smooth noise: every byte value occurs, and neighbours are alike as in a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def patches_of(image: Image.Image) -> np.ndarray:
    return np.asarray(PROCESSOR(images=[image], return_tensors="np")["pixel_values"])


@pytest.mark.parametrize("seed", range(5))
def test_patches_come_back_bit_for_bit(seed: int) -> None:
    patches = patches_of(photograph(seed))
    packed = pack(patches, SCALE)
    back = packed.unpack()
    assert back.dtype == np.float32
    assert back.tobytes() == patches.astype(np.float32).tobytes()
    assert packed.shape == patches.shape


def test_every_byte_of_every_channel_comes_back() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (56, 1, 3)).repeat(1, axis=0)
    ramp = ramp[:, :252]
    patches = patches_of(Image.fromarray(np.ascontiguousarray(ramp)))
    assert pack(patches, SCALE).unpack().tobytes() == patches.tobytes()


def test_a_packed_picture_takes_an_eighth_at_most() -> None:
    patches = patches_of(photograph(0))
    assert len(pack(patches, SCALE).data) < patches.nbytes / 8


def test_what_is_no_picture_travels_as_it_is() -> None:
    noise = np.random.default_rng(0).normal(size=(4, 1176)).astype(np.float32)
    packed = pack(noise, SCALE)
    assert packed.unpack().tobytes() == noise.tobytes()
    assert len(packed.data) > noise.nbytes


def test_frames_that_differ_are_kept() -> None:
    patches = patches_of(photograph(1)).copy().reshape(-1, 3, 2, 196)
    patches[:, :, 1] = patches[::-1, :, 1]
    patches = patches.reshape(len(patches), -1)
    assert pack(patches, SCALE).unpack().tobytes() == patches.tobytes()


def test_no_image_is_no_patches() -> None:
    packed = pack(np.zeros((0, 1176), np.float32), SCALE)
    assert packed.unpack().shape == (0, 1176)
    assert PackedPixels(memoryview(packed.data)).shape == (0, 1176)

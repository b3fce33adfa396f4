"""How many floating-point operations a step needs, from the sizes in a model's config.

Counts what the mathematics asks for (a multiplication and an addition are two), not what an
implementation does: nothing for what gradient checkpointing or a gradient cache computes again, nor
for padding, norms, activations, the heads and the matching stage, which add a few percent. A share
of a device's peak (MFU) counted so is a lower bound. Middle floor; no torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rematch_ray.model.settings import FreezePart, ModelSettings

# dense bfloat16 TFLOP/s as the makers' data sheets give them; the longest name that fits counts
PEAK_TFLOPS = {
    "A10": 125.0,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A800": 312.0,
    "B200": 2250.0,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
}


@dataclass(frozen=True)
class Trained:
    """Which parts of a backbone change.

    Args:
        language: the decoder's own weights.
        vision: the vision tower.
        merger: what joins them.
        lora_rank: rank of the decoder's adapters; 0 = none.
        frozen_layers: so many of the decoder's first layers change neither weights nor adapters.
    """

    language: bool = True
    vision: bool = True
    merger: bool = True
    lora_rank: int = 0
    frozen_layers: int = 0

    @classmethod
    def of(cls, settings: ModelSettings) -> Trained:
        """What a model's settings train."""
        layers = settings.freeze_layers
        if (lora := settings.lora) is not None:
            return cls(False, "vision" in lora.train, "merger" in lora.train, lora.rank, layers)
        frozen: set[FreezePart] = set(settings.freeze)
        return cls(
            language="language" not in frozen,
            vision="vision" not in frozen,
            merger="merger" not in frozen,
            frozen_layers=layers,
        )


@dataclass(frozen=True)
class Decoder:
    """Sizes of a dense decoder with grouped key-value heads and a gated MLP.

    One token costs, in each layer, 2 operations per weight: `hidden x (2 heads + 2 key-value
    heads) x head_dim` for attention and `3 x hidden x mlp`; each of the `T (T + 1) / 2` pairs that
    a row of T tokens attends to costs `4 x heads x head_dim`.

    >>> Decoder(layers=2, hidden=4, heads=2, key_value_heads=1, head_dim=2, mlp=8).forward([3])
    (1728, 192)
    """

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    mlp: int

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """Sizes from a transformers text config."""
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.intermediate_size,
        )

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Input and output width of each linear map of a layer: q, k, v, o, gate, up, down."""
        attention, cache = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        return [
            (self.hidden, attention),
            (self.hidden, cache),
            (self.hidden, cache),
            (attention, self.hidden),
            (self.hidden, self.mlp),
            (self.hidden, self.mlp),
            (self.mlp, self.hidden),
        ]

    def forward(self, lengths: Iterable[int]) -> tuple[int, int]:
        """Operations of one forward pass over rows: in linear maps, and in attention."""
        lengths = list(lengths)
        weights = sum(rows * columns for rows, columns in self.shapes)
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        linear = 2 * weights * sum(lengths)
        return self.layers * linear, self.layers * 4 * self.heads * self.head_dim * pairs

    def step(self, lengths: Sequence[int], trained: Trained) -> int:
        """Forward and backward: gradients of the inputs always, of weights where they change.

        The meta tokens are trained inputs, so gradients of activations flow through every layer
        even when no weight of it changes. Adapters of rank r add 3 x 2 x r x (in + out) a token.
        """
        linear, attention = self.forward(lengths)
        changing = max(0, self.layers - trained.frozen_layers)
        weights = linear // self.layers * changing if trained.language else 0
        adapters = sum(rows + columns for rows, columns in self.shapes) * trained.lora_rank
        return 2 * linear + weights + 3 * attention + 6 * changing * adapters * sum(lengths)


@dataclass(frozen=True)
class VisionTower:
    """Sizes of a Qwen-VL vision transformer and its merger.

    One patch costs 2 operations per weight of the patch embedding, and per layer of
    `4 x width^2` for attention and `num_mlp x width x mlp`; attention costs `4 x width` for each
    pair of patches of a frame, in the layers with windows for each pair of a window. The merger
    reads `merge^2` patches at a time: `(merge^2 width)^2 + merge^2 width x out`, and so does each
    further one that Qwen3-VL has.

    >>> tower = VisionTower(
    ...     layers=1, width=4, mlp=8, num_mlp=3, patch_dim=6, merge=2, out=4, window=0, full=(0,)
    ... )
    >>> tower.forward([(1, 2, 2)])  # 4 patches, one visual token
    (1728, 640)
    """

    layers: int
    width: int
    mlp: int
    num_mlp: int
    patch_dim: int
    merge: int
    out: int
    window: int
    full: tuple[int, ...]
    mergers: int = 1

    @classmethod
    def of(cls, config: Any) -> VisionTower:
        """Sizes from a transformers vision config of Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
        patch_dim = config.in_channels * config.temporal_patch_size * config.patch_size**2
        layers, merge = config.depth, config.spatial_merge_size
        if not hasattr(config, "embed_dim"):
            has_windows = hasattr(config, "fullatt_block_indexes")
            return cls(
                layers,
                config.hidden_size,
                config.intermediate_size,
                3 if has_windows else 2,
                patch_dim,
                merge,
                config.out_hidden_size,
                config.window_size // config.patch_size // merge * merge if has_windows else 0,
                tuple(config.fullatt_block_indexes if has_windows else range(layers)),
                1 + len(getattr(config, "deepstack_visual_indexes", ())),
            )
        width = config.embed_dim
        mlp = int(width * config.mlp_ratio)
        out = config.hidden_size
        return cls(layers, width, mlp, 2, patch_dim, merge, out, 0, tuple(range(layers)))

    def forward(self, grids: Iterable[tuple[int, int, int]]) -> tuple[int, int]:
        """Operations over images of (frames, height, width) patches: in the tower, in the merger.

        The first number is the vision tower's, attention included.
        """
        patches = full_pairs = window_pairs = 0
        for frames, height, width in grids:
            patches += frames * height * width
            full_pairs += frames * (height * width) ** 2
            window_pairs += frames * _squares(height, self.window) * _squares(width, self.window)
        num_full = sum(layer < self.layers for layer in self.full)
        pairs = num_full * full_pairs + (self.layers - num_full) * window_pairs
        layer = 4 * self.width**2 + self.num_mlp * self.width * self.mlp
        tower = 2 * patches * (self.patch_dim * self.width + self.layers * layer)
        merged = self.merge**2 * self.width
        merger = 2 * (patches // self.merge**2) * (merged**2 + merged * self.out) * self.mergers
        return tower + 4 * self.width * pairs, merger

    def step(self, grids: Sequence[tuple[int, int, int]], trained: Trained) -> int:
        """Forward, and backward as far down as something is trained."""
        tower, merger = self.forward(grids)
        below = trained.vision
        if not (below or trained.merger):
            return tower + merger
        # above a frozen tower the merger needs no gradient of its own input
        return (3 if below else 1) * tower + (1 + trained.merger + below) * merger


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 operations per second of a CUDA device, None when it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("NVIDIA H100 PCIe")
    (989400000000000.0, 756000000000000.0)
    >>> print(peak_flops("NVIDIA GeForce GTX 1080"))
    None
    """
    words = f" {device_name.replace('-', ' ')} "
    known = [name for name in PEAK_TFLOPS if f" {name} " in words]
    if not known or " MIG " in words:  # a slice of a device has a share of its peak
        return None
    return PEAK_TFLOPS[max(known, key=len)] * 1e12


def _squares(side: int, window: int) -> int:
    """Sum of the squared sizes that windows cut a side into; 0 = one window."""
    if not window:
        return side**2
    whole, rest = divmod(side, window)
    return whole * window**2 + rest**2

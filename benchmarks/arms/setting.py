"""What the arms of the benchmark `embedding` share: sizes, settings, files, how rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rematch_ray.config import EmbedSettings
from rematch_ray.data.batching import BatchLimits
from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.rows import EncodedRow
from rematch_ray.data.schema import items_from_table
from rematch_ray.model.embedder import Embedder

BATCH_ROWS, WINDOW_ROWS = 32, 256
LIMITS = BatchLimits(BATCH_ROWS, 10**9, 10**9)
SETTINGS = EmbedSettings(
    batch_rows=BATCH_ROWS,
    batch_tokens=LIMITS.tokens,
    batch_pixels=10**12,
    window_rows=WINDOW_ROWS,
    rows_per_write=512,
    progress_seconds=30,
)


@dataclass(frozen=True)
class Size:
    """How much is embedded.

    Attributes:
        stand_in: rows of the stand-in's run.
        marks: rows of the short run and of the long one.
        memory: rows at 1x.
        buffer: bytes that may wait between stages while memory is measured.
        padding: rows whose lengths are looked at.
        rounds: times that the arms run in turn.
    """

    stand_in: int
    marks: tuple[int, int]
    memory: int
    buffer: int
    padding: int
    rounds: int


QUICK = Size(1024, (256, 1280), 512, 2 * 2**20, 512, 1)
FULL = Size(8192, (1024, 6144), 4096, 8 * 2**20, 4096, 3)


@dataclass(frozen=True)
class Setting:
    """What an arm is told.

    Attributes:
        folder: of the data, the export and all that is written.
        base: the model that the export was built on.
        device: `cpu` or `cuda`.
        quick: fewer rows, one round.
    """

    folder: Path
    base: Path
    device: str
    quick: bool

    @property
    def size(self) -> Size:
        """How much is embedded."""
        return QUICK if self.quick else FULL

    @property
    def export(self) -> Path:
        """The model that every arm runs."""
        return self.folder / "export"

    def data(self, name: str) -> Path:
        """A corpus by its name."""
        return self.folder / "data" / name

    @property
    def rows(self) -> Path:
        """The corpus of the long run."""
        return self.data(f"rows-{self.size.marks[1]}")

    def load(self) -> Embedder:
        """The model in this process."""
        return Embedder.from_pretrained(self.export, device=self.device)


def encoded_windows(model: Embedder, data: Path) -> Iterator[list[EncodedRow]]:
    """Reads, decodes and tokenises, a window at a time."""
    held: list[EncodedRow] = []
    for unit in list_data(data, rows="items"):
        for batch in read_data(unit):
            for item in items_from_table(batch):
                held.append(model.row_encoder.encode(item, "document"))
                if len(held) == WINDOW_ROWS:
                    yield held
                    held = []
    if held:
        yield held


def row_sizes(rows: list[EncodedRow], model: Embedder) -> tuple[list[int], list[int]]:
    """Tokens, meta tokens included, and patches of each row."""
    meta = model.num_vectors("document")
    return [len(row.input_ids) + meta for row in rows], [len(row.pixels) for row in rows]

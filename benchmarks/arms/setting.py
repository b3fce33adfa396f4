"""What the arms of the benchmark `embedding` share: sizes, settings, files, how rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shapes.mixed_corpus import write_corpus
from shapes.random_rows import COMMITTED, write_base

from rematch_ray.config import EmbedSettings
from rematch_ray.data.batching import BatchLimits
from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.rows import EncodedRow
from rematch_ray.data.schema import items_from_table
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelSettings
from rematch_ray.model.tiny import TinySettings

SHIPPED = Path(__file__).resolve().parents[2] / "rematch_ray" / "assets" / "tiny-base"

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


# what bounds memory: batches by their tokens, small windows, writes and shards
SMALL = SETTINGS.model_copy(
    update={"batch_tokens": 8192, "window_rows": 64, "rows_per_write": 256, "rows_per_shard": 512}
)
BASES: dict[str, TinySettings | None] = {"committed": COMMITTED, "tiny": None}
"""Hidden 512 and 8 layers with random weights, and the shipped base of hidden 128."""


@dataclass(frozen=True)
class Size:
    """How much is embedded.

    Attributes:
        stand_in: rows of the stand-in's run.
        marks: for each model, rows that warm the arms up, and rows after which they end.
        job: rows of the job's short run and of its long one: both have windows enough to start
            every process that encodes, so that starting them is not counted.
        memory: rows at 1x.
        buffer: bytes that may wait between stages while memory is measured.
        padding: rows whose lengths are looked at.
    """

    stand_in: int
    marks: dict[str, tuple[int, int]]
    job: dict[str, tuple[int, int]]
    memory: int
    buffer: int
    padding: int


QUICK = Size(384, {"tiny": (256, 768)}, {"tiny": (512, 1024)}, 128, 32 * 2**20, 256)
FULL = Size(
    2048,
    {"committed": (256, 512), "tiny": (1024, 4096)},
    {"committed": (512, 2048), "tiny": (2048, 6144)},
    6144,
    32 * 2**20,
    2048,
)
WARM_ROWS = 128


@dataclass(frozen=True)
class Setting:
    """What an arm is told.

    Attributes:
        folder: of the data, the models and all that is written.
        shape: which model, of `BASES`.
        device: `cpu` or `cuda`.
        quick: fewer rows.
    """

    folder: Path
    shape: str
    device: str
    quick: bool

    @property
    def size(self) -> Size:
        """How much is embedded."""
        return QUICK if self.quick else FULL

    @property
    def marks(self) -> tuple[int, int]:
        """Rows that warm an arm up, and rows after which it ends."""
        return self.size.marks[self.shape]

    @property
    def job(self) -> tuple[int, int]:
        """Rows of the job's short run and of its long one."""
        return self.size.job[self.shape]

    @property
    def base(self) -> Path:
        """The base that the model is built on."""
        return SHIPPED if BASES[self.shape] is None else self.folder / f"base-{self.shape}"

    @property
    def export(self) -> Path:
        """The model that every arm runs."""
        return self.folder / f"export-{self.shape}"

    def data(self, name: str) -> Path:
        """A corpus by its name."""
        return self.folder / "data" / name

    @property
    def rows(self) -> Path:
        """The corpus of the arms without Ray."""
        return self.data(f"rows-{self.marks[1]}")

    def write(self) -> None:
        """Writes the model and the corpora of its runs."""
        sizes = BASES[self.shape]
        if sizes is not None:
            write_base(self.base, sizes)
        embedder = Embedder.build(ModelSettings(base=str(self.base)), name="benchmark").eval()
        embedder.save_pretrained(self.export)
        for rows in {WARM_ROWS, *self.marks, *self.job}:
            write_corpus(self.data(f"rows-{rows}"), rows)

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

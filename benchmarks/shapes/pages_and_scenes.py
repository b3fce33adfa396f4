"""`tiny-full`'s vectors of distinct pages and scenes and of all emoji, with held-out queries.

Documents are all emoji, then pages of four to nine glyphs and scenes of three or four objects in
turn. Queries ask for members of the validation and test parts (held-out emoji, pages drawn for that
part, scenes of a held-out family), in two embedding directories of their own. Made once under a
folder, shard by shard: a stopped run goes on where it was.

    cd benchmarks && python -m shapes.pages_and_scenes --out DIR [--rows 100000] [--threads 1]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rematch_ray.data.demo_corpus import DemoSizes
from rematch_ray.data.demo_pages import PageIndex
from rematch_ray.data.emoji import EmojiRow, emoji_rows, rows_of
from rematch_ray.data.item import Item, Part
from rematch_ray.data.media import encode_png
from rematch_ray.data.pages import Page, draw_page, page, page_query
from rematch_ray.data.scene_drawing import draw_scene
from rematch_ray.data.scenes import CANONICAL, COLOURS, SHAPES, Scene, Shape
from rematch_ray.data.schema import QRELS_SCHEMA, write_parquet
from rematch_ray.model.embedder import Embedder
from shapes.embedded import Rows, write_directory

MODEL = Path(__file__).parents[2] / "rematch_ray" / "assets" / "tiny-full"
PARTS = ("validation", "test")
QUERIES = {"scenes": 200, "pages": 200, "emoji": 100}  # of each part
HELD_OUT_PAGES = 1000  # of each part; the other pages are of the training part
VOCABULARY = DemoSizes().page_vocabulary  # what the model has seen on pages


@dataclass(frozen=True)
class Corpus:
    """The documents before they are drawn, in row order."""

    emoji: tuple[EmojiRow, ...]
    pages: tuple[Page, ...]
    scenes: tuple[Scene, ...]

    @classmethod
    def of(cls, rows: int) -> Corpus:
        """The first `rows` documents: half of what the emoji leave are pages, half scenes."""
        emoji = emoji_rows()[:rows]
        num_pages = (rows - len(emoji)) // 2
        return cls(
            emoji,
            tuple(itertools.islice(_pages(), num_pages)),
            tuple(itertools.islice(_scenes(), rows - len(emoji) - num_pages)),
        )

    def __len__(self) -> int:
        return len(self.emoji) + len(self.pages) + len(self.scenes)

    def item(self, row: int) -> Item:
        """Draws one document; its payload has the hash of the picture's bytes."""
        if row < len(self.emoji):
            return _marked(self.emoji[row].document)
        number, is_scene = divmod(row - len(self.emoji), 2)
        if is_scene or number >= len(self.pages):
            scene = self.scenes[number]
            payload = {"name": scene.caption, "group": scene.relation, "split": scene.split}
            return _marked(_drawn(scene.id, draw_scene(scene), "scenes", payload))
        sheet = self.pages[number]
        payload = {
            "name": sheet.caption,
            "group": f"{len(sheet.glyphs)} glyphs",
            "split": sheet.id.split("-")[1],
        }
        return _marked(_drawn(sheet.id, draw_page(sheet), "pages", payload))


def _pages() -> Iterator[Page]:
    """Pages of the held-out parts, then of the training part, no two of which look the same."""
    seen = set()
    held_out = ((part, seed) for part in PARTS for seed in range(HELD_OUT_PAGES))
    rest = (("train", seed) for seed in itertools.count())
    for part, seed in itertools.chain(held_out, rest):
        sheet = page(seed, split=part, vocabulary_size=VOCABULARY)
        look = (tuple(glyph.id for glyph in sheet.glyphs), sheet.cells)
        if look not in seen:
            seen.add(look)
            yield sheet


def _scenes() -> Iterator[Scene]:
    """Distinct scenes of three and four objects, of all families."""
    draw = random.Random("benchmark scenes")
    seen = set()
    while True:
        count = draw.choice((3, 4))
        things = map(Shape, draw.sample(sorted(COLOURS), count), draw.sample(SHAPES, count))
        scene = Scene(tuple(things), draw.choice(CANONICAL))
        if scene not in seen:
            seen.add(scene)
            yield scene


def _drawn(name: str, picture: Any, source: str, payload: dict[str, str]) -> Item:
    return Item(name, (Part.of_image(encode_png(picture)),), source=source, payload=payload)


def _marked(item: Item) -> Item:
    """With the hash of its content, and the payload fields that all sources have."""
    content = hashlib.sha256(item.parts[0].image or b"").hexdigest()
    kept = {key: item.payload[key] for key in ("name", "group", "split")}
    return replace(item, payload={**kept, "content": content})


def make_queries(corpus: Corpus, part: str) -> tuple[list[Item], list[tuple[str, str, float]]]:
    """Queries of a held-out part and every document that answers them."""
    draw = random.Random(f"queries:{part}")
    queries, qrels = [], []
    held = [scene for scene in corpus.scenes if scene.split == part]
    for scene in draw.sample(held, min(QUERIES["scenes"], len(held))):
        text = draw.choice((scene.caption, scene.paraphrase))
        queries.append(Item.of(text, id=f"query-{scene.id}", source="scenes"))
        qrels.append((f"query-{scene.id}", scene.id, 1.0))
    index = PageIndex(corpus.pages)
    sheets = [sheet for sheet in corpus.pages if sheet.id.startswith(f"page-{part}-")]
    for sheet in sheets[: QUERIES["pages"]]:
        asked = page_query(sheet, 0)
        queries.append(Item.of(asked.text, id=asked.id, source="pages"))
        qrels += [(asked.id, found.id, 1.0) for found in index.holding(asked.glyph_ids)]
    present = {row.id for row in corpus.emoji}
    glyphs = [row for row in rows_of(f"composed-{part}", f"novel-{part}") if row.id in present]
    for row in draw.sample(glyphs, min(QUERIES["emoji"], len(glyphs))):
        queries.append(Item.of(row.name, id=f"query-{row.id}", source="emoji"))
        qrels.append((f"query-{row.id}", row.id, 1.0))
    return queries, qrels


def write_pages_and_scenes(out: Path, rows: int = 100_000, *, model: Path = MODEL) -> Path:
    """Writes `documents/`, `queries-<part>/` and `qrels-<part>.parquet`; what is there is kept.

    Args:
        out: the folder; it is for one number of rows.
        rows: documents.
        model: export of the embedder.

    Returns:
        `out`.

    Raises:
        RuntimeError: two documents have the same picture.
    """
    corpus = Corpus.of(rows)
    embedder = lru_cache(maxsize=1)(lambda: Embedder.from_pretrained(model, device="cpu"))
    for part in PARTS:
        queries, qrels = make_queries(corpus, part)
        _embed(out / f"queries-{part}", queries, "query", embedder)
        columns = [pa.array(column) for column in zip(*qrels)]
        table = pa.Table.from_arrays(columns, names=QRELS_SCHEMA.names).cast(QRELS_SCHEMA)
        write_parquet(table, out / f"qrels-{part}.parquet")
    _embed(out / "documents", corpus, "document", embedder)
    _check_distinct(out / "documents")
    return out


def _embed(out: Path, items: Corpus | Sequence[Item], side: str, embedder: Any) -> None:
    def make(start: int, stop: int) -> Rows:
        if isinstance(items, Corpus):
            chosen = [items.item(row) for row in range(start, stop)]
        else:
            chosen = list(items[start:stop])
        made = embedder().encode(chosen, side)
        return Rows(
            [item.id for item in chosen],
            made.vectors.numpy(),
            made.fused.numpy(),
            [item.source for item in chosen],
            [dict(item.payload) or {"name": item.text} for item in chosen],
        )

    if not (out / "manifest.json").exists():
        identity = embedder().identity.to_json()
        write_directory(out, len(items), make, identity=identity, side=side, model_path=str(MODEL))


def _check_distinct(documents: Path) -> None:
    hashes: set[str] = set()
    for file in sorted(documents.glob("part-*.parquet")):
        for payload in pq.read_table(file, columns=["payload"])["payload"].to_pylist():
            if payload["content"] in hashes:
                raise RuntimeError(f"{file}: {payload['name']!r} looks like an earlier document")
            hashes.add(payload["content"])


def main(argv: list[str] | None = None) -> int:
    """Makes the vectors; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    write_pages_and_scenes(options.out, options.rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

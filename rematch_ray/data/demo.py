"""Writes the demo corpora as a user's data would lie on disk, and says how far a blind model gets.

`<out>/<source>/` holds `train/*.parquet` (Samples), `corpus/*.parquet` (Items), `media/<id>.png`,
`queries-<part>.parquet`, `qrels-<part>.parquet`, `families.parquet` and `swaps-<part>.parquet`. All
is a function of seed and sizes; `<out>/manifest.json` is written last. Middle floor.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.demo_corpus import DemoCorpus, DemoSizes
from rematch_ray.data.demo_emoji import emoji_corpus
from rematch_ray.data.demo_pages import pages_corpus
from rematch_ray.data.demo_scenes import scenes_corpus
from rematch_ray.data.item import Item
from rematch_ray.data.schema import QRELS_SCHEMA, items_to_table, samples_to_table, write_parquet
from rematch_ray.errors import UserError, did_you_mean

FORMAT_VERSION = 1
CORPORA: Mapping[str, Callable[[int, DemoSizes], DemoCorpus]] = {
    "emoji": emoji_corpus,
    "scenes": scenes_corpus,
    "pages": pages_corpus,
}
DEMO_SOURCES = tuple(CORPORA)
NUM_SHARDS = 4

# one payload for all corpora, so that one index can hold them together
PAYLOAD = pa.struct(
    [(name, pa.string()) for name in ("name", "group", "family", "split", "emoji", "media")]
)
SWAPS_SCHEMA = pa.schema([(name, pa.string()) for name in ("query_id", "document_id", "kind")])


@dataclass(frozen=True)
class DemoManifest:
    """What was written.

    Attributes:
        out: the folder.
        sources: the corpora, in the order asked for.
        seed: of draws and drawings (the splits do not depend on it).
        sizes: how much was made.
        counts: by source: `train` rows, `corpus` documents, and queries by part.
        files: Parquet files, relative to `out`, and their bytes.
    """

    out: Path
    sources: tuple[str, ...]
    seed: int
    sizes: DemoSizes
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON; paths in a demo folder are relative to it, so `out` is left out."""
        return {
            "format_version": FORMAT_VERSION,
            "sources": list(self.sources),
            "seed": self.seed,
            "sizes": asdict(self.sizes),
            "counts": {source: dict(counts) for source, counts in self.counts.items()},
            "files": dict(self.files),
        }


def write_demo(
    out: str | Path,
    *,
    sources: Sequence[str] = ("emoji", "scenes"),
    seed: int = 0,
    sizes: DemoSizes | None = None,
    quick: bool = False,
) -> DemoManifest:
    """Write demo corpora; a folder that already holds exactly these is left as it is.

    Args:
        out: the folder; files of ours in it are replaced.
        sources: of `DEMO_SOURCES`.
        seed: of draws and drawings.
        sizes: how much to make; None is everything, or little with `quick`.
        quick: `DemoSizes.quick()` when no sizes are given.

    Returns:
        The manifest.

    Raises:
        UserError: an unknown source.
    """
    for source in sources:
        if source not in CORPORA:
            raise UserError(f"demo source {source!r} is unknown; {did_you_mean(source, CORPORA)}")
    out = Path(out)
    sizes = sizes or (DemoSizes.quick() if quick else DemoSizes())
    wanted = DemoManifest(out, tuple(dict.fromkeys(sources)), seed, sizes)
    file = out / "manifest.json"
    if (found := _read_manifest(file)) and _is_whole(found, wanted):
        return replace(wanted, counts=found["counts"], files=found["files"])
    file.unlink(missing_ok=True)
    counts = {}
    for source in wanted.sources:
        corpus = CORPORA[source](seed, sizes)
        _write_corpus(corpus, out)
        counts[source] = {"train": len(corpus.train), "corpus": len(corpus.documents)} | {
            part: len(queries) for part, queries in corpus.queries.items()
        }
    manifest = replace(wanted, counts=counts, files=_file_sizes(wanted))
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)
    return manifest


@dataclass(frozen=True)
class BlindCeiling:
    """The best expected scores of a model that cannot tell the members of a family apart."""

    num_queries: int
    recall_at_1: float
    recall_at_10: float
    ndcg_at_10: float
    in_family: float


def blind_ceiling(families: Mapping[str, str], relevant: Sequence[str]) -> BlindCeiling:
    """The ceiling of a model that ranks the right family first and its members in random order.

    With n members, one of them right: Recall@k = min(k, n) / n, nDCG@k = (1 / n) x the sum over
    ranks i = 1 .. min(k, n) of 1 / log2(1 + i), accuracy inside the family 1 / n; each a mean over
    queries. With emoji that differ in skin tone alone as families this is a model blind to tone,
    with families of scenes one blind to binding, order and relation.

    Args:
        families: document id -> family key, for the whole gallery.
        relevant: the right document of each query.

    >>> blind_ceiling({"a": "x", "b": "x", "c": "y"}, ["a", "c"]).recall_at_1
    0.75
    """
    if not relevant:
        raise UserError("no relevant documents were given; a ceiling needs at least one query")
    members = Counter(families.values())
    sizes = [members[families[document_id]] for document_id in relevant]

    def mean(score: Callable[[int], float]) -> float:
        return sum(map(score, sizes)) / len(sizes)

    return BlindCeiling(
        num_queries=len(sizes),
        recall_at_1=mean(lambda n: 1 / n),
        recall_at_10=mean(lambda n: min(10, n) / n),
        ndcg_at_10=mean(lambda n: sum(1 / math.log2(1 + i) for i in range(1, min(10, n) + 1)) / n),
        in_family=mean(lambda n: 1 / n),
    )


def blind_ceilings(folder: str | Path, *, key: str = "family") -> dict[str, BlindCeiling]:
    """The ceilings of every part of a written corpus that has families.

    Args:
        folder: `<out>/<source>`.
        key: column of `families.parquet` (`family`; emoji also have `base`: blind to gender too).
    """
    folder = Path(folder)
    table = pq.read_table(folder / "families.parquet")
    families = dict(zip(table["document_id"].to_pylist(), table[key].to_pylist(), strict=True))
    return {
        file.stem.removeprefix("qrels-"): blind_ceiling(
            families, pq.read_table(file)["document_id"].to_pylist()
        )
        for file in sorted(folder.glob("qrels-*.parquet"))
    }


def _write_corpus(corpus: DemoCorpus, out: Path) -> None:
    folder = out / corpus.source
    documents = [_with_media(document, out, corpus.source) for document in corpus.documents]
    _write_shards(samples_to_table(corpus.train), folder / "train")
    _write_shards(items_to_table(documents, PAYLOAD), folder / "corpus")
    for part, queries in corpus.queries.items():
        write_parquet(items_to_table(queries), folder / f"queries-{part}.parquet")
        _write_rows(corpus.qrels[part], QRELS_SCHEMA, folder / f"qrels-{part}.parquet")
    for part, swaps in corpus.swaps.items():
        _write_rows(swaps, SWAPS_SCHEMA, folder / f"swaps-{part}.parquet")
    if corpus.families:
        families = [{"document_id": key, **value} for key, value in corpus.families.items()]
        write_parquet(pa.Table.from_pylist(families), folder / "families.parquet")


def _with_media(document: Item, out: Path, source: str) -> Item:
    """Write the document's picture, and name it in the payload relative to `out`."""
    media = f"{source}/media/{document.id}.png"
    (out / media).parent.mkdir(parents=True, exist_ok=True)
    (out / media).write_bytes(document.parts[0].image or b"")
    return replace(document, payload={**document.payload, "media": media})


def _write_shards(table: pa.Table, folder: Path) -> None:
    size = max(1, math.ceil(table.num_rows / NUM_SHARDS))
    for number in range(NUM_SHARDS):
        write_parquet(
            table.slice(number * size, size), folder / f"part-{number}-of-{NUM_SHARDS}.parquet"
        )


def _write_rows(rows: Sequence[tuple[Any, ...]], schema: pa.Schema, path: Path) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [
        pa.array(list(column), kind) for column, kind in zip(columns, schema.types, strict=True)
    ]
    write_parquet(pa.Table.from_arrays(arrays, schema=schema), path)


def _file_sizes(manifest: DemoManifest) -> dict[str, int]:
    """Our Parquet files, relative to the folder, and their bytes."""
    found = [
        path
        for source in manifest.sources
        for pattern in ("*.parquet", "train/*.parquet", "corpus/*.parquet")
        for path in (manifest.out / source).glob(pattern)
    ]
    return {
        path.relative_to(manifest.out).as_posix(): path.stat().st_size for path in sorted(found)
    }


def _is_whole(found: Mapping[str, Any], wanted: DemoManifest) -> bool:
    """Whether a manifest describes what is wanted, and its files lie there."""
    if {**found, "counts": {}, "files": {}} != wanted.to_json():
        return False
    paths = {wanted.out / name: size for name, size in found["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _read_manifest(file: Path) -> dict[str, Any] | None:
    """The manifest's JSON; None when there is none that we can read: then all is written."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""A corpus of which a share is hostile, end to end: every row is embedded, or named and why."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rematch_ray.config import EmbedSettings
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.workloads.embed import embed
from tests.data.test_media import REASONS
from tests.hostile import HOSTILE
from tests.workloads.hostile_corpus import Written, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def account(out: Path, written: Written) -> None:
    """Counts every row of the input once: in a shard with its vectors, or in the quarantine."""
    manifest = json.loads((out / "manifest.json").read_text())
    embedded: Counter[str] = Counter()
    for batch in EmbeddingShards.open(out).batches():
        embedded.update(batch.ids)
        for name, payload in zip(batch.ids, batch.payloads, strict=True):
            assert name == f"row-{payload['number']:06d}"
    quarantine = pq.read_table(out / "quarantine.parquet").to_pylist()
    named = Counter(row["id"] for row in quarantine)
    assert set((embedded + named).values()) == {1}
    assert embedded.keys() | named.keys() == {f"row-{n:06d}" for n in range(written.rows)}
    assert named.keys() == written.bad.keys()
    assert manifest["rows_in"] == manifest["embedded"] + manifest["quarantined"] == written.rows
    for row in quarantine:
        assert REASONS[written.bad[row["id"]]].removeprefix("(?i)") in row["reason"].lower()
        number = int(row["id"].removeprefix("row-"))
        assert int(Path(row["path"]).stem) + row["row"] == number
        assert row["source"] == f"source-{number % 2}"
    assert set(written.bad.values()) == set(HOSTILE)


def test_two_hundred_rows_with_every_kind_of_attack(tiny_export: Path, tmp_path: Path) -> None:
    written = write_corpus(tmp_path / "data", 200, hostile=10, rows_per_file=70)
    settings = EmbedSettings(max_bad_share=0.05, rows_per_write=64, rows_per_shard=100)
    result = embed(
        model=tiny_export, data=tmp_path / "data", out=tmp_path / "out", settings=settings
    )
    assert (result["embedded"], result["quarantined"]) == (190, 10)
    account(tmp_path / "out", written)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_rows_of_which_one_in_a_hundred_is_hostile(
    tiny_export: Path, tmp_path: Path
) -> None:
    written = write_corpus(tmp_path / "data", 100_000, hostile=1000, rows_per_file=5000)
    settings = EmbedSettings(batch_rows=64, num_vectors=3, store_dtype="int8")
    result = embed(
        model=tiny_export, data=tmp_path / "data", out=tmp_path / "out", settings=settings
    )
    assert (result["embedded"], result["quarantined"]) == (99_000, 1000)
    account(tmp_path / "out", written)
